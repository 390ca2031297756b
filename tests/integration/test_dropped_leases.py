"""Leases that are garbage instead of closed: each session comes back, cleaned, and collecting waits for nothing."""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import os
import pickle
import queue
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from proxy import Proxy
from pymysql.cursors import Cursor, SSCursor
from servers import Server, connection_ids, wait_until

import pooled_pymysql
from pooled_pymysql.session import Session

PATIENCE = 20.0
ROWS = "WITH RECURSIVE s(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM s WHERE x < 900) SELECT x, REPEAT('x', 999) FROM s"
FORGETFUL = pytest.mark.filterwarnings("ignore:a connection of pool:ResourceWarning")


@pytest.fixture(autouse=True)
def quick_collections() -> Iterator[None]:
    """What was there before a test need not be looked at by its collections."""
    gc.collect()
    gc.freeze()
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.enable()
    gc.unfreeze()


def only_pool() -> pooled_pymysql.Pool:
    (pool,) = pooled_pymysql.pools()
    return pool


def one_session(server: Server, **options: Any) -> dict[str, Any]:
    return server.kwargs(pool={"max_size": 1, "timeout": PATIENCE} | options)


def assert_clean(lease: Any, tag: object = "next") -> None:
    with lease.cursor() as cursor:
        cursor.execute("SELECT %s, @left", (tag,))
        assert cursor.fetchall() == ((tag, None),)


# Every shape of garbage


class Cycle:
    """Something that only the collector can free."""

    def __init__(self, held: object) -> None:
        self.held = held
        self.me = self


def unread(lease: Any, rows: int = 1) -> Any:
    cursor = lease.cursor(SSCursor)
    cursor.execute(ROWS)
    for _ in range(rows):
        cursor.fetchone()
    return cursor


def failed(lease: Any) -> object:
    with pytest.raises(TypeError) as caught:
        lease.cursor().execute(object())
    return Cycle(caught.value)


SHAPES: dict[str, Callable[[Any], object]] = {
    "lease": lambda lease: lease,
    "cycle": Cycle,
    "cursor": lambda lease: lease.cursor(),
    "cursor in a cycle": lambda lease: Cycle(lease.cursor()),
    "lease and cursors in a cycle": lambda lease: Cycle([lease, lease.cursor(), lease.cursor(SSCursor)]),
    "unread result": unread,
    "unread result in a cycle": lambda lease: Cycle(unread(lease)),
    "unread result not begun": lambda lease: Cycle([lease, unread(lease, 0)]),
    "attribute of its own": lambda lease: setattr(lease, "me", lease),
    "exception": failed,
}


def make_garbage(kwargs: dict[str, Any], shape: Callable[[Any], object]) -> None:
    lease = pooled_pymysql.connect(**kwargs)
    lease.query("SET @left = 'over'")
    shape(lease)


@FORGETFUL
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_dropped_lease_gives_its_session_back_cleaned(shape: Callable[[Any], object], server: Server) -> None:
    kwargs = one_session(server)
    for number in range(3):
        make_garbage(kwargs, shape)
        gc.collect()
        with pooled_pymysql.connect(**kwargs) as lease:
            assert_clean(lease, number)
    stats = only_pool().stats()
    assert (stats.dropped, stats.in_use) == (3, 0)


@FORGETFUL
def test_transaction_of_a_dropped_lease_is_rolled_back(account: Server, database: str, admin: Any) -> None:
    with admin.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {database}.kept (a INT) ENGINE=InnoDB")
    kwargs = account.kwargs(database=database, pool={"max_size": 1, "timeout": PATIENCE})
    lease = pooled_pymysql.connect(**kwargs)
    lease.query("INSERT INTO kept VALUES (1)")
    number = lease.thread_id()
    del lease
    with pooled_pymysql.connect(**kwargs) as lease:
        assert lease.thread_id() == number
        assert lease.query("SELECT * FROM kept") == 0


def test_dropping_warns(server: Server) -> None:
    kwargs = one_session(server, name="shop")
    lease = pooled_pymysql.connect(**kwargs)
    with pytest.warns(ResourceWarning, match="a connection of pool 'shop' was dropped without close") as caught:
        del lease
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lease = pooled_pymysql.connect(**kwargs)
        lease.close()
        del lease


def acquire_here(kwargs: dict[str, Any]) -> Any:
    return pooled_pymysql.connect(**kwargs)


