"""What a lease costs: alone, part by part, and as a ratio to one bare persistent PyMySQL connection.

    python benchmarks/lease.py [--server-dsn DSN [--server-pid PID]] [--quick] [--profile] [--json FILE]

Starts a private server unless a DSN is given. docs/benchmarks.md tells how to read the output.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import method
import proxy
import pymysql
from method import Contender, Row, Spread
from work import WORKS, Work, sample_table, select_one

sys.path.append(str(Path(__file__).parents[1]))  # the working copy, unless the package is installed

import pooled_pymysql
from pooled_pymysql import registry
from pooled_pymysql.arguments import Arguments
from pooled_pymysql.dsn import parse_dsn
from pooled_pymysql.lease import Connection, make_lease
from pooled_pymysql.pool import Pool
from pooled_pymysql.session import Session
from pooled_pymysql.throwaway import ThrowawayServer

DELAY = 0.001  # seconds each way through the proxy
LOOPBACK_LIMIT, PROXY_LIMIT = 0.01, 0.02  # how far the floor may be from itself
FLOOR, CONTROL, ENDING = "bare", "bare again", "bare with rollback()"

# Nothing is written to disk at commit: a slow disk would hide what the lease costs.
SERVER_OPTIONS = ("--innodb-flush-log-at-trx-commit=0",)


class Server(NamedTuple):
    """Where to connect, and the processes that may be pinned beside this one (none: nothing is)."""

    arguments: dict[str, Any]
    pids: tuple[int, ...]


class Effort(NamedTuple):
    """How much is measured."""

    part_rounds: int
    loopback_rounds: int
    proxy_rounds: int
    open_rounds: int
    tries: int


FULL = Effort(part_rounds=1500, loopback_rounds=2000, proxy_rounds=150, open_rounds=150, tries=5)
QUICK = Effort(part_rounds=150, loopback_rounds=300, proxy_rounds=25, open_rounds=40, tries=2)


def dsn_of(arguments: Mapping[str, Any], **query: object) -> str:
    """Write the arguments as a DSN."""
    given = dict(arguments)
    names = ("user", "password", "host", "port", "database")
    user, password, host, port, database = (quote(str(given.pop(name, "")), safe="") for name in names)
    tail = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in {**given, **query}.items())
    return f"mysql://{user}:{password}@{host}:{port or 3306}/{database}" + (f"?{tail}" if tail else "")


def warm(sessions: int, *call: Any, **arguments: Any) -> None:
    """Have so many sessions idle in the pool of a call."""
    for lease in [pooled_pymysql.connect(*call, **arguments) for _ in range(sessions)]:
        lease.close()


# 1: a clean lease, alone and part by part


class Home:
    """Takes a session back and does nothing with it, so that handing over is timed alone."""

    def acquire_session(self, arguments: Arguments) -> Session:
        raise NotImplementedError

    def release(self, session: Session, broken: str | None) -> None:
        pass

    def drop(self, session: Session, broken: str | None) -> None:
        pass

    def itself(self) -> Home:
        return self


def looked_up(dsn: str | None = None, /, *, pool: Any = None, **kwargs: Any) -> Any:
    """Make the call's key and find its recipe, with the lines of `connect()`: they cannot be called apart from it."""
    kwargs.pop("conv", None)
    last = registry._registry.last_call
    if last.pool is pool and last.kwargs == kwargs and last.dsn == dsn:
        return last.recipe
    return registry._registry.recall(dsn, pool, kwargs)


