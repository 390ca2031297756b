"""The statement path: commands, and the reading of their replies.

A connection is in flight from before the first byte of a command until the last packet of its results was read.
PyMySQL's methods that speak to the server are done anew here, so that each is one turn.
"""

import struct
import time
import warnings
from collections.abc import Callable
from typing import Any

from pymysql import err
from pymysql.charset import charset_by_name
from pymysql.constants import CLIENT, COMMAND, CR

from .driver import IS_1_2, C
from .exceptions import LeaseBusy
from .liveness import wait_readable
from .packets import MAX_PACKET, Ok, Packets
from .reader import Reader
from .replies import IN_FLIGHT, PREPARING, RESULT_OPEN, Result
from .restoration import skip_good
from .session import Session
from .sharing import CLOSED_MEANWHILE, Shared, _here
from .tracking import (
    DATABASE,
    EXECUTED,
    FORGOTTEN,
    LONGEST_KNOWN,
    MAY_BE_MANY,
    READS_FOUND_ROWS,
    READS_ROW_COUNT,
    RETIRE,
    SELECTED,
    SUSPECT,
    TOUCHED,
    known_marks,
    marks_of_statement,
)

# Seconds: a session that was found alive so lately is not asked again. Shorter than any round trip, so it makes no
# window that the statement itself does not have.
_JUST_NOW = 0.000025

_LOOK_CLOSER = MAY_BE_MANY | READS_FOUND_ROWS | READS_ROW_COUNT

_ENCODING_ERRORS = "strict" if IS_1_2 else "surrogateescape"

_prelude = struct.Struct("<IB").pack  # length in 24 bits, sequence number 0; the command
_header = struct.Struct("<I").pack


def _put_rest(send: Callable[[Any], object], data: bytes) -> int:
    """Send the packets behind the first one of a command; return the sequence number of what comes then."""
    rest = memoryview(data)[MAX_PACKET - 1 :]
    sequence = 1
    while True:
        size = min(MAX_PACKET, len(rest))
        send(_header(size | sequence << 24) + rest[:size])
        sequence = (sequence + 1) & 0xFF
        rest = rest[size:]
        if size < MAX_PACKET:
            return sequence


