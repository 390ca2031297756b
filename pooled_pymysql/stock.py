"""The sessions of one pool, apart from who asks for them: opening, taking back, restoring, validating, closing.

One lock round the ledger; every I/O outside it. The lock is re-entrant for one reason: the collector and signal
handlers may run code in the middle of our own bookkeeping. What they give back then is put into a queue, and nothing
they do finds the ledger half changed.
"""

import contextlib
import logging
import os
import random
import threading
import time
import warnings
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from .arguments import Arguments, SharedTLS
from .housekeeper import TICK, Housekeeper
from .ledger import Ledger, NotWanted, Opening, Waiter
from .observer import Event, Observers
from .opening import cannot_connect, open_session
from .options import PoolOptions
from .session import Mail, Session

_logger = logging.getLogger("pooled_pymysql")
_monotonic = time.monotonic
_getpid = os.getpid
_FOREVER = float("inf")

_MISSING_TIME = (
    60.0  # seconds that a session may be in use by no lease: handing over takes microseconds, closing ten seconds
)
_START_TIME = 1.0  # seconds that an opening may be counted before somebody begins with it

_FULL = (1040, 1203, 1226)  # the server has too many connections, of all or of this user


class Sleeper(Waiter[Session]):
    """A waiter with a lock of its own: waking it wakes exactly this one."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._lock.acquire()

    def sleep(self, timeout: float) -> bool:
        """Sleep until woken; False when `timeout` s passed first."""
        return self._lock.acquire(timeout=timeout)

    def wake(self) -> None:
        self._lock.release()


# Closed pools with leases that are still out. Were they collected together with one that is dropped, its socket would
# be too, before anybody could say goodbye.
lingering: set["Stock"] = set()


class Stock:
    """What a pool has, and what becomes of it."""

    def __init__(self, arguments: Arguments, options: PoolOptions, housekeeper: Housekeeper) -> None:
        self._arguments = arguments
        self._options = options
        self._housekeeper = housekeeper
        self._tls = SharedTLS(arguments.tls)
        self._name = options.name or arguments.key.address
        self._validate_after = _FOREVER if options.validate_after is None else options.validate_after
        self._dropped_total = 0
        self._leaks_total = 0
        self.observers: Observers | None = None  # written by the registry
        self.closed = False  # close() was called; written under the lock
        self.was_forgotten = False  # closed because nobody used it: whoever comes now is sent to a new pool
        self._empty_since = _monotonic()  # when it was last found with nothing to look after
        self._start_empty(options.min_size, options.max_size)
        if options.min_size:
            housekeeper.watch(self)
            housekeeper.wake()

    def _start_empty(self, min_size: int, max_size: int) -> None:
        """Set everything that a forked child must not share with its parent."""
        options = self._options
        self._pid = _getpid()
        self._lock = threading.RLock()
        self._is_ours = self._lock._is_owned  # type: ignore[attr-defined]  # as threading.Condition asks
        self._filled = threading.Condition(self._lock)
        self._ledger: Ledger[Session] = Ledger(min_size, max_size, options.max_waiting, options.opening_limit)
        # Filled by __del__, which may run anywhere: no lock of ours may be taken there.
        self._returned: SimpleQueue[tuple[Session, str | None, bool]] = SimpleQueue()

    # Giving back

    def release(self, session: Session, broken: str | None) -> None:
        """Restore a session and take it back, or close it: `broken` says why. For the lease's own code.

        Sends what restores it, in one write, and does not wait for the replies.
        """
        if session.pid != _getpid():
            session.abandon()
            return
        if session.observed_since is not None:
            self._release_observed(session, broken, session.observed_since)
            return
        try:
            if broken is None and session.marks & session.restore_mask and not self._is_ours():
                broken = session.restore()
        except BaseException:
            self._returned.put((session, "interrupted", False))
            self._housekeeper.wake()
            raise
        self._give_back(session, broken)

    def _release_observed(self, session: Session, broken: str | None, since: float) -> None:
        if self._is_ours():  # put off, and told when it is taken back
            self._give_back(session, broken)
            return
        held = _monotonic() - since
        session.observed_since = None
        self.release(session, broken)
        self._tell("released", held)

    def _tell(self, event: Event, *args: Any) -> None:
        """Tell the observers, if there are any; never in the middle of this thread's bookkeeping."""
        observers: Any = self.observers
        if observers is not None and not self._is_ours():
            observers.tell(event, self, *args)

    def drop(self, session: Session, broken: str | None) -> None:
        """Take the session of a garbage-collected lease: hands it over, takes no lock, reads nothing."""
        self._returned.put((session, broken, True))
        self._housekeeper.wake()

    def _give_back(self, session: Session, broken: str | None) -> None:
        if self._is_ours():  # a finalizer or signal handler, in the middle of this thread's bookkeeping
            self._returned.put((session, broken, False))
            self._housekeeper.wake()
            return
        if broken is None:
            waiter = None
            now = _monotonic()
            session.validate_at = now + self._validate_after
            owing = bool(session.owed and not session.owes_little)
            try:
                with self._lock:
                    if now < session.expires_at and not self._ledger.closed:
                        waiter = self._ledger.release(session, now, owing=owing)
                    else:
                        broken = "pool closed" if self._ledger.closed else session.end_reason
            except KeyError:  # closed by the sweep meanwhile
                return
            if broken is None:
                if waiter is not None:
                    wake(waiter)
                return
        self._retire(session, broken)

    def _retire(self, session: Session, reason: str) -> None:
        """Close a session in use and give its room to the next; closed first, so the server never sees more."""
        session.close()
        with self._lock, contextlib.suppress(KeyError):  # closed by the sweep meanwhile
            self._ledger.retire(session, reason)
        if self.closed and not self._ledger.in_use:
            lingering.discard(self)
        _logger.debug("pool %r: session %d closed: %s", self._name, session.thread_id, reason)
        if reason.startswith("lost"):
            self._distrust_host()
        self._look_for_room()

    def _take_back(self) -> None:
        """Take back the sessions whose leases were collected, or closed where no lock could be taken."""
        while not self._returned.empty():
            try:
                session, broken, was_dropped = self._returned.get_nowait()
            except Empty:
                return
            with self._lock:
                self._dropped_total += was_dropped
            if session.pid == self._pid:
                self.release(session, broken)
            else:
                session.abandon()

    def _put_back(self, session: Session) -> None:
        """Put back a session that was only looked at."""
        with self._lock:
            closed = self._ledger.closed
            owing = bool(session.owed) and not session.owes_little
            is_over = session.expires_at == -_FOREVER
            waiter = None if closed or is_over else self._ledger.put_back(session, owing=owing)
        if closed or is_over:
            self._retire(session, "pool closed" if closed else session.end_reason)
        wake(waiter)

    # Opening

    def _look_for_room(self) -> None:
        """Open what is wanted, now that something has gone; tell who waits in vain."""
        ledger = self._ledger
        if not ledger.waiting and not ledger.watching and not ledger.min_size:
            return
        with self._lock:
            refused = ledger.lost_hope(_monotonic())
        for waiter in refused:
            wake(waiter)
        self._open_more(self._arguments)

    def _open_more(self, arguments: Arguments, *, at_once: bool = True) -> None:
        """Begin to open as many sessions as are wanted, on helper threads; does not block where there are threads."""
        begun = self._begin_openings(arguments, at_once=at_once)
        self._open_beside(arguments, begun)
        if begun:
            self._housekeeper.watch(self)
            self._housekeeper.wake()  # which looks whether they are overdue

    def _begin_openings(self, arguments: Arguments, *, at_once: bool) -> list[Opening]:
        with self._lock:
            time_limit = arguments.connect_timeout or _FOREVER
            return self._ledger.begin_openings(_monotonic(), time_limit, at_once=at_once)

    def _open_beside(self, arguments: Arguments, begun: list[Opening]) -> None:
        """Have each opened on a helper thread, or here where there is none."""
        for opening in begun:
            job = partial(self._open_on, arguments, opening)
            if not self._housekeeper.run(job):
                job()

    def _open_on(self, arguments: Arguments, opening: Opening) -> None:
        """Open a session, and then more as long as they are wanted."""
        self._open(arguments, opening)
        while begun := self._begin_openings(arguments, at_once=False):
            self._open_beside(arguments, begun[1:])
            self._open(arguments, begun[0])

    def _open(self, arguments: Arguments, opening: Opening) -> None:
        opening.is_running = True
        if self.closed:  # before this thread has got to it
            with self._lock:
                self._ledger.fail_opening(opening, None, _monotonic(), 0.0, is_full=False)
            return
        try:
            session = open_session(arguments, self._tls, self._options, self._pid)
        except BaseException as error:
            self._note_failure(opening, error)
            if not isinstance(error, Exception):
                raise
            return
        session.validate_at = _monotonic() + (self._validate_after or _FOREVER)
        ledger = self._ledger
        try:
            with self._lock:
                patience, now = ledger.patience(), _monotonic()
                waiter = ledger.end_opening(opening, session, now)
                self._filled.notify_all()
        except NotWanted:
            session.close()
        else:
            wake(waiter)
            if (ledger.waiting or ledger.watching) and (ledger.pause_until > now or ledger.patience() < patience):
                self._housekeeper.wake()  # which looks earlier then
        self._tell("opened", session.opening_took)

    def _note_failure(self, opening: Opening, error: BaseException) -> None:
        counted = error if isinstance(error, Exception) else None
        is_full = bool(error.args) and error.args[0] in _FULL
        with self._lock:
            refused = self._ledger.fail_opening(opening, counted, _monotonic(), random.random(), is_full=is_full)  # noqa: S311
            self._filled.notify_all()
        for waiter in refused:
            wake(waiter)
        # Whoever is refused raises it; of a pool that is closed nobody wants to know.
        level = logging.DEBUG if refused or self.closed else logging.WARNING
        _logger.log(level, "pool %r: cannot open a session: %s", self._name, error)
        self._housekeeper.wake()

    # Looking after

    def tick(self) -> float | None:
        """Do the background work that is due; return the seconds until there may be more, or None for never."""
        self._take_back()
        self._sweep()
        self._collect_owed()
        self._validate_idle()
        self._expire()
        self._give_up_openings()
        self._open_more(self._arguments, at_once=False)
        pause = self._pause()
        if pause is None:
            self._empty_since = _monotonic()
        return pause

    def _pause(self) -> float | None:
        now = _monotonic()
        with self._lock:
            ledger = self._ledger
            if ledger.closed and not ledger.size:
                return None
            if self.holds_nothing():
                return None
            look = ledger.next_look(now)
            return TICK if look is None else min(TICK, look)

    def _give_up_openings(self) -> None:
        """Fail those that `connect_timeout` has not ended: a look-up of an address cannot be interrupted."""
        with self._lock:
            late = self._ledger.late_openings(_monotonic())
        for opening in late:
            self._note_failure(opening, cannot_connect(self._arguments.key.host, TimeoutError("timed out")))

    def _sweep(self) -> None:
        """Take back what interruptions lost: sessions without a lease, openings that nobody has begun with."""
        now = _monotonic()
        with self._lock:
            in_use = list(self._ledger.in_use)
            for opening in self._ledger.abandoned_openings(now, _START_TIME):
                self._ledger.fail_opening(opening, None, now, 0.0, is_full=False)
        for session in in_use:
            if not session.is_missing():
                session.missing_since = None
                if self._options.leak_threshold is not None:
                    self._tell_leak(session, now - self._options.leak_threshold)
            elif session.missing_since is None:
                session.missing_since = now
            elif now - session.missing_since >= _MISSING_TIME:
                _logger.warning("pool %r: session %d was in use by nobody", self._name, session.thread_id)
                self._dropped_total += 1
                self._retire(session, "abandoned")

    def _tell_leak(self, session: Session, since: float) -> None:
        """Report a lease that is held since before `since`, once."""
        lease: Any = None if session.lease is None else session.lease()
        if lease is None or session.leased_at is None or session.leased_at > since:
            return
        held, session.leased_at = _monotonic() - session.leased_at, None
        self._leaks_total += 1
        text = f"a connection of pool {self._name!r} is held for {held:.1f} s, acquired at {lease._origin}"
        _logger.warning("%s", text)
        warnings.warn(text, ResourceWarning, stacklevel=1, source=lease)

    def _collect_owed(self) -> None:
        """Read the replies that have arrived for sessions nobody has asked for since."""
        for _ in range(len(self._ledger.owing)):
            with self._lock:
                session = self._ledger.take_owing()
            if session is None:
                return
            self._look_at(session, "not restored")

    def _validate_idle(self) -> None:
        """Reset the sessions that have been idle for `validate_after`; the replies are collected later."""
        if not self._validate_after:  # at every acquire
            return
        with self._lock:
            stale = self._ledger.take_stale(_monotonic())
        for session in stale:
            self._look_at(session, "lost while idle")

    def _look_at(self, session: Session, reason: str) -> None:
        """Settle a session without waiting; put it back, or close it for `reason`."""
        if self._settle(session, 0.0) is Mail.BAD:
            self._retire(session, reason)
        else:
            self._put_back(session)

    def _expire(self) -> None:
        with self._lock:
            expired = self._ledger.expire(_monotonic(), self._options.idle_timeout)
        for session, _ in expired:
            session.close()

    def _settle(self, session: Session, patience: float) -> Mail:
        """Validate a session if it is due, read what it owes, for up to `patience` s, and look whether it is alive.

        READ: it may be used. What opening another would take is worth waiting for; a reply that takes longer (rolling
        back much does) is not, as long as another may be opened.
        """
        session.looked_at = now = _monotonic()
        if now >= session.validate_at:
            if session.poll(0) and not session.owed:
                return Mail.BAD
            session.validate_at = now + (self._validate_after or _FOREVER)
            if session.validate(now) is not None:
                return Mail.BAD
        if session.owed:
            mail = session.collect()
            if mail is Mail.UNDER_WAY and session.owes_little:
                return Mail.READ
            if mail is Mail.UNDER_WAY and patience:
                mail = session.collect(_monotonic() + patience)
            if mail is Mail.UNDER_WAY and _monotonic() > session.answer_by:
                return Mail.BAD
            if mail is not Mail.READ:
                return mail
        # Replies that arrived prove nothing about now.
        return Mail.BAD if session.poll(0) else Mail.READ

    def _distrust_host(self) -> None:
        """Have the idle sessions of this server validated before they are used, in all pools."""
        place = self._arguments.key.place
        for pool in [*self._housekeeper.watched(), self]:
            if isinstance(pool, Stock) and pool._arguments.key.place == place:
                with pool._lock:
                    pool._ledger.distrust()
        self._housekeeper.wake()

    # Being forgotten

    def last_used(self) -> float | None:
        """Return when it was last used (monotonic seconds), or None while it is in use."""
        with self._lock:
            ledger = self._ledger
            if ledger.in_use or ledger.openings or ledger.waiting or ledger.min_size:
                return None
            return max([session.idle_since for session in (*ledger.idle, *ledger.owing)], default=self._empty_since)

    def holds_nothing(self) -> bool:
        """Say whether there is neither a session nor anybody who wants one."""
        return not self._ledger.size and not self._ledger.waiting and not self._ledger.min_size

    # Processes

    def forget_parent(self) -> None:
        """Start empty in a forked child: the sessions are the parent's, and not a byte is sent to them."""
        ledger, returned = self._ledger, self._returned
        lingering.discard(self)
        self._start_empty(ledger.min_size, ledger.max_size)
        self._ledger.closed = self.closed
        self._tls.forget_parent()
        self._housekeeper.forget_parent()
        for session in [*ledger.idle, *ledger.owing, *ledger.in_use]:
            lease = None if session.lease is None else session.lease()
            if lease is not None and lease._session is session:
                lease.forget_parent(session)
            session.abandon()
        while not returned.empty():
            returned.get_nowait()[0].abandon()


def wake(waiter: Waiter[Session] | None) -> None:
    """Wake a caller who was given something, or refused."""
    if waiter is not None:
        assert isinstance(waiter, Sleeper)
        waiter.wake()
