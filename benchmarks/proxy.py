"""A TCP proxy that delays and counts: `python proxy.py HOST PORT SECONDS [OPENING]` runs until its stdin is closed.

It prints its port. OPENING is how many seconds more a server's first words take, so that connecting is slow and nothing
else. A line on stdin is an order: `tally` prints what was counted since the last tally, `stall` has the present
connections fall silent for good, with no end that either side could see, while new ones work.

A process of its own, so that it never holds the client's GIL; one thread, so that nothing in it waits for a lock.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from wire import Link, Tally, Way

_CHUNK = 64 * 1024
_ENDING = 5.0  # seconds


class Process:
    """A running proxy."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self._process = process
        self.pid = process.pid
        self.port = int(process.stdout.readline())

    def tally(self) -> dict[str, Any]:
        """Return what was counted since the last time. Does not wait for what is still on its way."""
        return dict(self._ask("tally"))

    def stall(self) -> None:
        """Let the present connections fall silent."""
        self._ask("stall")

    def _ask(self, order: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{order}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@contextlib.contextmanager
def running(host: str, port: int, delay: float, opening: float = 0.0) -> Iterator[Process]:
    """Run a proxy process that delivers everything `delay` s later, each way."""
    line = [sys.executable, __file__, host, str(port), str(delay), str(opening)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    # A session of its own: Ctrl-C is for the caller, who closes stdin.
    with subprocess.Popen(line, text=True, start_new_session=True, **pipes) as process:
        try:
            yield Process(process)
        finally:
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
            try:
                process.wait(_ENDING)
            except subprocess.TimeoutExpired:
                process.kill()


class Forwarder:
    """Forwards connections to one address."""

    def __init__(self, target: tuple[str, int], delay: float, opening: float) -> None:
        self._target, self._delay, self._opening = target, delay, opening
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._ways: dict[socket.socket, Way] = {}
        self._tally = Tally()
        self.port = self._listener.getsockname()[1]

    def serve(self) -> None:
        """Forward until stdin is closed."""
        while True:
            due = min((way.chunks[0][0] for way in self._ways.values() if way.chunks), default=None)
            wait = None if due is None else max(0.0, due - time.monotonic())
            listening = [source for source, way in self._ways.items() if not way.stalled]
            ready, _, _ = select.select([sys.stdin.fileno(), self._listener, *listening], [], [], wait)
            now = time.monotonic()
            for source in ready:
                if source is self._listener:
                    self._connect()
                elif source in self._ways:
                    self._receive(self._ways[source], now)
                elif not self._obey():
                    return
            for way in list(self._ways.values()):
                while way.chunks and way.chunks[0][0] <= now:
                    self._deliver(way, way.chunks.popleft()[1])

    def _obey(self) -> bool:
        orders = os.read(sys.stdin.fileno(), _CHUNK)
        for order in orders.split():
            if order == b"stall":
                for way in self._ways.values():
                    way.stalled = True
                    way.chunks.clear()
            print(json.dumps(self._tally.take() if order == b"tally" else None), flush=True)
        return bool(orders)

    def _connect(self) -> None:
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection(self._target)
        except OSError:
            client.close()
            return
        link = Link()
        self._tally.connections += 1
        for source, sink, to_server in ((client, server, True), (server, client, False)):
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._ways[source] = Way(source, sink, to_server, link, 0.0 if to_server else self._opening)

    def _receive(self, way: Way, now: float) -> None:
        try:
            data = way.source.recv(_CHUNK)
        except OSError:
            data = b""
        if way.to_server:
            self._tally.count(way, data)
        way.chunks.append((now + self._delay + way.extra, data))
        way.extra = 0.0

    def _deliver(self, way: Way, data: bytes) -> None:
        """Hand data on; the end of one direction is the end of both."""
        if data:
            if not way.to_server:
                self._tally.count(way, data)
            with contextlib.suppress(OSError):
                way.sink.sendall(data)
            return
        for side in (way.source, way.sink):
            self._ways.pop(side, None)
            side.close()


if __name__ == "__main__":
    forwarder = Forwarder((sys.argv[1], int(sys.argv[2])), float(sys.argv[3]), float((*sys.argv, 0.0)[4]))
    print(forwarder.port, flush=True)
    forwarder.serve()
