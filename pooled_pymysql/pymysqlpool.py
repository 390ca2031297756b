"""The names of pymysql-pool: `from pooled_pymysql.pymysqlpool import ConnectionPool` replaces the import from there.

docs/migrating-from-pymysql-pool.md tells what differs.
"""

from .blocks import Connection
from .cursor_names import Cursor, DictCursor
from .exceptions import GetConnectionFromPoolError, ReturnConnectionToPoolError
from .explicit import ConnectionPool, ConnectionPoolSingleton, logger

__all__ = [
    "Connection",
    "ConnectionPool",
    "ConnectionPoolSingleton",
    "Cursor",
    "DictCursor",
    "GetConnectionFromPoolError",
    "ReturnConnectionToPoolError",
    "logger",
]
