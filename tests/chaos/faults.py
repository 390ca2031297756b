"""A TCP proxy that breaks connections in the ways that networks, balancers and dying hosts do.

One thread serves all links and does what its callers ask for between two looks at its sockets. So nothing in it needs a
lock, and a fault begins and ends between two chunks.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import enum
import queue
import random
import re
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, Self, TypeVar

HOST = "127.0.0.1"
CHUNK = 64 * 1024
RETRY = 0.001  # seconds until a full socket is tried again
PATIENCE = 10.0  # seconds that a caller waits for the proxy's thread
TAIL = 64  # bytes kept of each chunk, so that a tag is found that two chunks share

T = TypeVar("T")


class Cut(enum.Enum):
    """How a link ends, in place of a chunk."""

    FIN = enum.auto()
    RST = enum.auto()  # drops what the other side has not read yet


Twist = Callable[[bytes], "list[bytes | Cut] | None"]  # what becomes of a chunk; None: leave it, and wait for the next


@dataclasses.dataclass(eq=False)
class Way:
    """One direction of a link, and what is on its way: when to deliver, and what."""

    source: socket.socket
    sink: socket.socket
    chunks: collections.deque[tuple[float, bytes | Cut]] = dataclasses.field(default_factory=collections.deque)
    twist: Twist | None = None
    tail: bytes = b""


@dataclasses.dataclass(eq=False)
class Link:
    """One client's connection through the proxy."""

    client: socket.socket
    server: socket.socket
    port: int  # the client's
    is_dead: bool = False  # the client may send what it likes and hears nothing
    is_closed: bool = False

    def __post_init__(self) -> None:
        self.up = Way(self.client, self.server)
        self.down = Way(self.server, self.client)


