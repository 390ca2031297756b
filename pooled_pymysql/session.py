"""Open, validate, restore and close server sessions; nothing else in the package does."""

import contextlib
import enum
import select
import socket
import struct
import sys
import time
import traceback
import weakref
from collections.abc import Callable
from typing import Any

import pymysql
from pymysql import converters, err
from pymysql.constants import COMMAND, CR, ER
from pymysql.cursors import Cursor

from .arguments import Arguments, SharedTLS
from .options import PoolOptions
from .replies import CLIENT_DEPRECATE_EOF, CLIENT_SESSION_TRACK, LANDED, Ok, Tracked
from .tracking import (
    DATABASE,
    INSERT_ID,
    RETIRE,
    STATUS_IN_TRANS,
    STATUS_MORE_RESULTS,
    SUSPECT,
    TOUCHED,
    WROTE,
    lenenc,
)

COM_RESET_CONNECTION = 0x1F  # https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_com_reset_connection.html

try:
    from ssl import SSLWantReadError
except ImportError:  # a Python without TLS

    class SSLWantReadError(OSError):  # type: ignore[no-redef]
        """Never raised."""


_TRACKS_TIMEOUT = pymysql.VERSION >= (1, 2)  # PyMySQL remembers the socket's timeout in `_current_timeout`

_BOTH = CLIENT_SESSION_TRACK | CLIENT_DEPRECATE_EOF

# Attributes that a connection has from its server; a lease that connects again takes these from its new session.
SERVER_ATTRIBUTES = (
    "_auth_plugin_name", "_closed", "_current_timeout", "_next_seq_id", "_rfile", "_secure", "_sock", "client_flag",
    "ctx", "db", "host_info", "password", "protocol_version", "salt", "server_capabilities", "server_charset",
    "server_language", "server_status", "server_thread_id", "server_version", "user",
)  # fmt: skip


class Mail(enum.Enum):
    """What became of the replies that a session owes."""

    READ = enum.auto()  # all of them came, and all is well
    UNDER_WAY = enum.auto()
    BAD = enum.auto()  # an error, a lost connection, or not the replies that were expected


