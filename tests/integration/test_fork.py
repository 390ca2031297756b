"""Forked processes: the parent never notices, not a byte is sent on its sockets, the child begins with empty pools."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest
from proxy import Proxy
from servers import Server, connection_ids, wait_until

import pooled_pymysql

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

PATIENCE = 20.0  # seconds for a program
# The programs leave leases and sockets behind, on purpose.
WARNINGS = ("-W", "error", "-W", "ignore::ResourceWarning")

# Programs run in processes of their own: the threads of the proxy and of the test runner would make every fork warn.
PRELUDE = """
import atexit, gc, json, logging, multiprocessing, os, queue, random, signal, sys, threading, time, traceback
import pymysql
from pymysql.cursors import SSCursor
# Should the test run be gone that ends us all: each process ends itself, the forked ones as well.
signal.alarm(LONGEST)
os.register_at_fork(after_in_child=lambda: signal.alarm(LONGEST))
HIDE_HOOKS = "hide-hooks" in sys.argv
if HIDE_HOOKS:
    register = os.register_at_fork
    del os.register_at_fork
import pooled_pymysql
if HIDE_HOOKS:
    os.register_at_fork = register
KWARGS = json.loads(sys.argv[1])
ROWS = "WITH RECURSIVE s(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM s WHERE x < 900) SELECT x, REPEAT('x', 999) FROM s"

def say(word):
    print(word, flush=True)
    assert sys.stdin.readline().strip() == "go"

def connect(**options):
    return pooled_pymysql.connect(**KWARGS, **options)

def ask(lease, answer=42):
    with lease.cursor() as cursor:
        cursor.execute("SELECT %s", (answer,))
        assert cursor.fetchall() == ((answer,),)
        cursor.execute("SELECT CONNECTION_ID()")
        return cursor.fetchone()[0]

def assert_dead(lease):
    assert not lease.open
    try:
        lease.cursor().execute("SELECT 1")
    except pymysql.err.InterfaceError as error:
        assert error.args == (0, ""), error.args
    else:
        raise AssertionError("an inherited lease answers")
    try:
        lease.close()
    except pymysql.err.Error as error:
        assert error.args == ("Already closed",), error.args
    else:
        raise AssertionError("an inherited lease can be closed")

def use_pool_in_child(leases=(), foreign_ids=()):
    if not HIDE_HOOKS:
        for lease in leases:
            assert_dead(lease)
    for pool in pooled_pymysql.pools():
        if not HIDE_HOOKS:
            stats = pool.stats()
            assert (stats.idle, stats.in_use, stats.opening, stats.waiting) == (0, 0, 0, 0), stats
    own = [connect(), connect()] if MAX_SIZE > 1 else [connect()]
    ids = {ask(lease) for lease in own}
    assert len(ids) == len(own) and not ids & set(foreign_ids), (ids, foreign_ids)
    for lease in leases:
        assert_dead(lease)
    own.pop()  # dropped, and taken back
    gc.collect()
    while own:
        own.pop().close()
    (pool,) = pooled_pymysql.pools()
    deadline = time.monotonic() + 5
    while pool.stats().in_use:
        assert time.monotonic() < deadline, pool.stats()
        time.sleep(0.01)
    with connect() as lease:
        number = ask(lease)
        assert number not in foreign_ids
        # Or that of another that was begun beside an opening that took long.
        stats = pool.stats()
        assert not stats.closed and (number in ids or stats.opened > len(ids)), stats
    pooled_pymysql.close_pools()

MAX_SIZE = KWARGS.get("pool", {}).get("max_size", 100)

