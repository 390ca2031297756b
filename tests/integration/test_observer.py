"""Who is told of openings, waits and leases: at no cost where nobody is, and with no loss where telling fails."""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator

import pytest
from children import in_child
from servers import Server, wait_until

import pooled_pymysql
from pooled_pymysql import ConnectionPool, Pool, PoolObserver, PoolTimeout, add_observer, remove_observer


class Witness(PoolObserver):
    """Notes what it is told, and raises what it shall."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, float]] = []
        self.error: BaseException | None = None
        self.was_locked = False

    def opened(self, pool: Pool, seconds: float) -> None:
        self._note("opened", pool, seconds)

    def acquired(self, pool: Pool, seconds: float) -> None:
        self._note("acquired", pool, seconds)

    def released(self, pool: Pool, seconds: float) -> None:
        self._note("released", pool, seconds)

    def timed_out(self, pool: Pool) -> None:
        self._note("timed_out", pool, 0.0)

    def closed(self, pool: Pool) -> None:
        self._note("closed", pool, 0.0)

    def _note(self, event: str, pool: Pool, seconds: float) -> None:
        self.events.append((event, pool.name, seconds))
        self.was_locked |= pool._is_ours()
        if self.error is not None:
            raise self.error

    @property
    def names(self) -> list[str]:
        return [event for event, _, _ in self.events]

    def seconds(self, event: str) -> list[float]:
        return [seconds for name, _, seconds in self.events if name == event]


@pytest.fixture
def witness() -> Iterator[Witness]:
    witness = Witness()
    add_observer(witness)
    yield witness
    remove_observer(witness)
    assert not witness.was_locked, "told while the pool was locked"


def only_pool() -> Pool:
    (pool,) = pooled_pymysql.pools()
    return pool


# What is told


def test_observer_is_told_of_opening_acquiring_and_releasing(server: Server, witness: Witness) -> None:
    connect = server.kwargs(pool={"name": "told"})
    begin = time.monotonic()
    connection = pooled_pymysql.connect(**connect)
    wait_until(lambda: "opened" in witness.names, what="the opening to be told")  # by the thread that opened
    connection.close()
    pooled_pymysql.connect(**connect).close()
    whole = time.monotonic() - begin
    assert Counter(witness.names) == {"opened": 1, "acquired": 2, "released": 2}
    assert {name for _, name, _ in witness.events} == {"told"}
    (opening,) = witness.seconds("opened")
    first, second = witness.seconds("acquired")
    assert 0 < opening <= first <= whole  # who waits for an opening waits for all of it
    assert second >= 0
    assert first + second + sum(witness.seconds("released")) <= whole


def test_wait_and_use_are_measured(server: Server, witness: Witness) -> None:
    connect = server.kwargs(pool={"max_size": 1})
    begin = time.monotonic()
    held = pooled_pymysql.connect(**connect)
    waiter = threading.Thread(target=lambda: pooled_pymysql.connect(**connect).close())
    waiter.start()
    wait_until(lambda: only_pool().stats().waiting == 1, what="a waiter")
    seen = time.monotonic()
    wait_until(lambda: time.monotonic() > seen + 0.02, what="20 ms to pass")
    lasted = time.monotonic() - seen
    held.close()
    waiter.join(30)
    assert not waiter.is_alive()
    assert max(witness.seconds("acquired")[1:]) >= lasted
    assert lasted <= max(witness.seconds("released")) <= time.monotonic() - begin


def test_who_waits_in_vain_is_told_of(server: Server, witness: Witness) -> None:
    connect = server.kwargs(pool={"max_size": 1, "timeout": 0.01})
    with pooled_pymysql.connect(**connect):
        with pytest.raises(PoolTimeout):
            pooled_pymysql.connect(**connect)
        with pytest.raises(PoolTimeout):
            only_pool().acquire(timeout=0)
        assert only_pool().stats().timeouts == 2
    assert witness.names.count("timed_out") == 2
    assert witness.names.count("acquired") == 1


def test_observer_hears_of_pools_made_before_and_after_it(server: Server) -> None:
    early = ConnectionPool(1, name="early", **server.kwargs())
    pooled_pymysql.connect(**server.kwargs(pool={"name": "first"})).close()
    witness, other = Witness(), Witness()
    add_observer(witness)
    add_observer(witness)  # changes nothing
    add_observer(other)
    try:
        late = ConnectionPool(2, name="late", **server.kwargs())
        wait_until(lambda: len(witness.events) >= 2, what="two openings")
        assert witness.names == ["opened", "opened"]  # nobody has leased
        early.get_connection().close()
        late.get_connection(pre_ping=True).close()
        for name in ("first", "second"):
            pooled_pymysql.connect(**server.kwargs(pool={"name": name})).close()
        wait_until(lambda: witness.names.count("opened") == 3, what="the opening for the second")
        remove_observer(witness)
        early.get_connection().close()
    finally:
        remove_observer(witness)
        remove_observer(other)
    per_pool = Counter((name, event) for event, name, _ in witness.events)
    assert per_pool == {
        ("late", "opened"): 2,
        ("second", "opened"): 1,
        **{(name, event): 1 for name in ("early", "late", "first", "second") for event in ("acquired", "released")},
    }
    assert other.names.count("released") == 5
    assert all(pool.observers is None for pool in (early, late))


def test_closing_is_told_once(server: Server, witness: Witness) -> None:
    pooled_pymysql.connect(**server.kwargs()).close()
    pool = only_pool()
    pool.close()
    pool.close()
    assert witness.names.count("closed") == 1


def test_session_replaced_by_pre_ping_keeps_its_time(
    server: Server, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = ConnectionPool(1, 2, **server.kwargs())
    with pool.get_connection() as connection:
        lost = connection._session
    monkeypatch.setattr(type(lost), "validate", lambda session, now: "lost" if session is lost else None)
    connection = pool.get_connection(pre_ping=True)
    assert connection._session is not lost
    connection.close()
    assert (witness.names.count("acquired"), witness.names.count("released")) == (2, 2)
    assert all(session.observed_since is None for session in [lost, *pool._ledger.idle])


def test_dropped_lease_is_told_of_when_it_is_taken_back(server: Server, witness: Witness) -> None:
    connection = pooled_pymysql.connect(**server.kwargs())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del connection
        gc.collect()
    wait_until(lambda: "released" in witness.names, what="the dropped lease")
    assert only_pool().stats().dropped == 1


def test_lease_closed_in_the_middle_of_bookkeeping_is_told_of_afterwards(server: Server, witness: Witness) -> None:
    connection = pooled_pymysql.connect(**server.kwargs())
    pool = only_pool()
    with pool._lock:  # as a finalizer or a signal handler finds it
        connection.close()
        assert "released" not in witness.names
    wait_until(lambda: pool.stats().idle == 1, what="the session")
    wait_until(lambda: "released" in witness.names, what="being told")


def test_pool_closed_in_the_middle_of_bookkeeping_is_not_told_of(server: Server, witness: Witness) -> None:
    pooled_pymysql.connect(**server.kwargs()).close()
    pool = only_pool()
    with pool._lock:
        pool.close()
    assert "closed" not in witness.names  # an observer that waits for a lock of its own could wait for ever


# What it costs


def test_without_an_observer_the_clock_is_read_as_before(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = server.kwargs()
    pooled_pymysql.connect(**connect).close()
    readings: list[float] = []

    def monotonic() -> float:
        now = time.monotonic()
        if threading.get_ident() == this:
            readings.append(now)
        return now

    this = threading.get_ident()
    for module in ("pool", "stock"):
        monkeypatch.setattr(f"pooled_pymysql.{module}._monotonic", monotonic)
    pooled_pymysql.connect(**connect).close()
    assert len(readings) == 2  # is a validation due; when was it given back


# What it may not cost


@pytest.mark.parametrize(
    "error", [ValueError("no metrics today"), RecursionError()], ids=lambda error: type(error).__name__
)
def test_observer_that_raises_is_logged_once_and_loses_nothing(
    server: Server, witness: Witness, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    witness.error = error
    connect = server.kwargs(pool={"max_size": 1, "timeout": 0.05})
    with caplog.at_level(logging.ERROR, "pooled_pymysql"):
        for _ in range(3):
            with pooled_pymysql.connect(**connect) as connection, connection.cursor() as cursor:
                cursor.execute("SELECT 1")
                with pytest.raises(PoolTimeout):
                    pooled_pymysql.connect(**connect)
        stats = only_pool().stats()
        only_pool().close()
    assert (stats.idle, stats.in_use, stats.opened, stats.opening) == (1, 0, 1, 0)
    assert set(witness.names) == {"opened", "acquired", "released", "timed_out", "closed"}
    (record,) = [record for record in caplog.records if "observer" in record.message]
    assert record.exc_info is not None and record.exc_info[1] is error


@pytest.mark.parametrize("event", ["acquired", "released"])
def test_interruption_in_an_observer_loses_no_session(server: Server, witness: Witness, event: str) -> None:
    connect = server.kwargs(pool={"max_size": 1, "timeout": 5.0})
    pooled_pymysql.connect(**connect).close()
    pool = only_pool()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    setattr(witness, event, interrupted)
    with pytest.raises(KeyboardInterrupt):
        pooled_pymysql.connect(**connect).close()
    delattr(witness, event)
    assert (pool.stats().idle, pool.stats().in_use) == (1, 0)
    with pooled_pymysql.connect(**connect) as connection, connection.cursor() as cursor:
        assert cursor.execute("SELECT 1") == 1
    assert pool.stats().opened == 1


def test_observer_may_ask_the_pool_and_lease(server: Server) -> None:
    seen: list[pooled_pymysql.PoolStats] = []

    class Asker(PoolObserver):
        def acquired(self, pool: Pool, seconds: float) -> None:
            seen.append(pool.stats())
            if pool.name == "asked":
                pooled_pymysql.connect(**server.kwargs(pool={"name": "its own"})).close()

    asker = Asker()
    add_observer(asker)
    try:
        pooled_pymysql.connect(**server.kwargs(pool={"name": "asked"})).close()
    finally:
        remove_observer(asker)
    assert [(stats.name, stats.in_use) for stats in seen] == [("asked", 1), ("its own", 1)]
    assert not asker.has_failed


def test_observer_of_another_kind_is_refused() -> None:
    with pytest.raises(TypeError, match="takes a PoolObserver, not an object of type 'object'"):
        add_observer(object())  # type: ignore[arg-type]


# Processes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_child_is_told_of_its_own_leases_only(server: Server, witness: Witness) -> None:
    connect = server.kwargs()
    inherited = pooled_pymysql.connect(**connect)
    wait_until(lambda: "opened" in witness.names, what="the opening")

    def work() -> None:
        witness.events.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(pooled_pymysql.Error):
                inherited.close()
        assert witness.events == []
        pooled_pymysql.connect(**connect).close()
        wait_until(lambda: "opened" in witness.names, what="the child's opening")
        assert Counter(witness.names) == {"opened": 1, "acquired": 1, "released": 1}

    assert in_child(work) == 0
    inherited.close()
    assert Counter(witness.names) == {"opened": 1, "acquired": 1, "released": 1}
