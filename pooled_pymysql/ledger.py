"""Pure bookkeeping of one pool: who holds what, who waits, what may be opened.

No I/O, no lock, no thread and no clock in here: the pool calls every method under its one lock, passes `now` in
(seconds of a monotonic clock) and does outside the lock what the method returns.
"""

import enum
from collections import Counter, OrderedDict, deque
from typing import Any, Generic, Protocol, TypeVar

from .exceptions import PoolClosed, PoolFull


class Pooled(Protocol):
    """What the ledger reads and writes of a session."""

    expires_at: float  # when max_lifetime ends, seconds of the monotonic clock
    idle_since: float
    owed: list[Any]  # replies that nobody has read yet


S = TypeVar("S", bound=Pooled)


class WaiterState(enum.Enum):
    WAITING = enum.auto()  # in the ledger's queue
    GIVEN_SESSION = enum.auto()  # owns `session`, which the ledger counts as in use
    GIVEN_ROOM = enum.auto()  # may open one session; the ledger counts it as opening
    REFUSED = enum.auto()  # the pool was closed
    GONE = enum.auto()  # gave up before anything was given


class Waiter(Generic[S]):
    """One caller that waits; the pool subclasses it with something that can be waited on."""

    __slots__ = ("session", "state")

    def __init__(self) -> None:
        self.state = WaiterState.WAITING
        self.session: S | None = None

    def _move(self, state: WaiterState) -> None:
        if self.state is not WaiterState.WAITING:
            raise RuntimeError(f"a waiter cannot go from {self.state.name} to {state.name}")
        self.state = state


