"""Private MariaDB or MySQL servers for the demo and the tests, gone without a trace afterwards.

The server's parent is not the caller but a guard, see throwaway_guard.py.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import pymysql

from . import throwaway_guard
from .throwaway_guard import DATABASE, USER, Order, ThrowawayError, log_tail

__all__ = ["ServerNotFound", "ThrowawayError", "ThrowawayServer", "find_server"]

_NAMES = ("mariadbd", "mysqld")
_SYSTEM_FOLDERS = (
    *("/usr/sbin", "/usr/local/sbin", "/usr/libexec", "/usr/local/libexec", "/usr/bin", "/usr/local/bin"),
    *("/usr/local/mysql/bin", "/opt/homebrew/bin", "/home/linuxbrew/.linuxbrew/bin"),
    *("/opt/homebrew/opt/mariadb*/bin", "/opt/homebrew/opt/mysql*/bin"),
    *("/usr/local/opt/mariadb*/bin", "/usr/local/opt/mysql*/bin"),
)
_PORT_ATTEMPTS = 3


class ServerNotFound(ThrowawayError):
    """Tell that no server program is installed, and what to install."""


def find_server() -> str:
    """Return a server program's path, MariaDB before MySQL; raise ServerNotFound if there is none."""
    listed = [folder for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if folder]
    known = [folder for pattern in _SYSTEM_FOLDERS for folder in sorted(glob.glob(pattern))]
    for name in _NAMES:
        if found := shutil.which(name, path=os.pathsep.join(listed + known)):
            return os.path.abspath(found)
    raise ServerNotFound(
        "no MariaDB or MySQL server program (mariadbd or mysqld) on PATH, in /usr/sbin, /usr/local/sbin,"
        " /usr/libexec or Homebrew's folders; install one (Debian, Ubuntu: apt-get install"
        " mariadb-server-core; Fedora: dnf install mariadb-server; macOS: brew install mariadb)"
    )


class ThrowawayServer:
    """Run a private server on 127.0.0.1 and on a unix socket for as long as the `with` block lasts.

    `options` are added to the server's command line. There are one user, with all rights and a random
    password, and an empty database `tests`. Entering blocks until the server answers (a second for
    MariaDB); if it does not within `start_timeout` seconds, ThrowawayError comes with the end of its
    log. Leaving blocks until all is gone; a server that does not stop within `stop_timeout` seconds is
    killed. Not for Windows.
    """

    directory: str
    password: str
    pid: int
    port: int
    unix_socket: str

    def __init__(self, *, options: Sequence[str] = (), start_timeout: float = 60.0, stop_timeout: float = 5.0) -> None:
        self._options = tuple(options)
        self._start_timeout = start_timeout
        self._stop_timeout = stop_timeout
        self._guard: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._owner = 0
        self.host = "127.0.0.1"
        self.port = 0
        self.unix_socket = ""
        self.user = USER
        self.password = ""
        self.database = DATABASE
        self.directory = ""
        self.pid = 0

    def __repr__(self) -> str:
        state = f"pid={self.pid} at {self.host}:{self.port}" if self._guard else "not running"
        return f"<ThrowawayServer {state}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def kwargs(self, **overrides: Any) -> dict[str, Any]:
        """Return keyword arguments for `connect()` over TCP."""
        own = {name: getattr(self, name) for name in ("host", "port", "user", "password", "database")}
        return own | overrides

    def dsn(self, **query: object) -> str:
        """Return the server's DSN, password included; `query` is appended to it."""
        tail = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in query.items())
        address = f"mysql://{self.user}:{self.password}@{self.host}:{self.port}/{self.database}"
        return f"{address}?{tail}" if tail else address

    def start(self) -> None:
        """Start the server and block until it answers; on failure nothing is left behind."""
        if self._guard is not None:
            raise ThrowawayError("this throwaway server is running already")
        if os.name != "posix":
            raise ThrowawayError("a throwaway server needs a POSIX system; give the DSN of a running server")
        binary = find_server()
        deadline = time.monotonic() + self._start_timeout
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            try:
                self._spawn(binary)
                self._await_answer(deadline)
                return
            except _PortTaken:
                self.stop()
                if attempt == _PORT_ATTEMPTS:
                    raise ThrowawayError("other programs took each port tried for the server") from None
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """Stop the server and block until the guard has removed everything; harmless when nothing runs."""
        guard = self._guard
        if guard is None or self._owner != os.getpid():
            return  # after a fork the server is still the parent's
        assert guard.stdin is not None
        assert guard.stdout is not None
        guard.stdin.close()
        try:
            guard.wait(self._stop_timeout + 10.0)
        except subprocess.TimeoutExpired:
            guard.kill()
            guard.wait()
        if guard.returncode < 0 and self.directory:
            # The guard itself was killed: on Linux the server died with it, elsewhere it is still there.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, signal.SIGKILL)
            shutil.rmtree(self.directory, ignore_errors=True)
        guard.stdout.close()
        self._guard = None
        self._unread = b""
        self.port, self.unix_socket, self.password, self.directory, self.pid = 0, "", "", "", 0

    def _spawn(self, binary: str) -> None:
        self._owner = os.getpid()
        order = Order(self._owner, binary, self._options, self._stop_timeout)
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", os.path.abspath(throwaway_guard.__file__), json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _await_answer(self, deadline: float) -> None:
        while not self.pid:
            self._take_report(deadline)
        while not self._listens():
            self._take_report(deadline, wait=0.02)
        # The unix socket first: behind it stands this server and no other, and on MySQL a login there lets
        # caching_sha2_password accept later ones over TCP without TLS.
        for address in ({"unix_socket": self.unix_socket}, {}):
            while not self._answers(address, deadline):
                self._take_report(deadline, wait=0.02)

    def _listens(self) -> bool:
        # PyMySQL leaves its own socket open when a unix socket refuses, so it is not used to find out.
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(self.unix_socket) == 0

    def _answers(self, address: dict[str, Any], deadline: float) -> bool:
        left = max(0.1, deadline - time.monotonic())
        arguments = self.kwargs(connect_timeout=left, read_timeout=left, ssl_disabled=True, **address)
        try:
            pymysql.connect(**arguments).close()
        except pymysql.err.OperationalError as error:
            if error.args[0] in (1044, 1045, 1698):
                raise ThrowawayError(f"the throwaway server refuses its own user: {error.args[1]}") from None
            return False
        return True

    def _take_report(self, deadline: float, wait: float | None = None) -> None:
        """Take a report of the guard, waiting at most `wait` seconds; raise if it is bad, or time over."""
        assert self._guard is not None
        assert self._guard.stdout is not None
        left = deadline - time.monotonic()
        if left <= 0:
            tail = log_tail(os.path.join(self.directory, "log"), self.password) if self.directory else ""
            raise ThrowawayError(f"the throwaway server did not answer within {self._start_timeout} s{tail}")
        if b"\n" not in self._unread:
            limit = left if wait is None else min(left, wait)
            if not select.select([self._guard.stdout], [], [], limit)[0]:
                return
            more = os.read(self._guard.stdout.fileno(), 65536)
            if not more:
                raise ThrowawayError("the guard of the throwaway server has died")
            self._unread += more
        line, newline, rest = self._unread.partition(b"\n")
        if not newline:
            return
        self._unread = rest
        report = json.loads(line)
        if report.pop("port_taken", False):
            raise _PortTaken
        if "error" in report:
            raise ThrowawayError(report["error"])
        for name, value in report.items():
            setattr(self, name, value)


class _PortTaken(Exception):
    """Another program took the port between our choice and the server's start."""
