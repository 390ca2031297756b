"""Database servers for tests: what one needs to know of a running server, and how to start a private one.

Everything listens on the loopback interface only and lives in a folder that the caller names.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import pymysql
from pymysql.connections import Connection
from pymysql.constants import CLIENT

HOST = "127.0.0.1"
USER = PASSWORD = "test"
DATABASE = "tests"

# Plain users often lack the sbin folders in PATH; Homebrew's formulas are not always linked.
FOLDERS = (
    "/usr/sbin",
    "/usr/local/sbin",
    "/usr/libexec",
    "/usr/local/libexec",
    "/usr/local/mysql/bin",
    *(
        f"{prefix}/{folder}"
        for prefix in ("/opt/homebrew", "/usr/local", "/home/linuxbrew/.linuxbrew")
        for folder in ("bin", "opt/mariadb/bin", "opt/mysql/bin")
    ),
)

# `loose` because the two families do not know all of each other's options.
OPTIONS = (
    f"--bind-address={HOST}",
    "--skip-name-resolve",  # else ''@'localhost' outranks 'test'@'%'
    "--max-connections=1000",
    "--local-infile=1",
    "--innodb-flush-log-at-trx-commit=2",  # a test's data need not survive a power cut
    "--loose-innodb-log-file-size=16M",
    "--loose-mysqlx=OFF",
    "--loose-skip-log-bin",
)


@dataclasses.dataclass(frozen=True)
class Server:
    """A running server and the account that tests use on it (all privileges, with grant option)."""

    host: str
    port: int
    user: str
    password: str = dataclasses.field(repr=False)
    database: str
    unix_socket: str | None
    is_mariadb: bool
    version: tuple[int, ...]

    def kwargs(self, **overrides: Any) -> dict[str, Any]:
        """Give PyMySQL's keyword arguments for a TCP connection to the tests' database."""
        own = {name: getattr(self, name) for name in ("host", "port", "user", "password", "database")}
        return own | overrides

    def dsn(self, **query: Any) -> str:
        """Give the same as a DSN; keyword arguments become its query."""
        text = (
            f"mysql://{quote(self.user, '')}:{quote(self.password, '')}@{self.host}:{self.port}"
            f"/{quote(self.database, '')}"
        )
        return f"{text}?{urlencode(query)}" if query else text

    def connect(self, **overrides: Any) -> Connection[Any]:
        """Open a plain PyMySQL connection, past any pool."""
        return pymysql.connect(**self.kwargs(**transport(self.is_mariadb)) | overrides)


def transport(is_mariadb: bool) -> dict[str, Any]:
    """Say how to reach a server cheaply, and in such a way that any account can log in."""
    # MySQL's default authentication wants TLS (or an RSA library) for the first login of an account.
    return {"ssl_disabled": True} if is_mariadb else {"ssl": unverified()}


def has_tls(server: Server) -> bool:
    """Say whether a server offers TLS."""
    with server.connect() as connection:
        return bool(connection.server_capabilities & CLIENT.SSL)


@cache
def unverified() -> ssl.SSLContext:
    """Share one TLS context: PyMySQL would spend 19 ms on a new one for every connection."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def describe(connection: Connection[Any], **known: Any) -> Server:
    """Ask a server what it is."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT VERSION()")
        (text,) = cursor.fetchone()
    number = re.search(r"\d+\.\d+\.\d+", text.removeprefix("5.5.5-"))
    assert number, text
    return Server(
        is_mariadb="mariadb" in text.lower(),
        version=tuple(int(part) for part in number[0].split(".")),
        **known,
    )


def running_server(dsn: str) -> Server:
    """Describe the server that somebody else runs at `mysql://user:password@host:port/database`."""
    parts = urlsplit(dsn)
    known: dict[str, Any] = {
        "host": parts.hostname or HOST,
        "port": parts.port or 3306,
        "user": unquote(parts.username or USER),
        "password": unquote(parts.password or ""),
        "database": unquote(parts.path.lstrip("/")) or DATABASE,
    }
    unix_socket = dict(parse_qsl(parts.query)).get("unix_socket")
    login = {name: known[name] for name in ("host", "port", "user", "password")}
    try:
        connection = pymysql.connect(**login, ssl=unverified())
    except pymysql.err.OperationalError:
        connection = pymysql.connect(**login, ssl_disabled=True)
    with connection:
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE IF NOT EXISTS `{known['database']}`")
        return describe(connection, unix_socket=unix_socket, **known)


def prepared_server(port: int, unix_socket: str) -> Server:
    """Make the tests' account and database on a new server, through root's socket."""
    with (
        pymysql.connect(unix_socket=unix_socket, user="root", ssl_disabled=True) as root,
        root.cursor() as cursor,
    ):
        cursor.execute("SELECT user, host FROM mysql.user WHERE user = ''")
        for user, host in cursor.fetchall():
            cursor.execute("DROP USER %s@%s", (user, host))
        cursor.execute(f"CREATE DATABASE IF NOT EXISTS {DATABASE}")
        server = describe(
            root,
            host=HOST,
            port=port,
            user=USER,
            password=PASSWORD,
            database=DATABASE,
            unix_socket=unix_socket,
        )
        create_account(root, USER, PASSWORD)
        cursor.execute("SELECT @@datadir")
        data = cursor.fetchall()
    # MySQL remembers an account's first login, after which it needs no TLS.
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT @@datadir")
        assert cursor.fetchall() == data, f"another server than ours answers on port {port}"
    return server


def create_account(connection: Connection[Any], user: str, password: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("CREATE USER IF NOT EXISTS %s@'%%' IDENTIFIED BY %s", (user, password))
        cursor.execute("GRANT ALL PRIVILEGES ON *.* TO %s@'%%' WITH GRANT OPTION", (user,))


def connection_ids(connection: Connection[Any], user: str = USER) -> set[int]:
    """List the server's connections of an account, the asking one left out."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id FROM information_schema.processlist WHERE user = %s AND id <> CONNECTION_ID()", (user,)
        )
        return {int(row[0]) for row in cursor.fetchall()}


