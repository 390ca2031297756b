"""Has every peer answer the probes, on a private server of their own that is restarted in between."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import proxy
import pymysql
from probes import PATIENCE, PREPARATION, TITLES, TWO_STEPS
from processes import PeerError, PeerGone, Worker
from rows import Contestant

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from servers import PrivateServer, guard

LIMIT = 30.0  # seconds for a probe
WAITING = 3.0  # seconds that callers wait for a session
DEAD = 40.0  # seconds that a link is dead before it is used
# What these leave locked would stand in the way of later ones.
LOCKING = ("leak: transaction", "leak: GET_LOCK", "leak: GET_LOCK in a function", "leak: LOCK TABLES")

Verdicts = dict[str, dict[str, Any]]  # label -> good, seen


@contextlib.contextmanager
def private_server() -> Iterator[PrivateServer]:
    """Run a server that may be restarted; raises RuntimeError where none is installed."""
    with tempfile.TemporaryDirectory(prefix="probes-") as folder:
        try:
            with PrivateServer(Path(folder) / "server") as server:
                yield server
        finally:
            guard().close()
            guard.cache_clear()


class Round:
    """All peers at once, each with a database of its own, and what they answered."""

    def __init__(self, contestants: Sequence[Contestant], known: dict[str, Any]) -> None:
        self._contestants = contestants
        self._threads = ThreadPoolExecutor(3 * len(contestants) + 1)
        self._arguments = {one.label: _database(known, number) for number, one in enumerate(contestants)}
        self._workers = [one.worker for one in contestants]
        for worker in self._workers:
            worker.end()  # what is lost for good is not to be waited for long
            worker.patience = WAITING
        self._is_over = False
        self.found: dict[str, Verdicts] = {name: {} for name in TITLES}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        for worker in self._workers:
            worker.kill()  # so that the threads have nothing to wait for
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in self._workers:
            worker.end()

    def twins(self) -> dict[str, Worker]:
        """Make a second process for each."""
        made = {one.label: Worker(one.peer.name, one.label, one.worker.path) for one in self._contestants}
        for twin in made.values():
            twin.patience = WAITING
        self._workers += made.values()
        return made

    def together(self, run: Callable[[Contestant], Any]) -> None:
        """Run something for all of them, each in a thread."""
        list(self._threads.map(run, self._contestants))

    def begin_alone(self) -> list[Future[None]]:
        """Begin to have each answer all that takes one step."""
        return [self._threads.submit(self._alone, one) for one in self._contestants]

    def _alone(self, one: Contestant) -> None:
        for name in TITLES:
            if self._is_over:
                return
            if name in TWO_STEPS:
                continue
            self.found[name][one.label] = verdict = _ask(one.worker, name, self._arguments[one.label], 0)
            if name in LOCKING and verdict["good"] is not True:
                one.worker.end()

    def step(self, name: str, number: int, workers: dict[str, Worker], through: proxy.Process | None = None) -> None:
        """Have all take the first or the second step of a probe."""

        def run(one: Contestant) -> None:
            told = self._arguments[one.label]
            if through is not None:
                told = {**told, "port": through.port}
            if number == 0 or one.label not in self.found[name]:  # else the first step failed
                verdict = _ask(workers[one.label], name, told, number)
                if verdict is not None:
                    self.found[name][one.label] = verdict

        self.together(run)


def probe_all(contestants: Sequence[Contestant], note: Callable[[str], None], *, quick: bool) -> dict[str, Any]:
    """Return name -> title and verdicts. What takes long is left out of a quick run."""
    present = [one for one in contestants if one.absent is None]
    dead_links = {"dead link, at once": 0.0, "dead link, idle for long": DEAD}
    if quick:
        del dead_links["dead link, idle for long"]
    with private_server() as server, contextlib.ExitStack() as stack:
        known = server.server.kwargs()
        probes = stack.enter_context(Round(present, known))
        note("links die")
        waiting = []
        for name, idle in dead_links.items():
            twins = probes.twins()
            process = stack.enter_context(proxy.running(known["host"], known["port"], 0.0))
            probes.step(name, 0, twins, process)
            process.stall()
            due = time.monotonic() + idle
            waiting.append((name, twins, due))
        note("what each does by itself")
        answers = probes.begin_alone()
        for name, twins, due in waiting:
            time.sleep(max(0.0, due - time.monotonic()))
            note(f"{name}: use of it")
            probes.step(name, 1, twins)
        for answer in answers:
            answer.result()
        note("a restart of the server")
        own = {one.label: one.worker for one in present}
        probes.step("restart", 0, own)
        server.restart()
        probes.step("restart", 1, own)
    return {
        name: {
            "title": TITLES[name],
            "verdicts": {one.label: found[one.label] for one in present if one.label in found},
        }
        for name, found in probes.found.items()
        if found
    }


def _database(known: dict[str, Any], number: int) -> dict[str, Any]:
    """Make a database of its own for a peer, so that none stands in another's way."""
    name = f"probes_{number}"
    with pymysql.connect(**known, ssl_disabled=True, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
        cursor.execute(f"USE {name}")
        for statement in PREPARATION:
            cursor.execute(statement)
        with contextlib.suppress(pymysql.Error):  # MariaDB gives a role to who makes it
            cursor.execute("GRANT probe_role TO %s@'%%'", (known["user"],))
    return {**known, "database": name}


def _ask(worker: Worker, name: str, arguments: dict[str, Any], step: int) -> Any:
    limit = PATIENCE + 3.0 if name.startswith("dead link") else LIMIT
    try:
        return worker.ask("probe", limit, name=name, arguments=arguments, step=step)
    except PeerGone as error:
        # Not to come back is wrong; so is taking the process along.
        return {"good": False, "seen": str(error)}
    except PeerError as error:
        return {"good": None, "seen": str(error)}
