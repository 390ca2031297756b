"""The bookkeeping of a pool, against a model of it, with integers for a clock."""

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pooled_pymysql.exceptions import PoolClosed, PoolFull
from pooled_pymysql.ledger import Ledger, Waiter, WaiterState

FOREVER = 10**9


class FakeSession:
    def __init__(self, expires_at: float = FOREVER) -> None:
        self.expires_at = expires_at
        self.owed: list[object] = []
        self.idle_since: float = -1


FakeLedger = Ledger[FakeSession]
FakeWaiter = Waiter[FakeSession]


class LedgerMachine(RuleBasedStateMachine):
    """Call the ledger's methods in every order that a pool may call them in, and keep the same books here."""

    @initialize(
        max_size=st.integers(1, 4),
        min_size=st.integers(0, 4),
        max_waiting=st.none() | st.integers(0, 3),
    )
    def start(self, max_size: int, min_size: int, max_waiting: int | None) -> None:
        self.max_waiting = max_waiting
        self.ledger: FakeLedger = Ledger(min(min_size, max_size), max_size, max_waiting)
        self.now = self.steps = 0
        self.idle: list[FakeSession] = []
        self.idle_since: dict[FakeSession, int] = {}
        self.owing: list[FakeSession] = []
        self.held: list[FakeSession] = []
        self.openings = 0
        self.queue: list[FakeWaiter] = []
        self.states: dict[FakeWaiter, tuple[WaiterState, FakeSession | None]] = {}
        self.closed = False
        self.leases = self.opened = self.timeouts = self.full = 0
        self.closed_by_reason: Counter[str] = Counter()

    # What the model says comes next

    def offer(self, session: FakeSession, owing: bool = False) -> FakeWaiter | None:
        """Give a session to the oldest waiter, or put it where it belongs."""
        if not self.queue:
            (self.owing if owing else self.idle).append(session)
            self.idle_since[session] = self.now
            return None
        waiter = self.queue.pop(0)
        self.held.append(session)
        self.leases += 1
        self.states[waiter] = (WaiterState.GIVEN_SESSION, session)
        return waiter

    def offer_room(self) -> FakeWaiter | None:
        """Let the oldest waiter open a session."""
        if not self.queue:
            return None
        waiter = self.queue.pop(0)
        self.openings += 1
        self.states[waiter] = (WaiterState.GIVEN_ROOM, None)
        return waiter

    def size(self) -> int:
        return len(self.idle) + len(self.owing) + len(self.held) + self.openings

    def has_room(self) -> bool:
        return self.size() < self.ledger.max_size

    # Callers

    @precondition(lambda self: not self.closed)
    @rule()
    def acquire(self) -> None:
        if self.idle:
            self.take()
        elif self.owing:
            self.take_owing()
        elif self.has_room():
            self.reserve()
        else:
            self.wait()

    @rule()
    def take(self) -> None:
        if self.closed:
            with pytest.raises(PoolClosed):
                self.ledger.take()
            return
        warmest = self.idle.pop() if self.idle else None
        assert self.ledger.take() is warmest
        if warmest is not None:
            self.held.append(warmest)
            self.leases += 1

    @rule()
    def take_owing(self) -> None:
        longest = self.owing.pop(0) if self.owing else None
        assert self.ledger.take_owing() is longest
        if longest is not None:
            self.held.append(longest)
            self.leases += 1

    @rule()
    def reserve(self) -> None:
        if self.closed:
            with pytest.raises(PoolClosed):
                self.ledger.reserve()
            return
        room = self.has_room()
        assert self.ledger.reserve() is room
        self.openings += room

    @precondition(lambda self: not (self.closed or self.idle or self.owing or self.has_room()))
    @rule()
    def wait(self) -> None:
        waiter: FakeWaiter = Waiter()
        if self.max_waiting is not None and len(self.queue) >= self.max_waiting:
            self.full += 1
            with pytest.raises(PoolFull):
                self.ledger.wait(waiter)
            return
        self.ledger.wait(waiter)
        self.queue.append(waiter)
        self.states[waiter] = (WaiterState.WAITING, None)

    @precondition(lambda self: self.states)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(list(self.states)))
        was_waiting = waiter in self.queue
        assert self.ledger.give_up(waiter) is was_waiting
        if was_waiting:
            self.queue.remove(waiter)
            self.states[waiter] = (WaiterState.GONE, None)
            self.timeouts += 1

    # Opening

    @precondition(lambda self: self.openings)
    @rule(lifetime=st.integers(0, 20))
    def opened_for_caller(self, lifetime: int) -> None:
        session = FakeSession(self.now + lifetime)
        self.ledger.opened_for_caller(session)
        self.openings -= 1
        self.opened += 1
        self.leases += 1
        self.held.append(session)

    @precondition(lambda self: self.has_room() and not self.closed)
    @rule(count=st.integers(1, 3))
    def fill(self, count: int) -> None:
        for _ in range(count):
            if self.has_room():
                self.reserve()
                self.opened_in_background(10)

    @precondition(lambda self: self.openings)
    @rule(lifetime=st.integers(0, 20))
    def opened_in_background(self, lifetime: int) -> None:
        session = FakeSession(self.now + lifetime)
        self.openings -= 1
        self.opened += 1
        if self.closed:
            with pytest.raises(PoolClosed):
                self.ledger.opened_in_background(session, self.now)
            self.closed_by_reason["pool closed"] += 1
        else:
            self.check_gift(lambda: self.ledger.opened_in_background(session, self.now), self.offer(session))

    @precondition(lambda self: self.openings)
    @rule()
    def open_failed(self) -> None:
        self.openings -= 1
        self.check_gift(self.ledger.open_failed, self.offer_room())

    # Giving back

    @precondition(lambda self: self.held and not self.closed)
    @rule(data=st.data(), owing=st.booleans())
    def release(self, data: st.DataObject, owing: bool) -> None:
        session = data.draw(st.sampled_from(self.held))
        self.held.remove(session)
        self.check_gift(lambda: self.ledger.release(session, self.now, owing=owing), self.offer(session, owing=owing))

    @precondition(lambda self: self.held and not self.closed)
    @rule(data=st.data(), owing=st.booleans())
    def put_back(self, data: st.DataObject, owing: bool) -> None:
        session = data.draw(st.sampled_from(self.held))
        self.held.remove(session)
        self.leases -= 1
        self.check_gift(lambda: self.ledger.put_back(session, self.now, owing=owing), self.offer(session, owing=owing))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), reason=st.sampled_from(["lost", "pool closed"]))
    def retire(self, data: st.DataObject, reason: str) -> None:
        session = data.draw(st.sampled_from(self.held))
        self.held.remove(session)
        self.closed_by_reason[reason] += 1
        self.check_gift(lambda: self.ledger.retire(session, reason), self.offer_room())

    def check_gift(self, give: Callable[[], FakeWaiter | None], expected: FakeWaiter | None) -> None:
        """Assert that a method gives to the oldest waiter, or to nobody where the model has nobody."""
        assert give() is expected

    # Time and the end

    @rule(seconds=st.integers(0, 20), idle_timeout=st.none() | st.integers(0, 10))
    def expire(self, seconds: int, idle_timeout: int | None) -> None:
        self.now += seconds
        gone = dict(self.ledger.expire(self.now, idle_timeout))
        assert gone.keys() <= set(self.idle)
        self.idle = [session for session in self.idle if session not in gone]
        self.closed_by_reason.update(gone.values())

        def too_idle(session: FakeSession) -> bool:
            return idle_timeout is not None and self.now - self.idle_since[session] >= idle_timeout

        for session, reason in gone.items():
            too_old = self.now >= session.expires_at
            assert reason == "max_lifetime" if too_old else reason == "idle_timeout" and too_idle(session)
        size = self.size()
        if "idle_timeout" in gone.values():
            assert size >= self.ledger.min_size
        for session in self.idle:
            assert self.now < session.expires_at
            assert not too_idle(session) or size <= self.ledger.min_size

    @rule()
    def missing(self) -> None:
        expected = 0 if self.closed else max(0, self.ledger.min_size - self.size())
        assert self.ledger.missing() == expected

    @precondition(lambda self: self.steps > 10)
    @rule()
    def close(self) -> None:
        idle, waiters = self.ledger.close()
        assert idle == self.idle + self.owing
        assert waiters == self.queue
        for waiter in self.queue:
            self.states[waiter] = (WaiterState.REFUSED, None)
        self.closed_by_reason["pool closed"] += len(idle)
        self.idle, self.owing, self.queue, self.closed = [], [], [], True

    # After every step

    @invariant()
    def books_agree(self) -> None:
        self.steps += 1
        ledger = self.ledger
        ledger.check()
        assert (ledger.idle, list(ledger.owing)) == (self.idle, self.owing)
        assert [session.idle_since for session in self.idle] == [self.idle_since[one] for one in self.idle]
        assert ledger.in_use == set(self.held)
        assert len(self.held) == len(set(self.held))
        assert ledger.opening == self.openings
        assert ledger.size == self.size() <= ledger.max_size
        assert list(ledger.waiting) == self.queue
        assert ledger.closed is self.closed

    @invariant()
    def waiters_have_what_they_were_given(self) -> None:
        for waiter, (state, session) in self.states.items():
            assert waiter.state is state
            assert waiter.session is session

    @invariant()
    def counters_agree(self) -> None:
        ledger = self.ledger
        assert (ledger.leases, ledger.opened) == (self.leases, self.opened)
        assert (ledger.timeouts, ledger.full) == (self.timeouts, self.full)
        assert +ledger.closed_by_reason == +self.closed_by_reason
        assert ledger.opened - ledger.closed_by_reason.total() == self.size() - self.openings


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    phases=set(Phase) - {Phase.explain},  # which takes most of a minute here
)


