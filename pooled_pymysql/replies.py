"""Read the server's replies: our MySQLResult.

Differs from PyMySQL's in four ways. It takes the status of every packet that ends a reply, and what the server tracked
of the session's state, and notes both on the connection. It understands CLIENT_DEPRECATE_EOF. It parses whole buffers
instead of asking for four bytes at a time. And a result that is collected while unread never reads the network.
"""

import struct
import time
from collections.abc import Callable
from typing import Any

from pymysql import converters, err
from pymysql.connections import TEXT_TYPES
from pymysql.constants import CR, FIELD_TYPE
from pymysql.protocol import MysqlPacket

from .driver import IS_1_2, C, DriverConnection, DriverField, DriverResult
from .packets import HEADER, MAX_PACKET, TWO_SHORTS, Ok, Packets
from .tracking import (
    CLEAN,
    DATABASE,
    ENDS,
    INSERT_ID,
    OPENED,
    RETIRE,
    SELECTED,
    STATUS_AUTOCOMMIT,
    STATUS_IN_TRANS,
    STATUS_MORE_RESULTS,
    SUSPECT,
    SWITCHES,
    TOUCHED,
    WROTE,
    lenenc,
)

CLIENT_SESSION_TRACK = (
    1 << 23
)  # https://dev.mysql.com/doc/dev/mysql-server/latest/group__group__cs__capabilities__flags.html
CLIENT_DEPRECATE_EOF = 1 << 24

# Where a connection is: nothing on the wire is ours; a command or its reply is under way, and whatever interrupts it
# leaves the wire out of step; the reply goes on with rows or results that nobody has read; or a command is being
# prepared, of which not a byte was sent.
LANDED, IN_FLIGHT, RESULT_OPEN, PREPARING = range(4)

# What says that the session will not do for the next lease: the server ends it, is a Galera node without its cluster,
# shuts down or is offline, is a replica, or has left its group.
_UNFIT = (1047, 1053, 1836, 1927, 3032, 3100, 4031)
_READ_ONLY_OPTION = 1290  # for other options too: the text tells

_BINARY_CHARSET = 63
_NULL, _OK, _EOF, _LOCAL_INFILE = 0xFB, 0x00, 0xFE, 0xFB
_UNBUFFERED_ROWS = 18446744073709551615  # what MySQLdb shows while the number of rows is unknown

# Column definitions come in the same bytes again and again; parsing one costs more than the rest of a small reply.
_fields: dict[tuple[bytes, str], tuple[DriverField, tuple[Any, ...]]] = {}
_MAX_FIELDS = 2048
_MAX_FIELD_SIZE = 512


