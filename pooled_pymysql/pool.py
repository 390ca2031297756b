"""`Pool`: all sessions of one `PoolKey`, and the callers who ask for them, first come, first served."""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from threading import get_ident
from typing import Any, Self

from .arguments import Arguments
from .exceptions import PoolClosed, PoolFull, PoolTimeout
from .lease import Connection, make_lease
from .ledger import WaiterState
from .options import PoolOptions
from .session import FAREWELL_TIMEOUT, Mail, Session
from .stock import Sleeper, Stock, _getpid, _monotonic, lingering, wake

_UNSET: Any = object()

# Seconds that the replies of a session are worth waiting for before another is opened, or what opening took, if longer.
_WORTH_WAITING = 0.01

_LONGEST_SLEEP = 1.0  # seconds between looks whether a waiter was forgotten

_LONGEST_WAIT = 0.02  # seconds between looks for another session, while the one at hand owes


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
    leaks: int  # leases that were held for longer than leak_threshold


class Pool(Stock):
    """The sessions of one DSN. All methods may be called from any thread."""

    closed: bool

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
                opening=len(ledger.openings),
                waiting=len(ledger.waiting) + len(ledger.watching),
                min_size=ledger.min_size,
                max_size=ledger.max_size,
                leases=ledger.leases,
                opened=ledger.opened,
                closed={reason: count for reason, count in ledger.closed_by_reason.items() if count},
                timeouts=ledger.timeouts,
                refused=ledger.full,
                dropped=self._dropped_total,
                leaks=self._leaks_total,
            )

    def acquire(self, timeout: float | None = _UNSET) -> Connection:
        """Return a lease; its close() gives the session back.

        Blocks up to `timeout` seconds (default: the option; None: no limit), whatever the server, the network or the
        resolver does. With 0 it waits for nobody to give a session back, but, where there is room, up to
        `connect_timeout` for one to be opened.

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
            raise PoolTimeout(1040, text) from self._ledger.failure

    def drain(self) -> None:
        """Retire every session opened before now: the idle ones at once, each leased one when it is given back.

        Others are opened as they are needed. For a failover, or a changed password. Does not block.
        """
        with self._lock:
            gone = self._ledger.drain()
        for session in gone:
            session.close()
        self._look_for_room()

    def resize(self, min_size: int, max_size: int) -> None:
        """Set how many sessions are kept, and how many there may be; leased ones beyond go when they are given back.

        Does not block. Raises ValueError, TypeError as PoolOptions does.
        """
        PoolOptions(min_size=min_size, max_size=max_size)
        with self._lock:
            gone = self._ledger.resize(min_size, max_size)
        for session in gone:
            session.close()
        self._open_more(self._arguments)
        self._housekeeper.watch(self)

    def close(self) -> None:
        """Close the idle sessions now and every leased one when it is given back; wake who waits with PoolClosed.

        A second call does nothing. Blocks for less than a second.
        """
        with self._lock:
            if self._ledger.closed:
                return
            idle, waiters = self._ledger.close()
            self.closed = True
            if self._ledger.in_use:
                lingering.add(self)
            self._filled.notify_all()
        for waiter in waiters:
            wake(waiter)
        deadline = _monotonic() + FAREWELL_TIMEOUT
        for session in idle:
            session.close(max(0.0, deadline - _monotonic()))
        self._tell("closed")

    def forget(self) -> bool:
        """Close it if it is not in use; whoever comes to it now is sent to a new one. For the registry."""
        with self._lock:
            if self.last_used() is None:
                return False
            self.was_forgotten = True
            self.closed = True
        self.close()
        return True

    # Leasing: decide under the lock, act outside it

    def acquire_session(self, arguments: Arguments, timeout: float | None = _UNSET) -> Session:
        """Return a session in use; see acquire(). For the lease's own code."""
        if _getpid() != self._pid:
            self.forget_parent()
        if self._is_ours():
            raise self._reentry_error()
        if self.observers is not None:
            return self._acquire_observed(arguments, self._options.timeout if timeout is _UNSET else timeout)
        try:
            with self._lock:
                session = self._ledger.take()
        except PoolClosed:
            raise self._closed_error() from None
        if session is not None:
            session.looked_at = now = _monotonic()
            if now < session.validate_at and (session.is_ready() if session.owed else not session.poll(0)):
                return session
        return self._acquire_slowly(session, arguments, self._options.timeout if timeout is _UNSET else timeout)

    def _acquire_observed(self, arguments: Arguments, timeout: float | None) -> Session:
        """Do as acquire_session(), and tell the observers how long it took."""
        started = _monotonic()
        try:
            session = self._acquire_slowly(None, arguments, timeout)
        except PoolTimeout:
            self._tell("timed_out")
            raise
        now = _monotonic()
        try:
            self._tell("acquired", now - started)
        except BaseException:  # an interruption: nobody else would give it back
            self._give_back(session, None)
            raise
        session.observed_since = now
        return session

    def _acquire_slowly(self, session: Session | None, arguments: Arguments, timeout: float | None) -> Session:
        """Settle a session that was found, or find one, or wait, first come first served, until one is opened."""
        started = _monotonic()
        while True:
            if session is None:
                self._take_back()
                session = self._take_or_wait(arguments, timeout, started)
            try:
                mail = self._settle(session, max(session.opening_took, _WORTH_WAITING))
            except BaseException:
                self._retire(session, "interrupted")  # what it has been told by then may be lost
                raise
            while mail is Mail.UNDER_WAY:
                session, mail = self._watch(session, arguments, timeout, started)
            if mail is Mail.READ:
                return session
            self._retire(session, "lost while idle")
            session = None

    def _take_or_wait(self, arguments: Arguments, timeout: float | None, started: float) -> Session:
        """Return a session, which may owe; wait for one that is given back or opened, whichever comes first."""
        waiter = Sleeper()
        try:
            with self._lock:
                session = self._ledger.take() or self._ledger.take_owing()
                if session is not None:
                    return session
                if timeout == 0:
                    if self._ledger.size >= self._ledger.max_size:
                        self._ledger.timeouts += 1
                        raise self._timeout_error(0.0)
                    # The opening ends by itself, and tells why.
                    timeout = None if arguments.connect_timeout is None else arguments.connect_timeout + _LONGEST_SLEEP
                self._ledger.wait(waiter, _monotonic())
            self._sleep(waiter, arguments, None if timeout is None else started + timeout)
        except PoolClosed:
            raise self._closed_error() from None
        except PoolTimeout:
            self._housekeeper.watch(self)  # see _sleep()
            raise
        except PoolFull:
            text = f"pool {self._name!r}: max_waiting={self._options.max_waiting} callers wait already"
            raise PoolFull(1040, f"{text} ({self._counts()})") from None
        except BaseException:
            self._return_gift(waiter)
            raise
        if waiter.state is WaiterState.WAITING:
            with self._lock:
                timed_out = self._ledger.give_up(waiter)
            if timed_out:
                raise self._timeout_error(_monotonic() - started)
        if waiter.session is None:
            raise self._refusal(waiter)
        return waiter.session

    def _sleep(self, waiter: Sleeper, arguments: Arguments, deadline: float | None) -> None:
        """Sleep until the waiter was given something, or refused, or until `deadline` (monotonic seconds).

        Looks up now and then: whoever was about to wake it may have been interrupted just then.
        """
        ledger = self._ledger
        while waiter.state is WaiterState.WAITING:
            if ledger.size < ledger.max_size:
                self._open_more(arguments)
            left = _LONGEST_SLEEP if deadline is None else deadline - _monotonic()
            if waiter.sleep(min(max(0.0, left), _LONGEST_SLEEP)) or left <= 0:
                return
            with self._lock:
                ledger.requeue(waiter)
            self._housekeeper.watch(self)  # for openings that fill the pool and whose caller was interrupted, too

    def _return_gift(self, waiter: Sleeper) -> None:
        """Give back what a waiter that was interrupted had just been given."""
        with self._lock:
            self._ledger.give_up(waiter)
        if waiter.session is not None:
            self._give_back(waiter.session, None)

    def _watch(
        self, session: Session, arguments: Arguments, timeout: float | None, started: float
    ) -> tuple[Session, Mail]:
        """Wait for what a session owes, or for another session, whichever is first."""
        waiter = Sleeper()
        other = None
        mail = Mail.UNDER_WAY
        try:
            with self._lock:
                if self._ledger.idle:
                    other = self._ledger.take()
                elif not self._ledger.closed:
                    self._ledger.watch(waiter)
            if other is None:
                self._open_more(arguments)
                mail = self._wait_for_mail(session, waiter, timeout, started)
        except BaseException:
            self._return_gift(waiter)
            self._retire(session, "interrupted")  # what it has been told by then may be lost
            raise
        if other is not None:
            self._put_back(session)
            return other, self._settle(other, 0.0)
        with self._lock:
            self._ledger.give_up(waiter)
        if waiter.session is not None:
            self._put_back(session)
            return waiter.session, self._settle(waiter.session, 0.0)
        if mail is not Mail.UNDER_WAY:
            return session, mail
        self._put_back(session)
        if self._ledger.closed:
            raise self._closed_error()
        with self._lock:
            self._ledger.timeouts += 1
        raise self._timeout_error(_monotonic() - started)

    def _wait_for_mail(self, session: Session, waiter: Sleeper, timeout: float | None, started: float) -> Mail:
        """Wait until the session owes nothing, the waiter was given something, or the time is over."""
        while True:
            patience = _LONGEST_WAIT if timeout is None else min(_LONGEST_WAIT, started + timeout - _monotonic())
            if patience <= 0:
                return Mail.UNDER_WAY
            session.missing_since = None  # we hold it, as long as it takes
            mail = self._settle(session, patience)
            if mail is not Mail.UNDER_WAY or waiter.state is not WaiterState.WAITING:
                return mail

    # Words

    def _itself(self) -> Self:
        return self

    def _is_filled(self) -> bool:
        return self._ledger.size - len(self._ledger.openings) >= self._ledger.min_size

    def _counts(self) -> str:
        ledger = self._ledger
        return (
            f"in_use={len(ledger.in_use)} idle={len(ledger.idle) + len(ledger.owing)} opening={len(ledger.openings)}"
            f" waiting={len(ledger.waiting) + len(ledger.watching)} max_size={ledger.max_size}"
        )

    def _timeout_error(self, waited: float) -> PoolTimeout:
        text = f"pool {self._name!r}: no connection within {waited:.1f} s ({self._counts()}){self._hint()}"
        error = PoolTimeout(1040, text)
        error.__cause__ = self._ledger.failure
        return error

    def _hint(self) -> str:
        """Name the size that would do, where the thread that waited in vain holds leases itself."""
        with self._lock:
            holders = [session.holder for session in self._ledger.in_use if not session.is_missing()]
        mine = holders.count(get_ident())
        if not mine:
            return ""
        enough = len(set(holders)) * mine + 1
        return f"; this thread holds {mine} of them itself: max_size={enough} would do if all threads do as it does"

    def _refusal(self, waiter: Sleeper) -> Exception:
        """Return what connecting failed with, or that the pool was closed."""
        error = waiter.error
        if error is None:
            return self._closed_error()
        try:
            own = copy.copy(error)  # each caller raises its own
        except Exception:  # noqa: BLE001  a password callable may raise anything
            return error
        own.__cause__ = error.__cause__
        own.__traceback__ = error.__traceback__
        return own

    def _closed_error(self) -> PoolClosed:
        return PoolClosed(2006, f"pool {self._name!r} was closed; the next connect() makes a new one")

    def _reentry_error(self) -> PoolTimeout:
        text = "a signal handler or finalizer asked for a connection in the middle of this thread's own asking"
        return PoolTimeout(1040, f"pool {self._name!r}: {text} ({self._counts()})")