def contenders_of_parts(arguments: dict[str, Any], dsn: str, lease: Connection) -> dict[str, Callable[[], object]]:
    """Return the parts by label; an indented one is contained in the one above it. `lease` lends its session."""
    connect, session, own = pooled_pymysql.connect, lease._session, lease._arguments
    pool, home = lease._home, Home()
    assert isinstance(pool, Pool)
    assert session is not None
    assert own is not None
    lock, ledger, overlay = pool._lock, pool._ledger, own.overlay

    def take_and_release() -> None:
        with lock:
            taken = ledger.take()
        assert taken is not None
        with lock:
            ledger.release(taken, taken.idle_since)

    def handed_over() -> None:
        make_lease(session, home, home.itself, own, own.conversions(None)).close()

    def copied() -> None:
        state = session.pristine.copy()
        state.update(overlay)

    return {
        "connect(**kwargs).close()": lambda: connect(**arguments).close(),
        "connect(dsn).close()": lambda: connect(dsn).close(),
        "pass kwargs, call key, recipe": lambda: looked_up(**arguments),
        "  the same with a DSN": lambda: looked_up(dsn),
        "acquire and release in the pool": lambda: pool.release(pool.acquire_session(own), None),
        "  process id, twice": lambda: (os.getpid(), os.getpid()),
        "  lock and ledger, take and release": take_and_release,
        "  poll of the socket": lambda: session.poll(0),
        "  restore(), nothing to do": session.restore,
        "make_lease() and its close()": handed_over,
        "  copy of the attributes": copied,
        "  encoders and decoders": lambda: own.conversions(None),
    }


def measure_parts(server: Server, effort: Effort, times: int = 30) -> dict[str, dict[str, Spread]]:
    """Time each part in a loop of its own, and once behind each of a bare connection's statements."""
    arguments = {**server.arguments, "autocommit": True}
    dsn = dsn_of(server.arguments, autocommit=1)
    warm(2, **arguments)
    lease = pooled_pymysql.connect(**arguments)
    warm(1, dsn)
    bare = pymysql.connect(**arguments)

    def behind(part: Callable[[], object]) -> Callable[[], object]:
        def run() -> None:
            select_one(bare)
            part()

        return run

    try:
        parts = {"": lambda: None, **contenders_of_parts(arguments, dsn, lease)}
        alone = method.interleave({label: Contender(part, times) for label, part in parts.items()}, effort.part_rounds)
        behind_statements = {label: Contender(behind(part), 3) for label, part in parts.items()}
        cold = method.interleave(behind_statements, effort.part_rounds)
    finally:
        lease.close()
        bare.close()
        pooled_pymysql.close_pools()
    return {
        label: {"alone": method.difference(alone, label, ""), "behind": method.difference(cold, label, "")}
        for label in parts
        if label
    }


def show_parts(parts: dict[str, dict[str, Spread]]) -> None:
    print(f"\n{'A clean lease, µs':<38}{'in a loop of its own':>24}{'behind a statement':>24}")
    for label, found in parts.items():
        print(f"{label:<38}" + "".join(f"{method.text(found[where], 1000):>24}" for where in ("alone", "behind")))


# 2: ratios to one bare persistent connection


def leases(work: Work, arguments: dict[str, Any]) -> dict[str, Callable[[], object]]:
    """Return what does the work on a lease each time, by label."""
    settings = {**arguments, "autocommit": work.autocommit}
    wide = dsn_of(arguments, autocommit=int(work.autocommit))
    narrow = dsn_of(arguments, autocommit=int(work.autocommit), pool_max_size=1)
    warm(2, **settings)
    warm(2, wide)
    warm(1, narrow)

    def leasing(*call: Any, **given: Any) -> Callable[[], object]:
        connect, run = pooled_pymysql.connect, work.run

        def turn() -> None:
            connection = connect(*call, **given)
            run(connection)
            connection.close()

        return turn

    return {
        "kwargs, two sessions idle": leasing(**settings),
        "DSN, two sessions idle": leasing(wide),
        "DSN, max_size=1": leasing(narrow),
    }


