"""The exceptions of the pool, each one level below PyMySQL's OperationalError (PEP 249, "Exceptions").

The last two are those of pymysql-pool's users; see docs/migrating-from-pymysql-pool.md.
"""

from pymysql.err import InterfaceError, OperationalError

__all__ = [
    "GetConnectionFromPoolError",
    "LeaseBusy",
    "PoolClosed",
    "PoolFull",
    "PoolTimeout",
    "ReturnConnectionToPoolError",
]


class PoolTimeout(OperationalError):
    """No session became free within the pool's timeout; args are (1040, text)."""


class PoolFull(OperationalError):
    """More callers wait already than max_waiting allows; args are (1040, text)."""


class PoolClosed(OperationalError):
    """The pool was closed; args are (2006, text)."""


class LeaseBusy(OperationalError):
    """Another thread's unread result owns the shared connection; args are (2014, text)."""


class GetConnectionFromPoolError(PoolTimeout):
    """get_connection() or a `with` block got no connection; args are (code of the cause, or 1040, text)."""


class ReturnConnectionToPoolError(InterfaceError):
    """A connection was used, or given back once more, after it was given back; args are (0, text)."""
