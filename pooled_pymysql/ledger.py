"""Pure bookkeeping of one pool: who holds what, who waits, what is being opened, and when to try again.

No I/O, no lock, no thread and no clock in here: the pool calls every method under its one lock, passes `now` in
(seconds of a monotonic clock) and does outside the lock what the method returns.
"""

import enum
from bisect import insort
from collections import Counter, OrderedDict, deque
from operator import attrgetter
from typing import Any, Generic, Protocol, TypeVar

from .exceptions import PoolClosed, PoolFull

FIRST_DELAY = 0.05  # seconds before another session is opened, after the second failure in a row or when it is full
LONGEST_DELAY = 0.8  # it doubles up to this: a server that is back is noticed within a second


_TIMES_AS_LONG = 3  # as the last opening that went well may one take before it is overdue,
_LEAST_PATIENCE, _MOST_PATIENCE = 0.25, 1.0  # but at least and at most so many seconds
_MOST_OVERDUE = 3  # times opening_limit

_PAUSE_SHARE, _LEAST_PAUSE, _LONGEST_PAUSE = 0.25, 0.002, 0.1  # of what an opening took; in seconds

_GRACE = 0.2  # seconds beyond its time limit before an opening is given up: as a rule it ends itself, and tells more

_PAST = float("-inf")


class Pooled(Protocol):
    """What the ledger reads and writes of a session."""

    end_reason: str  # why it is closed when `expires_at` has come
    expires_at: float  # seconds of the monotonic clock
    idle_limit: float  # seconds after `asked_at` or `idle_since` at which its server might end it
    idle_since: float  # when it was last given back
    asked_at: float  # when it was last validated
    owed: list[Any]  # replies that nobody has read yet
    validate_at: float  # not to be used from then on without asking the server first


S = TypeVar("S", bound=Pooled)


def _over_by_itself(session: Pooled, now: float) -> str | None:
    """Return why a session must be closed, however many there are."""
    if now >= session.expires_at:
        return session.end_reason
    if now - max(session.idle_since, session.asked_at) >= session.idle_limit:
        return "wait_timeout"
    return None


class NotWanted(Exception):
    """A session that was opened has no place in the pool any more."""


class WaiterState(enum.Enum):
    NEW = enum.auto()  # not in a queue yet
    WAITING = enum.auto()  # in the ledger's queue
    GIVEN_SESSION = enum.auto()  # owns `session`, which the ledger counts as in use
    REFUSED = enum.auto()  # gets nothing: `error` says why, or else the pool was closed
    GONE = enum.auto()  # gave up before anything was given


class Waiter(Generic[S]):
    """One caller that waits; the pool subclasses it with something that can be waited on."""

    __slots__ = ("error", "session", "state")

    state: WaiterState

    def __init__(self) -> None:
        self.state = WaiterState.NEW
        self.session: S | None = None
        self.error: Exception | None = None

    def _move(self, state: WaiterState) -> None:
        expected = WaiterState.NEW if state is WaiterState.WAITING else WaiterState.WAITING
        if self.state is not expected:
            raise RuntimeError(f"a waiter cannot go from {self.state.name} to {state.name}")
        self.state = state


class Opening:
    """A session that is being opened. Counted until it is told how that ended."""

    __slots__ = ("due", "end_reason", "is_running", "since")

    due: float
    end_reason: str
    is_running: bool
    since: float

    def __init__(self, now: float, due: float) -> None:
        self.since = now
        self.due = due  # when it is given up: a look-up of an address cannot be interrupted
        self.is_running = False  # somebody has begun with it
        self.end_reason = ""  # why the session is not wanted any more: drain() came, or it was given up


