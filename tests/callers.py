"""Threads: one that makes one call, and those of the pools."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

PATIENCE = 20.0  # seconds that a test waits for a thread


class Caller(threading.Thread):
    """A thread that makes one call and keeps what came of it."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.call = call
        self.result: Any = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self.call()
        except BaseException as error:
            self.error = error

    def outcome(self) -> Any:
        """Return what the call returned, or raise what it raised."""
        self.join(PATIENCE)
        assert not self.is_alive(), "the caller is still waiting"
        if self.error is not None:
            raise self.error
        return self.result


def opening_threads() -> list[threading.Thread]:
    """List the threads on which pools open sessions, or close them."""
    return [thread for thread in threading.enumerate() if thread.name == "pooled_pymysql helper"]
