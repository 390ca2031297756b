"""A caller's timeout holds while the server is stopped, whatever the pool would have it wait for."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
from servers import PrivateServer, transport

import pooled_pymysql
from pooled_pymysql import PoolTimeout

pytestmark = pytest.mark.thorough

TIMEOUT = 0.2  # seconds that callers ask for
# It is 0.25 s on a machine of one's own; what a busy one adds has room here, and the least limit of our own that a
# caller could be made to wait for (a validation's, 2 s) has not.
BOUND = 1.5


@pytest.fixture
def kwargs(private: PrivateServer) -> Iterator[dict[str, Any]]:
    yield private.server.kwargs(**transport(private.server.is_mariadb))
    pooled_pymysql.close_pools()


def lease(kwargs: dict[str, Any], **options: Any) -> Any:
    return pooled_pymysql.connect(**kwargs, pool={"timeout": TIMEOUT, "max_size": 2, **options})


SITUATIONS = {
    "empty": ({}, ""),
    "idle for long": ({"validate_after": 0}, ""),
    "reset": ({"max_size": 1}, "SET @left = 'over'"),
    "reset at every release": ({"max_size": 1, "reset": "always"}, "SELECT 1"),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_timeout_holds_while_the_server_is_stopped(name: str, private: PrivateServer, kwargs: dict[str, Any]) -> None:
    options, statement = SITUATIONS[name]
    used = lease(kwargs, **options) if name != "empty" else None
    if statement:
        used.query(statement)
    with private.paused():
        if used is not None:
            used.close()
        began = time.monotonic()
        with pytest.raises(PoolTimeout):
            lease(kwargs, **options)
        assert TIMEOUT - 0.01 <= time.monotonic() - began < BOUND


def test_timeout_holds_for_who_waits_in_the_queue(private: PrivateServer, kwargs: dict[str, Any]) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(contextlib.closing(lease(kwargs)))
        with private.paused():
            began = time.monotonic()
            with pytest.raises(PoolTimeout):
                lease(kwargs)
            assert TIMEOUT - 0.01 <= time.monotonic() - began < BOUND
