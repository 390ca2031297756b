"""Many callers, few sessions, and openings that fail or never end: fair, bounded, and nothing is lost."""

from __future__ import annotations

import contextlib
import gc
import random
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Self

import pymysql
import pytest
from callers import PATIENCE, Caller
from chaos.faults import Cut, FaultyProxy, silent_address
from pymysql.connections import Connection
from servers import HOST, Server, connection_ids, wait_until

import pooled_pymysql
from pooled_pymysql import PoolFull, PoolTimeout, stock

LATE = 0.05  # seconds that an answer may come after the caller's deadline
MACHINE = 1.0  # seconds more that a busy machine may take


def only_pool() -> pooled_pymysql.Pool:
    (pool,) = pooled_pymysql.pools()
    return pool


def ask(connection: Any, sql: str = "SELECT 1") -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


class TimedCaller(Caller):
    """A caller that notes how long its call took."""

    took = 0.0

    def run(self) -> None:
        began = time.monotonic()
        super().run()
        self.took = time.monotonic() - began


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultyProxy]:
    with FaultyProxy(server.host, server.port) as proxy:
        yield proxy
        proxy.heal()
        pooled_pymysql.close_pools()


def assert_whole(size: int, kwargs: dict[str, Any]) -> None:
    """Assert that all of a pool's sessions can be had at once, and that nobody holds anything afterwards."""
    pool = only_pool()
    wait_until(lambda: (pool.stats().in_use, pool.stats().opening) == (0, 0), PATIENCE, "a pool at rest")
    with contextlib.ExitStack() as stack:
        leases = [stack.enter_context(pooled_pymysql.connect(**kwargs)) for _ in range(size)]
        assert len({ask(lease, "SELECT CONNECTION_ID()") for lease in leases}) == size
    stats = pool.stats()
    assert (stats.in_use, stats.opening, stats.waiting) == (0, 0, 0)


# Fair


def test_waiters_are_served_in_their_order_whichever_session_comes(server: Server) -> None:
    kwargs = server.kwargs(pool={"max_size": 3, "timeout": PATIENCE})
    held = [pooled_pymysql.connect(**kwargs) for _ in range(3)]
    served: list[int] = []
    go_on = [threading.Event() for _ in range(9)]

    def take_turn(number: int) -> None:
        with pooled_pymysql.connect(**kwargs):
            served.append(number)
            assert go_on[number].wait(PATIENCE)

    callers = []
    for number in range(9):
        callers.append(Caller(lambda number=number: take_turn(number)))
        wait_until(lambda number=number: only_pool().stats().waiting == number + 1)
    for lease in random.Random(1).sample(held, 3):
        lease.close()
    # Whoever gives back next, it is always the one that has waited longest who gets it.
    order = random.Random(2)
    for served_next in range(9):
        due = min(served_next + 3, 9)
        wait_until(lambda due=due: len(served) == due, what="the next in turn")
        holding = [number for number in served if not go_on[number].is_set()]
        go_on[order.choice(holding)].set()
    for caller in callers:
        caller.outcome()
    # The first three were woken at once, and may write their numbers in any order.
    assert sorted(served[:3]) == [0, 1, 2]
    assert served[3:] == list(range(3, 9))
    assert only_pool().stats().opened == 3


def test_nobody_starves_under_load(account: Server, admin: Connection[Any]) -> None:
    kwargs = account.kwargs(pool={"max_size": 4, "timeout": PATIENCE})
    warm = [pooled_pymysql.connect(**kwargs) for _ in range(4)]
    for lease in warm:
        lease.close()
    turns = [0] * 24
    start = threading.Barrier(len(turns) + 1)
    stop = threading.Event()
    seen = 0

    def work(number: int) -> None:
        start.wait(PATIENCE)
        while not stop.is_set():
            with pooled_pymysql.connect(**kwargs) as connection:
                ask(connection)
            turns[number] += 1

    callers = [Caller(lambda number=number: work(number)) for number in range(len(turns))]
    start.wait(PATIENCE)
    while sum(turns) < 200 * len(turns):
        seen = max(seen, len(connection_ids(admin, account.user)))
        time.sleep(0.01)
    stop.set()
    for caller in callers:
        caller.outcome()
    assert min(turns) >= 0.5 * max(turns), turns
    assert seen == 4
    assert only_pool().stats().opened == 4


