"""Threads that share one connection: whose turn on the wire it is, and whose result is whose (PEP 249, threadsafety 2).

A command and the reading of its reply are one turn. A reply that is not read to its end (an unbuffered result, more
results) keeps the turn: the result owns it, not the thread, so one thread may execute and another fetch.
"""

import sys
import threading
import time
from threading import get_ident
from typing import Any

from pymysql import err
from pymysql.constants import CR

from .exceptions import LeaseBusy
from .replies import LANDED, RESULT_OPEN, Result, Tracked
from .tracking import TOUCHED

_MANY_THREADS = 64


class Shared(Tracked):
    """A connection whose threads take turns.

    Invariants: `_turn` is locked while a command or its reply is under way, and while a result is open that nobody has
    abandoned; `_owner` is the thread that last worked in that turn, and 0 while `_turn` is free.
    """

    __slots__ = ("_owner", "_results", "_thread", "_turn")

    _owner: int
    _results: (
        dict[int, tuple[Result | None, bool]] | None
    )  # thread → last result, and whether it is yet to be picked up
    _thread: int  # the first thread that executed
    _turn: threading.Lock

    def start_alone(self) -> None:
        """Begin with a free wire and no thread known."""
        self._turn = threading.Lock()
        self._owner = 0
        self._thread = 0
        self._results = None
        self._flight = LANDED
        self._statement = TOUCHED

    # Turns

    def take_turn(self) -> None:
        """Wait until the wire is ours: the result that owns it was read, closed or abandoned.

        A thread whose own result is open keeps its turn. Raises LeaseBusy after `turn_timeout()` seconds, and
        OperationalError 2014 when this very thread is in the middle of a command: a signal handler, or a converter
        that queries.
        """
        if not self._turn.acquire(False):
            self._wait_for_turn()
        me = get_ident()
        self._owner = me
        if me != self._thread:
            self._meet(me)

    def end_turn(self) -> None:
        """Let the next one work, if the turn is this thread's and no result keeps it."""
        if self._flight != RESULT_OPEN and self._owner == get_ident():
            self._owner = 0
            self._turn.release()

    def adopt_turn(self) -> None:
        """Go on with a turn that an open result keeps, whichever thread began it."""
        self._owner = get_ident()

    def fail_turn(self, error: BaseException) -> None:
        """End a turn by an exception; tell a connection that was closed under our hands as what it is."""
        self.end_turn()
        if isinstance(error, AttributeError | ValueError) and self._sock is None:
            text = "Lost connection to MySQL server during query (closed by another thread)"
            raise err.OperationalError(CR.CR_SERVER_LOST, text) from None

    def abandon_turn(self) -> None:
        """Let the next one work, who reads what is left of the open result. Callable from __del__."""
        if self._owner:
            self._owner = 0
            self._turn.release()

    def turn_timeout(self) -> float | None:
        """How long to wait for a turn, in seconds."""
        raise NotImplementedError

    def _wait_for_turn(self) -> None:
        if self._owner == get_ident():
            if self._flight == RESULT_OPEN:
                return
            raise err.OperationalError(
                CR.CR_COMMANDS_OUT_OF_SYNC, "Commands out of sync; this thread is in the middle of another command"
            )
        started = time.monotonic()
        timeout = self.turn_timeout()
        if self._turn.acquire(timeout=-1 if timeout is None else min(timeout, threading.TIMEOUT_MAX)):
            return
        what = "an unread result" if self._flight == RESULT_OPEN else "a statement"
        waited = time.monotonic() - started
        raise LeaseBusy(
            CR.CR_COMMANDS_OUT_OF_SYNC,
            f"the shared connection was busy for {waited:.1f} s with {what} of thread {self._owner}",
        )

    # Results

    def _meet(self, me: int) -> None:
        """Note that another thread has come; from the second on, each has a last result of its own."""
        if not self._thread:
            self._thread = me
        elif self._results is None:
            self._results = {self._thread: (self.__dict__["_result"], True)}
        elif len(self._results) > _MANY_THREADS:
            alive = sys._current_frames()
            self._results = {thread: kept for thread, kept in self._results.items() if thread in alive}

    @property
    def _result(self) -> Result | None:
        """The result that PyMySQL's cursors pick up after executing: the calling thread's.

        Read before `_results` is: while that is None, no other thread has had a turn.
        """
        last: Result | None = self.__dict__["_result"]
        results = self._results
        if results is None:
            return last
        me = get_ident()
        if me not in results:
            return last
        own, is_fresh = results[me]
        if is_fresh:
            results[me] = (own, False)
            return own
        return last if self._flight == RESULT_OPEN else own

    @_result.setter
    def _result(self, result: Result | None) -> None:
        self.__dict__["_result"] = result
        results = self._results
        if results is not None:
            results[get_ident()] = (result, True)

    def own_result(self) -> Any:
        """Return the calling thread's last result, else the connection's."""
        last = self.__dict__["_result"]
        results = self._results
        if results is None:
            return last
        own, _ = results.get(get_ident(), (last, False))
        return own
