"""The guard of a throwaway server: its parent, run as a script, with nothing but the standard library.

It makes the temporary directory, starts the server in it, and holds the reading end of a pipe whose writing end only
the caller has. When that pipe closes (`stop()`, an exception, SIGTERM, SIGKILL, a crash), it stops the server and
removes the directory. It has a session of its own, so that a Ctrl-C at the terminal does not reach it.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

DATABASE = "tests"
USER = "throwaway"

_SYSTEM_TABLES = ("system_tables.sql", "performance_tables.sql", "system_tables_data.sql")
_SOCKET_PATH_LIMIT = 100  # bytes; sun_path has 104 on macOS, 108 on Linux
_LOG_LINES = 12
_BOOT_TIMEOUT = 120.0
_PR_SET_PDEATHSIG = 1


class ThrowawayError(RuntimeError):
    """Tell why a private server could not be started."""


class Order(NamedTuple):
    """What the guard is told."""

    parent: int
    binary: str
    options: Sequence[str]
    stop_timeout: float


class _Layout(NamedTuple):
    """Where the files of one server are."""

    binary: str
    is_mariadb: bool
    directory: str
    share: str | None

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def command(self, *arguments: str) -> list[str]:
        """Return a command line that reads no option file and writes nothing outside the directory."""
        line = [self.binary, "--no-defaults"]
        if os.geteuid() == 0:
            line.append("--user=root")  # both servers refuse root unless told so
        line += [
            f"--basedir={os.path.dirname(os.path.dirname(self.binary))}",
            f"--datadir={self.path('data')}",
            f"--tmpdir={self.path('tmp')}",
            f"--secure-file-priv={self.path('tmp')}",
            "--skip-log-bin",
            "--innodb-buffer-pool-size=32M",
            "--innodb-log-file-size=8M" if self.is_mariadb else "--loose-innodb-redo-log-capacity=8M",
        ]
        if self.share:
            line += [f"--lc-messages-dir={self.share}", f"--character-sets-dir={self.share}/charsets"]
        return [*line, *arguments]


class _Told(Exception):
    """The guard was told to end: its pipe closed, its parent is gone, or a signal came."""


class _Guard:
    """Hold one server: start it, wait for its end or for the caller's, remove its directory."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.secret = secrets.token_urlsafe(24)
        self.child: subprocess.Popen[bytes] | None = None
        self.wake, wake_writer = os.pipe()
        os.set_blocking(wake_writer, False)
        signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    def run(self) -> None:
        with contextlib.suppress(_Told), _private_directory() as directory:
            try:
                self._serve(directory)
            except (ThrowawayError, OSError, subprocess.SubprocessError) as error:
                self._report(error=str(error).replace(self.secret, "***"))
            finally:
                self._end_child()

    def _serve(self, directory: str) -> None:
        layout = self._lay_out(directory)
        self._fill_data_directory(layout)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        options = [
            f"--port={port}",
            f"--socket={layout.path('s.sock')}",
            f"--pid-file={layout.path('pid')}",
            f"--init-file={layout.path('init.sql')}",
            "--bind-address=127.0.0.1",
            "--skip-name-resolve",
            *([] if layout.is_mariadb else ["--loose-mysqlx=OFF"]),
            *self.order.options,
        ]
        with open(layout.path("init.sql"), "w") as statements:
            statements.write(_accounts(self.secret))
        child = self._launch(layout, layout.command(*options))
        where = {"port": port, "unix_socket": layout.path("s.sock"), "directory": directory}
        self._report(pid=child.pid, password=self.secret, **where)
        self._wait(child)
        text = f"the throwaway server ended with status {child.returncode}{self._tail(layout)}"
        self._report(error=text, port_taken="already in use" in text)

    def _lay_out(self, directory: str) -> _Layout:
        binary = os.path.realpath(self.order.binary)
        line = [binary, "--no-defaults", "--version"]
        asked = subprocess.run(line, capture_output=True, text=True, timeout=30, check=False)
        if asked.returncode:
            raise ThrowawayError(f"{binary} does not run: {(asked.stderr or asked.stdout).strip()[-500:]}")
        base = glob.escape(os.path.dirname(os.path.dirname(binary)))
        names = ("mysql", "mariadb", "mysql-*", ".")
        folders = [folder for name in names for folder in glob.glob(f"{base}/share/{name}")]
        share = next((f for f in folders if os.path.isfile(f"{f}/english/errmsg.sys")), None)
        layout = _Layout(binary, "mariadb" in asked.stdout.lower(), directory, share)
        for name in ("data", "tmp"):
            os.mkdir(layout.path(name))
        return layout

    def _fill_data_directory(self, layout: _Layout) -> None:
        """Make the system tables, as mariadb-install-db does but without the programs that it calls."""
        if layout.is_mariadb:
            with open(layout.path("boot.sql"), "w") as script:
                script.write(_mariadb_tables(layout))
            child = self._launch(layout, layout.command("--bootstrap"), layout.path("boot.sql"))
        else:
            child = self._launch(layout, layout.command("--initialize-insecure"))
        self._wait(child, _BOOT_TIMEOUT)
        if child.returncode:
            raise ThrowawayError(f"{layout.binary} made no data directory{self._tail(layout)}")

    def _launch(self, layout: _Layout, line: list[str], source: str = os.devnull) -> subprocess.Popen[bytes]:
        with open(layout.path("log"), "ab") as log, open(source, "rb") as stdin:
            self.child = subprocess.Popen(
                line,
                stdin=stdin,
                stdout=log,
                stderr=log,
                cwd=layout.directory,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - the guard has no threads
            )
        return self.child

    def _wait(self, child: subprocess.Popen[bytes], limit: float = float("inf")) -> None:
        """Block until the child ends; raise _Told when the guard must end first."""
        deadline = time.monotonic() + limit
        while child.poll() is None:
            # Once a second for what no event tells: a process forked by the caller may keep the pipe open.
            ready, _, _ = select.select([0, self.wake], [], [], 1.0)
            signals = set(os.read(self.wake, 64)) if self.wake in ready else set()
            if 0 in ready or signals - {signal.SIGCHLD} or os.getppid() != self.order.parent:
                raise _Told
            if time.monotonic() > deadline:
                raise ThrowawayError(f"making the data directory took longer than {limit} s")

    def _end_child(self) -> None:
        if self.child is None or self.child.poll() is not None:
            return
        self.child.terminate()
        try:
            self.child.wait(self.order.stop_timeout)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()

    def _tail(self, layout: _Layout) -> str:
        return log_tail(layout.path("log"), self.secret)

    def _report(self, **fields: Any) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more
            os.write(1, json.dumps(fields).encode() + b"\n")