class Session:
    """One authenticated server session.

    Owned by its pool while idle and by one lease while in use; whoever owns it may call its methods, nobody else.
    """

    __slots__ = (
        "__weakref__", "_inbox", "_recipe", "expires_at", "has_tracking", "idle_since", "in_transaction", "lease",
        "marks", "opened_at", "opening_took", "owed", "pid", "poll", "pristine", "sock",
    )  # fmt: skip

    def __init__(self, wire: "_Wire", recipe: "Restoration", started: float, max_lifetime: float | None) -> None:
        now = time.monotonic()
        self._recipe = recipe
        self.pristine: dict[str, Any] = vars(wire)
        self.has_tracking = wire._has_tracking
        self.sock = wire._sock
        self.poll = readable(self.sock)
        self.opened_at = self.idle_since = now
        self.opening_took = now - started
        self.expires_at = float("inf") if max_lifetime is None else now + max_lifetime
        self.pid = int(wire._connect_attrs["_pid"])
        self.lease: weakref.ref[Any] | None = None
        # What the last lease left: written when it parts from the session.
        self.marks = 0
        self.in_transaction = False
        # The replies that nobody has read yet, oldest first, and their bytes that have arrived.
        self.owed: list[_Reply] = []
        self._inbox = bytearray()

    @property
    def thread_id(self) -> int:
        """The server's CONNECTION_ID() of this session."""
        return int(self.pristine["server_thread_id"][0])

    # Restoring

    def restore(self) -> str | None:
        """Send what undoes the last lease's doings, by its marks; the replies are read later (see `owed`).

        Returns why the session cannot be restored and must be closed, or None. Does not wait for the server, unless
        `one_write` is off.
        """
        recipe = self._recipe
        try:
            commands = recipe.commands(self.marks, self.in_transaction)
            if commands:
                self._send(commands, recipe.one_write)
        except NotRestorable as reason:
            return str(reason)
        except OSError:
            return "lost"
        return None

    @property
    def owes_little(self) -> bool:
        """Whether a statement may be sent behind the owed replies without waiting for them.

        Only behind a ROLLBACK that undoes nothing and behind `DO`, under the rule that a bad reply to them fails the
        statement as a lost connection.
        """
        return self._recipe.one_write and not self._inbox and all(reply.is_light for reply in self.owed)

    def _send(self, commands: "list[_Command]", one_write: bool) -> None:
        if one_write:
            self.owed = [_Reply(command, self.has_tracking) for command in commands]
            self.sock.sendall(b"".join(command.packet for command in commands))
            return
        for command in commands:
            self.owed = [_Reply(command, self.has_tracking)]
            self.sock.sendall(command.packet)
            if self.collect(time.monotonic() + RESTORE_TIMEOUT) is not Mail.READ:
                raise NotRestorable("not restored")

    def collect(self, deadline: float | None = None) -> Mail:
        """Read the owed replies that have arrived, or until `deadline` (monotonic seconds) all of them.

        Never blocks without a deadline, TLS included.
        """
        timeout = self.sock.gettimeout()
        try:
            while self.owed:
                left = 0.0 if deadline is None else deadline - time.monotonic()
                if not self.poll(0) and left <= 0 and not self._has_pending():
                    return Mail.UNDER_WAY
                self.sock.settimeout(max(left, 0.0))
                chunk = self.sock.recv(65536)
                if not chunk:
                    return Mail.BAD
                self._inbox += chunk
                self._sort_inbox()
        except (BlockingIOError, TimeoutError, SSLWantReadError):
            return Mail.UNDER_WAY
        except (OSError, NotRestorable, err.MySQLError, ValueError, IndexError, struct.error):
            return Mail.BAD
        finally:
            if self.sock.fileno() >= 0:
                self.sock.settimeout(timeout)
        return Mail.BAD if self._inbox else Mail.READ

    def _has_pending(self) -> bool:
        """Say whether TLS holds decrypted bytes that poll does not see."""
        pending = getattr(self.sock, "pending", None)
        return pending is not None and pending() > 0

    def _sort_inbox(self) -> None:
        """Feed whole packets to the replies they belong to."""
        inbox = self._inbox
        while self.owed and len(inbox) >= 4:
            stop = 4 + (inbox[0] | inbox[1] << 8 | inbox[2] << 16)
            if len(inbox) < stop:
                return
            if self.owed[0].feed(inbox[3], bytes(inbox[4:stop])):
                del self.owed[0]
            del inbox[:stop]

    # The end

    def interrupt(self) -> None:
        """Make whoever reads from or writes to the socket fail as on a lost connection; callable from any thread."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(
                self.sock, socket.SHUT_RDWR
            )  # not SSLSocket's, which would take TLS away from under it

    def close(self) -> None:
        """Say goodbye and close the socket; never raises, blocks for less than a second."""
        try:
            if self.sock.fileno() >= 0:
                self.sock.settimeout(0.5)
                self.sock.sendall(_packet(COMMAND.COM_QUIT))
        except OSError:
            pass
        self.abandon()

    def abandon(self) -> None:
        """Close this process's descriptor without a byte on the wire, which a forked child must not send."""
        try:
            self.pristine["_rfile"].close()
            self.sock.close()
        except OSError:
            pass


# What restores a session


RESTORE_TIMEOUT = 10.0  # seconds that the server has to restore a session before it is closed instead

ROLE_UNKNOWN = 1305  # FUNCTION CURRENT_ROLE does not exist: a server without roles
UNKNOWN_VARIABLE = ER.UNKNOWN_SYSTEM_VARIABLE


class NotRestorable(Exception):
    """The session must be closed; the text says why."""


class _Command:
    """A command that restores, as a packet, and what its reply must be."""

    __slots__ = ("expected", "is_light", "packet")

    def __init__(self, packet: bytes, *, is_light: bool = False, expected: tuple[object, ...] | None = None) -> None:
        self.packet = packet
        self.is_light = is_light
        self.expected = expected  # the one row that the reply must have


def _packet(command: int, payload: bytes = b"") -> bytes:
    return struct.pack("<IB", len(payload) + 1, command) + payload


