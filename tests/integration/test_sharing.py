"""Threads that share one connection (threadsafety 2): each gets its own answers, and waits no longer than it wants."""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest
from callers import PATIENCE, Caller
from crowd import CLOSED, Crowd, crowd_arguments, prepare, run_crowd
from proxy import Proxy
from pymysql.constants import CLIENT, FIELD_TYPE
from pymysql.converters import conversions
from pymysql.cursors import Cursor, DictCursor, SSCursor, SSDictCursor
from servers import Server, wait_until

import pooled_pymysql
from pooled_pymysql import LeaseBusy, sharing
from pooled_pymysql.replies import IN_FLIGHT

NUMBERS = (
    "WITH RECURSIVE s(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM s WHERE x < 900) SELECT x, REPEAT('x', 99) FROM s"
)


@pytest.fixture(autouse=True)
def nervous_scheduler() -> Iterator[None]:
    """Let threads change places as often as Python can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def ask(lease: Any, answer: int = 42, kind: type[Cursor] = Cursor) -> Any:
    """Ask for a number and return the rows that came."""
    with lease.cursor(kind) as cursor:
        cursor.execute("SELECT %s AS answer", (answer,))
        return cursor.fetchall()


def assert_next_lease_is_clean(kwargs: dict[str, Any]) -> None:
    (pool,) = pooled_pymysql.pools()
    wait_until(lambda: pool.stats().in_use == 0, what="the return of every session")
    for answer in (1, 2):
        with pooled_pymysql.connect(**kwargs) as lease:
            assert ask(lease, answer) == ((answer,),)


# Whose result is picked up


@pytest.mark.parametrize("ahead", ["execute", "nextset"])
def test_a_cursor_picks_up_its_own_result_though_another_thread_was_faster(server: Server, ahead: str) -> None:
    kwargs = server.kwargs(client_flag=CLIENT.MULTI_STATEMENTS)
    with pooled_pymysql.connect(**kwargs) as lease, lease.cursor(SSCursor) as other:
        faster: list[Callable[[], object]] = []

        class Slow(Cursor):
            def _do_get_result(self) -> None:
                while faster:
                    Caller(faster.pop()).outcome()
                super()._do_get_result()  # type: ignore[misc]

        cursor = lease.cursor(Slow)
        if ahead == "execute":
            faster.append(lambda: other.execute(NUMBERS))
        cursor.execute("SELECT 1; SELECT 2")
        assert cursor.fetchall() == ((1,),)
        if ahead == "nextset":
            faster.append(lambda: other.execute(NUMBERS))
        assert cursor.nextset()
        assert cursor.fetchall() == ((2,),)
        assert Caller(other.fetchone).outcome()[0] == 1
        assert not cursor.nextset()
        assert len(Caller(other.fetchall).outcome()) == 899


# Many threads, every kind of statement


@pytest.mark.parametrize(
    "statements",
    [40, pytest.param(2000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
def test_each_thread_gets_its_own_answers(statements: int, server: Server, database: str, tmp_path: Path) -> None:
    kwargs = crowd_arguments(server, database)
    lease = pooled_pymysql.connect(**kwargs)
    prepare(lease)
    run_crowd(Crowd(lease, 32, tmp_path), 32, statements)
    (pool,) = pooled_pymysql.pools()
    assert pool.stats().opened == 1
    lease.close()
    assert_next_lease_is_clean(kwargs)
    assert pool.stats().closed == {}


def test_statement_behind_a_result_that_is_just_being_closed_fails_as_lost(server: Server) -> None:
    with pooled_pymysql.connect(**server.kwargs()) as lease:
        cursor = lease.cursor(SSCursor)
        cursor.execute("SELECT 1 UNION ALL SELECT 2")
        lease._open = None  # as close() has it in another thread, which has yet to take the socket
        with pytest.raises(pymysql.err.OperationalError) as caught:
            lease.query("SELECT 3")
        assert caught.value.args[0] == 2013


@pytest.mark.parametrize(
    "rounds",
    [15, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
def test_close_from_another_thread_ends_every_statement(
    rounds: int, server: Server, database: str, tmp_path: Path
) -> None:
    kwargs = crowd_arguments(server, database)
    with pooled_pymysql.connect(**kwargs) as lease:
        prepare(lease)
    for number in range(rounds):
        lease = pooled_pymysql.connect(**kwargs)
        crowd = Crowd(lease, 4, tmp_path)
        workers = [Caller(lambda me=me, crowd=crowd: crowd.work(me, 100_000)) for me in range(4)]
        time.sleep(random.Random(number).random() * 0.03)
        lease.close()
        for worker in workers:
            with pytest.raises(pymysql.err.Error) as caught:
                worker.outcome()
            assert caught.value.args[0] in CLOSED or caught.value.args == ("Already closed",)
        assert not lease.open
        assert_next_lease_is_clean(kwargs)


# Closed from elsewhere


def close_elsewhere(lease: Any) -> None:
    Caller(lease.close).outcome()


def test_close_during_a_statement_fails_it_as_lost(server: Server) -> None:
    kwargs = server.kwargs(pool={"max_size": 1})
    lease = pooled_pymysql.connect(**kwargs)
    number = lease.thread_id()
    caller = Caller(lambda: lease.query("SELECT SLEEP(15)"))
    waiting = Caller(lambda: ask(lease))
    wait_until(lambda: lease._flight == IN_FLIGHT, what="the statement")
    started = time.monotonic()
    lease.close()
    with pytest.raises(pymysql.err.OperationalError) as caught:
        caller.outcome()
    assert caught.value.args[0] in (2013, 2006)
    with pytest.raises(pymysql.err.Error) as caught:
        waiting.outcome()
    assert caught.value.args[0] in CLOSED
    assert time.monotonic() - started < 10.0
    with pooled_pymysql.connect(**kwargs) as following:
        assert following.thread_id() != number
        assert ask(following) == ((42,),)


@pytest.mark.parametrize("rows", [3, 900])
def test_result_of_a_closed_lease_does_not_end_as_if_it_were_whole(rows: int, server: Server) -> None:
    lease = pooled_pymysql.connect(**server.kwargs())
    cursor = lease.cursor(SSCursor)
    cursor.execute(f"SELECT * FROM ({NUMBERS}) AS n LIMIT {rows}")
    assert cursor.fetchone()
    close_elsewhere(lease)
    with pytest.raises(pymysql.err.OperationalError) as caught:
        cursor.fetchall()
    assert caught.value.args[0] == 2013


@pytest.mark.parametrize("end", [lambda cursor: None, lambda cursor: cursor.close()], ids=["kept", "closed"])
def test_close_lets_those_who_wait_fail_at_once(end: Callable[[Any], None], server: Server) -> None:
    kwargs = server.kwargs(pool={"max_size": 1, "timeout": 6.0})
    lease = pooled_pymysql.connect(**kwargs)
    cursor = lease.cursor(SSCursor)
    cursor.execute(NUMBERS)
    waiting = [Caller(lambda: ask(lease)) for _ in range(3)]
    time.sleep(0.05)
    started = time.monotonic()
    Caller(lease.close).outcome()
    end(cursor)
    for caller in waiting:
        with pytest.raises(pymysql.err.Error) as caught:
            caller.outcome()
        assert caught.value.args[0] in CLOSED
    assert time.monotonic() - started < 3.0
    assert_next_lease_is_clean(kwargs)


@pytest.mark.parametrize("row", [1, 100, 899])
@pytest.mark.parametrize("kind", [Cursor, SSCursor])
@pytest.mark.parametrize("close", [close_elsewhere, lambda lease: lease.close()], ids=["elsewhere", "here"])
def test_close_between_rows_is_a_lost_connection(
    close: Callable[[Any], None], kind: type[Cursor], row: int, server: Server
) -> None:
    seen = itertools.count(1)

    def convert(value: str) -> int:
        if next(seen) == row:
            close(lease)
        return int(value)

    kwargs = server.kwargs(pool={"max_size": 1})
    numbers = dict.fromkeys((FIELD_TYPE.LONG, FIELD_TYPE.LONGLONG), convert)
    lease = pooled_pymysql.connect(**kwargs, conv=conversions | numbers)
    cursor = lease.cursor(kind)
    try:
        cursor.execute(NUMBERS)
        assert len(cursor.fetchall()) == 900  # all had arrived already
        assert row > 800
    except pymysql.err.Error as error:
        assert error.args[0] in CLOSED
    assert not lease.open
    assert_next_lease_is_clean(kwargs)


def test_connecting_again_fails_other_threads_statements_as_lost(server: Server) -> None:
    lease = pooled_pymysql.connect(**server.kwargs(pool={"max_size": 2, "timeout": 5.0}))
    done = threading.Event()

    def work(me: int) -> int:
        answers = 0
        while not done.is_set():
            try:
                assert ask(lease, me) == ((me,),)
                answers += 1
            except pymysql.err.Error as error:
                if error.args[0] not in CLOSED:
                    raise
        return answers

    workers = [Caller(lambda me=me: work(me)) for me in range(6)]
    for _ in range(40):
        time.sleep(0.005)
        lease.connect()
    done.set()
    assert all(worker.outcome() for worker in workers)
    assert ask(lease) == ((42,),)
    lease.close()


# A result that is not read to its end owns the wire


def test_one_thread_executes_and_another_fetches(server: Server) -> None:
    with pooled_pymysql.connect(**server.kwargs(client_flag=CLIENT.MULTI_STATEMENTS)) as lease:
        for kind in (Cursor, SSCursor):
            cursor = lease.cursor(kind)
            Caller(lambda cursor=cursor: cursor.execute(f"{NUMBERS}; SELECT 'next'")).outcome()
            assert Caller(cursor.fetchone).outcome()[0] == 1
            assert len(Caller(cursor.fetchall).outcome()) == 899
            assert Caller(cursor.nextset).outcome() is True
            assert tuple(Caller(cursor.fetchall).outcome()) == (("next",),)
            assert Caller(cursor.nextset).outcome() is None
            Caller(cursor.close).outcome()
            assert ask(lease) == ((42,),)


def test_result_of_an_ended_thread_still_owns_the_wire(server: Server) -> None:
    """Operating systems give a thread's number to the next one."""
    with pooled_pymysql.connect(**server.kwargs(pool={"timeout": 0.2})) as lease:
        for _ in range(3):
            cursor = lease.cursor(SSCursor)
            Caller(lambda cursor=cursor: cursor.execute(NUMBERS)).outcome()
            with pytest.raises(LeaseBusy):
                Caller(lambda: ask(lease)).outcome()
            assert len(cursor.fetchall()) == 900


