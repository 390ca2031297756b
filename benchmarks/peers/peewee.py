"""peewee: PooledMySQLDatabase over PyMySQL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from playhouse.pool import PooledMySQLDatabase

from peers import PATIENCE, pymysql_arguments
from peers import pymysql_bare as bare

REQUIREMENTS = ("peewee",)
DISTRIBUTIONS = ("peewee", "PyMySQL")
IMPORTS = "import pymysql, playhouse.pool"
DRIVER_IMPORTS = "import pymysql"
VARIANTS = {"peewee pool": {}}
THREAD_BOUND = True
NOTE = "always in autocommit, its only mode: its SELECTs begin no transaction; one lease for each thread"

__all__ = ["Pool", "bare"]


class Pool:
    """A database object: a thread connects, and uses the connection that is then the thread's own."""

    def __init__(
        self, options: Mapping[str, Any], arguments: Mapping[str, Any], *, size: int, autocommit: bool, tls: bool
    ) -> None:
        own = pymysql_arguments(arguments, autocommit=autocommit, tls=tls)
        del own["autocommit"]  # it gives its own
        name = own.pop("database")
        self._database = PooledMySQLDatabase(name, max_connections=size, timeout=PATIENCE, **options, **own)

    def acquire(self) -> Any:
        self._database.connect()
        return self._database.connection()

    def release(self, lease: Any) -> None:
        assert lease is self._database.connection()
        self._database.close()

    def close(self) -> None:
        self._database.close_all()
