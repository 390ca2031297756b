"""The bookkeeping of a pool, against a model of it, with a clock of our own: binary fractions, so sums are exact."""

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pooled_pymysql.exceptions import PoolClosed, PoolFull
from pooled_pymysql.ledger import FIRST_DELAY, LONGEST_DELAY, Ledger, NotWanted, Opening, Waiter, WaiterState

FOREVER = float("inf")
BEFORE_ALL = float("-inf")
DELAYS = [0.05, 0.05, 0.1, 0.2, 0.4, 0.8]  # seconds after so many failures in a row; the last for all that follow
TICKS = st.sampled_from([0, 1 / 32, 1 / 4, 1, 8, 20])  # seconds


class FakeSession:
    end_reason = "max_lifetime"

    def __init__(self, expires_at: float = FOREVER, validate_at: float = FOREVER, idle_limit: float = FOREVER) -> None:
        self.expires_at = expires_at
        self.validate_at = validate_at
        self.idle_limit = idle_limit
        self.asked_at: float = 0
        self.idle_since: float = -1
        self.owed: list[object] = []

    def __hash__(self) -> int:
        return 0  # a set of them has the same order in every run, as hypothesis asks


FakeLedger = Ledger[FakeSession]
FakeWaiter = Waiter[FakeSession]


