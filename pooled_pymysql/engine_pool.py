"""An engine's pool, as SQLAlchemy sees it: it keeps nothing, and leases from pools that no other engine uses."""

import queue
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Self

from pymysql.connections import Connection as PlainConnection
from sqlalchemy import exc, util
from sqlalchemy.pool import NullPool

import pooled_pymysql

from .exceptions import PoolClosed, PoolFull, PoolTimeout
from .lease import Connection
from .options import OPTION_NAMES, PoolOptions, check_at_least, resolve

_UNSET: Any = object()
_TRIES = 5  # for a pool that others close meanwhile
_MOST_LOGINS = 256  # as there are pools at most
_NO_LIMIT = 100_000  # connections: no server allows more
_POOL_SIZE, _MAX_OVERFLOW = 5, 10  # what SQLAlchemy takes where only one of them is given


class LeasePool(NullPool):
    """What SQLAlchemy takes for an engine's pool: it keeps nothing, the sessions are kept by the pools behind it.

    Takes QueuePool's arguments, which become pool options. Behind it there is one pool, or several where `do_connect`
    gives other arguments than before; no other engine uses them. All methods may be called from any thread.
    """

    def __init__(  # noqa: PLR0917  SQLAlchemy looks for the names among the positional ones
        self,
        creator: Any,
        pool_size: int = _UNSET,
        max_overflow: int = _UNSET,
        timeout: float | None = _UNSET,
        recycle: float = _UNSET,
        pre_ping: bool = _UNSET,
        use_lifo: bool = _UNSET,
        reset_on_return: Any = True,
        **kw: Any,
    ) -> None:
        given = {
            "pool_size": pool_size,
            "max_overflow": max_overflow,
            "pool_timeout": timeout,
            "pool_recycle": recycle,
            "pool_pre_ping": pre_ping,
            "pool_use_lifo": use_lifo,
            "pool_logging_name": kw.get("logging_name") or _UNSET,
        }
        engine_options = _from_engine_arguments({name: value for name, value in given.items() if value is not _UNSET})
        self._start(creator, engine_options, reset_on_return, kw)

    def _start(self, creator: Any, engine_options: "_EngineOptions", reset_on_return: Any, kw: dict[str, Any]) -> None:
        super().__init__(creator, reset_on_return=reset_on_return, **kw)
        self._engine_options = engine_options
        self._own = _Own()
        self._is_disposed = False
        self._has_warned = False
        self._url_options: Mapping[str, Any] = getattr(kw.get("dialect"), "url_options", {})
        engine_options.override(self._url_options, "the URL's")

    # What SQLAlchemy calls

    def _should_wrap_creator(self, creator: Any) -> Any:
        ask = super()._should_wrap_creator(creator)

        def lease(record: Any) -> Any:
            token = asking.set(self)
            try:
                connection = ask(record)
            finally:
                asking.reset(token)
            if isinstance(connection, PlainConnection) and not isinstance(connection, Connection):
                self._warn_of_plain_connection()
            return connection

        return lease

    def _warn_of_plain_connection(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            util.warn(
                "creator= returned a connection of pymysql itself: each checkout opens a connection, and nothing"
                " pools it; let it return pooled_pymysql.connect(...)"
            )

    def lease(self, connect: Callable[..., Any], cargs: tuple[Any, ...], cparams: dict[str, Any]) -> Any:
        """Lease from this engine's own pool. For the dialect; blocks and raises as `connect()` does.

        But what QueuePool tells by sqlalchemy.exc.TimeoutError, is told by it here as well.
        """
        given = cparams.pop("pool", None)
        if given is False:
            return connect(*cargs, pool=False, **cparams)
        options = self._own.options(given, self.options_for)
        for tries_left in range(_TRIES - 1, -1, -1):
            self._own.settle_password(options, cargs, cparams, is_newest=tries_left == _TRIES - 1)
            try:
                return connect(*cargs, pool=options, **cparams)
            except (PoolTimeout, PoolFull) as error:
                raise exc.TimeoutError(str(error.args[-1]), code="3o7r") from error
            except PoolClosed:  # while this thread waited, dispose() came, or another password did
                if not tries_left:
                    raise
        raise AssertionError("the last try returns or raises")

    def options_for(self, given: Any) -> PoolOptions:
        """Return the pool options that belong to the connect argument `pool=given`."""
        if isinstance(given, PoolOptions):
            self._engine_options.override({name: getattr(given, name) for name in OPTION_NAMES}, "connect_args'")
            return given
        if given:
            self._engine_options.override(given, "connect_args'")
        return resolve(given, {**self._engine_options.options, **self._url_options})

    def _invalidate(self, connection: Any, exception: BaseException | None = None, _checkin: bool = True) -> None:
        before = self._invalidate_time
        super()._invalidate(connection, exception, _checkin)
        if self._invalidate_time != before and not self._is_lost(exception):
            # Somebody else says that the server is not to be trusted. When a session is lost, our pools look by
            # themselves which of the others are, and there is no need to open all of them again.
            for pool in self.pools():
                pool.drain()

    def _is_lost(self, error: BaseException | None) -> bool:
        dialect: Any = self._dialect
        return isinstance(error, pooled_pymysql.Error) and bool(dialect.is_disconnect(error, None, None))

    def recreate(self) -> Self:
        """Return a new one for the same engine; after dispose() it has the same pools behind it, made anew."""
        self.logger.info("Pool recreating")
        new = self.__class__.__new__(self.__class__)
        kw = {
            "echo": self.echo,
            "logging_name": self._orig_logging_name,
            "dialect": self._dialect,
            "_dispatch": self.dispatch,
        }
        new._start(self._creator, self._engine_options, self._reset_on_return, kw)
        new._has_warned = self._has_warned
        if self._is_disposed:
            new._own = self._own  # who waits for the old one is served by the new one
        return new

    def dispose(self) -> None:
        """Close the idle sessions now, and each leased one when it is given back; blocks for less than a second."""
        self._is_disposed = True
        for pool in self.pools():
            pool.close()
        self.logger.info("Pool disposed. %s", self.status())

    # What users see

    def pools(self) -> list[pooled_pymysql.Pool]:
        """Return the live pools of this engine: none before the first connection, and then nearly always one."""
        return [pool for pool in pooled_pymysql.pools() if self._own.has(pool.options)]

    def status(self) -> str:
        """Return the counts in words."""
        return "; ".join(repr(pool) for pool in self.pools()) or "no session"

    def size(self) -> int:
        """Return how many sessions there may be."""
        return sum(pool.stats().max_size for pool in self.pools()) or self.options_for(None).max_size

    def checkedin(self) -> int:
        """Return how many sessions are idle."""
        return sum(pool.stats().idle for pool in self.pools())

    def checkedout(self) -> int:
        """Return how many sessions are leased."""
        return sum(pool.stats().in_use for pool in self.pools())

    def overflow(self) -> int:
        """Return how many sessions there are beyond size(): as with QueuePool, less than 0 until it is reached."""
        return self.checkedin() + self.checkedout() - self.size()

    def timeout(self) -> float | None:
        """Return how many seconds a checkout may wait; None: no limit."""
        return next((pool.options.timeout for pool in self.pools()), self.options_for(None).timeout)


# Whose connection the dialect is asked for, in this very call.
asking: ContextVar[LeasePool | None] = ContextVar("asking", default=None)


# An engine's own pool


class OwnOptions(PoolOptions):
    """Pool options that are equal to themselves only, and so lead to a pool of their own."""

    __slots__ = ()
    if not TYPE_CHECKING:  # they would take these for changes of type
        __eq__ = object.__eq__
        __hash__ = object.__hash__


class _Own:
    """What tells the pools of one engine from all others; when nobody refers to it any more, they are closed.

    Not at once: the collector runs anywhere, also in the middle of the pools' own bookkeeping. The next engine that is
    made closes them, or `idle_timeout` does.
    """

    # Threads need no lock here, and a forked child none that is free: appending is atomic, and everybody takes the
    # oldest of what is equal.

    def __init__(self) -> None:
        _close_orphans()
        self._variants: list[tuple[Any, OwnOptions]] = []  # what was given as pool=, and what it became
        self._logins: list[_Login] = []

    def options(self, given: Any, make: Callable[[Any], PoolOptions]) -> OwnOptions:
        """Return the options of the pool that belongs to `pool=given`."""
        known = self._known_options(given)
        if known is None:
            made = make(given)
            own = OwnOptions(**{name: getattr(made, name) for name in OPTION_NAMES})
            self._variants.append((given, own))
            known = self._known_options(given) or own
        return known

    def _known_options(self, given: Any) -> OwnOptions | None:
        return next((options for known, options in self._variants if known == given), None)

    def has(self, options: PoolOptions) -> bool:
        """Say whether a pool with these options is one of this engine's."""
        return any(own is options for _, own in self._variants)

    def settle_password(
        self, options: OwnOptions, cargs: tuple[Any, ...], cparams: dict[str, Any], *, is_newest: bool = True
    ) -> None:
        """Keep one pool where `do_connect` gives ever new passwords, as for tokens: sessions open with the newest."""
        password = cparams.get("password")
        if password is None or isinstance(password, _Login):
            return
        rest = (options, cargs, {name: value for name, value in cparams.items() if name != "password"})
        login = self._known_login(rest)
        if login is None:
            if len(self._logins) >= _MOST_LOGINS:
                self._logins.clear()
            self._logins.append(_Login(rest, password))
            login = self._known_login(rest) or self._logins[-1]
        if login.password != password and not login.has_changed:
            login.has_changed = True
            first = pooled_pymysql.pool_for(*cargs, pool=options, **cparams | {"password": login.password})
            if first is not None:
                first.close()
        if is_newest:
            login.password = password
        if login.has_changed:
            cparams["password"] = login

    def _known_login(self, rest: tuple[Any, ...]) -> "_Login | None":
        return next((login for login in self._logins if login.rest == rest), None)

    def __del__(self) -> None:
        for _, options in self._variants:
            _orphans.put(options)


class _Login:
    """The newest password for otherwise equal arguments; as a callable it is asked for each physical connection."""

    def __init__(self, rest: tuple[Any, ...], password: Any) -> None:
        self.rest = rest
        self.password = password
        self.has_changed = False

    def __call__(self) -> Any:
        return self.password() if callable(self.password) else self.password


# Options of engines that were collected: put() may be called in the middle of any code.
_orphans: queue.SimpleQueue[OwnOptions] = queue.SimpleQueue()


def _close_orphans() -> None:
    while not _orphans.empty():
        try:
            options = _orphans.get_nowait()
        except queue.Empty:  # another thread was faster
            return
        for pool in pooled_pymysql.pools():
            if pool.options is options:
                pool.close()


# Engine arguments


class _EngineOptions:
    """The pool options that an engine's arguments give, and the argument that gave each."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}
        self._arguments: dict[str, str] = {}

    def add(self, option: str, value: Any, argument: str) -> None:
        self.options[option] = value
        self._arguments[option] = argument

    def override(self, other: Mapping[str, Any], whose: str) -> None:
        """Drop what `other` says as well, and tell so where it says something else."""
        for option in [option for option in self.options if option in other]:
            value = self.options.pop(option, _UNSET)
            if value not in (_UNSET, other[option]):  # another thread was faster, or both say the same
                util.warn(
                    f"{self._arguments[option]} is not used, because {whose} pool option"
                    f" {option}={other[option]!r} says the same thing: give one of them"
                )


def _from_engine_arguments(given: Mapping[str, Any]) -> _EngineOptions:
    """Return what QueuePool's arguments mean here; raises TypeError, ValueError for values that mean nothing."""
    found = _EngineOptions()
    if "pool_size" in given or "max_overflow" in given:
        size = check_at_least("pool_size", given.get("pool_size", _POOL_SIZE), 0)
        overflow = check_at_least("max_overflow", given.get("max_overflow", _MAX_OVERFLOW), -1)
        has_limit = size > 0 and overflow >= 0
        found.add("max_size", size + overflow if has_limit else _NO_LIMIT, "pool_size with max_overflow")
    if "pool_timeout" in given:
        found.add("timeout", given["pool_timeout"], "pool_timeout")
    if "pool_recycle" in given:
        recycle = given["pool_recycle"]
        found.add("max_lifetime", None if recycle is None or recycle < 0 else recycle, "pool_recycle")
    if given.get("pool_pre_ping"):
        found.add("validate_after", 0.0, "pool_pre_ping")
    if "pool_logging_name" in given:
        found.add("name", given["pool_logging_name"], "pool_logging_name")
    if given.get("pool_use_lifo", True) is not True and not given["pool_use_lifo"]:
        util.warn("pool_use_lifo=False has no effect: the session that was used last is leased first; leave it out")
    resolve(found.options, {})  # tells wrong values now
    return found