class Tracked(DriverConnection[C]):
    """A connection that reads its replies with `Result` and keeps the marks that they leave."""

    __slots__ = ("_flight", "_has_tracking", "_marks", "_open", "_statement")

    _flight: int
    _has_tracking: bool  # CLIENT_SESSION_TRACK and CLIENT_DEPRECATE_EOF were agreed on
    _marks: int  # of the lease
    _open: "Result | None"  # the result that goes on, while `_flight` is RESULT_OPEN
    _statement: int  # marks of the last statement's text
    server_status: int

    def land(self) -> None:
        """Note that the reply was read to its end."""
        self._flight = LANDED
        self._open = None

    def take_turn(self, work: Callable[..., Any], *args: Any) -> Any:
        """Call `work(*args)` while the wire is ours; see sharing.Shared."""
        return work(*args)

    def ring(self) -> None:
        """Wake who waits for the open result; see sharing.Shared."""

    def go_on_with(self, result: "Result") -> None:
        """See to it that more of an open result can be read; see statements.Speaker."""

    def note(self, ok: Ok) -> None:
        """Keep what an OK packet tells of the session."""
        self.server_status = ok.status
        if self._statement & ENDS:
            self._marks &= ~(OPENED | WROTE)
        marks = self._told(ok.marks) if ok.marks else CLEAN
        if ok.warning_count:  # SHOW WARNINGS of the next lease would show them
            marks |= TOUCHED
        if ok.affected_rows:
            marks |= WROTE
        if ok.insert_id:
            marks |= INSERT_ID
        if marks:
            self._marks |= marks

    def note_end(self, ok: Ok) -> None:
        """Keep what the packet that ends a result set tells; its counts say nothing."""
        self.server_status = ok.status
        if ok.warning_count:
            self._marks |= TOUCHED
        if ok.marks:
            self._marks |= self._told(ok.marks)

    def _told(self, marks: int) -> int:
        """Return what the server's marks mean: a routine behind a harmless statement may have done anything."""
        if self._statement & SWITCHES and marks == TOUCHED:
            status = self.server_status
            if status & STATUS_AUTOCOMMIT and not status & STATUS_IN_TRANS:  # nothing is held but by a transaction
                self._marks &= ~(OPENED | WROTE)
            return CLEAN
        return marks if self._statement & TOUCHED else marks | SUSPECT | DATABASE

    def note_error(self, error: err.MySQLError) -> None:
        """Keep what an exception tells: whether the command is over, and that anything may have happened.

        An error packet ends a command and has no status: a transaction may be open, variables set, warnings left. An
        error of the client's own is no packet; what follows it on the wire is not known.
        """
        code = error.args[0] if error.args else None
        if (
            isinstance(code, int)
            and (1000 <= code < 2000 or code >= 3000)
            and not getattr(error, "more_follows", False)
        ):
            self.land()
        self._marks |= TOUCHED | WROTE
        if code in _UNFIT or (code == _READ_ONLY_OPTION and "read" in str(error.args[1:])):
            self._marks |= RETIRE

    def read_reply(self, unbuffered: bool = False) -> "Result":
        """Read the reply to the command that was sent; of an unbuffered result set only its columns."""
        result = Result(self)
        try:
            if unbuffered:
                result.is_unbuffered = True
                result.init_unbuffered_query()
            else:
                result.read()
        except err.MySQLError as error:
            self.note_error(error)
            raise
        if result.unbuffered_active or result.follows:
            self._open = result
            self._flight = RESULT_OPEN
        else:
            self.land()
        self._marks |= self._statement & SELECTED
        return result

    def first_packet(self) -> bytes:
        """Read the first packet of a reply; raises what PyMySQL's _read_packet() raises."""
        data = self.only_ok()
        if data is not None:
            return data
        packets = Packets(self)
        try:
            return packets.next()
        finally:
            packets.settle()

    def only_ok(self) -> bytes | None:
        """Take the next packet if it is an OK packet and all that has arrived; None: let Packets read on."""
        reader = self._rfile
        data: bytes = reader.data or self._peek()
        size = len(data) - 4
        if 7 <= size < MAX_PACKET and HEADER(data)[0] == size | self._next_seq_id << 24 and data[4] == _OK:
            reader.data = b""
            self._next_seq_id = (self._next_seq_id + 1) & 0xFF
            return data[4:]
        return None

    def _peek(self) -> bytes:
        """Return what the reader holds, reading once if it is empty; errors as in PyMySQL's _read_bytes()."""
        try:
            if not IS_1_2 or self._current_timeout != self._read_timeout:
                self._prepare_to_read()
            data: bytes = self._rfile.peek()
        except OSError as error:
            self._force_close()
            text = f"Lost connection to MySQL server during query ({error})"
            raise err.OperationalError(CR.CR_SERVER_LOST, text) from error
        except BaseException:
            self._force_close()
            raise
        if not data:
            self._force_close()
            raise err.OperationalError(CR.CR_SERVER_LOST, "Lost connection to MySQL server during query")
        return data

    def _prepare_to_read(self) -> None:
        self._sock.settimeout(self._read_timeout)
        if IS_1_2:
            self._current_timeout = self._read_timeout