class LedgerMachine(RuleBasedStateMachine):
    """Call the ledger's methods in every order that a pool may call them in, and keep the same books here."""

    @initialize(
        max_size=st.integers(1, 4),
        min_size=st.integers(0, 4),
        max_waiting=st.none() | st.integers(0, 3),
        opening_limit=st.integers(1, 3),
        sessions=st.integers(0, 4),
    )
    def start(self, max_size: int, min_size: int, max_waiting: int | None, opening_limit: int, sessions: int) -> None:
        self.min_size, self.max_size = min(min_size, max_size), max_size
        self.max_waiting, self.opening_limit = max_waiting, opening_limit
        self.ledger: FakeLedger = Ledger(self.min_size, max_size, max_waiting, opening_limit)
        self.now: float = 0
        self.steps = 0
        self.surplus = 0  # sessions above max_size, since that was made smaller
        self.idle: list[FakeSession] = []
        self.owing: list[FakeSession] = []
        self.held: list[FakeSession] = []
        self.ended: dict[FakeSession, str] = {}  # returned to be closed, and why
        self.seen: dict[FakeSession, tuple[object, ...]] = {}  # what the ledger may write of a session
        self.openings: dict[Opening, float] = {}  # and when they were begun
        self.due: dict[Opening, float] = {}
        self.opening_took: float = 1
        self.running: set[Opening] = set()
        self.unwanted: dict[Opening, str] = {}  # and why, as the session that it brings is closed for
        self.given_up: list[Opening] = []
        self.queue: list[FakeWaiter] = []
        self.watchers: dict[FakeWaiter, FakeSession] = {}  # and what they hold meanwhile
        self.states: dict[FakeWaiter, tuple[WaiterState, FakeSession | None, Exception | None]] = {}
        self.failure: Exception | None = None
        self.failures = 0
        self.retry_at: float = 0
        self.pause_until: float = 0
        self.closed = False
        self.leases = self.opened = self.timeouts = self.full = 0
        for _ in range(min(sessions, max_size)):
            self.wait()
            self.begin_openings(FOREVER)
            self.open(next(iter(self.openings)), FakeSession(40, 1, 20))

    # What the model says comes next

    def offer(self, session: FakeSession, owing: bool = False) -> FakeWaiter | None:
        """Give a session to whoever is first, or put it where it belongs."""
        if self.watchers and not owing:
            waiter = next(iter(self.watchers))
            del self.watchers[waiter]
        elif self.queue:
            waiter = self.queue.pop(0)
        elif owing:
            self.owing.append(session)
            return None
        else:
            self.idle = sorted([*self.idle, session], key=lambda one: one.idle_since)  # warmest last
            return None
        self.hold(session)
        self.states[waiter] = (WaiterState.GIVEN_SESSION, session, None)
        return waiter

    def hold(self, session: FakeSession) -> None:
        self.held.append(session)
        self.leases += 1

    def refuse(self, waiters: list[FakeWaiter], error: Exception | None) -> None:
        for waiter in waiters:
            self.queue.remove(waiter)
            self.states[waiter] = (WaiterState.REFUSED, None, error)

    def end(self, sessions: list[FakeSession], reason: str) -> None:
        for session in sessions:
            assert session not in self.ended
            self.ended[session] = reason

    def look(self, session: FakeSession) -> None:
        """Note what was just written of a session."""
        self.seen[session] = (session.idle_since, session.validate_at, session.expires_at, session.end_reason)

    def size(self) -> int:
        return len(self.idle) + len(self.owing) + len(self.held) + len(self.openings)

    def loose(self) -> list[FakeSession]:
        """Return the sessions in use that nobody watches with."""
        return [session for session in self.held if session not in self.watchers.values()]

    def used(self) -> list[FakeWaiter]:
        return [waiter for waiter, (state, *_) in self.states.items() if state is not WaiterState.NEW]

    def is_down(self) -> bool:
        return self.failure is not None and self.now < self.retry_at and not self.size()

    def is_full(self) -> bool:
        room = self.max_size - len(self.held) - len(self.idle) - len(self.owing)
        return self.max_waiting is not None and len(self.queue) >= max(0, room) + self.max_waiting

    # Time

    @rule(seconds=TICKS)
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    # Callers

    @precondition(lambda self: not self.closed)
    @rule()
    def acquire(self) -> None:
        if self.idle:
            self.take()
        elif self.owing:
            self.take_owing()
        else:
            self.wait()
            self.begin_openings(20)

    @precondition(lambda self: self.idle)
    @rule()
    def take(self) -> None:
        best = [session for session in self.idle if not session.owed] or list(self.idle)
        assert self.ledger.take() is best[-1]
        self.idle.remove(best[-1])
        self.hold(best[-1])

    @precondition(lambda self: self.owing)
    @rule()
    def take_owing(self) -> None:
        longest = self.owing.pop(0)
        assert self.ledger.take_owing() is longest
        self.hold(longest)

    @precondition(lambda self: self.idle)
    @rule()
    def take_stale(self) -> None:
        stale = [session for session in self.idle if session.validate_at <= self.now]
        assert self.ledger.take_stale(self.now) == stale
        for session in stale:
            self.idle.remove(session)
            self.hold(session)

    @precondition(lambda self: not (self.closed or self.idle or self.owing))
    @rule()
    def wait(self) -> None:
        waiter: FakeWaiter = Waiter()
        self.states[waiter] = (WaiterState.NEW, None, None)
        if self.is_full():
            self.full += 1
            with pytest.raises(PoolFull):
                self.ledger.wait(waiter, self.now)
            return
        self.ledger.wait(waiter, self.now)
        self.states[waiter] = (WaiterState.WAITING, None, None)
        self.queue.append(waiter)
        if self.is_down():
            self.refuse([waiter], self.failure)

    @precondition(lambda self: self.loose() and not (self.closed or self.idle))
    @rule(data=st.data())
    def watch(self, data: st.DataObject) -> None:
        waiter: FakeWaiter = Waiter()
        self.ledger.watch(waiter)
        self.watchers[waiter] = data.draw(st.sampled_from(self.loose()))
        self.states[waiter] = (WaiterState.WAITING, None, None)

    @precondition(lambda self: self.queue or self.watchers)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from([*self.queue, *self.watchers]))
        assert self.ledger.give_up(waiter)
        self.states[waiter] = (WaiterState.GONE, None, None)
        if waiter in self.queue:
            self.queue.remove(waiter)
            self.timeouts += 1
        self.watchers.pop(waiter, None)

    @precondition(lambda self: self.queue)
    @rule(data=st.data())
    def requeue(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(self.queue))
        self.ledger.requeue(waiter)  # nothing was lost
        del self.ledger.waiting[waiter]
        self.ledger.requeue(waiter)
        self.queue.remove(waiter)
        self.queue.insert(0, waiter)

    @precondition(lambda self: self.steps % 4 == 0 and not self.is_full() and self.used())
    @rule(data=st.data())
    def wait_twice(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(self.used()))
        with pytest.raises(RuntimeError):
            self.ledger.wait(waiter, self.now)
        with pytest.raises(RuntimeError):
            self.ledger.watch(waiter)

    # Opening

    @rule(time_limit=st.sampled_from([1, 8, 20]), at_once=st.booleans())
    def begin_openings(self, time_limit: float, at_once: bool = True) -> None:
        overdue = sum(not self.is_counted_on(opening) for opening in self.openings)
        limit = 1 if self.failures else self.opening_limit
        limit -= max(0, overdue - 3 * self.opening_limit)
        expected = 0
        while not self.closed and self.now >= self.retry_at:
            under_way, size = len(self.openings) - overdue + expected, self.size() + expected
            is_wanted = size < self.min_size
            if at_once or self.now >= self.pause_until:
                is_wanted |= under_way < len(self.queue) + len(self.watchers)
            if not is_wanted or under_way >= limit or size >= self.max_size:
                break
            expected += 1
        openings = self.ledger.begin_openings(self.now, time_limit, at_once=at_once)
        assert len(openings) == expected
        assert not self.due.keys() & set(openings)
        self.openings |= dict.fromkeys(openings, self.now)
        self.due |= dict.fromkeys(openings, self.now + time_limit + 0.2)

    def patience(self) -> float:
        """Return how long an opening may take before it is overdue."""
        return sorted([0.25, 3 * self.opening_took, 1])[1]

    def is_counted_on(self, opening: Opening) -> bool:
        return self.now < self.openings[opening] + self.patience()

    @rule()
    def look_ahead(self) -> None:
        """Assert that the next look comes when something may have changed, and no later."""
        is_wanted = self.queue or self.watchers or self.size() < self.min_size
        moments = [self.due[opening] for opening in self.openings]
        if is_wanted:
            moments += [self.openings[one] + self.patience() for one in self.openings if self.is_counted_on(one)]
            moments += [self.retry_at] * (self.retry_at > self.now)
            moments += [self.pause_until] * (self.pause_until > self.now)
        expected = max(0, min(moments) - self.now) if moments else None
        assert self.ledger.next_look(self.now) == expected

    @precondition(lambda self: self.openings)
    @rule()
    def late_openings(self) -> None:
        late = {opening for opening in self.openings if self.due[opening] <= self.now}
        assert set(self.ledger.late_openings(self.now)) == late

    @precondition(lambda self: self.openings or (not self.closed and (self.queue or self.size() < self.min_size)))
    @rule(fresh=st.integers(0, 40))
    def open_all(self, fresh: int) -> None:
        self.begin_openings(20)
        while self.openings:
            self.open(next(iter(self.openings)), FakeSession(self.now + fresh // 2, self.now + fresh, fresh // 2 + 5))

    @precondition(lambda self: self.openings)
    @rule(data=st.data())
    def run_opening(self, data: st.DataObject) -> None:
        opening = data.draw(st.sampled_from(list(self.openings)))
        opening.is_running = True
        self.running.add(opening)

    def draw_opening(self, data: st.DataObject) -> Opening:
        """Draw one that ends now: now and then one that was given up."""
        opening = data.draw(st.sampled_from([*self.openings, *self.given_up]))
        if opening in self.given_up:
            self.given_up.remove(opening)
        return opening

    @precondition(lambda self: self.openings or self.given_up)
    @rule(data=st.data(), lifetime=st.integers(0, 40), fresh=st.integers(0, 40), idle_limit=st.integers(5, 40))
    def end_opening(self, data: st.DataObject, lifetime: int, fresh: int, idle_limit: int) -> None:
        self.open(self.draw_opening(data), FakeSession(self.now + lifetime, self.now + fresh, idle_limit))

    def open(self, opening: Opening, session: FakeSession) -> None:
        self.openings.pop(opening, None)
        self.opened += 1
        self.opening_took = self.now - opening.since
        self.failure, self.failures, self.retry_at = None, 0, 0
        reason = "pool closed" if self.closed else self.unwanted.get(opening, "resized")
        if reason != "resized" or self.size() >= self.max_size:
            with pytest.raises(NotWanted):
                self.ledger.end_opening(opening, session, self.now)
            self.end([session], reason)
            return
        pause = min(self.opening_took / 4, 0.1)
        self.pause_until = self.now + pause if pause >= 0.002 else 0
        session.asked_at = session.idle_since = self.now
        self.look(session)
        expected = self.offer(session)
        session.idle_since = -1
        assert self.ledger.end_opening(opening, session, self.now) is expected

    @precondition(lambda self: self.openings or self.given_up)
    @rule(data=st.data(), chance=st.sampled_from([0.0, 1.0]), is_full=st.booleans())
    def fail_opening(self, data: st.DataObject, chance: float, is_full: bool) -> None:
        opening, error = self.draw_opening(data), OSError("no route")
        if opening not in self.openings:
            assert self.ledger.fail_opening(opening, error, self.now, chance, is_full=is_full) == []
            return
        self.forget(opening)
        self.failure = error
        self.failures += 1
        if is_full or self.failures > 1:
            delay = DELAYS[min(self.failures, len(DELAYS)) - 1]
            self.retry_at = self.now + (delay / 2 if chance else delay)
        refused = list(self.queue)
        if (self.held or self.openings) and is_full:
            refused = []
        elif (self.held or self.openings) and self.failures == 1:
            refused = refused[:1]
        assert self.ledger.fail_opening(opening, error, self.now, chance, is_full=is_full) == refused
        self.refuse(refused, error)

    @precondition(lambda self: self.openings)
    @rule(data=st.data(), is_full=st.booleans())
    def give_up_opening(self, data: st.DataObject, is_full: bool) -> None:
        opening = data.draw(st.sampled_from(list(self.openings)))
        self.forget(opening)
        assert self.ledger.fail_opening(opening, None, self.now, 0.0, is_full=is_full) == []

    def forget(self, opening: Opening) -> None:
        """Count an opening no more, which may end all the same."""
        del self.openings[opening]
        self.unwanted[opening] = "opened too late"
        self.given_up.append(opening)

    @precondition(lambda self: self.openings)
    @rule(patience=TICKS)
    def abandoned_openings(self, patience: float) -> None:
        expected = {
            one for one, since in self.openings.items() if one not in self.running and since + patience < self.now
        }
        assert set(self.ledger.abandoned_openings(self.now, patience)) == expected

    @precondition(lambda self: self.queue)
    @rule()
    def lost_hope(self) -> None:
        refused = list(self.queue) if self.is_down() else []
        assert self.ledger.lost_hope(self.now) == refused
        self.refuse(refused, self.failure)

    # Giving back

    @precondition(lambda self: self.loose() and not self.closed)
    @rule()
    def release_all(self) -> None:
        for session in self.loose():
            self.give_back(session, owing=False)

    @precondition(lambda self: self.loose() and not self.closed)
    @rule(data=st.data(), owing=st.booleans(), owes_little=st.booleans(), fresh=st.integers(0, 40))
    def release(self, data: st.DataObject, owing: bool, owes_little: bool, fresh: int) -> None:
        session = data.draw(st.sampled_from(self.loose()))
        session.owed = ["a reply"] if owing or owes_little else []
        session.validate_at = self.now + fresh
        self.give_back(session, owing=owing)

    def give_back(self, session: FakeSession, owing: bool) -> None:
        self.held.remove(session)
        before, session.idle_since = session.idle_since, self.now
        self.look(session)
        expected = self.offer(session, owing=owing)
        session.idle_since = before
        assert self.ledger.release(session, self.now, owing=owing) is expected

    @precondition(lambda self: self.loose() and not self.closed)
    @rule(data=st.data(), owing=st.booleans())
    def put_back(self, data: st.DataObject, owing: bool) -> None:
        session = data.draw(st.sampled_from(self.loose()))
        session.asked_at = self.now
        self.held.remove(session)
        self.leases -= 1
        expected = self.offer(session, owing=owing)
        assert self.ledger.put_back(session, owing=owing) is expected

    @precondition(lambda self: self.loose())
    @rule(data=st.data(), reason=st.sampled_from(["lost", "pool closed"]))
    def retire(self, data: st.DataObject, reason: str) -> None:
        session = data.draw(st.sampled_from(self.loose()))
        self.held.remove(session)
        self.end([session], reason)
        self.ledger.retire(session, reason)

    @precondition(lambda self: self.steps % 4 == 0 and (self.idle or self.owing or self.ended))
    @rule(data=st.data())
    def give_back_twice(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from([*self.idle, *self.owing, *self.ended]))
        for give_back in (
            lambda: self.ledger.release(session, self.now),
            lambda: self.ledger.put_back(session, owing=False),
            lambda: self.ledger.retire(session, "lost"),
        ):
            with pytest.raises(KeyError):
                give_back()

    # The ends

    @precondition(lambda self: self.idle)
    @rule(idle_timeout=st.none() | st.integers(0, 20))
    def expire(self, idle_timeout: int | None) -> None:
        old = [session for session in self.idle if session.expires_at <= self.now]
        alive = [session for session in self.idle if session not in old]
        cut_off = [one for one in alive if max(one.idle_since, one.asked_at) + one.idle_limit <= self.now]
        unused = [
            one
            for one in alive
            if one not in cut_off and idle_timeout is not None and one.idle_since + idle_timeout <= self.now
        ]
        spare = max(0, self.size() - len(old) - len(cut_off) - self.min_size)
        gone = dict(self.ledger.expire(self.now, idle_timeout))
        expected = {one: one.end_reason for one in old}
        expected |= dict.fromkeys(cut_off, "wait_timeout")
        expected |= dict.fromkeys(unused[:spare], "idle_timeout")
        assert gone == expected
        self.idle = [session for session in self.idle if session not in gone]
        self.ended |= gone

    @precondition(lambda self: self.size())
    @rule()
    def drain(self) -> None:
        gone = self.ledger.drain()
        assert gone == self.idle + self.owing
        self.end(gone, "drained")
        self.idle, self.owing = [], []
        self.unwanted |= dict.fromkeys(self.openings, "drained")
        for session in self.held:
            assert (session.expires_at, session.end_reason) == (BEFORE_ALL, "drained")
            self.look(session)

    @precondition(lambda self: self.steps % 3 == 0)
    @rule(min_size=st.integers(0, 4), max_size=st.integers(1, 4))
    def resize(self, min_size: int, max_size: int) -> None:
        self.min_size, self.max_size = min(min_size, max_size), max_size
        leave = max(0, self.size() - max_size)
        expected = [*self.idle, *reversed(self.owing)][:leave]
        leaving = sum(session.expires_at == BEFORE_ALL for session in self.held)
        leaving += max(0, len(self.held) - leaving - max_size)
        assert self.ledger.resize(self.min_size, max_size) == expected
        self.end(expected, "resized")
        self.idle = [session for session in self.idle if session not in expected]
        self.owing = [session for session in self.owing if session not in expected]
        self.surplus = max(0, self.size() - max_size)
        newly = [session for session in self.held if self.seen[session][2:] != (session.expires_at, session.end_reason)]
        assert all((one.expires_at, one.end_reason) == (BEFORE_ALL, "resized") for one in newly)
        assert sum(session.expires_at == BEFORE_ALL for session in self.held) == leaving
        for session in newly:
            self.look(session)

    @precondition(lambda self: self.idle)
    @rule()
    def distrust(self) -> None:
        assert self.ledger.distrust()
        for session in self.idle:
            assert session.validate_at == BEFORE_ALL
            self.look(session)

    @precondition(lambda self: self.steps > 30 and self.steps % 3 == 0)
    @rule()
    def close(self) -> None:
        idle, waiters = self.ledger.close()
        assert idle == self.idle + self.owing
        assert waiters == [*self.watchers, *self.queue]
        for waiter in waiters:
            self.states[waiter] = (WaiterState.REFUSED, None, None)
        self.end(idle, "pool closed")
        self.idle, self.owing, self.queue, self.closed = [], [], [], True
        self.watchers.clear()

    @precondition(lambda self: not self.idle and self.steps % 8 == 0)
    @rule()
    def find_nothing(self) -> None:
        if self.closed:
            with pytest.raises(PoolClosed):
                self.ledger.take()
        else:
            assert self.ledger.take() is None
        for waiter, (state, *_) in self.states.items():
            assert state is WaiterState.WAITING or not self.ledger.give_up(waiter)
        assert self.owing or self.ledger.take_owing() is None
        assert self.ledger.take_stale(self.now) == self.ledger.expire(self.now, 0) == []
        assert not self.ledger.distrust()
        assert self.queue or self.ledger.lost_hope(self.now) == []
        assert self.openings or self.ledger.abandoned_openings(self.now, 0) == []

    # After every step

    @invariant()
    def books_agree(self) -> None:
        self.steps += 1
        ledger = self.ledger
        ledger.check()
        assert (ledger.idle, list(ledger.owing)) == (self.idle, self.owing)
        assert ledger.in_use == set(self.held)
        assert len(self.held) == len(set(self.held))
        assert ledger.openings == self.openings.keys()
        assert ledger.size == self.size()
        assert (ledger.min_size, ledger.max_size) == (self.min_size, self.max_size)
        assert (list(ledger.waiting), list(ledger.watching)) == (self.queue, list(self.watchers))
        assert ledger.closed is self.closed

    @invariant()
    def no_more_than_max_size(self) -> None:
        """Assert that what is too much after resize() only becomes less."""
        surplus = max(0, self.ledger.size - self.max_size)
        assert surplus <= self.surplus
        self.surplus = surplus

    @invariant()
    def breaker_agrees(self) -> None:
        ledger = self.ledger
        assert (ledger.failure, ledger.failures, ledger.retry_at) == (self.failure, self.failures, self.retry_at)

    @invariant()
    def waiters_have_what_they_were_given(self) -> None:
        for waiter, (state, session, error) in self.states.items():
            assert waiter.state is state
            assert waiter.session is session
            assert waiter.error is error

    @invariant()
    def sessions_are_as_they_were(self) -> None:
        for session in (*self.idle, *self.owing, *self.held):
            seen = (session.idle_since, session.validate_at, session.expires_at, session.end_reason)
            assert seen == self.seen[session]

    @invariant()
    def no_session_is_lost(self) -> None:
        """Assert that each one ever opened is in one place, or was returned for closing and counted once."""
        ledger = self.ledger
        places = Counter([*ledger.idle, *ledger.owing, *ledger.in_use, *self.ended])
        assert set(places.values()) <= {1}
        assert len(places) == ledger.opened
        assert +ledger.closed_by_reason == Counter(self.ended.values())

    @invariant()
    def counters_agree(self) -> None:
        ledger = self.ledger
        assert (ledger.leases, ledger.opened) == (self.leases, self.opened)
        assert (ledger.timeouts, ledger.full) == (self.timeouts, self.full)


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(
    max_examples=60,
    stateful_step_count=50,
    deadline=None,
    phases=set(Phase) - {Phase.explain},  # which takes most of a minute here
)


def filled(
    idle: int, max_size: int = 4, min_size: int = 0, max_waiting: int | None = None, opening_limit: int = 4
) -> FakeLedger:
    """Return a ledger with idle sessions 0, 1, …: the last one is the warmest."""
    ledger: FakeLedger = Ledger(idle, max_size, max_waiting, opening_limit)
    while openings := begun(ledger):
        for opening in openings:
            assert ledger.end_opening(opening, FakeSession(), 0) is None
    ledger.min_size = min_size
    return ledger


def used(leased: int, max_size: int = 4, **more: int) -> tuple[FakeLedger, list[FakeSession]]:
    """Return a ledger whose only sessions are in use, and these."""
    ledger = filled(leased, max_size, **more)
    return ledger, [taken(ledger) for _ in range(leased)]


def taken(ledger: FakeLedger) -> FakeSession:
    session = ledger.take()
    assert session
    return session


def queued(ledger: FakeLedger, count: int, now: float = 0) -> list[FakeWaiter]:
    """Let so many callers wait."""
    queue: list[FakeWaiter] = [Waiter() for _ in range(count)]
    for waiter in queue:
        ledger.wait(waiter, now)
    return queue


def full(waiters: int) -> tuple[FakeLedger, FakeSession, list[FakeWaiter]]:
    """Return a ledger whose only session is in use, and who waits for it."""
    ledger, (session,) = used(1, max_size=1)
    return ledger, session, queued(ledger, waiters)


def begun(ledger: FakeLedger, now: float = 0) -> list[Opening]:
    """Begin as many openings as are wanted, without a thought of when they must end."""
    return ledger.begin_openings(now, FOREVER)


def watching(ledger: FakeLedger) -> FakeWaiter:
    waiter: FakeWaiter = Waiter()
    ledger.watch(waiter)
    return waiter


def fail(
    ledger: FakeLedger, now: float = 0, chance: float = 0.0, is_full: bool = False, error: Exception | None = None
) -> list[FakeWaiter]:
    """Let the one opening that may be begun fail; return who is refused."""
    (opening,) = begun(ledger, now)
    return ledger.fail_opening(opening, error or OSError("no route"), now, chance, is_full=is_full)


def down(failures: int = 2, max_size: int = 4, error: Exception | None = None) -> FakeLedger:
    """Return an empty ledger whose server has failed so often in a row."""
    ledger: FakeLedger = Ledger(1, max_size, None, 4)
    for _ in range(failures):
        fail(ledger, ledger.retry_at, error=error)
    ledger.min_size = 0
    return ledger


# Taking


def test_warmest_session_is_taken_first() -> None:
    ledger = filled(3)
    coldest_first = list(ledger.idle)
    assert [ledger.take(), ledger.take(), ledger.take(), ledger.take()] == [*reversed(coldest_first), None]


def test_warmest_session_that_owes_nothing_is_taken_before_one_that_owes() -> None:
    ledger = filled(4)
    _, settled, owing, warmest = coldest_first = list(ledger.idle)
    owing.owed = warmest.owed = ["a reply"]
    assert ledger.take() is settled
    assert ledger.idle == [coldest_first[0], owing, warmest]
    ledger.take()
    assert [ledger.take(), ledger.take()] == [warmest, owing]


def test_only_other_session_is_taken_before_one_that_owes() -> None:
    ledger = filled(2)
    settled, warmest = ledger.idle
    warmest.owed = ["a reply"]
    assert [ledger.take(), ledger.take()] == [settled, warmest]


def test_session_that_owes_longest_is_taken_first_and_never_by_take() -> None:
    ledger, (first, second, third) = used(3)
    assert ledger.release(first, 0, owing=True) is None
    assert ledger.put_back(second, owing=True) is None
    assert (ledger.take(), ledger.size) == (None, 3)
    assert [ledger.take_owing(), ledger.take_owing(), ledger.take_owing()] == [first, second, None]
    assert ledger.in_use == {first, second, third}


def test_session_that_is_put_back_was_not_leased() -> None:
    ledger = filled(1)
    session = taken(ledger)
    assert ledger.leases == 1
    ledger.put_back(session, owing=True)
    assert (ledger.leases, list(ledger.owing), ledger.in_use) == (0, [session], set())
    assert ledger.take_owing() is session
    assert ledger.leases == 1
    ledger.put_back(session, owing=False)
    assert (ledger.leases, ledger.idle, session.idle_since) == (0, [session], 0)


def test_session_that_is_put_back_does_not_get_warmer() -> None:
    ledger, sessions = used(3)
    for now, session in enumerate(sessions):
        ledger.release(session, now)
    cold, middle, warm = sessions
    for looked_at in (cold, middle, warm):
        looked_at.validate_at = 5
        assert ledger.take_stale(5) == [looked_at]
        looked_at.validate_at = 9
        ledger.put_back(looked_at, owing=False)
        assert ledger.idle == [cold, middle, warm]


def test_session_that_is_put_back_goes_to_whoever_waits() -> None:
    ledger, session, (first, second) = full(2)
    assert ledger.put_back(session, owing=False) is first
    assert ledger.put_back(session, owing=True) is second
    assert (second.session, ledger.in_use, ledger.leases) == (session, {session}, 1)


def test_stale_sessions_are_taken_to_be_validated() -> None:
    ledger = filled(3)
    first, second, third = ledger.idle
    first.validate_at, second.validate_at, third.validate_at = 5, 6, 5
    assert ledger.take_stale(4) == []
    assert ledger.take_stale(5) == [first, third]
    assert (ledger.idle, ledger.in_use, ledger.leases) == ([second], {first, third}, 2)


def test_distrusted_sessions_are_stale_at_once() -> None:
    ledger = filled(3)
    leased = taken(ledger)
    idle = list(ledger.idle)
    assert ledger.distrust() is True
    assert ledger.take_stale(0) == idle
    assert leased.validate_at == FOREVER
    assert ledger.distrust() is False


# Waiting


def test_first_come_first_served() -> None:
    ledger, session, queue = full(3)
    assert [ledger.release(session, 0) for _ in range(4)] == [*queue, None]
    assert ledger.idle == [session]
    assert [waiter.session for waiter in queue] == [session] * 3


def test_session_that_owes_goes_to_a_waiter_all_the_same() -> None:
    ledger, session, (waiter,) = full(1)
    assert ledger.release(session, 0, owing=True) is waiter
    assert waiter.session is session
    assert (list(ledger.owing), ledger.in_use) == ([], {session})


@pytest.mark.parametrize("way", ["release", "put_back", "end_opening"])
def test_whoever_watches_comes_before_all_who_wait(way: str) -> None:
    ledger, (_, _, session) = used(3)
    (third,), first, second = queued(ledger, 1), watching(ledger), watching(ledger)
    gives = {
        "release": lambda: ledger.release(session, 0),
        "put_back": lambda: ledger.put_back(session, owing=False),
        "end_opening": lambda: ledger.end_opening(begun(ledger)[0], FakeSession(), 0),
    }
    assert gives[way]() is first
    assert first.session in ledger.in_use
    assert [ledger.release(session, 0) for _ in range(2)] == [second, third] or way == "end_opening"


@pytest.mark.parametrize("way", ["release", "put_back"])
def test_whoever_watches_gets_none_that_owes(way: str) -> None:
    ledger, (_, second, third) = used(3)
    (waiter,), watcher = queued(ledger, 1), watching(ledger)

    def give_back(session: FakeSession) -> FakeWaiter | None:
        if way == "release":
            return ledger.release(session, 0, owing=True)
        return ledger.put_back(session, owing=True)

    assert give_back(second) is waiter
    assert give_back(third) is None
    assert (watcher.state, list(ledger.owing)) == (WaiterState.WAITING, [third])


def test_one_that_gave_up_is_passed_over() -> None:
    ledger, session, (first, second, third) = full(3)
    assert ledger.give_up(second)
    assert not ledger.give_up(second)
    assert ledger.release(session, 0) is first
    assert ledger.release(session, 0) is third
    assert (second.state, second.session) == (WaiterState.GONE, None)
    assert ledger.timeouts == 1


def test_one_that_stops_watching_has_not_timed_out() -> None:
    ledger, (first, _) = used(2)
    watcher = watching(ledger)
    assert ledger.give_up(watcher)
    assert (watcher.state, ledger.timeouts) == (WaiterState.GONE, 0)
    assert ledger.release(first, 0) is None


def test_one_that_an_interruption_took_out_of_the_queue_comes_first_again() -> None:
    ledger, session, (first, second, third) = full(3)
    ledger.waiting.popitem(last=False)
    ledger.requeue(first)
    ledger.requeue(second)
    assert list(ledger.waiting) == [first, second, third]
    assert ledger.release(session, 0) is first
    ledger.requeue(first)
    assert list(ledger.waiting) == [second, third]


def test_one_that_watches_alone_gets_the_next_session() -> None:
    ledger, (_, session) = used(2)
    watcher = watching(ledger)
    assert ledger.release(session, 0) is watcher
    assert watcher.session is session


def test_giving_up_too_late_leaves_the_gift() -> None:
    ledger, session, (waiter,) = full(1)
    ledger.release(session, 0)
    assert not ledger.give_up(waiter)
    assert waiter.session is session
    assert session in ledger.in_use
    assert ledger.timeouts == 0


def test_queue_is_no_longer_than_max_waiting() -> None:
    ledger, _ = used(1, max_size=1, max_waiting=1)
    queued(ledger, 1)
    waiter: FakeWaiter = Waiter()
    with pytest.raises(PoolFull):
        ledger.wait(waiter, 0)
    assert (len(ledger.waiting), ledger.full, waiter.state) == (1, 1, WaiterState.NEW)


@pytest.mark.parametrize("max_waiting", [0, 1, 2])
@pytest.mark.parametrize("opens", [False, True])
def test_those_for_whom_there_is_room_do_not_count_as_waiting(max_waiting: int, opens: bool) -> None:
    ledger, _ = used(1, max_size=3, max_waiting=max_waiting)
    for _ in range(2 + max_waiting):
        queued(ledger, 1)
        if opens:
            begun(ledger)
    with pytest.raises(PoolFull):
        ledger.wait(Waiter(), 0)


def test_no_fewer_may_wait_where_there_is_less_than_no_room() -> None:
    ledger, _ = used(3, max_waiting=1)
    ledger.resize(0, 1)
    queued(ledger, 1)
    with pytest.raises(PoolFull):
        ledger.wait(Waiter(), 0)


# Opening


@pytest.mark.parametrize(
    ("leased", "waiting_", "watching_", "min_size", "max_size", "limit", "expected"),
    [
        pytest.param(0, 0, 0, 0, 4, 4, 0, id="nobody asks"),
        pytest.param(0, 3, 0, 0, 4, 4, 3, id="one for each who waits"),
        pytest.param(2, 1, 2, 0, 8, 4, 3, id="who watches wants one as well"),
        pytest.param(1, 3, 0, 0, 3, 4, 2, id="as far as max_size allows"),
        pytest.param(0, 3, 0, 0, 4, 2, 2, id="as far as opening_limit allows"),
        pytest.param(1, 0, 0, 3, 4, 4, 2, id="up to min_size"),
        pytest.param(0, 2, 0, 3, 4, 4, 3, id="callers count for min_size"),
        pytest.param(2, 3, 0, 3, 9, 4, 3, id="whichever is more"),
        pytest.param(3, 0, 0, 3, 4, 4, 0, id="leased ones count for min_size"),
    ],
)
def test_as_many_are_opened_as_are_wanted(
    *, leased: int, waiting_: int, watching_: int, min_size: int, max_size: int, limit: int, expected: int
) -> None:
    ledger, _ = used(leased, max_size, min_size=min_size, opening_limit=limit)
    queued(ledger, waiting_)
    for _ in range(watching_):
        watching(ledger)
    openings = ledger.begin_openings(7, 20)
    assert (len(openings), ledger.size) == (expected, leased + expected)
    assert all((opening.since, opening.due) == (7, 27.2) for opening in openings)
    assert not any(opening.is_running or opening.end_reason for opening in openings)
    assert ledger.openings == set(openings)
    assert begun(ledger, 7) == []


def test_opening_that_is_under_way_counts_for_the_limit_and_for_those_who_wait() -> None:
    ledger: FakeLedger = Ledger(0, 4, None, 2)
    queued(ledger, 1)
    assert len(begun(ledger)) == 1
    queued(ledger, 2)
    assert len(begun(ledger)) == 1
    ledger.opening_limit = 4
    assert len(begun(ledger)) == 1


def test_opened_session_goes_to_the_oldest_waiter() -> None:
    ledger: FakeLedger = Ledger(2, 4, None, 4)
    opening, another = begun(ledger)
    first, second = queued(ledger, 2)
    session = FakeSession()
    assert ledger.end_opening(opening, session, 3) is first
    assert (first.state, first.session) == (WaiterState.GIVEN_SESSION, session)
    assert (ledger.idle, ledger.in_use, ledger.openings) == ([], {session}, {another})
    assert (ledger.opened, ledger.leases, session.idle_since) == (1, 1, 3)
    assert ledger.give_up(second)
    assert ledger.end_opening(another, FakeSession(), 4) is None
    assert (len(ledger.idle), ledger.opened, ledger.leases) == (1, 2, 1)


def test_opening_that_nobody_began_with_is_abandoned() -> None:
    ledger: FakeLedger = Ledger(3, 4, None, 2)
    forgotten, running = begun(ledger, 5)
    running.is_running = True
    assert ledger.abandoned_openings(6, 1) == []
    assert ledger.abandoned_openings(6.25, 1) == [forgotten]
    assert ledger.openings == {forgotten, running}


def test_opening_that_is_given_up_is_no_failure_and_gives_its_place_back() -> None:
    ledger: FakeLedger = Ledger(0, 1, None, 1)
    (waiter,) = queued(ledger, 1)
    (opening,) = begun(ledger)
    assert ledger.fail_opening(opening, None, 0, 0.0, is_full=True) == []
    assert (waiter.state, ledger.failures, ledger.failure, ledger.retry_at) == (WaiterState.WAITING, 0, None, 0)
    assert len(begun(ledger)) == 1


@pytest.mark.parametrize("error", [None, TimeoutError("timed out")])
def test_session_of_an_opening_that_was_given_up_is_not_wanted(error: Exception | None) -> None:
    ledger: FakeLedger = Ledger(1, 2, None, 1)
    (opening,) = begun(ledger)
    ledger.fail_opening(opening, error, 0, 0.0, is_full=False)
    (another,) = begun(ledger)
    with pytest.raises(NotWanted):
        ledger.end_opening(opening, FakeSession(), 0)
    assert (ledger.openings, ledger.opened, ledger.closed_by_reason) == ({another}, 1, {"opened too late": 1})


def test_opening_that_was_given_up_fails_no_second_time() -> None:
    ledger: FakeLedger = Ledger(1, 2, None, 1)
    (opening,) = begun(ledger)
    error = TimeoutError("timed out")
    ledger.fail_opening(opening, error, 0, 0.0, is_full=False)
    (waiter,) = queued(ledger, 1)
    assert ledger.fail_opening(opening, OSError(), 0, 0.0, is_full=True) == []
    assert (ledger.failures, ledger.failure, ledger.retry_at) == (1, error, 0)
    assert waiter.state is WaiterState.WAITING


def test_opening_is_late_when_its_time_is_over() -> None:
    ledger: FakeLedger = Ledger(1, 2, None, 1)
    (opening,) = ledger.begin_openings(2, 10)
    assert ledger.late_openings(12) == []  # as a rule it ends itself
    assert ledger.late_openings(12.2) == [opening]


@pytest.mark.parametrize(
    ("took", "patience"),
    [
        pytest.param(None, 1, id="none has ended yet"),
        pytest.param(0.25, 0.75, id="three times the last"),
        pytest.param(0.001, 0.25, id="but at least 0.25 s"),
        pytest.param(20, 1, id="but at most 1 s"),
    ],
)
def test_another_is_opened_beside_one_that_is_overdue(took: float | None, patience: float) -> None:
    ledger: FakeLedger = Ledger(0, 4, None, 1)
    if took is not None:
        queued(ledger, 1)
        (opening,) = begun(ledger, 50)
        ledger.end_opening(opening, FakeSession(), 50 + took)
    (waiter,) = queued(ledger, 1)
    (stuck,) = begun(ledger, 100)
    assert ledger.next_look(100) == pytest.approx(patience)
    assert begun(ledger, 100 + patience - 1 / 1024) == []
    (beside,) = begun(ledger, 100 + patience)
    assert ledger.end_opening(beside, FakeSession(), 101 + patience) is waiter
    assert ledger.end_opening(stuck, FakeSession(), 101 + patience) is None
    assert (len(ledger.idle), ledger.size) == (1, 2 + (took is not None))


@pytest.mark.parametrize(
    ("took", "pause"),
    [
        pytest.param(0.15, 0.0375, id="a quarter of what it took"),
        pytest.param(20, 0.1, id="but at most 0.1 s"),
        pytest.param(0.004, 0, id="nothing where opening is fast"),
    ],
)
def test_those_who_wait_are_left_to_what_was_just_opened(took: float, pause: float) -> None:
    ledger: FakeLedger = Ledger(0, 20, None, 2)
    queued(ledger, 5)
    opened = 50 + took
    for opening in begun(ledger, 50):
        ledger.end_opening(opening, FakeSession(), opened)
    assert len(ledger.waiting) == 3
    if pause:
        assert ledger.begin_openings(opened, FOREVER, at_once=False) == []
        assert ledger.next_look(opened) == pytest.approx(pause)
    assert len(ledger.begin_openings(opened + pause, FOREVER, at_once=False)) == 2


def test_a_session_that_nobody_wants_any_more_makes_no_pause() -> None:
    ledger: FakeLedger = Ledger(0, 20, None, 1)
    queued(ledger, 1)
    (opening,) = begun(ledger, 50)
    ledger.drain()
    with pytest.raises(NotWanted):
        ledger.end_opening(opening, FakeSession(), 51)
    assert len(ledger.begin_openings(51, FOREVER, at_once=False)) == 1


def test_pause_between_openings_holds_up_neither_a_new_caller_nor_min_size() -> None:
    ledger: FakeLedger = Ledger(2, 20, None, 3)
    queued(ledger, 1)
    first, *others = begun(ledger, 50)
    assert len(others) == 1
    ledger.end_opening(first, FakeSession(), 51)
    ledger.end_opening(others[0], FakeSession(), 51)
    queued(ledger, 2)
    ledger.min_size = 3
    assert len(ledger.begin_openings(51, FOREVER, at_once=False)) == 1
    assert len(begun(ledger, 51)) == 1


def test_next_look_comes_no_moment_too_early() -> None:
    ledger: FakeLedger = Ledger(0, 4, None, 1)
    queued(ledger, 1)
    begun(ledger)
    look = ledger.next_look(0)
    assert look == 1
    assert len(begun(ledger, look)) == 1


def test_overdue_openings_count_for_max_size_and_min_size() -> None:
    ledger: FakeLedger = Ledger(2, 3, None, 4)
    assert len(begun(ledger)) == 2
    assert begun(ledger, 50) == []
    queued(ledger, 2)
    assert len(begun(ledger, 50)) == 1


def test_overdue_probe_gets_another_beside_it() -> None:
    ledger = down()
    now = ledger.retry_at
    queued(ledger, 2, now)
    assert len(begun(ledger, now)) == 1
    assert len(begun(ledger, now + 2)) == 1


def test_openings_that_are_overdue_have_a_bound() -> None:
    ledger: FakeLedger = Ledger(0, 100, None, 2)
    queued(ledger, 50)
    counts = [len(begun(ledger, now)) for now in range(0, 20, 2)]
    assert counts == [2, 2, 2, 2, 0, 0, 0, 0, 0, 0]
    ledger = Ledger(0, 100, None, 2)
    queued(ledger, 1)
    begun(ledger)
    queued(ledger, 50)
    assert [len(begun(ledger, now)) for now in range(2, 20, 2)] == [2, 2, 2, 1, 0, 0, 0, 0, 0]


def test_only_overdue_openings_lower_the_limit() -> None:
    ledger: FakeLedger = Ledger(0, 100, None, 2)
    queued(ledger, 2)
    assert [len(begun(ledger, now)) for now in (0, 2, 4)] == [2, 2, 2]
    ledger.min_size = 7
    assert ledger.give_up(next(iter(ledger.waiting)))
    assert len(begun(ledger, 6)) == 1  # six are overdue
    queued(ledger, 5)
    assert len(begun(ledger, 6)) == 1


def test_next_look_is_when_something_may_have_changed() -> None:
    ledger: FakeLedger = Ledger(0, 4, None, 1)
    assert ledger.next_look(0) is None
    (waiter,) = queued(ledger, 1)
    assert ledger.next_look(0) is None  # what could be begun was
    ledger.begin_openings(0, 20)
    assert ledger.next_look(0) == 1  # it is overdue then
    assert ledger.next_look(1) == pytest.approx(19.2)  # it is late then
    assert ledger.next_look(25) == 0
    ledger.give_up(waiter)
    assert ledger.next_look(0) == pytest.approx(20.2)


@pytest.mark.parametrize("who", ["waits", "watches", "min_size"])
def test_next_look_is_when_it_is_time_for_a_probe(who: str) -> None:
    ledger, _ = used(1, opening_limit=1)
    ledger.min_size = 2
    fail(ledger)
    fail(ledger)
    ledger.min_size = 2 if who == "min_size" else 1
    if who == "waits":
        queued(ledger, 1)
    elif who == "watches":
        watching(ledger)
    assert ledger.next_look(ledger.retry_at - 1 / 32) == pytest.approx(1 / 32)
    assert ledger.next_look(ledger.retry_at) is None
    ledger.min_size = 1
    if who == "min_size":
        assert ledger.next_look(0) is None


# When the server is down


@pytest.mark.parametrize(("chance", "factor"), [(0.0, 1), (0.5, 0.75), (1.0, 0.5)])
def test_delay_doubles_after_the_second_failure(chance: float, factor: float) -> None:
    ledger: FakeLedger = Ledger(1, 1, None, 1)
    now: float = 0
    fail(ledger, now, chance)
    assert ledger.retry_at <= now
    delays = []
    for _ in range(8):
        fail(ledger, now, chance)
        delays.append(ledger.retry_at - now)
        assert begun(ledger, ledger.retry_at - 1e-6) == []
        now = ledger.retry_at
    assert delays == pytest.approx([delay * factor for delay in [0.05, 0.1, 0.2, 0.4, 0.8, 0.8, 0.8, 0.8]])
    assert (FIRST_DELAY, LONGEST_DELAY) == (0.05, 0.8)


def test_delay_does_not_grow_for_ever() -> None:
    ledger: FakeLedger = Ledger(1, 1, None, 1)
    ledger.failures = 10_000  # two to the power of this is no float
    fail(ledger, 0)
    assert ledger.retry_at == LONGEST_DELAY


def test_first_failure_of_a_full_server_is_worth_a_delay() -> None:
    ledger: FakeLedger = Ledger(1, 1, None, 1)
    fail(ledger, 10, is_full=True)
    assert ledger.retry_at == 10 + FIRST_DELAY
    assert begun(ledger, 10) == []


def test_one_probe_after_a_failure() -> None:
    ledger: FakeLedger = Ledger(4, 8, None, 4)
    openings = begun(ledger)
    assert len(openings) == 4
    for opening in openings:
        ledger.fail_opening(opening, OSError(), 0, 0.0, is_full=False)
    assert begun(ledger) == []
    (probe,) = begun(ledger, ledger.retry_at)
    queued(ledger, 3, now=ledger.retry_at)
    assert begun(ledger, ledger.retry_at) == []
    ledger.end_opening(probe, FakeSession(), ledger.retry_at)
    assert (ledger.failures, ledger.failure, ledger.retry_at) == (0, None, 0)
    assert len(begun(ledger)) == 3


def test_no_second_probe_while_others_are_still_under_way() -> None:
    ledger: FakeLedger = Ledger(3, 8, None, 3)
    first, second, third = begun(ledger)
    ledger.fail_opening(first, OSError(), 0, 0.0, is_full=False)
    assert begun(ledger) == []
    ledger.fail_opening(second, OSError(), 0, 0.0, is_full=False)
    assert begun(ledger, ledger.retry_at) == []
    ledger.fail_opening(third, OSError(), 0, 0.0, is_full=False)
    assert len(begun(ledger, ledger.retry_at)) == 1


@pytest.mark.parametrize(
    ("leased", "failed_before", "is_full", "refused"),
    [
        pytest.param(0, 0, False, 3, id="nothing in use"),
        pytest.param(0, 1, False, 3, id="nothing in use, again"),
        pytest.param(0, 0, True, 3, id="full of others' sessions"),
        pytest.param(0, 1, True, 3, id="full of others' sessions, again"),
        pytest.param(1, 0, False, 1, id="in use"),
        pytest.param(1, 1, False, 3, id="in use, again"),
        pytest.param(1, 0, True, 0, id="full, one may be given back"),
        pytest.param(1, 1, True, 0, id="full, one may be given back, again"),
    ],
)
def test_who_is_refused_when_an_opening_fails(leased: int, failed_before: int, is_full: bool, refused: int) -> None:
    ledger, _ = used(leased, opening_limit=1)
    ledger.min_size = 2
    for _ in range(failed_before):
        fail(ledger)
    queue = queued(ledger, 3)
    error = OSError("no route")
    assert fail(ledger, is_full=is_full, error=error) == queue[:refused]
    assert all((one.state, one.error) == (WaiterState.REFUSED, error) for one in queue[:refused])
    assert all((one.state, one.error) == (WaiterState.WAITING, None) for one in queue[refused:])
    assert (list(ledger.waiting), ledger.failures) == (queue[refused:], failed_before + 1)
    assert ledger.failure is error


def test_one_is_refused_while_another_opening_is_under_way_and_all_when_that_fails_too() -> None:
    ledger: FakeLedger = Ledger(0, 4, None, 2)
    first, *others = queued(ledger, 3)
    failing, slow = begun(ledger)
    assert ledger.fail_opening(failing, OSError(), 0, 0.0, is_full=False) == [first]
    assert ledger.fail_opening(slow, OSError(), 0, 0.0, is_full=False) == others


def test_waiter_that_fell_out_of_the_queue_is_served_by_what_came_meanwhile() -> None:
    ledger, (session,) = used(1)
    (waiter,) = queued(ledger, 1)
    del ledger.waiting[waiter]  # an interruption, just before it is given something
    assert ledger.release(session, 0) is None
    ledger.requeue(waiter)
    ledger.check()
    assert (waiter.state, waiter.session) == (WaiterState.GIVEN_SESSION, session)


def test_waiter_that_fell_out_of_the_queue_is_refused_by_a_closed_pool() -> None:
    ledger, _ = used(1)
    (waiter,) = queued(ledger, 1)
    del ledger.waiting[waiter]
    ledger.close()
    ledger.requeue(waiter)
    ledger.check()
    assert (waiter.state, waiter.error) == (WaiterState.REFUSED, None)


def test_whoever_watches_is_not_refused() -> None:
    ledger, (session,) = used(1)
    watcher = watching(ledger)
    assert fail(ledger) == fail(ledger) == []
    assert ledger.put_back(session, owing=False) is watcher


def test_caller_who_comes_while_the_server_is_down_is_refused_at_once_with_the_same_error() -> None:
    error = OSError("no route")
    ledger = down(error=error)
    (waiter,) = queued(ledger, 1, now=ledger.retry_at - 1 / 1024)
    assert (waiter.state, waiter.error, waiter.session) == (WaiterState.REFUSED, error, None)
    assert not ledger.waiting
    assert not ledger.give_up(waiter)
    assert ledger.timeouts == 0


def test_caller_who_comes_when_it_is_time_for_a_probe_waits_for_it() -> None:
    ledger = down()
    now = ledger.retry_at
    (waiter,) = queued(ledger, 1, now)
    (probe,) = begun(ledger, now)
    (another,) = queued(ledger, 1, now - 1 / 1024)  # by an older reading of the clock
    assert waiter.state is another.state is WaiterState.WAITING
    assert ledger.fail_opening(probe, OSError(), now, 0.0, is_full=False) == [waiter, another]


def test_caller_who_comes_after_the_first_failure_waits_for_the_probe() -> None:
    ledger = down(failures=1)
    (waiter,) = queued(ledger, 1)
    assert waiter.state is WaiterState.WAITING
    assert len(begun(ledger)) == 1


def test_caller_who_comes_while_the_server_is_down_waits_for_a_session_that_is_out() -> None:
    ledger, (session,) = used(1)
    ledger.min_size = 2
    fail(ledger)
    fail(ledger)
    (waiter,) = queued(ledger, 1)
    assert waiter.state is WaiterState.WAITING
    assert ledger.lost_hope(0) == []
    assert ledger.release(session, 0) is waiter


def test_hope_is_lost_with_the_last_session() -> None:
    ledger, (first, last) = used(2, opening_limit=1)
    error = OSError("too many connections")
    queue = queued(ledger, 2)
    assert fail(ledger, is_full=True, error=error) == []
    ledger.retire(first, "lost")
    assert ledger.lost_hope(0) == []
    ledger.retire(last, "lost")
    assert ledger.lost_hope(ledger.retry_at) == []
    assert ledger.lost_hope(ledger.retry_at - 1 / 1024) == queue
    assert [(waiter.state, waiter.error) for waiter in queue] == [(WaiterState.REFUSED, error)] * 2
    assert not ledger.waiting


def test_hope_is_not_lost_while_one_is_being_opened() -> None:
    ledger, (session,) = used(1, opening_limit=2)
    queue = queued(ledger, 2)
    one, other = begun(ledger)
    ledger.fail_opening(one, OSError(), 0, 0.0, is_full=True)
    ledger.retire(session, "lost")
    assert ledger.lost_hope(0) == []
    assert ledger.end_opening(other, FakeSession(), 0) is queue[0]


def test_hope_is_not_lost_where_nothing_has_failed() -> None:
    ledger, session, (waiter,) = full(1)
    ledger.retire(session, "lost")
    assert ledger.lost_hope(-1) == []
    assert len(begun(ledger)) == 1
    assert waiter.state is WaiterState.WAITING


# The ends


def test_expiry_keeps_min_size_of_those_that_are_merely_idle() -> None:
    ledger = filled(3, min_size=2)
    coldest, *others = ledger.idle
    for session in ledger.idle:
        session.idle_since = 5
    assert ledger.expire(10**6, None) == []
    assert ledger.expire(14, 10) == []
    assert ledger.expire(15, 10) == [(coldest, "idle_timeout")]
    assert ledger.expire(10**6, 10) == []
    assert ledger.idle == others
    assert ledger.closed_by_reason == {"idle_timeout": 1}


def test_expiry_for_age_goes_below_min_size() -> None:
    ledger = filled(2, min_size=2)
    ledger.idle[1].expires_at = 5
    old = ledger.idle[1]
    assert ledger.expire(4, None) == []
    assert ledger.expire(5, None) == [(old, "max_lifetime")]
    assert len(begun(ledger, 5)) == 1


@pytest.mark.parametrize(("attribute", "reason"), [("expires_at", "max_lifetime"), ("idle_limit", "wait_timeout")])
def test_session_that_must_go_spares_an_idle_one(attribute: str, reason: str) -> None:
    ledger = filled(2, min_size=1)
    idle, over = ledger.idle
    setattr(over, attribute, 10)
    assert ledger.expire(10, 10) == [(over, reason)]
    assert ledger.idle == [idle]


def test_idle_limit_counts_from_the_last_use_or_validation_and_goes_below_min_size() -> None:
    ledger, sessions = used(3, min_size=3)
    for session in sessions:
        session.idle_limit = 8
        ledger.release(session, 10)
    asked_before, asked_after, unlimited = sessions
    asked_before.asked_at, asked_after.asked_at, unlimited.idle_limit = 5, 12, FOREVER
    assert ledger.expire(17, None) == []
    assert ledger.expire(18, None) == [(asked_before, "wait_timeout")]
    assert ledger.expire(19, 100) == []
    assert ledger.expire(20, 100) == [(asked_after, "wait_timeout")]
    assert ledger.closed_by_reason == {"wait_timeout": 2}
    assert len(begun(ledger, 20)) == 2


def test_validation_does_not_put_idle_timeout_off() -> None:
    ledger = filled(2)
    sessions = list(ledger.idle)
    for now in range(5, 15, 5):
        ledger.distrust()
        for session in ledger.take_stale(now):
            session.validate_at, session.asked_at = FOREVER, now
            ledger.put_back(session, owing=False)
    assert ledger.expire(12, 12) == [(session, "idle_timeout") for session in sessions]


def test_expiry_leaves_leased_and_owing_sessions_alone() -> None:
    ledger, (leased, owing) = used(2)
    leased.expires_at = owing.expires_at = 0
    ledger.release(owing, 0, owing=True)
    assert ledger.expire(10, 1) == []
    assert (ledger.in_use, list(ledger.owing)) == ({leased}, [owing])


def test_drain_ends_what_is_idle_and_marks_what_is_leased() -> None:
    ledger, (owing, leased, idle) = used(3)
    ledger.release(owing, 0, owing=True)
    ledger.release(idle, 0)
    assert ledger.drain() == [idle, owing]
    assert (ledger.idle, list(ledger.owing), ledger.in_use) == ([], [], {leased})
    assert (leased.expires_at, leased.end_reason) == (BEFORE_ALL, "drained")
    ledger.retire(leased, leased.end_reason)
    assert (ledger.closed_by_reason, ledger.size) == ({"drained": 3}, 0)


def test_opening_that_was_begun_before_drain_is_not_wanted() -> None:
    ledger: FakeLedger = Ledger(1, 4, None, 4)
    (stale,) = begun(ledger)
    (waiter,) = queued(ledger, 1)
    ledger.drain()
    ledger.min_size = 2
    (fresh,) = begun(ledger)
    with pytest.raises(NotWanted):
        ledger.end_opening(stale, FakeSession(), 0)
    assert (ledger.openings, ledger.closed_by_reason, ledger.opened) == ({fresh}, {"drained": 1}, 1)
    assert ledger.end_opening(fresh, FakeSession(), 0) is waiter


def test_opening_that_is_not_wanted_proves_that_the_server_is_back() -> None:
    ledger = down()
    (waiter,) = queued(ledger, 1, ledger.retry_at)
    (probe,) = begun(ledger, ledger.retry_at)
    ledger.drain()
    with pytest.raises(NotWanted):
        ledger.end_opening(probe, FakeSession(), ledger.retry_at)
    assert (ledger.failure, ledger.failures, waiter.state) == (None, 0, WaiterState.WAITING)
    assert len(begun(ledger)) == 1


def test_openings_that_are_too_many_after_resize_are_not_wanted() -> None:
    ledger: FakeLedger = Ledger(3, 3, None, 3)
    openings = begun(ledger)
    assert ledger.resize(0, 1) == []
    for opening in openings[:2]:
        with pytest.raises(NotWanted):
            ledger.end_opening(opening, FakeSession(), 0)
    assert ledger.end_opening(openings[2], FakeSession(), 0) is None
    assert (len(ledger.idle), ledger.opened, ledger.closed_by_reason) == (1, 3, {"resized": 2})


@pytest.mark.parametrize("is_drained", [False, True])
def test_opening_that_ends_after_close_is_not_wanted(is_drained: bool) -> None:
    ledger: FakeLedger = Ledger(1, 1, None, 1)
    (opening,) = begun(ledger)
    if is_drained:
        ledger.drain()
    ledger.close()
    with pytest.raises(NotWanted):
        ledger.end_opening(opening, FakeSession(), 0)
    assert (ledger.size, ledger.opened) == (0, 1)
    assert +ledger.closed_by_reason == {"pool closed": 1}


def test_resize_ends_the_coldest_and_then_what_owes_least_long() -> None:
    ledger, (leased, first, second, cold, warm) = used(5, max_size=5)
    for session in (cold, warm):
        ledger.release(session, 0)
    assert ledger.resize(1, 5) == []
    for session in (first, second):
        ledger.release(session, 0, owing=True)
    assert ledger.resize(1, 4) == [cold]
    assert ledger.resize(1, 2) == [warm, second]
    assert (list(ledger.owing), ledger.in_use, ledger.size) == ([first], {leased}, 2)
    assert (ledger.min_size, ledger.max_size) == (1, 2)
    assert (ledger.closed_by_reason, leased.expires_at) == ({"resized": 3}, FOREVER)


def test_resize_marks_leased_sessions_that_are_too_many() -> None:
    ledger, sessions = used(4)
    assert ledger.resize(0, 3) == []
    (marked,) = [session for session in sessions if session.expires_at == BEFORE_ALL]
    assert marked.end_reason == "resized"
    staying = [session for session in sessions if session is not marked]
    assert {(session.expires_at, session.end_reason) for session in staying} == {(FOREVER, "max_lifetime")}
    ledger.resize(0, 1)
    assert [session.expires_at for session in sessions].count(BEFORE_ALL) == 3


@pytest.mark.parametrize("position", range(4))
def test_resize_marks_no_more_than_need_be_where_some_leave_already(position: int) -> None:
    ledger, sessions = used(4)
    leaving = list(ledger.in_use)[position]
    leaving.expires_at, leaving.end_reason = BEFORE_ALL, "drained"
    ledger.resize(0, 3)
    assert [session.expires_at for session in sessions].count(BEFORE_ALL) == 1
    assert leaving.end_reason == "drained"


def test_resize_ends_idle_sessions_where_none_owes() -> None:
    ledger = filled(3)
    cold, *_ = ledger.idle
    assert ledger.resize(0, 2) == [cold]
    assert ledger.size == 2


def test_resize_marks_none_where_there_is_room_for_all() -> None:
    ledger, sessions = used(3)
    ledger.resize(0, 4)
    assert [session.expires_at for session in sessions] == [FOREVER] * 3


def test_resize_marks_no_leased_session_for_an_opening_that_is_too_much() -> None:
    ledger, (session,) = used(1)
    queued(ledger, 3)
    openings = begun(ledger)
    ledger.resize(0, 1)
    assert session.expires_at == FOREVER
    for opening in openings:
        with pytest.raises(NotWanted):
            ledger.end_opening(opening, FakeSession(), 0)
    assert ledger.size == 1


def test_resize_upwards_makes_room() -> None:
    ledger, session, (waiter,) = full(1)
    assert begun(ledger) == []
    assert ledger.resize(0, 2) == []
    (opening,) = begun(ledger)
    assert ledger.end_opening(opening, FakeSession(), 0) is waiter
    assert session.expires_at == FOREVER


def test_close_refuses_everything_and_gives_all_back() -> None:
    ledger, session, queue = full(2)
    watcher = watching(ledger)
    assert ledger.close() == ([], [watcher, *queue])
    assert {(waiter.state, waiter.error) for waiter in (watcher, *queue)} == {(WaiterState.REFUSED, None)}
    with pytest.raises(PoolClosed):
        ledger.take()
    ledger.min_size = ledger.max_size = 2
    assert begun(ledger) == []
    assert ledger.in_use == {session}
    ledger.retire(session, "pool closed")
    assert (ledger.size, ledger.closed_by_reason) == (0, {"pool closed": 1})


def test_close_returns_idle_sessions_and_counts_them() -> None:
    ledger = filled(3)
    owing = taken(ledger)
    ledger.release(owing, 0, owing=True)
    idle = [*ledger.idle, owing]
    assert ledger.close() == (idle, [])
    assert ledger.closed_by_reason == {"pool closed": 3}
    assert ledger.close() == ([], [])


# Each method returns the sessions to close.


def _end_opening(ledger: FakeLedger) -> list[FakeSession]:
    session = FakeSession()
    ledger.min_size = ledger.size + 1
    opening, *_ = begun(ledger)
    try:
        ledger.end_opening(opening, session, 0)
    except NotWanted:
        return [session]
    return []


def _end_stale_opening(ledger: FakeLedger) -> list[FakeSession]:
    ledger.min_size = ledger.size + 1
    opening, *_ = begun(ledger)
    gone, session = ledger.drain(), FakeSession()
    with pytest.raises(NotWanted):
        ledger.end_opening(opening, session, 0)
    return [*gone, session]


def _retire(ledger: FakeLedger) -> list[FakeSession]:
    session = next(iter(ledger.in_use))
    ledger.retire(session, "lost")
    return [session]


@pytest.mark.parametrize("waiters", [0, 1, 3])
@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda ledger: ledger.take() and [], id="take"),
        pytest.param(lambda ledger: ledger.take_owing() and [], id="take_owing"),
        pytest.param(lambda ledger: ledger.take_stale(FOREVER) and [], id="take_stale"),
        pytest.param(lambda ledger: ledger.release(next(iter(ledger.in_use)), 5) and [], id="release"),
        pytest.param(
            lambda ledger: ledger.release(next(iter(ledger.in_use)), 5, owing=True) and [], id="release owing"
        ),
        pytest.param(lambda ledger: ledger.put_back(next(iter(ledger.in_use)), owing=False) and [], id="put_back"),
        pytest.param(lambda ledger: ledger.put_back(next(iter(ledger.in_use)), owing=True) and [], id="put_back owing"),
        pytest.param(_end_opening, id="end_opening"),
        pytest.param(_end_stale_opening, id="end_opening, stale"),
        pytest.param(_retire, id="retire"),
        pytest.param(lambda ledger: [session for session, _ in ledger.expire(9, 3)], id="expire"),
        pytest.param(lambda ledger: ledger.drain(), id="drain"),
        pytest.param(lambda ledger: ledger.resize(0, 1), id="resize"),
        pytest.param(lambda ledger: ledger.distrust() and [], id="distrust"),
        pytest.param(lambda ledger: ledger.close()[0], id="close"),
    ],
)
def test_no_method_loses_a_session(use: Callable[[FakeLedger], list[FakeSession] | None], waiters: int) -> None:
    ledger, (owing, *idle, _, _) = used(6, max_size=8)
    if waiters:
        queued(ledger, waiters)
        watching(ledger)
    else:
        ledger.release(owing, 0, owing=True)
        for session in idle:
            ledger.release(session, 0)
    closed = use(ledger) or []
    ledger.check()
    places = [*ledger.idle, *ledger.owing, *ledger.in_use, *closed]
    assert len(places) == len(set(places)) == ledger.opened
    assert ledger.closed_by_reason.total() == len(closed)


