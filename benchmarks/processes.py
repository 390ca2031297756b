"""Running peers, each in a process of its own that may crash or hang without harm to the others."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Self

_STARTING = 60.0  # seconds


class PeerError(Exception):
    """Tell what went wrong in a peer's process, which goes on."""


class PeerGone(PeerError):
    """Tell that a peer's process ended, or was ended because it did not answer."""


class Worker:
    """One peer's process. Started when it is first asked, and again after it is gone."""

    def __init__(self, peer: str, label: str, path: str | None) -> None:
        self.peer, self.label = peer, label
        self.path = path
        self.patience = 30.0  # seconds that its pool's callers wait, from the next start
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._errors: Any = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def ask(self, order: str, timeout: float, **arguments: Any) -> Any:
        """Give an order and return its result; raise PeerError, or PeerGone after `timeout` seconds."""
        self.start()
        self.send(order, **arguments)
        return self.answer(timeout)

    def send(self, order: str, **arguments: Any) -> None:
        """Give an order without waiting for its result."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([order, arguments]).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            words = self._last_words()
            self.end()
            raise PeerGone(f"ended: {words}") from None

    def answer(self, timeout: float) -> Any:
        """Wait for the result of the order that was given."""
        line = self._read_line(timeout)
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer["result"]

    def start(self) -> Any:
        """Start the process unless it runs; return the versions of what it runs."""
        if self._process is not None:
            return None
        # A hash seed of its own would give each process dictionaries of another shape.
        environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"}
        environment["BENCHMARK_PATIENCE"] = str(self.patience)
        if self.path:
            environment["PYTHONPATH"] = self.path
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  end() closes it
        self._unread = b""
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("worker.py")), self.peer, self.label],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            return self.answer(_STARTING)
        except PeerError:
            self.end()
            raise

    def kill(self) -> None:
        """Kill the process and what it has started; whoever waits for its answer sees that. For another thread."""
        process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill the process and forget it."""
        self.kill()
        process, self._process = self._process, None
        if process is None:
            return
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        self._errors.close()

    def _read_line(self, timeout: float) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        deadline = time.monotonic() + timeout
        while b"\n" not in self._unread:
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self.end()
                raise PeerGone(f"hung: no answer within {timeout:.0f} s")
            more = os.read(pipe, 65536)
            if not more:
                words = self._last_words()
                self.end()
                raise PeerGone(f"ended: {words}")
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _last_words(self) -> str:
        """Return the last line that the process wrote, or how it ended."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return said[-1][:300] if said else f"status {self._process.returncode}"