def filled(idle: int, max_size: int = 4, min_size: int = 0, max_waiting: int | None = None) -> FakeLedger:
    """Return a ledger with idle sessions 0, 1, …: the last one is the warmest."""
    ledger: FakeLedger = Ledger(min_size, max_size, max_waiting)
    for _ in range(idle):
        assert ledger.reserve()
        ledger.opened_in_background(FakeSession(), 0)
    return ledger


def full(waiters: int) -> tuple[FakeLedger, FakeSession, list[FakeWaiter]]:
    """Return a ledger whose only session is in use, and who waits for it."""
    ledger = filled(1, max_size=1)
    session = ledger.take()
    assert session
    queue: list[FakeWaiter] = [Waiter() for _ in range(waiters)]
    for waiter in queue:
        ledger.wait(waiter)
    return ledger, session, queue


def test_warmest_session_is_taken_first() -> None:
    ledger = filled(3)
    coldest_first = list(ledger.idle)
    assert [ledger.take(), ledger.take(), ledger.take(), ledger.take()] == [*reversed(coldest_first), None]


def test_session_that_owes_longest_is_taken_first_and_never_by_take() -> None:
    ledger = filled(3)
    first, second, third = (ledger.take() for _ in range(3))
    for session in (first, second):
        assert session
        assert ledger.release(session, 0, owing=True) is None
    assert (ledger.take(), ledger.size) == (None, 3)
    assert [ledger.take_owing(), ledger.take_owing(), ledger.take_owing()] == [first, second, None]
    assert ledger.in_use == {first, second, third}


