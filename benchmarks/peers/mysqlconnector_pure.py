"""mysql-connector-python's pool, in pure Python."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from mysql.connector import connect
from mysql.connector.errors import PoolError
from mysql.connector.pooling import MySQLConnectionPool

from peers import polled

REQUIREMENTS = ("mysql-connector-python",)
DISTRIBUTIONS = ("mysql-connector-python",)
IMPORTS = "import mysql.connector, mysql.connector.pooling"
DRIVER_IMPORTS = "import mysql.connector"
VARIANTS = {"mysql-connector pool, pure": {}}
MAX_SIZE = 32
NOTE = "another driver, to its own floor; pings and resets by default; does not wait: asked every 1 ms"


def settings(arguments: Mapping[str, Any], *, autocommit: bool, tls: bool, use_pure: bool) -> dict[str, Any]:
    return {**arguments, "autocommit": autocommit, "ssl_disabled": not tls, "use_pure": use_pure}


class ConnectorPool:
    """The pool, which opens all of its connections at once."""

    def __init__(self, options: Mapping[str, Any], arguments: Mapping[str, Any], size: int) -> None:
        name = f"benchmark_{id(self)}"
        self._pool = MySQLConnectionPool(pool_size=size, pool_name=name, **options, **arguments)

    def acquire(self) -> Any:
        return polled(self._pool.get_connection, PoolError)

    def release(self, lease: Any) -> None:
        lease.close()

    def close(self) -> None:
        self._pool._remove_connections()  # it has no public way


def bare(arguments: Mapping[str, Any], *, autocommit: bool = True, tls: bool = False) -> Any:
    return connect(**settings(arguments, autocommit=autocommit, tls=tls, use_pure=True))


def Pool(  # noqa: N802  the name that every peer has
    options: Mapping[str, Any], arguments: Mapping[str, Any], *, size: int, autocommit: bool, tls: bool
) -> ConnectorPool:
    own = partial(settings, arguments, autocommit=autocommit, tls=tls)
    return ConnectorPool(options, own(use_pure=True), size)
