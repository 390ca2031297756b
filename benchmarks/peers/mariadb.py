"""mariadb: the pool of Connector/Python 2.0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mariadb

from peers import PATIENCE

# Pre-releases have to be named; the driver that is ready-built, and the pool.
REQUIREMENTS = ("mariadb[binary,pool]>=2.0.0rc1",)
DISTRIBUTIONS = ("mariadb", "mariadb-pool", "mariadb-binary")
IMPORTS = "import mariadb, mariadb_pool"
DRIVER_IMPORTS = "import mariadb"
VARIANTS = {"mariadb pool": {}, "mariadb pool, reset + ping": {"reset_connection": True, "ping_threshold": 0.000001}}
NOTE = "another driver, to its own floor"


def _settings(arguments: Mapping[str, Any], *, autocommit: bool, tls: bool) -> dict[str, Any]:
    return {**arguments, "autocommit": autocommit, "ssl": tls}


def bare(arguments: Mapping[str, Any], *, autocommit: bool = True, tls: bool = False) -> Any:
    return mariadb.connect(**_settings(arguments, autocommit=autocommit, tls=tls))


class Pool:
    """`create_pool()`; it opens `min_size` connections at once, by default all."""

    def __init__(
        self, options: Mapping[str, Any], arguments: Mapping[str, Any], *, size: int, autocommit: bool, tls: bool
    ) -> None:
        own = _settings(arguments, autocommit=autocommit, tls=tls)
        self._pool = mariadb.create_pool(max_size=size, acquire_timeout=PATIENCE, **options, **own)

    def acquire(self) -> Any:
        return self._pool.acquire()

    def release(self, lease: Any) -> None:
        lease.close()

    def close(self) -> None:
        self._pool.close()