class Ledger(Generic[S]):
    """The counts and queues of one pool.

    Invariants, which `check()` asserts:
    - a session is in one place: idle, owing or in use;
    - a waiter waits only while nothing is idle or owing;
    - a closed ledger holds nothing idle or owing and nobody waiting.
    """

    __slots__ = (
        "closed", "closed_by_reason", "failure", "failures", "full", "idle", "in_use", "leases", "max_size",
        "max_waiting", "min_size", "opened", "opening_limit", "opening_took", "openings", "owing", "pause_until",
        "retry_at", "timeouts", "waiting", "watching",
    )  # fmt: skip

    closed: bool
    failures: int
    full: int
    leases: int
    max_size: int
    max_waiting: int | None
    min_size: int
    opened: int
    opening_limit: int
    opening_took: float
    pause_until: float
    retry_at: float
    timeouts: int

    def __init__(self, min_size: int, max_size: int, max_waiting: int | None, opening_limit: int) -> None:
        self.min_size = min_size
        self.max_size = max_size
        self.max_waiting = max_waiting
        self.opening_limit = opening_limit
        self.idle: list[S] = []  # a stack: the warmest session is on top
        self.owing: deque[S] = deque()  # given back, but the server has yet to answer what restores them
        self.in_use: set[S] = set()  # strong references: a dropped lease must not take its session along
        self.openings: set[Opening] = set()
        self.waiting: OrderedDict[Waiter[S], None] = OrderedDict()  # first come, first served; O(1) to leave
        # Callers who hold a session that owes and would rather have another; they came before all who wait.
        self.watching: OrderedDict[Waiter[S], None] = OrderedDict()
        self.failure: Exception | None = None  # of the last opening, if it failed
        self.failures = 0  # openings that failed since the last one that did not
        self.retry_at = 0.0
        self.opening_took = 1.0  # seconds, of the last opening that went well
        self.pause_until = 0.0  # until then those who wait are left to the sessions that were just opened
        self.closed = False
        self.leases = 0
        self.opened = 0
        self.timeouts = 0
        self.full = 0
        self.closed_by_reason: Counter[str] = Counter()

    @property
    def size(self) -> int:
        return len(self.openings) + len(self.idle) + len(self.owing) + len(self.in_use)

    # Taking

    def take(self) -> S | None:
        """Move the warmest idle session to in use, or return None when there is none."""
        if not self.idle:
            if self.closed:
                raise PoolClosed
            return None
        session = self.idle.pop()
        if session.owed and self.idle:
            session = self._prefer_settled(session)
        self.in_use.add(session)
        self.leases += 1
        return session

    def _prefer_settled(self, top: S) -> S:
        """Return the warmest idle session that owes nothing, if there is one, in the place of the top one."""
        for position in range(len(self.idle) - 1, -1, -1):
            if not self.idle[position].owed:
                settled = self.idle.pop(position)
                self.idle.append(top)
                return settled
        return top

    def take_owing(self) -> S | None:
        """Move the session that has been owing longest to in use, or return None; a lease unless it is put back."""
        if not self.owing:
            return None
        session = self.owing.popleft()
        self.in_use.add(session)
        self.leases += 1
        return session

    def take_stale(self, now: float) -> list[S]:
        """Move the idle sessions that must be validated to in use; a lease each unless they are put back."""
        stale = [session for session in self.idle if now >= session.validate_at]
        if stale:
            self.idle[:] = [session for session in self.idle if now < session.validate_at]
            self.in_use.update(stale)
            self.leases += len(stale)
        return stale

    def put_back(self, session: S, *, owing: bool) -> Waiter[S] | None:
        """Put back a session that was taken to look at; the waiter returned, if any, has it now."""
        self.in_use.remove(session)
        self.leases -= 1
        waiter = self._next(owing=owing)
        if waiter is not None:
            return self._give(waiter, session)
        if owing:
            self.owing.append(session)
        else:
            insort(self.idle, session, key=attrgetter("idle_since"))  # being looked at does not make it warmer
        return None

    # Waiting

    def wait(self, waiter: Waiter[S], now: float) -> None:
        """Put a caller at the end of the queue; one who would wait for a server that is down is refused at once.

        Those for whom there is room do not count as waiting.
        """
        if self.max_waiting is not None:
            room = self.max_size - self.size + len(self.openings)
            if len(self.waiting) - max(0, room) >= self.max_waiting:
                self.full += 1
                raise PoolFull
        waiter._move(WaiterState.WAITING)
        if self.failure is not None and now < self.retry_at and self._is_hopeless():
            waiter.error = self.failure
            waiter._move(WaiterState.REFUSED)
            return
        self.waiting[waiter] = None

    def requeue(self, waiter: Waiter[S]) -> None:
        """Put a waiter back to the front if an interruption took it out of the queue and gave it nothing."""
        if waiter.state is not WaiterState.WAITING or waiter in self.waiting:
            return
        if self.closed:
            waiter._move(WaiterState.REFUSED)
        elif self.idle or self.owing:
            self._give(waiter, self.idle.pop() if self.idle else self.owing.popleft())
        else:
            self.waiting[waiter] = None
            self.waiting.move_to_end(waiter, last=False)

    def watch(self, waiter: Waiter[S]) -> None:
        """Let a caller who holds a session that owes have the next one that comes, before all who wait."""
        waiter._move(WaiterState.WAITING)
        self.watching[waiter] = None

    def give_up(self, waiter: Waiter[S]) -> bool:
        """Take a caller out of its queue; False when something was given to it in the meantime."""
        if waiter.state is not WaiterState.WAITING:
            return False
        if waiter in self.watching:
            del self.watching[waiter]
        elif waiter in self.waiting:
            del self.waiting[waiter]
            self.timeouts += 1
        waiter._move(WaiterState.GONE)
        return True

    # Opening

    def begin_openings(self, now: float, time_limit: float, *, at_once: bool = True) -> list[Opening]:
        """Count as many sessions as opening as callers and min_size want, as far as the limits allow.

        `time_limit`: seconds after which an opening is to be given up. One that takes much longer than the last that
        went well is overdue: it is not counted on, so that others are opened beside it.

        `at_once`: something is new, a caller or room. Otherwise those who wait are left for a while to the sessions
        that were just opened: where opening is slow, these may have served all of them before others are there.
        """
        begun: list[Opening] = []
        if self.closed or now < self.retry_at:
            return begun
        patience = self.patience()
        under_way = sum(opening.since + patience > now for opening in self.openings)
        overdue = len(self.openings) - under_way
        wanted = len(self.waiting) + len(self.watching) if at_once or now >= self.pause_until else 0
        demand = max(wanted - under_way, self.min_size - self.size)
        limit = 1 if self.failures else self.opening_limit  # one probe, until it is known to be back
        limit -= max(0, overdue - _MOST_OVERDUE * self.opening_limit)
        for _ in range(min(demand, limit - under_way, self.max_size - self.size)):
            opening = Opening(now, now + time_limit + _GRACE)
            self.openings.add(opening)
            begun.append(opening)
        return begun

    def patience(self) -> float:
        """Return the seconds that an opening may take before it is overdue."""
        return max(_LEAST_PATIENCE, min(_MOST_PATIENCE, _TIMES_AS_LONG * self.opening_took))

    def late_openings(self, now: float) -> list[Opening]:
        """Return the openings that must be given up."""
        return [opening for opening in self.openings if now >= opening.due]

    def next_look(self, now: float) -> float | None:
        """Return the seconds until something about openings is due, or None."""
        wanted = self.waiting or self.watching or self.size < self.min_size
        if not wanted and not self.openings:
            return None
        patience = self.patience()
        moments = [opening.due for opening in self.openings]
        if wanted:
            moments += [due for opening in self.openings if (due := opening.since + patience) > now]
            moments += [moment for moment in (self.retry_at, self.pause_until) if moment > now]
        return max(0.0, min(moments) - now) if moments else None

    def end_opening(self, opening: Opening, session: S, now: float) -> Waiter[S] | None:
        """Give a session that was opened to the oldest waiter, or make it idle.

        Raises NotWanted when the pool was closed, drained or made smaller meanwhile.
        """
        self.openings.discard(opening)
        self.opened += 1
        self.opening_took = now - opening.since
        self.failures = 0
        self.failure = None
        self.retry_at = 0.0
        if self.closed or opening.end_reason or self.size >= self.max_size:
            self.closed_by_reason["pool closed" if self.closed else opening.end_reason or "resized"] += 1
            raise NotWanted
        pause = min(_LONGEST_PAUSE, self.opening_took * _PAUSE_SHARE)
        self.pause_until = now + pause if pause >= _LEAST_PAUSE else 0.0
        session.idle_since = now
        waiter = self._next(owing=False)
        if waiter is not None:
            return self._give(waiter, session)
        self.idle.append(session)
        return None

    def fail_opening(
        self, opening: Opening, error: Exception | None, now: float, chance: float, *, is_full: bool
    ) -> list[Waiter[S]]:
        """Note that an opening failed (None: was given up), and return the waiters that are refused.

        `chance`, from 0 to 1, is what the delay is shortened by. `is_full`: the server said that it has too many
        connections; who waits may still get one that is given back.
        """
        if opening not in self.openings:  # given up long ago
            return []
        self.openings.remove(opening)
        opening.end_reason = "opened too late"
        if error is None:
            return []
        self.failures += 1
        self.failure = error
        if self.failures > 1 or is_full:
            delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(max(0, self.failures - 2), 10))
            self.retry_at = now + delay * (1 - chance / 2)
        if not (self.in_use or self.openings) or (self.failures > 1 and not is_full):
            return self._refuse(error, None)
        return [] if is_full else self._refuse(error, 1)

    def lost_hope(self, now: float) -> list[Waiter[S]]:
        """Return the waiters that are refused, now that the last session is gone and no other can be opened yet."""
        if self.failure is not None and now < self.retry_at and self._is_hopeless():
            return self._refuse(self.failure, None)
        return []

    def _is_hopeless(self) -> bool:
        """Say whether nothing can come: there is no session, and none is being opened."""
        return not self.in_use and not self.openings and not self.idle and not self.owing

    def _refuse(self, error: Exception, most: int | None) -> list[Waiter[S]]:
        refused = list(self.waiting)[:most]
        for waiter in refused:
            del self.waiting[waiter]
            waiter.error = error
            waiter._move(WaiterState.REFUSED)
        return refused

    def abandoned_openings(self, now: float, patience: float) -> list[Opening]:
        """Return openings that nobody has begun with for `patience` s: an interruption came between."""
        return [opening for opening in self.openings if not opening.is_running and now - opening.since > patience]

    # Giving back

    def release(self, session: S, now: float, *, owing: bool = False) -> Waiter[S] | None:
        """Take a session back; the waiter returned, if any, has it now. `owing`: it may not be used at once."""
        self.in_use.remove(session)
        session.idle_since = now
        if not owing and not self.waiting and not self.watching:  # as a rule
            self.idle.append(session)
            return None
        waiter = self._next(owing=owing)
        if waiter is not None:
            return self._give(waiter, session)
        (self.owing if owing else self.idle).append(session)
        return None

    def retire(self, session: S, reason: str) -> None:
        """Forget a session in use, which the pool closes."""
        self.in_use.remove(session)
        self.closed_by_reason[reason] += 1

    # Ends

    def expire(self, now: float, idle_timeout: float | None) -> list[tuple[S, str]]:
        """Remove the idle sessions whose time is over; min_size of them survive idle_timeout."""
        over = {session: reason for session in self.idle if (reason := _over_by_itself(session, now))}
        spare = self.size - self.min_size - len(over)
        keep: list[S] = []
        gone: list[tuple[S, str]] = []
        for session in self.idle:  # coldest first
            if session in over:
                gone.append((session, over[session]))
            elif idle_timeout is not None and spare > 0 and now - session.idle_since >= idle_timeout:
                gone.append((session, "idle_timeout"))
                spare -= 1
            else:
                keep.append(session)
        if gone:
            self.idle[:] = keep
            self.closed_by_reason.update(reason for _, reason in gone)
        return gone

    def drain(self) -> list[S]:
        """Let no session that is open or being opened be used again; return those to close now."""
        gone = [*self.idle, *self.owing]
        self.idle.clear()
        self.owing.clear()
        self.closed_by_reason["drained"] += len(gone)
        for session in self.in_use:
            session.expires_at, session.end_reason = _PAST, "drained"
        for opening in self.openings:
            opening.end_reason = "drained"
        return gone

    def resize(self, min_size: int, max_size: int) -> list[S]:
        """Set the sizes; return the sessions to close now. What is too much and leased goes when it is given back."""
        self.min_size, self.max_size = min_size, max_size
        gone: list[S] = []
        while self.size > max_size and (self.idle or self.owing):
            gone.append(self.idle.pop(0) if self.idle else self.owing.pop())
        self.closed_by_reason["resized"] += len(gone)
        staying = [session for session in self.in_use if session.expires_at != _PAST]
        for session in staying[: max(0, len(staying) - max_size)]:
            session.expires_at, session.end_reason = _PAST, "resized"
        return gone

    def distrust(self) -> bool:
        """Have every idle session validated before it is used; say whether there is any."""
        for session in self.idle:
            session.validate_at = _PAST
        return bool(self.idle)

    def close(self) -> tuple[list[S], list[Waiter[S]]]:
        """Refuse everything from now on; return the idle sessions to close and the waiters to wake."""
        self.closed = True
        idle = [*self.idle, *self.owing]
        self.idle.clear()
        self.owing.clear()
        waiters = [*self.watching, *self.waiting]
        self.watching.clear()
        self.waiting.clear()
        for waiter in waiters:
            waiter._move(WaiterState.REFUSED)
        self.closed_by_reason["pool closed"] += len(idle)
        return idle, waiters

    def check(self) -> None:
        """Assert the invariants (for tests)."""
        assert len(set(self.idle)) == len(self.idle)
        assert not self.in_use.intersection([*self.idle, *self.owing])
        assert not set(self.owing).intersection(self.idle)
        assert all(waiter.state is WaiterState.WAITING for waiter in (*self.watching, *self.waiting))
        assert len(self.watching) <= len(self.in_use)
        if self.watching:
            assert not self.idle
        if self.waiting:
            assert not self.idle
            assert not self.owing
            assert not self.closed
        if self.closed:
            assert not self.idle
            assert not self.owing

    def _next(self, *, owing: bool) -> Waiter[S] | None:
        """Take the first caller out of the queues."""
        # Whoever watches holds a session that owes already, and has no use for another of that kind.
        queue = self.watching if self.watching and not owing else self.waiting
        return queue.popitem(last=False)[0] if queue else None

    def _give(self, waiter: Waiter[S], session: S) -> Waiter[S]:
        waiter.session = session  # first: the caller may look at the state without the pool's lock
        waiter._move(WaiterState.GIVEN_SESSION)
        self.in_use.add(session)
        self.leases += 1
        return waiter
