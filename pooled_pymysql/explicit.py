"""`ConnectionPool`: a pool that is made by hand, with the interface that users of pymysql-pool know."""

import contextlib
import dataclasses
import inspect
import logging
import os
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, cast

from pymysql import connections, err

from .arguments import Arguments, deprecated_aliases
from .blocks import Connection, not_gotten
from .exceptions import GetConnectionFromPoolError, PoolClosed, PoolTimeout, ReturnConnectionToPoolError
from .lease import Connection as Lease
from .lease import make_lease
from .options import OPTION_NAMES, PoolOptions, check_at_least, defaults, from_mapping, suggest
from .pool import _UNSET, Pool
from .registry import _call_key, _registry
from .stock import _getpid, _monotonic

logger: logging.Logger = logging.getLogger("pooled_pymysql")

_PAST = float("-inf")
_LATE = 1.0  # seconds after connect_timeout by which an opening has told how it ended
_INSTEAD = {
    "min_size": "'size' or 'pre_create_num'",
    "max_size": "'size' or 'maxsize'",
    "max_lifetime": "'con_lifetime'",
    "defer_connect": "'pre_create_num=0'",
    "pool": "the pool options themselves",
}
_CONNECT_ARGUMENTS = frozenset(inspect.signature(connections.Connection.__init__).parameters) - {"self"}
_OPTIONS = frozenset(OPTION_NAMES) - set(_INSTEAD)
_KNOWN = (_CONNECT_ARGUMENTS | _OPTIONS | {"size", "maxsize", "pre_create_num", "con_lifetime"}) - set(_INSTEAD)


