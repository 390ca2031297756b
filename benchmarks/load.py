"""What many threads get out of few sessions: throughput, fairness, waits, connections; and what a spike opens.

    python benchmarks/load.py [--server-dsn DSN [--server-pid PID]] [--quick] [--no-pin] [--json FILE]

Starts a private server unless a DSN is given. A ratio is that of the turns a second: a lease, the statement and its
release, to the statement alone on connections that stay open, one for each thread; taken within each round, in which
all contenders have one short window each. "Floor to floor" compares two equal sets of such connections: where it is
off by more than 3 % the row is void.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lease
import method
import proxy
import pymysql
from lease import Server, chosen_server
from method import Row, Spread
from team import Team, Turn, counter
from work import select_one, sleep_a_millisecond

sys.path.append(str(Path(__file__).parents[1]))  # the working copy, unless the package is installed

import pooled_pymysql

SESSIONS = 8
FLOOR, CONTROL, POOL = "private connections", "private connections again", f"a pool of {SESSIONS}"
LIMIT = 0.03  # how far the floor may be from itself
PATIENCE = 30.0  # seconds that a thread waits for a session
SPIKE_THREADS, SPIKE_OPENING, SPIKE_DELAY = 50, 0.150, 0.001  # the query takes twice the delay

_clock = time.perf_counter


class Effort(NamedTuple):
    """How much is measured."""

    seconds: float  # of each window
    rounds: int
    spikes: int
    tries: int


# Many short windows, not few long ones: the machine must be the same one for all that share a round.
FULL = Effort(seconds=0.25, rounds=60, spikes=15, tries=3)
QUICK = Effort(seconds=0.15, rounds=14, spikes=3, tries=1)


# Threads


class Work(NamedTuple):
    """One row: so many threads on the pool, so many with connections of their own."""

    label: str
    run: Callable[[Any], object]
    threads: int
    floor_threads: int


WORKS = (
    *(Work(f"SELECT 1, {threads} threads", select_one, threads, threads) for threads in (4, 16, 64)),
    Work(f"SLEEP(0.001), 200 threads, to {SESSIONS} threads", sleep_a_millisecond, 200, SESSIONS),
)


@contextlib.contextmanager
def private_turns(work: Work, arguments: Mapping[str, Any]) -> Iterator[list[Turn]]:
    """Give each thread a connection of its own."""
    with contextlib.ExitStack() as stack:

        def turn_of(connection: Any) -> Turn:
            def turn() -> float:
                work.run(connection)
                return 0.0

            return turn

        number = range(work.floor_threads)
        yield [turn_of(stack.enter_context(pymysql.connect(**arguments, autocommit=True))) for _ in number]


def leased_turns(work: Work, arguments: Mapping[str, Any]) -> list[Turn]:
    given = {**arguments, "autocommit": True, "pool": {"max_size": SESSIONS, "timeout": PATIENCE}}
    lease.warm(SESSIONS, **given)

    def turn() -> float:
        began = _clock()
        connection = pooled_pymysql.connect(**given)
        waited = _clock() - began
        try:
            work.run(connection)
        finally:
            connection.close()
        return waited

    return [turn] * work.threads


class Found(NamedTuple):
    """A row, and what the windows of the pool showed besides."""

    row: Row
    rates: dict[str, Spread]
    cpu: dict[str, Spread]  # seconds
    fairness: float  # the least turns of a thread to the most, all windows together
    longest: Spread  # seconds
    longest_of_all: float
    connections: int
    errors: int


def measure_work(work: Work, arguments: Mapping[str, Any], effort: Effort) -> Found:
    with contextlib.ExitStack() as stack:
        private = {name: stack.enter_context(private_turns(work, arguments)) for name in (FLOOR, CONTROL)}
        look = stack.enter_context(counter(arguments))
        leased = leased_turns(work, arguments)
        many, few = (stack.enter_context(Team(size)) for size in (work.threads, work.floor_threads))
        contenders = {
            name: lambda turns=turns: few.run(turns, effort.seconds, look)  # type: ignore[misc]
            for name, turns in private.items()
        }
        contenders[POOL] = lambda: many.run(leased, effort.seconds, look)
        number = 0
        while True:
            number += 1
            windows = method.rotate(contenders, effort.rounds)
            rates = {name: [window.rate for window in found] for name, found in windows.items()}
            control = method.ratio(rates, CONTROL, FLOOR).median
            if abs(control - 1) <= LIMIT or number == effort.tries:
                break
    pooled_pymysql.close_pools()
    is_void = abs(control - 1) > LIMIT
    row = Row(work.label, "loopback", {POOL: method.ratio(rates, POOL, FLOOR)}, control, number, is_void)
    pool = windows[POOL]
    turns = [sum(counts) for counts in zip(*(window.counts for window in pool), strict=True)]
    return Found(
        row,
        {name: Spread.of(values) for name, values in rates.items()},
        {name: Spread.of(window.cpu for window in found) for name, found in windows.items()},
        min(turns) / max(turns),
        Spread.of(window.longest for window in pool),
        max(window.longest for window in pool),
        max(window.connections for window in pool),
        sum(window.errors for window in pool),
    )


def show(found: Found) -> None:
    method.show(found.row)
    for name, rate in found.rates.items():
        print(f"  {name + ', turns a second':<50}{method.text(rate, 1, 0):>24}")
    for name, cpu in found.cpu.items():
        print(f"  {name + ', client CPU a turn, µs':<50}{method.text(cpu, 1e-6, 0):>24}")
    print(f"  {'least to most turns of a thread':<50}{found.fairness:>24.2f}")
    longest = f"{method.text(found.longest, 0.001, 1):>24}, worst {found.longest_of_all * 1000:.1f}"
    print(f"  {'longest wait for a connection, ms':<50}{longest}")
    print(f"  connections on the server: {found.connections}; errors: {found.errors}", flush=True)


# A spike


class Spike(NamedTuple):
    """What callers found who came all at once to an empty pool."""

    opened: int
    took: float  # seconds until the last of them was served
    opening: float  # seconds that opening one connection takes


def measure_spikes(server: Server, effort: Effort) -> list[Spike]:
    """Have threads come at once, with openings that are slow and queries that are not."""
    near = server.arguments
    with proxy.running(near["host"], near["port"], SPIKE_DELAY) as process:
        far = {name: value for name, value in near.items() if name != "unix_socket"}
        far.update(host="127.0.0.1", port=process.port, autocommit=True)
        # What round trips and authentication leave of the opening's time is spent in the server.
        plain = statistics.median(_opening(far) for _ in range(5))
        far["init_command"] = f"DO SLEEP({max(0.0, SPIKE_OPENING - plain):.4f})"
        far["pool"] = {"max_size": SPIKE_THREADS, "timeout": PATIENCE}
        return [_spike(far, near) for _ in range(effort.spikes)]


def _opening(arguments: Mapping[str, Any]) -> float:
    began = _clock()
    pooled_pymysql.connect(**arguments)
    took = _clock() - began
    pooled_pymysql.close_pools()
    return took


def _spike(arguments: Mapping[str, Any], near: Mapping[str, Any]) -> Spike:
    opening = _opening(arguments)
    gate = threading.Barrier(SPIKE_THREADS + 1)

    def call() -> None:
        gate.wait()
        with pooled_pymysql.connect(**arguments) as connection:
            select_one(connection)

    threads = [threading.Thread(target=call) for _ in range(SPIKE_THREADS)]
    with pymysql.connect(**near) as admin, admin.cursor() as cursor:

        def connections() -> int:
            cursor.execute("SHOW GLOBAL STATUS LIKE 'Connections'")
            return int(cursor.fetchone()[1])

        before = connections()
        for thread in threads:
            thread.start()
        gate.wait()
        began = _clock()
        for thread in threads:
            thread.join()
        took = _clock() - began
        time.sleep(2 * SPIKE_OPENING)  # in which openings that nobody waits for any more are counted too
        opened = connections() - before
    pooled_pymysql.close_pools()
    return Spike(opened, took, opening)


def show_spikes(spikes: Sequence[Spike]) -> None:
    print(f"\nSpike: {SPIKE_THREADS} threads at once, an empty pool, 1 ms each way")
    for label, unit, digits, values in (
        ("connections opened", 1.0, 0, [float(spike.opened) for spike in spikes]),
        ("all served after, ms", 0.001, 0, [spike.took for spike in spikes]),
        ("opening one takes, ms", 0.001, 0, [spike.opening for spike in spikes]),
    ):
        print(f"  {label:<50}{method.text(Spread.of(values), unit, digits):>24}", flush=True)


# All of it


def measure(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """Measure and print; return all figures."""
    effort = QUICK if options.quick else FULL
    core = method.quietest_core() if server.pids and not options.no_pin else None
    with method.pinned(core, *(server.pids if core is not None else ())):
        known = lease.conditions(server, core)
        method.show_conditions(known)
        found = []
        for work in WORKS:
            found.append(measure_work(work, server.arguments, effort))
            show(found[-1])
        spikes = measure_spikes(server, effort)
        show_spikes(spikes)
    known["load_after"] = method.load()
    print(f"\nLoad at the end: {method.loads(known['load_after'])}")
    return {"conditions": known, "rows": found, "spikes": spikes}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--server-dsn", metavar="DSN", help="a running server")
    parser.add_argument("--server-pid", type=int, metavar="PID", help="process of that server, to be pinned meanwhile")
    parser.add_argument("--no-pin", action="store_true", help="let client and server use all cores")
    parser.add_argument("--quick", action="store_true", help="under a minute, with wider spreads")
    parser.add_argument("--json", metavar="FILE", help="write all figures there as well")
    options = parser.parse_args()
    with chosen_server(options) as server:
        found = measure(server, options)
    method.keep(found, options.json)
    return 1 if any(each.row.is_void for each in found["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
