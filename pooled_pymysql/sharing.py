"""Threads that share one connection: whose turn on the wire it is, and whose result is whose (PEP 249, threadsafety 2).

A turn is one call that uses the wire: a command and the reading of its reply, or the reading of more of an open result.
An unbuffered result that is not read to its end owns the wire between turns: the result does, not its thread, so one
thread may execute and another fetch. Results that were asked for buffered never make anybody wait: whoever needs the
wire reads what is left of them into memory, where their cursor finds it.
"""

import threading
import time
from collections.abc import Callable
from threading import get_ident
from typing import Any
from weakref import WeakKeyDictionary

from pymysql import err
from pymysql.constants import CR

from .driver import C
from .exceptions import LeaseBusy
from .replies import IN_FLIGHT, LANDED, PREPARING, RESULT_OPEN, Result, Tracked
from .tracking import TOUCHED

_OUT_OF_SYNC = CR.CR_COMMANDS_OUT_OF_SYNC
CLOSED_MEANWHILE = "Lost connection to MySQL server during query (closed meanwhile)"


class _Thread:
    """Stands for a thread as long as it lives; operating systems give its number to the next one."""

    __slots__ = ("__weakref__", "ident")

    def __init__(self) -> None:
        self.ident = get_ident()


class _Here(threading.local):
    thread = _Thread()  # nobody's: the collector may run cursors' __del__ while this thread's own is being made

    def __init__(self) -> None:
        self.thread = _Thread()


_here = _Here()


class _Last:
    """The last result of a thread whose turn is over, and the count that affected_rows() shows of it."""

    __slots__ = ("affected_rows", "is_fresh", "result")

    affected_rows: int
    is_fresh: bool
    result: Result | None

    def __init__(self, result: Result | None, affected_rows: int, is_fresh: bool) -> None:
        self.result = result
        self.affected_rows = affected_rows
        self.is_fresh = is_fresh  # no cursor has picked it up yet