_ROLLBACK = _packet(COMMAND.COM_QUERY, b"ROLLBACK")
_LIGHT_ROLLBACK = _Command(_ROLLBACK, is_light=True)
_HEAVY_ROLLBACK = _Command(_ROLLBACK)
_FORGET_INSERT_ID = _Command(_packet(COMMAND.COM_QUERY, b"DO LAST_INSERT_ID(0)"), is_light=True)
_RESET = _Command(_packet(COM_RESET_CONNECTION))


class Restoration:
    """How sessions of one pool are restored; made when a session is opened, by what its server can do."""

    __slots__ = ("_check", "_init", "_return", "can_prove", "init_connect", "one_write", "reset")

    def __init__(self, options: PoolOptions) -> None:
        self.reset = options.reset
        self.one_write = options.one_write
        self.can_prove = False
        self.init_connect = False
        self._init: list[_Command] = []
        self._return: list[_Command] = []
        self._check: list[_Command] = []

    def learn(self, wire: "_Wire", statements: list[str], role: object, has_roles: bool) -> None:
        """Note the statements that initialise a session, and what must be true of one that is as good as new."""
        encoding = wire.encoding
        self._init = [_Command(_packet(COMMAND.COM_QUERY, text.encode(encoding))) for text in statements]
        expected: list[object] = []
        columns = []
        if has_roles:
            columns.append("CURRENT_ROLE()")
            expected.append(role)
            if "mariadb" not in wire.server_version.lower():
                columns.append(
                    "(SELECT RESOURCE_GROUP FROM performance_schema.threads WHERE PROCESSLIST_ID = CONNECTION_ID())"
                )
                expected.append(b"USR_default")
        if wire.db:
            name = wire.db.encode(encoding) if isinstance(wire.db, str) else wire.db
            self._return = [_Command(_packet(COMMAND.COM_INIT_DB, name))]
        else:  # no command leads from a current database to none
            columns.append("DATABASE()")
            expected.append(None)
        if columns:
            query = f"SELECT {', '.join(columns)}".encode()
            self._check = [_Command(_packet(COMMAND.COM_QUERY, query), expected=tuple(expected))]

    def commands(self, marks: int, in_transaction: bool) -> list[_Command]:
        """Return what must be sent to a session that a lease has left with these marks (design: docs/architecture.md).

        Raises NotRestorable.
        """
        if marks & RETIRE:
            raise NotRestorable("not restorable")
        if self.reset == "rollback":
            return [_HEAVY_ROLLBACK] if in_transaction or marks & TOUCHED else []
        if self.can_prove and not marks & TOUCHED:
            return self._light_commands(marks, in_transaction)
        if marks & SUSPECT and in_transaction:  # perhaps XA, out of sight
            raise NotRestorable("not restorable")
        if self.init_connect:  # a reset loses what it did, and the server does not run it again
            raise NotRestorable("init_connect")
        commands = [_RESET, *self._init]
        unproven = not self.can_prove
        if marks & DATABASE or unproven:
            commands += self._return
        if marks & SUSPECT or unproven or (marks & DATABASE and not self._return):
            commands += self._check
        return commands

    @staticmethod
    def _light_commands(marks: int, in_transaction: bool) -> list[_Command]:
        commands = []
        if in_transaction:
            commands.append(_HEAVY_ROLLBACK if marks & WROTE else _LIGHT_ROLLBACK)
        if marks & INSERT_ID:
            commands.append(_FORGET_INSERT_ID)
        return commands