@contextlib.contextmanager
def floors(work: Work, arguments: dict[str, Any]) -> Iterator[dict[str, Callable[[], object]]]:
    """Return what does the work on bare connections that stay open, by label."""
    settings = {**arguments, "autocommit": work.autocommit}
    run, end = work.run, work.floor_end
    with contextlib.ExitStack() as stack:
        one, again, ending = (stack.enter_context(pymysql.connect(**settings)) for _ in range(3))

        def ended() -> None:
            run(ending)
            end(ending)  # type: ignore[misc]

        # Two floors, so that each has the same neighbours: one connection twice would know its own answers.
        yield {
            FLOOR: lambda: run(one),
            CONTROL: lambda: run(again),
            **({ENDING: ended} if end else {}),
        }


# 3: what sharing costs who does not share


class Shared(Connection):
    """A lease that takes turns, as all do.

    The interpreter remembers the class of what it has met at each place: three classes, so that none gains by it.
    """

    __slots__ = ()


class Unshared(Connection):
    """A lease that takes no turns."""

    __slots__ = ()

    def take_turn(self, work: Callable[..., Any], *args: Any) -> Any:
        return work(*args)


class UnsharedAgain(Unshared):
    """The same once more."""

    __slots__ = ()


def measure_turns(server: Server, effort: Effort) -> Row:
    """Compare a statement on a lease with one on a lease without turns: both held, each used by one thread."""
    arguments = {**server.arguments, "autocommit": True}
    held = [pooled_pymysql.connect(**arguments) for _ in range(3)]
    for lease, kind in zip(held, (Unshared, UnsharedAgain, Shared), strict=True):
        lease.__class__ = kind
    runs = dict(zip((FLOOR, CONTROL, "with turns"), (partial(select_one, lease) for lease in held), strict=True))
    contenders = {name: Contender(run, 10) for name, run in runs.items()}
    trial = method.compare(
        contenders, 2 * effort.loopback_rounds, floor=FLOOR, control=CONTROL, limit=LOOPBACK_LIMIT, tries=effort.tries
    )
    for lease in held:
        lease.close()
    pooled_pymysql.close_pools()
    ratios = {"with turns": method.ratio(trial.times, "with turns", FLOOR)}
    return Row("SELECT 1 on a lease without turns", "loopback", ratios, trial.control, trial.tries, trial.is_void)


class Way(NamedTuple):
    """How the server is reached, and how often that is timed: `times` in each of the rounds."""

    label: str
    arguments: dict[str, Any]
    limit: float
    rounds: int
    times: int


def measure_ratios(server: Server, effort: Effort) -> list[Row]:
    """Measure and print each work on each way."""
    near = server.arguments
    with proxy.running(near["host"], near["port"], DELAY) as process, _pinned_too(server, process.pid):
        far = {name: value for name, value in near.items() if name != "unix_socket"}
        far.update(host="127.0.0.1", port=process.port)
        found = []
        for way in (
            Way("loopback", near, LOOPBACK_LIMIT, effort.loopback_rounds, 5),
            Way("1 ms each way", far, PROXY_LIMIT, effort.proxy_rounds, 2),
        ):
            for work in WORKS:
                row = _measure_work(work, way, effort.tries)
                method.show(row)
                found.append(row)
    return found


def _measure_work(work: Work, way: Way, tries: int) -> Row:
    with floors(work, way.arguments) as bare:
        runs = {**bare, **leases(work, way.arguments)}
        contenders = {name: Contender(run, way.times) for name, run in runs.items()}
        trial = method.compare(contenders, way.rounds, floor=FLOOR, control=CONTROL, limit=way.limit, tries=tries)
    pooled_pymysql.close_pools()
    ratios = {name: method.ratio(trial.times, name, FLOOR) for name in runs if name not in (FLOOR, CONTROL)}
    if work.floor_end:
        for name in [name for name in runs if name not in bare]:
            ratios[f"{name}, to {ENDING}"] = method.ratio(trial.times, name, ENDING)
    return Row(work.label, way.label, ratios, trial.control, trial.tries, trial.is_void)


# 4: a new connection each time


