"""The background threads: one that ticks the pools which have something to look after, and helpers that may block.

The housekeeper starts when a pool asks to be watched and ends when no pool has anything left to do. Openings run on
helpers, each on a thread of its own while there is work, so that a stuck address lookup or connect delays neither the
ticks nor anybody's deadline. Pools are held weakly.
"""

import contextlib
import logging
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable
from typing import Protocol

TICK = 1.0  # seconds
_LINGER = 1.0  # seconds that a helper waits for another job: starting a thread takes longer than many an opening
_START_TIME = 1.0  # seconds that a thread has to begin

_logger = logging.getLogger("pooled_pymysql")


def _wait_for_system(thread: threading.Thread, deadline: float) -> None:
    """Wait until the system has ended a thread that has ended for Python.

    Before Python 3.13 join() returns while the thread may still hold a lock of OpenSSL's, which tidies up after each
    thread. A child that is forked at that moment would wait for the lock for ever.
    """
    while _is_known_to_system(thread) and time.monotonic() < deadline:
        time.sleep(0.0001)


def _is_known_to_system(thread: threading.Thread) -> bool:
    """Say whether the system has yet to end a thread, where it can be seen (Linux)."""
    if thread.native_id is None or thread.native_id == threading.get_native_id():  # a greenlet's is its hub's
        return False
    return os.path.exists(f"/proc/self/task/{thread.native_id}")


class Watched(Protocol):
    """A pool, as the housekeeper sees it."""

    def tick(self) -> float | None:
        """Do what is due; return the seconds until there may be more to do, or None: nothing is left to look after."""


