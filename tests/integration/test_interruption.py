"""Exceptions from outside (Ctrl-C, a signal handler's, another thread's) at every point where Python can deliver one.

CPython looks for them when a function begins, after a call of a C function and when a loop goes round. A tracer counts
those points within the package, PyMySQL and the socket module, and raises at the one that it was told.
"""

from __future__ import annotations

import contextlib
import ctypes
import dis
import gc
import itertools
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import pymysql
import pytest
from pymysql.constants import CLIENT
from pymysql.cursors import Cursor, SSCursor
from servers import Server, connection_ids, wait_until

import pooled_pymysql
from pooled_pymysql import lease as lease_module
from pooled_pymysql.replies import IN_FLIGHT, LANDED
from pooled_pymysql.stock import Stock

# Leases are dropped here on purpose.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    # PyMySQL's and the socket module's, when their __init__() was interrupted.
    pytest.mark.filterwarnings("ignore:.*(SSCursor.close|SocketIO):pytest.PytestUnraisableExceptionWarning"),
]

PACKAGE = str(Path(pooled_pymysql.__file__).parent)
WATCHED = (PACKAGE, str(Path(pymysql.__file__).parent), socket.__file__)


class Torn(BaseException):
    """As gevent.Timeout and SystemExit: no `except Exception` sees it."""


class Interrupter:
    """A context manager that raises `error` at the `chosen`-th point, or only counts the points."""

    def __init__(self, chosen: int = 0, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.chosen = chosen
        self.error = error
        self.points = 0
        self.where = "nowhere"
        self.tables: dict[Any, tuple[dict[int, str], list[Any]]] = {}
        self.previous: dict[FrameType, int] = {}

    def __enter__(self) -> Self:
        self.outer = sys.gettrace()
        self.hook, sys.unraisablehook = sys.unraisablehook, lambda _: None  # one raised in __del__ goes no further
        sys.settrace(self.trace)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        sys.settrace(self.outer)
        self.previous.clear()
        gc.collect()
        sys.unraisablehook = self.hook
        return isinstance(error, self.error)

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(WATCHED):
            self.previous.clear()  # a call of Python code: no point behind it
            return None
        self.previous.clear()
        self.pass_point(frame)
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self.trace_inside

    def trace_inside(self, frame: FrameType, event: str, _: Any) -> Any:
        if event != "opcode":
            self.previous.clear()
            return self.trace_inside
        names, ranges = self.table(frame.f_code)
        before = self.previous.pop(frame, None)
        here = frame.f_lasti
        called = before is not None and names[before].startswith("CALL")
        if (called and handler(ranges, before) == handler(ranges, here)) or names[here].startswith("JUMP_BACKWARD"):
            self.pass_point(frame)
        self.previous[frame] = here
        return self.trace_inside

    def table(self, code: Any) -> tuple[dict[int, str], list[Any]]:
        found = self.tables.get(code)
        if found is None:
            names = {instruction.offset: instruction.opname for instruction in dis.get_instructions(code)}
            found = self.tables[code] = (names, dis._parse_exception_table(code))
        return found

    def pass_point(self, frame: FrameType) -> None:
        self.points += 1
        if self.points == self.chosen:
            code = frame.f_code
            self.where = f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_qualname}"
            raise self.error("injected")


def handler(ranges: list[Any], offset: int | None) -> Any:
    """Return where an exception at this offset goes: points that differ in this differ for real exceptions."""
    return next((entry.target for entry in reversed(ranges) if entry.start <= (offset or 0) < entry.end), None)


# What is interrupted


def plain_work(kwargs: dict[str, Any]) -> None:
    lease = pooled_pymysql.connect(**kwargs)
    with lease.cursor() as cursor:
        cursor.execute("SELECT 'mine', %s", (1,))
        assert cursor.fetchall() == (("mine", 1),)
    lease.commit()
    lease.close()


def touching_work(kwargs: dict[str, Any]) -> None:
    lease = pooled_pymysql.connect(**kwargs)
    with lease.cursor() as cursor:
        cursor.execute("SET @left = 'over'")
        cursor.execute("INSERT INTO kept VALUES ('mine')")
        cursor.executemany("INSERT INTO kept VALUES (%s)", [("a",), ("b",)])
    lease.rollback()
    lease.ping()
    lease.close()


def unbuffered_work(kwargs: dict[str, Any]) -> None:
    lease = pooled_pymysql.connect(**kwargs)
    cursor = lease.cursor(SSCursor)
    cursor.execute("SELECT 'mine', 1 UNION ALL SELECT 'mine', 2; SELECT 'mine', 3")
    assert cursor.fetchone() == ("mine", 1)
    assert cursor.fetchall() == [("mine", 2)]
    assert cursor.nextset()
    cursor.close()
    lease.close()


