"""Many threads on a peer's few sessions, openings all at once, and what sessions take of memory.

Runs in the peer's process.
"""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import method
import pymysql
import work
from team import Team, Turn, Window, counter
from turns import CONTROL, FLOOR, LEASE, SIZE, hold

_clock = time.perf_counter


class Crowd(NamedTuple):
    """So many threads on the pool, so many on connections of their own."""

    run: Any
    threads: int
    floor_threads: int


CROWDS = {
    "4": Crowd(work.select_one, 4, 4),
    "16": Crowd(work.select_one, 16, 16),
    "64": Crowd(work.select_one, 64, 64),
    "200": Crowd(work.sleep_a_millisecond, 200, SIZE),
}


def windows(
    adapter: Any, options: Mapping[str, Any], arguments: Mapping[str, Any], *, crowd: str, rounds: int, seconds: float
) -> dict[str, list[Window]]:
    """Have the threads take their turns on the pool and on two sets of private connections, rotated."""
    chosen = CROWDS[crowd]
    with contextlib.ExitStack() as stack:

        def private() -> list[Turn]:
            connections = [adapter.bare(arguments, autocommit=True) for _ in range(chosen.floor_threads)]
            for connection in connections:
                stack.callback(connection.close)
            return [lambda connection=connection: chosen.run(connection) or 0.0 for connection in connections]

        floors = {FLOOR: private(), CONTROL: private()}
        look = stack.enter_context(counter(arguments))
        pool = adapter.Pool(options, arguments, size=SIZE, autocommit=True, tls=False)
        stack.callback(pool.close)
        hold(pool, min(SIZE, chosen.threads), in_threads=True)
        leased = [lambda: _leased(pool, chosen.run)] * chosen.threads
        many, few = (stack.enter_context(Team(size)) for size in (chosen.threads, chosen.floor_threads))
        contenders = {name: lambda turns=turns: few.run(turns, seconds, look) for name, turns in floors.items()}
        contenders[LEASE] = lambda: many.run(leased, seconds, look)
        return method.rotate(contenders, rounds)


def _leased(pool: Any, run: Any) -> float:
    began = _clock()
    try:
        lease = pool.acquire()
        waited = _clock() - began
        try:
            run(lease)
        finally:
            pool.release(lease)
    except Exception as error:  # noqa: BLE001  a Team counts PyMySQL's errors
        raise pymysql.err.OperationalError(0, repr(error)) from None
    return waited


def spike(adapter: Any, options: Mapping[str, Any], arguments: Mapping[str, Any], threads: int) -> dict[str, float]:
    """Have threads come all at once to an empty pool, with one SELECT each; seconds, beside those of one opening."""
    began = _clock()
    adapter.bare(arguments, autocommit=True).close()
    opening = _clock() - began
    pool: Any = None
    ready = threading.Event()
    failures = []

    def call() -> None:
        ready.wait()
        try:
            _leased(pool, work.select_one)
        except pymysql.Error as error:
            failures.append(error)

    crowd = [threading.Thread(target=call, daemon=True) for _ in range(threads)]
    for thread in crowd:
        thread.start()
    began = _clock()
    pool = adapter.Pool(options, arguments, size=threads, autocommit=True, tls=False)
    ready.set()
    for thread in crowd:
        thread.join()
    took = _clock() - began
    time.sleep(2 * opening)  # in which openings that nobody waits for any more are counted too
    return {"took": took, "opening": opening, "errors": len(failures)}


def cold(adapter: Any, options: Mapping[str, Any], arguments: Mapping[str, Any], count: int) -> dict[str, float]:
    """Have so many threads hold a lease at once, of a pool that was empty; beside as many plain openings in a row."""
    began = _clock()
    plain = [adapter.bare(arguments, autocommit=True) for _ in range(count)]
    floor = _clock() - began
    for connection in plain:
        connection.close()
    began = _clock()
    pool = adapter.Pool(options, arguments, size=count, autocommit=True, tls=False)
    hold(pool, count, in_threads=True)
    took = _clock() - began
    pool.close()
    return {"took": took, "floor": floor}


def memory(
    adapter: Any, options: Mapping[str, Any], arguments: Mapping[str, Any], *, pooled: bool, tls: bool, count: int,
    steps: int,
) -> float:  # fmt: skip
    """Return the bytes that an idle session takes, over so many steps of so many; the first two are not measured.

    Each step has a pool of its own, as leases that are held at once need memory too. Only many steps give a figure: an
    interpreter takes memory in large pieces.
    """
    kept: list[Any] = []
    found = []
    for _ in range(steps + 2):
        if pooled:
            pool = adapter.Pool(options, arguments, size=count, autocommit=True, tls=tls)
            hold(pool, count, in_threads=getattr(adapter, "THREAD_BOUND", False))
            kept.append(pool)
        else:
            kept.append([adapter.bare(arguments, autocommit=True, tls=tls) for _ in range(count)])
        gc.collect()
        found.append(method.resident())
    return (found[-1] - found[1]) / (steps * count)
