"""`Pool`: all sessions of one `PoolKey`. One lock round the ledger; every I/O outside it."""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from .arguments import Arguments, SharedTLS
from .exceptions import PoolClosed, PoolFull, PoolTimeout
from .housekeeper import Housekeeper
from .lease import Connection, make_lease
from .ledger import Ledger, Waiter, WaiterState
from .opening import open_session
from .options import PoolOptions
from .session import Mail, Session

_logger = logging.getLogger("pooled_pymysql")
_monotonic = time.monotonic
_getpid = os.getpid

_UNSET: Any = object()

_MISSING_TIME = (
    60.0  # seconds that a session may be in use by no lease: handing over takes microseconds, closing ten seconds
)

# Seconds that the replies of a session are worth waiting for before another is opened, or what opening took, if longer.
_WORTH_WAITING = 0.01

_LONGEST_WAIT = 0.02  # seconds between looks for another session, while the one at hand owes and none may be opened


@dataclass(frozen=True, slots=True)
class PoolStats:
    """The counts of one pool at one moment, and its counters since it was made."""

    name: str
    idle: int
    in_use: int
    opening: int
    waiting: int
    min_size: int
    max_size: int
    leases: int  # sessions handed out
    opened: int
    closed: Mapping[str, int]  # reason -> sessions
    timeouts: int  # callers who waited in vain
    refused: int  # callers turned away by max_waiting
    dropped: int  # leases that were garbage-collected instead of closed


