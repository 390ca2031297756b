"""`Connection`: one lease of a session, made by handing over state.

A lease is a real PyMySQL connection: an object of a subclass that has been given the `__dict__` of a connection. So
PyMySQL's own code runs on it at native speed, and after close() it holds the `__dict__` of a closed connection.
"""

import contextlib
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Mapping
from threading import get_ident
from types import FrameType
from typing import Any, NoReturn, Protocol, Self, SupportsIndex

from pymysql import err
from pymysql.constants import CR

from .arguments import Arguments, Conversions
from .driver import C
from .replies import IN_FLIGHT, PREPARING, RESULT_OPEN, next_arrival
from .session import SERVER_ATTRIBUTES, Session
from .statements import Speaker
from .tracking import marks_of_end

_new = object.__new__
_PACKAGE = __name__.rpartition(".")[0]
_DEPTH = 5  # places told of a dropped lease


class Home(Protocol):
    """Where a lease's session comes from and goes back to: a pool."""

    @property
    def name(self) -> str:
        """The pool's name in messages."""

    def acquire_session(self, arguments: Arguments) -> Session:
        """Return a session that is in use from now on; blocks up to the pool's timeout."""

    def release(self, session: Session, broken: str | None) -> None:
        """Take a session back, `broken` saying why it must be closed; never raises."""

    def drop(self, session: Session, broken: str | None) -> None:
        """Take the session of a garbage-collected lease; callable from anywhere, never blocks, takes no lock."""