# What a pool must not do


@pytest.mark.parametrize("place", ["idle", "owing", "nowhere"])
@pytest.mark.parametrize(
    "give_back",
    [
        pytest.param(lambda ledger, session: ledger.release(session, 5), id="release"),
        pytest.param(lambda ledger, session: ledger.put_back(session, owing=False), id="put_back"),
        pytest.param(lambda ledger, session: ledger.retire(session, "lost"), id="retire"),
    ],
)
def test_session_is_given_back_once_only(give_back: Callable[[FakeLedger, FakeSession], object], place: str) -> None:
    ledger, (session, _) = used(2)
    if place == "nowhere":
        ledger.retire(session, "lost")
    else:
        ledger.release(session, 0, owing=place == "owing")
    before = (list(ledger.idle), list(ledger.owing), ledger.leases, dict(ledger.closed_by_reason), session.idle_since)
    with pytest.raises(KeyError):
        give_back(ledger, session)
    after = (list(ledger.idle), list(ledger.owing), ledger.leases, dict(ledger.closed_by_reason), session.idle_since)
    assert before == after


@pytest.mark.parametrize("state", [state for state in WaiterState if state is not WaiterState.NEW])
def test_waiter_waits_once_only(state: WaiterState) -> None:
    ledger, _ = used(1)
    waiter: FakeWaiter = Waiter()
    waiter.state = state
    with pytest.raises(RuntimeError, match=f"cannot go from {state.name} to WAITING"):
        ledger.wait(waiter, 0)
    with pytest.raises(RuntimeError, match=f"cannot go from {state.name} to WAITING"):
        ledger.watch(waiter)
    assert not ledger.waiting
    assert not ledger.watching