class Shared(Tracked[C]):
    """A connection whose threads take turns.

    Invariants: `_turn` is held by a thread while it is inside of a call that uses the wire, and by nobody in between;
    `_flight` is RESULT_OPEN between turns while `_open` has rows or results that are still on the wire, and IN_FLIGHT
    between turns only after an interruption, when the wire is good for nothing.
    """

    __slots__ = ("_alarms", "_by", "_lasts", "_leftovers", "_picked", "_turn")

    _alarms: "list[threading.Lock]"  # one for each thread that waits for the open result
    _by: _Thread | None  # whose statement was the last one
    _lasts: "WeakKeyDictionary[_Thread, _Last] | None"  # of the other threads, once there are any
    _leftovers: "list[Callable[[], object]]"  # what the end of the turn sets off; see when_out()
    _picked: Result | None  # the last result that a cursor has got
    _turn: Any  # an RLock: it tells a thread's own turn from others', whatever interrupts the bookkeeping

    def start_alone(self) -> None:
        """Begin with a free wire and no thread known."""
        self._turn = threading.RLock()
        self._alarms = []  # lists, of which most stay empty: a deque takes ten times the memory
        self._leftovers = []
        self._by = None
        self._lasts = None
        self._picked = None
        self._flight = LANDED
        self._open = None
        self._statement = TOUCHED

    def start_wire(self) -> None:
        """Begin on a new wire; the turn is the caller's."""
        self._flight = LANDED
        self._open = None
        self._statement = TOUCHED

    # Turns

    def take_turn(self, work: Callable[..., Any], *args: Any) -> Any:
        """Call `work(*args)` while the wire is ours.

        Waits for other threads' calls, not for open results: see `wait_for_result()`. Raises LeaseBusy after
        `turn_timeout()` seconds. A turn within a turn of the same thread (a signal handler's, a converter's) is begun
        at once: `work` must look at `_flight`.
        """
        turn = self._turn
        before = self._flight
        is_held = False
        try:
            if not turn.acquire(False):
                self._wait_for_turn()
            is_held = True
            answer = work(*args)
        except BaseException as error:
            self._fail_turn(error, is_held, before)
            raise
        turn.release()
        if self._leftovers or self._alarms:
            self._end_turn()
        return answer

    def turn_timeout(self) -> float | None:
        """How long to wait for a turn, in seconds."""
        raise NotImplementedError

    def _wait_for_turn(self, deadline: float | None = None) -> None:
        started = time.monotonic()
        timeout = self.turn_timeout() if deadline is None else max(0.0, deadline - started)
        try:
            has_come = self._turn.acquire(timeout=-1 if timeout is None else min(timeout, threading.TIMEOUT_MAX))
        except BaseException:  # an exception from outside, delivered after the wait: the turn is ours, if it has come
            if self._turn._is_owned():
                self._turn.release()
            raise
        if not has_come:
            raise self._busy(time.monotonic() - started, "a statement")

    def _busy(self, waited: float, what: str) -> LeaseBusy:
        by = self._by
        of = f" of thread {by.ident}" if by is not None else ""
        return LeaseBusy(_OUT_OF_SYNC, f"the shared connection was busy for {waited:.1f} s with {what}{of}")

    def _fail_turn(self, error: BaseException, is_held: bool, before: int) -> None:
        """End a turn by an exception; tell a connection that was closed under our hands as what it is.

        An exception from outside may have come between taking the turn and noting that. Only a turn within a turn,
        of which there is one in mid-command, must then be left alone: that it is held is the outer one's doing.
        """
        turn = self._turn
        was_closed = self._sock is None  # asked while the turn is ours: another thread may connect it again
        if is_held:
            if self._flight == PREPARING and before != PREPARING:
                self._flight = LANDED  # nothing was sent
            if turn._is_owned():
                turn.release()
        elif before in (LANDED, RESULT_OPEN):
            while turn._is_owned():
                turn.release()
        if self._leftovers or self._alarms:
            self._end_turn()
        if isinstance(error, AttributeError | ValueError) and was_closed:
            raise err.OperationalError(CR.CR_SERVER_LOST, CLOSED_MEANWHILE) from None

    def _end_turn(self) -> None:
        """Do what was left to whoever ends the turn, and wake those who wait for a result that is not open any more."""
        self._do_leftovers()
        if self._flight != RESULT_OPEN:
            self.ring()

    def when_out(self, act: Callable[[], object]) -> None:
        """Call `act` when no thread is inside of a call on the wire any more: now, or at the end of the turn."""
        self._leftovers.append(act)
        turn = self._turn
        if turn.acquire(False):
            turn.release()
            self._do_leftovers()

    def _do_leftovers(self) -> None:
        while self._leftovers:
            try:
                act = self._leftovers.pop(0)
            except IndexError:  # another thread was faster
                return
            act()

    # Open results

    def wait_for_result(self) -> None:
        """Make the wire free for a command, in a turn: finish the open result, or wait until nobody wants it any more.

        The calling thread's own result is finished, as PyMySQL does it. Another thread's keeps its owner's rights: if
        it is buffered, what is left is read into memory; if not, we let go of the turn until it is read, closed or
        abandoned, for up to `turn_timeout()` seconds, and raise LeaseBusy then.

        Raises OperationalError 2014 within another command of this very thread, and after an interrupted one.
        """
        timeout = self.turn_timeout()
        started = time.monotonic()
        deadline = None if timeout is None else started + timeout
        while self._flight == RESULT_OPEN and self._sock:
            result = self._open
            if result is None or result.abandoned or self._by is _here.thread:
                self.finish_results()
                return
            if not result.is_unbuffered:
                self._keep_results(result, deadline, started)
                return
            self._sleep_outside(result, deadline, started)
        if not self._sock:  # closed while we waited
            raise err.InterfaceError(0, "")
        if self._flight:
            text = "Commands out of sync; this thread is in the middle of another command, or was interrupted in it"
            raise err.OperationalError(_OUT_OF_SYNC, text)

    def _sleep_outside(self, result: Result, deadline: float | None, started: float) -> None:
        """Let go of the turn until a result is not open any more; the turn is ours again afterwards."""
        alarm = threading.Lock()
        alarm.acquire()
        self._alarms.append(alarm)
        if result.abandoned or not self._sock:  # after we had looked, and before the alarm was set
            return
        self._turn.release()
        self._do_leftovers()
        left = -1.0 if deadline is None else min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
        is_over = not alarm.acquire(timeout=left)
        self._wait_for_turn(None if deadline is None else max(deadline, time.monotonic() + 0.01))
        if is_over and self._flight == RESULT_OPEN and self._open is result and not result.abandoned:
            raise self._busy(time.monotonic() - started, "an unread result")

    def ring(self) -> None:
        """Wake all who wait for the open result. Callable from __del__."""
        while self._alarms:
            try:
                self._alarms.pop(0).release()
            except IndexError:  # another thread was faster
                return

    def finish_results(self) -> None:
        """Read what is left of the open result and of those behind it, and forget it; in a turn."""
        raise NotImplementedError

    def _keep_results(self, result: Result, deadline: float | None, started: float) -> None:
        """Read the results behind another thread's into memory, for its cursor."""
        last = result
        while last.follows:
            if not self.arrives(deadline):
                raise self._busy(time.monotonic() - started, "an unread result")
            self._flight = IN_FLIGHT
            try:
                following: Result | err.MySQLError = self.read_reply()
            except err.MySQLError as error:
                if self._flight == IN_FLIGHT:  # not the server's word, but the end of the wire
                    raise
                following = error
            last.following = following
            if not isinstance(following, Result):
                break
            last.follows = False
            last = following
        self.land()

    def arrives(self, deadline: float | None) -> bool:
        """Wait until something can be read, or `deadline` (monotonic seconds); say which."""
        raise NotImplementedError

    def _take_kept(self, own: _Last) -> int:
        """Go on to the next result of a thread for which others have read it."""
        assert own.result is not None
        following, own.result.following = own.result.following, None
        own.result.has_next = 0
        if not isinstance(following, Result):
            assert following is not None
            raise following
        own.result, own.affected_rows, own.is_fresh = following, following.affected_rows or 0, True
        return own.affected_rows

    # The last result, of each thread

    def change_thread(self) -> None:
        """Keep the last result of the thread that had the wire before; in a turn, before a command."""
        if self._by is not None:
            result = self.__dict__["_result"]
            is_fresh = result is not None and result is not self._picked
            if self._lasts is None:
                self._lasts = WeakKeyDictionary()
            self._lasts[self._by] = _Last(result, self._affected_rows, is_fresh)
        self._by = _here.thread

    @property
    def _result(self) -> Result | None:
        """The result that PyMySQL's cursors pick up after executing: the calling thread's.

        Else an open one: a thread may go on with what another has begun.
        """
        last: Result | None = self.__dict__["_result"]
        here = _here.thread
        if self._by is here or self._by is None:
            self._picked = last
            return last
        own = self._last_of(here)
        if own is None:
            return self._open if self._flight == RESULT_OPEN else last
        if own.is_fresh or self._flight != RESULT_OPEN or (own.result is not None and own.result.following is not None):
            own.is_fresh = False
            return own.result
        return self._open

    @_result.setter
    def _result(self, result: Result | None) -> None:
        self.__dict__["_result"] = result

    def own_last(self) -> _Last | None:
        """Return what is kept of the calling thread's last statement, or None: it was the connection's last, too."""
        here = _here.thread
        return None if self._by is here else self._last_of(here)

    def _last_of(self, thread: _Thread) -> _Last | None:
        lasts = self._lasts
        return None if lasts is None else lasts.get(thread)

    def affected_rows(self) -> int:
        """Return the rows that the calling thread's last statement affected, else the connection's last."""
        own = self.own_last()
        return self._affected_rows if own is None else own.affected_rows

    def insert_id(self) -> Any:
        """Return the insert id of the calling thread's last statement, else of the connection's last."""
        own = self.own_last()
        result = self.__dict__["_result"] if own is None else own.result
        return result.insert_id if result else 0