def test_next_set_is_found_by_a_thread_that_has_worked_before(server: Server) -> None:
    with pooled_pymysql.connect(**server.kwargs(client_flag=CLIENT.MULTI_STATEMENTS)) as lease:
        handed_over: list[Any] = []
        begun, go_on = threading.Event(), threading.Event()

        def work() -> Any:
            lease.commit()  # reads what is left of the abandoned result
            begun.set()
            assert go_on.wait(PATIENCE)
            (cursor,) = handed_over
            return cursor.nextset(), cursor.fetchall()

        abandoned = lease.cursor(SSCursor)
        abandoned.execute(NUMBERS)
        del abandoned
        worker = Caller(work)
        assert begun.wait(PATIENCE)
        cursor = lease.cursor()
        cursor.execute("SELECT 1; SELECT 2")
        handed_over.append(cursor)
        go_on.set()
        assert worker.outcome() == (True, ((2,),))


@pytest.mark.parametrize("kind", [SSCursor, SSDictCursor])
def test_unread_result_makes_others_wait_until_it_is_read(kind: type[Cursor], server: Server) -> None:
    with pooled_pymysql.connect(**server.kwargs(pool={"timeout": PATIENCE})) as lease:
        cursor = lease.cursor(kind)
        cursor.execute(NUMBERS)
        assert cursor.fetchone()
        others = [Caller(lambda answer=answer: ask(lease, answer)) for answer in range(4)]
        time.sleep(0.05)
        assert all(other.is_alive() for other in others)
        assert len(cursor.fetchall()) == 899
        assert [other.outcome() for other in others] == [((answer,),) for answer in range(4)]