def wait_until(condition: Callable[[], Any], timeout: float = 5.0, what: str = "the condition") -> Any:
    """Poll until the condition gives something true, and return that."""
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come about within {timeout} s")
        time.sleep(0.005)
    return result


@dataclasses.dataclass(frozen=True)
class Programs:
    """Commands of an installed server, each as the first words of a command line.

    `--no-defaults` keeps the option files of the machine and of its user out of the tests.
    """

    server: list[str]
    install: list[str]  # wants --datadir
    admin: list[str]

    @classmethod
    @cache
    def find(cls) -> Programs:
        account = ["--user=root"] if os.geteuid() == 0 else []
        server = [program("mariadbd", "mysqld"), "--no-defaults", *account]
        admin = [program("mariadb-admin", "mysqladmin"), "--no-defaults"]
        version = subprocess.run([*server[:1], "--version"], capture_output=True, text=True, check=True, timeout=30.0)
        if "MariaDB" not in version.stdout:
            return cls(server, [*server, "--initialize-insecure"], admin)
        install = [program("mariadb-install-db", "mysql_install_db"), "--no-defaults", *account]
        # Root must be able to log in whoever runs the tests.
        install += [
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            "--innodb-log-file-size=16M",
        ]
        return cls(server, install, admin)

    def wrappers(self, folder: Path) -> dict[str, str]:
        """Write the programs that pytest-mysql calls, and give their paths by the names of its options.

        It passes `--user=root` whoever runs the tests, and calls mysqld_safe, which respawns a killed server.
        """
        drop = 'for word do shift; case $word in --user=*|--skip-syslog) ;; *) set -- "$@" "$word" ;; esac; done'
        server = script(folder / "mysqld", drop, self.server)
        return {
            "mysql_mysqld": server,
            "mysql_mysqld_safe": server,
            "mysql_install_db": script(folder / "install-db", drop, self.install),
            "mysql_admin": script(folder / "admin", ":", self.admin),
        }