class Result(DriverResult):
    """The reply to one command; see the module."""

    connection: Any
    converters: list[tuple[str | None, Any]]
    fields: list[Any]

    # What PyMySQL sets for each result anew, though most of it stays as it is.
    affected_rows: int | None = None
    description: Any = None
    field_count: int = 0
    has_next: Any = None
    insert_id: int | None = None
    message: Any = None
    rows: Any = None
    server_status: int | None = None
    unbuffered_active: bool = False
    warning_count: int = 0

    is_unbuffered = False
    abandoned: bool = False  # nobody wants what is still unread
    cut_off = False  # the connection was closed before the rest was read
    follows: bool = False  # another result comes behind this one on the wire
    following: "Result | err.MySQLError | None" = None  # what came behind it, once it was read for another thread

    def __init__(self, connection: "Tracked[Any]") -> None:
        self.connection = connection

    def __del__(self) -> None:
        """Nothing: PyMySQL reads the rest off the network here, wherever collection happens to run."""

    # Whole replies

    def read(self) -> None:
        """Read a reply to its end."""
        connection = self.connection
        try:
            data = connection.only_ok()
            if data is not None:
                self._take_ok(Ok(data, connection._has_tracking), connection)
            else:
                self._read_packets(Packets(connection))
        finally:
            self.connection = None

    def _read_packets(self, packets: Packets) -> None:
        connection = self.connection
        try:
            data = packets.next()
            if data[0] == _OK and len(data) >= 7:
                self._take_ok(Ok(data, connection._has_tracking), connection)
            elif data[0] == _LOCAL_INFILE:
                packets.settle()
                self._read_load_local_packet(MysqlPacket(data, connection.encoding))
                packets.sequence = connection._next_seq_id
            else:
                self._read_result_set(packets, data)
        finally:
            packets.settle()
        if packets.reader.data and not self.follows:  # bytes that belong to no reply
            connection._marks |= RETIRE

    def init_unbuffered_query(self) -> None:
        """Read a reply up to its first row."""
        connection = self.connection
        data = connection.first_packet()
        if data[0] == _OK and len(data) >= 7:
            self._take_ok(Ok(data, connection._has_tracking), connection)
        elif data[0] == _LOCAL_INFILE:
            self._read_load_local_packet(MysqlPacket(data, connection.encoding))
        else:
            packets = Packets(connection)
            try:
                self._read_columns(packets, data)
            finally:
                packets.settle()
            self.affected_rows = _UNBUFFERED_ROWS
            self.unbuffered_active = True
        if not self.unbuffered_active and not self.follows:
            self.connection = None

    def _take_ok(self, ok: Ok, connection: Tracked) -> None:
        self.affected_rows = ok.affected_rows
        self.insert_id = ok.insert_id
        self.server_status = ok.status
        self.warning_count = ok.warning_count
        self.message = ok.message
        self._note_more(ok)
        connection.note(ok)

    def _note_more(self, ok: Ok) -> None:
        more = ok.status & STATUS_MORE_RESULTS
        self.follows = bool(more)
        if not self.abandoned:
            self.has_next = more

    def _read_load_local_packet(self, first_packet: Any) -> None:
        """Send the file as PyMySQL does, but keep the status behind it when there was no such file."""
        connection = self.connection
        packets = []

        def read_packet() -> Any:
            packets.append(DriverConnection._read_packet(connection))
            return packets[-1]

        connection.__dict__["_read_packet"] = read_packet
        try:
            super()._read_load_local_packet(first_packet)
        except err.MySQLError as error:
            if packets and packets[-1].is_ok_packet():
                ok = Ok(packets[-1].get_all_data(), connection._has_tracking)
                error.more_follows = bool(ok.status & STATUS_MORE_RESULTS)  # type: ignore[attr-defined]
            raise
        finally:
            del connection.__dict__["_read_packet"]

    def _read_ok_packet(self, packet: Any) -> None:
        # PyMySQL's LOAD DATA LOCAL ends in here.
        connection = self.connection
        self._take_ok(Ok(packet.get_all_data(), connection._has_tracking), connection)

    # Result sets

    def _read_result_set(self, packets: "Packets", data: bytes) -> None:
        self._read_columns(packets, data)
        rows = []
        take_row = self._row
        has_tracking = self.connection._has_tracking
        while True:
            data = packets.next()
            if data[0] == _EOF and self._is_end(data, has_tracking):
                break
            rows.append(take_row(data))
        self.affected_rows = len(rows)
        self.rows = tuple(rows)

    def _is_end(self, data: bytes, has_tracking: bool) -> bool:
        """Say whether a packet that begins like the end of a result set is one; note what it tells.

        A row may begin so too, if its first value has 16 MiB or more.
        """
        if has_tracking:
            if len(data) >= MAX_PACKET:
                return False
            ok = Ok(data, True)
        else:
            if len(data) >= 9:
                return False
            ok = _eof(data)
        self.connection.note_end(ok)
        self.warning_count = ok.warning_count
        self._note_more(ok)
        return True

    def _read_columns(self, packets: "Packets", data: bytes) -> None:
        connection = self.connection
        count, _ = lenenc(data, 0)
        if count is None:
            raise err.InternalError(f"a reply begins with 0x{data[0]:02x}, which is no result")
        self.field_count = count
        encoding = connection.encoding
        self.fields = []
        description = []
        for _ in range(count):
            field, described = _field(packets.next(), encoding)
            self.fields.append(field)
            description.append(described)
        self.converters = _converters(self.fields, connection)
        if not connection._has_tracking:
            data = packets.next()
            if data[0] != _EOF:
                raise err.InternalError("column definitions do not end where they should")
        self.description = tuple(description)

    def _row(self, data: bytes) -> tuple[Any, ...]:
        """Return the values of a row packet, text protocol."""
        row: list[Any] = []
        length: Any
        position = 0
        end = len(data)
        for encoding, converter in self.converters:
            if position >= end:
                break  # as PyMySQL: some servers leave columns out
            length = data[position]
            position += 1
            if length > 250:
                if length == _NULL:
                    row.append(None)
                    continue
                length, position = lenenc(data, position - 1)
            stop = position + length
            value: Any = data[position:stop]
            if stop > end:
                raise AssertionError("a row is shorter than its values")
            position = stop
            if encoding is not None:
                value = value.decode(encoding)
            if converter is not None:
                value = converter(value)
            row.append(value)
        return tuple(row)

    # Unbuffered results

    def _read_rowdata_packet_unbuffered(self) -> tuple[Any, ...] | None:
        connection = self.connection
        if self.unbuffered_active and connection is not None:
            row: tuple[Any, ...] | None = connection.take_turn(self.next_row)
            if row is not None:
                return row
        if self.cut_off:
            text = "Lost connection to MySQL server during query (closed before the result was read)"
            raise err.OperationalError(CR.CR_SERVER_LOST, text)
        return None

    def next_row(self) -> tuple[Any, ...] | None:
        """Read one row, or the end of the rows (None); in a turn."""
        connection = self.connection
        if not self.unbuffered_active or connection is None:  # ended while we waited for the turn
            return None
        connection.go_on_with(self)
        connection._flight = IN_FLIGHT
        try:
            data = connection._read_packet().get_all_data()
        except BaseException as error:
            self.unbuffered_active = False
            if isinstance(error, err.MySQLError):
                connection.note_error(error)
            raise
        if data[0] == _EOF and self._is_end(data, connection._has_tracking):
            self.unbuffered_active = False
            self.rows = None
            if self.follows:
                connection._flight = RESULT_OPEN
            else:
                self.connection = None
                connection.land()
            return None
        if self.abandoned:
            connection._flight = RESULT_OPEN
            return ()
        try:
            row = self._row(data)
        finally:
            # Whatever a converter raises, the packet was read; what it may have done is close the connection.
            if connection._open is self:
                connection._flight = RESULT_OPEN
        self.affected_rows = 1
        self.rows = (row,)
        return row

    def _finish_unbuffered_query(self) -> None:
        """Mark the rest as unwanted.

        SSCursor's close() and __del__ are one and the same function, and collection may run anywhere, so nothing is
        read here, nor by the nextset() that follows there: the next command reads the rest, or the release does.
        """
        connection = self.connection
        if connection is not None and not self.abandoned:
            self.abandoned = True
            self.has_next = 0
            connection.ring()

    def drain(self) -> None:
        """Read the rest of an unbuffered result and forget it; in a turn."""
        self.abandoned = True
        while self.unbuffered_active:
            try:
                self.next_row()
            except err.OperationalError as error:
                if error.args[0] not in _STOPPED:
                    raise
                self.unbuffered_active = False
                self.connection = None

    def drain_until(self, deadline: float) -> bool:
        """Read the rest of the rows if they are few and arrive in time; say whether that was all of them."""
        connection = self.connection
        self.abandoned = True
        for _ in range(_MAX_DRAINED):
            if not self.unbuffered_active:
                break
            if next_arrival(connection, deadline) is None:
                return False
            try:
                self.next_row()
            except err.MySQLError:
                return bool(connection._flight == LANDED)
        return not self.unbuffered_active


