"""Callers beyond `max_size`: they wait in turn, for a bounded time, and lose nothing when torn away."""

from __future__ import annotations

import ctypes
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pymysql
import pytest
from callers import PATIENCE, Caller
from proxy import Proxy
from servers import Server, free_port, transport, wait_until

import pooled_pymysql
from pooled_pymysql import PoolClosed, PoolFull, PoolTimeout


def connect_to(server: Server, **options: Any) -> Callable[[], pooled_pymysql.Connection]:
    """Return a function that leases from a pool of one session, or of what the options say."""
    kwargs = server.kwargs(pool={"max_size": 1, "timeout": PATIENCE} | options)
    return lambda: pooled_pymysql.connect(**kwargs)


def only_pool() -> pooled_pymysql.Pool:
    (pool,) = pooled_pymysql.pools()
    return pool


def wait_for_waiters(number: int) -> None:
    wait_until(lambda: only_pool().stats().waiting == number, what=f"{number} waiting callers")


def assert_whole(connect: Callable[[], pooled_pymysql.Connection]) -> None:
    """Assert that nobody holds or waits for anything, and that a lease can be had and used."""
    wait_until(lambda: only_pool().stats().in_use == 0, what="the return of every session")
    with connect() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)
    stats = only_pool().stats()
    assert (stats.in_use, stats.opening, stats.waiting) == (0, 0, 0)


# In turn


def test_waiting_callers_are_served_in_the_order_in_which_they_came(server: Server) -> None:
    connect = connect_to(server)
    held = connect()
    served: list[int] = []
    callers = []

    def take_turn(number: int) -> None:
        with connect():
            served.append(number)

    for number in range(8):
        callers.append(Caller(lambda number=number: take_turn(number)))
        wait_for_waiters(number + 1)
    held.close()
    for caller in callers:
        caller.outcome()
    assert served == list(range(8))
    assert only_pool().stats().opened == 1
    assert_whole(connect)


def test_order_is_kept_while_the_session_is_being_cleaned(server: Server) -> None:
    with Proxy(server.host, server.port) as proxy:
        kwargs = server.kwargs(port=proxy.port, pool={"max_size": 1, "timeout": PATIENCE})
        held = pooled_pymysql.connect(**kwargs)
        held.query("SET @a = 1")
        served: list[int] = []
        callers = []

        def take_turn(number: int) -> None:
            with pooled_pymysql.connect(**kwargs):
                served.append(number)

        for number in range(5):
            callers.append(Caller(lambda number=number: take_turn(number)))
            wait_for_waiters(number + 1)
        proxy.delay(0.2)  # the replies to what cleans the session come late
        held.close()
        for caller in callers:
            caller.outcome()
        assert served == list(range(5))
        pooled_pymysql.close_pools()


@pytest.mark.parametrize("timeout", [0, 0.3])
def test_timeout_holds_while_the_session_is_being_cleaned(timeout: float, server: Server) -> None:
    with Proxy(server.host, server.port) as proxy:
        kwargs = server.kwargs(port=proxy.port, pool={"max_size": 1, "timeout": timeout})
        held = pooled_pymysql.connect(**kwargs)
        held.query("SET @a = 1")
        proxy.stall()
        held.close()
        for _ in range(2):
            started = time.monotonic()
            with pytest.raises(PoolTimeout, match="in_use=0 idle=1"):
                pooled_pymysql.connect(**kwargs)
            assert timeout <= time.monotonic() - started < timeout + 2.0
        assert only_pool().stats().timeouts == 2
        proxy.restore()
        wait_until(lambda: can_lease(kwargs), what="a lease")
        stats = only_pool().stats()
        assert (stats.in_use, stats.opened) == (0, 1)
        pooled_pymysql.close_pools()


def can_lease(kwargs: dict[str, Any]) -> bool:
    try:
        pooled_pymysql.connect(**kwargs).close()
    except PoolTimeout:
        return False
    return True


def test_newcomer_does_not_overtake(server: Server) -> None:
    connect = connect_to(server)
    held = connect()
    first = Caller(connect)
    wait_for_waiters(1)
    held.close()
    with pytest.raises(PoolTimeout):
        only_pool().acquire(timeout=0)
    first.outcome().close()
    assert_whole(connect)


def test_released_session_goes_to_a_waiter_at_once(server: Server) -> None:
    connect = connect_to(server, max_size=2)
    held = [connect(), connect()]
    numbers = {lease.thread_id() for lease in held}
    callers = [Caller(connect), Caller(connect)]
    wait_for_waiters(2)
    for lease in held:
        lease.close()
    leases = [caller.outcome() for caller in callers]
    assert {lease.thread_id() for lease in leases} == numbers
    for lease in leases:
        lease.close()
    assert_whole(connect)