class Connection(Speaker[C]):
    """What `connect()` returns: a lease while `connect()` made it, a plain connection when called directly.

    The attributes of PyMySQL's connection are in `__dict__`; ours are in slots beside it.
    """

    __slots__ = ("_arguments", "_find_home", "_held", "_home", "_origin")

    _arguments: Arguments | None
    _find_home: Callable[[], Home] | None
    _held: list[Session]  # the session, until someone gives it back: pop() lets exactly one thread do it
    _home: Home | None
    _origin: str | None  # where it was acquired, with leak_tracking

    def __new__(cls, *_args: Any, cursorclass: type[C] | None = None, **_kwargs: Any) -> Self:  # noqa: ARG004  for mypy
        self = _new(cls)
        self._arguments = self._find_home = self._home = self._origin = self._session = None
        self._held = []
        self._has_tracking = self._is_unused = False
        self._marks = 0
        self.start_alone()
        return self

    def turn_timeout(self) -> float | None:
        """The pool's `timeout`; no limit without a pool."""
        return None if self._arguments is None else self._arguments.key.options.timeout

    # Giving back

    def close(self) -> None:
        """Give the session back to its pool; the connection is dead afterwards, as PyMySQL's is (PEP 249).

        Sends what restores the session, in one write, and does not wait for the replies; with the option `one_write`
        off, it waits up to 10 s for each of them. A statement that another thread is running on it fails as a lost
        connection. Raises Error when it is closed already.
        """
        try:
            session = self._held.pop()
        except IndexError:
            if self._find_home is not None and self._sock is not None:  # another thread is giving it back just now
                raise err.Error("Already closed") from None
            super().close()
            return
        self._give_back(session)

    def retire(self) -> None:
        """Close it, and have its session closed as well instead of kept: for a server that one no longer trusts.

        Blocks and raises as close() does. Without a pool it is close().
        """
        session = self._session
        if session is not None:
            session.expires_at, session.end_reason = float("-inf"), "retired"
        self.close()

    def _give_back(self, session: Session) -> None:
        home: Any = self._home
        turn = self._turn
        broken: str | None
        try:
            if not turn.acquire(False):
                # Another thread is in the middle of a call on this wire. It fails at once, and the descriptor must not
                # be closed, and its number given to another socket, before that thread has let go of it.
                broken = self._part(session) or "closed in use"
                session.interrupt()
                self.when_out(lambda: home.release(session, broken))
                return
            try:
                broken = self._drain(session.opening_took) if self._flight else None
                broken = self._part(session) or broken
            finally:
                turn.release()
        except BaseException:
            self._part(session)
            home.release(session, "interrupted")
            raise
        home.release(session, broken)

    def _part(self, session: Session) -> str | None:
        """Hand the socket back to the session, with what must be known to restore it; no I/O."""
        self._session = None
        state = self.__dict__
        sock = state["_sock"]
        state["_sock"] = state["_rfile"] = None
        state["_closed"] = True
        if self._open is not None:
            self._open.cut_off = True
            self._open = None
        if self._alarms:  # who waits for the open result fails at once
            self.ring()
        session.marks = marks_of_end(self._marks, state["server_status"], session.first_status)
        if sock is None:
            return "lost"
        if sock is not session.sock or sock.fileno() < 0:
            return "socket replaced"
        return None

    def _drain(self, patience: float) -> str | None:
        """Read what is left of the last results if it is little; otherwise say that it is unread.

        Of results that follow, only the status that ends a CALL is worth it. It may still be on its way: waiting for
        it as long as opening another session took (`patience`, seconds) is never much worse than closing this one.
        """
        deadline = time.monotonic() + patience
        result = self._open
        while self._flight == RESULT_OPEN and result is not None:
            result.cut_off = True
            if not result.drain_until(deadline):
                break
            if not result.follows:
                return None
            if next_arrival(self, deadline) != 0:
                break
            self._flight = IN_FLIGHT
            result = self.read_reply()
        return "unread" if self._flight else None

    def forget_parent(self, session: Session) -> None:
        """Be closed in a forked child; sends and reads nothing, whatever the parent's threads were in the middle of."""
        self._held.clear()
        self._part(session)
        self.start_alone()

    def __del__(self) -> None:
        try:
            held = self._held
        except AttributeError:  # made by copying another's __dict__: the socket is not ours to close
            return
        if not held:
            if self.__dict__.get("_sock") is not None:
                self._force_close()
            return
        session = held.pop()
        # Collection may run anywhere, also inside the pool's own code: nothing is read, sent or locked here.
        broken = self._part(session) or ("unread" if self._flight else None)
        home: Any = self._home
        home.drop(session, broken)
        origin = f", acquired at {self._origin}" if self._origin else ""
        warnings.warn(
            f"a connection of pool {home.name!r} was dropped without close(){origin}", ResourceWarning, 2, self
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError("a connection cannot be copied or pickled: it owns its session; call connect() instead")

    def __reduce_ex__(self, _protocol: SupportsIndex, /) -> NoReturn:
        self.__reduce__()

    def __copy__(self) -> NoReturn:
        self.__reduce__()

    def __deepcopy__(self, _memo: object, /) -> NoReturn:
        self.__reduce__()

    # Leasing again

    def connect(self, sock: Any = None) -> None:
        """Connect, or lease again; an open lease is given back first.

        As PyMySQL does, the connection's own settings (character set, autocommit) are applied to the new session. A
        connection whose address or account was changed by hand, or that is given a socket, leaves its pool.

        Statements that other threads are running on it fail as lost connections. Blocks up to the pool's timeout;
        raises what `connect()` raises, and OperationalError 2014 within a command of this very thread.
        """
        if self._turn._is_owned() and self._flight in (IN_FLIGHT, PREPARING):
            raise err.OperationalError(
                CR.CR_COMMANDS_OUT_OF_SYNC, "Commands out of sync; this thread is in the middle of a command"
            )
        with contextlib.suppress(IndexError):
            self._give_back(self._held.pop())
        self.take_turn(self._connect_again, sock)

    def _connect_again(self, sock: Any) -> None:
        with contextlib.suppress(IndexError):  # another thread was faster
            self._give_back(self._held.pop())
        self.change_thread()  # whose cursor has yet to pick up a result still finds it
        self.start_wire()
        if self._find_home is not None and sock is None and not self._was_redirected():
            self._lease_again(self._arguments)  # type: ignore[arg-type]
            return
        self._find_home = self._home = None
        self._has_tracking = False
        super().connect(sock)

    def _was_redirected(self) -> bool:
        """Say whether an attribute that names the server or the account was changed since connect()."""
        template = self._arguments.template  # type: ignore[union-attr]
        state = self.__dict__
        same = all(state[name] == template[name] for name in ("host", "port", "unix_socket", "bind_address"))
        return not same or any(_as_bytes(state[name]) != _as_bytes(template[name]) for name in ("user", "db"))

    def replace_session(self) -> Session:
        """Lease another session: this one has died before anything was sent; in a turn."""
        try:
            session = self._held.pop()
        except IndexError:  # another thread is closing it
            raise err.InterfaceError(0, "") from None
        self._part(session)
        home: Any = self._home
        home.release(session, "lost before use")
        self.land()
        try:
            fresh = self._lease_again(self._arguments)  # type: ignore[arg-type]
        except BaseException:
            self.__dict__["_closed"] = False  # lost, but not closed: the caller's close() is the first one
            raise
        self._is_unused = False
        self._flight = PREPARING
        return fresh

    def _lease_again(self, arguments: Arguments) -> Session:
        home = self._find_home()  # type: ignore[misc]
        session = home.acquire_session(arguments)
        wanted = (self.charset, self.collation, self.autocommit_mode)
        state, fresh = self.__dict__, session.pristine
        for name in SERVER_ATTRIBUTES:
            if name in fresh:
                state[name] = fresh[name]
        state["_result"] = None
        if "_current_timeout" in state:
            state["_current_timeout"] = session.sock.gettimeout()
        _bind(self, session, home)
        if wanted[:2] != (fresh["charset"], fresh["collation"]):
            self.set_character_set(*wanted[:2])
        if wanted[2] is not None and bool(wanted[2]) != self.get_autocommit():
            self.autocommit(wanted[2])
        return session


def make_lease(
    session: Session,
    home: Home,
    find_home: Callable[[], Home],
    arguments: Arguments,
    conversions: Conversions,
    *,
    kind: type[Connection] = Connection,
) -> Connection:
    """Hand a session's state over to a new connection object; sends nothing, and must not fail."""
    lease: Connection = _new(kind)
    try:
        if session.overlaid_by is not arguments.overlay:
            session.overlaid = session.pristine | arguments.overlay
            session.overlaid_by = arguments.overlay
        state = session.overlaid.copy()
        state["encoders"], state["decoders"] = conversions
        state["_connect_attrs"] = state["_connect_attrs"].copy()
        state["_auth_plugin_map"] = state["_auth_plugin_map"].copy()
        if "_current_timeout" in state:  # PyMySQL 1.2 sets the socket's timeout only where this differs
            state["_current_timeout"] = session.sock.gettimeout()
        lease.__dict__ = state
        lease._arguments = arguments
        lease._find_home = find_home
        lease.start_alone()
        _bind(lease, session, home)
    except BaseException:  # an interruption: the lease is not to return it as well
        lease._held = []
        home.drop(session, "interrupted")
        raise
    return lease


def _bind(lease: Connection[Any], session: Session, home: Home) -> None:
    lease._has_tracking = session.has_tracking
    lease._marks = 0
    lease._home = home
    lease._origin = None
    if lease._arguments.leak_tracking:  # type: ignore[union-attr]
        lease._origin = _caller()
        session.leased_at = time.monotonic()
    session.holder = get_ident()
    session.missing_since = None
    lease._is_unused = True
    lease._session = session
    lease._held = [session]
    session.lease = weakref.ref(lease)


def _caller() -> str:
    """Return the places that led here, innermost first, those in this package left out."""
    places: list[str] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and len(places) < _DEPTH:
        if not frame.f_globals.get("__name__", "").startswith(_PACKAGE):
            places.append(f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(places)


def make_deferred(
    find_home: Callable[[], Home], arguments: Arguments, conv: Mapping[Any, Any] | None, context: Any
) -> Connection:
    """Return a connection that leases when its connect() is called (`defer_connect=True`)."""
    connection: Connection = Connection.__new__(Connection)
    state = arguments.template.copy()
    if context is not None:
        state["ctx"] = context
    state["encoders"], state["decoders"] = arguments.conversions(conv)
    connection.__dict__ = state
    connection._arguments = arguments
    connection._find_home = find_home
    return connection


def _as_bytes(value: Any) -> Any:
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