def drop(held: list[Any]) -> None:
    held.clear()


def close(held: list[Any]) -> None:
    held.pop().close()


def close_in_another_thread(held: list[Any]) -> None:
    Caller(held.pop().close).outcome()


@pytest.mark.parametrize("end", [drop, close, close_in_another_thread])
@pytest.mark.parametrize("query", [NUMBERS, f"{NUMBERS}; SELECT 1"], ids=["alone", "with more"])
def test_unwanted_result_lets_others_in(query: str, end: Callable[[list[Any]], None], server: Server) -> None:
    kwargs = server.kwargs(client_flag=CLIENT.MULTI_STATEMENTS, pool={"timeout": 3.0})
    with pooled_pymysql.connect(**kwargs) as lease:
        held = [lease.cursor(SSCursor)]
        held[0].execute(query)
        held[0].fetchone()
        other = Caller(lambda: ask(lease))
        time.sleep(0.05)
        assert other.is_alive()
        end(held)
        assert other.outcome() == ((42,),)


@pytest.mark.parametrize("end", [drop, close, lambda held: None], ids=["dropped", "closed", "kept"])
def test_more_results_of_a_dropped_unbuffered_cursor_are_not_read_by_the_collector(
    end: Callable[[list[Any]], None], server: Server
) -> None:
    kwargs = server.kwargs(client_flag=CLIENT.MULTI_STATEMENTS, pool={"timeout": 3.0})
    with pooled_pymysql.connect(**kwargs) as lease:
        held = [lease.cursor(SSCursor)]
        held[0].execute("SELECT 1; SELECT SLEEP(1.5)")
        assert held[0].fetchall() == [(1,)]
        started = time.monotonic()
        end(held)
        assert time.monotonic() - started < 1.0
        assert ask(lease) == ((42,),)