def test_leak_tracking_names_the_place(server: Server) -> None:
    kwargs = one_session(server, leak_tracking=True)
    lease = acquire_here(kwargs)
    with pytest.warns(ResourceWarning) as caught:
        del lease
    text = str(caught[0].message)
    assert Path(__file__).name in text
    assert "acquire_here" in text
    assert server.password not in text.replace(server.user, "").replace(server.database, "")


# Not to be doubled


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize(
    "double",
    [copy.copy, copy.deepcopy, *(lambda it, n=n: pickle.dumps(it, n) for n in range(pickle.HIGHEST_PROTOCOL + 1))],
)
def test_leases_are_neither_copied_nor_pickled(double: Callable[[Any], Any], closed: bool, server: Server) -> None:
    lease = pooled_pymysql.connect(**server.kwargs())
    if closed:
        lease.close()
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        double(lease)
    if not closed:
        assert_clean(lease)
        lease.close()


# Many


@FORGETFUL
@pytest.mark.parametrize("leases", [400, pytest.param(2500, marks=[pytest.mark.slow, pytest.mark.timeout(300)])])
def test_none_of_many_is_lost(leases: int, account: Server, admin: Any) -> None:
    """Four threads drop leases, or hand them to others to drop, while a fifth collects all the time."""
    kwargs = account.kwargs(pool={"max_size": 4, "timeout": PATIENCE})
    shapes = [SHAPES[name] for name in ("lease", "cycle", "cursor in a cycle", "attribute of its own")]
    handed_over: queue.SimpleQueue[Any] = queue.SimpleQueue()
    wrong: list[BaseException] = []
    over = threading.Event()
    interval = sys.getswitchinterval()

    def work(me: int) -> None:
        try:
            for number in range(leases):
                lease = pooled_pymysql.connect(**kwargs)
                assert_clean(lease, number)
                if number % 7 == 0:
                    lease.query("SET @left = 'over'")
                if number % 50 == 0:
                    unread(lease)
                shapes[number % 4](lease)
                if number % 3 == 0:
                    handed_over.put(lease)
                del lease
                with contextlib.suppress(queue.Empty):
                    handed_over.get_nowait()
        except BaseException as error:
            wrong.append(error)

    def collect() -> None:
        while not over.wait(0.002):
            gc.collect()

    gc.set_threshold(50, 2, 2)
    sys.setswitchinterval(1e-5)
    collector = threading.Thread(target=collect, daemon=True)
    collector.start()
    try:
        threads = [threading.Thread(target=work, args=(me,), daemon=True) for me in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
            assert not thread.is_alive()
    finally:
        sys.setswitchinterval(interval)
        over.set()
        collector.join(PATIENCE)
    while not handed_over.empty():
        handed_over.get_nowait()
    gc.collect()
    assert wrong == []
    pool = only_pool()
    wait_until(lambda: pool.stats().in_use == 0, what="the return of every session")
    assert pool.stats().dropped == 4 * leases
    pool._ledger.check()
    wait_until(lambda: len(connection_ids(admin, account.user)) == pool.stats().idle)


# Collections at the worst of moments


class CollectingLock:
    """The pool's lock; whoever has just taken it, or is about to free it, collects garbage."""

    def __init__(self, lock: Any) -> None:
        self.lock = lock
        self.collections = 0

    def __enter__(self) -> None:
        self.lock.acquire()
        self.collect()

    def __exit__(self, *_: object) -> None:
        self.collect()
        self.lock.release()

    def collect(self) -> None:
        self.collections += 1
        gc.collect()


@FORGETFUL
def test_collections_while_the_pools_lock_is_held(server: Server) -> None:
    kwargs = server.kwargs(pool={"max_size": 4, "timeout": PATIENCE})
    make_garbage(kwargs, Cycle)
    gc.collect()
    pool = only_pool()
    pool._lock = lock = CollectingLock(pool._lock)
    gc.disable()
    for number in range(30):
        make_garbage(kwargs, Cycle)
        make_garbage(kwargs, SHAPES["unread result in a cycle"])
        with pooled_pymysql.connect(**kwargs) as lease:
            assert_clean(lease, number)
        pool.tick()
        pool.stats()
    assert lock.collections > 300
    gc.collect()
    wait_until(lambda: pool.stats().in_use == 0, what="the return of every session")
    assert pool.stats().dropped == 61


CLOSERS = """
import faulthandler, gc, json, sys, threading, time, weakref
import pooled_pymysql
faulthandler.dump_traceback_later(25, exit=True)
kwargs, way, where = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]

class Owner:
    def __init__(self, lease):
        self.lease, self.me = lease, self
        if way == "finalize":
            weakref.finalize(self, lease.close)
    def __del__(self):
        if way == "del":
            self.lease.close()

class Lock:
    def __init__(self, lock):
        self.lock = lock
    def __enter__(self):
        self.lock.acquire()
        gc.collect()
    def __exit__(self, *_):
        gc.collect()
        self.lock.release()

gc.disable()
gc.freeze()  # what is there already need not be looked at each time
pooled_pymysql.connect(**kwargs).close()
(pool,) = pooled_pymysql.pools()
leases = []
if where == "pool":
    pool._lock = Lock(pool._lock)
else:
    from pooled_pymysql.registry import _registry
    _registry.housekeeper._lock = Lock(_registry.housekeeper._lock)
for _ in range(20):
    leases[:] = [pooled_pymysql.connect(**kwargs), pooled_pymysql.connect(**kwargs)]
    for lease in leases:
        Owner(lease)
    del lease
    with pooled_pymysql.connect(**kwargs) as lease, lease.cursor() as cursor:
        cursor.execute("SELECT 42")
        assert cursor.fetchall() == ((42,),)
    gc.collect()
    deadline = time.monotonic() + 10  # another thread may have collected them, and be at it
    while any(lease.open for lease in leases):
        assert time.monotonic() < deadline
deadline = time.monotonic() + 10
while pool.stats().in_use and time.monotonic() < deadline:  # the housekeeper may be at it
    pool._take_back()
assert pool.stats().in_use == 0, pool.stats()
pool._ledger.check()
pooled_pymysql.close_pools()
print("well")
"""


def run_program(text: str, *arguments: str) -> str:
    root = str(Path(pooled_pymysql.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", text, *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=os.environ | {"PYTHONPATH": root},
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("where", ["pool", "housekeeper"])
@pytest.mark.parametrize("way", ["del", "finalize"])
def test_users_finalizer_may_close_a_lease_while_a_lock_is_held(way: str, where: str, server: Server) -> None:
    """The collector runs users' own `__del__` and weakref callbacks wherever it happens to run."""
    kwargs = json.dumps(server.kwargs(ssl_disabled=True, pool={"timeout": 5.0}))
    assert run_program(CLOSERS, kwargs, way, where) == "well"


# A slow or silent server


def test_lease_closed_in_the_middle_of_bookkeeping_is_restored_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []
    send = Session._send

    def count(self: Session, commands: list[Any], one_write: bool) -> None:
        sent.append(self.thread_id)
        send(self, commands, one_write)

    monkeypatch.setattr(Session, "_send", count)
    lease = pooled_pymysql.connect(**server.kwargs())
    number = lease.thread_id()
    lease.query("SET @left = 'over'")
    with only_pool()._lock:  # where a finalizer may be when it closes
        lease.close()
    wait_until(lambda: only_pool().stats().idle == 1, what="the session's return")
    assert sent == [number]
    with pooled_pymysql.connect(**server.kwargs()) as following:
        assert following.thread_id() == number
        assert_clean(following)


@contextlib.contextmanager
def measured_collections() -> Iterator[list[float]]:
    """The seconds that each collection took."""
    took: list[float] = []
    began = 0.0

    def note(phase: str, _: object) -> None:
        nonlocal began
        if phase == "start":
            began = time.perf_counter()
        else:
            took.append(time.perf_counter() - began)

    gc.callbacks.append(note)
    try:
        yield took
    finally:
        gc.callbacks.remove(note)


@FORGETFUL
@pytest.mark.parametrize("trouble", [Proxy.stall, lambda proxy: proxy.delay(2.0)], ids=["silent", "slow"])
def test_collecting_does_not_wait_for_the_network(trouble: Callable[[Proxy], None], server: Server) -> None:
    with Proxy(server.host, server.port) as proxy:
        kwargs = server.kwargs(port=proxy.port, ssl_disabled=True)
        gc.disable()
        held = []
        for shape in SHAPES.values():
            lease = pooled_pymysql.connect(**kwargs)
            lease.query("SET @left = 'over'")
            held.append(shape(lease))
            held.append(lease)
            del lease
        pool = only_pool()
        assert pool.stats().in_use == len(SHAPES)
        trouble(proxy)
        started = time.perf_counter()
        with measured_collections() as took:
            while held:
                held.pop()
                gc.collect()
        assert time.perf_counter() - started < 2.0
        assert sorted(took)[len(took) // 2] < 0.01
        assert max(took) < 1.0  # less is up to the machine; the network takes two seconds or for ever
        proxy.delay(0)
        proxy.restore()
        wait_until(lambda: pool.stats().in_use == 0, timeout=15, what="the return of every session")
        assert pool.stats().dropped == len(SHAPES)
        with pooled_pymysql.connect(**kwargs) as lease:
            assert_clean(lease)
        pooled_pymysql.close_pools()


def test_unread_result_is_not_read_by_its_cursors_end(server: Server) -> None:
    with Proxy(server.host, server.port) as proxy:
        lease = pooled_pymysql.connect(**server.kwargs(port=proxy.port, ssl_disabled=True))
        cursor = unread(lease)
        proxy.stall()
        started = time.perf_counter()
        del cursor
        gc.collect()
        assert time.perf_counter() - started < 1.0
        proxy.restore()
        with lease.cursor(Cursor) as cursor:
            cursor.execute("SELECT 42")
            assert cursor.fetchall() == ((42,),)
        lease.close()
        pooled_pymysql.close_pools()


# The sweep


def lose_session(kwargs: dict[str, Any]) -> None:
    """Take a session out of the pool in such a way that no lease ever holds it."""
    pooled_pymysql.connect(**kwargs).close()
    pool = only_pool()
    pool.acquire_session(pool._arguments)


def test_sweep_finds_a_session_that_nobody_holds(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pooled_pymysql.stock._MISSING_TIME", 0.5)
    kwargs = one_session(server)
    lose_session(kwargs)
    with pooled_pymysql.connect(**kwargs) as lease:
        assert_clean(lease)


@FORGETFUL
def test_sweep_leaves_sessions_alone_that_are_being_handed_over(server: Server) -> None:
    kwargs = server.kwargs(pool={"max_size": 4, "timeout": PATIENCE})
    pooled_pymysql.connect(**kwargs).close()
    pool = only_pool()
    session = pool.acquire_session(pool._arguments)  # a thread that is not let on for a while
    for _ in range(60):
        pooled_pymysql.connect(**kwargs)  # dropped, which wakes the housekeeper
        pool.tick()
    assert session.sock.fileno() >= 0
    assert session in pool._ledger.in_use
    pool.release(session, None)
    wait_until(lambda: pool.stats().in_use == 0, what="the return of every session")


def test_sweep_leaves_sessions_alone_that_are_waited_for(server: Server) -> None:
    with Proxy(server.host, server.port) as proxy:
        kwargs = one_session(server, timeout=10.0) | {"port": proxy.port, "ssl_disabled": True}
        lease = pooled_pymysql.connect(**kwargs)
        number = lease.thread_id()
        lease.query("SET @left = 'over'")
        proxy.stall()
        lease.close()
        outcome: list[Any] = []

        def work() -> None:
            try:
                with pooled_pymysql.connect(**kwargs) as own:
                    assert_clean(own)
                    outcome.append(own.thread_id())
            except BaseException as error:
                outcome.append(error)

        caller = threading.Thread(target=work, daemon=True)
        caller.start()
        pool = only_pool()
        wait_until(lambda: pool.stats().in_use == 1, what="the caller who waits for the session")
        for _ in range(60):
            pool.tick()
        proxy.restore()
        caller.join(PATIENCE)
        assert outcome == [number]
        assert pool.stats().dropped == 0
        pooled_pymysql.close_pools()


def test_lease_dropped_after_its_pool_was_closed_says_goodbye(account: Server, admin: Any) -> None:
    """All of it is garbage at once: the lease, its session, the socket and the pool."""
    with Proxy(account.host, account.port) as proxy:
        kwargs = account.kwargs(port=proxy.port, ssl_disabled=True)
        cycle: list[Any] = [pooled_pymysql.connect(**kwargs)]
        cycle.append(cycle)
        pool = weakref.ref(only_pool())
        pooled_pymysql.close_pools()
        del cycle
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            gc.collect()
        assert [str(warning.message)[:24] for warning in caught] == ["a connection of pool 'u_"]
        del caught  # which names the lease
        wait_until(lambda: any(code == 1 for code, _ in proxy.commands), what="the goodbye")
        wait_until(lambda: gc.collect() is not None and pool() is None, what="the end of the pool")
