"""Connect, authenticate and initialise server sessions."""

import contextlib
import random
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any

from pymysql import converters, err
from pymysql.constants import COMMAND, CR, ER
from pymysql.cursors import Cursor

from .arguments import Arguments, SharedTLS
from .driver import IS_1_2
from .options import PoolOptions
from .reader import Reader
from .replies import CLIENT_DEPRECATE_EOF, CLIENT_SESSION_TRACK, IN_FLIGHT, LANDED, Tracked
from .restoration import TRACKING, Facts, Restoration, packet, restoration
from .session import Session
from .tracking import TOUCHED

_BOTH = CLIENT_SESSION_TRACK | CLIENT_DEPRECATE_EOF

Answer = tuple[Any, ...] | err.MySQLError  # the rows, or what the server refused

_AHEAD = 448  # bytes: more than most replies of an opening


class Wire(Tracked):
    """A connection for our own traffic while a session is opened: all reads and writes together end at `deadline`.

    Once it is logged in it reads ahead; never before, since what was sent in the clear must not be taken for part of
    what TLS protects.
    """

    __slots__ = ("_reader", "deadline")

    _reader: Reader
    deadline: float
    client_flag: int
    host_info: str

    def __del__(self) -> None:
        """The socket belongs to the session; PyMySQL's own would close it."""

    def _remaining(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left

    def _peek(self) -> bytes:
        return self._reader.peek()

    def _read_bytes(self, num_bytes: int) -> bytes:
        return self._reader.read(num_bytes)

    def recv(self, size: int, /) -> bytes:
        """Return what arrives next, up to so many bytes."""
        try:
            left = self._remaining()
            self._sock.settimeout(left if self._read_timeout is None else min(left, self._read_timeout))
            chunk: bytes = self._sock.recv(size)
        except OSError as error:
            self._force_close()
            text = f"Lost connection to MySQL server during query ({error})"
            raise err.OperationalError(CR.CR_SERVER_LOST, text) from error
        except BaseException:
            self._force_close()
            raise
        if not chunk:
            self._force_close()
            raise err.OperationalError(CR.CR_SERVER_LOST, "Lost connection to MySQL server during query")
        return chunk

    def _write_bytes(self, data: bytes) -> None:
        try:
            left = self._remaining()
            self._sock.settimeout(left if self._write_timeout is None else min(left, self._write_timeout))
            self._sock.sendall(data)
        except OSError as error:
            self._force_close()
            raise err.OperationalError(CR.CR_SERVER_GONE_ERROR, f"MySQL server has gone away ({error!r})") from error
        except BaseException:
            self._force_close()
            raise

    def log_in(self, wants_tracking: bool) -> None:
        """Connect and authenticate, as PyMySQL's connect() does up to there; raises what it raises."""
        self._closed = False
        try:
            self._sock = self._unix_socket() if self.unix_socket else self._tcp_socket()
            self._reader = self._rfile = Reader(self, ahead=1)
            self._next_seq_id = 0
            self._get_server_information()
            self._authenticate(wants_tracking)
            if self._rfile is not self._reader:  # PyMySQL makes another on top of TLS
                self._rfile.close()
                self._rfile = self._reader
            self._reader.ahead = _AHEAD
        except BaseException as error:
            self._force_close()
            if isinstance(error, OSError):
                raise cannot_connect(self.host, error) from error
            raise

    def _authenticate(self, wants_tracking: bool) -> None:
        """Log in, agreeing on what our reader wants; `client_flag` shows what PyMySQL would show."""
        asked = self.client_flag
        if wants_tracking and self.server_capabilities & _BOTH == _BOTH:
            self.client_flag |= _BOTH
            self._has_tracking = True
        self._request_authentication()
        self.client_flag &= ~_BOTH | asked

    def _unix_socket(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(self._remaining())
            sock.connect(self.unix_socket)  # type: ignore[arg-type]
        except BaseException:
            sock.close()
            raise
        self.host_info = "Localhost via UNIX socket"
        self._secure = True
        return sock

    def _tcp_socket(self) -> socket.socket:
        """Try the host's addresses in turn, all of them within the deadline."""
        last: OSError | None = None
        for family, kind, protocol, _, address in socket.getaddrinfo(self.host, self.port, 0, socket.SOCK_STREAM):
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(self._remaining())
                if self.bind_address is not None:
                    sock.bind((self.bind_address, 0))
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                _notice_dead_links(sock)
            except OSError as error:
                sock.close()
                last = error
            except BaseException:
                sock.close()
                raise
            else:
                self.host_info = f"socket {self.host}:{self.port}"
                return sock
        raise last or OSError("getaddrinfo returns an empty list")

    def run(self, statement: str) -> tuple[Any, ...]:
        """Run a statement, read all its results, and return the rows of the first."""
        self._execute_command(COMMAND.COM_QUERY, statement)
        rows = self._read_rows()
        self._expect_no_more()
        return rows

    def run_together(self, *statements: str) -> list["Answer"]:
        """Run short statements, sent in one write, and return the answer to each."""
        self._write_bytes(
            b"".join(packet(COMMAND.COM_QUERY, statement.encode(self.encoding)) for statement in statements)
        )
        answers: list[Answer] = []
        for _ in statements:
            self._next_seq_id = 1
            self._flight = IN_FLIGHT
            try:
                answers.append(self._read_rows())
            except err.MySQLError as error:
                if self._flight != LANDED:  # not the server's word
                    raise
                answers.append(error)
        self._expect_no_more()
        return answers

    def _read_rows(self) -> tuple[Any, ...]:
        result = first = self.read_reply()
        while result.has_next:
            result = self.read_reply()
        return first.rows or ()

    def _expect_no_more(self) -> None:
        if self._reader.data:
            raise err.InternalError("the server said more than it was asked for")


# TCP_USER_TIMEOUT, ms, ends a link on which what we sent was not acknowledged; keepalive one on which we only read.
_TCP_OPTIONS = {
    "TCP_KEEPIDLE": 30,
    "TCP_KEEPALIVE": 30,
    "TCP_KEEPINTVL": 10,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 60_000,
}


def _notice_dead_links(sock: socket.socket) -> None:
    """Have the system end a link whose other side is silent for about a minute, where it can."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _TCP_OPTIONS.items():
        option = getattr(socket, name, None)
        if option is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, option, value)


def open_session(arguments: Arguments, tls: SharedTLS, options: PoolOptions, pid: int) -> Session:
    """Connect, authenticate and initialise; raises what PyMySQL raises.

    Blocks for up to `connect_timeout` seconds in all (looking up the host's address apart): TCP, TLS, greeting,
    authentication and the init statements.
    """
    started = time.monotonic()
    wire = _new_wire(arguments, tls, pid)
    wire.deadline = started + (arguments.connect_timeout or float("inf"))
    wire.log_in(wants_tracking=options.reset == "auto")
    try:
        recipe, idle_limit = _initialise(wire, options)
    except BaseException:
        wire._force_close()
        raise
    wire._sock.settimeout(None)
    wire._rfile = Reader(wire._sock)
    if IS_1_2:
        wire._current_timeout = None
    # Sessions that were opened together must not end together.
    lifetime = None if options.max_lifetime is None else options.max_lifetime * (1 - random.random() / 10)  # noqa: S311
    session = Session(wire, recipe, started, lifetime)
    session.idle_limit = idle_limit
    return session


def _new_wire(arguments: Arguments, tls: SharedTLS, pid: int) -> Wire:
    wire = Wire.__new__(Wire)
    state = arguments.template.copy()
    context = tls.context(state)
    if context is not None:
        state["ctx"] = context
    state.update(cursorclass=Cursor, encoders=converters.encoders, decoders=converters.decoders)
    state["_connect_attrs"] = {**state["_connect_attrs"], "_pid": str(pid)}
    if IS_1_2:
        state["_current_timeout"] = None
    if arguments.password is not None:
        state["password"] = _password_bytes(arguments.password)
    wire.__dict__ = state
    wire._has_tracking = False
    wire._marks = 0
    wire._flight = LANDED
    wire._open = None
    wire._statement = TOUCHED
    return wire


_QUESTIONS = "@@GLOBAL.init_connect, @@SESSION.wait_timeout"
_NO_ROLES = (1064, 1128, 1305, 1370, 1630)  # a server, or a proxy, that does not know the function or forbids it
_IDLE_SHARE = 0.9  # of wait_timeout may a session be idle


def _initialise(wire: Wire, options: PoolOptions) -> tuple[Restoration, float]:
    """Bring a new session into the state in which connect() hands it out, and learn how to come back to it.

    PyMySQL's order: names, sql_mode, init_command, and autocommit last; one statement where there is no init_command.
    Returns how, and the seconds that the session may be idle.
    """
    names = f"SET NAMES {wire.charset}" + (f" COLLATE {wire.collation}" if wire.collation else "")
    if wire.sql_mode is not None:
        names += f", sql_mode={wire.escape(wire.sql_mode)}"
    last = []
    if wire.autocommit_mode is not None:
        last.append(f"autocommit={int(bool(wire.autocommit_mode))}")
    if wire._has_tracking:
        last.append(f"{TRACKING}=1")
    statements = _statements(names, wire.init_command, last)
    for statement in statements[:-1]:
        wire.run(statement)
    question = f"SELECT CURRENT_ROLE(), {_QUESTIONS}"
    can_prove = wire._has_tracking
    try:
        answer = _run_last(wire, statements[-1], question, options.one_write)
    except err.OperationalError as error:
        if error.args[0] != ER.UNKNOWN_SYSTEM_VARIABLE or not wire._has_tracking:
            raise
        can_prove = False
        done = len(statements) - 1
        statements = _statements(names, wire.init_command, last[:-1])
        for statement in statements[done:]:
            wire.run(statement)
        (answer,) = wire.run_together(question)
    has_roles = True
    if isinstance(answer, err.MySQLError):
        if answer.args[0] not in _NO_ROLES:
            raise answer
        has_roles, role = False, None
        ((init_connect, wait_timeout),) = wire.run(f"SELECT {_QUESTIONS}")
    else:
        ((role, init_connect, wait_timeout),) = answer
    encoding = wire.encoding
    facts = Facts(
        reset=options.reset,
        one_write=options.one_write,
        can_prove=can_prove,
        init_connect=bool(init_connect),
        is_mariadb="mariadb" in wire.server_version.lower(),
        database=_as_bytes(wire.db, encoding) or None,
        statements=tuple(_as_bytes(statement, encoding) for statement in statements),
        has_roles=has_roles,
        role=_as_bytes(role, encoding),
    )
    return restoration(facts), _IDLE_SHARE * float(wait_timeout)


def _as_bytes(text: Any, encoding: str) -> Any:
    return text.encode(encoding) if isinstance(text, str) else text if text is None else bytes(text)


def _statements(names: str, init_command: str | None, last: list[str]) -> list[str]:
    if init_command is None:
        return [", ".join([names, *last])]
    return [names, init_command, *([f"SET {', '.join(last)}"] if last else [])]


def _run_last(wire: Wire, statement: str, question: str, one_write: bool) -> Answer:
    """Run the last init statement and a question, whose answer is returned, in one write: that saves a round trip.

    Not with an `init_command`, which may be of any length, or not even text.
    """
    if one_write and statement is not wire.init_command:
        done, answer = wire.run_together(statement, question)
        if isinstance(done, err.MySQLError):
            raise done
        return answer
    wire.run(statement)
    (answer,) = wire.run_together(question)
    return answer


def cannot_connect(host: object, error: OSError) -> err.OperationalError:
    """Return the exception that PyMySQL's connect() raises for an OSError."""
    exception = err.OperationalError(CR.CR_CONN_HOST_ERROR, f"Can't connect to MySQL server on {host!r} ({error})")
    exception.original_exception = error  # type: ignore[attr-defined]
    exception.traceback = traceback.format_exc()  # type: ignore[attr-defined]
    return exception


def _password_bytes(source: Callable[[], str | bytes]) -> bytes:
    password = source()
    if isinstance(password, str):
        return password.encode("latin1")  # as PyMySQL
    if not isinstance(password, bytes):
        raise TypeError(f"the password callable must return str or bytes, not {type(password).__name__}")
    return password
