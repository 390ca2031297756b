"""OpenTelemetry's metrics of connection pools.

https://opentelemetry.io/docs/specs/semconv/db/database-metrics/#connection-pools
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pooled_pymysql import Pool, PoolObserver, PoolStats, add_observer, remove_observer

from .tally import BUCKETS, label_of, stats_by_label

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider, Observation

_METRIC = "db.client.connection."
_POOL = "db.client.connection.pool.name"
_STATE = "db.client.connection.state"

Counts = tuple[Callable[[PoolStats], int], dict[str, str]]  # what is counted, and the attributes that it has


class OpenTelemetryMetrics(PoolObserver):
    """Gives OpenTelemetry the `db.client.connection.*` metrics of all pools of the process, until close().

    `meter_provider` is the global one by default. Pools with the same name are shown as one; those without are called
    `host:port/database`.
    """

    def __init__(self, meter_provider: "MeterProvider | None" = None) -> None:
        from opentelemetry.metrics import get_meter

        meter = get_meter("pooled_pymysql", meter_provider=meter_provider)
        self._is_closed = False

        def observe(name: str, unit: str, text: str, *counts: Counts) -> None:
            meter.create_observable_up_down_counter(_METRIC + name, [self._asked(counts)], unit, text)

        def histogram(name: str, text: str) -> Any:
            return meter.create_histogram(_METRIC + name, "s", text, explicit_bucket_boundaries_advisory=BUCKETS)

        idle = {_STATE: "idle"}
        used = {_STATE: "used"}
        connections = "{connection}"
        observe(
            "count",
            connections,
            "Connections by state",
            (lambda stats: stats.idle, idle),
            (lambda stats: stats.in_use, used),
        )
        observe("max", connections, "Connections that there may be", (lambda stats: stats.max_size, {}))
        observe("idle.max", connections, "Idle connections that there may be", (lambda stats: stats.max_size, {}))
        observe("idle.min", connections, "Connections that are kept open", (lambda stats: stats.min_size, {}))
        observe(
            "pending_requests", "{request}", "Callers that wait for a connection", (lambda stats: stats.waiting, {})
        )
        self._timeouts = meter.create_counter(f"{_METRIC}timeouts", "{timeout}", "Callers who waited in vain")
        self._create_time = histogram("create_time", "Time that opening a connection took")
        self._wait_time = histogram("wait_time", "Time that callers waited for a connection")
        self._use_time = histogram("use_time", "Time that connections were leased")
        add_observer(self)

    def close(self) -> None:
        """Give nothing any more; OpenTelemetry keeps what it was given. A second call does nothing."""
        self._is_closed = True
        remove_observer(self)

    def _asked(self, counts: tuple[Counts, ...]) -> "Callable[[Any], Iterator[Observation]]":
        """Return what a reader calls, from any thread, to know these counts."""
        from opentelemetry.metrics import Observation

        def answer(_: object) -> Iterator[Observation]:
            for label, each in ({} if self._is_closed else stats_by_label()).items():
                for count, attributes in counts:
                    yield Observation(sum(map(count, each)), {_POOL: label, **attributes})

        return answer

    def opened(self, pool: Pool, seconds: float) -> None:
        """Record how long it took to open a connection."""
        self._create_time.record(seconds, {_POOL: label_of(pool)})

    def acquired(self, pool: Pool, seconds: float) -> None:
        """Record how long somebody waited."""
        self._wait_time.record(seconds, {_POOL: label_of(pool)})

    def released(self, pool: Pool, seconds: float) -> None:
        """Record how long a connection was leased."""
        self._use_time.record(seconds, {_POOL: label_of(pool)})

    def timed_out(self, pool: Pool) -> None:
        """Count a caller who has waited in vain."""
        self._timeouts.add(1, {_POOL: label_of(pool)})
