"""The end of the interpreter: idle sessions say goodbye, and nothing delays it for long."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from proxy import Proxy
from servers import Server, connection_ids, wait_until

import pooled_pymysql

COM_QUIT = 1
WARNINGS = ("-W", "error", "-W", "ignore::ResourceWarning")  # one program drops a lease
BOUND = 2.5  # seconds from the program's last line to its end

PRELUDE = """
import atexit, gc, json, os, signal, sys, threading, time
import pymysql
import pooled_pymysql
KWARGS = json.loads(sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)  # who started the tests may ignore it

def connect():
    return pooled_pymysql.connect(**KWARGS)

def ask(lease):
    with lease.cursor() as cursor:
        cursor.execute("SELECT 42")
        assert cursor.fetchall() == ((42,),)

def fill(number):
    leases = [connect() for _ in range(number)]
    for lease in leases:
        ask(lease)
        lease.close()

def daemon(work):
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread

def end():
    print("ending", flush=True)
    sys.stdin.readline()
"""


class Program:
    """A program that says when it is about to end, and ends when it is told to."""

    def __init__(self, body: str, kwargs: dict[str, Any], *flags: str) -> None:
        root = str(Path(pooled_pymysql.__file__).parents[1])
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-X", "faulthandler", *flags, "-c", PRELUDE + body, json.dumps(kwargs)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": root},
        )

    def reach_end(self) -> None:
        assert self.process.stdout
        if self.process.stdout.readline() != "ending\n":
            raise AssertionError(self.process.communicate()[1])

    def end(self, code: int = 0) -> str:
        """Let it end; return what it said on stderr."""
        started = time.monotonic()
        try:
            _, errors = self.process.communicate("go\n", timeout=15)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)
            raise AssertionError(f"it does not end: {self.process.communicate()[1]}") from None
        took = time.monotonic() - started
        assert self.process.returncode == code, errors
        assert took < BOUND, f"it took {took:.1f} s to end"
        return errors


@contextlib.contextmanager
def program(body: str, kwargs: dict[str, Any], *flags: str) -> Iterator[Program]:
    started = Program(body, kwargs, *flags)
    try:
        started.reach_end()
        yield started
    finally:
        started.process.kill()
        started.process.communicate()


def aborted_clients(admin: Any) -> int:
    with admin.cursor() as cursor:
        cursor.execute("SHOW GLOBAL STATUS LIKE 'Aborted_clients'")
        return int(cursor.fetchone()[1])


ENDINGS = {
    "idle": "fill(3); end()",
    "owing": "lease = connect(); lease.query('SET @a = 1'); end(); lease.close()",
    "sys.exit": "fill(3); end(); sys.exit(0)",
    "pool closed by hand": "fill(3); pooled_pymysql.close_pools(); fill(3); end()",
    "min_size": "fill(1); pooled_pymysql.pools()[0].wait_ready(10); end()",
    "dropped in time": "lease = connect(); ask(lease); del lease; time.sleep(0.2); end()",
    "daemon thread that waits": "fill(3); daemon(lambda: time.sleep(60)); end()",
    "leased in an exit handler": "fill(1); end(); atexit.register(lambda: fill(2))",
}


@pytest.mark.parametrize("name", ENDINGS)
def test_idle_sessions_say_goodbye(name: str, account: Server) -> None:
    with Proxy(account.host, account.port) as proxy:
        options = {"min_size": 2} if name == "min_size" else {}
        with program(ENDINGS[name], account.kwargs(port=proxy.port, ssl_disabled=True, pool=options), *WARNINGS) as it:
            assert it.end() == ""
        wait_until(lambda: not proxy.links, what="the end of every link")
        goodbyes = sum(code == COM_QUIT for code, _ in proxy.commands)
        assert goodbyes == proxy.connections > 0


def somebody_else_is_here(admin: Any) -> bool:
    with admin.cursor() as cursor:
        cursor.execute(
            "SELECT COUNT(*) FROM information_schema.processlist"
            " WHERE user NOT IN ('system user', 'event_scheduler') AND id <> CONNECTION_ID()"
        )
        return bool(cursor.fetchone()[0])


def test_server_sees_no_aborted_client(server: Server, admin: Any) -> None:
    for _ in range(5):  # on a server that others use too, theirs count as well
        before = aborted_clients(admin)
        with program(ENDINGS["idle"], server.kwargs()) as it:
            it.end()
        time.sleep(0.2)  # the server counts a little later
        grown = aborted_clients(admin) - before
        if not grown:
            return
    if somebody_else_is_here(admin):
        pytest.skip("somebody else uses this server")
    assert grown == 0


def test_many_idle_sessions_are_closed_in_time(account: Server, admin: Any) -> None:
    with program("fill(60); end()", account.kwargs(ssl_disabled=True)) as it:
        assert len(connection_ids(admin, account.user)) == 60
        it.end()
    wait_until(lambda: not connection_ids(admin, account.user), what="the end of every session")


SLOW = {
    "idle": "fill(20); end()",
    "owing": """
leases = [connect() for _ in range(20)]
for lease in leases: lease.query('SET @a = 1')
end()
while leases: leases.pop().close()
""",
    "lease open": "lease = connect(); ask(lease); fill(3); end()",
    "daemon thread in a statement": "lease = connect(); end(); daemon(lambda: ask(lease)); time.sleep(0.1)",
    "daemon thread that connects": "held = connect(); end(); daemon(connect); time.sleep(0.1)",
    "housekeeper that opens": "fill(1); end(); KWARGS['pool'] = {'min_size': 3}; daemon(connect); time.sleep(0.1)",
    "dropped": "leases = [connect() for _ in range(5)]; end(); leases.clear()",
}


@pytest.mark.parametrize("name", SLOW)
def test_silent_server_does_not_delay_the_end(name: str, account: Server) -> None:
    with Proxy(account.host, account.port) as proxy:
        with program(SLOW[name], account.kwargs(port=proxy.port, ssl_disabled=True)) as it:
            proxy.stall()
            it.end()
        proxy.restore()


BUSY = {
    "statements": "def work():\n    while True:\n        with connect() as lease: ask(lease)",
    "dropping": "def work():\n    while True: ask(connect())",
    "one long statement": "def work(): connect().query('SELECT SLEEP(30)')",
    "shared": "shared = connect()\ndef work():\n    while True: ask(shared)",
    "waiting": "KWARGS['pool'] = {'max_size': 1, 'timeout': 30.0}\nheld = connect()\ndef work(): connect()",
}


@pytest.mark.parametrize("name", BUSY)
def test_daemon_threads_do_not_delay_the_end(name: str, account: Server, admin: Any) -> None:
    body = f"{BUSY[name]}\nfor _ in range(3): daemon(work)\ntime.sleep(0.3)\nend()"
    with program(body, account.kwargs(ssl_disabled=True), "-W", "ignore::ResourceWarning") as it:
        it.end()
    with admin.cursor() as cursor:  # the server notices a dead client only when it wants to answer
        for number in connection_ids(admin, account.user):
            with contextlib.suppress(Exception):
                cursor.execute(f"KILL {number}")


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_program_that_is_interrupted(signal_number: signal.Signals, account: Server) -> None:
    body = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\nfill(3); end(); time.sleep(60)"
    with Proxy(account.host, account.port) as proxy:
        with program(body, account.kwargs(port=proxy.port, ssl_disabled=True)) as it:
            it.process.send_signal(signal_number)
            it.end(-2 if signal_number == signal.SIGINT else 7)
        wait_until(lambda: not proxy.links, what="the end of every link")
        assert sum(code == COM_QUIT for code, _ in proxy.commands) == 3
