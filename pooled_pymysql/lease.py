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
from typing import Any, NoReturn, Protocol, Self

import pymysql
from pymysql import err
from pymysql.constants import CLIENT, COMMAND, CR

from .arguments import Arguments, Conversions
from .driver import DriverConnection
from .packets import Ok
from .replies import IN_FLIGHT, LANDED, RESULT_OPEN, next_arrival
from .session import SERVER_ATTRIBUTES, Session
from .sharing import Shared
from .tracking import (
    DATABASE,
    EXECUTED,
    FORGOTTEN,
    MAY_BE_MANY,
    READS_FOUND_ROWS,
    READS_ROW_COUNT,
    RETIRE,
    SELECTED,
    SUSPECT,
    TOUCHED,
    marks_of_end,
    marks_of_statement,
)

_new = object.__new__
_PACKAGE = __name__.rpartition(".")[0]
_DEPTH = 5  # places told of a dropped lease

_LOOK_CLOSER = MAY_BE_MANY | READS_FOUND_ROWS | READS_ROW_COUNT

_send_command = DriverConnection._execute_command
_ENCODING_ERRORS = () if pymysql.VERSION >= (1, 2) else ("surrogateescape",)


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


class Connection(Shared):
    """What `connect()` returns: a lease while `connect()` made it, a plain connection when called directly.

    The attributes of PyMySQL's connection are in `__dict__`; ours are in slots beside it.
    """

    __slots__ = ("_arguments", "_find_home", "_held", "_home", "_origin", "_session")

    _arguments: Arguments | None
    _find_home: Callable[[], Home] | None
    _held: list[Session]  # the session, until someone gives it back: pop() lets exactly one thread do it
    _home: Home | None
    _origin: str | None  # where it was acquired, with leak_tracking
    _session: Session | None  # the session, for the statement path

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Self:
        self = _new(cls)
        self._arguments = self._find_home = self._home = self._origin = self._session = None
        self._held = []
        self._has_tracking = False
        self._marks = 0
        self.start_alone()
        return self

    # Giving back

    def close(self) -> None:
        """Give the session back to its pool; the connection is dead afterwards, as PyMySQL's is (PEP 249).

        Sends at most one packet and waits for nothing. A statement that another thread is running on it fails as a lost
        connection. Raises Error when it is closed already.
        """
        try:
            session = self._held.pop()
        except IndexError:
            super().close()
            return
        self._give_back(session)

    def _give_back(self, session: Session) -> None:
        home: Any = self._home
        try:
            broken = self._detach(session)
        except BaseException:
            home.release(session, "interrupted")
            raise
        home.release(session, broken)

    def _detach(self, session: Session) -> str | None:
        """Part from the session and become a closed connection; say why the session must not be used again, if so."""
        if not self._turn.acquire(False) and self._owner != get_ident():
            session.interrupt()
            return self._part(session) or "closed in use"
        try:
            self._owner = get_ident()
            broken = self._drain(session.opening_took) if self._flight else None
            return self._part(session) or broken
        finally:
            self._owner = 0
            with contextlib.suppress(RuntimeError):  # a converter that closes its own connection has ended the turn
                self._turn.release()

    def _part(self, session: Session) -> str | None:
        """Hand the socket back to the session, with what must be known to restore it; no I/O."""
        self._session = None
        state = self.__dict__
        sock = state["_sock"]
        state["_sock"] = state["_rfile"] = None
        state["_closed"] = True
        session.marks = marks_of_end(self._marks, state["server_status"])
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
        result = self.__dict__["_result"]
        while self._flight == RESULT_OPEN and result is not None and result.drain_until(deadline):
            if not result.has_next:
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

    def _refuse_copy(self, *_: object) -> NoReturn:
        raise TypeError("a connection cannot be copied or pickled: it owns its session; call connect() instead")

    __copy__ = __deepcopy__ = __reduce_ex__ = __reduce__ = _refuse_copy

    # Leasing again

    def connect(self, sock: Any = None) -> None:
        """Connect, or lease again; an open lease is given back first.

        As PyMySQL does, the connection's own settings (character set, autocommit) are applied to the new session. A
        connection whose address or account was changed by hand, or that is given a socket, leaves its pool.

        Blocks up to the pool's timeout; raises what `connect()` raises.
        """
        if self._find_home is None:
            self._has_tracking = False
            self.start_alone()
            super().connect(sock)
            return
        with contextlib.suppress(IndexError):
            self._give_back(self._held.pop())
        if sock is not None or self._was_redirected():
            self._find_home = self._home = None
            self.connect(sock)
            return
        self._lease_again(self._arguments)  # type: ignore[arg-type]

    def _was_redirected(self) -> bool:
        """Say whether an attribute that names the server or the account was changed since connect()."""
        template = self._arguments.template  # type: ignore[union-attr]
        state = self.__dict__
        same = all(state[name] == template[name] for name in ("host", "port", "unix_socket", "bind_address"))
        return not same or any(_as_bytes(state[name]) != _as_bytes(template[name]) for name in ("user", "db"))

    def _lease_again(self, arguments: Arguments) -> None:
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

    # The statement path: in flight from before the first byte of a command until its last packet was read

    def turn_timeout(self) -> float | None:
        """The pool's `timeout`; no limit without a pool."""
        return None if self._arguments is None else self._arguments.key.options.timeout

    def _execute_command(self, command: int, sql: Any) -> None:
        if not self._sock:
            raise err.InterfaceError(0, "")
        self.take_turn()
        try:
            self._send(command, sql)
        except BaseException as error:
            self.fail_turn(error)
            raise

    def _send(self, command: int, sql: Any) -> None:
        if not self._sock:  # closed while we waited
            raise err.InterfaceError(0, "")
        if self._flight:
            self._finish_results()
        if isinstance(sql, str):
            sql = sql.encode(self.encoding)
        elif type(sql) is not bytes:  # executemany() builds a bytearray
            sql = bytes(sql)
        session = self._session
        if session is None:
            self._flight = IN_FLIGHT
            _send_command(self, command, sql)
            return
        if command == COMMAND.COM_QUERY:
            marks = marks_of_statement(sql, self.encoding, self.server_status)
            if marks & _LOOK_CLOSER:
                if marks & MAY_BE_MANY and self.client_flag & CLIENT.MULTI_STATEMENTS:
                    marks |= SUSPECT | DATABASE
                self._forget_counts(session, marks)
            self._statement = marks
            self._marks |= marks & ~SELECTED | EXECUTED
        elif command != COMMAND.COM_PING:
            known = command == COMMAND.COM_INIT_DB
            self._marks |= TOUCHED | DATABASE if known else TOUCHED | SUSPECT | DATABASE | RETIRE
            self._statement = TOUCHED
        self._flight = IN_FLIGHT
        _send_command(self, command, sql)
        if session.owed:
            self._read_owed(session)

    def _finish_results(self) -> None:
        """Read what is left of the last command's results, as PyMySQL does before the next command."""
        if self._flight == IN_FLIGHT:
            raise err.OperationalError(
                CR.CR_COMMANDS_OUT_OF_SYNC, "Commands out of sync; the last command's reply was not read to its end"
            )
        result = self.__dict__["_result"]
        if result.unbuffered_active:
            if not result.abandoned:
                warnings.warn("Previous unbuffered result was left incomplete", stacklevel=6)
            result.drain()
        while result.has_next:
            result.has_next = 0  # for the cursor that would ask for it
            self._flight = IN_FLIGHT
            result = self.read_reply()
        self._result = None
        self._flight = LANDED

    def _read_owed(self, session: Session) -> None:
        """Read the replies to what was sent before this lease's first statement; see Session.owes_little.

        A bad one means that the statement just sent ran in an unknown state: its own reply is never believed.
        """
        sequence = self._next_seq_id
        try:
            while session.owed:
                self._next_seq_id = 1
                data = self._read_packet().get_all_data()
                if not session.owed[0].feed(1, data):
                    raise err.InternalError("bad reply")
                del session.owed[0]
        except Exception as error:
            self._force_close()
            text = f"Lost connection to MySQL server during query (session not restored: {error})"
            raise err.OperationalError(CR.CR_SERVER_LOST, text) from error
        self._next_seq_id = sequence

    def _forget_counts(self, session: Session, marks: int) -> None:
        """Make FOUND_ROWS() and ROW_COUNT() what they are on a new connection, unless they are the lease's own."""
        foreign_rows = marks & READS_FOUND_ROWS and not self._marks & (SELECTED | FORGOTTEN)
        foreign_count = marks & READS_ROW_COUNT and not self._marks & EXECUTED
        if not foreign_rows and not foreign_count:
            return
        # A new session's FOUND_ROWS() is 1 on MariaDB and 0 on MySQL. A SET makes ROW_COUNT() 0.
        first = b"SELECT 1" if "mariadb" in self.server_version.lower() else b"SELECT 1 FROM DUAL WHERE FALSE"
        kept = self._marks | FORGOTTEN
        for statement in (first, b"SET @@session.autocommit = @@session.autocommit"):
            self._flight = IN_FLIGHT
            _send_command(self, COMMAND.COM_QUERY, statement)
            if session.owed:
                self._read_owed(session)
            self.read_reply()
        self._marks = kept

    def _read_query_result(self, unbuffered: bool = False) -> int:
        self._result = None
        self._flight = IN_FLIGHT
        try:
            self._result = result = self.read_reply(unbuffered)
        except BaseException as error:
            self.fail_turn(error)
            raise
        self.end_turn()
        return result.affected_rows  # type: ignore[return-value]

    def query(self, sql: Any, unbuffered: bool = False) -> int:
        """Run a statement and read its reply, as PyMySQL does, returning the number of rows."""
        if isinstance(sql, str):
            sql = sql.encode(self.encoding, *_ENCODING_ERRORS)
        self._execute_command(COMMAND.COM_QUERY, sql)
        self._affected_rows = rows = self._read_query_result(unbuffered)
        return rows

    def next_result(self, unbuffered: bool = False) -> int:
        """Read the next result of the last command, returning the number of its rows."""
        if self._flight != RESULT_OPEN:
            raise err.OperationalError(CR.CR_COMMANDS_OUT_OF_SYNC, "Commands out of sync; there is no further result")
        self.adopt_turn()
        self._affected_rows = rows = self._read_query_result(unbuffered)
        return rows

    def affected_rows(self) -> int:
        """Return the rows that the calling thread's last statement affected, else the connection's last."""
        return self._affected_rows if self._results is None else getattr(self.own_result(), "affected_rows", 0)

    def insert_id(self) -> int:
        """Return the insert id of the calling thread's last statement, else of the connection's last."""
        return getattr(self.own_result(), "insert_id", 0)

    def _read_ok_packet(self) -> Ok:
        try:
            data = self._read_packet().get_all_data()
            if data[0] != 0 or len(data) < 7:
                raise err.OperationalError(CR.CR_COMMANDS_OUT_OF_SYNC, "Command Out of Sync")
            ok = Ok(data, self._has_tracking)
            self.note(ok)
            self._flight = LANDED
        except BaseException as error:
            self._fail(error)
            raise
        self.end_turn()
        return ok

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, err.MySQLError):
            self.note_error(error)
        self.fail_turn(error)

    def set_character_set(self, charset: str, collation: str | None = None) -> None:
        """Send SET NAMES and follow it on the client's side, as PyMySQL does."""
        try:
            super().set_character_set(charset, collation)
        except BaseException as error:
            if self._owner == get_ident():  # else it never was our turn
                self._fail(error)
            raise
        self._flight = LANDED
        self.end_turn()

    def show_warnings(self) -> Any:
        """Return the rows of SHOW WARNINGS."""
        self._execute_command(COMMAND.COM_QUERY, "SHOW WARNINGS")
        try:
            result = self.read_reply()
        except BaseException as error:
            self.fail_turn(error)
            raise
        self.end_turn()
        return result.rows


def make_lease(
    session: Session, home: Home, find_home: Callable[[], Home], arguments: Arguments, conversions: Conversions
) -> Connection:
    """Hand a session's state over to a new connection object; sends nothing, and must not fail."""
    lease: Connection = _new(Connection)
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
    _bind(lease, session, home)
    return lease


def _bind(lease: Connection, session: Session, home: Home) -> None:
    lease._has_tracking = session.has_tracking
    lease._marks = 0
    lease.start_alone()
    lease._home = home
    lease._origin = _caller() if lease._arguments.leak_tracking else None  # type: ignore[union-attr]
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