def test_session_that_is_put_back_was_not_leased() -> None:
    ledger = filled(1)
    session = ledger.take()
    assert session
    assert ledger.leases == 1
    ledger.put_back(session, 5, owing=True)
    assert (ledger.leases, list(ledger.owing), ledger.in_use) == (0, [session], set())
    assert ledger.take_owing() is session
    ledger.put_back(session, 6, owing=False)
    assert (ledger.leases, ledger.idle, session.idle_since) == (0, [session], 6)


def test_session_that_owes_goes_to_a_waiter_all_the_same() -> None:
    ledger, session, (waiter,) = full(1)
    assert ledger.release(session, 0, owing=True) is waiter
    assert waiter.session is session
    assert (list(ledger.owing), ledger.in_use) == ([], {session})


def test_first_come_first_served() -> None:
    ledger, session, queue = full(3)
    assert [ledger.release(session, 0) for _ in range(4)] == [*queue, None]
    assert ledger.idle == [session]
    assert [waiter.session for waiter in queue] == [session] * 3


def test_one_that_gave_up_is_passed_over() -> None:
    ledger, session, (first, second, third) = full(3)
    assert ledger.give_up(second)
    assert not ledger.give_up(second)
    assert ledger.release(session, 0) is first
    assert ledger.release(session, 0) is third
    assert (second.state, second.session) == (WaiterState.GONE, None)
    assert ledger.timeouts == 1


def test_giving_up_too_late_leaves_the_gift() -> None:
    ledger, session, (waiter,) = full(1)
    ledger.release(session, 0)
    assert not ledger.give_up(waiter)
    assert waiter.session is session
    assert session in ledger.in_use
    assert ledger.timeouts == 0


@pytest.mark.parametrize("ending", ["failed opening", "retired session"])
def test_room_that_is_given_back_wakes_the_oldest_waiter(ending: str) -> None:
    ledger, session, (first, second) = full(2)
    if ending == "failed opening":
        ledger.retire(session, "lost")
        assert first.state is WaiterState.GIVEN_ROOM
        assert ledger.open_failed() is second
        assert second.state is WaiterState.GIVEN_ROOM
    else:
        assert ledger.retire(session, "lost") is first
        assert (first.state, first.session) == (WaiterState.GIVEN_ROOM, None)
        assert second.state is WaiterState.WAITING
    assert (ledger.opening, ledger.size) == (1, 1)


def test_session_opened_in_the_background_goes_to_the_oldest_waiter() -> None:
    ledger: FakeLedger = Ledger(1, 1, None)
    assert ledger.reserve()
    waiter: FakeWaiter = Waiter()
    ledger.wait(waiter)
    session = FakeSession()
    assert ledger.opened_in_background(session, 0) is waiter
    assert waiter.session is session
    assert (ledger.idle, ledger.in_use) == ([], {session})