def test_session_that_is_handed_over_often_is_not_taken_for_lost(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The housekeeper looks now and then, and may find it between two leases each time."""
    monkeypatch.setattr(stock, "_MISSING_TIME", 0.05)
    kwargs = server.kwargs(pool={"max_size": 1})
    pooled_pymysql.connect(**kwargs).close()
    pool = only_pool()
    over = time.monotonic() + 0.3
    while time.monotonic() < over:
        session = pool.acquire_session(pool._arguments)  # what connect() does before it makes the lease
        pool.tick()
        assert session.sock.fileno() >= 0
        pool.release(session, None)
        with pooled_pymysql.connect(**kwargs) as connection:
            ask(connection)
    assert pool.stats().opened == 1


def test_exactly_max_waiting_callers_wait(server: Server) -> None:
    kwargs = server.kwargs(pool={"max_size": 1, "max_waiting": 3, "timeout": PATIENCE})
    held = pooled_pymysql.connect(**kwargs)
    start = threading.Barrier(12)

    def call() -> None:
        start.wait(PATIENCE)
        pooled_pymysql.connect(**kwargs).close()

    callers = [Caller(call) for _ in range(12)]
    wait_until(lambda: only_pool().stats().refused == 9, what="nine refusals")
    assert only_pool().stats().waiting == 3
    held.close()
    errors = []
    for caller in callers:
        try:
            caller.outcome()
        except PoolFull as error:
            errors.append(error)
    assert len(errors) == 9
    assert_whole(1, kwargs)


# Openings


def slow_to_open(server: Server, port: int, **more: Any) -> dict[str, Any]:
    """Give arguments with which opening takes 150 ms on the server alone."""
    return server.kwargs(port=port, init_command="DO SLEEP(0.15)", **more)


def test_a_spike_opens_few(server: Server, proxy: FaultyProxy) -> None:
    kwargs = slow_to_open(server, proxy.port, pool={"max_size": 50, "timeout": PATIENCE})
    proxy.delay(0.001)
    start = threading.Barrier(50)

    def call() -> None:
        start.wait(PATIENCE)
        with pooled_pymysql.connect(**kwargs) as connection:
            ask(connection)

    for caller in [Caller(call) for _ in range(50)]:
        caller.outcome()
    pool = only_pool()
    wait_until(lambda: pool.stats().opening == 0, what="the end of the openings")
    assert proxy.accepted <= 12, "the aim is 10"
    assert pool.stats().opened == proxy.accepted


@pytest.mark.parametrize("limit", [1, 3])
def test_never_more_openings_at_once_than_allowed(limit: int, server: Server, proxy: FaultyProxy) -> None:
    kwargs = slow_to_open(server, proxy.port, pool={"max_size": 20, "timeout": PATIENCE, "opening_limit": limit})
    most = 0
    callers = [Caller(lambda: pooled_pymysql.connect(**kwargs)) for _ in range(8)]
    while any(caller.is_alive() for caller in callers):
        if pools := pooled_pymysql.pools():
            most = max(most, pools[0].stats().opening)
        time.sleep(0.002)
    for caller in callers:
        caller.outcome().close()
    assert most == limit
    assert_whole(8, kwargs)


def test_a_waiter_takes_a_returned_session_before_its_own_opening_ends(server: Server, proxy: FaultyProxy) -> None:
    kwargs = server.kwargs(port=proxy.port, pool={"max_size": 5, "timeout": PATIENCE})
    held = pooled_pymysql.connect(**kwargs)
    proxy.answer(b"")  # whoever opens gets no answer
    waiting = Caller(lambda: pooled_pymysql.connect(**kwargs))
    wait_until(lambda: proxy.accepted == 2, what="the opening")
    number = held.thread_id()
    held.close()
    lease = waiting.outcome()
    assert lease.thread_id() == number
    lease.close()
    proxy.heal()


def test_one_stuck_opening_blocks_nobody_else(server: Server, proxy: FaultyProxy) -> None:
    kwargs = server.kwargs(port=proxy.port, connect_timeout=PATIENCE, pool={"max_size": 5, "timeout": 0.5})
    proxy.answer(b"")
    stuck = TimedCaller(lambda: pooled_pymysql.connect(**kwargs))
    wait_until(lambda: proxy.accepted == 1, what="the opening")
    proxy.heal(end_dead=False)
    began = time.monotonic()
    leases = [pooled_pymysql.connect(**kwargs) for _ in range(3)]
    assert time.monotonic() - began < 0.5 + MACHINE
    for lease in leases:
        ask(lease)
        lease.close()
    # Nor does it keep the one who asked for it: there are idle sessions now.
    with contextlib.suppress(PoolTimeout):  # where the time was over before
        stuck.outcome().close()
    assert stuck.took < 0.5 + MACHINE


# Deadlines


@pytest.fixture
def stuck_resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Have the look-up of "localhost" wait until the event is set."""
    go_on = threading.Event()
    resolve = socket.getaddrinfo

    def wait(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host == "localhost":
            assert go_on.wait(PATIENCE)
        return resolve(HOST if host == "localhost" else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", wait)
    yield go_on
    go_on.set()


def assert_on_time(kwargs: dict[str, Any], timeout: float) -> None:
    """Assert that callers have their answers when they want them: the best of several, as the machine may be busy."""
    times = []
    for _ in range(3):
        caller = TimedCaller(lambda: pooled_pymysql.connect(**kwargs))
        with pytest.raises(PoolTimeout) as caught:
            caller.outcome()
        assert caught.value.args[0] == 1040
        times.append(caller.took)
    assert min(times) >= timeout - 0.001
    assert min(times) < timeout + LATE, times
    assert max(times) < timeout + LATE + MACHINE, times


def test_timeout_holds_at_a_server_that_does_not_answer(server: Server, proxy: FaultyProxy) -> None:
    proxy.stall()
    assert_on_time(server.kwargs(port=proxy.port, connect_timeout=PATIENCE, pool={"timeout": 0.2}), 0.2)
    proxy.heal()


def test_timeout_holds_at_an_address_that_does_not_answer(server: Server) -> None:
    with silent_address() as port:
        assert_on_time(server.kwargs(port=port, connect_timeout=PATIENCE, pool={"timeout": 0.2}), 0.2)


def test_timeout_holds_in_a_stuck_resolver(server: Server, stuck_resolver: threading.Event) -> None:
    assert_on_time(server.kwargs(host="localhost", pool={"timeout": 0.2}), 0.2)


def test_timeout_holds_while_all_openings_are_stuck(server: Server, proxy: FaultyProxy) -> None:
    kwargs = server.kwargs(
        port=proxy.port, connect_timeout=PATIENCE, pool={"max_size": 10, "timeout": 0.2, "opening_limit": 2}
    )
    proxy.stall()
    callers = [TimedCaller(lambda: pooled_pymysql.connect(**kwargs)) for _ in range(10)]
    for caller in callers:
        with pytest.raises(PoolTimeout):
            caller.outcome()
    assert max(caller.took for caller in callers) < 0.2 + LATE + MACHINE
    proxy.heal()


def test_connect_timeout_bounds_the_opening_itself(server: Server, proxy: FaultyProxy) -> None:
    proxy.answer(b"")
    caller = TimedCaller(lambda: pooled_pymysql.connect(**server.kwargs(port=proxy.port, connect_timeout=0.2)))
    with pytest.raises(pymysql.err.OperationalError) as caught:
        caller.outcome()
    assert not isinstance(caught.value, PoolTimeout)
    assert caught.value.args[0] in {2003, 2013}
    assert 0.2 <= caller.took < 0.2 + MACHINE


def test_connect_timeout_bounds_a_stuck_resolver(server: Server, stuck_resolver: threading.Event) -> None:
    caller = TimedCaller(lambda: pooled_pymysql.connect(**server.kwargs(host="localhost", connect_timeout=0.2)))
    with pytest.raises(pymysql.err.OperationalError) as caught:
        caller.outcome()
    assert caught.value.args[0] == 2003
    assert 0.2 <= caller.took < 0.2 + MACHINE


def test_a_resolver_that_recovers_leaves_the_pool_whole(server: Server, stuck_resolver: threading.Event) -> None:
    kwargs = server.kwargs(host="localhost", pool={"max_size": 3, "timeout": 0.2})
    for _ in range(3):
        with pytest.raises(PoolTimeout):
            pooled_pymysql.connect(**kwargs)
    stuck_resolver.set()
    wait_until(lambda: can_lease(kwargs), what="a lease")
    assert_whole(3, kwargs)
    wait_until(lambda: not opening_threads(), PATIENCE, "the end of the threads that opened")


def opening_threads() -> list[threading.Thread]:
    own = [thread for thread in threading.enumerate() if thread.name.startswith("pooled_pymysql")]
    return [thread for thread in own if thread.name != "pooled_pymysql housekeeper"]


def can_lease(kwargs: dict[str, Any]) -> bool:
    try:
        pooled_pymysql.connect(**kwargs).close()
    except pymysql.err.OperationalError:
        return False
    return True


def test_what_comes_for_one_that_has_just_given_up_is_not_lost(server: Server) -> None:
    kwargs = server.kwargs(pool={"max_size": 1, "timeout": PATIENCE})
    pooled_pymysql.connect(**kwargs).close()
    pool = only_pool()
    patience, offset = 0.01, 0.0
    had, missed = 0, 0
    while min(had, missed) < 100 and had + missed < 1000:
        held = pool.acquire()
        began = time.monotonic()
        caller = Caller(lambda: pool.acquire(patience))
        # Given back at the very moment at which the other one gives up: earlier after each failure, later after each
        # success.
        while time.monotonic() < began + patience + offset:
            time.sleep(0)
        held.close()
        try:
            caller.outcome().close()
            had += 1
            offset += 0.00005
        except PoolTimeout:
            missed += 1
            offset -= 0.00005
        stats = pool.stats()
        assert (stats.idle, stats.in_use, stats.waiting, stats.opening) == (1, 0, 0, 0)
    assert min(had, missed) >= 100, (had, missed, offset)
    assert pool.stats().opened == 1


def test_an_opening_that_ends_after_its_caller_gave_up_serves_the_next(server: Server, proxy: FaultyProxy) -> None:
    kwargs = server.kwargs(port=proxy.port, connect_timeout=PATIENCE, pool={"max_size": 1, "timeout": 0.2})
    proxy.stall()
    with pytest.raises(PoolTimeout):
        pooled_pymysql.connect(**kwargs)
    proxy.heal()
    pool = only_pool()
    wait_until(lambda: pool.stats().idle == 1, what="the session that nobody waits for")
    pooled_pymysql.connect(**kwargs).close()
    assert (pool.stats().opened, proxy.accepted) == (1, 1)


# While the server is down, and after


def test_waiters_fail_fast_with_the_cause_while_the_server_is_down(server: Server, proxy: FaultyProxy) -> None:
    kwargs = server.kwargs(port=proxy.port, pool={"max_size": 2, "timeout": PATIENCE})
    held = [pooled_pymysql.connect(**kwargs) for _ in range(2)]
    callers = [TimedCaller(lambda: pooled_pymysql.connect(**kwargs)) for _ in range(10)]
    wait_until(lambda: only_pool().stats().waiting == 10, what="ten waiting callers")
    proxy.refuse()
    proxy.cut()
    for lease in held:
        with pytest.raises(pymysql.err.OperationalError):
            ask(lease)
        lease.close()
    for caller in callers:
        with pytest.raises(pymysql.err.OperationalError) as caught:
            caller.outcome()
        causes = [caught.value, caught.value.__cause__]
        assert any(isinstance(cause, pymysql.err.OperationalError) and cause.args[0] == 2003 for cause in causes)
        assert caller.took < PATIENCE / 2
    proxy.heal()
    began = time.monotonic()
    wait_until(lambda: can_lease(kwargs), what="a lease")
    assert time.monotonic() - began < 1.0 + MACHINE
    assert_whole(2, kwargs)


class Door:
    """A port that refuses to let anybody in, and counts those who knock."""

    def __init__(self) -> None:
        self.listener = socket.create_server((HOST, 0))
        self.port = self.listener.getsockname()[1]
        self.knocks = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.listener.accept()[0].close()
                self.knocks += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self._thread.join(PATIENCE)


def test_a_server_that_is_down_is_not_stormed(server: Server) -> None:
    with Door() as door:
        kwargs = server.kwargs(port=door.port, pool={"max_size": 10, "timeout": 1.0})
        over = time.monotonic() + 1.0
        tries = [0] * 16

        def knock(number: int) -> None:
            while time.monotonic() < over:
                with pytest.raises(pymysql.err.OperationalError):
                    pooled_pymysql.connect(**kwargs)
                tries[number] += 1

        for caller in [Caller(lambda number=number: knock(number)) for number in range(16)]:
            caller.outcome()
        # Without restraint there are thousands.
        assert door.knocks <= 60, (door.knocks, sum(tries))


def test_the_pool_recovers_by_itself(server: Server, proxy: FaultyProxy) -> None:
    """What min_size wants is opened again with nobody asking."""
    kwargs = server.kwargs(port=proxy.port, pool={"max_size": 4, "min_size": 2, "timeout": 1.0})
    pooled_pymysql.connect(**kwargs).close()
    pool = only_pool()
    wait_until(lambda: pool.stats().idle == 2, what="min_size sessions")
    proxy.refuse()
    proxy.cut(how=Cut.RST)
    with pytest.raises(pymysql.err.OperationalError):
        pooled_pymysql.connect(**kwargs)
    proxy.heal()
    began = time.monotonic()
    wait_until(lambda: pool.stats().idle == 2 and len(proxy.links) == 2, PATIENCE, "min_size sessions")
    assert time.monotonic() - began < 1.0 + 2 * MACHINE  # the housekeeper looks once a second


def test_recovers_within_a_second_however_long_it_was_down(server: Server, proxy: FaultyProxy) -> None:
    kwargs = server.kwargs(port=proxy.port, pool={"max_size": 4, "timeout": 1.0})
    pooled_pymysql.connect(**kwargs).close()
    proxy.refuse()
    proxy.cut()
    over = time.monotonic() + 3.0  # in which a backoff without a bound would grow beyond a second
    while time.monotonic() < over:
        with pytest.raises(pymysql.err.OperationalError):
            pooled_pymysql.connect(**kwargs)
    proxy.heal()
    began = time.monotonic()
    wait_until(lambda: can_lease(kwargs), what="a lease")
    assert time.monotonic() - began < 1.0 + MACHINE


def assert_leases_within_a_second(proxy: FaultyProxy, kwargs: dict[str, Any]) -> None:
    """End the fault for new links only, and assert that the pool is of use again."""
    proxy.heal(end_dead=False)
    began = time.monotonic()
    wait_until(lambda: can_lease(kwargs), what="a lease")
    assert time.monotonic() - began < 1.0 + MACHINE


def test_recovers_although_the_probe_is_stuck(server: Server, proxy: FaultyProxy) -> None:
    kwargs = server.kwargs(port=proxy.port, connect_timeout=PATIENCE, pool={"max_size": 4, "timeout": 0.3})
    proxy.refuse()
    with pytest.raises(pymysql.err.OperationalError):
        pooled_pymysql.connect(**kwargs)
    proxy.heal()
    proxy.answer(b"")
    wait_until(lambda: proxy.accepted or can_lease(kwargs), what="a probe")
    assert_leases_within_a_second(proxy, kwargs)


def test_recovers_although_all_openings_are_stuck(server: Server, proxy: FaultyProxy) -> None:
    pool = {"max_size": 10, "timeout": 0.3, "opening_limit": 2}
    kwargs = server.kwargs(port=proxy.port, connect_timeout=PATIENCE, pool=pool)
    proxy.answer(b"")
    for caller in [Caller(lambda: can_lease(kwargs)) for _ in range(4)]:
        assert caller.outcome() is False
    assert proxy.accepted == 2
    assert_leases_within_a_second(proxy, kwargs)


# Pools that nobody wants any more

FORGOTTEN = 600  # pools; benchmarks/memory.py makes 10,000
MOST = 300  # of them that may be there at once, with a session each


def own_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("pooled_pymysql")]


def test_forgotten_pools_leave_nothing(account: Server, admin: Connection[Any]) -> None:
    """Arguments that are new at every call, here a password callable, make a pool each time."""
    made: weakref.WeakSet[pooled_pymysql.Pool] = weakref.WeakSet()
    most = 0
    for number in range(FORGOTTEN):
        pooled_pymysql.connect(**account.kwargs(password=lambda: account.password)).close()
        made.update(pooled_pymysql.pools()[-1:])
        if number % 100 == 99:
            most = max(most, len(connection_ids(admin, account.user)))
            assert len(pooled_pymysql.pools()) <= MOST
    assert most <= MOST
    pooled_pymysql.close_pools()
    wait_until(lambda: not connection_ids(admin, account.user), what="the end of all sessions")
    wait_until(lambda: not own_threads(), what="the end of all threads")

    def are_gone() -> bool:
        gc.collect()
        return not made

    wait_until(are_gone, what="the end of all pools")


def close_one_by_one() -> None:
    for pool in pooled_pymysql.pools():
        pool.close()
    assert pooled_pymysql.pools() == []


@pytest.mark.parametrize("close_all", [pooled_pymysql.close_pools, close_one_by_one])
def test_closed_pools_leave_nothing(close_all: Callable[[], None], account: Server) -> None:
    counts = []
    for _ in range(3):
        for _ in range(100):
            pooled_pymysql.connect(**account.kwargs(password=lambda: account.password)).close()
            close_all()
        gc.collect()
        counts.append(len(gc.get_objects()))
    assert counts[2] - counts[1] < 200, counts  # 100 pools, two objects each
    wait_until(lambda: not own_threads(), what="the end of all threads")
