"""What Prometheus is shown: scraped from a real endpoint; counters that never go back; processes and locks."""

from __future__ import annotations

import gc
import os
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from children import in_child
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.parser import text_string_to_metric_families
from servers import Server, wait_until

import pooled_pymysql
from pooled_pymysql import ConnectionPool, PoolTimeout, registry
from pooled_pymysql.metrics import PrometheusCollector, tally

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Endpoint:
    """A real endpoint of prometheus-client, and what Prometheus would read of it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.server, self.thread = start_http_server(0, "127.0.0.1", self.registry)

    def text(self) -> str:
        address = f"http://127.0.0.1:{self.server.server_port}/metrics"
        with urllib.request.urlopen(address, timeout=20) as answer:
            return str(answer.read().decode())

    def scrape(self) -> Samples:
        found: Samples = {}
        for family in text_string_to_metric_families(self.text()):
            for sample in family.samples:
                key = sample.name, tuple(sorted(sample.labels.items()))
                assert key not in found, "Prometheus refuses a scrape that names a series twice"
                found[key] = sample.value
        return found

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(20)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()


@pytest.fixture
def collector(endpoint: Endpoint) -> Iterator[PrometheusCollector]:
    collector = PrometheusCollector(endpoint.registry)
    yield collector
    collector.close()


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, tuple(sorted(labels.items()))))


def of_pool(samples: Samples, pool: str) -> dict[str, float]:
    """Return the samples of a pool without buckets, by name and further labels."""
    found = {}
    for (name, labels), number in samples.items():
        others = dict(labels)
        if others.pop("pool", None) == pool and "le" not in others:
            found[" ".join([name, *others.values()])] = number
    return found


# What is shown


def test_scrape_shows_counts_counters_and_durations(
    server: Server, endpoint: Endpoint, collector: PrometheusCollector
) -> None:
    connect = server.kwargs(pool={"name": "shop", "max_size": 2, "min_size": 1})
    held = [pooled_pymysql.connect(**connect) for _ in range(2)]
    with pytest.raises(PoolTimeout):
        pooled_pymysql.pools()[0].acquire(timeout=0)
    held.pop().close()
    wait_until(lambda: "mysqlpool_open_seconds_count" in endpoint.text(), what="the openings to be told")
    wait_until(
        lambda: value(endpoint.scrape(), "mysqlpool_open_seconds_count", pool="shop") == 2, what="the second opening"
    )
    found = of_pool(endpoint.scrape(), "shop")
    sums = {name: found.pop(name) for name in list(found) if name.endswith("_sum")}
    assert found == {
        "mysqlpool_sessions idle": 1,
        "mysqlpool_sessions in_use": 1,
        "mysqlpool_sessions opening": 0,
        "mysqlpool_waiting": 0,
        "mysqlpool_sessions_max": 2,
        "mysqlpool_sessions_min": 1,
        "mysqlpool_leases_total": 2,
        "mysqlpool_sessions_opened_total": 2,
        "mysqlpool_timeouts_total": 1,
        "mysqlpool_refused_total": 0,
        "mysqlpool_leases_dropped_total": 0,
        "mysqlpool_leases_leaked_total": 0,
        "mysqlpool_open_seconds_count": 2,
        "mysqlpool_wait_seconds_count": 2,
        "mysqlpool_use_seconds_count": 1,
    }
    assert all(seconds > 0 for seconds in sums.values())
    held.pop().close()
    pooled_pymysql.close_pools()
    after = of_pool(endpoint.scrape(), "shop")
    assert after["mysqlpool_sessions_closed_total pool closed"] == 2
    assert "mysqlpool_sessions idle" not in after  # there is no such pool any more


def test_who_waits_is_shown(server: Server, endpoint: Endpoint, collector: PrometheusCollector) -> None:
    connect = server.kwargs(pool={"name": "busy", "max_size": 1})
    held = pooled_pymysql.connect(**connect)
    waiter = threading.Thread(target=lambda: pooled_pymysql.connect(**connect).close())
    waiter.start()
    wait_until(lambda: value(endpoint.scrape(), "mysqlpool_waiting", pool="busy") == 1, what="the waiter")
    held.close()
    waiter.join(20)
    assert value(endpoint.scrape(), "mysqlpool_waiting", pool="busy") == 0


def test_buckets_are_cumulative_and_in_seconds(endpoint: Endpoint, collector: PrometheusCollector) -> None:
    pool: Any = type("Named", (), {"options": pooled_pymysql.PoolOptions(name="made up")})()
    for seconds in (0.00002, 0.0001, 0.3, 99.0):
        collector.released(pool, seconds)
    samples = endpoint.scrape()
    buckets = {
        dict(labels)["le"]: number
        for (name, labels), number in samples.items()
        if name == "mysqlpool_use_seconds_bucket"
    }
    assert buckets == {
        "0.0001": 2, "0.0005": 2, "0.001": 2, "0.005": 2, "0.01": 2, "0.05": 2, "0.1": 2, "0.5": 3, "1.0": 3,
        "5.0": 3, "10.0": 3, "60.0": 3, "+Inf": 4,
    }  # fmt: skip
    assert value(samples, "mysqlpool_use_seconds_sum", pool="made up") == pytest.approx(99.30012)


def test_names_are_as_prometheus_wants_them(collector: PrometheusCollector) -> None:
    families = list(collector.describe())
    assert len({family.name for family in families}) == len(families) == 14
    for family in families:
        assert family.name.startswith("mysqlpool_")
        assert family.type != "histogram" or family.name.endswith("_seconds")
        assert not family.samples


def test_pools_of_one_name_are_one_series(server: Server, endpoint: Endpoint, collector: PrometheusCollector) -> None:
    first = ConnectionPool(1, 3, name="twins", **server.kwargs())
    second = ConnectionPool(2, 4, name="twins", **server.kwargs())
    with first.get_connection(), second.get_connection():
        found = of_pool(endpoint.scrape(), "twins")
    assert found["mysqlpool_sessions in_use"] == 2
    assert found["mysqlpool_sessions idle"] == 1
    assert found["mysqlpool_sessions_max"] == 7
    assert found["mysqlpool_leases_total"] == 2
    assert found["mysqlpool_wait_seconds_count"] == 2


def test_labels_tell_neither_account_nor_password(
    server: Server, endpoint: Endpoint, collector: PrometheusCollector
) -> None:
    dsn = server.dsn()
    pooled_pymysql.connect(**server.kwargs(charset="utf8mb4")).close()
    pooled_pymysql.connect(dsn, pool={"name": dsn}).close()
    pool = ConnectionPool(1, **server.kwargs())
    pool.get_connection().close()
    samples = endpoint.scrape()
    labels = {dict(labels)["pool"] for _, labels in samples}
    assert labels == {f"{server.host}:{server.port}/{server.database}"}
    assert value(samples, "mysqlpool_leases_total", pool=labels.pop()) == 3
    assert "://" not in endpoint.text()
    assert f"{server.user}@" not in endpoint.text()


def test_unix_socket_and_no_database(server: Server) -> None:
    pool = ConnectionPool(1, pre_create_num=0, host="db.example", user="app")
    assert tally.label_of(pool) == "db.example:3306"
    pool = ConnectionPool(1, pre_create_num=0, unix_socket="/run/db.sock", user="app", database="shop")
    assert tally.label_of(pool) == "/run/db.sock/shop"


# Counters that never go back


def counters(samples: Samples) -> Samples:
    endings = ("_total", "_count", "_sum", "_bucket")
    return {key: number for key, number in samples.items() if key[0].endswith(endings)}


def assert_no_way_back(before: Samples, after: Samples) -> None:
    gone_back = {
        key: (number, after.get(key)) for key, number in counters(before).items() if after.get(key, -1) < number
    }
    assert not gone_back


def test_counters_of_pools_that_come_and_go(server: Server, endpoint: Endpoint, collector: PrometheusCollector) -> None:
    connect = server.kwargs(pool={"name": "brief"})
    before: Samples = {}
    for turn in range(1, 5):
        pooled_pymysql.connect(**connect).close()
        pooled_pymysql.connect(**connect).close()
        if turn % 2:  # else no scrape has ever seen it open
            seen = endpoint.scrape()
            assert_no_way_back(before, seen)
            before = seen
        pooled_pymysql.close_pools()
        after = endpoint.scrape()
        assert_no_way_back(before, after)
        assert value(after, "mysqlpool_leases_total", pool="brief") == 2 * turn
        assert value(after, "mysqlpool_sessions_opened_total", pool="brief") == turn
        assert value(after, "mysqlpool_sessions_closed_total", pool="brief", reason="pool closed") == turn
        before = after


def test_pool_closed_with_leases_out_is_counted_to_its_end(
    server: Server, endpoint: Endpoint, collector: PrometheusCollector
) -> None:
    connect = server.kwargs(pool={"name": "lingering"})
    held = [pooled_pymysql.connect(**connect) for _ in range(2)]
    pooled_pymysql.close_pools()
    samples = endpoint.scrape()
    assert value(samples, "mysqlpool_leases_total", pool="lingering") == 2
    held.pop().close()
    samples = endpoint.scrape()
    assert value(samples, "mysqlpool_sessions_closed_total", pool="lingering", reason="pool closed") == 1
    assert value(samples, "mysqlpool_use_seconds_count", pool="lingering") == 1
    held.pop().close()


def test_collected_pool_keeps_what_was_shown_of_it(
    server: Server, endpoint: Endpoint, collector: PrometheusCollector
) -> None:
    pool = ConnectionPool(1, name="collected", **server.kwargs())
    pool.get_connection().close()
    before = endpoint.scrape()
    del pool
    gc.collect()
    assert not [pool for pool in pooled_pymysql.pools() if pool.name == "collected"], "it is kept alive"
    after = endpoint.scrape()
    assert value(after, "mysqlpool_leases_total", pool="collected") == 1
    assert_no_way_back(before, after)
    ConnectionPool(1, name="collected", **server.kwargs()).get_connection().close()
    assert_no_way_back(after, endpoint.scrape())


def test_leases_do_not_go_back_after_the_pool_looked_at_a_session(
    server: Server, endpoint: Endpoint, collector: PrometheusCollector
) -> None:
    pooled_pymysql.connect(**server.kwargs(pool={"name": "looked at"})).close()
    (pool,) = pooled_pymysql.pools()
    session = pool._ledger.take()  # as the housekeeper does
    before = endpoint.scrape()
    assert session is not None
    pool._put_back(session)
    assert pool.stats().leases < before["mysqlpool_leases_total", (("pool", "looked at"),)]
    assert_no_way_back(before, endpoint.scrape())


def test_scrapes_beside_pools_that_come_and_go(
    server: Server, endpoint: Endpoint, collector: PrometheusCollector
) -> None:
    failures: list[BaseException] = []
    turns = 25

    def work(number: int) -> None:
        try:
            for _ in range(turns):
                pool = ConnectionPool(1, name=f"worker {number % 2}", **server.kwargs())
                with pool.get_connection() as connection, connection.cursor() as cursor:
                    cursor.execute("SELECT 1")
                pool.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    before: Samples = {}
    while any(thread.is_alive() for thread in threads):
        after = endpoint.scrape()
        assert_no_way_back(before, after)
        before = after
    for thread in threads:
        thread.join(20)
    assert not failures
    after = endpoint.scrape()
    assert_no_way_back(before, after)
    for name in ("worker 0", "worker 1"):
        assert value(after, "mysqlpool_leases_total", pool=name) == 2 * turns
        assert value(after, "mysqlpool_use_seconds_count", pool=name) == 2 * turns
        assert value(after, "mysqlpool_sessions_closed_total", pool=name, reason="pool closed") == 2 * turns


# Locks and processes


def test_scrape_and_the_registrys_lock_do_not_wait_for_each_other(
    server: Server, collector: PrometheusCollector, monkeypatch: pytest.MonkeyPatch
) -> None:
    pooled_pymysql.connect(**server.kwargs(pool={"name": "forgotten"})).close()
    (pool,) = pooled_pymysql.pools()
    asks = threading.Event()

    def asked() -> list[pooled_pymysql.Pool]:
        if threading.current_thread() is scraper:
            asks.set()
        return pooled_pymysql.pools()

    monkeypatch.setattr(tally, "pools", asked)
    scraper = threading.Thread(target=collector._tally.totals, daemon=True)
    closer = threading.Thread(target=pool.close, daemon=True)
    with registry._registry.lock:  # as when the registry forgets pools, which are then told to be closed
        scraper.start()
        assert asks.wait(20)
        closer.start()
        closer.join(20)
        assert not closer.is_alive(), "closing waits for the scrape, which waits for the registry"
    scraper.join(20)
    assert not scraper.is_alive()


def test_lease_may_be_closed_by_a_finalizer_in_the_middle_of_counting(
    server: Server, collector: PrometheusCollector
) -> None:
    connection = pooled_pymysql.connect(**server.kwargs(pool={"name": "finalized"}))
    (pool,) = pooled_pymysql.pools()
    done = threading.Event()

    def count() -> None:
        with collector._durations._lock, collector._tally._lock:  # the collector runs anywhere
            connection.close()
            pool.close()
        done.set()

    threading.Thread(target=count, daemon=True).start()
    assert done.wait(20)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_child_shows_its_own_pools_only(server: Server, endpoint: Endpoint, collector: PrometheusCollector) -> None:
    connect = server.kwargs(pool={"name": "forked"})
    for _ in range(3):
        pooled_pymysql.connect(**connect).close()
    assert value(endpoint.scrape(), "mysqlpool_leases_total", pool="forked") == 3

    def work() -> None:
        pooled_pymysql.connect(**connect).close()
        own = Endpoint()
        own.registry.register(collector)
        samples = own.scrape()
        assert value(samples, "mysqlpool_leases_total", pool="forked") == 1
        assert value(samples, "mysqlpool_use_seconds_count", pool="forked") == 1

    with held_elsewhere(collector._durations._lock), held_elsewhere(collector._tally._lock):
        assert in_child(work) == 0
    assert value(endpoint.scrape(), "mysqlpool_leases_total", pool="forked") == 3


class held_elsewhere:  # noqa: N801  used as a function
    """Holds a lock in another thread: a forked child has the lock and not the thread."""

    def __init__(self, lock: Any) -> None:
        self.lock = lock
        self.is_held, self.is_over = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._hold)

    def _hold(self) -> None:
        with self.lock:
            self.is_held.set()
            self.is_over.wait(30)

    def __enter__(self) -> None:
        self.thread.start()
        assert self.is_held.wait(20)

    def __exit__(self, *_: object) -> None:
        self.is_over.set()
        self.thread.join(20)


# The collector's own life


def test_collector_ends_and_can_be_made_again(server: Server, endpoint: Endpoint) -> None:
    collector = PrometheusCollector(endpoint.registry)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        PrometheusCollector(endpoint.registry)
    pooled_pymysql.connect(**server.kwargs()).close()
    assert "mysqlpool" in endpoint.text()
    collector.close()
    collector.close()
    assert "mysqlpool" not in endpoint.text()
    assert all(pool.observers is None for pool in pooled_pymysql.pools())
    again = PrometheusCollector(endpoint.registry, buckets=[1.0, 0.5, float("inf")])
    try:
        pooled_pymysql.connect(**server.kwargs()).close()
        bounds = {dict(labels).get("le") for _, labels in endpoint.scrape()}
        assert bounds == {None, "0.5", "1.0", "+Inf"}
    finally:
        again.close()