# Not longer than they want


def test_timeout_tells_how_things_stand(server: Server) -> None:
    connect = connect_to(server, timeout=0.2, name="shop")
    with connect():
        started = time.monotonic()
        with pytest.raises(PoolTimeout) as caught:
            connect()
        waited = time.monotonic() - started
    assert 0.2 <= waited < 5.0
    code, text = caught.value.args
    assert code == 1040
    form = r"pool 'shop': no connection within \d+\.\d s \(in_use=1 idle=0 opening=0 waiting=0 max_size=1\)"
    assert re.fullmatch(
        form + "; this thread holds 1 of them itself: max_size=2 would do if all threads do as it does", text
    )
    assert isinstance(caught.value, pymysql.err.OperationalError)
    assert PoolTimeout.__bases__ == (pymysql.err.OperationalError,)
    assert caught.value.__cause__ is None
    assert only_pool().stats().timeouts == 1
    assert_whole(connect)


def test_pool_without_a_name_is_named_by_its_address(server: Server) -> None:
    connect = connect_to(server, timeout=0)
    name = f"{server.user}@{server.host}:{server.port}/{server.database}"
    with connect(), pytest.raises(PoolTimeout) as caught:
        connect()
    assert caught.value.args[1].startswith(f"pool {name!r}: no connection within ")
    assert only_pool().name == name


def test_zero_timeout_does_not_wait(server: Server) -> None:
    connect = connect_to(server, timeout=0)
    with connect():
        started = time.monotonic()
        with pytest.raises(PoolTimeout, match=r"no connection within 0\.0 s"):
            connect()
        assert time.monotonic() - started < 1.0
        assert only_pool().stats().timeouts == 1
    assert_whole(connect)


def test_timeout_of_one_call(server: Server) -> None:
    connect = connect_to(server, timeout=None)
    with connect():
        for timeout in (0, 0.0, 0.05):
            with pytest.raises(PoolTimeout):
                only_pool().acquire(timeout)
            with pytest.raises(PoolTimeout), only_pool().connection(timeout):
                pass
    assert_whole(connect)


@pytest.mark.parametrize("timeout", [None, 1e300], ids=["none", "very long"])
def test_no_limit_waits_until_there_is_one(timeout: float | None, server: Server) -> None:
    connect = connect_to(server, timeout=timeout)
    held = connect()
    caller = Caller(connect)
    wait_for_waiters(1)
    held.close()
    caller.outcome().close()
    assert_whole(connect)


def test_queue_is_no_longer_than_max_waiting(server: Server) -> None:
    connect = connect_to(server, max_waiting=1, name="shop")
    held = connect()
    waiting = Caller(connect)
    wait_for_waiters(1)
    with pytest.raises(PoolFull) as caught:
        connect()
    code, text = caught.value.args
    assert code == 1040
    assert text == ("pool 'shop': max_waiting=1 callers wait already (in_use=1 idle=0 opening=0 waiting=1 max_size=1)")
    assert PoolFull.__bases__ == (pymysql.err.OperationalError,)
    assert only_pool().stats().refused == 1
    held.close()
    waiting.outcome().close()
    assert_whole(connect)


def test_one_that_gave_up_is_passed_over(server: Server) -> None:
    connect = connect_to(server)
    held = connect()
    pool = only_pool()
    impatient = Caller(lambda: pool.acquire(timeout=0.3))
    wait_for_waiters(1)
    patient = Caller(connect)
    wait_for_waiters(2)
    with pytest.raises(PoolTimeout, match="waiting=1"):
        impatient.outcome()
    held.close()
    patient.outcome().close()
    assert_whole(connect)


# The end of the pool


def test_closing_the_pool_refuses_all_who_wait(server: Server) -> None:
    connect = connect_to(server, name="shop")
    held = connect()
    pool = only_pool()
    callers = [Caller(connect) for _ in range(3)]
    wait_for_waiters(3)
    pool.close()
    for caller in callers:
        with pytest.raises(PoolClosed) as caught:
            caller.outcome()
        assert caught.value.args[0] == 2006
        assert "'shop'" in caught.value.args[1]
    assert PoolClosed.__bases__ == (pymysql.err.OperationalError,)
    held.close()
    stats = pool.stats()
    assert (stats.in_use, stats.idle, stats.opening, stats.waiting) == (0, 0, 0, 0)
    connect().close()
    assert only_pool() is not pool


