"""pooled_pymysql."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))  # the working copy, unless the package is installed

import pooled_pymysql
from peers import PATIENCE, pymysql_arguments
from peers import pymysql_bare as bare

DISTRIBUTIONS = ("pooled-pymysql", "PyMySQL")
IMPORTS = "import pooled_pymysql"
DRIVER_IMPORTS = "import pymysql"
VARIANTS = {"pooled_pymysql": {}, "pooled_pymysql, reset=always": {"reset": "always"}}

__all__ = ["Pool", "bare"]


class Pool:
    """`connect()` with equal arguments; the registry finds the pool, as it does for every user."""

    def __init__(
        self, options: Mapping[str, Any], arguments: Mapping[str, Any], *, size: int, autocommit: bool, tls: bool
    ) -> None:
        own = pooled_pymysql.PoolOptions(max_size=size, timeout=PATIENCE, name=f"benchmark {id(self)}", **options)
        self._arguments = {**pymysql_arguments(arguments, autocommit=autocommit, tls=tls), "pool": own}

    def acquire(self) -> Any:
        return pooled_pymysql.connect(**self._arguments)

    def release(self, lease: Any) -> None:
        lease.close()

    def close(self) -> None:
        pooled_pymysql.close_pools()