class Speaker(Shared[C]):
    """A connection that sends commands and reads their replies."""

    __slots__ = ("_is_unused", "_session")

    _is_unused: bool  # nothing was sent since it was leased
    _session: Session | None  # while it is a lease
    charset: str
    collation: str | None
    encoding: str

    # Commands

    def converse(self, command: int, sql: Any, read: Callable[[], Any]) -> Any:
        """Send a command and read its reply, as one turn; raises what PyMySQL raises, and what take_turn() does."""
        return self.take_turn(self._exchange, command, sql, read)

    def _exchange(self, command: int, sql: Any, read: Callable[[], Any]) -> Any:
        self._send(command, sql)
        return read()

    def _send(self, command: int, sql: Any) -> None:  # noqa: PLR0912  each call less counts, so it is one function
        """Send a command, after all that must come before it; in a turn."""
        if not self._sock:
            raise err.InterfaceError(0, "")
        if self._flight:
            self.wait_for_result()
        self._flight = PREPARING
        if self._by is not _here.thread:
            self.change_thread()
        self._picked = None
        self.__dict__["_result"] = None
        if type(sql) is not bytes:  # executemany() builds a bytearray
            sql = sql.encode(self.encoding) if isinstance(sql, str) else bytes(sql)
        session = self._session
        if session is None:
            self._put(command, sql)
            return
        if self._is_unused:
            session = self._begin_use(session)
        if command == COMMAND.COM_QUERY:
            marks: int | None = known_marks(sql) if len(sql) <= LONGEST_KNOWN else None
            if marks is None:
                marks = marks_of_statement(sql, self.encoding, self.server_status)
            if marks & _LOOK_CLOSER:
                marks = self._look_closer(session, marks)
            self._statement = marks
            self._marks |= marks & ~SELECTED | EXECUTED
        else:
            self._note_command(command)
        if session.ahead is None:
            self._put(command, sql)
            if session.owed:
                self._read_owed(session)
        else:
            self._put_behind(session, command, sql)

    def _begin_use(self, session: Session) -> Session:
        """Return the session for the lease's first command: another one if this one was lost meanwhile."""
        self._is_unused = False
        if time.monotonic() - session.looked_at <= _JUST_NOW:
            return session
        if session.owed:
            self._flight = IN_FLIGHT  # an interruption may take away what has been read
        is_ready = session.is_still_ready()
        self._flight = PREPARING
        return session if is_ready else self.replace_session()

    def _look_closer(self, session: Session, marks: int) -> int:
        """Return the marks of a statement that may be several, after clearing what it may ask of earlier leases."""
        if marks & MAY_BE_MANY and self.client_flag & CLIENT.MULTI_STATEMENTS:
            marks |= SUSPECT | DATABASE
        self._forget_counts(session, marks)
        return marks

    def _put_behind(self, session: Session, command: int, data: bytes) -> None:
        """Send a command behind all that restores the session, and read the replies to that."""
        ahead = session.ahead
        if ahead is None:
            self._put(command, data)
        else:
            self._put(command, data, ahead.data)
            session.owe(ahead)
            session.ahead = None
        if session.owed:
            self._read_owed(session)

    def _note_command(self, command: int) -> None:
        """Mark what a command other than a query may do to the session."""
        if command == COMMAND.COM_PING:
            return
        known = command == COMMAND.COM_INIT_DB
        self._marks |= TOUCHED | DATABASE if known else TOUCHED | SUSPECT | DATABASE | RETIRE
        self._statement = TOUCHED

    def replace_session(self) -> Session:
        """Lease another session: this one has died before anything was sent; in a turn."""
        raise NotImplementedError

    def _put(self, command: int, data: bytes, ahead: bytes = b"") -> None:
        """Send the packets of a command, behind those of others, in one write if there is only one.

        https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_basic_packets.html
        """
        size = len(data) + 1
        try:
            if not IS_1_2 or self._current_timeout != self._write_timeout:
                self._prepare_to_write()
            if size < MAX_PACKET:
                first = ahead + _prelude(size, command) + data
            else:
                first = ahead + _prelude(MAX_PACKET, command) + data[: MAX_PACKET - 1]
            send = self._sock.sendall
            self._flight = IN_FLIGHT
            send(first)
            self._next_seq_id = 1 if size < MAX_PACKET else _put_rest(send, data)
        except OSError as error:
            self._force_close()
            raise err.OperationalError(CR.CR_SERVER_GONE_ERROR, f"MySQL server has gone away ({error!r})") from error

    def _prepare_to_write(self) -> None:
        self._sock.settimeout(self._write_timeout)
        if IS_1_2:
            self._current_timeout = self._write_timeout

    def _execute_command(self, command: int, sql: Any) -> None:
        # For code that uses PyMySQL's private parts: it reads the reply by itself, and nothing keeps others out.
        self.take_turn(self._send, command, sql)

    def _request_authentication(self) -> None:
        # For a connection without a pool: PyMySQL reads up to here, and we from here on.
        super()._request_authentication()
        self._rfile.close()
        self._rfile = Reader(self._sock)

    # Before a command

    def finish_results(self) -> None:
        """Read what is left of the last command's results, as PyMySQL does before the next command; in a turn."""
        result = self._open
        if result is None:  # another thread is closing the connection just now
            raise err.OperationalError(CR.CR_SERVER_LOST, CLOSED_MEANWHILE)
        if result.unbuffered_active:
            if not result.abandoned:
                warnings.warn("Previous unbuffered result was left incomplete", stacklevel=8)
            result.drain()
        while result.follows:
            result.has_next = 0  # for the cursor that would ask for it
            result.follows = False
            self._flight = IN_FLIGHT
            result = self.read_reply()
        self.land()

    def arrives(self, deadline: float | None) -> bool:
        """Wait until something can be read, or `deadline` (monotonic seconds); say which."""
        sock = self._sock
        timeout = sock.gettimeout()
        sock.settimeout(0)
        try:
            if self._rfile.peek():
                return True
        except OSError:  # TLS: nothing that is whole
            pass
        finally:
            sock.settimeout(timeout)
        return wait_readable(sock, None if deadline is None else max(0.0, deadline - time.monotonic()))

    def _read_owed(self, session: Session) -> None:
        """Read the replies to what was sent before this lease's first statement; see Session.owes_little.

        A bad one means that the statement just sent ran in an unknown state: its own reply is never believed.
        """
        sequence = self._next_seq_id
        owed = session.owed
        try:
            reader = self._rfile
            data = reader.data or self._peek()
            if skipped := skip_good(data, owed):
                reader.data = data[skipped:]
            if not owed:
                return
            packets = Packets(self)
            try:
                while owed:
                    packets.sequence = 1
                    if not owed[0].feed(1, packets.next()):
                        raise err.InternalError("bad reply")
                    del owed[0]
            finally:
                packets.settle()
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
            self._put_behind(session, COMMAND.COM_QUERY, statement)
            self.read_reply()
        self._marks = kept

    # Replies

    def _receive(self, unbuffered: bool = False) -> Any:
        """Read a reply, and return the number of its rows."""
        self._flight = IN_FLIGHT
        result = self.read_reply(unbuffered)
        self.__dict__["_result"] = result
        rows: Any = result.affected_rows
        self._affected_rows = rows
        return rows

    def _receive_unbuffered(self) -> Any:
        return self._receive(True)

    # As PyMySQL calls it.
    _read_query_result = _receive

    def _read_ok_packet(self) -> Ok:
        try:
            data = self.first_packet()
            if data[0] != 0 or len(data) < 7:
                raise err.OperationalError(CR.CR_COMMANDS_OUT_OF_SYNC, "Command Out of Sync")
        except err.MySQLError as error:
            self.note_error(error)
            raise
        ok = Ok(data, self._has_tracking)
        self.note(ok)
        self.land()
        return ok

    def go_on_with(self, result: Result) -> None:
        """See to it that more of an open result can be read, by the calling thread from now on; in a turn."""
        if self._sock is None:
            raise err.OperationalError(CR.CR_SERVER_LOST, "Lost connection to MySQL server during query (closed)")
        if self._flight != RESULT_OPEN or self._open is not result:
            raise err.OperationalError(
                CR.CR_COMMANDS_OUT_OF_SYNC, "Commands out of sync; this thread is in the middle of another command"
            )
        if self._by is not _here.thread:
            self.change_thread()

    def next_result(self, unbuffered: bool = False) -> Any:
        """Read the next result of the last command, returning the number of its rows."""
        return self.take_turn(self._next_result, unbuffered)

    def _next_result(self, unbuffered: bool) -> Any:
        own = self.own_last()
        if own is not None and own.result is not None and own.result.following is not None:
            return self._take_kept(own)
        result = self._open
        if not self._sock:
            raise err.InterfaceError(0, "")
        if result is None:
            raise err.OperationalError(CR.CR_COMMANDS_OUT_OF_SYNC, "Commands out of sync; there is no further result")
        self.go_on_with(result)
        return self._receive(unbuffered)

    # PyMySQL's methods, each of them one turn

    def query(self, sql: Any, unbuffered: bool = False) -> Any:
        """Run a statement and read its reply, as PyMySQL does, returning the number of rows."""
        if isinstance(sql, str):
            sql = sql.encode(self.encoding, _ENCODING_ERRORS)
        read = self._receive_unbuffered if unbuffered else self._receive
        return self.take_turn(self._exchange, COMMAND.COM_QUERY, sql, read)

    def begin(self) -> None:
        """Begin a transaction."""
        self.take_turn(self._exchange, COMMAND.COM_QUERY, b"BEGIN", self._read_ok_packet)

    def commit(self) -> None:
        """Commit the transaction (PEP 249)."""
        self.take_turn(self._exchange, COMMAND.COM_QUERY, b"COMMIT", self._read_ok_packet)

    def rollback(self) -> None:
        """Roll the transaction back (PEP 249)."""
        self.take_turn(self._exchange, COMMAND.COM_QUERY, b"ROLLBACK", self._read_ok_packet)

    def select_db(self, db: Any) -> None:
        """Change the current database."""
        self.converse(COMMAND.COM_INIT_DB, db, self._read_ok_packet)

    def _send_autocommit_mode(self) -> None:
        statement = f"SET AUTOCOMMIT = {self.escape(self.autocommit_mode)}"
        self.converse(COMMAND.COM_QUERY, statement, self._read_ok_packet)

    def set_character_set(self, charset: str, collation: str | None = None) -> None:
        """Send SET NAMES and follow it on the client's side, as PyMySQL does."""
        encoding = charset_by_name(charset).encoding
        statement = f"SET NAMES {charset}" + (f" COLLATE {collation}" if collation else "")
        self.converse(COMMAND.COM_QUERY, statement, self._read_ok_packet)
        self.charset, self.encoding, self.collation = charset, encoding, collation

    def show_warnings(self) -> Any:
        """Return the rows of SHOW WARNINGS."""
        return self.converse(COMMAND.COM_QUERY, b"SHOW WARNINGS", self.read_reply).rows

    def ping(self, reconnect: bool | None = not IS_1_2) -> None:
        """Ask the server for a sign of life, as PyMySQL does.

        With `reconnect`, a connection that is closed or fails connects again. One that is merely busy does not:
        raises LeaseBusy, or OperationalError 2014 within another command of this thread.
        """
        if reconnect and IS_1_2:
            text = "The 'reconnect' argument is deprecated. Create a new connection if you want to reconnect."
            warnings.warn(text, DeprecationWarning, 2)
        if self._sock is None:
            if not reconnect:
                raise err.Error("Already closed")
            self.connect()
            reconnect = False
        try:
            self.converse(COMMAND.COM_PING, b"", self._read_ok_packet)
        except Exception as error:
            if not reconnect or isinstance(error, LeaseBusy) or self._turn._is_owned():
                raise
            self.connect()
            self.converse(COMMAND.COM_PING, b"", self._read_ok_packet)