def test_more_results_of_a_buffered_cursor_make_nobody_wait(server: Server) -> None:
    kwargs = server.kwargs(client_flag=CLIENT.MULTI_STATEMENTS, pool={"timeout": 3.0})
    with pooled_pymysql.connect(**kwargs) as lease:
        cursor = lease.cursor()
        cursor.execute("SELECT 1; SELECT 2; SELECT * FROM missing_one; SELECT 4")
        assert Caller(lambda: ask(lease)).outcome() == ((42,),)
        assert cursor.fetchall() == ((1,),)
        assert cursor.nextset()
        assert Caller(lambda: ask(lease)).outcome() == ((42,),)
        assert cursor.fetchall() == ((2,),)
        with pytest.raises(pymysql.err.ProgrammingError, match="missing_one"):
            cursor.nextset()
        assert not cursor.nextset()
        assert ask(lease) == ((42,),)


def test_more_results_are_found_while_another_threads_result_is_open(server: Server) -> None:
    kwargs = server.kwargs(client_flag=CLIENT.MULTI_STATEMENTS, pool={"timeout": 3.0})
    with pooled_pymysql.connect(**kwargs) as lease:
        cursor, unread = lease.cursor(), lease.cursor(SSCursor)
        cursor.execute("SELECT 1; SELECT 2")
        assert cursor.fetchall() == ((1,),)
        Caller(lambda: unread.execute(NUMBERS)).outcome()
        assert cursor.nextset()
        assert cursor.fetchall() == ((2,),)
        assert len(Caller(unread.fetchall).outcome()) == 900


