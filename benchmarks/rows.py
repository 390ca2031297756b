"""The rows of the comparison: each has every peer's process do the same, and gathers what it found.

What goes wrong in one peer becomes its cell and ends nothing else.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import method
import proxy
from method import Spread
from peers import Facts
from processes import PeerError, Worker
from results import Cell, Row, cell, failed, row

STEP_LIMIT = 60.0  # seconds in which a peer must answer, whatever it is asked
LOOPBACK_LIMIT, PROXY_LIMIT, CROWD_LIMIT = 0.01, 0.02, 0.03  # how far the floor may be from itself
SPIKE_DELAY = 0.001  # seconds each way
WIRE_DELAY = 0.004  # seconds each way: long beside what a client does between two packets

LOOPBACK, FAR = "loopback", "1 ms each way"


class Contestant(NamedTuple):
    """One variant of a peer: its process, or why there is none."""

    peer: Facts
    label: str
    worker: Worker
    absent: str | None


class Effort(NamedTuple):
    """How much is measured; times in seconds."""

    loopback: float  # for a row, all peers together
    far: float
    tries: int
    least: int  # rounds, however long they take
    wires: int
    crowd_rounds: int
    crowd_window: float
    crowd_tries: int
    at_once: int  # threads of a spike, sessions opened cold
    spike_opening: float
    spikes: int
    colds: int
    memory_steps: int
    imports: int
    fetched: int  # rows
    fetch: float
    fetch_tries: int


FULL = Effort(
    loopback=22.0, far=32.0, tries=4, least=3, wires=3, crowd_rounds=10, crowd_window=0.15, crowd_tries=2, at_once=50,
    spike_opening=0.15, spikes=2, colds=5, memory_steps=8, imports=9, fetched=100_000, fetch=40.0, fetch_tries=2,
)  # fmt: skip
QUICK = Effort(
    loopback=1.5, far=3.0, tries=1, least=1, wires=1, crowd_rounds=2, crowd_window=0.07, crowd_tries=1, at_once=20,
    spike_opening=0.05, spikes=1, colds=1, memory_steps=1, imports=1, fetched=20_000, fetch=3.0, fetch_tries=1,
)  # fmt: skip

WORKS = {
    "alone": "A lease alone, to a SELECT 1 on the floor",
    "select": "Lease + SELECT 1",
    "read": "Lease + SELECT from InnoDB, no autocommit",
    "insert": "Lease + INSERT + commit, no autocommit",
}
CROWD_TITLES = {
    "4": "SELECT 1, 4 threads on 8 sessions",
    "16": "SELECT 1, 16 threads on 8 sessions",
    "64": "SELECT 1, 64 threads on 8 sessions",
    "200": "SLEEP(0.001), 200 threads on 8 sessions, to 8 threads",
}


def each(contestants: Sequence[Contestant], run: Callable[[Contestant], Cell]) -> dict[str, Cell]:
    """Make every contestant's cell, one after the other."""
    cells = {}
    for one in contestants:
        if one.absent is not None:
            cells[one.label] = failed(f"absent: {one.absent}")
            continue
        try:
            cells[one.label] = run(one)
        except (PeerError, OSError, subprocess.SubprocessError) as error:
            cells[one.label] = failed(error)
    return cells


# One thread


class Course(NamedTuple):
    """Where the server is, and for how long rounds are taken."""

    way: str
    arguments: Mapping[str, Any]
    seconds: float
    least: int
    tries: int


def one_thread(contestants: Sequence[Contestant], kind: str, title: str, course: Course) -> Row:
    """Interleave short rounds of all peers; again for those whose floor differs from itself."""
    limit, segment = (PROXY_LIMIT, 0.005) if course.way == FAR else (LOOPBACK_LIMIT, 0.001)
    begin = {"kind": kind, "arguments": course.arguments, "seconds": segment}

    def open_turns(one: Contestant) -> Cell:
        one.worker.ask("begin", STEP_LIMIT, **begin)
        return {}

    cells = each(contestants, open_turns)
    racing = [one for one in contestants if "error" not in cells[one.label]]
    for number in range(1, course.tries + 1):
        share = course.seconds * max(0.25, len(racing) / len(contestants))
        for label, times in _interleave(racing, share, course.least).items():
            cells[label] = times if "error" in times else _cell_of(times, limit, number)
        racing = [one for one in racing if cells[one.label].get("void")]
        if not racing:
            break
    each(contestants, lambda one: one.worker.ask("end", STEP_LIMIT) or {})
    return row(f"{kind}, {course.way}", "one thread", f"{title}, {course.way}", "x the driver's floor", cells)


