"""Sharing, closing, dropping, interrupting, forking and collecting, all at once and for minutes: `tox -e stress`.

STRESS_SECONDS sets how long each test goes on (300 by default), STRESS_SEED what is drawn.
"""

from __future__ import annotations

import ctypes
import gc
import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest
from callers import Caller
from crowd import CLOSED, Crowd, crowd_arguments, prepare
from pymysql.cursors import SSCursor
from servers import Server, connection_ids, wait_until

import pooled_pymysql
from pooled_pymysql import stock

SECONDS = float(os.environ.get("STRESS_SECONDS", "300"))
SEED = int(os.environ.get("STRESS_SEED", "0")) or random.SystemRandom().randrange(1, 10**9)

pytestmark = [
    pytest.mark.stress,
    pytest.mark.timeout(SECONDS + 120),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Previous unbuffered result"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


@pytest.fixture(autouse=True)
def nervous(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let threads change places, and the collector run, as often as Python can."""
    interval, threshold = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(50, 5, 5)
    monkeypatch.setattr(stock, "_MISSING_TIME", 2.0)
    yield
    sys.setswitchinterval(interval)
    gc.set_threshold(*threshold)


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """A function that prints, past pytest's capturing."""

    def write(text: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\n{text}\n")

    return write


def assert_even(account: Server, admin: Any, kwargs: dict[str, Any]) -> None:
    """Assert that nothing is out, that pool and server agree, and that the next leases are clean."""
    (pool,) = pooled_pymysql.pools()
    gc.collect()
    try:
        wait_until(lambda: (pool.stats().in_use, pool.stats().opening) == (0, 0))
    except AssertionError:
        holders = [(session.thread_id, session.is_missing()) for session in pool._ledger.in_use]
        raise AssertionError(f"not every session came back (seed {SEED}): {pool.stats()}, {holders}") from None
    for number in range(10):
        with pooled_pymysql.connect(**kwargs) as lease, lease.cursor() as cursor:
            cursor.execute("SELECT %s, @left", (number,))
            assert cursor.fetchall() == ((number, None),)
    pool._ledger.check()
    wait_until(lambda: pool.tick() and not pool._ledger.owing, what="all replies")
    idle = {session.thread_id for session in pool._ledger.idle if not session.poll(0)}
    wait_until(lambda: connection_ids(admin, account.user) == idle, what="as many sessions on the server")


def test_one_lease_shared_by_many_threads_with_closing(
    account: Server, admin: Any, database: str, tmp_path: Path, tell: Callable[[str], None]
) -> None:
    tell(f"STRESS_SEED={SEED}")
    kwargs = crowd_arguments(account, database) | {"pool": {"max_size": 4, "timeout": 60.0}}
    with pooled_pymysql.connect(**kwargs) as lease:
        prepare(lease)
    chance = random.Random(SEED)
    until = time.monotonic() + SECONDS
    rounds = 0
    while time.monotonic() < until:
        lease = pooled_pymysql.connect(**kwargs)
        threads = chance.choice((2, 8, 32))
        crowd = Crowd(lease, threads, tmp_path)
        closing = chance.random() < 0.5
        statements = 100_000 if closing else chance.randrange(5, 60)
        workers = [Caller(lambda me=me, crowd=crowd, n=statements: crowd.work(me, n)) for me in range(threads)]  # type: ignore[misc]
        if closing:
            time.sleep(chance.random() * 0.2)
            lease.close()
        for worker in workers:
            worker.join(120)
            assert not worker.is_alive(), f"a worker hangs (seed {SEED}, round {rounds})"
            if worker.error is not None:
                assert closing, "".join(traceback.format_exception(worker.error))
                assert isinstance(worker.error, pymysql.err.Error), worker.error
                assert worker.error.args[0] in CLOSED or worker.error.args == ("Already closed",), worker.error
        if not closing:
            lease.close()
        rounds += 1
    tell(f"{rounds} leases shared")
    assert_even(account, admin, kwargs)


class Torn(BaseException):
    """Raised in threads from outside."""


class Storm:
    """Threads that lease, ask, close or drop, while others interrupt them."""

    def __init__(self, kwargs: dict[str, Any], seed: int, until: float) -> None:
        self.kwargs = kwargs
        self.until = until
        self.wrong: list[BaseException] = []
        self.kept: list[Any] = []
        self.counts = dict.fromkeys(("asked", "torn", "dropped", "forked"), 0)
        self.threads = [threading.Thread(target=self.work, args=(seed + me,), daemon=True) for me in range(6)]
        for thread in self.threads:
            thread.start()

    @property
    def is_on(self) -> bool:
        return time.monotonic() < self.until and not self.wrong

    def work(self, seed: int) -> None:
        chance = random.Random(seed)
        while self.is_on:
            try:
                self.lease(chance)
            except Torn:
                continue
            except pymysql.err.OperationalError as error:
                if error.args[0] not in (2006, 2013, 2014):
                    self.wrong.append(error)
            except BaseException as error:
                self.wrong.append(error)

    def lease(self, chance: random.Random) -> None:
        number = chance.randrange(10**9)
        lease = pooled_pymysql.connect(**self.kwargs)
        cursor = lease.cursor(SSCursor if chance.random() < 0.3 else None)
        cursor.execute("SELECT %s, @left UNION ALL SELECT %s, @left", (number, number))
        row = cursor.fetchone()
        assert row == (number, None), row
        if chance.random() < 0.2:
            cursor.execute("SET @left = 1")
        self.counts["asked"] += 1
        if chance.random() < 0.5:
            lease.close()
            return
        self.counts["dropped"] += 1
        if chance.random() < 0.3:
            self.kept.append([lease, cursor, self.kept])  # goes in a cycle, with the collector
            if len(self.kept) > 2:
                self.kept.clear()

    def disturb(self, chance: random.Random) -> None:
        thread = chance.choice(self.threads)
        if not thread.is_alive():  # its number may be another one's by now
            return
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Torn))
        self.counts["torn"] += 1
        if chance.random() < 0.01:
            fork_and_ask(self.kwargs)
            self.counts["forked"] += 1

    def end(self) -> None:
        self.kept.clear()
        for thread in self.threads:
            deadline = time.monotonic() + 40
            while thread.is_alive() and time.monotonic() < deadline:
                # An unread result and its lease are a cycle, and in a program that does nothing else it would stay one.
                gc.collect()
                thread.join(0.5)
            assert not thread.is_alive(), f"a thread hangs (seed {SEED}) at\n{stack_of(thread)}"
        self.kept.clear()
        assert not self.wrong, self.wrong


def test_many_leases_dropped_interrupted_and_forked(
    account: Server, admin: Any, database: str, tell: Callable[[str], None]
) -> None:
    tell(f"STRESS_SEED={SEED}")
    kwargs = account.kwargs(database=database, autocommit=True, pool={"max_size": 6, "timeout": 60.0})
    storm = Storm(kwargs, SEED, time.monotonic() + SECONDS)
    chance = random.Random(SEED)
    while storm.is_on:
        time.sleep(chance.random() * 0.1)
        storm.disturb(chance)
    storm.end()
    tell(f"{storm.counts}")
    assert_even(account, admin, kwargs)


def stack_of(thread: threading.Thread) -> str:
    return "".join(traceback.format_stack(sys._current_frames()[thread.ident or 0]))


def fork_and_ask(kwargs: dict[str, Any]) -> None:
    """Ask in a forked child; it must answer within its time, and end."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            faults = threading.Timer(20, os._exit, (2,))
            faults.daemon = True
            faults.start()
            with pooled_pymysql.connect(**kwargs) as lease, lease.cursor() as cursor:
                cursor.execute("SELECT 42")
                status = int(cursor.fetchall() != ((42,),))
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
