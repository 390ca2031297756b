"""DBUtils: PooledDB over PyMySQL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pymysql
from dbutils.pooled_db import PooledDB

from peers import pymysql_arguments
from peers import pymysql_bare as bare

REQUIREMENTS = ("DBUtils",)
DISTRIBUTIONS = ("DBUtils", "PyMySQL")
IMPORTS = "import pymysql, dbutils.pooled_db"
DRIVER_IMPORTS = "import pymysql"
VARIANTS = {"DBUtils PooledDB": {}, "DBUtils PooledDB, ping=7": {"ping": 7}}

__all__ = ["Pool", "bare"]


class Pool:
    """`PooledDB` with a limit that callers wait at."""

    def __init__(
        self, options: Mapping[str, Any], arguments: Mapping[str, Any], *, size: int, autocommit: bool, tls: bool
    ) -> None:
        own = pymysql_arguments(arguments, autocommit=autocommit, tls=tls)
        self._pool = PooledDB(pymysql, maxconnections=size, maxcached=size, blocking=True, **options, **own)

    def acquire(self) -> Any:
        return self._pool.connection()

    def release(self, lease: Any) -> None:
        lease.close()

    def close(self) -> None:
        self._pool.close()
