"""A TCP proxy between client and database server: makes networks slow, silent or broken; counts what passes.

Each direction of a link has a thread that reads and one that writes, so that a delay shifts the stream in
time and leaves its throughput alone. What is counted has reached the proxy's far side: a command counts just
before it is sent to the server, a packet of the server's just before it is sent to the client.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import selectors
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any, Self

HOST = "127.0.0.1"
CHUNK = 64 * 1024
KEPT = 64 * 1024  # of a command's payload; the rest is only counted
PRECISE = 0.02  # seconds that are slept, not waited for: exact, but nothing can end them early
COM_QUERY = 3
CLIENT_SSL = 0x800
SSL_REQUEST_SIZE = 32


# When to deliver, and what: nothing means the end of the stream.
Chunks = queue.SimpleQueue[tuple[float, bytes]]


class Packets:
    """Cuts one direction of a MySQL conversation into (sequence number, size, first bytes)."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skip = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Give each packet as soon as its end, or as much of it as is kept, is there."""
        view = memoryview(data)
        while view or len(self._buffer) >= 4:
            skipped = min(self._skip, len(view))
            self._skip -= skipped
            view = view[skipped:]
            wanted = 4
            if len(self._buffer) >= 4:
                wanted += min(self._size(), KEPT)
            taken = max(0, min(wanted - len(self._buffer), len(view)))
            self._buffer += view[:taken]
            view = view[taken:]
            if len(self._buffer) >= 4 and len(self._buffer) == 4 + min(self._size(), KEPT):
                size, number, kept = self._size(), self._buffer[3], bytes(self._buffer[4:])
                self._buffer.clear()
                self._skip = size - len(kept)
                yield number, size, kept
            elif not view:
                return

    def _size(self) -> int:
        return int.from_bytes(self._buffer[:3], "little")


@dataclasses.dataclass(eq=False)
class Link:
    """One client's connection through the proxy."""

    client: socket.socket
    client_port: int
    server: socket.socket
    commands: list[tuple[int, bytes]] = dataclasses.field(default_factory=list)
    server_packets: int = 0
    bytes_to_server: int = 0
    bytes_to_client: int = 0
    encrypted: bool = False
    closed: bool = False
    _from_client: Packets = dataclasses.field(default_factory=Packets)
    _from_server: Packets = dataclasses.field(default_factory=Packets)
    _last_number: int = 0

    def count_to_server(self, data: bytes) -> list[tuple[int, bytes]]:
        """Count bytes and give the commands that they complete."""
        self.bytes_to_server += len(data)
        commands: list[tuple[int, bytes]] = []
        if self.encrypted:
            return commands
        for number, size, kept in self._from_client.feed(data):
            if number == 1 and size == SSL_REQUEST_SIZE and struct.unpack_from("<I", kept)[0] & CLIENT_SSL:
                self.encrypted = True
                break
            # Number 0 starts a command, unless a long LOAD DATA has come round to it.
            if number == 0 and size and self._last_number != 255:
                commands.append((kept[0], kept[1:]))
            self._last_number = number
        self.commands += commands
        return commands

    def count_to_client(self, data: bytes) -> int:
        """Count bytes and give how many packets they complete."""
        self.bytes_to_client += len(data)
        if self.encrypted:
            return 0
        packets = sum(1 for _ in self._from_server.feed(data))
        self.server_packets += packets
        self._last_number = 0
        return packets

    def break_off(self, reset: bool) -> None:
        """End all waiting on both sockets; the link's threads close them."""
        self.closed = True
        for side in (self.client, self.server):
            with contextlib.suppress(OSError):
                if reset:
                    # Closing with nothing to linger for sends RST, provided that no FIN went before.
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    side.shutdown(socket.SHUT_RD)
                else:
                    side.shutdown(socket.SHUT_RDWR)


