"""The exceptions of the pool, each one level below PyMySQL's OperationalError (PEP 249, "Exceptions")."""

from pymysql.err import OperationalError

__all__ = ["LeaseBusy", "PoolClosed", "PoolFull", "PoolTimeout"]


class PoolTimeout(OperationalError):
    """No session became free within the pool's timeout; args are (1040, text)."""


class PoolFull(OperationalError):
    """More callers wait already than max_waiting allows; args are (1040, text)."""


class PoolClosed(OperationalError):
    """The pool was closed; args are (2006, text)."""


class LeaseBusy(OperationalError):
    """Another thread's unread result owns the shared connection; args are (2014, text)."""
