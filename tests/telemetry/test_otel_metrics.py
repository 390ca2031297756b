"""OpenTelemetry's metrics of connection pools, as its own package of names describes them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, Metric
from opentelemetry.semconv._incubating.metrics import db_metrics
from prometheus_client import CollectorRegistry
from servers import Server, wait_until

import pooled_pymysql
from pooled_pymysql import ConnectionPool
from pooled_pymysql.metrics import OpenTelemetryMetrics, PrometheusCollector

NAMES = (
    "count",
    "max",
    "idle.max",
    "idle.min",
    "pending_requests",
    "timeouts",
    "create_time",
    "wait_time",
    "use_time",
)


class Reader:
    """Reads what a provider was given."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)

    def metrics(self) -> dict[str, Metric]:
        data = self.reader.get_metrics_data()
        if data is None:
            return {}
        return {
            metric.name: metric
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def values(self, pool: str) -> dict[str, Any]:
        """Return a pool's values by metric, `count` by state; of histograms the number of values."""
        found: dict[str, Any] = {}
        for name, metric in self.metrics().items():
            for point in metric.data.data_points:
                attributes = dict(point.attributes or {})
                if attributes.pop("db.client.connection.pool.name") != pool:
                    continue
                state = attributes.pop("db.client.connection.state", None)
                assert not attributes
                short = name.removeprefix("db.client.connection.") + (f" {state}" if state else "")
                assert short not in found
                found[short] = point.count if isinstance(point, HistogramDataPoint) else point.value
        return found


@pytest.fixture
def reader() -> Iterator[Reader]:
    reader = Reader()
    yield reader
    reader.provider.shutdown()


@pytest.fixture
def metrics(reader: Reader) -> Iterator[OpenTelemetryMetrics]:
    metrics = OpenTelemetryMetrics(reader.provider)
    yield metrics
    metrics.close()


def use_everything(server: Server) -> None:
    """Have every metric of the pool `everything` get a value, and leave one connection leased."""
    pool = ConnectionPool(1, 2, name="everything", **server.kwargs())
    kept.append(pool)
    kept.extend(pool.get_connection() for _ in range(2))
    with pytest.raises(pooled_pymysql.PoolTimeout):
        pool.acquire(timeout=0)
    kept.pop().close()


kept: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    yield
    for thing in reversed(kept):
        thing.close()
    kept.clear()


def test_metrics_are_those_of_the_semantic_conventions(
    server: Server, reader: Reader, metrics: OpenTelemetryMetrics
) -> None:
    use_everything(server)
    wait_until(lambda: reader.values("everything").get("create_time") == 2, what="the openings to be told")
    found = reader.metrics()

    # The same ones, made by OpenTelemetry's own package of names.
    model = Reader()
    meter = model.provider.get_meter("model")
    for name in NAMES:
        instrument = getattr(db_metrics, f"create_db_client_connection_{name.replace('.', '_')}")(meter)
        (instrument.record if name.endswith("_time") else instrument.add)(1)
    expected = model.metrics()
    model.provider.shutdown()

    assert set(found) == set(expected) == {f"db.client.connection.{name}" for name in NAMES}
    for name, metric in found.items():
        assert metric.unit == expected[name].unit
        assert type(metric.data) is type(expected[name].data)
        for what in ("is_monotonic", "aggregation_temporality"):
            assert getattr(metric.data, what, None) == getattr(expected[name].data, what, None)
        assert metric.description


def test_values(server: Server, reader: Reader, metrics: OpenTelemetryMetrics) -> None:
    use_everything(server)
    wait_until(lambda: reader.values("everything").get("create_time") == 2, what="the openings to be told")
    assert reader.values("everything") == {
        "count idle": 1,
        "count used": 1,
        "max": 2,
        "idle.max": 2,
        "idle.min": 1,
        "pending_requests": 0,
        "timeouts": 1,
        "create_time": 2,
        "wait_time": 2,
        "use_time": 1,
    }
    point = reader.metrics()["db.client.connection.use_time"].data.data_points[0]
    assert isinstance(point, HistogramDataPoint)
    assert point.explicit_bounds[0] == 0.0001, "the default bounds are for milliseconds"
    assert point.explicit_bounds[-1] == 60.0
    assert 0 < point.sum < 60


def test_who_waits_is_pending(server: Server, reader: Reader, metrics: OpenTelemetryMetrics) -> None:
    connect = server.kwargs(pool={"name": "busy", "max_size": 1})
    held = pooled_pymysql.connect(**connect)
    waiter = threading.Thread(target=lambda: pooled_pymysql.connect(**connect).close())
    waiter.start()
    wait_until(lambda: reader.values("busy")["pending_requests"] == 1, what="the waiter")
    held.close()
    waiter.join(20)
    assert reader.values("busy")["pending_requests"] == 0


def test_pool_without_a_name_is_called_by_its_address(
    server: Server, reader: Reader, metrics: OpenTelemetryMetrics
) -> None:
    pooled_pymysql.connect(**server.kwargs()).close()
    assert reader.values(f"{server.host}:{server.port}/{server.database}")["count idle"] == 1


def test_pools_of_one_name_are_one_series(server: Server, reader: Reader, metrics: OpenTelemetryMetrics) -> None:
    kept.extend(ConnectionPool(size, name="twins", **server.kwargs()) for size in (1, 2))
    found = reader.values("twins")
    assert (found["count idle"], found["max"]) == (3, 3)


def test_counters_of_a_pool_that_is_gone_stay_and_its_counts_go(
    server: Server, reader: Reader, metrics: OpenTelemetryMetrics
) -> None:
    connect = server.kwargs(pool={"name": "brief"})
    for turn in range(1, 4):
        pooled_pymysql.connect(**connect).close()
        with (
            pytest.raises(pooled_pymysql.PoolTimeout),
            pooled_pymysql.connect(**{**connect, "pool": {"name": "brief", "max_size": 1}}),
        ):
            next(pool for pool in pooled_pymysql.pools() if pool.options.max_size == 1).acquire(timeout=0)
        pooled_pymysql.close_pools()
        wait_until(lambda turn=turn: reader.values("brief")["create_time"] == 2 * turn, what="the openings to be told")
        assert reader.values("brief") == {
            "timeouts": turn,
            "create_time": 2 * turn,
            "wait_time": 2 * turn,
            "use_time": 2 * turn,
        }


def test_nothing_is_told_after_close(server: Server, reader: Reader) -> None:
    metrics = OpenTelemetryMetrics(reader.provider)
    pooled_pymysql.connect(**server.kwargs(pool={"name": "over"})).close()
    metrics.close()
    metrics.close()
    pooled_pymysql.connect(**server.kwargs(pool={"name": "over"})).close()
    found = reader.values("over")
    assert "count idle" not in found
    assert found["use_time"] == 1
    assert all(pool.observers is None for pool in pooled_pymysql.pools())


def test_both_tools_at_once(server: Server, reader: Reader, metrics: OpenTelemetryMetrics) -> None:
    registry = CollectorRegistry()
    collector = PrometheusCollector(registry)
    try:
        for _ in range(2):
            pooled_pymysql.connect(**server.kwargs(pool={"name": "both"})).close()
        assert registry.get_sample_value("mysqlpool_use_seconds_count", {"pool": "both"}) == 2
        assert reader.values("both")["use_time"] == 2
    finally:
        collector.close()
