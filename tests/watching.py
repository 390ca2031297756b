"""Run many threads, and watch from the server's side how many connections they cause."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

PATIENCE = 40.0  # seconds


def crowd(work: Callable[[int], Any], threads: int = 12) -> list[Any]:
    """Call `work` in that many threads at once, each with its number; give the results in order."""
    start = threading.Barrier(threads)
    results: list[Any] = [None] * threads
    failures: list[BaseException] = []

    def run(me: int) -> None:
        try:
            start.wait(PATIENCE)
            results[me] = work(me)
        except BaseException as error:
            failures.append(error)

    running = [threading.Thread(target=run, args=(me,), daemon=True) for me in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in running), "threads hang"
    if failures:
        raise failures[0]
    return results


class Watch:
    """Ask the server over and over which connections there are while a `with` block runs."""

    def __init__(self, ids: Callable[[], set[int]]) -> None:
        self.ids = ids
        self.most = 0  # at one moment
        self.seen: set[int] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while True:
            over = self._over.is_set()  # a last look comes after the end
            found = self.ids()
            self.most = max(self.most, len(found))
            self.seen |= found
            if over:
                return
            self._over.wait(0.01)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(PATIENCE)