def _interleave(racing: Sequence[Contestant], seconds: float, least: int) -> dict[str, Any]:
    """Have all take rounds in turn for so long, in another order each time; slow ones sit out for an equal share."""
    found: dict[str, Any] = {one.label: {"floor": [], "control": [], "lease": []} for one in racing}
    used = dict.fromkeys(found, 0.0)
    running = list(racing)
    deadline = time.monotonic() + seconds
    number = 0
    while running and (number < least or time.monotonic() < deadline):
        first = number % len(running)
        order = (running[first:] + running[:first])[:: -1 if number % 2 else 1]
        fair = 2 * statistics.mean(used[one.label] for one in running)
        for one in order:
            if number >= least and used[one.label] > fair:
                continue
            began = time.monotonic()
            try:
                taken = one.worker.ask("round", STEP_LIMIT)
            except PeerError as error:
                found[one.label] = failed(error)
                running.remove(one)
                continue
            used[one.label] += time.monotonic() - began
            for name, value in taken.items():
                found[one.label][name].append(value)
        number += 1
    return found


def _cell_of(times: dict[str, list[float]], limit: float, tries: int) -> Cell:
    off = method.ratio(times, "control", "floor").median
    spread = method.ratio(times, "lease", "floor")
    return cell(list(spread), control=off, void=abs(off - 1) > limit, tries=tries, rounds=len(times["floor"]))


# The wire


def wire(contestants: Sequence[Contestant], kind: str, title: str, near: Mapping[str, Any], times: int) -> Row:
    """Count what a lease with its work sends and waits for; medians of so many counts.

    What a few leases and many have in common cancels out.
    """
    few, many = 2, 6

    def count(one: Contestant) -> Cell:
        one.worker.ask("begin", STEP_LIMIT, kind=kind, arguments=arguments, seconds=0)
        one.worker.ask("repeat", STEP_LIMIT, times=4)
        found = [[series(one, turns) for turns in (few, many)] for _ in range(times)]
        one.worker.ask("end", STEP_LIMIT)
        time.sleep(6 * WIRE_DELAY)  # its goodbyes are not the next one's
        per: dict[str, Any] = {}
        for name in found[0][0]:
            differences = [(more[name] - less[name]) / (many - few) for less, more in found if less[name] is not None]
            per[name] = statistics.median(differences) if differences else None
        return cell(per.pop("waits"), **{name.replace("_", " "): value for name, value in per.items()})

    def series(one: Contestant, turns: int) -> dict[str, Any]:
        time.sleep(6 * WIRE_DELAY)
        process.tally()
        one.worker.ask("repeat", STEP_LIMIT, times=turns)
        time.sleep(6 * WIRE_DELAY)
        return process.tally()

    with far_away(near, WIRE_DELAY) as (process, arguments):
        cells = each(contestants, count)
    return row(f"wire, {kind}", "wire", f"{title}, on the wire", "round trips waited for", cells)


@contextlib.contextmanager
def far_away(near: Mapping[str, Any], delay: float, opening: float = 0.0) -> Iterator[tuple[proxy.Process, Any]]:
    """Run a proxy in front of the server, and give the arguments that lead through it."""
    with proxy.running(near["host"], near["port"], delay, opening) as process:
        yield process, {**near, "host": "127.0.0.1", "port": process.port}


# Many threads, openings


def crowd(contestants: Sequence[Contestant], name: str, arguments: Mapping[str, Any], effort: Effort) -> Row:
    """Compare the turns a second of threads on a pool with those on connections of their own."""
    given = {"crowd": name, "arguments": arguments, "rounds": effort.crowd_rounds, "seconds": effort.crowd_window}

    def race(one: Contestant) -> Cell:
        for number in range(1, effort.crowd_tries + 1):
            windows = one.worker.ask("windows", STEP_LIMIT, **given)
            if not (found := _crowd_cell(windows, number))["void"]:
                break
        return found

    pools = [one for one in contestants if one.peer.pools]
    title = CROWD_TITLES[name]
    return row(f"threads, {name}", "threads", title, "x the floor's rate", each(pools, race), better="higher")


