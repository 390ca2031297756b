"""PyMySQL without a pool: a new connection each time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pymysql

from peers import pymysql_arguments
from peers import pymysql_bare as bare

DISTRIBUTIONS = ("PyMySQL",)
IMPORTS = "import pymysql"
DRIVER_IMPORTS = "import pymysql"
VARIANTS = {"PyMySQL, new connection, TLS": {"tls": True}, "PyMySQL, new connection": {"tls": False}}
POOLS = False
NOTE = "opens a connection for each lease; TLS as PyMySQL's defaults try it, and without"

__all__ = ["Pool", "bare"]


class Pool:
    """No pool."""

    def __init__(
        self, options: Mapping[str, Any], arguments: Mapping[str, Any], *, size: int, autocommit: bool, tls: bool
    ) -> None:
        del size  # there is nothing to limit
        self._arguments = pymysql_arguments(arguments, autocommit=autocommit, tls=tls or options["tls"])

    def acquire(self) -> Any:
        return pymysql.connect(**self._arguments)

    def release(self, lease: Any) -> None:
        lease.close()

    def close(self) -> None:
        pass