class _Sleeper(Waiter[Session]):
    """A waiter with a lock of its own: waking it wakes exactly this one."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._lock.acquire()

    def sleep(self, timeout: float | None) -> bool:
        """Sleep until woken; False when `timeout` s passed first."""
        return self._lock.acquire(timeout=-1 if timeout is None else min(timeout, threading.TIMEOUT_MAX))

    def wake(self) -> None:
        self._lock.release()


class Pool:
    """The sessions of one DSN. All methods may be called from any thread."""

    def __init__(self, arguments: Arguments, options: PoolOptions, housekeeper: Housekeeper) -> None:
        self._arguments = arguments
        self._options = options
        self._housekeeper = housekeeper
        self._tls = SharedTLS(arguments.tls)
        self._name = options.name or arguments.key.address
        self._dropped_total = 0
        self.closed = False  # close() was called; written under the lock
        self._start_empty()
        if options.min_size:
            housekeeper.watch(self)
            housekeeper.wake()

    def _start_empty(self) -> None:
        """Set everything that a forked child must not share with its parent."""
        options = self._options
        self._pid = _getpid()
        self._lock = threading.Lock()
        self._filled = threading.Condition(self._lock)
        self._ledger: Ledger[Session] = Ledger(options.min_size, options.max_size, options.max_waiting)
        # Filled by __del__, which may run anywhere: no lock of ours may be taken there.
        self._dropped: SimpleQueue[tuple[Session, str | None]] = SimpleQueue()
        self._last_failure: Exception | None = None

    # What users see

    @property
    def name(self) -> str:
        """The option `name`, or `user@host:port/database`."""
        return self._name

    @property
    def options(self) -> PoolOptions:
        """The options that the pool was made with."""
        return self._options

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name!r} {'closed ' if self.closed else ''}{self._counts()}>"

    def stats(self) -> PoolStats:
        """Return the pool's counts, all of one moment."""
        with self._lock:
            ledger = self._ledger
            return PoolStats(
                name=self._name,
                idle=len(ledger.idle) + len(ledger.owing),
                in_use=len(ledger.in_use),
                opening=ledger.opening,
                waiting=len(ledger.waiting) + len(ledger.watching),
                min_size=ledger.min_size,
                max_size=ledger.max_size,
                leases=ledger.leases,
                opened=ledger.opened,
                closed=dict(ledger.closed_by_reason),
                timeouts=ledger.timeouts,
                refused=ledger.full,
                dropped=self._dropped_total,
            )

    def acquire(self, timeout: float | None = _UNSET) -> Connection:
        """Return a lease; its close() gives the session back.

        Blocks up to `timeout` seconds for a session (default: the option; 0: do not wait; None: no limit), and up to
        `connect_timeout` more when it must open one.

        Raises PoolTimeout, PoolFull, PoolClosed, or what PyMySQL raises when connecting fails.
        """
        if timeout is not _UNSET and timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout takes seconds, at least 0, or None for no limit, not {timeout!r}")
        conversions = self._arguments.conversions(self._arguments.conv)
        session = self.acquire_session(self._arguments, timeout)
        return make_lease(session, self, self._itself, self._arguments, conversions)

    @contextlib.contextmanager
    def connection(self, timeout: float | None = _UNSET) -> Iterator[Connection]:
        """Lease for the length of a `with` block: commit when it ends well, roll back when it raises, give back.

        Blocks and raises as acquire() does.
        """
        connection = self.acquire(timeout)
        try:
            yield connection
        except BaseException:
            with contextlib.suppress(Exception):  # the block's own exception tells more
                connection.rollback()
            raise
        else:
            connection.commit()
        finally:
            if connection._session is not None:  # the block may have closed it
                connection.close()

    def wait_ready(self, timeout: float | None = 30.0) -> None:
        """Block until min_size sessions are open, up to `timeout` seconds.

        Raises PoolTimeout with the last failed connect as its cause, or PoolClosed.
        """
        self._housekeeper.watch(self)
        self._housekeeper.wake()
        with self._lock:
            full = self._filled.wait_for(lambda: self._ledger.closed or self._is_filled(), timeout)
            closed = self._ledger.closed
        if closed:
            raise self._closed_error()
        if not full:
            text = f"pool {self._name!r}: min_size not reached within {timeout:.1f} s ({self._counts()})"
            raise PoolTimeout(1040, text) from self._last_failure

    def close(self) -> None:
        """Close the idle sessions now and every leased one when it is given back; wake who waits with PoolClosed.

        A second call does nothing. Blocks for less than a second a session.
        """
        with self._lock:
            if self._ledger.closed:
                return
            idle, waiters = self._ledger.close()
            self.closed = True
            self._filled.notify_all()
        for waiter in waiters:
            _wake(waiter)
        for session in idle:
            session.close()

    # Leasing: decide under the lock, act outside it

    def acquire_session(self, arguments: Arguments, timeout: float | None = _UNSET) -> Session:
        """Return a session in use; see acquire(). For the lease's own code."""
        if _getpid() != self._pid:
            self.forget_parent()
        try:
            with self._lock:
                session = self._ledger.take()
        except PoolClosed:
            raise self._closed_error() from None
        if session is not None:
            if not session.owed and not session.poll(0):
                return session
            if self._settle(session, 0.0) is Mail.READ:
                return session
            self._retire(session, "lost while idle")
        return self._acquire_slowly(arguments, self._options.timeout if timeout is _UNSET else timeout)

    def _acquire_slowly(self, arguments: Arguments, timeout: float | None) -> Session:
        """Find a session that can be used, or open one where there is room, or wait, first come first served."""
        started = _monotonic()
        while True:
            self._take_back_dropped()
            session = self._take_or_queue(timeout, started)
            if session is None:
                return self._open(arguments)
            mail = self._settle(session, max(session.opening_took, _WORTH_WAITING))
            if mail is Mail.UNDER_WAY:
                session, mail = self._watch(session, timeout, started)
                if session is None:
                    return self._open(arguments)
            if mail is Mail.READ:
                return session
            self._retire(session, "lost while idle")

    def _watch(self, session: Session, timeout: float | None, started: float) -> tuple[Session | None, Mail]:
        """Wait for what a session owes, for another session, or for room to open one (None), whichever is first."""
        waiter = _Sleeper()
        with self._lock:
            may_open = not self._ledger.closed and self._ledger.reserve()
            if not may_open:
                self._ledger.watch(waiter)
        if may_open:
            self._put_back(session)
            return None, Mail.READ
        try:
            mail = self._wait_for_mail(session, waiter, timeout, started)
        except BaseException:
            self._return_gift(waiter)
            self._put_back(session)
            raise
        with self._lock:
            empty_handed = self._ledger.give_up(waiter)
        if empty_handed:
            return self._end_watch(session, mail, started)
        self._put_back(session)
        if waiter.state is WaiterState.REFUSED:
            raise self._closed_error()
        return waiter.session, Mail.READ if waiter.session is None else self._settle(waiter.session, 0.0)

    def _wait_for_mail(self, session: Session, waiter: _Sleeper, timeout: float | None, started: float) -> Mail:
        """Wait until the session owes nothing, the waiter was given something, or the time is over."""
        while True:
            patience = _LONGEST_WAIT if timeout is None else min(_LONGEST_WAIT, started + timeout - _monotonic())
            if patience <= 0:
                return Mail.UNDER_WAY
            session.missing_since = None  # we hold it, as long as it takes
            mail = self._settle(session, patience)
            if mail is not Mail.UNDER_WAY or waiter.state is not WaiterState.WAITING:
                return mail

    def _end_watch(self, session: Session, mail: Mail, started: float) -> tuple[Session, Mail]:
        """Come back with the session that was waited for, or with none in time."""
        if mail is not Mail.UNDER_WAY:
            return session, mail
        self._put_back(session)
        with self._lock:
            self._ledger.timeouts += 1
        raise self._timeout_error(_monotonic() - started)

    def _settle(self, session: Session, patience: float) -> Mail:
        """Read what a session owes, for up to `patience` s, and look whether it is alive; READ: it may be used.

        What opening another would take is worth waiting for; a reply that takes longer (rolling back much does) is
        not, as long as another may be opened.
        """
        if session.owed:
            mail = session.collect()
            if mail is Mail.UNDER_WAY and session.owes_little:
                return Mail.READ
            if mail is Mail.UNDER_WAY and patience:
                mail = session.collect(_monotonic() + patience)
            if mail is not Mail.READ:
                return mail
        # Replies that arrived prove nothing about now.
        return Mail.BAD if session.poll(0) else Mail.READ

    def _put_back(self, session: Session) -> None:
        """Put back a session that was only looked at."""
        with self._lock:
            closed = self._ledger.closed
            owing = bool(session.owed) and not session.owes_little
            waiter = None if closed else self._ledger.put_back(session, _monotonic(), owing=owing)
        if closed:
            self._retire(session, "pool closed")
        _wake(waiter)

    def _take_or_queue(self, timeout: float | None, started: float) -> Session | None:
        """Return a session, which may owe, or None when one may be opened; wait for either if there is neither."""
        try:
            with self._lock:
                session = self._ledger.take() or self._ledger.take_owing()
                if session is not None:
                    return session
                if self._ledger.reserve():
                    return None
                if timeout == 0:
                    self._ledger.timeouts += 1
                    raise self._timeout_error(0.0)
                waiter = _Sleeper()
                self._ledger.wait(waiter)
        except PoolClosed:
            raise self._closed_error() from None
        except PoolFull:
            text = f"pool {self._name!r}: max_waiting={self._options.max_waiting} callers wait already"
            raise PoolFull(1040, f"{text} ({self._counts()})") from None
        self._housekeeper.watch(self)
        left = None if timeout is None else max(0.0, started + timeout - _monotonic())
        return self._sleep(waiter, left, started)

    def _sleep(self, waiter: _Sleeper, timeout: float | None, started: float) -> Session | None:
        """Return the session that the waiter was given, or None for room to open one."""
        try:
            waiter.sleep(timeout)
        except BaseException:
            self._return_gift(waiter)
            raise
        with self._lock:
            timed_out = self._ledger.give_up(waiter)
        if timed_out:
            raise self._timeout_error(_monotonic() - started)
        if waiter.state is WaiterState.REFUSED:
            raise self._closed_error()
        return waiter.session

    def _return_gift(self, waiter: _Sleeper) -> None:
        """Give back what a waiter that was interrupted had just been given."""
        with self._lock:
            if self._ledger.give_up(waiter):
                return
            next_waiter = self._ledger.open_failed() if waiter.state is WaiterState.GIVEN_ROOM else None
        _wake(next_waiter)
        if waiter.session is not None:
            self._give_back(waiter.session, None)

    def _open(self, arguments: Arguments) -> Session:
        """Open a session for the caller, who has reserved room for it."""
        try:
            session = open_session(arguments, self._tls, self._options, self._pid)
        except BaseException as error:
            with self._lock:
                waiter = self._ledger.open_failed()
                if isinstance(error, Exception):
                    self._last_failure = error
            _wake(waiter)
            raise
        with self._lock:
            self._ledger.opened_for_caller(session)
            self._last_failure = None
            closed = self._ledger.closed
        if closed:
            self._retire(session, "pool closed")
            raise self._closed_error()
        self._housekeeper.watch(self)
        return session

    # Giving back

    def release(self, session: Session, broken: str | None) -> None:
        """Restore a session and take it back, or close it: `broken` says why. For the lease's own code.

        Sends what restores it, in one write, and does not wait for the replies.
        """
        if session.pid != _getpid():
            session.abandon()
            return
        if broken is None and session.marks & session.restore_mask:
            broken = session.restore()
        self._give_back(session, broken)

    def drop(self, session: Session, broken: str | None) -> None:
        """Take the session of a garbage-collected lease: hands it over, takes no lock, reads nothing."""
        self._dropped.put((session, broken))
        self._housekeeper.wake()

    def _give_back(self, session: Session, broken: str | None) -> None:
        if broken is None:
            owing = bool(session.owed and not session.owes_little)
            with self._lock:
                closed = self._ledger.closed
                waiter = None if closed else self._ledger.release(session, _monotonic(), owing=owing)
            if not closed:
                if waiter is not None:
                    _wake(waiter)
                return
            broken = "pool closed"
        self._retire(session, broken)

    def _retire(self, session: Session, reason: str) -> None:
        """Close a session in use and give its room to the next; closed first, so the server never sees more."""
        session.close()
        with self._lock:
            waiter = self._ledger.retire(session, reason)
        _logger.debug("pool %r: session %d closed: %s", self._name, session.thread_id, reason)
        _wake(waiter)

    def _take_back_dropped(self) -> None:
        """Give back the sessions whose leases were collected instead of closed."""
        while True:
            try:
                session, broken = self._dropped.get_nowait()
            except Empty:
                return
            self._dropped_total += 1
            self.release(session, broken)

    # Housekeeping

    def tick(self) -> bool:
        """Do the background work that is due; say whether the pool holds anything to look after."""
        self._take_back_dropped()
        self._sweep()
        self._collect_owed()
        with self._lock:
            expired = self._ledger.expire(_monotonic(), self._options.idle_timeout)
        for session, _ in expired:
            session.close()
        self._fill()
        with self._lock:
            return not self._ledger.closed and (self._ledger.size > 0 or self._ledger.min_size > 0)

    def _sweep(self) -> None:
        """Close the sessions that an interruption took from their leases before they were given back."""
        now = _monotonic()
        with self._lock:
            in_use = list(self._ledger.in_use)
        for session in in_use:
            if not session.is_missing():
                session.missing_since = None
            elif session.missing_since is None:
                session.missing_since = now
            elif now - session.missing_since >= _MISSING_TIME:
                _logger.warning("pool %r: session %d was in use by nobody", self._name, session.thread_id)
                self._dropped_total += 1
                with contextlib.suppress(KeyError):  # given back at this very moment
                    self._retire(session, "lost")

    def _collect_owed(self) -> None:
        """Read the replies that have arrived for sessions nobody has asked for since."""
        for _ in range(len(self._ledger.owing)):
            with self._lock:
                session = self._ledger.take_owing()
            if session is None:
                return
            mail = self._settle(session, 0.0)
            if mail is Mail.BAD:
                self._retire(session, "not restored")
                continue
            self._put_back(session)

    def _fill(self) -> None:
        """Open sessions until min_size is reached or one fails."""
        while True:
            with self._lock:
                if self._is_filled() or not self._ledger.missing() or not self._ledger.reserve():
                    self._filled.notify_all()
                    return
            if not self._open_in_background():
                return

    def _open_in_background(self) -> bool:
        try:
            session = open_session(self._arguments, self._tls, self._options, self._pid)
        except Exception as error:  # noqa: BLE001  a password callable may raise anything
            with self._lock:
                waiter = self._ledger.open_failed()
                self._last_failure = error
            _wake(waiter)
            _logger.warning("pool %r: cannot open a session: %s", self._name, error)
            return False
        try:
            with self._lock:
                waiter = self._ledger.opened_in_background(session, _monotonic())
                self._last_failure = None
        except PoolClosed:
            session.close()
            return False
        _wake(waiter)
        return True

    def _is_filled(self) -> bool:
        return self._ledger.size - self._ledger.opening >= self._ledger.min_size

    # Processes

    def forget_parent(self) -> None:
        """Start empty in a forked child: the sessions are the parent's, and not a byte is sent to them."""
        ledger, dropped = self._ledger, self._dropped
        self._start_empty()
        self._ledger.closed = self.closed
        self._tls.forget_parent()
        self._housekeeper.forget_parent()
        for session in [*ledger.idle, *ledger.owing, *ledger.in_use]:
            lease = None if session.lease is None else session.lease()
            if lease is not None and lease._session is session:
                lease.forget_parent(session)
            session.abandon()
        while not dropped.empty():
            dropped.get_nowait()[0].abandon()

    # Words

    def _itself(self) -> "Pool":
        return self

    def _counts(self) -> str:
        ledger = self._ledger
        return (
            f"in_use={len(ledger.in_use)} idle={len(ledger.idle) + len(ledger.owing)} opening={ledger.opening}"
            f" waiting={len(ledger.waiting) + len(ledger.watching)} max_size={ledger.max_size}"
        )

    def _timeout_error(self, waited: float) -> PoolTimeout:
        error = PoolTimeout(1040, f"pool {self._name!r}: no connection within {waited:.1f} s ({self._counts()})")
        error.__cause__ = self._last_failure
        return error

    def _closed_error(self) -> PoolClosed:
        return PoolClosed(2006, f"pool {self._name!r} was closed; the next connect() makes a new one")


def _wake(waiter: Waiter[Session] | None) -> None:
    if waiter is not None:
        assert isinstance(waiter, _Sleeper)
        waiter.wake()