def failing_work(kwargs: dict[str, Any]) -> None:
    lease = pooled_pymysql.connect(**kwargs)
    with lease.cursor() as cursor:
        try:
            cursor.execute("SELECT * FROM missing")
        except pymysql.err.ProgrammingError:
            lease.rollback()
        cursor.execute("SELECT 1; SELECT 2")  # of which the second is left
    lease.close()


def dropping_work(kwargs: dict[str, Any]) -> None:
    lease = pooled_pymysql.connect(**kwargs)
    cursor = lease.cursor(SSCursor)
    cursor.execute("SELECT 'mine' UNION ALL SELECT 'mine'")
    cursor.fetchone()
    del cursor
    del lease


def opening_work(kwargs: dict[str, Any]) -> None:
    first, second = pooled_pymysql.connect(**kwargs), pooled_pymysql.connect(**kwargs)
    first._sock.shutdown(socket.SHUT_RDWR)  # found dead when it is given back, and replaced at the next round
    first.close()
    second.connect()  # give back and lease again
    second.close()


WORK = [plain_work, touching_work, unbuffered_work, failing_work, dropping_work, opening_work]


class Bench:
    """A pool that is interrupted again and again, and what came of it."""

    def __init__(self, account: Server, admin: Any, database: str) -> None:
        self.account = account
        self.admin = admin
        self.kwargs = account.kwargs(
            database=database,
            ssl_disabled=True,
            client_flag=CLIENT.MULTI_STATEMENTS,
            pool={"max_size": 100, "timeout": 5.0},
        )
        with admin.cursor() as cursor:
            cursor.execute(f"CREATE TABLE {database}.kept (a TEXT) ENGINE=InnoDB")
        self.check_next("first")
        (self.pool,) = pooled_pymysql.pools()

    def check_next(self, tag: str) -> None:
        """Assert that the next lease finds nothing of the last one."""
        with pooled_pymysql.connect(**self.kwargs) as lease, lease.cursor() as cursor:
            cursor.execute("SELECT %s, @left, COUNT(*) FROM kept", (tag,))
            assert cursor.fetchall() == ((tag, None, 0),), tag

    def interrupt(self, work: Callable[[dict[str, Any]], None], chosen: int, error: type[BaseException]) -> str:
        interrupter = Interrupter(chosen, error)
        with interrupter:
            work(self.kwargs)
        self.pool.tick()
        self.check_next(f"{chosen}")
        return interrupter.where

    def settle(self, history: dict[str, tuple[int, int]]) -> None:
        """Assert that no slot is lost and that the server has as many sessions as the pool."""
        deadline = time.monotonic() + 20
        while any(self.stuck()) and time.monotonic() < deadline:
            gc.collect()
            self.pool.tick()
            time.sleep(0.02)
        assert not any(self.stuck()), f"{self.pool.stats()}, perhaps lost at {grown(history)}"
        self.pool._ledger.check()
        try:
            wait_until(self.is_even)
        except AssertionError:
            left = connection_ids(self.admin, self.account.user)
            raise AssertionError(f"the server has {len(left)} sessions: {self.pool.stats()}") from None

    def stuck(self) -> tuple[int, int]:
        stats = self.pool.stats()
        return stats.in_use, stats.opening + stats.waiting

    def is_even(self) -> bool:
        """Say whether the pool's sessions are the server's; one that was cut is noticed when it is asked for."""
        self.pool.tick()
        idle = [session for session in self.pool._ledger.idle if not session.poll(0)]
        return connection_ids(self.admin, self.account.user) == {session.thread_id for session in idle}


def grown(history: dict[str, tuple[int, int]]) -> list[str]:
    """List the places after which more was opening or waiting, or else in use, than before."""
    for count in (1, 0):
        counts = itertools.pairwise([0, *(counts[count] for counts in history.values())])
        if places := [place for place, (old, new) in zip(history, counts, strict=True) if new > old]:
            return places
    return []


@pytest.fixture
def bench(account: Server, admin: Any, database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr("pooled_pymysql.stock._MISSING_TIME", 0.5)  # seconds until the sweep takes what was lost
    gc.collect()
    gc.freeze()  # what is there already need not be looked at thousands of times
    yield Bench(account, admin, database)
    pooled_pymysql.close_pools()
    gc.unfreeze()


def sweep(bench: Bench, work: Callable[[dict[str, Any]], None], error: type[BaseException], most: int) -> None:
    """Interrupt the work at all of its points, or at about `most` of them that lie evenly."""
    with Interrupter() as counter:
        work(bench.kwargs)
    assert counter.points > 50
    history = {}
    stride = max(1, counter.points // most)
    for chosen in range(1 + len(work.__name__) % stride, counter.points + 1, stride):
        where = bench.interrupt(work, chosen, error)
        history[f"{chosen} {where}"] = bench.stuck()
    bench.settle(history)


@pytest.mark.parametrize("work", WORK)
def test_interrupted_at_many_points(work: Callable[[dict[str, Any]], None], bench: Bench) -> None:
    sweep(bench, work, KeyboardInterrupt, 25)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, Torn])