def test_queue_is_no_longer_than_max_waiting() -> None:
    ledger = filled(1, max_size=1, max_waiting=1)
    ledger.take()
    ledger.wait(Waiter())
    with pytest.raises(PoolFull):
        ledger.wait(Waiter())
    assert (len(ledger.waiting), ledger.full) == (1, 1)


def test_expiry_keeps_min_size_of_those_that_are_merely_idle() -> None:
    ledger = filled(3, min_size=2)
    coldest, *others = ledger.idle
    assert ledger.expire(9, 10) == []
    assert ledger.expire(10, 10) == [(coldest, "idle_timeout")]
    assert ledger.expire(10**6, 10) == []
    assert ledger.idle == others
    assert ledger.expire(10**6, None) == []


def test_expiry_for_age_goes_below_min_size() -> None:
    ledger = filled(2, min_size=2)
    ledger.idle[1].expires_at = 5
    old = ledger.idle[1]
    assert ledger.expire(5, None) == [(old, "max_lifetime")]
    assert ledger.missing() == 1


def test_session_that_goes_for_age_spares_an_idle_one() -> None:
    ledger = filled(2, min_size=1)
    idle, old = ledger.idle
    old.expires_at = 10
    assert ledger.expire(10, 10) == [(old, "max_lifetime")]
    assert ledger.idle == [idle]


def test_close_refuses_everything_and_gives_all_back() -> None:
    ledger, session, queue = full(2)
    assert ledger.close() == ([], queue)
    assert {waiter.state for waiter in queue} == {WaiterState.REFUSED}
    for refused in (ledger.take, ledger.reserve):
        with pytest.raises(PoolClosed):
            refused()
    assert ledger.in_use == {session}
    assert ledger.retire(session, "pool closed") is None
    assert ledger.size == ledger.missing() == 0


def test_close_returns_idle_sessions_and_counts_them() -> None:
    ledger = filled(3)
    owing = ledger.take()
    assert owing
    ledger.release(owing, 0, owing=True)
    idle = [*ledger.idle, owing]
    assert ledger.close() == (idle, [])
    assert ledger.closed_by_reason == {"pool closed": 3}
    assert ledger.close() == ([], [])


def test_waiter_is_given_something_once_only() -> None:
    ledger, session, (waiter,) = full(1)
    ledger.release(session, 0)
    ledger.waiting[waiter] = None
    with pytest.raises(RuntimeError, match="cannot go from GIVEN_SESSION to GIVEN_SESSION"):
        ledger.release(session, 0)


def _opening_below_zero(ledger: FakeLedger) -> None:
    ledger.opening = -1


def _too_many(ledger: FakeLedger) -> None:
    ledger.opening = ledger.max_size


def _idle_twice(ledger: FakeLedger) -> None:
    ledger.idle.append(ledger.idle[0])


def _idle_and_in_use(ledger: FakeLedger) -> None:
    ledger.in_use.add(ledger.idle[0])


def _idle_and_owing(ledger: FakeLedger) -> None:
    ledger.owing.append(ledger.idle[0])


def _owing_and_in_use(ledger: FakeLedger) -> None:
    session = ledger.idle.pop()
    ledger.owing.append(session)
    ledger.in_use.add(session)


def _waits_beside_owing(ledger: FakeLedger) -> None:
    ledger.owing.append(ledger.idle.pop())
    ledger.idle.clear()
    ledger.opening = ledger.max_size - 1
    ledger.waiting[Waiter()] = None


def _owing_in_closed(ledger: FakeLedger) -> None:
    ledger.close()
    ledger.owing.append(FakeSession())


def _waits_beside_idle(ledger: FakeLedger) -> None:
    ledger.opening = ledger.max_size - len(ledger.idle)
    ledger.waiting[Waiter()] = None


def _waits_beside_room(ledger: FakeLedger) -> None:
    ledger.idle.clear()
    ledger.waiting[Waiter()] = None


def _idle_in_closed(ledger: FakeLedger) -> None:
    ledger.closed = True


def _queue_holds_one_that_left(ledger: FakeLedger) -> None:
    ledger.idle.clear()
    ledger.opening = ledger.max_size
    waiter: FakeWaiter = Waiter()
    waiter.state = WaiterState.GONE
    ledger.waiting[waiter] = None


@pytest.mark.parametrize(
    "spoil",
    [
        _opening_below_zero,
        _too_many,
        _idle_twice,
        _idle_and_in_use,
        _idle_and_owing,
        _owing_and_in_use,
        _waits_beside_owing,
        _owing_in_closed,
        _waits_beside_idle,
        _waits_beside_room,
        _idle_in_closed,
        _queue_holds_one_that_left,
    ],
)
def test_check_notices(spoil: Callable[[FakeLedger], None]) -> None:
    ledger = filled(2)
    ledger.check()
    spoil(ledger)
    with pytest.raises(AssertionError):
        ledger.check()
