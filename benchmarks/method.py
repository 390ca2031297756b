"""How times are compared on a machine that is never quite idle: one core, short interleaved rounds, medians, a control.

Absolute times of one machine differ by a factor of two from one minute to the next. Ratios of neighbouring rounds do
not, once client and server share a core, and a floor measured against itself shows whether they can be believed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")
Times = dict[str, list[float]]  # contender -> ns for one time, a value per round


class Contender(NamedTuple):
    """Something to time: `times` times in each round."""

    run: Callable[[], object]
    times: int


class Spread(NamedTuple):
    """A median with the 10th and the 90th percentile."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        ordered = sorted(values)
        last = len(ordered) - 1
        return cls(statistics.median(ordered), ordered[round(last * 0.1)], ordered[round(last * 0.9)])


class Trial(NamedTuple):
    """The rounds of one comparison that was taken as valid, or of the last when none was."""

    times: Times
    control: float  # the floor against itself
    tries: int
    is_void: bool


class Row(NamedTuple):
    """What one comparison found."""

    work: str
    way: str
    ratios: dict[str, Spread]
    control: float
    tries: int
    is_void: bool


def interleave(contenders: Mapping[str, Contender], rounds: int, order: random.Random | None = None) -> Times:
    """Time all contenders in each round, in another order each time; `order` goes on where it was left.

    Each begins with a turn that is not timed: it pays for what the one before it has left, cold caches or a server
    that is still busy. In a fixed order the floor would differ from itself.
    """
    names = list(contenders)
    found: Times = {name: [] for name in names}
    order = order or random.Random(1)
    for _ in range(rounds):
        order.shuffle(names)
        for name in names:
            run, times = contenders[name]
            repeats = range(times)
            run()
            begin = time.perf_counter_ns()
            for _ in repeats:
                run()
            found[name].append((time.perf_counter_ns() - begin) / times)
    return found


def rotate(contenders: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Run each contender once in each round, another one first each time, and return what each gave.

    Every second round goes the other way about, so that none always follows the same one.
    """
    names = list(contenders)
    found: dict[str, list[T]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        order = names[first:] + names[:first]
        for name in order[:: -1 if number % 2 else 1]:
            found[name].append(contenders[name]())
    return found


def ratio(times: Times, name: str, floor: str) -> Spread:
    """Compare a contender with a floor, round by round."""
    return Spread.of(one / other for one, other in zip(times[name], times[floor], strict=True))


def difference(times: Times, name: str, floor: str) -> Spread:
    """Return what a contender takes more than a floor, round by round, in ns."""
    return Spread.of(one - other for one, other in zip(times[name], times[floor], strict=True))


def compare(
    contenders: Mapping[str, Contender], rounds: int, *, floor: str, control: str, limit: float, tries: int
) -> Trial:
    """Interleave, and again while the control is off by more than `limit`, up to `tries` times in all."""
    number = 0
    while True:
        number += 1
        times = interleave(contenders, rounds)
        off = ratio(times, control, floor).median
        is_void = abs(off - 1) > limit
        if not is_void or number == tries:
            return Trial(times, off, number, is_void)


# One core


def quietest_core(seconds: float = 0.5) -> int | None:
    """Return the allowed core that does least at the moment; None where processes cannot be pinned."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    allowed = os.sched_getaffinity(0)
    before = _busy_ticks()
    time.sleep(seconds)
    after = _busy_ticks()
    return min(allowed, key=lambda core: (after.get(core, 0) - before.get(core, 0), core))


def _busy_ticks() -> dict[int, int]:
    try:
        with open("/proc/stat") as lines:
            rows = [line.split() for line in lines if line.startswith("cpu") and line[3].isdigit()]
    except OSError:
        return {}
    # user nice system idle iowait irq softirq steal, https://man7.org/linux/man-pages/man5/proc_stat.5.html
    return {int(row[0][3:]): sum(map(int, row[1:9])) - int(row[4]) - int(row[5]) for row in rows}


@contextlib.contextmanager
def pinned(core: int | None, *pids: int) -> Iterator[None]:
    """Keep this process and others on one core, with all their threads; None: leave them where they are."""
    if core is None:
        yield
        return
    before = {pid: os.sched_getaffinity(pid) for pid in (os.getpid(), *pids)}
    try:
        for pid in before:
            _set_affinity(pid, {core})
        yield
    finally:
        for pid, cores in before.items():
            _set_affinity(pid, cores)


def _set_affinity(pid: int, cores: set[int]) -> None:
    """Set the affinity of every thread: that of a process is only its first thread's."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread), cores)


# What the machine does beside this


def resident() -> int:
    """Return the bytes of memory that are this process's alone."""
    with open("/proc/self/smaps_rollup") as lines:
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def yardsticks() -> dict[str, float]:
    """Time two things that every CPython does, so that figures of two machines can be set side by side; in ns."""
    sample = {f"attribute_{number}": number for number in range(40)}
    contenders = {
        "call": Contender(_nothing, 500),
        "os.getpid()": Contender(os.getpid, 500),
        "copy of a dict with 40 keys": Contender(sample.copy, 500),
    }
    times = interleave(contenders, 100)
    return {name: difference(times, name, "call").median for name in contenders if name != "call"}


def load() -> tuple[float, float, float] | None:
    """Return the load averages of 1, 5 and 15 minutes, where there are any."""
    return os.getloadavg() if hasattr(os, "getloadavg") else None


def _nothing() -> None:
    pass


# Output


def show_conditions(known: Mapping[str, Any]) -> None:
    pinned = "nothing is pinned" if known["core"] is None else f"client and server pinned to core {known['core']}"
    yardsticks = ", ".join(f"{name} {value:.0f} ns" for name, value in known["yardsticks"].items())
    print(f"Python {known['python']}, PyMySQL {known['pymysql']}, server {known['server']}; {pinned}")
    print(f"{known['cores']} cores, load {loads(known['load'])} (1, 5, 15 min); {yardsticks}")
    print("Medians, with the 10th and the 90th percentile.", flush=True)


def show(row: Row) -> None:
    verdict = f"floor to floor {row.control:.3f}" + (", VOID" if row.is_void else "")
    tries = "" if row.tries == 1 else f", try {row.tries}"
    print(f"\n{row.work}, {row.way} ({verdict}{tries})")
    for label, spread in row.ratios.items():
        print(f"  {label:<50}{text(spread, 1, 3):>24}", flush=True)


def loads(values: tuple[float, ...] | None) -> str:
    return "unknown" if values is None else " ".join(f"{value:.2f}" for value in values)


def plain(value: Any) -> Any:
    """Turn named tuples into dictionaries, for JSON."""
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def text(found: Spread, unit: float, digits: int = 2) -> str:
    median, low, high = (f"{value / unit:.{digits}f}" for value in found)
    return f"{median} ({low}-{high})"


def keep(found: Any, path: str | None) -> None:
    """Write all figures to a file, if one was asked for."""
    if path:
        Path(path).write_text(json.dumps(plain(found), indent=2) + "\n")