def _crowd_cell(windows: Mapping[str, Any], tries: int) -> Cell:
    rates = {name: [one["rate"] for one in found] for name, found in windows.items()}
    off = method.ratio(rates, "control", "floor").median
    spread = method.ratio(rates, "lease", "floor")
    lease = windows["lease"]
    turns = [sum(counts) for counts in zip(*(one["counts"] for one in lease), strict=True)]
    more = {
        "least to most turns of a thread": min(turns) / max(1, *turns),
        "longest wait ms": 1000 * max(one["longest"] for one in lease),
        "connections": max(one["connections"] for one in lease),
        "errors": sum(one["errors"] for one in lease),
    }
    return cell(list(spread), control=off, void=abs(off - 1) > CROWD_LIMIT, tries=tries, **more)


def spike(contestants: Sequence[Contestant], near: Mapping[str, Any], effort: Effort) -> Row:
    """Have many threads come at once to an empty pool where opening is slow."""

    def come(one: Contestant) -> Cell:
        found = []
        threads = min(effort.at_once, one.peer.max_size or effort.at_once)
        for _ in range(effort.spikes):
            with far_away(near, SPIKE_DELAY, effort.spike_opening) as (process, arguments):
                spiked = one.worker.ask("spike", STEP_LIMIT, arguments=arguments, threads=threads)
                # One was opened to see how long that takes.
                found.append((spiked, process.tally()["connections"] - 1))
                one.worker.end()  # nothing is left of its connections
        spread = Spread.of(spiked["took"] / spiked["opening"] for spiked, _ in found)
        opened, errors = max(count for _, count in found), sum(spiked["errors"] for spiked, _ in found)
        return cell(list(spread), opened=opened, errors=errors, threads=threads)

    title = f"Spike: {effort.at_once} threads at once, an empty pool, slow openings"
    return row("spike", "openings", title, "all served after, x one opening", each(contestants, come))


def cold(contestants: Sequence[Contestant], near: Mapping[str, Any], effort: Effort) -> Row:
    """Have threads hold as many leases at once, of an empty pool."""

    def fill(one: Contestant) -> Cell:
        count = min(effort.at_once, one.peer.max_size or effort.at_once)
        found = [one.worker.ask("cold", STEP_LIMIT, arguments=near, count=count) for _ in range(effort.colds)]
        return cell(list(Spread.of(one["took"] / one["floor"] for one in found)), sessions=count)

    title = f"{effort.at_once} sessions opened cold"
    unit = "x as many openings of the driver in a row"
    return row("cold", "openings", title, unit, each(contestants, fill))


# What it costs besides


def memory(contestants: Sequence[Contestant], near: Mapping[str, Any], steps: int, *, tls: bool) -> Row:
    """Weigh idle sessions, and the driver's own connections."""
    floors: dict[str, float] = {}

    def weigh(one: Contestant) -> Cell:
        given = {"arguments": near, "tls": tls, "count": 30, "steps": steps}

        def weighed(*, pooled: bool) -> float:
            one.worker.end()  # in a process of its own
            found = one.worker.ask("memory", STEP_LIMIT, pooled=pooled, **given) / 1024
            one.worker.end()
            return float(found)

        driver = one.peer.driver_imports
        if driver not in floors:
            floors[driver] = weighed(pooled=False)
        return cell(weighed(pooled=True), **{"without a pool": floors[driver]})

    firsts = [one for one in contestants if one.peer.pools and one.label == one.peer.labels()[0]]
    way = "with TLS" if tls else "without TLS"
    return row(f"memory, {way}", "costs", f"Memory of an idle session, {way}", "KiB", each(firsts, weigh))


_IMPORTING = """
import sys, time
sys.path[:0] = {path!r}
sys.path.append({here!r})
began = time.perf_counter()
{imports}
print(time.perf_counter() - began)
"""


def imports(contestants: Sequence[Contestant], here: str, times: int) -> Row:
    """Time what a program imports, beside the driver alone, each time in a new process."""

    def import_time(one: Contestant, what: str) -> float:
        path = [one.worker.path] if one.worker.path else []
        text = _IMPORTING.format(path=path, here=here, imports=what)
        line = [sys.executable, "-I", "-c", text]
        done = subprocess.run(line, capture_output=True, text=True, timeout=STEP_LIMIT, check=False)
        if done.returncode:
            raise PeerError((done.stderr.strip() or "failed").splitlines()[-1])
        return float(done.stdout)

    def compare(one: Contestant) -> Cell:
        found = []
        import_time(one, one.peer.imports)  # compiles
        for _ in range(times):
            driver, whole = (import_time(one, what) for what in (one.peer.driver_imports, one.peer.imports))
            found.append(whole / driver)
        return cell(list(Spread.of(found)))

    firsts = [one for one in contestants if one.peer.pools and one.label == one.peer.labels()[0]]
    return row("import", "costs", "Import time", "x the driver's", each(firsts, compare))