class Ledger(Generic[S]):
    """The counts and queues of one pool.

    Invariants, which `check()` asserts:
    - opening + idle + owing + in_use == size <= max_size;
    - a waiter waits only while nothing is idle or owing and nothing may be opened;
    - a closed ledger holds nothing idle or owing and nobody waiting.
    """

    __slots__ = (
        "closed", "closed_by_reason", "full", "idle", "in_use", "leases", "max_size", "max_waiting", "min_size",
        "opened", "opening", "owing", "timeouts", "waiting", "watching",
    )  # fmt: skip

    def __init__(self, min_size: int, max_size: int, max_waiting: int | None) -> None:
        self.min_size = min_size
        self.max_size = max_size
        self.max_waiting = max_waiting
        self.idle: list[S] = []  # a stack: the warmest session is on top
        self.owing: deque[S] = deque()  # given back, but the server has yet to answer what restores them
        self.in_use: set[S] = set()  # strong references: a dropped lease must not take its session along
        self.opening = 0
        self.waiting: OrderedDict[Waiter[S], None] = OrderedDict()  # first come, first served; O(1) to leave
        # Callers who hold a session that owes and would rather have another; they came before all who wait.
        self.watching: OrderedDict[Waiter[S], None] = OrderedDict()
        self.closed = False
        self.leases = 0
        self.opened = 0
        self.timeouts = 0
        self.full = 0
        self.closed_by_reason: Counter[str] = Counter()

    @property
    def size(self) -> int:
        return self.opening + len(self.idle) + len(self.owing) + len(self.in_use)

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

    def put_back(self, session: S, now: float, *, owing: bool) -> Waiter[S] | None:
        """Put back a session that was taken to look at; the waiter returned, if any, has it now."""
        self.leases -= 1
        return self.release(session, now, owing=owing)

    def reserve(self) -> bool:
        """Count one session as opening if there is room for it; say whether there was."""
        if self.closed:
            raise PoolClosed
        if self.size >= self.max_size:
            return False
        self.opening += 1
        return True

    def wait(self, waiter: Waiter[S]) -> None:
        """Put a caller at the end of the queue."""
        if self.max_waiting is not None and len(self.waiting) >= self.max_waiting:
            self.full += 1
            raise PoolFull
        self.waiting[waiter] = None

    def watch(self, waiter: Waiter[S]) -> None:
        """Let a caller who holds a session that owes have the next one that comes, before all who wait."""
        self.watching[waiter] = None

    def give_up(self, waiter: Waiter[S]) -> bool:
        """Take a caller out of its queue; False when something was given to it in the meantime."""
        if waiter.state is not WaiterState.WAITING:
            return False
        if waiter in self.watching:
            del self.watching[waiter]
        else:
            del self.waiting[waiter]
            self.timeouts += 1
        waiter._move(WaiterState.GONE)
        return True

    def opened_for_caller(self, session: S) -> None:
        """Count a session that was being opened as in use by the caller who opened it."""
        self.opening -= 1
        self.opened += 1
        self.in_use.add(session)
        self.leases += 1

    def opened_in_background(self, session: S, now: float) -> Waiter[S] | None:
        """Give a session that was opened on behalf of nobody to the oldest waiter, or make it idle."""
        self.opening -= 1
        self.opened += 1
        if self.closed:
            self.closed_by_reason["pool closed"] += 1
            raise PoolClosed
        return self._offer(session, now)

    def open_failed(self) -> Waiter[S] | None:
        """Give the room back; the waiter returned, if any, may open in its place."""
        self.opening -= 1
        return self._offer_room()

    def release(self, session: S, now: float, *, owing: bool = False) -> Waiter[S] | None:
        """Take a session back; the waiter returned, if any, has it now. `owing`: it may not be used at once."""
        self.in_use.remove(session)
        if not owing and not self.waiting and not self.watching:  # as a rule
            session.idle_since = now
            self.idle.append(session)
            return None
        return self._offer(session, now, owing=owing)

    def retire(self, session: S, reason: str) -> Waiter[S] | None:
        """Forget a session in use, which the pool closes; the waiter returned, if any, may open in its place."""
        self.in_use.remove(session)
        self.closed_by_reason[reason] += 1
        return self._offer_room()

    def expire(self, now: float, idle_timeout: float | None) -> list[tuple[S, str]]:
        """Remove the idle sessions whose time is over; min_size of them survive idle_timeout."""
        keep: list[S] = []
        gone: list[tuple[S, str]] = []
        spare = self.size - self.min_size
        spare -= sum(now >= session.expires_at for session in self.idle)
        for session in self.idle:  # coldest first
            if now >= session.expires_at:
                gone.append((session, "max_lifetime"))
            elif idle_timeout is not None and spare > 0 and now - session.idle_since >= idle_timeout:
                gone.append((session, "idle_timeout"))
                spare -= 1
            else:
                keep.append(session)
        if gone:
            self.idle[:] = keep
            self.closed_by_reason.update(reason for _, reason in gone)
        return gone

    def missing(self) -> int:
        """How many sessions must be opened to reach min_size."""
        return 0 if self.closed else max(0, self.min_size - self.size)

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
        assert self.opening >= 0
        assert self.size <= self.max_size
        assert len(set(self.idle)) == len(self.idle)
        assert not self.in_use.intersection([*self.idle, *self.owing])
        assert not set(self.owing).intersection(self.idle)
        assert all(waiter.state is WaiterState.WAITING for waiter in self.watching)
        assert len(self.watching) <= len(self.in_use)
        if self.watching:
            assert not self.idle
        if self.waiting:
            assert not self.idle
            assert not self.owing
            assert self.size == self.max_size
            assert not self.closed
        if self.closed:
            assert not self.idle
            assert not self.owing
        assert all(waiter.state is WaiterState.WAITING for waiter in self.waiting)

    def _offer(self, session: S, now: float, *, owing: bool = False) -> Waiter[S] | None:
        # Whoever watches holds a session that owes already, and has no use for another of that kind.
        waiter = self._next(watching=not owing)
        if waiter is None:
            session.idle_since = now
            (self.owing if owing else self.idle).append(session)
            return None
        waiter._move(WaiterState.GIVEN_SESSION)
        waiter.session = session
        self.in_use.add(session)
        self.leases += 1
        return waiter

    def _offer_room(self) -> Waiter[S] | None:
        if self.size >= self.max_size:
            return None
        waiter = self._next(watching=True)
        if waiter is None:
            return None
        waiter._move(WaiterState.GIVEN_ROOM)
        self.opening += 1
        return waiter

    def _next(self, *, watching: bool) -> Waiter[S] | None:
        """Take the first caller out of the queues."""
        queue = self.watching if watching and self.watching else self.waiting
        return queue.popitem(last=False)[0] if queue else None