def fork(work, *args):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work(*args)
            told = "well"
        except BaseException:
            told = traceback.format_exc()
        os.write(writer, told.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        told = stream.read()
    assert os.waitpid(pid, 0)[1] == 0
    assert told == "well", told

def start(work):
    outcome = []
    def run():
        try:
            outcome.append(work())
        except BaseException as error:
            traceback.print_exc()
            outcome.append(error)
    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome
"""


class Program:
    """A program that says where it is and goes on when it is told to; a context manager that leaves no process."""

    def __init__(
        self, folder: Path, body: str, kwargs: dict[str, Any], *flags: str, words: tuple[str, ...] = ()
    ) -> None:
        path = folder / f"program{time.monotonic_ns()}.py"
        path.write_text(PRELUDE.replace("LONGEST", str(int(PATIENCE) + 30)) + body)
        root = str(Path(pooled_pymysql.__file__).parents[1])
        command = [
            sys.executable,
            "-P",
            "-X",
            "faulthandler",
            *WARNINGS,
            *flags,
            str(path),
            json.dumps(kwargs),
            *words,
        ]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": root},
        )
        # Reads that block could outlast any timeout: a child that hangs keeps the pipes open.
        self.killer = threading.Timer(PATIENCE, self._abort)
        self.killer.start()

    def _abort(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGABRT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.killer.cancel()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate(timeout=10)

    def reach(self, word: str) -> None:
        """Wait until the program says the word."""
        assert self.process.stdout
        line = self.process.stdout.readline().strip()
        if line != word:
            _, errors = self.process.communicate()
            raise AssertionError(f"{line!r} instead of {word!r}:\n{errors}")

    def go(self) -> None:
        """Let it go on."""
        assert self.process.stdin
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def end(self) -> str:
        """Wait for its end, which must be a good one without a word on stderr; return what else it said."""
        said, errors = self.process.communicate()
        assert (self.process.returncode, errors) == (0, ""), errors
        return said


class Scene(NamedTuple):
    """What the parent has when it forks, and how it shows afterwards that it has it still."""

    before: str
    after: str
    threads: bool = False  # other threads of the program's own run: forking warns of them
    options: dict[str, Any] = {}  # noqa: RUF012  never written to


SCENES = {
    "idle": Scene("leases = []; connect().close()", "ask(connect())"),
    "two leases": Scene(
        "leases = [connect(), connect()]; ids = [ask(lease) for lease in leases]",
        "assert [ask(lease) for lease in leases] == ids",
    ),
    "background opening": Scene(
        "leases = [connect()]; ids = [ask(leases[0])]; pooled_pymysql.pools()[0].wait_ready(10)",
        "assert ask(leases[0]) == ids[0]",
        options={"min_size": 3, "max_size": 4},
    ),
    "transaction": Scene(
        "leases = [connect()]; ids = [ask(leases[0])]; leases[0].query('INSERT INTO kept VALUES (7)')",
        "leases[0].commit(); assert leases[0].query('SELECT * FROM kept') == 1; assert ask(leases[0]) == ids[0]",
    ),
    "unread result": Scene(
        "leases = [connect()]; ids = [ask(leases[0])]; cursor = leases[0].cursor(SSCursor); cursor.execute(ROWS);"
        " assert cursor.fetchone()[0] == 1",
        "assert [row[0] for row in cursor.fetchall()] == list(range(2, 901)); assert ask(leases[0]) == ids[0]",
    ),
    "owing": Scene(
        "leases = []; lease = connect(); ids = [ask(lease)]; lease.query('SET @a = 1'); lease.close()",
        "assert ask(connect()) == ids[0]",
    ),
    "closed pool": Scene(
        "leases = [connect()]; ids = [ask(leases[0])]; pooled_pymysql.close_pools()",
        "assert ask(leases[0]) == ids[0]",
    ),
    "statement of another thread": Scene(
        "leases = [connect()]; ids = [ask(leases[0])]\n"
        "other, outcome = start(lambda: leases[0].query('SELECT SLEEP(1)'))\n"
        "while not leases[0]._flight: time.sleep(0.01)\n"
        "time.sleep(0.2)",
        "other.join(); assert outcome == [1], outcome; assert ask(leases[0]) == ids[0]",
        threads=True,
    ),
    "unread result of another thread": Scene(
        "leases = [connect()]; ids = [ask(leases[0])]; cursor = leases[0].cursor(SSCursor)\n"
        "start(lambda: (cursor.execute(ROWS), cursor.fetchone()))[0].join()",
        "assert len(cursor.fetchall()) == 899; assert ask(leases[0]) == ids[0]",
    ),
    "waiting thread": Scene(
        "leases = [connect()]; ids = [ask(leases[0])]\n"
        "other, outcome = start(lambda: ask(connect()))\n"
        "while not pooled_pymysql.pools()[0].stats().waiting: time.sleep(0.01)",
        "leases.pop().close(); other.join(); assert outcome == ids, outcome",
        threads=True,
        options={"max_size": 1},
    ),
}

FORK = """
{before}
foreign = locals().get("ids", [])
say("ready")
{fork}
say("forked")
{after}
pooled_pymysql.close_pools()
"""

WAYS = {
    "fork": "fork(use_pool_in_child, leases, foreign)",
    "fork in a thread": "forker, ended = start(lambda: fork(use_pool_in_child, leases, foreign)); forker.join()\n"
    "assert ended == [None], ended",
    "multiprocessing": "context = multiprocessing.get_context('fork')\n"
    "child = context.Process(target=use_pool_in_child, args=(leases, foreign)); child.start(); child.join()\n"
    "assert child.exitcode == 0",
    "two generations": "fork(lambda: (fork(use_pool_in_child, leases, foreign), use_pool_in_child(leases, foreign)))",
    "idle child": "fork(lambda: None)",
}


def thread_flags(scene: Scene, way: str) -> list[str]:
    return ["-W", "ignore:This process:DeprecationWarning"] if scene.threads or way == "fork in a thread" else []


@pytest.fixture
def forkers(account: Server, admin: Any, database: str) -> Callable[..., None]:
    """A function that runs a scene through a proxy and checks the parent's sockets and sessions."""
    with admin.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {database}.kept (a INT) ENGINE=InnoDB")

    def check(folder: Path, scene: Scene, way: str, *words: str, **kwargs: Any) -> None:
        with Proxy(account.host, account.port) as proxy:
            options = {"timeout": 10.0} | scene.options
            given = account.kwargs(port=proxy.port, database=database, pool=options) | kwargs
            body = FORK.format(before=scene.before, fork=WAYS[way], after=scene.after)
            with Program(folder, body, given, *thread_flags(scene, way), words=words) as program:
                program.reach("ready")
                wait_until(lambda: quiet(proxy), what="silence")
                links = list(proxy.links)
                assert links
                assert all(link.encrypted for link in links) == ("ssl" in kwargs)
                parents = connection_ids(admin, account.user)
                sent = [link.bytes_to_server for link in links]
                program.go()
                program.reach("forked")
                assert [link.bytes_to_server for link in links] == sent
                assert not any(link.closed for link in links)
                assert connection_ids(admin, account.user) >= parents
                program.go()
                program.end()
        wait_until(lambda: not connection_ids(admin, account.user), what="the end of every session")

    return check


def quiet(proxy: Proxy) -> bool:
    """Say whether nothing was sent for a moment: the program has nothing under way."""
    before = proxy.bytes_to_server
    time.sleep(0.02)
    return proxy.bytes_to_server == before


@pytest.mark.parametrize("name", SCENES)
def test_parent_goes_on_as_if_nothing_had_been(name: str, forkers: Callable[..., None], tmp_path: Path) -> None:
    forkers(tmp_path, SCENES[name], "fork", ssl_disabled=True)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "fork"])
