"""What both kinds of metrics share: how a pool is called in them, and counters that never go back."""

import os
import threading
import weakref
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

from pooled_pymysql import Pool, PoolStats, pools

# Seconds: handing a session over takes microseconds, opening one a millisecond, and who waits may wait for a minute.
BUCKETS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0)

Count = tuple[str, str]  # a counter's name, and the reason where there is one
_COUNTERS = ("leases", "opened", "timeouts", "refused", "dropped", "leaks")


def label_of(pool: Pool) -> str:
    """Return what a pool is called in metrics: its name, or `host:port/database` as OpenTelemetry has it.

    No account and no password: a name that is a DSN is not used.
    """
    name = pool.options.name
    if name is not None and "://" not in name:
        return name
    key = pool._arguments.key
    where = _text(key.unix_socket) if key.unix_socket else f"{key.host}:{key.port}"
    return f"{where}/{_text(key.database)}" if key.database else where


def stats_by_label() -> dict[str, list[PoolStats]]:
    """Return the counts of the pools that there are; several may have the same label."""
    found: dict[str, list[PoolStats]] = {}
    for pool in pools():
        found.setdefault(label_of(pool), []).append(pool.stats())
    return found


class Tally:
    """The counters of all pools by label: those of pools that are gone stay in. May be called from any thread.

    No pool is kept alive, and none is asked while the lock is held: whoever closes a pool may hold the registry's.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._lock = threading.RLock()  # a finalizer may close a pool in the middle of this
        self._seen: dict[int, tuple[weakref.ref[Pool], str, Counter[Count]]] = {}
        self._done: weakref.WeakSet[Pool] = weakref.WeakSet()  # closed, empty, and counted for good
        self._past: dict[str, Counter[Count]] = {}

    def note(self, pool: Pool) -> None:
        """Look at a pool's counters."""
        is_closed = pool.closed  # first: what is leased afterwards must not be missed
        stats = pool.stats()
        with self._lock:
            if pool in self._done:
                return
            ref, _, counts = self._seen.get(id(pool), (None, "", Counter()))
            if ref is None or ref() is not pool:
                self._bury(id(pool))  # of one that was collected, whose id this one has got
                counts = Counter()
                self._seen[id(pool)] = weakref.ref(pool), label_of(pool), counts
            for name, count in _counts(stats).items():
                # `leases` is a moment too high while the pool looks at a session itself.
                counts[name] = max(counts[name], count)
            if is_closed and not (stats.in_use or stats.idle or stats.opening):
                self._bury(id(pool))
                self._done.add(pool)

    def totals(self) -> dict[str, Counter[Count]]:
        """Look at all pools, and return the counters by label."""
        for pool in pools():
            self.note(pool)
        with self._lock:
            seen = [ref() for ref, _, _ in self._seen.values()]
        for known in seen:
            if known is not None and known.closed:  # leases of it were still out
                self.note(known)
        with self._lock:
            for key in [key for key, (ref, _, _) in self._seen.items() if ref() is None]:
                self._bury(key)
            totals = {label: counts.copy() for label, counts in self._past.items()}
            for _, label, counts in self._seen.values():
                totals.setdefault(label, Counter()).update(counts)
        return totals

    def _bury(self, key: int) -> None:
        """Add the counters of a pool that is gone to the past."""
        if key in self._seen:
            _, label, counts = self._seen.pop(key)
            self._past.setdefault(label, Counter()).update(counts)


class Durations:
    """A histogram of seconds for each event and label. May be called from any thread, and from finalizers."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self._lock = threading.RLock()
        self._found: dict[tuple[str, str], tuple[list[int], list[float]]] = {}

    def add(self, event: str, label: str, seconds: float) -> None:
        """Count a duration in its bucket: the first whose bound is not below it."""
        with self._lock:
            found = self._found.get((event, label))
            if found is None:
                found = self._found[event, label] = [0] * (len(self.bounds) + 1), [0.0]
            found[0][bisect_left(self.bounds, seconds)] += 1
            found[1][0] += seconds

    def of(self, event: str) -> dict[str, tuple[list[int], float]]:
        """Return counts for each bucket, the one beyond the last bound included, and the sum, by label."""
        with self._lock:
            return {
                label: (list(counts), total)
                for (name, label), (counts, (total,)) in self._found.items()
                if name == event
            }


def _counts(stats: PoolStats) -> dict[Count, int]:
    counts = {(name, ""): int(getattr(stats, name)) for name in _COUNTERS}
    return counts | {("closed", reason): count for reason, count in stats.closed.items()}


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