class _Reply:
    """One reply that a session owes: parses its packets as they come.

    https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_command_phase.html
    """

    __slots__ = ("_columns", "_command", "_has_tracking", "_rows", "_sequence", "_stage")

    def __init__(self, command: _Command, has_tracking: bool) -> None:
        self._command = command
        self._has_tracking = has_tracking
        self._sequence = 1
        self._stage: Callable[[bytes], bool] = self._first
        self._columns = 0
        self._rows: list[bytes] = []

    @property
    def is_light(self) -> bool:
        """Whether a statement may be sent behind it."""
        return self._command.is_light

    def feed(self, sequence: int, data: bytes) -> bool:
        """Take the next packet; say whether it was the last. Raises NotRestorable if all is not well."""
        if sequence != self._sequence or data[0] == 0xFF:
            raise NotRestorable("bad reply")
        self._sequence = (sequence + 1) & 0xFF
        return self._stage(data)

    def _first(self, data: bytes) -> bool:
        if data[0] == 0:
            return self._end(Ok(data, self._has_tracking).status)
        count, _ = lenenc(data, 0)
        if not count:
            raise NotRestorable("bad reply")
        self._columns = count
        self._stage = self._column
        return False

    def _column(self, _data: bytes) -> bool:
        self._columns -= 1
        if self._columns == 0:
            self._stage = self._row if self._has_tracking else self._end_of_columns
        return False

    def _end_of_columns(self, _data: bytes) -> bool:
        self._stage = self._row
        return False

    def _row(self, data: bytes) -> bool:
        if data[0] == 0xFE and len(data) < (0xFFFFFF if self._has_tracking else 9):
            status = Ok(data, True).status if self._has_tracking else int.from_bytes(data[3:5], "little")
            return self._end(status)
        self._rows.append(data)
        return False

    def _end(self, status: int) -> bool:
        if status & STATUS_MORE_RESULTS:
            self._stage = self._first
            return False
        if status & STATUS_IN_TRANS:  # an XA transaction survives
            raise NotRestorable("still in a transaction")
        if self._command.expected is not None and self._values() != self._command.expected:
            raise NotRestorable("role, database or resource group changed")
        return True

    def _values(self) -> tuple[object, ...] | None:
        if len(self._rows) != 1:
            return None
        data, position = self._rows[0], 0
        values: list[object] = []
        while position < len(data):
            if data[position] == 0xFB:
                values.append(None)
                position += 1
                continue
            length, position = lenenc(data, position)
            stop = position + (length or 0)
            values.append(data[position:stop])
            position = stop
        return tuple(values)


# Opening