def test_waiting_for_more_results_of_another_thread_ends_with_the_pools_timeout(server: Server) -> None:
    kwargs = server.kwargs(client_flag=CLIENT.MULTI_STATEMENTS, pool={"timeout": 0.3})
    with pooled_pymysql.connect(**kwargs) as lease:
        cursor = lease.cursor()
        cursor.execute("SELECT 1; SELECT SLEEP(1) + 7")
        with pytest.raises(LeaseBusy, match="an unread result of thread"):
            Caller(lambda: ask(lease)).outcome()
        assert cursor.nextset()
        assert [int(value) for (value,) in cursor.fetchall()] == [7]
        assert Caller(lambda: ask(lease)).outcome() == ((42,),)


def test_waiting_for_a_result_ends_with_the_pools_timeout(server: Server) -> None:
    with pooled_pymysql.connect(**server.kwargs(pool={"timeout": 0.3})) as lease:
        cursor = lease.cursor(SSCursor)
        cursor.execute(NUMBERS)
        for act in (lambda: ask(lease), lease.commit, lease.ping, lambda: lease.query("SELECT 1")):
            started = time.monotonic()
            with pytest.raises(LeaseBusy) as caught:
                Caller(act).outcome()
            assert 0.3 <= time.monotonic() - started < 5.0
            code, text = caught.value.args
            assert code == 2014
            assert re.fullmatch(
                rf"the shared connection was busy for 0\.\d s with an unread result .*{threading.get_ident()}", text
            )
        assert len(cursor.fetchall()) == 900


def test_waiting_for_a_statement_ends_with_the_pools_timeout(server: Server) -> None:
    with pooled_pymysql.connect(**server.kwargs(pool={"timeout": 0.2})) as lease:
        slow = Caller(lambda: ask_slowly(lease, 1.0))
        wait_until(lambda: lease._flight == IN_FLIGHT, what="the statement")
        with pytest.raises(LeaseBusy, match="with a statement of thread"):
            ask(lease)
        assert slow.outcome() == ((7,),)
        assert ask(lease) == ((42,),)


def ask_slowly(lease: Any, seconds: float) -> Any:
    with lease.cursor() as cursor:
        cursor.execute("SELECT SLEEP(%s) + 7", (seconds,))
        return tuple((int(value),) for (value,) in cursor.fetchall())


def test_reconnecting_ping_leaves_a_busy_connection_alone(server: Server) -> None:
    with pooled_pymysql.connect(**server.kwargs(pool={"timeout": 0.2})) as lease:
        number = lease.thread_id()
        cursor = lease.cursor(SSCursor)
        cursor.execute(NUMBERS)

        def ping() -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                lease.ping(reconnect=True)

        with pytest.raises(LeaseBusy):
            Caller(ping).outcome()
        assert lease.thread_id() == number
        assert len(cursor.fetchall()) == 900


