"""The server that faults are done to: of this folder's own, and stopped whatever happens."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
from servers import PrivateServer

from .bank import TAG, open_books
from .faults import FaultyProxy
from .schedule import LOCK_TIMEOUT, Scene


@pytest.fixture(scope="session")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateServer]:
    """A MariaDB that tests may kill and stop; each leaves it running."""
    with PrivateServer(
        tmp_path_factory.mktemp("chaos") / "server", f"--innodb-lock-wait-timeout={LOCK_TIMEOUT}"
    ) as server:
        yield server


@pytest.fixture
def scene(private: PrivateServer) -> Iterator[Scene]:
    """A proxy before the server, and an account without any right that would let it past the server's limits."""
    account = dataclasses.replace(private.server, user="bank", password="bank", database="bank")
    with FaultyProxy(private.server.host, private.port, TAG) as proxy:
        scene = Scene(private, proxy, account)
        open_books(scene)
        with scene.admin() as cursor:
            cursor.execute("CREATE USER IF NOT EXISTS bank@'%%' IDENTIFIED BY 'bank'")
            cursor.execute("GRANT ALL PRIVILEGES ON bank.* TO bank@'%%'")
        yield scene
