"""What goes over the wire between a client and a server, counted as a proxy sees it."""

from __future__ import annotations

import collections
import dataclasses
import socket
from typing import Any

_SSL_REQUEST_SIZE, _CLIENT_SSL = 32, 0x800


class Packets:
    """Counts packets in a stream: three bytes of length, one of sequence number, the body.

    https://mariadb.com/kb/en/0-packet/
    """

    def __init__(self) -> None:
        self._header = b""
        self._left = 0  # bytes of the body that are still to come
        self.first: bytes | None = None  # as much of the first one's body as came with its header

    def feed(self, data: bytes) -> int:
        """Return how many packets this begins."""
        begun = 0
        while data:
            if self._left:
                skipped = min(self._left, len(data))
                self._left -= skipped
                data = data[skipped:]
                continue
            wanted = 4 - len(self._header)
            self._header += data[:wanted]
            data = data[wanted:]
            if len(self._header) == 4:
                self._left = int.from_bytes(self._header[:3], "little")
                self._header = b""
                begun += 1
                if self.first is None:
                    self.first = data[: self._left]
        return begun


class Link:
    """One client's connection."""

    def __init__(self) -> None:
        self.packets = {True: Packets(), False: Packets()}
        self.encrypted = False

    def feed(self, to_server: bool, data: bytes) -> int:
        """Return how many packets this begins; none once the connection is encrypted."""
        if self.encrypted:
            return 0
        found = self.packets[to_server]
        was_new = found.first is None
        begun = found.feed(data)
        if to_server and was_new and found.first is not None:
            flags = int.from_bytes(found.first[:4], "little")
            self.encrypted = len(found.first) == _SSL_REQUEST_SIZE and bool(flags & _CLIENT_SSL)
        return begun


@dataclasses.dataclass(eq=False)
class Way:
    """One direction of a connection, and what is on its way: when to deliver, and what (nothing: the end)."""

    source: socket.socket
    sink: socket.socket
    to_server: bool
    link: Link
    extra: float  # seconds that the next chunk takes besides
    stalled: bool = False
    chunks: collections.deque[tuple[float, bytes]] = dataclasses.field(default_factory=collections.deque)


class Tally:
    """Counts over all connections.

    A round trip is waited for when the client sends nothing more before it is delivered. So, provided that a delivery
    takes long beside what the client does between two packets, a round trip was waited for whenever a client that has
    just been delivered something sends again, on whichever connection.
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.connections = 0
        self._bytes = {True: 0, False: 0}
        self._packets = {True: 0, False: 0}
        self._waits = 0
        self._encrypted = False
        self._delivered = False

    def count(self, way: Way, data: bytes) -> None:
        """Note what a client has just sent, or what it has just been delivered."""
        if not data:
            return
        self._bytes[way.to_server] += len(data)
        self._packets[way.to_server] += way.link.feed(way.to_server, data)
        self._encrypted |= way.link.encrypted
        self._waits += way.to_server and self._delivered
        self._delivered = not way.to_server

    def take(self) -> dict[str, Any]:
        """Return what was counted, and begin again."""
        found = {
            "connections": self.connections,
            "bytes_to_server": self._bytes[True],
            "bytes_to_client": self._bytes[False],
            "packets_to_server": None if self._encrypted else self._packets[True],
            "packets_to_client": None if self._encrypted else self._packets[False],
            "waits": self._waits,
        }
        self._clear()
        return found