@pytest.mark.parametrize("work", WORK)
def test_interrupted_at_every_point(
    work: Callable[[dict[str, Any]], None], error: type[BaseException], bench: Bench
) -> None:
    sweep(bench, work, error, 100_000)


# The lease that was interrupted goes on


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what was sent through sockets so far."""
    sizes: list[int] = []
    plain = socket.socket.sendall

    def sendall(self: socket.socket, data: Any, *flags: int) -> None:
        sizes.append(len(data))
        plain(self, data, *flags)

    monkeypatch.setattr(socket.socket, "sendall", sendall, raising=False)
    return sizes


def check_interrupted_lease(lease: Any, was_sent: bool, where: str) -> None:
    """It answers rightly, or says that it cannot; where not a byte was sent, it answers."""
    started = time.monotonic()
    try:
        with lease.cursor() as cursor:
            cursor.execute("SELECT 'next'")
            assert cursor.fetchall() == (("next",),), where
    except pymysql.err.Error as error:
        assert was_sent, (where, error)
    assert time.monotonic() - started < 2.0, where


@pytest.mark.filterwarnings("ignore:Previous unbuffered result")
@pytest.mark.parametrize("kind", [Cursor, SSCursor])
def test_exception_before_the_first_byte_costs_nothing(kind: type[Cursor], bench: Bench, sent: list[int]) -> None:
    chosen, interrupter = 0, Interrupter()
    while chosen == interrupter.chosen and chosen < 2000:
        chosen += 1
        lease = pooled_pymysql.connect(**bench.kwargs)
        cursor = lease.cursor(kind)
        lease.ping()
        before = len(sent)
        interrupter = Interrupter(chosen)
        with interrupter:
            cursor.execute("SELECT 'mine'")
            cursor.fetchall()
            lease.commit()
        if interrupter.where == "nowhere":
            lease.close()
            break
        check_interrupted_lease(lease, len(sent) > before, f"{chosen} {interrupter.where}")
        lease.close()
        bench.check_next(f"{chosen}")
    assert 20 < chosen < 2000
    bench.settle({})


# A socket that fails


class Saboteur:
    """Makes the `chosen`-th call of a socket's method raise: before it did anything, half-way, or when it was done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.chosen = 0
        self.moment = ""
        self.error: type[BaseException] = KeyboardInterrupt
        self.thread: int | None = threading.get_ident()  # None: all, for sessions are opened on helper threads
        for name in ("sendall", "recv_into", "recv", "connect"):
            monkeypatch.setattr(socket.socket, name, self.sabotaged(getattr(socket.socket, name)), raising=False)

    def sabotaged(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def method(sock: socket.socket, *args: Any) -> Any:
            if self.thread not in (None, threading.get_ident()):
                return plain(sock, *args)
            self.calls += 1
            if self.calls != self.chosen:
                return plain(sock, *args)
            if self.moment == "half-way" and plain.__name__ == "sendall":
                plain(sock, args[0][: len(args[0]) // 2])
            elif self.moment == "half-way" and plain.__name__ == "recv_into":
                plain(sock, memoryview(args[0])[:1])
            elif self.moment == "half-way" and plain.__name__ == "recv":
                plain(sock, 1)
            elif self.moment != "before":
                plain(sock, *args)
            raise self.error("injected")

        return method

    def arm(self, chosen: int, moment: str, error: type[BaseException]) -> None:
        self.calls, self.chosen, self.moment, self.error = 0, chosen, moment, error


MOMENTS = {"before": KeyboardInterrupt, "half-way": MemoryError, "after": Torn}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("work", WORK)
def test_interrupted_at_the_socket(
    work: Callable[[dict[str, Any]], None], moment: str, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(work, moment, MOMENTS[moment], bench, monkeypatch)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, Torn])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("work", WORK)
def test_interrupted_at_the_socket_by_anything(
    work: Callable[[dict[str, Any]], None],
    moment: str,
    error: type[BaseException],
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sabotage(work, moment, error, bench, monkeypatch)


def sabotage(
    work: Callable[[dict[str, Any]], None],
    moment: str,
    error: type[BaseException],
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saboteur = Saboteur(monkeypatch)
    if work is opening_work:
        saboteur.thread = None
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    saboteur.arm(0, moment, error)
    work(bench.kwargs)
    calls = saboteur.calls
    assert calls >= 2
    for chosen in range(1, calls + 1):
        saboteur.arm(chosen, moment, error)
        with contextlib.suppress(error, pymysql.err.OperationalError):
            work(bench.kwargs)
        saboteur.chosen = 0
        bench.pool.tick()
        bench.check_next(f"{chosen}")
    bench.settle({})


# Other threads


def test_exceptions_set_in_threads_that_lease_and_query(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyThreadState_SetAsyncExc, at moments of chance."""
    for module, name in ((sys, "unraisablehook"), (threading, "excepthook")):  # one may fall outside of every `try`
        monkeypatch.setattr(module, name, lambda _: None)
    done = threading.Event()
    wrong: list[BaseException] = []

    def work(me: int) -> None:
        while not done.is_set():
            try:
                with pooled_pymysql.connect(**bench.kwargs) as lease, lease.cursor() as cursor:
                    cursor.execute("SELECT %s, @left", (me,))
                    assert cursor.fetchall() == ((me, None),)
                    cursor.execute("SET @left = 1")
            except Torn:
                continue
            except BaseException as error:
                wrong.append(error)
                return

    threads = [threading.Thread(target=work, args=(me,), daemon=True) for me in range(3)]
    for thread in threads:
        thread.start()
    chance = random.Random(7)
    for _ in range(150):
        time.sleep(chance.random() * 0.005)
        thread = chance.choice(threads)
        if not thread.is_alive():  # its number may be another one's by now
            continue
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Torn))
    done.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert not [error for error in wrong if not isinstance(error, pymysql.err.Error)], wrong
    bench.settle({})


# The opening that fills the pool


@pytest.mark.parametrize("timeout", [0.0, 10.0])
def test_interrupted_before_anybody_opens_the_only_session(
    server: Server, monkeypatch: pytest.MonkeyPatch, timeout: float
) -> None:
    """Nothing else may be opened then, and no thread looks after the pool yet: who asks next sets it going again."""
    kwargs = server.kwargs(pool={"max_size": 1, "timeout": timeout})
    with monkeypatch.context() as patch:
        patch.setattr(Stock, "_open_beside", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pooled_pymysql.connect(**kwargs)
    assert wait_until(lambda: answers(kwargs), 20.0)


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def answers(kwargs: dict[str, Any]) -> bool:
    with contextlib.suppress(pooled_pymysql.PoolTimeout), pooled_pymysql.connect(**kwargs) as lease:
        lease.ping()
        return True
    return False


# Sessions that an interruption takes from their lease


@pytest.mark.parametrize("place", ["pooled_pymysql.session.Session.restore", "pooled_pymysql.session.Session._send"])
def test_session_whose_restoring_was_interrupted_is_not_missing(
    server: Server, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    kwargs = server.kwargs(pool={"max_size": 1, "timeout": 10.0})
    lease = pooled_pymysql.connect(**kwargs)
    lease.query("SET @left = 'over'")
    with monkeypatch.context() as patch:
        patch.setattr(place, interrupted)
        with pytest.raises(KeyboardInterrupt):
            lease.close()
    assert answers(kwargs)


@pytest.mark.parametrize("is_bound", [False, True])
def test_session_whose_lease_was_not_finished_is_not_missing(
    server: Server, monkeypatch: pytest.MonkeyPatch, is_bound: bool
) -> None:
    kwargs = server.kwargs(pool={"max_size": 1, "timeout": 10.0})
    pooled_pymysql.connect(**kwargs).close()
    bind = lease_module._bind

    def interrupted_bind(*args: Any) -> None:
        if is_bound:
            bind(*args)
        interrupted()

    with monkeypatch.context() as patch:
        patch.setattr(lease_module, "_bind", interrupted_bind)
        with pytest.raises(KeyboardInterrupt):
            pooled_pymysql.connect(**kwargs)
    for _ in range(3):
        assert answers(kwargs)
    (pool,) = pooled_pymysql.pools()
    pool._ledger.check()
    assert pool.stats().opened == 2


def test_exception_in_a_thread_that_waits_for_its_turn_keeps_nobody_out(server: Server) -> None:
    """It is delivered when the turn comes, and the statement that was waited for looks like one of its own."""
    lease = pooled_pymysql.connect(**server.kwargs(pool={"max_size": 1, "timeout": 5.0}))
    ended: list[type[BaseException]] = []

    def wait() -> None:
        try:
            lease.ping()
        except BaseException as error:
            ended.append(type(error))

    lease._turn.acquire()
    lease._flight = IN_FLIGHT  # a statement of this thread
    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    wait_until(lambda: is_in(waiting, "_wait_for_turn"))
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(waiting.ident or 0), ctypes.py_object(Torn))
    lease._flight = LANDED
    lease._turn.release()
    waiting.join(20)
    assert ended == [Torn]
    lease.ping()
    lease.close()
    (pool,) = pooled_pymysql.pools()
    assert (pool.stats().in_use, pool.stats().idle) == (0, 1)


def is_in(thread: threading.Thread, function: str) -> bool:
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and frame.f_code.co_name == function
