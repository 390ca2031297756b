"""Packets of the server, parsed: OK packets, and the packets of a reply taken from whole buffers."""

import struct
from typing import Any

from pymysql import err

from .tracking import (
    CLEAN,
    DATABASE,
    STATUS_SESSION_STATE_CHANGED,
    TOUCHED,
    lenenc,
    marks_of_tail,
)

MAX_PACKET = 0xFFFFFF
HEADER = struct.Struct("<I").unpack_from  # length in 24 bits, sequence number in 8
TWO_SHORTS = struct.Struct("<HH").unpack_from
ERROR = 0xFF
_FAREWELLS = (1053, 1927, 4031)  # sent with sequence number 0, whatever is asked next: shut down, killed, idle too long


class Ok:
    """An OK packet, or the packet that ends a result set under CLIENT_DEPRECATE_EOF.

    https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_basic_ok_packet.html
    """

    __slots__ = ("affected_rows", "insert_id", "marks", "message", "status", "warning_count")

    affected_rows: int | None
    insert_id: int | None
    marks: int
    message: bytes
    status: Any
    warning_count: Any

    def __init__(self, data: bytes, has_tracking: bool) -> None:
        affected_rows: int | None = data[1]
        insert_id: int | None = data[2]
        position = 3
        if data[1] > 250 or data[2] > 250:
            affected_rows, position = lenenc(data, 1)
            insert_id, position = lenenc(data, position)
        self.affected_rows = affected_rows
        self.insert_id = insert_id
        self.status, self.warning_count = TWO_SHORTS(data, position)
        position += 4
        self.marks = CLEAN
        if not has_tracking or position == len(data):
            self.message = data[position:]
            return
        length, start = lenenc(data, position)
        stop = start + (length or 0)
        self.message = data[position:stop] if length else b""  # PyMySQL shows the length too
        if self.status & STATUS_SESSION_STATE_CHANGED:
            self.marks = _marks_of_state(data, stop)


def _marks_of_state(data: bytes, position: int) -> int:
    """Read the session-state information behind the message, which must fill the packet."""
    length, position = lenenc(data, position)
    if not length or position + length != len(data):
        return TOUCHED | DATABASE  # changed, but nothing that can be read says what
    return marks_of_tail(data[position:])


class Packets:
    """The packets of one reply, taken from whole buffers of the connection's reader.

    Making them waits for the first bytes; `settle()` must be called before anything else reads from the connection.
    """

    __slots__ = ("buffer", "connection", "end", "position", "reader", "sequence")

    buffer: bytes
    connection: Any
    end: int
    position: int
    reader: Any
    sequence: int

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.reader = reader = connection._rfile
        self.buffer = buffer = reader.data or connection._peek()
        self.position = 0
        self.end = len(buffer)
        self.sequence = connection._next_seq_id

    def next(self) -> bytes:
        """Return the next packet's payload; raises what PyMySQL's _read_packet() raises."""
        position = self.position
        start = position + 4
        if start > self.end:
            if position < self.end:
                return self._across_buffers()
            self._fill()
            position, start = 0, 4
            if start > self.end:
                return self._across_buffers()
        header = HEADER(self.buffer, position)[0]
        stop = start + (header & MAX_PACKET)
        if stop > self.end or header >> 24 != self.sequence or stop - start == MAX_PACKET:
            if not header >> 24 and stop <= self.end:
                self._hear_farewell(self.buffer[start:stop])
            return self._across_buffers()
        self.position = stop
        self.sequence = (self.sequence + 1) & 0xFF
        data = self.buffer[start:stop]
        if data[0] == ERROR:
            self.settle()
            err.raise_mysql_exception(data)
        return data

    def settle(self) -> None:
        """Tell the connection and its reader how far we are; may be called again after an interruption."""
        self.connection._next_seq_id = self.sequence
        position, self.position = self.position, 0
        if position:
            self.buffer = self.reader.data = self.buffer[position:]
            self.end -= position

    def _hear_farewell(self, data: bytes) -> None:
        """Raise what the server said before it closed the connection; PyMySQL would show a lost one."""
        if len(data) > 3 and data[0] == ERROR and data[1] | data[2] << 8 in _FAREWELLS:
            self.settle()
            self.connection._force_close()
            err.raise_mysql_exception(data)

    def _fill(self) -> None:
        self.settle()
        self.buffer = self.connection._peek()
        self.end = len(self.buffer)

    def _across_buffers(self) -> bytes:
        """Read one packet PyMySQL's way: it does not fit, or something is wrong with it."""
        self.settle()
        try:
            data: bytes = self.connection._read_packet().get_all_data()
        finally:
            self.sequence = self.connection._next_seq_id
            self.buffer = b""
            self.end = 0
        return data
