"""A pooled, drop-in driver module over PyMySQL: `import pooled_pymysql as pymysql` (PEP 249).

`connect()` leases from a hidden pool instead of opening a connection; `close()` gives back.
"""

from pymysql import (
    BINARY,
    DATE,
    DATETIME,
    NULL,
    NUMBER,
    ROWID,
    STRING,
    TIME,
    TIMESTAMP,
    VERSION,
    VERSION_STRING,
    Binary,
    DatabaseError,
    DataError,
    Date,
    DateFromTicks,
    DBAPISet,
    Error,
    IntegrityError,
    InterfaceError,
    InternalError,
    MySQLError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    Time,
    TimeFromTicks,
    Timestamp,
    TimestampFromTicks,
    Warning,  # noqa: A004  PEP 249 names it so
    __version__,
    get_client_info,
    thread_safe,
    version_info,
)

from . import charset, connections, constants, converters, cursors, err, optionfile, protocol, times
from .constants import FIELD_TYPE
from .exceptions import (
    GetConnectionFromPoolError,
    LeaseBusy,
    PoolClosed,
    PoolFull,
    PoolTimeout,
    ReturnConnectionToPoolError,
)
from .explicit import ConnectionPool, logger
from .impersonation import install_as_MySQLdb, install_as_pymysql
from .lease import Connection
from .observer import PoolObserver
from .options import PoolOptions, configure
from .pool import Pool, PoolStats
from .registry import add_observer, close_pools, connect, pool_for, pools, remove_observer

apilevel = "2.0"
threadsafety = 2
paramstyle = "pyformat"

Connect = connect

__all__ = [
    "BINARY",
    "DATE",
    "DATETIME",
    "FIELD_TYPE",
    "NULL",
    "NUMBER",
    "ROWID",
    "STRING",
    "TIME",
    "TIMESTAMP",
    "VERSION",
    "VERSION_STRING",
    "Binary",
    "Connect",
    "Connection",
    "ConnectionPool",
    "DBAPISet",
    "DataError",
    "DatabaseError",
    "Date",
    "DateFromTicks",
    "Error",
    "GetConnectionFromPoolError",
    "IntegrityError",
    "InterfaceError",
    "InternalError",
    "LeaseBusy",
    "MySQLError",
    "NotSupportedError",
    "OperationalError",
    "Pool",
    "PoolClosed",
    "PoolFull",
    "PoolObserver",
    "PoolOptions",
    "PoolStats",
    "PoolTimeout",
    "ProgrammingError",
    "ReturnConnectionToPoolError",
    "Time",
    "TimeFromTicks",
    "Timestamp",
    "TimestampFromTicks",
    "Warning",
    "__version__",
    "add_observer",
    "apilevel",
    "charset",
    "close_pools",
    "configure",
    "connect",
    "connections",
    "constants",
    "converters",
    "cursors",
    "err",
    "get_client_info",
    "install_as_MySQLdb",
    "install_as_pymysql",
    "logger",
    "optionfile",
    "paramstyle",
    "pool_for",
    "pools",
    "protocol",
    "remove_observer",
    "thread_safe",
    "threadsafety",
    "times",
    "version_info",
]
