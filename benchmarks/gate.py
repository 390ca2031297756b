"""Check the few figures that must not get worse: exit status 0 when they hold, 1 when one does not, 2 when unsure.

    python benchmarks/gate.py [--server-dsn DSN [--server-pid PID]]

Packets are counted and must be exactly as written here. Ratios have bounds that are wide enough for a busy machine; one
that is worse is measured again, up to TRIES times. Unsure: the floor differed from itself each time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import compare
import method
import peers
import results
import rows
from processes import Worker
from results import OURS, Cell, Row
from rows import FULL, LOOPBACK, Contestant, Course

TRIES = 5
SECONDS = 4.0  # for a try of one thread's ratio
SURE = 0.10  # how far the floor may be from itself: less than the bounds leave room for


class Packets(NamedTuple):
    """What one lease with its work puts on the wire."""

    to_server: int
    to_client: int
    waits: int  # round trips


class Bound(NamedTuple):
    """A ratio to the floor, and how bad it may get."""

    key: str
    title: str
    limit: float
    lower_is_better: bool

    def holds(self, value: float) -> bool:
        return value <= self.limit if self.lower_is_better else value >= self.limit


# All that is checked is written here, and nowhere else.
PACKETS = {
    "alone": Packets(0, 0, 0),
    "select": Packets(1, 4, 1),
    "read": Packets(2, 5, 1),  # the SELECT and a ROLLBACK that nobody waits for
    "insert": Packets(3, 3, 2),  # the INSERT, its COMMIT, and what clears LAST_INSERT_ID()
    "touch": Packets(4, 4, 1),  # the SET; in one write a reset, SET NAMES that fails in another role, the database
}
ALONE = Bound("alone", "a lease alone, to a SELECT 1 on the floor", 0.45, lower_is_better=True)
SELECT = Bound("select", "lease + SELECT 1", 1.55, lower_is_better=True)
CROWD = Bound("64", "SELECT 1, 64 threads on 8 sessions", 0.35, lower_is_better=False)


def check_packets(contestant: Contestant, near: dict[str, Any]) -> list[str]:
    """Count packets and return what differs."""
    wrong = []
    for kind, expected in PACKETS.items():
        cell = rows.wire([contestant], kind, kind, near, 3)["cells"][OURS]
        if "error" in cell:
            wrong.append(f"packets, {kind}: {cell['error']}")
            continue
        more = cell["more"]
        found = (more["packets to server"], more["packets to client"], cell["value"][0])
        print(f"packets, {kind}: to server {found[0]:g}, to client {found[1]:g}, round trips waited for {found[2]:g}")
        if found != expected:
            wrong.append(f"packets, {kind}: {found} instead of {tuple(expected)}")
    return wrong


def described(cell: Cell) -> str:
    if "error" in cell:
        return str(cell["error"])
    median, low, high = (results.figure(value) for value in cell["value"])
    return f"{median} ({low}-{high}), floor to floor {cell['control']:.3f}"


def check_ratio(bound: Bound, measure: Callable[[], Row]) -> tuple[str | None, bool]:
    """Measure until the bound holds, TRIES times at most; return what is wrong, and whether that is sure."""
    sure = False
    told = ""
    for _ in range(TRIES):
        cell: Cell = measure()["cells"][OURS]
        told = f"{bound.title}: {described(cell)}; bound {bound.limit:g}"
        print(told, flush=True)
        if "error" in cell:
            return told, True
        if abs(cell["control"] - 1) <= SURE:
            if bound.holds(cell["value"][0]):
                return None, True
            sure = True
    return told, sure


def check(contestant: Contestant, near: dict[str, Any]) -> int:
    def one_thread(bound: Bound) -> Row:
        return rows.one_thread([contestant], bound.key, bound.title, Course(LOOPBACK, near, SECONDS, least=3, tries=1))

    effort = FULL._replace(crowd_rounds=16, crowd_window=0.1, crowd_tries=1)
    ratios: Sequence[tuple[Bound, Callable[[], Row]]] = (
        (ALONE, lambda: one_thread(ALONE)),
        (SELECT, lambda: one_thread(SELECT)),
        (CROWD, lambda: rows.crowd([contestant], CROWD.key, near, effort)),
    )
    wrong = check_packets(contestant, near)
    unsure = []
    for bound, measure in ratios:
        problem, sure = check_ratio(bound, measure)
        if problem is not None:
            (wrong if sure else unsure).append(problem)
    for title, found in (("WORSE", wrong), ("UNSURE, the floor differed from itself", unsure)):
        for problem in found:
            print(f"{title}: {problem}")
    return 1 if wrong else 2 if unsure else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--server-dsn", metavar="DSN", help="a running server; nothing is pinned without --server-pid")
    parser.add_argument("--server-pid", type=int, metavar="PID", help="process of that server, to be pinned meanwhile")
    options = parser.parse_args()
    compare.end_on_sigterm()
    with compare.chosen_server(options) as server, Worker("ours", OURS, None) as worker:
        worker.start()
        contestant = Contestant(peers.facts("ours"), OURS, worker, None)
        core = method.quietest_core() if server.pids else None
        pids = [pid for pid in (worker.pid,) if pid is not None]
        with method.pinned(core, *server.pids, *pids), compare.tables(server.arguments, 1000):
            return check(contestant, server.arguments)


if __name__ == "__main__":
    compare.run(main)
