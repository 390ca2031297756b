"""The demo on the command line, as its user sees it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pymysql.connections import Connection
from servers import Server, wait_until

from pooled_pymysql import cli
from pooled_pymysql import demo as demo_module

WAIT = 40.0  # seconds
ROW = r"^  {} +([\d,]+) +([\d.]+) s +([\d,]+) +([\d,.]+) x$"
LABELS = ("pymysql", "pymysql, ssl_disabled", "pooled_pymysql")

# A background job inherits SIGINT as ignored, and Python then has no KeyboardInterrupt.
INTERRUPTIBLE = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("pooled_pymysql", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The temporary directory of started programs, which must be empty in the end."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    assert not list(folder.iterdir())


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "pooled_pymysql", *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=WAIT, check=False)


def rows(output: str) -> dict[str, tuple[float, ...]]:
    """Give connections, seconds, queries a second and speed of each row."""
    found = {label: re.search(ROW.format(re.escape(label)), output, re.MULTILINE) for label in LABELS}
    return {
        label: tuple(float(text.replace(",", "")) for text in match.groups()) for label, match in found.items() if match
    }


def all_connections(admin: Connection[Any], user: str) -> list[int]:
    with admin.cursor() as cursor:
        cursor.execute("SELECT id FROM information_schema.processlist WHERE user = %s", (user,))
        return [number for (number,) in cursor.fetchall()]


def inventory(admin: Connection[Any]) -> set[tuple[Any, ...]]:
    with admin.cursor() as cursor:
        cursor.execute("SELECT table_schema, table_name FROM information_schema.tables")
        tables = set(cursor.fetchall())
        cursor.execute("SELECT schema_name, '' FROM information_schema.schemata")
        schemata = set(cursor.fetchall())
        cursor.execute("SELECT user, host FROM mysql.user")
        return tables | schemata | set(cursor.fetchall())


def assert_three_honest_rows(output: str, threads: int, rounds: int) -> None:
    measured = rows(output)
    assert tuple(measured) == LABELS, output
    base = measured["pymysql"][1]
    for label, (connections, seconds, rate, speed) in measured.items():
        if label == "pooled_pymysql":
            assert 1 <= connections <= threads
        else:
            assert connections == threads * rounds
        # The numbers of a row agree with each other, up to their rounding.
        fewest, most = max(0.0001, seconds - 0.0006), seconds + 0.0006
        queries = 2 * threads * rounds
        assert queries / most - 1 <= rate <= queries / fewest + 1
        assert (base - 0.0006) / most - 0.1 <= speed <= (base + 0.0006) / fewest + 0.1


def test_own_server_three_rows_and_nothing_left(temporary: Path) -> None:
    done = run("demo", "--threads", "3", "--rounds", "20")
    assert (done.returncode, done.stderr) == (0, "")
    assert_three_honest_rows(done.stdout, 3, 20)
    assert "import pooled_pymysql as pymysql" in done.stdout
    assert "connection = pymysql.connect(**where)" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 80


def test_dsn_three_rows_and_nothing_left(account: Server, admin: Connection[Any], temporary: Path) -> None:
    before = inventory(admin)
    done = run("demo", account.dsn(), "--threads", "4", "--rounds", "10")
    assert (done.returncode, done.stderr) == (0, "")
    assert_three_honest_rows(done.stdout, 4, 10)
    assert account.password not in done.stdout.replace(account.user, "")
    wait_until(lambda: not all_connections(admin, account.user), 5.0, "the end of the demo's connections")
    assert inventory(admin) == before


def test_pool_options_of_the_dsn_hold(account: Server, temporary: Path) -> None:
    done = run("demo", account.dsn(pool_max_size=2), "--threads", "4", "--rounds", "5")
    assert (done.returncode, done.stderr) == (0, "")
    assert rows(done.stdout)["pooled_pymysql"][0] <= 2


def test_nothing_goes_in_the_clear_when_the_dsn_asks_for_tls(tls_server: Server, temporary: Path) -> None:
    done = run("demo", tls_server.dsn(ssl_verify_cert="false"), "--threads", "2", "--rounds", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^  pymysql, ssl_disabled +not run: the DSN asks for TLS$", done.stdout, re.MULTILINE)
    assert set(rows(done.stdout)) == {"pymysql", "pooled_pymysql"}


@contextlib.contextmanager
def demo(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start a demo, in a process group of its own; it has ended when the block has."""
    line = [sys.executable, "-u", "-X", "faulthandler", "-c", INTERRUPTIBLE, "demo", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(line, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as program:
        try:
            yield program
        finally:
            program.kill()


@contextlib.contextmanager
def demo_until(moment: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start a demo without end and let it run until a line has come."""
    with demo(*arguments, "--rounds", "1000000") as program:
        assert program.stdout is not None
        while moment not in (text := program.stdout.readline()):
            assert text, "the demo ended by itself"
        yield program


def errors_at_end(program: subprocess.Popen[str]) -> str:
    """Wait for a program's end and return what it said on stderr; show where it is if it does not end."""
    try:
        return program.communicate(timeout=WAIT)[1]
    except subprocess.TimeoutExpired:
        program.send_signal(signal.SIGABRT)
        raise AssertionError(f"it does not end:\n{program.communicate(timeout=5.0)[1]}") from None


def server_pids(temporary: Path) -> list[int]:
    return [int(file.read_text()) for file in temporary.glob("*/pid")]


def assert_ended(pids: list[int]) -> None:
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_interrupt_during_the_server_start_leaves_nothing(temporary: Path) -> None:
    with demo_until("Starting") as program:
        wait_until(lambda: list(temporary.iterdir()), WAIT, "the server's directory")
        program.send_signal(signal.SIGINT)
        errors = errors_at_end(program)
        assert (program.returncode, errors) == (130, "interrupted\n")
    assert not list(temporary.iterdir())


def test_interrupt_during_a_run_leaves_nothing(temporary: Path) -> None:
    with demo_until("connections") as program:
        pids = server_pids(temporary)
        assert pids
        os.killpg(program.pid, signal.SIGINT)  # as a terminal does
        errors = errors_at_end(program)
        assert (program.returncode, errors) == (130, "interrupted\n")
    assert_ended(pids)
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_impatient_user_leaves_nothing_either(second: signal.Signals, temporary: Path) -> None:
    with demo_until("connections") as program:
        pids = server_pids(temporary)
        assert pids
        program.send_signal(signal.SIGINT)
        program.send_signal(second)
        errors_at_end(program)
    # The guard tidies up although nobody waits for it any more.
    wait_until(lambda: not list(temporary.iterdir()), WAIT, "an empty temporary directory")
    assert_ended(pids)


def test_interrupt_closes_the_connections_to_the_server_of_a_dsn(account: Server, admin: Connection[Any]) -> None:
    with demo_until("connections", account.dsn()) as program:
        wait_until(lambda: all_connections(admin, account.user), WAIT, "the demo's connections")
        program.send_signal(signal.SIGINT)
        errors = errors_at_end(program)
    assert (program.returncode, errors) == (130, "interrupted\n")
    wait_until(lambda: not all_connections(admin, account.user), 5.0, "the end of the demo's connections")


def test_refused_port_is_one_line_without_password(temporary: Path) -> None:
    with socket.socket() as unheard:  # bound and not listening: nobody else takes the port
        unheard.bind(("127.0.0.1", 0))
        done = run("demo", f"mysql://someone:s%C3%A9cret@127.0.0.1:{unheard.getsockname()[1]}/db")
    assert done.returncode == 1
    assert re.fullmatch(r"error: \(2003\) Can't connect to MySQL server on '127\.0\.0\.1'.*\n", done.stderr)
    assert "cret" not in done.stdout + done.stderr


def test_wrong_password_is_one_line_without_password(account: Server, temporary: Path) -> None:
    dsn = account.dsn().replace(f":{account.password}@", ":wrong-secret@")
    done = run("demo", dsn)
    assert done.returncode == 1
    assert re.fullmatch(r"error: \(1045\) Access denied for user .*\n", done.stderr)
    assert "wrong-secret" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "dsn",
    [
        "hunter2",
        "postgres://someone:hunter2@127.0.0.1/db",
        "mysql://someone:hunter2@127.0.0.1:port/db",
        "mysql://someone:hunter2@127.0.0.1/db?no_such_option=1",
        "mysql://someone:hunter2@127.0.0.1/db?pool_max_size=0",
        "mysql://someone:hunter2@[::1/db",
        "mysql://someone:hunter2%@127.0.0.1/db",
    ],
)
def test_malformed_dsn_is_one_line_without_password(dsn: str) -> None:
    done = run("demo", dsn)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"error: .+\n", done.stderr)
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize("arguments", [["nonsense"], [], ["demo", "--threads", "0"], ["demo", "--rounds", "x"]])
def test_wrong_usage_shows_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("usage: python -m pooled_pymysql")


@pytest.mark.parametrize("arguments", [["{}"], ["demo", "mysql://h/", "{}"], ["demo", "--threads", "{}"]])
def test_misplaced_dsn_is_not_repeated(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([text.format("mysql://someone:hunt er2@host/db") for text in arguments])
    assert "er2" not in capsys.readouterr().err


def test_reader_that_goes_away_is_no_traceback(temporary: Path) -> None:
    with demo("--rounds", "2") as program:
        assert program.stdout is not None
        assert program.stderr is not None
        program.stdout.readline()
        program.stdout.close()
        assert program.stderr.read() == ""
        assert program.wait(WAIT) == 1


def test_wrong_answer_is_not_measured(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers: Callable[..., int] = demo_module.visit

    def lie(module: Any, where: dict[str, Any]) -> int:
        answers(module, where)
        raise AssertionError("a wrong answer")

    monkeypatch.setattr(demo_module, "visit", lie)
    with pytest.raises(AssertionError, match="a wrong answer"):
        cli.main(["demo", server.dsn(), "--threads", "2", "--rounds", "1"])
    assert "connections " in capsys.readouterr().out