class ConnectionPool(Pool):
    """A pool that belongs to whoever made it; all methods may be called from any thread.

    `size` connections are opened at once (`pre_create_num` of them where given, at most `size`), and kept from when
    they were opened; where `maxsize` is given, more are opened under demand and closed after `idle_timeout` s without
    use. `con_lifetime` is in seconds; 0, less or None: no limit. `name` is for messages; by default it is
    `host-port-user-database`. Further keywords are PyMySQL's connect arguments and pool options (see the README).

    Making one blocks until the connections are open, each up to `connect_timeout` s. Raises what PyMySQL raises when
    one cannot be opened; TypeError, ValueError for arguments that make no sense. A pool that is no longer referred to
    is closed.
    """

    def __init__(  # noqa: PLR0917  pymysql-pool's own order
        self,
        size: int = 10,
        maxsize: int | None = None,
        name: str | None = None,
        pre_create_num: int | None = None,
        con_lifetime: float | None = 3600,
        autocommit: bool | None = True,
        **kwargs: Any,
    ) -> None:
        first = _check_sizes(size, maxsize, pre_create_num)
        given, own = _split(kwargs)
        options = from_mapping(
            {
                **own,
                "name": name,
                "min_size": 0,  # nothing is opened behind our back
                "max_size": size if maxsize is None else maxsize,
                "max_lifetime": _check_lifetime(con_lifetime),
            },
            defaults(),
        )
        for old, new in deprecated_aliases(given):
            warnings.warn(f"'{old}' is deprecated, use '{new}'", DeprecationWarning, stacklevel=2)
        arguments = Arguments({**given, "autocommit": autocommit}, options)
        super().__init__(arguments, options, _registry.housekeeper)
        self._options = dataclasses.replace(options, min_size=first)
        self._name = name or _default_name(arguments)
        self._kept = size  # once open, so many stay open
        _registry.adopt(self)
        if first:
            self._open_first(first)

    def _open_first(self, number: int) -> None:
        """Open connections, or close the pool and raise why they cannot be opened."""
        patience = (self._arguments.connect_timeout or float("inf")) + _LATE
        try:
            # One alone first: a server that is down is told here once, and not by the housekeeper as well.
            self._put_back(self._acquire_slowly(None, self._arguments, patience))
            super().resize(number, self._options.max_size)
            with self._lock:
                ledger = self._ledger
                self._filled.wait_for(
                    lambda: self._is_filled() or ledger.failure is not None or ledger.closed, number * patience
                )
                failure = None if self._is_filled() else ledger.failure
            if failure is not None:
                raise failure
            if self.closed:
                raise self._closed_error()
        except BaseException:
            self.close()
            raise

    # Leases

    def get_connection(
        self,
        timeout: float | None = 1,
        retry_num: int = 1,
        retry_interval: float = 0.1,
        pre_ping: bool = False,
    ) -> Connection:
        """Return a connection; its close(), or the end of its `with` block, gives it back.

        Tries `retry_num + 1` times, for `timeout` s each (None: no limit), `retry_interval` s apart. Who waits keeps
        its place in the queue for all that time; only after a failed connect is there a pause. With `timeout=0` and
        `retry_num=0` it waits for nobody to give one back, but, where there is room, up to `connect_timeout` s for one
        to be opened. `pre_ping` asks the server first, which costs a round trip.

        Raises GetConnectionFromPoolError, with what happened as its cause; PoolClosed; TypeError or ValueError for
        numbers that make no sense.
        """
        left = None if timeout is None else _check_seconds("timeout", timeout)
        tries = 1 + check_at_least("retry_num", retry_num, 0)
        pause = _check_seconds("retry_interval", retry_interval)
        started = _monotonic()
        deadline = None
        if left is not None:
            left = left * tries + pause * (tries - 1)
            deadline = started + left
        for tries_left in range(tries - 1, -1, -1):
            try:
                return self._lease(left, pre_ping)
            except PoolClosed:
                raise
            except err.MySQLError as error:
                if isinstance(error, PoolTimeout) or not tries_left:
                    raise self._not_gotten(error, timeout, tries, _monotonic() - started) from error
            time.sleep(pause)
            if deadline is not None:
                left = max(0.0, deadline - _monotonic())
        raise AssertionError("the last try returns or raises")

    def _lease(self, timeout: float | None, pre_ping: bool = False) -> Connection:
        arguments = self._arguments
        conversions = arguments.conversions(arguments.conv)  # first: what can fail must not cost a session
        started = _monotonic()
        session = self.acquire_session(arguments, timeout)
        if pre_ping:
            session.validate_at = _PAST
            left = None if timeout is None else max(0.0, started + timeout - _monotonic())
            observed_since, session.observed_since = session.observed_since, None  # it may be another one
            session = self._acquire_slowly(session, arguments, left)
            session.observed_since = observed_since
        connection = cast(Connection, make_lease(session, self, self._itself, arguments, conversions, kind=Connection))
        connection.start_blocks()
        connection.tell_gotten()
        return connection

    def _not_gotten(
        self, error: err.MySQLError, timeout: float | None, tries: int, waited: float
    ) -> GetConnectionFromPoolError:
        limit = "" if timeout is None else f" within {timeout:g}*{tries} second(s)"
        why = self._hint() if isinstance(error, PoolTimeout) else f": {error.args[-1] if error.args else repr(error)}"
        return not_gotten(self._name, error, f"{limit}, waited {waited:.1f} s ({self._counts()}){why}")

    def acquire(self, timeout: float | None = _UNSET) -> Connection:
        """Return a lease, as Pool.acquire() does; blocks and raises as that."""
        if timeout is _UNSET:
            timeout = self._options.timeout
        return self._lease(None if timeout is None else _check_seconds("timeout", timeout))

    @contextlib.contextmanager
    def connection(self, timeout: float | None = _UNSET) -> Iterator[Connection]:
        """Lease for the length of a `with` block, as Pool.connection() does; blocks and raises as that."""
        with super().connection(timeout) as connection:
            yield cast(Connection, connection)

    def put_connection(self, con: Lease) -> None:
        """Give a connection back: the same as its close(), which says what is raised.

        One of another pool is left alone: ReturnConnectionToPoolError.
        """
        if not isinstance(con, Lease):
            raise TypeError(f"put_connection() takes a connection, not an object of type {type(con).__name__!r}")
        if con._home is not self:
            owner = "no pool" if con._home is None else f"pool({con._home.name})"
            raise ReturnConnectionToPoolError(0, f"a connection of {owner} was given back to pool({self._name})")
        con.close()

    # Counts

    def size(self) -> int:
        """Return how many connections are ready to be taken."""
        with self._lock:
            return len(self._ledger.idle) + len(self._ledger.owing)

    @property
    def available_num(self) -> int:
        """How many connections are ready to be taken."""
        return self.size()

    @property
    def total_num(self) -> int:
        """How many connections are open, in use or not."""
        with self._lock:
            return self._ledger.size - len(self._ledger.openings)

    # Life

    def resize(self, min_size: int, max_size: int) -> None:
        """Set how many connections are kept, and how many there may be, as Pool.resize() does."""
        PoolOptions(min_size=min_size, max_size=max_size)
        self._kept = min_size  # first: a tick in between would undo it
        super().resize(min_size, max_size)

    def tick(self) -> float | None:
        """Do the background work that is due, as Pool.tick() does; up to `size` connections, once open, stay open."""
        with self._lock:
            ledger = self._ledger
            ledger.min_size = min(self._kept, max(ledger.min_size, ledger.size - len(ledger.openings)))
        return super().tick()

    def __del__(self) -> None:
        """Close everything: nobody is left who could ask for it. Runs anywhere: takes no lock, waits for nothing."""
        ledger = self.__dict__.get("_ledger")
        if ledger is None or self.closed:
            return
        self.closed = ledger.closed = True
        for session in [*ledger.idle, *ledger.owing, *ledger.in_use]:  # those in use by leases collected with it
            if session.pid == _getpid():
                session.close()
            else:
                session.abandon()

    def _closed_error(self) -> PoolClosed:
        return PoolClosed(2006, f"pool {self._name!r} was closed")