def test_warning_handler_cannot_let_others_into_a_result_being_finished(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pooled_pymysql.connect(**server.kwargs(pool={"timeout": 0.3})) as lease:
        left = lease.cursor(SSCursor)
        left.execute(NUMBERS)
        outcomes: list[Caller] = []

        def show(*_: Any, **__: Any) -> None:
            Caller(left.close).outcome()
            outcomes.append(Caller(lambda: ask(lease, 1)))
            outcomes[0].join(0.1)

        with warnings.catch_warnings():
            warnings.simplefilter("always")
            monkeypatch.setattr(warnings, "showwarning", show)
            assert ask(lease, 2) == ((2,),)
        assert outcomes[0].outcome() == ((1,),)


# Re-entry


def reentry_is_refused_without_a_byte(proxy: Proxy, lease: Any) -> None:
    sent = proxy.bytes_to_server
    for act in (lambda: ask(lease), lease.commit, lease.ping):
        with pytest.raises(pymysql.err.OperationalError) as caught:
            act()
        assert caught.value.args[0] == 2014
    assert proxy.bytes_to_server == sent


@pytest.mark.parametrize("kind", [Cursor, SSCursor])
def test_converter_that_queries_is_out_of_sync(kind: type[Cursor], server: Server) -> None:
    with Proxy(server.host, server.port) as proxy:
        tried = []

        def convert(value: str) -> int:
            if not tried:
                tried.append(value)
                reentry_is_refused_without_a_byte(proxy, lease)
            return int(value)

        numbers = dict.fromkeys((FIELD_TYPE.LONG, FIELD_TYPE.LONGLONG), convert)
        lease = pooled_pymysql.connect(**server.kwargs(port=proxy.port, ssl_disabled=True), conv=conversions | numbers)
        with lease.cursor(kind) as cursor:
            cursor.execute(NUMBERS)
            assert [row[0] for row in cursor.fetchall()] == list(range(1, 901))
        assert tried
        assert ask(lease) == ((42,),)
        lease.close()
        pooled_pymysql.close_pools()


def test_signal_handler_that_queries_is_out_of_sync(server: Server) -> None:
    with Proxy(server.host, server.port) as proxy:
        lease = pooled_pymysql.connect(**server.kwargs(port=proxy.port, ssl_disabled=True))
        handled = []

        def handle(*_: object) -> None:
            reentry_is_refused_without_a_byte(proxy, lease)
            handled.append(True)

        before = signal.signal(signal.SIGUSR1, handle)
        try:
            interrupter = Caller(lambda: (wait_until(lambda: lease._flight), time.sleep(0.1), kill_self()))
            assert ask_slowly(lease, 0.5) == ((7,),)
            interrupter.outcome()
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert handled
        assert ask(lease) == ((42,),)
        lease.close()
        pooled_pymysql.close_pools()


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGUSR1)


# What each thread is told


def test_counts_and_ids_are_of_the_calling_threads_last_statement(server: Server, database: str) -> None:
    with pooled_pymysql.connect(**server.kwargs(database=database, autocommit=True)) as lease:
        prepare(lease)
        meeting, over = threading.Barrier(3), threading.Event()

        def insert(rows: int) -> tuple[Any, ...]:
            with lease.cursor() as cursor:
                values = ", ".join(["(1, 1)"] * rows)
                cursor.execute(f"INSERT INTO tagged (me, number) VALUES {values}")
                meeting.wait(PATIENCE)
                return (lease.insert_id(), lease.affected_rows(), cursor.lastrowid, cursor.rowcount)

        def ask_only() -> tuple[Any, ...]:
            assert over.wait(PATIENCE)
            return lease.insert_id(), lease.affected_rows()

        newcomer = Caller(ask_only)  # alive all the time, so that its number is nobody else's
        inserters = [Caller(lambda rows=rows: insert(rows)) for rows in (1, 2, 3)]
        told = [inserter.outcome() for inserter in inserters]
        assert [row[1] for row in told] == [row[3] for row in told] == [1, 2, 3]
        assert [row[0] for row in told] == [row[2] for row in told]
        assert len({row[0] for row in told}) == 3

        lease.query("INSERT INTO tagged (me, number) VALUES (2, 2)")
        last = lease.insert_id()
        assert last > max(row[0] for row in told)
        over.set()
        assert newcomer.outcome() == (last, 1)


def test_new_thread_is_not_told_of_an_ended_one(server: Server, database: str) -> None:
    """Operating systems give a thread's number to the next one."""
    with pooled_pymysql.connect(**server.kwargs(database=database, autocommit=True)) as lease:
        prepare(lease)
        insert = "INSERT INTO tagged (me, number) VALUES (1, 1)"
        lease.query(insert)
        Caller(lambda: lease.query(insert)).outcome()
        lease.query(insert)
        last = lease.insert_id()
        assert Caller(lease.insert_id).outcome() == last