def test_every_way_to_fork(way: str, forkers: Callable[..., None], tmp_path: Path) -> None:
    forkers(tmp_path, SCENES["two leases"], way, ssl_disabled=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("way", [way for way in WAYS if way != "fork"])
def test_every_scene_every_way(way: str, name: str, forkers: Callable[..., None], tmp_path: Path) -> None:
    forkers(tmp_path, SCENES[name], way, ssl_disabled=True)


class TestTLS:
    @pytest.fixture
    def server(self, tls_server: Server) -> Server:
        return tls_server

    @pytest.mark.parametrize("name", ["idle", "two leases", "unread result", "statement of another thread"])
    def test_tls_sessions_of_the_parent(self, name: str, forkers: Callable[..., None], tmp_path: Path) -> None:
        forkers(tmp_path, SCENES[name], "fork", ssl={"check_hostname": False})


@pytest.mark.parametrize("name", ["idle", "two leases", "transaction"])
def test_process_id_tells_where_there_are_no_hooks(name: str, forkers: Callable[..., None], tmp_path: Path) -> None:
    scene = SCENES[name]._replace(threads=True)  # nobody stops the housekeeper, and forking warns of it
    forkers(tmp_path, scene, "fork", "hide-hooks", ssl_disabled=True)


FORKSERVER = """
def work(foreign):
    use_pool_in_child((), foreign)

if __name__ == "__main__":
    leases = [connect(), connect()]
    ids = [ask(lease) for lease in leases]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pooled_pymysql"])
    children = [context.Process(target=work, args=(ids,)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert [ask(lease) for lease in leases] == ids
    for lease in leases:
        lease.close()
"""


def test_forkserver(server: Server, tmp_path: Path) -> None:
    with Program(tmp_path, FORKSERVER, server.kwargs(ssl_disabled=True)) as program:
        program.end()


EXITING_CHILD = """
leases = [connect(), connect()]
ids = [ask(lease) for lease in leases]
leases.pop().close()
pid = os.fork()
if pid == 0:
    with connect() as own:  # left idle: the child says goodbye to it, and to no other
        assert ask(own) not in ids
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert ask(leases[0]) == ids[0]
with connect() as again:
    assert ask(again) == ids[1]
leases[0].close()
"""


def test_child_that_ends_normally_ends_its_own_sessions_only(account: Server, tmp_path: Path) -> None:
    with Proxy(account.host, account.port) as proxy:
        with Program(tmp_path, EXITING_CHILD, account.kwargs(port=proxy.port, ssl_disabled=True)) as program:
            program.end()
        quits = [code for code, _ in proxy.commands if code == 1]
        assert (len(quits), proxy.connections) == (3, 3)


MANY_FORKS = """
lease = connect()
number = ask(lease)
stop = threading.Event()
def work():
    while not stop.is_set():
        with connect() as own:
            ask(own)
workers = [start(work) for _ in range(3)]
for _ in range(FORKS):
    fork(lambda: ask(connect()))
stop.set()
for thread, outcome in workers:
    thread.join()
    assert outcome == [None], outcome
assert ask(lease) == number
lease.close()
"""


@pytest.mark.parametrize("forks", [10, pytest.param(300, marks=[pytest.mark.slow, pytest.mark.timeout(300)])])
def test_forks_while_threads_lease_and_query(
    forks: int, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "PATIENCE", 20.0 + forks / 3)
    body = MANY_FORKS.replace("FORKS", str(forks))
    flags = ["-W", "ignore:This process:DeprecationWarning"]
    with Program(tmp_path, body, server.kwargs(ssl_disabled=True), *flags) as program:
        program.end()


def aborted_clients(admin: Any) -> int:
    with admin.cursor() as cursor:
        cursor.execute("SHOW GLOBAL STATUS LIKE 'Aborted_clients'")
        return int(cursor.fetchone()[1])


def somebody_else_is_here(admin: Any) -> bool:
    with admin.cursor() as cursor:
        cursor.execute(
            "SELECT COUNT(*) FROM information_schema.processlist"
            " WHERE user NOT IN ('system user', 'event_scheduler') AND id <> CONNECTION_ID()"
        )
        return bool(cursor.fetchone()[0])


def test_server_sees_no_aborted_client(server: Server, admin: Any, tmp_path: Path) -> None:
    for _ in range(5):  # on a server that others use too, theirs count as well
        before = aborted_clients(admin)
        with Program(tmp_path, EXITING_CHILD, server.kwargs(ssl_disabled=True)) as program:
            program.end()
        time.sleep(0.2)  # the server counts a little later
        grown = aborted_clients(admin) - before
        if not grown:
            return
    if somebody_else_is_here(admin):
        pytest.skip("somebody else uses this server")
    assert grown == 0