@contextlib.contextmanager
def _private_directory() -> Iterator[str]:
    directory = tempfile.mkdtemp(prefix="pooled-pymysql-")
    if len(os.fsencode(directory)) + len("/s.sock") > _SOCKET_PATH_LIMIT:
        os.rmdir(directory)
        directory = tempfile.mkdtemp(prefix="pooled-pymysql-", dir="/tmp")
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _die_with_parent() -> None:
    """Have Linux kill the server when the guard is killed; runs between fork and exec."""
    if sys.platform == "linux":
        with contextlib.suppress(Exception):
            import ctypes

            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _mariadb_tables(layout: _Layout) -> str:
    parts = ["CREATE DATABASE mysql;", "USE mysql;", "SET @auth_root_socket=NULL;"]
    for name in _SYSTEM_TABLES:
        candidates = [f"{layout.share}/{prefix}{name}" for prefix in ("mariadb_", "mysql_")]
        found = next((path for path in candidates if os.path.isfile(path)), None)
        if found is None:
            raise ThrowawayError(f"{layout.binary} comes without {' or '.join(candidates)}")
        with open(found, encoding="utf-8") as script:
            parts.append(script.read())
    # No account without a password, not even for a moment: the server listens on TCP.
    parts.append("DELETE FROM mysql.global_priv WHERE User <> 'mariadb.sys';")
    parts.append("DELETE FROM mysql.proxies_priv;")
    return "\n".join(parts) + "\n"


def _accounts(secret: str) -> str:
    """Return the statements that the server runs before it accepts its first connection, one a line."""
    return (
        f"CREATE DATABASE {DATABASE} CHARACTER SET utf8mb4;\n"
        f"CREATE USER '{USER}'@'%' IDENTIFIED BY '{secret}';\n"
        f"GRANT ALL ON *.* TO '{USER}'@'%' WITH GRANT OPTION;\n"
        "DROP USER IF EXISTS 'root'@'localhost';\n"
    )


def log_tail(path: str, secret: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as log:
            lines = log.read().replace(secret or "\0", "***").splitlines()[-_LOG_LINES:]
    except OSError:
        return ""
    return "; its log ends with:\n  " + "\n  ".join(lines) if lines else ""


if __name__ == "__main__":
    os.umask(0o077)
    _Guard(Order(*json.loads(sys.argv[1]))).run()