# Torn away


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, whatever the test runner made of it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_interrupt_ends_the_wait_and_leaves_the_queue(server: Server) -> None:
    connect = connect_to(server)
    held = connect()
    main = threading.get_ident()
    interrupter = Caller(lambda: (wait_for_waiters(1), signal.pthread_kill(main, signal.SIGINT)))
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        connect()
    assert time.monotonic() - started < PATIENCE / 2
    interrupter.outcome()
    stats = only_pool().stats()
    assert (stats.waiting, stats.in_use) == (0, 1)
    held.close()
    assert_whole(connect)


def raise_in(thread: threading.Thread, error: type[BaseException]) -> None:
    """Have a thread raise an exception before the next instruction that it runs."""
    assert thread.ident
    done = ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(error))
    assert done == 1


def test_exception_between_being_woken_and_going_on_loses_nothing(server: Server) -> None:
    connect = connect_to(server)
    for _ in range(20):
        held = connect()
        torn = Caller(connect)
        wait_for_waiters(1)
        next_one = Caller(connect)
        wait_for_waiters(2)
        raise_in(torn, KeyboardInterrupt)
        held.close()
        with pytest.raises(KeyboardInterrupt):
            torn.outcome()
        next_one.outcome().close()
    assert only_pool().stats().opened == 1
    assert_whole(connect)


def test_exception_in_one_that_was_given_room_loses_nothing(server: Server) -> None:
    connect = connect_to(server)
    held = connect()
    torn = Caller(connect)
    wait_for_waiters(1)
    next_one = Caller(connect)
    wait_for_waiters(2)
    raise_in(torn, KeyboardInterrupt)
    held._force_close()  # a broken session is closed, and its room goes to the first in the queue
    held.close()
    with pytest.raises(KeyboardInterrupt):
        torn.outcome()
    next_one.outcome().close()
    assert_whole(connect)


# Connecting fails


class Account:
    """A password that the server takes or not, and that is given when the test says so."""

    def __init__(self, right: str) -> None:
        self.right = right
        self.given = "wrong"
        self.asked = threading.Semaphore(0)
        self.answer = threading.Semaphore(0)

    def __call__(self) -> str:
        self.asked.release()
        assert self.answer.acquire(timeout=PATIENCE)
        return self.given


def test_failed_connect_is_told_to_all_who_wait(account: Server) -> None:
    with pytest.raises(pymysql.err.OperationalError) as plain:
        account.connect(password="wrong")
    source = Account(account.password)
    kwargs = account.kwargs(password=source, **transport(account.is_mariadb), pool={"max_size": 1, "timeout": PATIENCE})
    callers = [Caller(lambda: pooled_pymysql.connect(**kwargs))]
    assert source.asked.acquire(timeout=PATIENCE)
    for number in (2, 3):
        callers.append(Caller(lambda: pooled_pymysql.connect(**kwargs)))
        wait_for_waiters(number)
    assert only_pool().stats().opening == 1
    source.answer.release()
    for failing in callers:
        with pytest.raises(pymysql.err.OperationalError) as caught:
            failing.outcome()
        assert type(caught.value) is type(plain.value)
        assert caught.value.args == plain.value.args
    assert len({id(caller.error) for caller in callers}) == 3
    source.given = source.right
    source.answer.release()
    pooled_pymysql.connect(**kwargs).close()
    stats = only_pool().stats()
    assert (stats.in_use, stats.idle, stats.opening, stats.opened) == (0, 1, 0, 1)


def test_timeout_names_the_last_failure_as_its_cause(account: Server) -> None:
    source = Account(account.password)
    kwargs = account.kwargs(password=source, **transport(account.is_mariadb), pool={"max_size": 1, "timeout": 0.3})
    source.answer.release()
    with pytest.raises(pymysql.err.OperationalError) as failed:
        pooled_pymysql.connect(**kwargs)
    with pytest.raises(PoolTimeout, match=r"in_use=0 idle=0 opening=1") as caught:
        pooled_pymysql.connect(**kwargs)
    assert isinstance(caught.value.__cause__, pymysql.err.OperationalError)
    assert caught.value.__cause__.args == failed.value.args
    source.answer.release()
    wait_until(lambda: only_pool().stats().opening == 0, what="the end of the opening")


def test_refused_connect_raises_as_pymysql_and_frees_the_room() -> None:
    where = {"host": "127.0.0.1", "port": free_port(), "user": "u", "password": "p"}
    with pytest.raises(pymysql.err.OperationalError) as plain:
        pymysql.connect(**where)
    for _ in range(5):
        with pytest.raises(pymysql.err.OperationalError) as caught:
            pooled_pymysql.connect(**where, pool={"max_size": 1, "timeout": 0})
        assert type(caught.value) is type(plain.value)
        assert caught.value.args == plain.value.args
        assert isinstance(caught.value.original_exception, ConnectionRefusedError)
        stats = only_pool().stats()
        assert (stats.in_use, stats.opening, stats.opened) == (0, 0, 0)
