"""The background threads: one that ticks the pools which have something to look after, and helpers that may block.

The housekeeper starts when a pool asks to be watched and ends when no pool has anything left to do. Openings run on
helpers, one thread each while there is work, so that a stuck address lookup or connect delays neither the ticks nor
anybody's deadline. Pools are held weakly.
"""

import logging
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable
from typing import Protocol

TICK = 1.0  # seconds

_logger = logging.getLogger("pooled_pymysql")


class Watched(Protocol):
    """A pool, as the housekeeper sees it."""

    def tick(self) -> float | None:
        """Do what is due; return the seconds until there may be more to do, or None: nothing is left to look after."""


class Housekeeper:
    """The thread, its inbox, the pools it watches and the helpers. All methods may be called from any thread."""

    def __init__(self) -> None:
        self.start_empty()

    def start_empty(self) -> None:
        """Forget thread, pools and locks; for the child after a fork, where none of them is alive."""
        self._pid = os.getpid()
        # Re-entrant: a signal handler may lease while this very thread is in here.
        self._lock = threading.RLock()
        self._watched: dict[int, weakref.ref[Watched]] = {}
        self._thread: threading.Thread | None = None
        self._helpers: set[threading.Thread] = set()
        self._postponed: list[Callable[[], object]] = []
        self._stopping = False
        self._over = False
        # Re-entrant by contract: put() is called from __del__ too, which may interrupt any code at all.
        self._inbox: queue.SimpleQueue[None] = queue.SimpleQueue()

    def forget_parent(self) -> None:
        """Start empty in a forked child, once."""
        if self._pid != os.getpid():
            self.start_empty()

    def watch(self, pool: Watched) -> None:
        """Tick `pool` from now on, until its tick() answers None or it is collected."""
        with self._lock:
            self._watched.setdefault(id(pool), weakref.ref(pool))
            if self._thread is None and not self._stopping and not self._over:
                thread = threading.Thread(target=self._run, name="pooled_pymysql housekeeper", daemon=True)
                self._thread = thread
                try:
                    thread.start()
                except RuntimeError:  # the interpreter ends, or there are too many threads: the next call tries again
                    self._thread = None

    def watched(self) -> list[Watched]:
        """Return the pools that are watched."""
        with self._lock:
            return [pool for ref in self._watched.values() if (pool := ref()) is not None]

    def wake(self) -> None:
        """Tick now; callable from __del__ and from signal handlers."""
        self._inbox.put(None)

    def run(self, job: Callable[[], object]) -> bool:
        """Run `job` on a helper thread; False when no thread can be had (at interpreter exit)."""
        with self._lock:
            if self._over:
                return False
            if self._stopping:
                self._postponed.append(job)
                return True
            helper = threading.Thread(target=self._help, args=(job,), name="pooled_pymysql helper", daemon=True)
            self._helpers.add(helper)
            try:
                helper.start()
            except RuntimeError:
                self._helpers.discard(helper)
                return False
            return True

    def stop(self, timeout: float, *, for_good: bool = False) -> bool:
        """End all threads, waiting for up to `timeout` s; say whether they have ended.

        New ones are started by resume(), or never again with `for_good`.
        """
        deadline = time.monotonic() + timeout
        with self._lock:
            self._stopping = True
            self._over = for_good
            threads = [*self._helpers, *([self._thread] if self._thread is not None else [])]
        self.wake()
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def resume(self) -> None:
        """Allow threads again, and start those for which there is work."""
        with self._lock:
            self._stopping = False
            postponed, self._postponed = self._postponed, []
        for pool in self.watched():
            self.watch(pool)
        for job in postponed:
            if not self.run(job):
                job()

    def _help(self, job: Callable[[], object]) -> None:
        try:
            job()
        finally:
            with self._lock:
                self._helpers.discard(threading.current_thread())

    def _run(self) -> None:
        pause = TICK
        while True:
            try:
                self._inbox.get(timeout=pause)
                while not self._inbox.empty():
                    self._inbox.get_nowait()
            except queue.Empty:
                pass
            pause = self._tick_all()
            with self._lock:
                if self._stopping or not self._watched:
                    self._thread = None
                    return

    def _tick_all(self) -> float:
        """Tick every pool; return the seconds until the next time."""
        pause = TICK
        for key, ref in list(self._watched.items()):
            if self._stopping:
                break
            pool = ref()
            wanted = None if pool is None else self._tick(pool)
            if wanted is not None:
                pause = min(pause, wanted)
                continue
            with self._lock:
                if self._watched.get(key) is ref:
                    del self._watched[key]
        return max(pause, 0.001)

    @staticmethod
    def _tick(pool: Watched) -> float | None:
        try:
            return pool.tick()
        except Exception:  # one pool's trouble must not end the thread that serves all
            _logger.warning("housekeeping of %r failed", pool, exc_info=True)
            return TICK