class _OnePerArguments(type):
    """Calls of the class with equal arguments return the same pool, as long as it is not closed."""

    def __init__(cls, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        cls._pools: dict[Any, ConnectionPool] = {}
        cls._renew_lock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=cls._renew_lock)

    def _renew_lock(cls) -> None:
        cls._lock = threading.RLock()

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(ConnectionPool.__init__).bind(None, *args, **kwargs)
        bound.apply_defaults()
        every = {**bound.arguments, **bound.arguments["kwargs"]}
        del every["self"], every["kwargs"]
        key = _call_key(None, None, dict(sorted(every.items())))
        if key is None:
            raise TypeError("an argument that is not hashable cannot be compared: make a ConnectionPool and keep it")
        with cls._lock:
            pool = cls._pools.get(key)
            if pool is None or pool.closed:
                pool = cls._pools[key] = super().__call__(*args, **kwargs)
            return pool


class ConnectionPoolSingleton(ConnectionPool, metaclass=_OnePerArguments):
    """The ConnectionPool of these arguments, one for each process. Deprecated: `connect()` finds its pool by itself.

    Blocks and raises as ConnectionPool does; may be called from any thread.
    """


# Arguments


def _split(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return connect arguments and pool options; raises TypeError for what is neither."""
    for name in kwargs:
        if name in _INSTEAD:
            raise TypeError(f"ConnectionPool does not take {name!r}: it takes {_INSTEAD[name]}")
        if name not in _KNOWN:
            options = ", ".join(option for option in OPTION_NAMES if option in _OPTIONS)
            raise TypeError(
                f"ConnectionPool does not take {name!r}{suggest(name, _KNOWN)};"
                f" it takes PyMySQL's connect arguments and the pool options {options}"
            )
    own = {name: value for name, value in kwargs.items() if name in _OPTIONS}
    return {name: value for name, value in kwargs.items() if name not in own}, own


def _check_sizes(size: int, maxsize: int | None, pre_create_num: int | None) -> int:
    """Return how many connections are opened at once."""
    check_at_least("size", size, 1)
    if maxsize is not None and check_at_least("maxsize", maxsize, 1) < size:
        raise ValueError(f"maxsize ({maxsize}) is below size ({size})")
    if pre_create_num is None:
        return size
    if check_at_least("pre_create_num", pre_create_num, 0) > size:
        raise ValueError(f"pre_create_num ({pre_create_num}) is above size ({size})")
    return pre_create_num


def _check_seconds(name: str, value: Any) -> float:
    wrong = f"{name} takes seconds, at least 0, not {value!r}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(wrong)
    if not 0 <= value <= 1e300:
        raise ValueError(wrong)
    return float(value)


def _check_lifetime(value: Any) -> float | None:
    """Return con_lifetime as the option max_lifetime."""
    if value is None:
        return None
    wrong = f"con_lifetime takes seconds, or None for no limit, not {value!r}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(wrong)
    if value <= 0:
        return None
    if not value <= 1e300:  # NaN, infinity, and integers that float() refuses
        raise ValueError(wrong)
    return float(value)


def _default_name(arguments: Arguments) -> str:
    key = arguments.key
    parts = [str(part.decode("utf-8", "replace") if isinstance(part, bytes) else part) for part in key[:3]]
    if key.database is not None:
        parts.append(key.database.decode("utf-8", "replace") if isinstance(key.database, bytes) else str(key.database))
    return "-".join(parts)


__all__ = ["ConnectionPool", "ConnectionPoolSingleton", "PoolOptions", "logger"]