def measure_opening(server: Server, effort: Effort) -> Row:
    """Compare opening a connection for each SELECT 1 with the bare one that stays open."""
    settings = {**server.arguments, "autocommit": True}

    def opening(**more: Any) -> Callable[[], object]:
        def turn() -> None:
            connection = pymysql.connect(**settings, **more)
            select_one(connection)
            connection.close()

        return turn

    with floors(WORKS[0], server.arguments) as bare:
        contenders = {name: Contender(run, 20) for name, run in bare.items()}
        contenders["pymysql.connect() each time"] = Contender(opening(), 1)
        with contextlib.suppress(pymysql.err.OperationalError):
            opening(ssl_disabled=True)()
            contenders["the same with ssl_disabled=True"] = Contender(opening(ssl_disabled=True), 5)
        limits = {"limit": LOOPBACK_LIMIT, "tries": effort.tries}
        trial = method.compare(contenders, effort.open_rounds, floor=FLOOR, control=CONTROL, **limits)
    ratios = {name: method.ratio(trial.times, name, FLOOR) for name in contenders if name not in bare}
    return Row("SELECT 1, a new connection each time", "loopback", ratios, trial.control, trial.tries, trial.is_void)


# All of it


@contextlib.contextmanager
def _pinned_too(server: Server, pid: int) -> Iterator[None]:
    """Keep one more process on the core that this one is pinned to."""
    core = next(iter(os.sched_getaffinity(0))) if server.pids else None
    with method.pinned(core, pid):
        yield


@contextlib.contextmanager
def chosen_server(options: argparse.Namespace) -> Iterator[Server]:
    if options.server_dsn is None:
        with ThrowawayServer(options=SERVER_OPTIONS, start_timeout=120.0) as own:
            yield Server(own.kwargs(), (own.pid,))
        return
    arguments, _ = parse_dsn(options.server_dsn)
    arguments = {"host": "127.0.0.1", "port": 3306, **arguments}
    yield Server(arguments, () if options.server_pid is None else (options.server_pid,))


def conditions(server: Server, core: int | None) -> dict[str, Any]:
    with pymysql.connect(**server.arguments) as connection:
        version = connection.get_server_info()
    return {
        "python": platform.python_version(),
        "pymysql": pymysql.VERSION_STRING,
        "server": version.removeprefix("5.5.5-"),  # which MariaDB puts in front
        "core": core,
        "cores": os.cpu_count(),
        "load": method.load(),
        "yardsticks": method.yardsticks(),
    }


def measure(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """Measure and print; return all figures."""
    effort = QUICK if options.quick else FULL
    core = method.quietest_core() if server.pids else None
    with method.pinned(core, *server.pids), sample_table(server.arguments):
        known = conditions(server, core)
        method.show_conditions(known)
        parts = measure_parts(server, effort)
        show_parts(parts)
        rows: list[Row] = []
        if not options.profile:
            rows.append(measure_opening(server, effort))
            method.show(rows[0])
            rows.append(measure_turns(server, effort))
            method.show(rows[1])
            rows += measure_ratios(server, effort)
        known["load_after"] = method.load()
    print(f"\nLoad at the end: {method.loads(known['load_after'])}")
    return {"conditions": known, "parts": parts, "rows": rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--server-dsn", metavar="DSN", help="a running server; nothing is pinned without --server-pid")
    parser.add_argument("--server-pid", type=int, metavar="PID", help="process of that server, to be pinned meanwhile")
    parser.add_argument("--quick", action="store_true", help="under a minute, with wider spreads")
    parser.add_argument("--profile", action="store_true", help="only the parts of a lease")
    parser.add_argument("--json", metavar="FILE", help="write all figures there as well")
    options = parser.parse_args()
    with chosen_server(options) as server:
        found = measure(server, options)
    method.keep(found, options.json)
    return 1 if any(row.is_void for row in found["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
