"""One background thread that ticks the pools which have something to look after.

It starts when a pool asks to be watched and ends when no pool has anything left to do. Pools are held weakly.
"""

import logging
import os
import queue
import threading
import weakref
from typing import Protocol

TICK = 1.0  # seconds

_logger = logging.getLogger("pooled_pymysql")


class Watched(Protocol):
    """A pool, as the housekeeper sees it."""

    def tick(self) -> bool:
        """Do what is due; say whether there will be anything to do later. Must not raise."""


class Housekeeper:
    """The thread, its inbox and the pools it watches. All methods may be called from any thread."""

    def __init__(self) -> None:
        self.start_empty()

    def start_empty(self) -> None:
        """Forget thread, pools and locks; for the child after a fork, where none of them is alive."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._watched: dict[int, weakref.ref[Watched]] = {}
        self._thread: threading.Thread | None = None
        self._stopping = False
        # Re-entrant by contract: put() is called from __del__ too, which may interrupt any code at all.
        self._inbox: queue.SimpleQueue[None] = queue.SimpleQueue()

    def forget_parent(self) -> None:
        """Start empty in a forked child, once."""
        if self._pid != os.getpid():
            self.start_empty()

    def watch(self, pool: Watched) -> None:
        """Tick `pool` from now on, until its tick() answers False or it is collected."""
        with self._lock:
            self._watched.setdefault(id(pool), weakref.ref(pool))
            if self._thread is None and not self._stopping:
                self._thread = threading.Thread(target=self._run, name="pooled_pymysql housekeeper", daemon=True)
                self._thread.start()

    def wake(self) -> None:
        """Tick now; callable from __del__ and from signal handlers."""
        self._inbox.put(None)

    def stop(self, timeout: float) -> bool:
        """End the thread and wait for it up to `timeout` s; say whether it has ended. watch() starts no new one."""
        with self._lock:
            self._stopping = True
            thread = self._thread
        if thread is None or thread is threading.current_thread():
            return True
        self.wake()
        thread.join(timeout)
        return not thread.is_alive()

    def resume(self) -> None:
        """Allow the thread again, and start it if there is anything to watch."""
        with self._lock:
            self._stopping = False
            pools = [pool for ref in self._watched.values() if (pool := ref()) is not None]
        for pool in pools:
            self.watch(pool)

    def _run(self) -> None:
        while True:
            try:
                self._inbox.get(timeout=TICK)
                while not self._inbox.empty():
                    self._inbox.get_nowait()
            except queue.Empty:
                pass
            self._tick_all()
            with self._lock:
                if self._stopping or not self._watched:
                    self._thread = None
                    return

    def _tick_all(self) -> None:
        for key, ref in list(self._watched.items()):
            if self._stopping:
                return
            pool = ref()
            if pool is None or not self._tick(pool):
                with self._lock:
                    if self._watched.get(key) is ref:
                        del self._watched[key]
            del pool

    @staticmethod
    def _tick(pool: Watched) -> bool:
        try:
            return pool.tick()
        except Exception:  # one pool's trouble must not end the thread that serves all
            _logger.warning("housekeeping of %r failed", pool, exc_info=True)
            return True
