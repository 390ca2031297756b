"""A TCP proxy that delays: `python proxy.py HOST PORT SECONDS` prints its port and runs until its stdin is closed.

A process of its own, so that it never holds the client's GIL; one thread, so that nothing in it waits for a lock.
"""

from __future__ import annotations

import collections
import contextlib
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

_CHUNK = 64 * 1024


class Way(NamedTuple):
    """One direction of a connection, and what is on its way: when to deliver, and what (nothing: the end)."""

    source: socket.socket
    sink: socket.socket
    chunks: collections.deque[tuple[float, bytes]]


class Process(NamedTuple):
    """A running proxy."""

    pid: int
    port: int


@contextlib.contextmanager
def running(host: str, port: int, delay: float) -> Iterator[Process]:
    """Run a proxy process that delivers everything `delay` s later, each way."""
    line = [sys.executable, __file__, host, str(port), str(delay)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Process(process.pid, int(process.stdout.readline()))
        finally:
            assert process.stdin is not None
            process.stdin.close()


def serve(host: str, port: int, delay: float) -> None:
    """Forward connections until stdin is closed."""
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    ways: dict[socket.socket, Way] = {}
    while True:
        due = min((way.chunks[0][0] for way in ways.values() if way.chunks), default=None)
        wait = None if due is None else max(0.0, due - time.monotonic())
        ready, _, _ = select.select([sys.stdin, listener, *ways], [], [], wait)
        now = time.monotonic()
        for source in ready:
            if source is sys.stdin:
                return
            if source is listener:
                _connect(listener, (host, port), ways)
            else:
                ways[source].chunks.append((now + delay, _received(source)))
        for way in list(ways.values()):
            while way.chunks and way.chunks[0][0] <= now:
                _deliver(way, way.chunks.popleft()[1], ways)


def _connect(listener: socket.socket, target: tuple[str, int], ways: dict[socket.socket, Way]) -> None:
    client, _ = listener.accept()
    server = socket.create_connection(target)
    for source, sink in ((client, server), (server, client)):
        source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ways[source] = Way(source, sink, collections.deque())


def _received(source: socket.socket) -> bytes:
    try:
        return source.recv(_CHUNK)
    except OSError:
        return b""


def _deliver(way: Way, data: bytes, ways: dict[socket.socket, Way]) -> None:
    """Hand data on; the end of one direction is the end of both."""
    if data:
        with contextlib.suppress(OSError):
            way.sink.sendall(data)
        return
    for side in (way.source, way.sink):
        ways.pop(side, None)
        side.close()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