def test_result_can_be_asked_for_while_a_thread_becomes_known(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector may run a cursor's __del__ in the middle of that."""
    seen: list[Any] = []
    with pooled_pymysql.connect(**server.kwargs()) as lease:
        lease.query("SELECT 1")
        expected = lease._result
        plain = sharing._Thread.__init__

        def initialise(thread: Any) -> None:
            seen.append(lease._result)
            plain(thread)

        monkeypatch.setattr(sharing._Thread, "__init__", initialise)
        Caller(lease.insert_id).outcome()
    assert seen == [expected]


# One thread


def tell_all(connection: Any, database: str) -> list[Any]:
    """Leave results unread, ask again, and list all that one can see of it."""
    seen: list[Any] = []
    for kind in (Cursor, SSCursor, DictCursor, SSDictCursor):
        first, second = connection.cursor(kind), connection.cursor(kind)
        first.execute("SELECT 1 AS a UNION ALL SELECT 2 UNION ALL SELECT 3; SELECT 4 AS b")
        seen.append((first.fetchone(), first.rowcount, first.description))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            second.execute("SELECT 5 AS c")
        seen.append([(warning.category, str(warning.message)) for warning in caught])
        seen.append(second.fetchall())
        seen.append((first.fetchone(), first.nextset(), second.nextset()))
        seen.append((connection.insert_id(), connection.affected_rows()))
        first.close()
        second.close()
    return seen


def test_in_one_thread_everything_is_as_in_pymysql(server: Server, database: str) -> None:
    flag = CLIENT.MULTI_STATEMENTS
    with server.connect(database=database, client_flag=flag) as plain:
        expected = tell_all(plain, database)
    with pooled_pymysql.connect(**server.kwargs(database=database, client_flag=flag)) as lease:
        assert tell_all(lease, database) == expected
        Caller(lambda: ask(lease)).outcome()  # and it stays so once another thread has come
        assert tell_all(lease, database) == expected


@pytest.mark.parametrize("pause_at", ["_give_back", "_part"])
def test_closing_twice_at_once_leaves_the_session_alone(
    server: Server, monkeypatch: pytest.MonkeyPatch, pause_at: str
) -> None:
    """Whoever comes second finds an object that is still open, and must not say goodbye on a wire that is handed on."""
    kwargs = server.kwargs(pool={"max_size": 1})
    lease = pooled_pymysql.connect(**kwargs)
    number = lease.thread_id()
    is_there, may_go_on = threading.Event(), threading.Event()
    original = getattr(pooled_pymysql.Connection, pause_at)

    def pausing(self: Any, *args: Any) -> Any:
        is_there.set()
        assert may_go_on.wait(10)
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(pooled_pymysql.Connection, pause_at, pausing)
        first = threading.Thread(target=lease.close)
        first.start()
        assert is_there.wait(10)
        with pytest.raises(pymysql.err.Error, match="Already closed"):
            lease.close()
        may_go_on.set()
        first.join(10)
    assert not lease.open
    with pooled_pymysql.connect(**kwargs) as lease:
        lease.ping()
        assert lease.thread_id() == number


def test_statement_that_was_cut_off_is_lost_also_where_the_connection_is_made_again_at_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = pooled_pymysql.connect(**server.kwargs(pool={"max_size": 2}))
    end_turn = lease._end_turn
    closing, connecting = threading.Thread(target=lease.close), threading.Thread(target=lease.connect)

    def close_and_connect(_: Any, *command: Any) -> None:
        monkeypatch.setattr(pooled_pymysql.Connection, "_put", put)
        closing.start()
        closing.join(10)
        connecting.start()
        put(lease, *command)

    def end_turn_late(_: Any) -> None:
        wait_until(lambda: lease.open)
        end_turn()

    put = pooled_pymysql.Connection._put
    monkeypatch.setattr(pooled_pymysql.Connection, "_put", close_and_connect)
    monkeypatch.setattr(pooled_pymysql.Connection, "_end_turn", end_turn_late)
    with pytest.raises(pymysql.err.OperationalError, match="Lost connection"):
        lease.commit()
    connecting.join(10)
    lease.ping()
    lease.close()
