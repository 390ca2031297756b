"""How long sessions live: lifetime, idleness, validation, drain, resize; and how long pools do."""

from __future__ import annotations

import socket
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pymysql
import pytest
from proxy import Proxy
from servers import Server, wait_until

import pooled_pymysql
from pooled_pymysql import registry, stock
from pooled_pymysql.housekeeper import Housekeeper
from pooled_pymysql.reader import Reader

COM_RESET_CONNECTION = 0x1F
COM_QUIT = 0x01


def only_pool() -> pooled_pymysql.Pool:
    (pool,) = pooled_pymysql.pools()
    return pool


def lease_many(kwargs: dict[str, Any], number: int) -> list[Any]:
    return [pooled_pymysql.connect(**kwargs) for _ in range(number)]


def close_all(leases: list[Any]) -> None:
    while leases:
        leases.pop().close()


def commands(proxy: Proxy, code: int) -> int:
    return sum(command == code for command, _ in proxy.commands)


class Clock:
    """The pool's clock, and how far it is put forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        for module in ("stock", "pool"):
            monkeypatch.setattr(f"pooled_pymysql.{module}._monotonic", self.now)
        for module in ("session", "lease"):
            monkeypatch.setattr(f"pooled_pymysql.{module}.time", SimpleNamespace(monotonic=self.now))

    def now(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


# Age


def test_session_whose_lifetime_is_over_goes_at_release_and_when_idle(server: Server, clock: Clock) -> None:
    kwargs = server.kwargs(pool={"max_lifetime": 100.0, "validate_after": None})
    leases = lease_many(kwargs, 2)
    leases.pop().close()
    clock.ahead = 101.0
    leases.pop().close()
    assert only_pool().stats().closed == {"max_lifetime": 1}
    only_pool().tick()
    stats = only_pool().stats()
    assert (stats.closed, stats.idle, stats.in_use) == ({"max_lifetime": 2}, 0, 0)


def test_lifetimes_differ_by_a_tenth_at_most(server: Server) -> None:
    leases = lease_many(server.kwargs(pool={"max_lifetime": 1000.0}), 20)
    lives = [lease._session.expires_at - lease._session.opened_at for lease in leases]
    assert all(900.0 <= life <= 1000.0 for life in lives)
    assert len(set(lives)) > 15
    close_all(leases)


def test_idle_sessions_go_down_to_min_size_and_the_pool_fills_up_again(server: Server, clock: Clock) -> None:
    kwargs = server.kwargs(pool={"idle_timeout": 50.0, "min_size": 2, "validate_after": None})
    close_all(lease_many(kwargs, 5))
    clock.ahead = 51.0
    only_pool().tick()
    assert (only_pool().stats().idle, only_pool().stats().closed) == (2, {"idle_timeout": 3})
    only_pool().drain()
    wait_until(lambda: only_pool().stats().idle == 2, what="two sessions, as min_size says")
    assert only_pool().stats().closed == {"idle_timeout": 3, "drained": 2}


def test_session_is_not_idle_for_longer_than_its_server_allows(server: Server, admin: Any, clock: Clock) -> None:
    with admin.cursor() as cursor:
        cursor.execute("SELECT @@GLOBAL.wait_timeout")
        ((before,),) = cursor.fetchall()
        cursor.execute("SET GLOBAL wait_timeout = 200")
        try:
            pooled_pymysql.connect(**server.kwargs(pool={"validate_after": None})).close()
        finally:
            cursor.execute("SET GLOBAL wait_timeout = %s", (before,))
    clock.ahead = 170.0
    only_pool().tick()
    assert only_pool().stats().idle == 1
    clock.ahead = 185.0
    only_pool().tick()
    assert (only_pool().stats().idle, only_pool().stats().closed) == (0, {"wait_timeout": 1})


# Validation


def test_idle_session_is_validated_by_a_reset_in_the_background(account: Server, clock: Clock) -> None:
    with Proxy(account.host, account.port) as proxy:
        kwargs = account.kwargs(port=proxy.port, ssl_disabled=True, pool={"validate_after": 30.0, "idle_timeout": 80.0})
        pooled_pymysql.connect(**kwargs).close()
        only_pool().tick()
        assert commands(proxy, COM_RESET_CONNECTION) == 0
        for number, ahead in enumerate((31.0, 62.0), 1):
            clock.ahead = ahead
            only_pool().tick()
            only_pool().tick()
            wait_until(lambda number=number: commands(proxy, COM_RESET_CONNECTION) == number, what="a reset")  # type: ignore[misc]
            wait_until(lambda: only_pool().tick() and not only_pool()._ledger.owing, what="the replies")
            assert only_pool().stats().idle == 1
        assert only_pool().stats().leases == 1
        clock.ahead = 81.0  # being validated is not being used
        only_pool().tick()
        assert only_pool().stats().closed == {"idle_timeout": 1}
        pooled_pymysql.close_pools()


@pytest.mark.parametrize("validate_after", [0.0, 30.0])
def test_session_is_validated_before_it_is_leased(validate_after: float, account: Server, clock: Clock) -> None:
    with Proxy(account.host, account.port) as proxy:
        kwargs = account.kwargs(port=proxy.port, ssl_disabled=True, pool={"validate_after": validate_after})
        lease = pooled_pymysql.connect(**kwargs)
        number = lease.thread_id()
        lease.close()
        for round_ in (1, 2, 3):
            clock.ahead += 31.0
            with pooled_pymysql.connect(**kwargs) as lease, lease.cursor() as cursor:
                assert commands(proxy, COM_RESET_CONNECTION) == round_
                cursor.execute("SELECT CONNECTION_ID()")
                assert cursor.fetchall() == ((number,),)
        pooled_pymysql.close_pools()


def test_dead_link_does_not_hold_up_who_finds_it(account: Server, clock: Clock) -> None:
    with Proxy(account.host, account.port) as proxy:
        kwargs = account.kwargs(port=proxy.port, ssl_disabled=True, pool={"timeout": 0.5})
        pooled_pymysql.connect(**kwargs).close()
        proxy.stall()
        clock.ahead = 31.0
        started = time.monotonic()
        with pytest.raises(pooled_pymysql.PoolTimeout):
            pooled_pymysql.connect(**kwargs)
        assert 0.5 <= time.monotonic() - started < 2.0
        clock.ahead = 34.0  # no answer is due any more
        only_pool().tick()
        assert only_pool().stats().closed == {"not restored": 1}
        proxy.restore()
        with pooled_pymysql.connect(**kwargs) as lease:
            lease.ping()
        pooled_pymysql.close_pools()


def test_loss_of_one_session_has_the_others_of_that_server_validated(account: Server, admin: Any) -> None:
    with Proxy(account.host, account.port) as proxy:
        kwargs = account.kwargs(port=proxy.port, ssl_disabled=True)
        other = kwargs | {"pool": {"name": "other pool of the same server"}}
        pooled_pymysql.connect(**other).close()
        leases = lease_many(kwargs, 3)
        victim = leases.pop()
        victim.query("SELECT 1")
        close_all(leases)
        with admin.cursor() as cursor:
            cursor.execute(f"KILL {victim.thread_id()}")
        with pytest.raises(pymysql.err.OperationalError):
            victim.query("SELECT 1")
        assert commands(proxy, COM_RESET_CONNECTION) == 0
        victim.close()
        wait_until(lambda: commands(proxy, COM_RESET_CONNECTION) == 3, what="a reset of each idle session")
        pooled_pymysql.close_pools()


@pytest.mark.parametrize(("ago", "looks"), [(3600.0, [0]), (-3600.0, [])])
def test_first_statement_asks_again_unless_the_session_was_alive_just_now(
    ago: float, looks: list[int], server: Server
) -> None:
    lease: Any = pooled_pymysql.connect(**server.kwargs())
    session = lease._session
    asked: list[int] = []
    plain = session.poll
    session.poll = lambda timeout: asked.append(timeout) or plain(timeout)
    session.looked_at = time.monotonic() - ago
    lease.query("SELECT 1")
    assert asked == looks
    lease.query("SELECT 1")  # no statement but the first asks
    assert asked == looks
    session.poll = plain
    lease.close()


# Drain and resize


def test_drain_retires_what_was_opened_before(server: Server) -> None:
    kwargs = server.kwargs()
    leases = lease_many(kwargs, 4)
    numbers = {lease.thread_id() for lease in leases}
    leases.pop().close()
    leases.pop().close()
    only_pool().drain()
    assert (only_pool().stats().idle, only_pool().stats().closed) == (0, {"drained": 2})
    with pooled_pymysql.connect(**kwargs) as after:
        assert after.thread_id() not in numbers
    for lease in leases:  # those that were out work on, and go when they are given back
        lease.query("SELECT 1")
    close_all(leases)
    stats = only_pool().stats()
    assert (stats.idle, stats.in_use, stats.closed) == (1, 0, {"drained": 4})


def test_drain_retires_what_is_being_opened(server: Server) -> None:
    asked, go_on = threading.Semaphore(0), threading.Semaphore(0)

    def password() -> str:
        asked.release()
        assert go_on.acquire(timeout=20)
        return server.password

    kwargs = server.kwargs(password=password, pool={"timeout": 20.0})
    outcome: list[Any] = []
    caller = threading.Thread(target=lambda: outcome.append(pooled_pymysql.connect(**kwargs)), daemon=True)
    caller.start()
    assert asked.acquire(timeout=20)
    only_pool().drain()
    go_on.release()
    assert asked.acquire(timeout=20)  # another one is opened for who waits
    go_on.release()
    caller.join(20)
    assert only_pool().stats().closed == {"drained": 1}
    outcome.pop().close()


def test_resize_down_closes_what_is_too_much(server: Server) -> None:
    leases = lease_many(server.kwargs(pool={"max_size": 6, "timeout": 0.1}), 6)
    close_all(leases[4:])
    del leases[4:]
    pool = only_pool()
    pool.resize(0, 2)
    assert (pool.stats().idle, pool.stats().in_use, pool.stats().max_size) == (0, 4, 2)
    with pytest.raises(pooled_pymysql.PoolTimeout, match="max_size=2"):
        pool.acquire()
    close_all(leases)
    stats = pool.stats()
    assert (stats.idle, stats.in_use, stats.closed) == (2, 0, {"resized": 4})


def test_resize_up_serves_who_waits(server: Server) -> None:
    kwargs = server.kwargs(pool={"max_size": 1, "timeout": 20.0})
    held = pooled_pymysql.connect(**kwargs)
    outcome: list[Any] = []
    caller = threading.Thread(target=lambda: outcome.append(pooled_pymysql.connect(**kwargs)), daemon=True)
    caller.start()
    wait_until(lambda: only_pool().stats().waiting == 1, what="one who waits")
    only_pool().resize(1, 2)
    caller.join(20)
    outcome.pop().close()
    held.close()
    assert (only_pool().stats().min_size, only_pool().stats().max_size) == (1, 2)


@pytest.mark.parametrize(
    ("sizes", "error"), [((-1, 2), ValueError), ((3, 2), ValueError), ((0, 0), ValueError), ((0, "2"), TypeError)]
)
def test_resize_refuses_what_makes_no_sense(sizes: tuple[Any, Any], error: type[Exception], server: Server) -> None:
    pooled_pymysql.connect(**server.kwargs(pool={"max_size": 7})).close()
    with pytest.raises(error, match="size"):
        only_pool().resize(*sizes)
    assert only_pool().stats().max_size == 7


# Leaks


def test_lease_held_for_long_is_reported_once(server: Server, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    lease = pooled_pymysql.connect(**server.kwargs(pool={"leak_threshold": 60.0, "name": "shop"}))
    pool = only_pool()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clock.ahead = 50.0
        pool.tick()
        assert pool.stats().leaks == 0
        for clock.ahead in (61.0, 62.0):
            pool.tick()
    assert pool.stats().leaks == 1
    told = [str(warning.message) for warning in caught if warning.category is ResourceWarning]
    assert len(told) == 1
    assert "'shop'" in told[0]
    assert __file__ in told[0]
    assert [record.message for record in caplog.records if "held" in record.message] == told
    lease.query("SELECT 1")
    lease.close()
    clock.ahead = 0.0
    with pooled_pymysql.connect(**server.kwargs(pool={"leak_threshold": 60.0, "name": "shop"})):
        pool.tick()
    assert pool.stats().leaks == 1


# What servers say before they go


def test_reason_of_an_idle_kill_is_told_as_it_is(server: Server) -> None:
    """MySQL sends error 4031 with sequence number 0 and closes; PyMySQL shows a lost connection (2013)."""
    text = b"The client was disconnected by the server because of inactivity."
    payload = b"\xff" + (4031).to_bytes(2, "little") + b"#HY000" + text
    packet = len(payload).to_bytes(3, "little") + b"\0" + payload
    lease = pooled_pymysql.connect(**server.kwargs(ssl_disabled=True))
    ours, theirs = socket.socketpair()
    lease._sock, real = ours, lease._sock
    lease._rfile = Reader(ours)
    theirs.sendall(packet)
    with pytest.raises(pymysql.err.OperationalError) as caught:
        lease.query("SELECT 1")
    assert caught.value.args == (4031, text.decode())
    theirs.close()
    lease.close()
    assert real.fileno() < 0
    assert only_pool().stats().idle == 0


@pytest.mark.parametrize(("name", "value"), [("SO_KEEPALIVE", 1), ("TCP_NODELAY", 1), ("TCP_USER_TIMEOUT", 60_000)])
def test_options_of_the_socket(name: str, value: int, server: Server) -> None:
    if not hasattr(socket, name):
        pytest.skip(f"no {name} here")
    level = socket.SOL_SOCKET if name.startswith("SO_") else socket.IPPROTO_TCP
    with pooled_pymysql.connect(**server.kwargs()) as lease:
        assert lease._sock.getsockopt(level, getattr(socket, name)) == value


# Pools


def make_pools(server: Server, number: int) -> list[Callable[[], pooled_pymysql.Connection]]:
    return [
        lambda name=f"pool {index}": pooled_pymysql.connect(**server.kwargs(pool={"name": name}))  # type: ignore[misc]
        for index in range(number)
    ]


def test_pool_that_holds_nothing_and_is_not_used_is_forgotten(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = make_pools(server, 3)
    first().close()
    empty = only_pool()
    empty.drain()
    second().close()
    assert len(pooled_pymysql.pools()) == 2  # it may be used again soon
    monkeypatch.setattr(registry, "_UNUSED_TIME", -1.0)
    third().close()
    assert empty not in pooled_pymysql.pools()
    assert empty.closed
    first().close()  # the same call makes a new one
    assert len(pooled_pymysql.pools()) == 3
    with pytest.raises(pooled_pymysql.PoolClosed):
        empty.acquire()


def test_number_of_pools_is_bounded(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(registry, "_MAX_POOLS", 5)
    monkeypatch.setattr(registry._registry, "has_warned", False)
    connects = make_pools(server, 12)
    held = connects[0]()
    for connect in connects[1:]:
        connect().close()
    names = {pool.name for pool in pooled_pymysql.pools()}
    assert names == {"pool 0", "pool 8", "pool 9", "pool 10", "pool 11"}
    assert (
        len([record for record in caplog.records if "different at each call" in record.message.replace("\n", " ")]) == 1
    )
    held.query("SELECT 1")
    held.close()
    connects[3]().close()
    assert len(pooled_pymysql.pools()) == 5


def test_threads_are_gone_when_nothing_is_left_to_do(server: Server) -> None:
    def ours() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name.startswith("pooled_pymysql")]

    close_all(lease_many(server.kwargs(), 5))
    wait_until(lambda: len(ours()) == 1, what="the end of the helpers")
    pooled_pymysql.close_pools()
    wait_until(lambda: not ours(), what="the end of the housekeeper")


def test_opening_that_nobody_began_with_gives_its_room_back(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock, "_START_TIME", 0.5)
    kwargs = server.kwargs(pool={"max_size": 1, "timeout": 20.0})
    pooled_pymysql.connect(**kwargs).close()
    pool = only_pool()
    pool.drain()
    pool._ledger.min_size = 1
    assert len(pool._ledger.begin_openings(time.monotonic(), 10.0)) == 1  # and an interruption comes here
    pool._ledger.min_size = 0
    pooled_pymysql.connect(**kwargs).close()
    assert (pool.stats().opening, pool.stats().idle) == (0, 1)


def test_a_retired_lease_takes_its_session_along(config: dict[str, Any], ids: Callable[[], set[int]]) -> None:
    lease, other = lease_many(config, 2)
    gone = lease.thread_id()
    lease.retire()
    assert not lease.open
    wait_until(lambda: gone not in ids(), what="the end of the retired session")
    with pytest.raises(pymysql.err.Error, match="Already closed"):
        lease.retire()
    stats = only_pool().stats()
    assert (stats.in_use, stats.idle, stats.closed) == (1, 0, {"retired": 1})
    other.close()
    assert only_pool().stats().idle == 1  # no other session is touched


def test_retiring_without_a_pool_is_closing(config: dict[str, Any], ids: Callable[[], set[int]]) -> None:
    connection = pooled_pymysql.connect(pool=False, **config)
    connection.retire()
    assert not connection.open
    wait_until(lambda: not ids(), what="the end of the connection")


def test_helpers_that_cannot_be_started_are_done_without(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def fail_to_start(self: threading.Thread) -> None:
        if self.name == "pooled_pymysql helper":
            raise RuntimeError("can't start new thread")
        start(self)

    helpers = registry._registry.housekeeper._helpers
    wait_until(lambda: not helpers, what="the end of helpers that other tests have needed")
    monkeypatch.setattr(threading.Thread, "start", fail_to_start)
    pooled_pymysql.connect(**server.kwargs()).close()
    assert not only_pool()._housekeeper._helpers


def test_helper_does_the_next_job_too_and_ends_soon() -> None:
    housekeeper = registry._registry.housekeeper
    wait_until(lambda: not housekeeper._helpers, what="the end of helpers that other tests have needed")
    done: list[threading.Thread] = []
    for number in (1, 2):
        assert housekeeper.run(lambda: done.append(threading.current_thread()))
        wait_until(lambda number=number: len(done) == number and housekeeper._spare == done[:1], what="the job's end")
    helper = done[0]
    assert done == [helper, helper]
    wait_until(lambda: not helper.is_alive(), what="the end of a helper without work")
    assert (housekeeper._helpers, housekeeper._spare) == (set(), [])


class Ending:
    """Ends the thread that ticks it, once."""

    def __init__(self) -> None:
        self.ticks = 0

    def tick(self) -> float | None:
        self.ticks += 1
        if self.ticks == 1:
            raise SystemExit
        return None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_housekeeper_that_was_ended_is_replaced() -> None:
    housekeeper = registry._registry.housekeeper
    ending = Ending()
    housekeeper.watch(ending)
    housekeeper.wake()
    wait_until(lambda: ending.ticks and housekeeper._thread is None, what="the end of the thread")
    wait_until(lambda: not housekeeper._helpers, what="the end of helpers, which could do the job as well")
    done = threading.Event()
    assert housekeeper.run(done.set)
    assert done.wait(5.0)
    wait_until(lambda: ending.ticks == 2, what="another tick")


@pytest.mark.parametrize("when", ["before the opening begins", "while it fails"])
def test_an_opening_that_outlives_its_pool_says_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, when: str
) -> None:
    pooled_pymysql.connect(**server.kwargs()).close()
    pool = only_pool()
    jobs: list[Callable[[], object]] = []
    monkeypatch.setattr(Housekeeper, "run", lambda _, job: jobs.append(job) or True)
    asked = []

    def fail(*_: Any) -> Any:
        asked.append(1)
        pool.close()
        raise ConnectionRefusedError

    monkeypatch.setattr(stock, "open_session", fail)
    pool.resize(2, 2)
    if when == "before the opening begins":
        pool.close()
    (job,) = jobs
    job()
    assert len(asked) == (when == "while it fails")
    assert pool.stats().opening == 0
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_thread_that_is_just_ending_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    housekeeper = Housekeeper()
    left, may_end = threading.Event(), threading.Event()
    help_out = Housekeeper._help

    def end_slowly(self: Housekeeper, helper: Any) -> None:
        help_out(self, helper)
        left.set()
        may_end.wait(10.0)

    monkeypatch.setattr("pooled_pymysql.housekeeper._LINGER", 0.01)
    monkeypatch.setattr(Housekeeper, "_help", end_slowly)
    done: list[threading.Thread] = []
    assert housekeeper.run(lambda: done.append(threading.current_thread()))
    assert left.wait(10.0)
    assert not housekeeper.stop(0.0)
    threading.Timer(0.05, may_end.set).start()
    assert housekeeper.stop(10.0)
    assert not done[0].is_alive()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the system does not show its threads")
def test_stopped_threads_have_ended_for_the_system_too() -> None:
    housekeeper = registry._registry.housekeeper
    for _ in range(100):
        done: list[int] = []
        assert housekeeper.run(lambda done=done: done.append(threading.get_native_id()))
        wait_until(lambda done=done: done, what="the job's end")
        assert housekeeper.stop(5.0)
        assert not Path(f"/proc/self/task/{done[0]}").exists()
        housekeeper.resume()
