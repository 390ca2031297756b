"""pymysql-pool. Under the GPL: installed into a folder of its own, run in a process of its own, and never read."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from pymysqlpool import ConnectionPool, GetConnectionFromPoolError

from peers import POLL, polled, pymysql_arguments
from peers import pymysql_bare as bare

sys.tracebacklimit = 0  # a traceback would show lines of its source

REQUIREMENTS = ("pymysql-pool>=0.5,<0.6",)
DISTRIBUTIONS = ("pymysql-pool", "PyMySQL")
IMPORTS = "import sys; sys.tracebacklimit = 0; import pymysqlpool"
DRIVER_IMPORTS = "import pymysql"
VARIANTS = {"pymysql-pool": {}, "pymysql-pool, pre_ping": {"pre_ping": True}}
NOTE = "waits by asking again; every 1 ms here (its default is 100 ms)"

__all__ = ["Pool", "bare"]


class Pool:
    """`ConnectionPool` with `maxsize`: without it the pool opens a connection for every caller, up to 100."""

    def __init__(
        self, options: Mapping[str, Any], arguments: Mapping[str, Any], *, size: int, autocommit: bool, tls: bool
    ) -> None:
        # Its defaults commit by themselves.
        own = pymysql_arguments(arguments, autocommit=autocommit, tls=tls)
        self._pool = ConnectionPool(size=size, maxsize=size, **own)
        # It tries ten times at most, whatever it is told.
        self._get = partial(self._pool.get_connection, retry_num=10, retry_interval=POLL, **options)

    def acquire(self) -> Any:
        return polled(self._get, GetConnectionFromPoolError)

    def release(self, lease: Any) -> None:
        lease.close()

    def close(self) -> None:
        pass  # it has nothing for that