_MAX_DRAINED = 100  # rows; of a longer rest the session is not worth the reading


def next_arrival(connection: Tracked[Any], deadline: float) -> int | None:
    """Return the first byte of the next packet if all of it arrives before `deadline` (monotonic seconds), else None.

    The reader is of no use after None.
    """
    sock = connection._sock
    if sock is None:
        return None
    timeout = sock.gettimeout()
    sock.settimeout(max(0.0, deadline - time.monotonic()))
    try:
        data: bytes = connection._rfile.peek()
    except (OSError, ValueError):
        return None
    finally:
        sock.settimeout(timeout)
    if len(data) < 5 or len(data) < 4 + (HEADER(data, 0)[0] & MAX_PACKET):
        return None
    return data[4]


_STOPPED = (1969, 3024)  # the query was stopped by a time limit: MariaDB's, MySQL's


def _eof(data: bytes) -> Ok:
    """Return a classic EOF packet as what it would be under CLIENT_DEPRECATE_EOF."""
    warning_count, status = TWO_SHORTS(data, 1)
    return Ok(b"\xfe\0\0" + struct.pack("<HH", status, warning_count), False)


def _field(data: bytes, encoding: str) -> tuple[DriverField, tuple[Any, ...]]:
    key = (data, encoding)
    known = _fields.get(key)
    if known is None:
        field = DriverField(data, encoding)
        known = (field, field.description())
        if len(data) <= _MAX_FIELD_SIZE:
            if len(_fields) >= _MAX_FIELDS:
                _fields.clear()
            _fields[key] = known
    return known


def _converters(fields: list[DriverField], connection: Tracked) -> list[tuple[str | None, Any]]:
    """Return (encoding, converter) of each column, chosen as PyMySQL chooses."""
    decoders, use_unicode, encoding = connection.decoders, connection.use_unicode, connection.encoding
    chosen = []
    for field in fields:
        kind = field.type_code
        of_text: str | None = None
        if use_unicode:
            if kind == FIELD_TYPE.JSON:
                of_text = encoding  # its charset says binary, but it is text
            elif kind in TEXT_TYPES:
                of_text = None if field.charsetnr == _BINARY_CHARSET else encoding
            else:
                of_text = "ascii"
        converter = decoders.get(kind)
        chosen.append((of_text, None if converter is converters.through else converter))
    return chosen