class FaultyProxy:
    """Listens on `host`:`port` and forwards to the target; a context manager.

    Any thread may call any method at any time; each returns when what it asked for holds. `tag` is a pattern with one
    group: how often each text of it was sent to the server is in `seen`.
    """

    host = HOST

    def __init__(self, host: str, port: int, tag: re.Pattern[bytes] | None = None) -> None:
        self.target = (host, port)
        self.tag = tag
        self.seen: collections.Counter[bytes] = collections.Counter()
        self.accepted = 0
        self.links: list[Link] = []
        self._ways: dict[socket.socket, tuple[Link, Way]] = {}
        self._orders: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._stalled = self._refusing = self._closing = False
        self._delay = self._drip = 0.0
        self._greet: bytes | None = None  # what new links are told by whoever answers instead of a server
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._listener = self._bound(0)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, name="faulty proxy", daemon=True)

    def __enter__(self) -> Self:
        self._listener.listen(1024)
        for side in (self._listener, self._wake_reader):
            self._selector.register(side, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._end)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the proxy does not end"
        self._wake_reader.close()
        self._wake_writer.close()

    # What may go wrong

    def cut(self, links: Iterable[Link] | None = None, how: Cut = Cut.FIN) -> None:
        """Close links (all of them)."""
        self._do(lambda: [self._drop(link, how) for link in self._chosen(links)])

    def twist(self, links: Iterable[Link] | None, *, up: Twist | None = None, down: Twist | None = None) -> None:
        """Have the next chunk of a direction replaced by what a function makes of it."""

        def set_twists() -> None:
            for link in self._chosen(links):
                link.up.twist, link.down.twist = up or link.up.twist, down or link.down.twist

        self._do(set_twists)

    def half_open(self, links: Iterable[Link] | None = None, *, tell_server: bool = True) -> None:
        """Leave clients alone on their links: nothing that they send arrives, and nothing comes back."""

        def kill() -> None:
            for link in self._chosen(links):
                link.is_dead = True
                link.up.chunks.clear()
                link.down.chunks.clear()
                if tell_server:
                    self._close_side(link.server)

        self._do(kill)

    def stall(self) -> None:
        """Forward nothing and accept nobody; what is sent meanwhile is delivered after `heal()`."""
        self._do(lambda: self._set_stalled(True))

    def delay(self, seconds: float) -> None:
        """Deliver everything that comes from now on so much later, each way."""
        self._do(lambda: setattr(self, "_delay", seconds))

    def drip(self, seconds: float) -> None:
        """Deliver a byte at a time, each so much later than the one before."""
        self._do(lambda: setattr(self, "_drip", seconds))

    def refuse(self) -> None:
        """Refuse new connections; links that are open stay."""
        self._do(lambda: self._set_refusing(True))

    def answer(self, greeting: bytes) -> None:
        """Answer new connections like something that is no database server; with nothing: keep them waiting."""
        self._do(lambda: setattr(self, "_greet", greeting))

    def heal(self, *, end_dead: bool = True) -> None:
        """End every fault; links that were left half open stay so until `end_dead`."""

        def undo() -> None:
            self._delay = self._drip = 0.0
            self._greet = None
            self._set_stalled(False)
            self._set_refusing(False)
            for link in list(self.links):
                link.up.twist = link.down.twist = None
                if link.is_dead and end_dead:
                    self._drop(link, Cut.RST)

        self._do(undo)

    # What is there

    def sample(self, chance: random.Random, share: float) -> list[Link]:
        """Choose so many of the links, at least one where there is any."""
        links = self._do(lambda: [link for link in self.links if not link.is_dead])
        return chance.sample(links, min(len(links), max(1, round(share * len(links)))))

    def link_of(self, connection: Any) -> Link:
        """Find the link of a client's connection."""
        port = connection._sock.getsockname()[1]
        found = self._do(lambda: [link for link in self.links if link.port == port])
        return found[0]

    # The thread

    def _do(self, order: Callable[[], T]) -> T:
        done: Future[T] = Future()
        self._orders.put((order, done))
        self._wake_writer.send(b"x")
        return done.result(PATIENCE)

    def _run(self) -> None:
        while not self._closing:
            due = min((way.chunks[0][0] for _, way in self._ways.values() if way.chunks), default=None)
            wait = None if due is None or self._stalled else max(0.0, due - time.monotonic())
            for key, _ in self._selector.select(wait):
                if key.fileobj is self._wake_reader:
                    self._obey()
                elif key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj in self._ways:  # else closed a moment ago
                    self._receive(*self._ways[key.fileobj])
            if not self._stalled:
                now = time.monotonic()
                for link, way in list(self._ways.values()):
                    self._deliver(link, way, now)

    def _obey(self) -> None:
        self._wake_reader.recv(4096)
        while not self._orders.empty():
            order, done = self._orders.get()
            try:
                done.set_result(order())
            except BaseException as error:
                done.set_exception(error)

    def _accept(self) -> None:
        try:
            client, (_, port) = self._listener.accept()
        except OSError:
            return
        self.accepted += 1
        greeting, server = self._greet, socket.socket()
        if greeting:
            with contextlib.suppress(OSError):
                client.sendall(greeting)
        elif greeting is None:
            try:
                server.settimeout(1.0)
                server.connect(self.target)
            except OSError:
                client.close()
                server.close()
                return
        link = Link(client, server, port)
        link.is_dead = greeting is not None
        self.links.append(link)
        for way in (link.up, link.down):
            way.source.setblocking(False)
            way.source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._ways[way.source] = (link, way)
        self._selector.register(client, selectors.EVENT_READ)
        if greeting is None:
            self._selector.register(server, selectors.EVENT_READ)
        if greeting:
            link.down.chunks.append((0.0, Cut.FIN))

    def _receive(self, link: Link, way: Way) -> None:
        try:
            data = way.source.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if link.is_dead:
            if not data and way is link.up:
                self._drop(link)
            elif not data:
                self._close_side(link.server)
            return
        if way is link.up and self.tag is not None:
            self._count_tags(way, data)
        twisted = way.twist(data) if way.twist is not None and data else None
        if twisted is not None:
            way.twist = None
        due = time.monotonic() + self._delay
        way.chunks.extend((due, chunk) for chunk in ([data or Cut.FIN] if twisted is None else twisted))

    def _count_tags(self, way: Way, data: bytes) -> None:
        assert self.tag
        text = way.tail + data
        for found in self.tag.finditer(text):
            if found.end() > len(way.tail):
                self.seen[found[1]] += 1
        way.tail = text[-TAIL:]

    def _deliver(self, link: Link, way: Way, now: float) -> None:
        while way.chunks and way.chunks[0][0] <= now and not link.is_closed:
            _, chunk = way.chunks.popleft()
            if isinstance(chunk, Cut):
                self._drop(link, chunk)
                return
            try:
                sent = way.sink.send(chunk[:1] if self._drip else chunk)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._drop(link)
                return
            if sent < len(chunk):
                way.chunks.appendleft((now + (self._drip or RETRY), chunk[sent:]))
                return

    # Its parts

    def _chosen(self, links: Iterable[Link] | None) -> list[Link]:
        return [link for link in (self.links if links is None else links) if not link.is_closed]

    def _set_stalled(self, stalled: bool) -> None:
        if stalled == self._stalled:
            return
        self._stalled = stalled
        for side in [*self._ways, *([] if self._refusing else [self._listener])]:
            if not stalled:
                self._selector.register(side, selectors.EVENT_READ)
            elif side in self._selector.get_map():
                self._selector.unregister(side)

    def _set_refusing(self, refusing: bool) -> None:
        if refusing == self._refusing:
            return
        self._refusing = refusing
        if refusing:
            if not self._stalled:
                self._selector.unregister(self._listener)
            self._listener.close()
            # Bound and not listening: connections are refused and nobody else gets the port.
            self._listener = self._bound(self.port)
            return
        self._listener.listen(1024)
        if not self._stalled:
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _drop(self, link: Link, how: Cut = Cut.FIN) -> None:
        if link.is_closed:
            return
        link.is_closed = True
        self.links.remove(link)
        for side in (link.client, link.server):
            if how is Cut.RST:
                with contextlib.suppress(OSError):
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._close_side(side)

    def _close_side(self, side: socket.socket) -> None:
        self._ways.pop(side, None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(side)
        side.close()

    def _end(self) -> None:
        self._closing = True
        for link in list(self.links):
            self._drop(link)
        self._selector.close()
        self._listener.close()

    @staticmethod
    def _bound(port: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.setblocking(False)
        return listener


# What becomes of a chunk


def cut_within(kept: int, how: Cut = Cut.FIN) -> Twist:
    """Let the first bytes through, and nothing after them."""
    return lambda data: [data[: min(kept, len(data) - 1)], how]


def replace(*by: bytes | Cut) -> Twist:
    return lambda _: list(by)


def when(found: bytes, then: Callable[[], object]) -> Twist:
    """Do something, in the proxy's thread, as soon as a chunk contains a text; the chunk goes on."""

    def watch(data: bytes) -> list[bytes | Cut] | None:
        if found not in data:
            return None
        then()
        return [data]

    return watch


def junk(chance: random.Random) -> bytes:
    """Make bytes that no client may take for a reply: their sequence number is wrong in any place of a reply."""
    body = chance.randbytes(chance.randrange(1, 400))
    return chance.randbytes(3) + bytes([chance.randrange(200, 256)]) + body


@contextlib.contextmanager
def silent_address() -> Iterator[int]:
    """Give a port of this machine that answers no attempt to connect: the queue behind it is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((HOST, 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        with socket.socket() as probe:
            probe.settimeout(0.1)
            with contextlib.suppress(TimeoutError):
                probe.connect(listener.getsockname())
                raise AssertionError("this system answers although the queue is full")
        yield listener.getsockname()[1]
