"""Throwaway servers: they start, serve, and leave neither a process nor a file behind, whatever happens."""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest
from servers import wait_until

from pooled_pymysql import throwaway, throwaway_guard
from pooled_pymysql.throwaway import ServerNotFound, ThrowawayError, ThrowawayServer

WAIT = 20.0  # seconds, for anything that takes well under one on an idle machine

# Starts a server, says where it is, and waits for whatever ends it.
HOLDER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job would inherit 'ignore'
from pooled_pymysql.throwaway import ThrowawayServer
with ThrowawayServer() as server:
    print(server.pid, server.directory, flush=True)
    {then}
"""


@pytest.fixture(autouse=True)
def own_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give every test a temporary directory of its own and find it empty again."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    yield folder
    wait_until(lambda: not any(folder.iterdir()), WAIT, "an empty temporary directory")


def is_running(pid: int) -> bool:
    """Say whether a process that is not our child runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextlib.contextmanager
def holder(then: str) -> Iterator[tuple[subprocess.Popen[str], int, Path]]:
    """Run a program that holds a throwaway server; give its process, the server's pid and its directory."""
    program = subprocess.Popen(
        [sys.executable, "-c", HOLDER.format(then=then)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert program.stdout is not None
        pid, directory = program.stdout.readline().split()
        yield program, int(pid), Path(directory)
    finally:
        program.kill()
        program.communicate(timeout=WAIT)


def test_serves_over_tcp_and_socket_with_all_rights() -> None:
    with ThrowawayServer() as server:
        for address in ({}, {"unix_socket": server.unix_socket}):
            with pymysql.connect(**server.kwargs(**address)) as connection, connection.cursor() as cursor:
                cursor.execute("SELECT DATABASE(), @@port")
                assert cursor.fetchone() == (server.database, server.port)
                cursor.execute("SHOW GRANTS")
                assert any("WITH GRANT OPTION" in grant for (grant,) in cursor.fetchall())


def test_listens_on_loopback_only_and_has_no_open_account() -> None:
    with ThrowawayServer() as server:
        with pymysql.connect(**server.kwargs()) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT @@bind_address")
            assert cursor.fetchone() == ("127.0.0.1",)
        for address in ({}, {"unix_socket": server.unix_socket}):
            for user in ("root", "", server.user):
                with pytest.raises(pymysql.err.OperationalError) as refused:
                    pymysql.connect(**server.kwargs(user=user, password="", **address))
                assert refused.value.args[0] in (1045, 1698)
        assert stat.S_IMODE(os.stat(server.directory).st_mode) == 0o700


def test_password_is_new_each_time_and_not_in_the_repr() -> None:
    server = ThrowawayServer()
    passwords = set()
    for _ in range(2):
        with server:
            passwords.add(server.password)
            assert server.password not in repr(server)
            assert server.password in server.dsn(charset="utf8mb4")
    assert len(passwords) == 2
    assert "not running" in repr(server)


def test_takes_options_and_runs_beside_another() -> None:
    with ThrowawayServer(options=["--max-connections=17"]) as one, ThrowawayServer() as other:
        assert one.port != other.port
        with pymysql.connect(**one.kwargs()) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT @@max_connections")
            assert cursor.fetchone() == (17,)


def test_leaves_nothing_when_the_block_ends_or_raises(own_temporary_directory: Path) -> None:
    server = ThrowawayServer()
    with contextlib.suppress(ZeroDivisionError), server:
        pid, directory = server.pid, Path(server.directory)
        assert is_running(pid) and directory.is_dir()
        raise ZeroDivisionError
    assert not is_running(pid)
    assert not directory.exists()
    assert not any(own_temporary_directory.iterdir())
    server.stop()  # harmless


def test_starts_again_after_a_stop() -> None:
    server = ThrowawayServer()
    for _ in range(2):
        with server:
            pymysql.connect(**server.kwargs()).close()
            with pytest.raises(ThrowawayError, match="already"):
                server.start()


def test_long_temporary_directory_still_has_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    monkeypatch.setenv("TMPDIR", str(deep))
    with ThrowawayServer() as server:
        pymysql.connect(**server.kwargs(unix_socket=server.unix_socket)).close()
        directory = Path(server.directory)
    assert not directory.exists()
    assert not any(deep.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_leaves_nothing_when_the_caller_is_ended(number: signal.Signals) -> None:
    with holder("sys.stdin.read()") as (program, pid, directory):
        assert is_running(pid) and directory.is_dir()
        program.send_signal(number)
        assert program.wait(WAIT) == -number
        wait_until(lambda: not is_running(pid), WAIT, "the server's end")
        wait_until(lambda: not directory.exists(), WAIT, "the directory's end")


def test_leaves_nothing_when_a_forked_child_outlives_the_caller() -> None:
    # The child keeps a copy of the pipe's writing end, so the guard sees no end of file.
    fork = "import os; child = os.fork(); child or sys.stdin.read(); child and os._exit(0)"
    with holder(fork) as (program, pid, directory):
        assert program.wait(WAIT) == 0
        wait_until(lambda: not is_running(pid), WAIT, "the server's end")
        wait_until(lambda: not directory.exists(), WAIT, "the directory's end")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends the server together with its guard")
def test_leaves_nothing_when_the_guard_is_killed() -> None:
    with ThrowawayServer() as server:
        pid, directory, guard = server.pid, Path(server.directory), server._guard
        assert guard is not None
        guard.kill()
        guard.wait(WAIT)
        wait_until(lambda: not is_running(pid), WAIT, "the server's end")
    assert not directory.exists()


def test_kills_a_server_that_does_not_stop() -> None:
    with ThrowawayServer(stop_timeout=0.2) as server:
        pid, directory = server.pid, Path(server.directory)
        os.kill(pid, signal.SIGSTOP)
    assert not is_running(pid)
    assert not directory.exists()


def test_failed_start_shows_the_end_of_the_log() -> None:
    server = ThrowawayServer(options=["--no-such-option=1"])
    with pytest.raises(ThrowawayError, match=r"(?s)with status \d+; its log ends with:.*no-such-option"):
        server.start()
    assert "not running" in repr(server)


def test_port_taken_by_others_is_tried_again_then_told() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        server = ThrowawayServer(options=[f"--port={other.getsockname()[1]}"])
        with pytest.raises(ThrowawayError, match="took each port"):
            server.start()


def test_start_is_bounded_in_time() -> None:
    with pytest.raises(ThrowawayError, match=r"did not answer within 0\.05 s"):
        ThrowawayServer(start_timeout=0.05).start()


def test_no_server_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(throwaway, "_SYSTEM_FOLDERS", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerNotFound, match=r"apt-get install mariadb-server-core.*brew install"):
        ThrowawayServer().start()


def test_program_that_does_not_run_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "folder with space" / "mariadbd"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho a library is missing >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    assert throwaway.find_server() == str(program)
    with pytest.raises(ThrowawayError, match=r"mariadbd does not run: a library is missing"):
        ThrowawayServer().start()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_runs_as_a_plain_user(monkeypatch: pytest.MonkeyPatch) -> None:
    plain: dict[str, Any] = {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid, "extra_groups": []}
    # The interpreter and the package may lie where only root can read.
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        with contextlib.suppress(OSError):
            if not subprocess.run([python, "-c", "from typing import Self"], cwd="/", check=False, **plain).returncode:
                break
    else:
        pytest.skip("no Python that another user may run")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chown(folder, pwd.getpwnam("nobody").pw_uid, -1)
        monkeypatch.setattr(throwaway_guard, "__file__", shutil.copy(throwaway_guard.__file__, folder))
        monkeypatch.setattr(sys, "executable", python)
        monkeypatch.setattr(subprocess, "Popen", functools.partial(subprocess.Popen, cwd="/", **plain))
        monkeypatch.setenv("TMPDIR", folder)
        with ThrowawayServer() as server:
            pymysql.connect(**server.kwargs()).close()
            assert os.stat(server.directory).st_uid == pwd.getpwnam("nobody").pw_uid
            directory = Path(server.directory)
        assert directory.parent == Path(folder)
        assert not directory.exists()
