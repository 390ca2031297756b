"""Threads that do the same work for a while, counted. Imports no pool."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import pymysql

Turn = Callable[[], float]  # does the work once; returns the seconds waited for a connection
_clock = time.perf_counter


class Window(NamedTuple):
    """What threads did in a time."""

    rate: float  # turns a second, all threads together
    cpu: float  # seconds that a turn took of this process's time on a core: what other programs hardly change
    counts: tuple[int, ...]  # of each thread
    longest: float  # seconds waited for a connection, the worst of all turns
    connections: int  # that the server saw
    errors: int


class Team:
    """Threads that take the same kind of turn again and again; a context manager, they end with it."""

    WARMING, MEASURED, OVER = range(3)

    def __init__(self, size: int) -> None:
        self._gate = threading.Barrier(size + 1)
        self._turns: Sequence[Turn] | None = None
        self._phase = self.OVER
        self._failure: BaseException | None = None
        self._found: list[tuple[int, float, int]] = [(0, 0.0, 0)] * size
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(size)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._turns = None
        with contextlib.suppress(threading.BrokenBarrierError):
            self._gate.wait()
        for thread in self._threads:
            thread.join()

    def run(self, turns: Sequence[Turn], seconds: float, look: Callable[[], int]) -> Window:
        """Have each thread take its turns for so long, after a fifth of it that does not count.

        `look` is called in the middle and counts the connections. Raises what a turn raised, but for PyMySQL's errors,
        which are counted.
        """
        self._turns = turns
        self._phase = self.WARMING
        try:
            self._gate.wait()
            time.sleep(seconds / 5)
            began, used = _clock(), time.process_time()
            self._phase = self.MEASURED
            time.sleep(seconds / 2)
            connections = look()
            time.sleep(max(0.0, began + seconds - _clock()))
            self._phase = self.OVER
            took, used = _clock() - began, time.process_time() - used
            self._gate.wait()
        except threading.BrokenBarrierError:
            raise self._failure or RuntimeError("a thread is gone") from None
        counts, longest, errors = zip(*self._found, strict=True)
        turns = sum(counts)
        return Window(turns / took, used / max(turns, 1), counts, max(longest), connections, sum(errors))

    def _work(self, number: int) -> None:
        try:
            while True:
                self._gate.wait()
                if self._turns is None:
                    return
                self._found[number] = self._take_turns(self._turns[number])
                self._gate.wait()
        except threading.BrokenBarrierError:
            pass
        except BaseException as error:  # noqa: BLE001  run() raises it
            self._failure = error
            self._gate.abort()

    def _take_turns(self, turn: Turn) -> tuple[int, float, int]:
        count, longest, errors = 0, 0.0, 0
        while self._phase != self.OVER:
            try:
                waited = turn()
            except pymysql.Error:
                errors += 1
                continue
            if self._phase == self.MEASURED:  # what ends in the window counts, whenever it began
                count += 1
                longest = max(longest, waited)
        return count, longest, errors


@contextlib.contextmanager
def counter(arguments: Mapping[str, Any]) -> Iterator[Callable[[], int]]:
    """Give a function that counts the account's connections on the server, but for those that are open now."""
    with pymysql.connect(**arguments, autocommit=True) as connection, connection.cursor() as cursor:

        def ids() -> set[int]:
            cursor.execute("SELECT id FROM information_schema.processlist WHERE user = %s", (arguments["user"],))
            return {row[0] for row in cursor.fetchall()}

        before = ids()
        yield lambda: len(ids() - before)