@pytest.mark.parametrize("state", [state for state in WaiterState if state is not WaiterState.WAITING])
def test_only_who_waits_can_give_up(state: WaiterState) -> None:
    ledger, _, (waiter,) = full(1)
    waiter.state = state
    assert ledger.give_up(waiter) is False
    assert (waiter.state, ledger.timeouts) == (state, 0)


def test_waiter_is_given_something_once_only() -> None:
    ledger, session, (waiter,) = full(1)
    ledger.release(session, 0)
    ledger.waiting[waiter] = None
    with pytest.raises(RuntimeError, match="cannot go from GIVEN_SESSION to GIVEN_SESSION"):
        ledger.release(session, 0)


# The check itself


def waiting() -> FakeWaiter:
    waiter: FakeWaiter = Waiter()
    waiter.state = WaiterState.WAITING
    return waiter


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


def _waits_beside_idle(ledger: FakeLedger) -> None:
    ledger.waiting[waiting()] = None


def _waits_beside_owing(ledger: FakeLedger) -> None:
    ledger.owing.append(ledger.idle.pop())
    ledger.idle.clear()
    ledger.waiting[waiting()] = None


def _waits_for_a_closed_pool(ledger: FakeLedger) -> None:
    ledger.close()
    ledger.waiting[waiting()] = None


