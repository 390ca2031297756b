"""A collector for prometheus-client."""

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from pooled_pymysql import Pool, PoolObserver, PoolStats, add_observer, remove_observer

from .tally import BUCKETS, Durations, Tally, label_of, stats_by_label

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

PREFIX = "mysqlpool"

_STATES: dict[str, Callable[[PoolStats], int]] = {
    "idle": lambda stats: stats.idle,
    "in_use": lambda stats: stats.in_use,
    "opening": lambda stats: stats.opening,
}
_GAUGES: dict[str, tuple[str, Callable[[PoolStats], int]]] = {
    "waiting": ("Callers that wait for a session", lambda stats: stats.waiting),
    "sessions_max": ("Sessions that there may be", lambda stats: stats.max_size),
    "sessions_min": ("Sessions that are kept open", lambda stats: stats.min_size),
}
_COUNTERS = {
    "leases": ("leases", "Sessions handed out"),
    "opened": ("sessions_opened", "Sessions opened"),
    "timeouts": ("timeouts", "Callers who waited in vain"),
    "refused": ("refused", "Callers turned away by max_waiting"),
    "dropped": ("leases_dropped", "Leases that were garbage-collected instead of closed"),
    "leaks": ("leases_leaked", "Leases that were held for longer than leak_threshold"),
}
_DURATIONS = {
    "opened": ("open_seconds", "Time that opening a session took"),
    "acquired": ("wait_seconds", "Time that callers waited for a session"),
    "released": ("use_seconds", "Time that sessions were leased"),
}


class PrometheusCollector(PoolObserver):
    """Shows all pools of the process to Prometheus, from when it is made until close().

    Registers with `registry` (default: prometheus-client's own). Pools with the same name are shown as one; those
    without are called `host:port/database`. Counters of pools that are gone stay; durations are those since it was
    made. `buckets` are the upper bounds of the histograms, in seconds. A forked child begins with nothing.
    """

    def __init__(self, registry: "CollectorRegistry | None" = None, *, buckets: Sequence[float] = BUCKETS) -> None:
        from prometheus_client import REGISTRY

        self._bounds = sorted(float(bound) for bound in buckets if bound != float("inf"))
        self._registry: CollectorRegistry | None = registry or REGISTRY
        self._start_empty()
        (registry or REGISTRY).register(self)
        add_observer(self)

    def close(self) -> None:
        """Show and hear nothing any more. A second call does nothing."""
        remove_observer(self)
        registry, self._registry = self._registry, None
        if registry is not None:
            registry.unregister(self)

    def _start_empty(self) -> None:
        self._durations, self._tally = Durations(self._bounds), Tally()

    def _look_at_process(self) -> None:
        """Start empty in a forked child: its pools do, and a lock may be held by a thread that only the parent has."""
        if self._tally.pid != os.getpid():
            self._start_empty()

    # What the pools tell

    def opened(self, pool: Pool, seconds: float) -> None:
        """Count how long it took to open a session."""
        self._look_at_process()
        self._durations.add("opened", label_of(pool), seconds)

    def acquired(self, pool: Pool, seconds: float) -> None:
        """Count how long somebody waited."""
        self._look_at_process()
        self._durations.add("acquired", label_of(pool), seconds)

    def released(self, pool: Pool, seconds: float) -> None:
        """Count how long a session was leased."""
        self._look_at_process()
        self._durations.add("released", label_of(pool), seconds)

    def closed(self, pool: Pool) -> None:
        """Look at a pool for the last time, which no scrape may have seen."""
        self._look_at_process()
        self._tally.note(pool)

    # What Prometheus asks

    def describe(self) -> "Iterator[Metric]":
        """Return the metrics without values: their names must be free."""
        return self._families(empty=True)

    def collect(self) -> "Iterator[Metric]":
        """Return the metrics of this moment; called from any thread."""
        self._look_at_process()
        return self._families(empty=False)

    def _families(self, *, empty: bool) -> "Iterator[Metric]":
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        live = {} if empty else stats_by_label()
        totals = {} if empty else self._tally.totals()
        bounds = [*map(str, self._bounds), "+Inf"]
        family: Any = GaugeMetricFamily(f"{PREFIX}_sessions", "Sessions", labels=("pool", "state"))
        for label, each in live.items():
            for state, count in _STATES.items():
                family.add_metric((label, state), sum(map(count, each)))
        yield family
        for name, (text, count) in _GAUGES.items():
            family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=("pool",))
            for label, each in live.items():
                family.add_metric((label,), sum(map(count, each)))
            yield family
        for key, (name, text) in _COUNTERS.items():
            family = CounterMetricFamily(f"{PREFIX}_{name}", text, labels=("pool",))
            for label, counts in totals.items():
                family.add_metric((label,), counts[key, ""])
            yield family
        family = CounterMetricFamily(f"{PREFIX}_sessions_closed", "Sessions closed", labels=("pool", "reason"))
        for label, counts in totals.items():
            for (key, reason), number in counts.items():
                if key == "closed":
                    family.add_metric((label, reason), number)
        yield family
        for event, (name, text) in _DURATIONS.items():
            family = HistogramMetricFamily(f"{PREFIX}_{name}", text, labels=("pool",))
            for label, (buckets, total) in ({} if empty else self._durations.of(event)).items():
                family.add_metric((label,), list(zip(bounds, accumulate(buckets), strict=True)), total)
            yield family