class Proxy:
    """Listens on `host`:`port` and forwards to the target; a context manager.

    Any thread may call any method at any time. Counts are over all links since the last `clear()`.
    """

    host = HOST

    def __init__(self, target_host: str, target_port: int) -> None:
        self.target = (target_host, target_port)
        self.links: list[Link] = []
        self.commands: list[tuple[int, bytes]] = []
        self.connections = 0
        self.server_packets = 0
        self.bytes_to_server = 0
        self.bytes_to_client = 0
        self._delay = 0.0
        self._stalled = False
        self._closing = False
        self._state = threading.Condition()
        self._acceptor = threading.Thread(target=self._accept, name="proxy_accept", daemon=True)
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._listener = self._bound(0)
        self.port: int = self._listener.getsockname()[1]
        self._refusing = True

    def __enter__(self) -> Self:
        self.restore()
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What may go wrong

    def cut(self, *, reset: bool = False) -> None:
        """Close all links, return when they are closed; with `reset` by RST, dropping what is on its way."""
        with self._state:
            links = list(self.links)
            # RST cannot wake a thread that waits for a receiver with a full buffer; the second round can.
            for how, patience in ((reset, 1.0), (False, 5.0)):
                for link in links:
                    link.break_off(how)
                self._state.notify_all()
                if self._state.wait_for(lambda: not any(link in self.links for link in links), patience):
                    return
        raise AssertionError("a link does not close")

    def stall(self) -> None:
        """Stop forwarding and leave everything open: a network that has gone silent."""
        with self._state:
            self._stalled = True

    def delay(self, seconds: float) -> None:
        """Deliver everything that comes from now on so much later, each way."""
        with self._state:
            self._delay = seconds

    def refuse(self) -> None:
        """Refuse new connections; links that are open stay."""
        with self._state:
            if not self._refusing:
                self._refusing = True
                self._listener.close()
                # Bound and not listening: connections are refused and nobody else gets the port.
                self._listener = self._bound(self.port)
        self._wake_writer.send(b"x")

    def restore(self) -> None:
        """Undo `stall` and `refuse`; what was held back is delivered."""
        with self._state:
            self._stalled = False
            if self._refusing:
                self._refusing = False
                self._listener.listen(1024)
            self._state.notify_all()
        self._wake_writer.send(b"x")

    # What passed

    def clear(self) -> None:
        """Set all counts to nothing."""
        with self._state:
            self.commands.clear()
            self.connections = self.server_packets = self.bytes_to_server = self.bytes_to_client = 0
            for link in self.links:
                link.commands.clear()
                link.server_packets = link.bytes_to_server = link.bytes_to_client = 0

    def statements(self) -> list[str]:
        """List the texts of the COM_QUERY commands."""
        with self._state:
            return [payload.decode(errors="replace") for code, payload in self.commands if code == COM_QUERY]

    def link_of(self, connection: Any) -> Link:
        """Return the link of one of PyMySQL's connections."""
        port = connection._sock.getsockname()[1]
        with self._state:
            return next(link for link in reversed(self.links) if link.client_port == port)

    def close(self) -> None:
        """Cut everything and end all threads."""
        with self._state:
            self._closing = True
            self._state.notify_all()
        self._wake_writer.send(b"x")
        self._acceptor.join(10.0)
        assert not self._acceptor.is_alive(), "the proxy does not end"
        self.cut()
        for side in (self._listener, self._wake_reader, self._wake_writer):
            side.close()

    # Threads

    def _bound(self, port: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.setblocking(False)
        return listener

    def _accept(self) -> None:
        while True:
            with self._state:
                if self._closing:
                    return
                listener = None if self._refusing else self._listener
            with selectors.DefaultSelector() as ready:
                ready.register(self._wake_reader, selectors.EVENT_READ)
                with contextlib.suppress(ValueError, OSError):  # closed a moment ago by refuse()
                    if listener:
                        ready.register(listener, selectors.EVENT_READ)
                events = {key.fileobj for key, _ in ready.select()}
            if self._wake_reader in events:
                self._wake_reader.recv(64)
            elif listener:
                with contextlib.suppress(OSError):
                    client, (_, port) = listener.accept()
                    self._connect(client, port)

    def _connect(self, client: socket.socket, port: int) -> None:
        client.setblocking(True)
        try:
            server = socket.create_connection(self.target, 5.0)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        for side in (client, server):
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = Link(client, port, server)
        with self._state:
            self.links.append(link)
            self.connections += 1
        threading.Thread(target=self._serve, args=(link,), name="proxy_serve", daemon=True).start()

    def _serve(self, link: Link) -> None:
        """Run a link's two directions until both have ended, then close it."""
        ways = [
            threading.Thread(target=self._forward, args=(link, source, sink), name="proxy_forward", daemon=True)
            for source, sink in ((link.client, link.server), (link.server, link.client))
        ]
        for way in ways:
            way.start()
        for way in ways:
            way.join()
        link.client.close()
        link.server.close()
        with self._state:
            link.closed = True
            self.links.remove(link)
            self._state.notify_all()

    def _forward(self, link: Link, source: socket.socket, sink: socket.socket) -> None:
        chunks: Chunks = queue.SimpleQueue()
        reader = threading.Thread(target=self._read, args=(link, source, chunks), name="proxy_read", daemon=True)
        reader.start()
        try:
            self._write(link, sink, chunks)
        except OSError:
            # The far side is gone for good. So is the link, but what a client said before it went is still delivered:
            # a client that says goodbye and closes with replies unread goes by RST.
            if sink is link.server:
                link.break_off(reset=False)
            else:
                with contextlib.suppress(OSError):
                    source.shutdown(socket.SHUT_RD)
        reader.join()

    def _read(self, link: Link, source: socket.socket, chunks: Chunks) -> None:
        data = b"first"
        while data:
            # Not only the writer waits: a sender on a silent network gets stuck when the buffers are full.
            self._wait_flowing(link)
            try:
                data = source.recv(CHUNK)
            except OSError:
                data = b""
            chunks.put((time.monotonic() + self._delay, data))

    def _write(self, link: Link, sink: socket.socket, chunks: Chunks) -> None:
        while True:
            due, data = chunks.get()
            self._wait_due(link, due)
            self._wait_flowing(link)
            if link.closed:
                return
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            self._count(link, sink is link.server, data)
            sink.sendall(data)

    def _wait_due(self, link: Link, due: float) -> None:
        with self._state:
            if (wait := due - time.monotonic()) > 2 * PRECISE:
                self._state.wait_for(lambda: link.closed, wait - PRECISE)
        if (wait := due - time.monotonic()) > 0 and not link.closed:
            time.sleep(wait)

    def _wait_flowing(self, link: Link) -> None:
        if self._stalled:
            with self._state:
                self._state.wait_for(lambda: not self._stalled or link.closed or self._closing)

    def _count(self, link: Link, to_server: bool, data: bytes) -> None:
        with self._state:
            if to_server:
                self.commands += link.count_to_server(data)
                self.bytes_to_server += len(data)
            else:
                self.server_packets += link.count_to_client(data)
                self.bytes_to_client += len(data)