def program(*names: str) -> str:
    """Find a program of the server by any of its names."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *FOLDERS])
    for name in names:
        if found := shutil.which(name, path=path):
            return found
    raise RuntimeError(
        f"no {' or '.join(names)} on PATH: use ./run test, or install the server and client of MariaDB or "
        "MySQL, or pass --server-dsn"
    )


def script(path: Path, prepare: str, command: list[str]) -> str:
    path.write_text(f'#!/bin/sh\n{prepare}\nexec {shlex.join(command)} "$@"\n')
    path.chmod(0o755)
    return str(path)


class Guard:
    """Kills the servers that are left when the test run dies in a way that runs no teardown."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("tools") / "guard.py")],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        self._owner = os.getpid()

    def hold(self, pid: int) -> None:
        self._tell(pid)

    def release(self, pid: int) -> None:
        self._tell(-pid)

    def _tell(self, number: int) -> None:
        assert self._process.stdin
        self._process.stdin.write(b"%+d\n" % number)
        self._process.stdin.flush()

    def close(self) -> None:
        """End the guard; what it still holds is killed. Blocks for less than ten seconds."""
        if os.getpid() != self._owner:
            return
        # Told so, because a forked process may keep the pipe open.
        with contextlib.suppress(OSError):
            self._tell(0)
        assert self._process.stdin
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(10.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@cache
def guard() -> Guard:
    """Give the test run's one guard; conftest closes it."""
    return Guard()


def reserved_port() -> socket.socket:
    """Give a socket whose port is given to nobody else while it is open; on Linux a server may listen there."""
    probe = socket.socket()
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    probe.bind((HOST, 0))
    return probe


def free_port() -> int:
    """Give a port where nobody listens for as long as this process lives."""
    probe = reserved_port()
    port = int(probe.getsockname()[1])
    probe.detach()
    return port


class PrivateServer:
    """A server that a test may kill, stop and start again; its port and its data stay the same.

    A context manager: the server runs inside, and its folder is removed at the end.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.options = options
        self._reserved = reserved_port()
        self.port = int(self._reserved.getsockname()[1])
        if sys.platform != "linux":
            self._reserved.close()  # else the server could not have the port either
        self.unix_socket = str(folder / "s.sock")
        self.log = folder / "server.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.server: Server

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        programs = Programs.find()
        command = [*programs.install, f"--datadir={self.folder / 'data'}", f"--tmpdir={self.folder}"]
        with self.log.open("ab") as log:
            subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True, timeout=50.0)
        try:
            self.start()
            self.server = prepared_server(self.port, self.unix_socket)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._reserved.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self, *options: str, timeout: float = 30.0) -> None:
        """Start the server and wait until it answers; `options` hold for this time."""
        assert not self.running
        command = [
            *Programs.find().server,
            *OPTIONS,
            f"--datadir={self.folder / 'data'}",
            f"--tmpdir={self.folder}",
            f"--pid-file={self.folder / 'pid'}",
            f"--port={self.port}",
            f"--socket={self.unix_socket}",
            *self.options,
            *options,
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        guard().hold(self.process.pid)
        try:
            wait_until(self._answers, timeout, f"an answer of the server on port {self.port}")
        except BaseException:
            self.kill()
            raise

    def _answers(self) -> bool:
        if not self.running:
            lines = self.log.read_text(errors="replace").splitlines()[-10:]
            raise RuntimeError("\n".join(["the server ended while starting:", *lines]))
        # The greeting, not the open port, shows that the server is ready: it opens its ports long before it
        # serves them, and a MariaDB that is told to stop in between may hang.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            probe.connect(self.unix_socket)
            return probe.recv(1) != b""
        return False

    def stop(self, timeout: float = 30.0) -> None:
        """Shut the server down in order, which ends every connection."""
        self._end(signal.SIGTERM, timeout)

    def kill(self, timeout: float = 30.0) -> None:
        """Kill the server at once."""
        self._end(signal.SIGKILL, timeout)

    def _end(self, number: signal.Signals, timeout: float) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)  # one that is paused could not obey
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        guard().release(process.pid)

    def restart(self, *options: str) -> None:
        self.stop()
        self.start(*options)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the server's process for the block: its connections stay open and nothing answers."""
        assert self.process
        process = self.process
        process.send_signal(signal.SIGSTOP)
        # The signal is on its way: until it has reached every thread, one of them may answer.
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)