class _Helper(threading.Thread):
    """A thread that does jobs, as long as there are any."""

    def __init__(self, work: "Callable[[_Helper], object]", job: Callable[[], object]) -> None:
        super().__init__(target=work, args=(self,), name="pooled_pymysql helper", daemon=True)
        self.jobs: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()  # None: it is to end
        self.jobs.put(job)


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
        self._is_running = False  # the thread has begun
        self._start_by = (
            0.0  # when it must have (monotonic seconds): an interruption of Thread.start() may keep it from it
        )
        self._helpers: set[_Helper] = set()
        self._leaving: list[threading.Thread] = []  # those that do no more work, but may not have ended for the system
        self._spare: list[_Helper] = []  # those that wait for another job; whoever takes one out gives it one
        self._stopping = False
        self._over = False
        # Jobs for helpers, and None for a tick at once. Re-entrant by contract: put() is called from __del__ too, which
        # may interrupt any code at all.
        self._inbox: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()

    def forget_parent(self) -> None:
        """Start empty in a forked child, once."""
        if self._pid != os.getpid():
            self.start_empty()

    def watch(self, pool: Watched) -> None:
        """Tick `pool` from now on, until its tick() answers None or it is collected."""
        with self._lock:
            known = self._watched.get(id(pool))
            if known is None or known() is not pool:  # of one that was collected, whose id this one has got
                self._watched[id(pool)] = weakref.ref(pool)
        self._ensure_thread()

    def watched(self) -> list[Watched]:
        """Return the pools that are watched."""
        with self._lock:
            return [pool for ref in self._watched.values() if (pool := ref()) is not None]

    def wake(self) -> None:
        """Tick now; callable from __del__ and from signal handlers."""
        self._inbox.put(None)

    def run(self, job: Callable[[], object]) -> bool:
        """Run `job` on a helper thread, after a fork that is under way; False when no thread can be had (at exit).

        The housekeeper starts the helper: its thread is never interrupted, and Thread.start() does not stand that.
        """
        with self._lock:
            if self._over:
                return False
            if self._spare:
                self._spare.pop().jobs.put(job)
                return True
            self._inbox.put(job)
        if self._ensure_thread():
            return True
        return not self._take_back(job)

    def stop(self, timeout: float, *, for_good: bool = False) -> bool:
        """End all threads, waiting for up to `timeout` s; say whether they have ended.

        New ones are started by resume(), or never again with `for_good`.
        """
        deadline = time.monotonic() + timeout
        with self._lock:
            self._stopping = True
            self._over = for_good
            threads = [*([self._thread] if self._thread is not None else []), *self._helpers, *self._leaving]
            while self._spare:
                self._spare.pop().jobs.put(None)
        self.wake()
        for thread in threads:
            if thread is not threading.current_thread() and thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
                _wait_for_system(thread, deadline)
        return not any(thread.is_alive() for thread in threads)

    def resume(self) -> None:
        """Allow threads again, and start those for which there is work."""
        with self._lock:
            self._stopping = False
            is_needed = bool(self._watched) or not self._inbox.empty()
        if is_needed:
            self._ensure_thread()

    def _ensure_thread(self) -> bool:
        """Start the housekeeper unless it is there, or threads are stopped for now; say whether work will be done."""
        with self._lock:
            if self._over:
                return False
            is_late = not self._is_running and time.monotonic() > self._start_by
            if self._stopping or (self._thread is not None and not is_late):
                return True
            try:
                thread = threading.Thread(target=self._run, name="pooled_pymysql housekeeper", daemon=True)
            except RuntimeError:  # an isolated sub-interpreter has no daemon threads
                return False
            self._thread = thread
            self._is_running = False
            self._start_by = time.monotonic() + _START_TIME
        try:
            thread.start()  # outside of the lock, because it waits for the thread
        except RuntimeError:  # the interpreter ends, or there are too many threads
            with self._lock:
                if self._thread is thread:
                    self._thread = None
            return False
        return True

    def _take_back(self, job: Callable[[], object]) -> bool:
        """Take a job out of the inbox again; False when a thread has got it meanwhile."""
        kept = []
        with self._lock, contextlib.suppress(queue.Empty):
            while True:
                kept.append(self._inbox.get_nowait())
        for item in kept:
            if item is not job and item is not None:  # nobody is there to tick
                self._inbox.put(item)
        return any(item is job for item in kept)

    def _run(self) -> None:
        pause = TICK
        try:
            while self._begin():
                with contextlib.suppress(queue.Empty):
                    self._hand_out(self._inbox.get(timeout=pause))
                    while not self._stopping:
                        self._hand_out(self._inbox.get_nowait())
                pause = self._tick_all()
        finally:  # whatever has ended it (SystemExit, an exception from outside), the next to ask starts another
            with self._lock:
                self._leave()

    def _leave(self) -> None:
        """Note that the calling thread does no more work and is about to end, and forget those that have ended."""
        me = threading.current_thread()
        known = [one for one in self._leaving if one is not me and (one.is_alive() or _is_known_to_system(one))]
        self._leaving = [*known, me]
        if self._thread is me:
            self._thread = None
            self._is_running = False

    def _begin(self) -> bool:
        """Say whether the thread goes on; it is forgotten otherwise."""
        with self._lock:
            if self._thread is not threading.current_thread():  # it was late, and another one was started
                return False
            self._is_running = True
            if self._stopping or (not self._watched and self._inbox.empty()):
                self._leave()
                return False
            return True

    def _hand_out(self, job: Callable[[], object] | None) -> None:
        """Have a helper do a job, if it is one."""
        if job is None:
            return
        with self._lock:
            if self._stopping:
                self._inbox.put(job)
                return
            if self._spare:
                self._spare.pop().jobs.put(job)
                return
            helper = _Helper(self._help, job)
            self._helpers.add(helper)
        try:
            helper.start()
        except RuntimeError:  # too many threads: better late than never
            with self._lock:
                self._helpers.discard(helper)
            job()

    def _help(self, helper: _Helper) -> None:
        try:
            while (job := self._next_job(helper)) is not None:
                job()
                job = None  # nothing of a pool is kept alive meanwhile
                with self._lock:
                    if self._stopping:
                        return
                    self._spare.append(helper)
        finally:
            with self._lock:
                self._leave()
                self._helpers.discard(helper)
                if helper in self._spare:
                    self._spare.remove(helper)

    def _next_job(self, helper: _Helper) -> Callable[[], object] | None:
        """Wait for a helper's next job; None: it is to end."""
        with contextlib.suppress(queue.Empty):
            return helper.jobs.get(timeout=_LINGER)
        with self._lock:
            if helper in self._spare:
                self._spare.remove(helper)
                return None
        with contextlib.suppress(queue.Empty):  # taken out just now: by somebody who may be interrupted
            return helper.jobs.get(timeout=_LINGER)
        return None

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