class _Wire(Tracked):
    """A connection for our own traffic while a session is opened: all reads and writes together end at `deadline`.

    It reads from the socket itself, never ahead, so that the session's buffered reader stays empty.
    """

    __slots__ = ("deadline",)

    deadline: float

    def __del__(self) -> None:
        """The socket belongs to the session; PyMySQL's own would close it."""

    def _remaining(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left

    def _peek(self) -> bytes:
        return b""  # never a buffer ahead: replies are read packet by packet

    def _read_bytes(self, num_bytes: int) -> bytes:
        chunks = []
        try:
            while num_bytes:
                left = self._remaining()
                self._sock.settimeout(left if self._read_timeout is None else min(left, self._read_timeout))
                chunk = self._sock.recv(num_bytes)
                if not chunk:
                    raise err.OperationalError(CR.CR_SERVER_LOST, "Lost connection to MySQL server during query")
                chunks.append(chunk)
                num_bytes -= len(chunk)
        except OSError as error:
            self._force_close()
            text = f"Lost connection to MySQL server during query ({error})"
            raise err.OperationalError(CR.CR_SERVER_LOST, text) from error
        except BaseException:
            self._force_close()
            raise
        return b"".join(chunks)

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
            self._rfile = self._sock.makefile("rb")
            self._next_seq_id = 0
            self._get_server_information()
            self._authenticate(wants_tracking)
        except BaseException as error:
            self._force_close()
            if isinstance(error, OSError):
                raise _cannot_connect(self.host, error) from error
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
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
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
        result = first = self.read_reply()
        while result.has_next:
            result = self.read_reply()
        return first.rows or ()


def open_session(arguments: Arguments, tls: SharedTLS, options: PoolOptions, pid: int) -> Session:
    """Connect, authenticate and initialise; raises what PyMySQL raises.

    Blocks for up to `connect_timeout` seconds in all (looking up the host's address apart): TCP, TLS, greeting,
    authentication and the init statements.
    """
    started = time.monotonic()
    wire = _new_wire(arguments, tls, pid)
    wire.deadline = started + (arguments.connect_timeout or float("inf"))
    restoration = Restoration(options)
    wire.log_in(wants_tracking=options.reset == "auto")
    try:
        _initialise(wire, restoration)
    except BaseException:
        wire._force_close()
        raise
    wire._sock.settimeout(None)
    if _TRACKS_TIMEOUT:
        wire._current_timeout = None
    return Session(wire, restoration, started, options.max_lifetime)


def _new_wire(arguments: Arguments, tls: SharedTLS, pid: int) -> _Wire:
    wire = _Wire.__new__(_Wire)
    state = arguments.template.copy()
    context = tls.context(state)
    if context is not None:
        state["ctx"] = context
    state.update(cursorclass=Cursor, encoders=converters.encoders, decoders=converters.decoders)
    state["_connect_attrs"] = {**state["_connect_attrs"], "_pid": str(pid)}
    if _TRACKS_TIMEOUT:
        state["_current_timeout"] = None
    if arguments.password is not None:
        state["password"] = _password_bytes(arguments.password)
    wire.__dict__ = state
    wire._has_tracking = False
    wire._marks = 0
    wire._flight = LANDED
    wire._statement = TOUCHED
    return wire


def _initialise(wire: _Wire, restoration: Restoration) -> None:
    """Bring a new session into the state in which connect() hands it out, and learn how to come back to it.

    PyMySQL's order: names, sql_mode, init_command, and autocommit last; one statement where there is no init_command.
    """
    names = f"SET NAMES {wire.charset}" + (f" COLLATE {wire.collation}" if wire.collation else "")
    if wire.sql_mode is not None:
        names += f", sql_mode={wire.escape(wire.sql_mode)}"
    last = []
    if wire.autocommit_mode is not None:
        last.append(f"autocommit={int(bool(wire.autocommit_mode))}")
    if wire._has_tracking:
        last.append("session_track_state_change=1")
    statements = _statements(names, wire.init_command, last)
    try:
        _run_all(wire, statements)
        restoration.can_prove = wire._has_tracking
    except err.OperationalError as error:
        if error.args[0] != UNKNOWN_VARIABLE or not wire._has_tracking:
            raise
        statements = _statements(names, wire.init_command, last[:-1])
        _run_all(wire, statements)
    has_roles = True
    try:
        ((role, init_connect),) = wire.run("SELECT CURRENT_ROLE(), @@GLOBAL.init_connect")
    except err.MySQLError:
        has_roles, role = False, None
        ((init_connect,),) = wire.run("SELECT @@GLOBAL.init_connect")
    restoration.init_connect = bool(init_connect)
    role = role.encode(wire.encoding) if isinstance(role, str) else role
    restoration.learn(wire, statements, role, has_roles)


def _statements(names: str, init_command: str | None, last: list[str]) -> list[str]:
    if init_command is None:
        return [", ".join([names, *last])]
    return [names, init_command, *([f"SET {', '.join(last)}"] if last else [])]


def _run_all(wire: _Wire, statements: list[str]) -> None:
    for statement in statements:
        wire.run(statement)


def _cannot_connect(host: object, error: OSError) -> err.OperationalError:
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


# Liveness


def readable(sock: socket.socket) -> Callable[[int], object]:
    """Return a function that takes a time in ms and returns something true once `sock` can be read or is closed.

    gevent and eventlet replace poll by one that yields to their hub, which costs milliseconds beside a busy greenlet:
    the original is used. Where there is no poll (Windows), select answers.
    """
    factory = _unpatched("poll")
    if factory is not None:
        poller = factory()
        poller.register(sock, _POLLIN | _POLLPRI)
        poll: Callable[[int], object] = poller.poll
        return poll
    chosen = _unpatched("select")
    return lambda timeout: chosen([sock], [], [], timeout / 1000)[0]


_POLLIN, _POLLPRI = 1, 2  # poll(2); eventlet's patched module lacks the names


def _unpatched(name: str) -> Any:
    """Return `select.<name>` as it was before gevent or eventlet patched it, or None where there is none."""
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None and gevent.is_module_patched("select"):
        try:
            return gevent.get_original("select", name)
        except AttributeError:
            return None
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None and eventlet.is_monkey_patched("select"):
        return getattr(eventlet.original("select"), name, None)
    return getattr(select, name, None)
