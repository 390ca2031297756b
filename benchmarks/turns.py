"""One thread's turns on a peer: a lease, its work and its release, beside the work alone on the driver's connections.

Runs in the peer's process.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import method
import work
from method import Contender

FLOOR, CONTROL, LEASE = "floor", "control", "lease"
SIZE = 8  # of the pools
IDLE = 2  # sessions in each, of which a lease takes one


class Kind(NamedTuple):
    """What a turn does; the floor may do another thing, where the lease does nothing."""

    lease: Callable[[Any], object]
    floor: Callable[[Any], object]
    autocommit: bool


KINDS = {
    "alone": Kind(work.nothing, work.select_one, autocommit=True),
    "select": Kind(work.select_one, work.select_one, autocommit=True),
    "read": Kind(work.read_row, work.read_row, autocommit=False),
    "insert": Kind(work.insert_row, work.insert_row, autocommit=False),
    "touch": Kind(work.touch, work.touch, autocommit=True),
    "fetch": Kind(work.fetch_rows, work.fetch_rows, autocommit=True),
}


def hold(pool: Any, count: int, *, in_threads: bool) -> None:
    """Have so many leases out at once and give them back."""
    if not in_threads:
        for lease in [pool.acquire() for _ in range(count)]:
            pool.release(lease)
        return
    gate = threading.Barrier(count)
    failures: list[Exception] = []

    def take() -> None:
        try:
            lease = pool.acquire()
            gate.wait()
            pool.release(lease)
        except Exception as error:  # noqa: BLE001  it is raised below
            failures.append(error)
            gate.abort()

    threads = [threading.Thread(target=take, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


class Turns:
    """A pool, and two connections of its driver that stay open."""

    def __init__(self, adapter: Any, options: Mapping[str, Any], arguments: Mapping[str, Any], kind: str) -> None:
        self._kind = chosen = KINDS[kind]
        self._order = random.Random(1)
        self._closing = contextlib.ExitStack()
        bare = [adapter.bare(arguments, autocommit=chosen.autocommit) for _ in (FLOOR, CONTROL)]
        for connection in bare:
            self._closing.callback(connection.close)
        self._pool = adapter.Pool(options, arguments, size=SIZE, autocommit=chosen.autocommit, tls=False)
        self._closing.callback(self._pool.close)
        hold(self._pool, IDLE, in_threads=True)
        self._runs: dict[str, Callable[[], object]] = {
            FLOOR: lambda: chosen.floor(bare[0]),
            CONTROL: lambda: chosen.floor(bare[1]),
            LEASE: self._turn,
        }
        self._contenders: dict[str, Contender] = {}

    def calibrate(self, seconds: float) -> None:
        """Choose how often each runs in a round, so that it takes about so long."""
        for name, run in self._runs.items():
            for _ in range(5):
                began = time.perf_counter()
                run()
                took = time.perf_counter() - began
            self._contenders[name] = Contender(run, max(1, min(30, round(seconds / took))))
        # The two floors must be alike.
        self._contenders[CONTROL] = Contender(self._runs[CONTROL], self._contenders[FLOOR].times)

    def round(self) -> dict[str, float]:
        """Take a round and return the ns of a turn of each."""
        return {name: found[0] for name, found in method.interleave(self._contenders, 1, self._order).items()}

    def repeat(self, times: int) -> None:
        """Take turns on leases only."""
        for _ in range(times):
            self._turn()

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._closing.close()

    def _turn(self) -> None:
        lease = self._pool.acquire()
        self._kind.lease(lease)
        self._pool.release(lease)