def _watches_beside_idle(ledger: FakeLedger) -> None:
    ledger.in_use.add(ledger.idle.pop())
    ledger.watching[waiting()] = None


def _watches_with_nothing(ledger: FakeLedger) -> None:
    ledger.idle.clear()
    ledger.watching[waiting()] = None


def _idle_in_closed(ledger: FakeLedger) -> None:
    ledger.closed = True


def _owing_in_closed(ledger: FakeLedger) -> None:
    ledger.close()
    ledger.owing.append(FakeSession())


def _queue_holds_one_that_left(ledger: FakeLedger) -> None:
    ledger.idle.clear()
    ledger.waiting[Waiter()] = None


def _watchers_hold_one_that_left(ledger: FakeLedger) -> None:
    ledger.in_use.update(ledger.idle)
    ledger.idle.clear()
    ledger.watching[Waiter()] = None


@pytest.mark.parametrize(
    "spoil",
    [
        _idle_twice,
        _idle_and_in_use,
        _idle_and_owing,
        _owing_and_in_use,
        _waits_beside_idle,
        _waits_beside_owing,
        _waits_for_a_closed_pool,
        _watches_beside_idle,
        _watches_with_nothing,
        _idle_in_closed,
        _owing_in_closed,
        _queue_holds_one_that_left,
        _watchers_hold_one_that_left,
    ],
)
def test_check_notices(spoil: Callable[[FakeLedger], None]) -> None:
    ledger = filled(2)
    ledger.check()
    spoil(ledger)
    with pytest.raises(AssertionError):
        ledger.check()
