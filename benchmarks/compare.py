"""Compare this pool with every other that a user of MySQL from Python could pick: speed, costs and correctness.

    python benchmarks/compare.py [--quick] [--only PEER ...] [--results FOLDER] [--charts-only]

Installs each peer's newest release into a folder of its own, starts a private server unless --server-dsn names one,
prints each row as it is found, and writes a JSON file and SVG charts. About twenty minutes, two or three with --quick.
docs/benchmarks.md tells how to read the output. `tox -e bench` does the same with the wheel instead of the working
copy.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import lease
import memory
import method
import peers
import probing
import pymysql
import results
import rows
import work
from environments import installed
from lease import Server
from processes import PeerError, Worker
from results import Row
from rows import FAR, FULL, LOOPBACK, QUICK, Contestant, Course, Effort

sys.path.append(str(Path(__file__).parents[1]))  # the working copy, unless the package is installed

from pooled_pymysql.dsn import parse_dsn
from pooled_pymysql.throwaway import ThrowawayServer

HERE = Path(__file__).parent
FORMAT = 1
CHARTED = "latest"  # the name of the full run's file, which the charts in the documentation show


class Progress:
    """Says on stderr what is being done: in one line that is written over, or in many where that is no terminal."""

    def __init__(self, steps: int) -> None:
        self._steps, self._step = steps, 0
        self._began = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def step(self, text: str) -> None:
        self._step += 1
        self.note(text)

    def note(self, text: str) -> None:
        took = int(time.monotonic() - self._began)
        line = f"[{self._step}/{self._steps}, {took // 60}:{took % 60:02}] {text}"
        print(
            f"\r\x1b[K{line}" if self._terminal else line,
            end="" if self._terminal else "\n",
            file=sys.stderr,
            flush=True,
        )

    def show(self, text: str) -> None:
        if self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        print(f"\n{text}", flush=True)


# Who takes part, and where


@contextlib.contextmanager
def gathered(
    folder: Path, only: Sequence[str], *, update: bool, note: Callable[[str], None]
) -> Iterator[list[Contestant]]:
    """Install and start all peers; those that cannot be had come with the reason."""
    with contextlib.ExitStack() as stack:
        found = []
        for peer in peers.found():
            if only and peer.name not in only:
                continue
            note(f"installing {peer.name}" if peer.requirements else f"starting {peer.name}")
            place = installed(peer, folder, update=update)
            for label in peer.labels():
                worker = stack.enter_context(Worker(peer.name, label, place.path))
                found.append(Contestant(peer, label, worker, place.absent or _problem(worker)))
        yield found


def _problem(worker: Worker) -> str | None:
    try:
        worker.start()
    except PeerError as error:
        return str(error)
    return None


def described(contestants: Sequence[Contestant]) -> list[dict[str, Any]]:
    found = []
    for one in contestants:
        known = {"peer": one.peer.name, "label": one.label, "note": one.peer.note, "absent": one.absent}
        known["versions"] = {} if one.absent else one.worker.ask("versions", rows.STEP_LIMIT)
        known["driver"] = one.peer.driver_imports.rpartition(" ")[2]
        found.append(known)
    return found


@contextlib.contextmanager
def chosen_server(options: argparse.Namespace) -> Iterator[Server]:
    """Run a server that speaks TLS, or take the one that was named."""
    if options.server_dsn is not None:
        arguments, _ = parse_dsn(options.server_dsn)
        pids = () if options.server_pid is None else (options.server_pid,)
        arguments = {"host": "127.0.0.1", "port": 3306, **arguments}
        # What every driver knows by these names; proxies are reached over TCP.
        known = ("host", "port", "user", "password", "database")
        yield Server({name: arguments[name] for name in known if name in arguments}, pids)
        return
    with tempfile.TemporaryDirectory() as folder:
        certificate = [f"--ssl-cert={folder}/cert.pem", f"--ssl-key={folder}/key.pem"] if memory.sign(folder) else []
        wanted = (*lease.SERVER_OPTIONS, "--max-connections=2000", *certificate)
        with ThrowawayServer(options=wanted, start_timeout=120.0) as own:
            yield Server(own.kwargs(), (own.pid,))


@contextlib.contextmanager
def tables(arguments: dict[str, Any], fetched: int) -> Iterator[None]:
    plain = {**arguments, "ssl_disabled": True}
    with work.sample_table(plain), pymysql.connect(**plain) as connection:
        work.fill_rows(connection, fetched)
        try:
            yield
        finally:
            with pymysql.connect(**plain) as last, last.cursor() as cursor:
                cursor.execute(f"DROP TABLE {work.ROWS_TABLE}")


# What is measured


def planned(
    contestants: Sequence[Contestant], near: dict[str, Any], far: dict[str, Any], effort: Effort
) -> list[tuple[str, Callable[[], Row]]]:
    """Return all rows, each with its name and what measures it."""
    plan: list[tuple[str, Callable[[], Row]]] = []
    for way, arguments, seconds in ((LOOPBACK, near, effort.loopback), (FAR, far, effort.far)):
        course = Course(way, arguments, seconds, effort.least, effort.tries)
        for kind, title in rows.WORKS.items():
            plan.append((f"{title}, {way}", partial(rows.one_thread, contestants, kind, title, course)))
    for kind, title in rows.WORKS.items():
        plan.append((f"{title}, on the wire", partial(rows.wire, contestants, kind, title, near, effort.wires)))
    for name, title in rows.CROWD_TITLES.items():
        plan.append((title, partial(rows.crowd, contestants, name, near, effort)))
    plan.append(("a spike", partial(rows.spike, contestants, near, effort)))
    plan.append(("opening cold", partial(rows.cold, contestants, near, effort)))
    plan += [("memory", partial(rows.memory, contestants, near, effort.memory_steps, tls=tls)) for tls in (False, True)]
    plan.append(("import time", partial(rows.imports, contestants, str(HERE.parent), effort.imports)))
    pools = [one for one in contestants if one.peer.pools]
    title = f"Fetch of {effort.fetched:,} rows"
    course = Course(LOOPBACK, near, effort.fetch, effort.least, effort.fetch_tries)
    return [*plan, (title, partial(rows.one_thread, pools, "fetch", title, course))]


def measure(
    server: Server, contestants: Sequence[Contestant], options: argparse.Namespace, progress: Progress
) -> dict[str, Any]:
    """Measure and print everything; return it."""
    effort = QUICK if options.quick else FULL
    near = server.arguments
    core = method.quietest_core() if server.pids else None
    known = described(contestants)
    workers = [pid for one in contestants if (pid := one.worker.pid) is not None]
    found: list[Row] = []
    with (
        method.pinned(core, *server.pids, *workers),
        tables(near, effort.fetched),
        rows.far_away(near, lease.DELAY) as (_, far),
    ):
        conditions = lease.conditions(Server({**near, "ssl_disabled": True}, server.pids), core)
        conditions["begun"] = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        method.show_conditions(conditions)
        for one in known:
            versions = ", ".join(f"{name} {version}" for name, version in one["versions"].items())
            print(f"  {one['label']:<{results.WIDTH}}{(one['absent'] and 'absent: ' + one['absent']) or versions}")
            if one["note"]:
                print(f"  {'':<{results.WIDTH}}{one['note']}")
        for title, run in planned(contestants, near, far, effort):
            progress.step(title)
            found.append({**run(), "load": method.load()})
            progress.show(results.row_text(found[-1]))
    for one in contestants:
        one.worker.end()
    progress.step("probes")
    probes = probed(contestants, progress, quick=options.quick)
    conditions["load_after"] = method.load()
    return {
        "format": FORMAT, "quick": options.quick, "conditions": conditions, "peers": known, "rows": found,
        "probes": probes,
    }  # fmt: skip


def probed(contestants: Sequence[Contestant], progress: Progress, *, quick: bool) -> dict[str, Any]:
    asked = [one for one in contestants if one.peer.pools or one.label == one.peer.labels()[-1]]
    try:
        found = probing.probe_all(asked, progress.note, quick=quick)
    except (RuntimeError, OSError) as error:
        progress.show(f"The probes could not be run: {error}")
        return {}
    labels = [one.label for one in asked if one.absent is None]
    progress.show(results.grid_text(found, labels))
    for label in labels:
        for name, verdict in results.wrongs(found, label).items():
            if label.startswith(results.OURS) or verdict["good"] is None:  # the rest stands in the JSON
                print(f"  {label}: {name}: {verdict['seen']}")
    return found


def close(found: dict[str, Any]) -> None:
    """Print what is to be known at the end."""
    conditions = found["conditions"]
    begun, ended = (method.loads(conditions[name]) for name in ("load", "load_after"))
    print(f"\nLoad at the beginning {begun}, at the end {ended}")
    print(f"VOID cells: {results.void_count(found['rows'])}; do not use them.")
    rivals = [one["label"] for one in found["peers"] if one["driver"] == "pymysql" and one["peer"] != "ours"]
    lost = results.beaten(found["rows"], rivals)
    print(
        f"Rows with a valid figure of ours: {results.valid_count(found['rows'])} of {len(found['rows'])}."
        f" Rows in which a peer over PyMySQL has a better one: {len(lost) or 'none'}"
    )
    for line in lost:
        print(f"  {line}")


# All of it


def main() -> int:
    options = arguments()
    folder = Path(options.results)
    folder.mkdir(parents=True, exist_ok=True)
    name = options.name or ("quick" if options.quick else "partial" if options.only else CHARTED)
    target = folder / f"{name}.json"
    if options.charts_only:
        return draw(target, folder)
    end_on_sigterm()
    progress = Progress(len(planned([], {}, {}, QUICK)) + 1)
    places = Path(options.peers_folder)
    with (
        gathered(places, options.only, update=options.update, note=progress.note) as contestants,
        chosen_server(options) as server,
    ):
        found = measure(server, contestants, options, progress)
    target.write_text(json.dumps(method.plain(found), indent=1) + "\n")
    close(found)
    print(f"All figures: {target}")
    draw(target, folder)
    return 0


def draw(source: Path, folder: Path) -> int:
    try:
        import charts
    except ImportError as error:
        print(f"no charts: {error} (python -m pip install matplotlib)")
        return 1
    if not source.exists():
        print(f"no charts: there is no {source}")
        return 1
    for path in charts.draw_all(
        json.loads(source.read_text()), folder, prefix="" if source.stem == CHARTED else f"{source.stem}-"
    ):
        print(f"Chart: {path}")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog="Runs outside tox with any Python that has PyMySQL and pip (and matplotlib, for the charts); the package"
        " is then the installed one or else the working copy.",
    )
    parser.add_argument(
        "--quick", action="store_true", help="two or three minutes, with wide spreads and more that is void"
    )
    names = [peer.name for peer in peers.found()]
    parser.add_argument(
        "--only", nargs="+", metavar="PEER", default=[], choices=names, help=f"some of {', '.join(names)}"
    )
    parser.add_argument(
        "--server-dsn",
        metavar="DSN",
        help="a running server with room for 1,000 connections; the probes use a private one all the same",
    )
    parser.add_argument(
        "--server-pid", type=int, metavar="PID", help="process of that server, to be pinned; without it nothing is"
    )
    parser.add_argument("--results", metavar="FOLDER", default=str(HERE / "results"), help="where JSON and charts go")
    parser.add_argument("--name", help="of the JSON file; by default 'latest', 'quick', or 'partial' with --only")
    parser.add_argument("--charts-only", action="store_true", help="draw the charts of an existing JSON file")
    parser.add_argument(
        "--peers-folder",
        metavar="FOLDER",
        default=os.environ.get("BENCHMARK_PEERS", str(HERE.parent / ".cache" / "peers")),
        help="where the peers are installed",
    )
    parser.add_argument(
        "--update", action="store_true", help="look for newer releases of the peers now, not once a week"
    )
    return parser.parse_args()


def end_on_sigterm() -> None:
    """Have SIGTERM end the program in order, so that what it started is tidied up."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def run(program: Callable[[], int]) -> NoReturn:
    """Run a program and exit with its status; without a traceback on Ctrl-C."""
    try:
        sys.exit(program())
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    run(main)
