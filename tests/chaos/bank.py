"""Workers that transfer money between accounts while things go wrong, and what must hold of it all the same."""

from __future__ import annotations

import collections
import contextlib
import enum
import random
import re
import threading
import time
from collections.abc import Iterator
from typing import Any, Self

import pymysql
from servers import wait_until

import pooled_pymysql

from .schedule import READ_TIMEOUT, Scene

ACCOUNTS = 64
BALANCE = 1000
TAG = re.compile(rb"'(w\d+-\d+-\d+)'")  # worker, transaction, statement
MAX_SIZE = 8
WORKERS = 12  # more than sessions, so that some always wait
TIMEOUT = 0.5  # seconds that a worker waits for a connection
CONNECT_TIMEOUT = 1.5  # seconds that opening one may take: more, so that nobody is held by it
CLOSING = 1.0  # seconds: "less than a second a session" is what the pool says of closing one
# What a worker may be told while there are faults: server codes, and the client's for a connection that was lost.
EXPECTED = {1040, 1053, 1205, 1213, 1317, 1927, 2003, 2006, 2013}
OUT_OF_STEP = "Packet sequence number wrong"  # PyMySQL's words for garbage
TOLERANCE = 0.25  # seconds beyond a deadline, and beyond what the machine itself was late


class End(enum.Enum):
    """What a worker knows of a transaction's end."""

    COMMITTED = enum.auto()  # the server said so
    UNKNOWN = enum.auto()  # COMMIT was sent, or may have been, and no answer came
    NOT_COMMITTED = enum.auto()  # COMMIT was not sent


class Lag(threading.Thread):
    """Notes how late this process's threads run: that is the machine's doing and no waiting."""

    PERIOD = 0.005

    def __init__(self) -> None:
        super().__init__(name="lag", daemon=True)
        self._late: collections.deque[tuple[float, float]] = collections.deque(maxlen=20_000)
        self._over = threading.Event()
        self.worst = 0.0

    def run(self) -> None:
        while not self._over.is_set():
            due = time.monotonic() + self.PERIOD
            self._over.wait(self.PERIOD)
            now = time.monotonic()
            self._late.append((now, now - due))
            self.worst = max(self.worst, now - due)

    def between(self, began: float, ended: float) -> float:
        """Return by how much a thread that should have run in that time was late at most."""
        return max((late for when, late in list(self._late) if began <= when <= ended + late), default=0.0)

    def end(self) -> None:
        self._over.set()
        self.join()


class Bank:
    """The workers, and what they found wrong. A context manager: they work inside."""

    def __init__(self, scene: Scene, seed: int) -> None:
        self.scene = scene
        self.lag = Lag()
        self.wrong: list[str] = []
        self.slowest: dict[str, float] = {}
        self.stopping = threading.Event()
        self._recovery = threading.Condition()
        self._mark = float("inf")
        self._recovered: dict[int, float] = {}
        self.kwargs = scene.account.kwargs(
            port=scene.proxy.port,
            ssl_disabled=True,
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=READ_TIMEOUT,
            write_timeout=READ_TIMEOUT,
            pool={"max_size": MAX_SIZE, "timeout": TIMEOUT},
        )
        self.workers = [Worker(self, number, random.Random(f"{seed}/{number}")) for number in range(WORKERS)]
        self.auditor = Auditor(self)

    def __enter__(self) -> Self:
        self.lag.start()
        for thread in (*self.workers, self.auditor):
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for thread in (*self.workers, self.auditor):
            thread.join(60.0)
            assert not thread.is_alive(), f"{thread.name} hangs"
        self.lag.end()

    @property
    def committed(self) -> int:
        return sum(end is End.COMMITTED for worker in self.workers for end in list(worker.ends.values()))

    @property
    def transactions(self) -> int:
        return sum(len(worker.ends) for worker in self.workers)

    def report(self, text: str) -> None:
        self.wrong.append(text)

    @contextlib.contextmanager
    def bounded(self, what: str, limit: float) -> Iterator[None]:
        """Find fault with what takes longer than it may."""
        began = time.monotonic()
        try:
            yield
        finally:
            ended = time.monotonic()
            over = ended - began - limit
            self.slowest[what] = max(self.slowest.get(what, 0.0), ended - began)
            if over > TOLERANCE and over > TOLERANCE + self.lag.between(began, ended):
                self.report(f"{what} took {ended - began:.3f} s, allowed are {limit} s")

    # Recovery

    def note_success(self, worker: int, began: float) -> None:
        with self._recovery:
            if began >= self._mark and worker not in self._recovered:
                self._recovered[worker] = time.monotonic()
                self._recovery.notify_all()

    def recover(self, over: float, patience: float) -> tuple[float, float]:
        """Wait until each worker has committed a transaction that it began after `over`.

        Returns how long the first and the last of them took.
        """
        with self._recovery:
            self._mark = over
            self._recovered.clear()
            self._recovery.wait_for(lambda: len(self._recovered) == WORKERS, patience)
            times = sorted(self._recovered.values())
        never = over + patience
        return (times[0] if times else never) - over, (times[-1] if len(times) == WORKERS else never) - over


class Worker(threading.Thread):
    """Transfers money, one transaction after the other, and keeps book of what it was told."""

    def __init__(self, bank: Bank, number: int, chance: random.Random) -> None:
        super().__init__(name=f"worker {number}", daemon=True)
        self.bank = bank
        self.number = number
        self.chance = chance
        self.ends: dict[str, End] = {}
        self.errors: collections.Counter[str] = collections.Counter()
        self._statements = 0

    def run(self) -> None:
        while not self.bank.stopping.is_set():
            if self.bank.scene.rest.is_set():
                self.bank.stopping.wait(0.01)
                continue
            try:
                self._transfer(f"w{self.number}-{len(self.ends)}")
            except pymysql.err.MySQLError as error:
                self._note_error(error)
                self.bank.stopping.wait(0.01)  # as a program would, lest it does nothing but fail
            except BaseException as error:
                self.bank.report(f"{self.name}: {error!r}")
                raise

    def _note_error(self, error: pymysql.err.MySQLError) -> None:
        what = error.args[0] if error.args else None
        self.errors[f"{type(error).__name__} {what}"] += 1
        is_garbage = isinstance(error, pymysql.err.InternalError) and OUT_OF_STEP in str(what)
        if not is_garbage and not (isinstance(error, pymysql.err.OperationalError) and what in EXPECTED):
            self.bank.report(f"{self.name} was told {error!r}")

    def _transfer(self, name: str) -> None:
        began = time.monotonic()
        with self.bank.bounded("connect()", TIMEOUT):
            connection = pooled_pymysql.connect(**self.bank.kwargs)
        self._statements = 0
        self.ends[name] = End.NOT_COMMITTED
        is_dropped = False
        try:
            is_dropped = self._move(connection, name)
        finally:
            if self.ends[name] is End.COMMITTED:
                self.bank.note_success(self.number, began)
            if not is_dropped:
                with self.bank.bounded("close()", CLOSING):
                    connection.close()

    def _move(self, connection: Any, name: str) -> bool:
        """Do one transaction; say whether the connection is to be dropped without being closed."""
        chance = self.chance
        source, target = chance.sample(range(ACCOUNTS), 2)
        amount = chance.randrange(1, 20)
        if chance.random() < 0.1:
            self._leave_traces(connection, name)
        connection.begin()
        # In the same order nearly always, so that there are some deadlocks and not many.
        for account in sorted((source, target), reverse=chance.random() < 0.05):
            row = self._ask(connection, name, f"SELECT balance, '{{}}' FROM account WHERE id = {account} FOR UPDATE")
            assert row is not None
        for account, change in ((source, -amount), (target, amount)):
            update = f"UPDATE account SET balance = balance + {change}, last = '{{}}' WHERE id = {account}"
            self._ask(connection, name, update)
        self._ask(connection, name, f"INSERT INTO journal VALUES ('{name}', {source}, {target}, {amount}, '{{}}')")
        match chance.randrange(20):
            case 0:
                with self._statement():
                    connection.rollback()
            case 1:
                pass  # close() rolls back
            case 2:
                return True
            case _:
                self.ends[name] = End.UNKNOWN
                with self._statement():
                    connection.commit()
                self.ends[name] = End.COMMITTED
        return False

    def _leave_traces(self, connection: Any, name: str) -> None:
        """Find what another lease left behind, and leave something for the next to find."""
        (trace,) = self._ask(connection, name, "SELECT '{}', @trace")
        if trace is not None:
            self.bank.report(f"{name} saw the variable of {trace!r}")
        self._ask(connection, name, f"SET @trace = '{name}', @tag = '{{}}'")

    def _ask(self, connection: Any, name: str, sql: str) -> tuple[Any, ...]:
        """Run a statement that no other has the like of; return its row, without the tag that it must bring back."""
        self._statements += 1
        tag = f"{name}-{self._statements}"
        with self._statement(), connection.cursor() as cursor:
            cursor.execute(sql.format(tag))
            row = cursor.fetchone()
        if row is None:
            if sql.startswith("SELECT"):
                self.bank.report(f"{tag} got no row")
            return ()
        if tag not in row:
            self.bank.report(f"{tag} got the answer {row!r}")
        return tuple(value for value in row if value != tag)

    def _statement(self) -> contextlib.AbstractContextManager[None]:
        return self.bank.bounded("a statement", READ_TIMEOUT)


class Auditor(threading.Thread):
    """Looks at the sum of all balances again and again, through the pool."""

    def __init__(self, bank: Bank) -> None:
        super().__init__(name="auditor", daemon=True)
        self.bank = bank
        self.looks = 0

    def run(self) -> None:
        while not self.bank.stopping.wait(0.05):
            if self.bank.scene.rest.is_set():
                continue
            with contextlib.suppress(pymysql.err.MySQLError):
                self._look()

    def _look(self) -> None:
        connection = pooled_pymysql.connect(**self.bank.kwargs)
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT SUM(balance), COUNT(*) FROM account")
                if (row := cursor.fetchone()) != (ACCOUNTS * BALANCE, ACCOUNTS):
                    self.bank.report(f"the auditor saw {row!r}")
            self.looks += 1
        finally:
            connection.close()


# Before and after


def open_books(scene: Scene) -> None:
    """Make empty tables for the workers."""
    with scene.admin() as cursor:
        name = scene.account.database
        cursor.execute(f"DROP DATABASE IF EXISTS {name}")
        cursor.execute(f"CREATE DATABASE {name}")
        cursor.execute(f"USE {name}")
        cursor.execute("CREATE TABLE account (id INT PRIMARY KEY, balance INT, last VARCHAR(40)) ENGINE=InnoDB")
        cursor.execute(
            "CREATE TABLE journal (id VARCHAR(40) PRIMARY KEY, source INT, target INT, amount INT, tag VARCHAR(40))"
            " ENGINE=InnoDB"
        )
        cursor.executemany("INSERT INTO account VALUES (%s, %s, '')", [(n, BALANCE) for n in range(ACCOUNTS)])


def audit(scene: Scene, bank: Bank) -> list[str]:
    """Compare what the server has with what the workers were told; return what is wrong."""
    with scene.admin() as cursor:
        cursor.execute(f"USE {scene.account.database}")
        cursor.execute("SELECT id, balance FROM account")
        balances = dict(cursor.fetchall())
        cursor.execute("SELECT id, source, target, amount FROM journal")
        journal = {name: rest for name, *rest in cursor.fetchall()}
    wrong = []
    if (total := sum(balances.values())) != ACCOUNTS * BALANCE:
        wrong.append(f"the sum of all balances is {total}, not {ACCOUNTS * BALANCE}")
    ends = {name: end for worker in bank.workers for name, end in worker.ends.items()}
    wrong += [f"{name} was acknowledged and is lost" for name in ends if is_lost(name, ends, journal)]
    wrong += [f"{name} was never committed and is there" for name in journal if ends.get(name) is End.NOT_COMMITTED]
    wrong += [f"{name} is nobody's" for name in journal if name not in ends]
    expected = dict.fromkeys(range(ACCOUNTS), BALANCE)
    for source, target, amount in journal.values():
        expected[source] -= amount
        expected[target] += amount
    wrong += [f"account {n} has {balances[n]}, not {due}" for n, due in expected.items() if balances[n] != due]
    wrong += [f"{tag!r} was sent {times} times" for tag, times in scene.proxy.seen.items() if times > 1]
    return wrong


def is_lost(name: str, ends: dict[str, End], journal: dict[str, Any]) -> bool:
    return ends[name] is End.COMMITTED and name not in journal


def assert_whole(scene: Scene, bank: Bank) -> None:
    """Assert that nobody holds or waits for anything, that every slot can be used, and that the server agrees."""
    (pool,) = pooled_pymysql.pools()

    def is_quiet() -> bool:
        stats = pool.stats()
        return (stats.in_use, stats.opening, stats.waiting) == (0, 0, 0)

    wait_until(is_quiet, 10.0, "a pool at rest")
    with contextlib.ExitStack() as stack:
        leases = [stack.enter_context(pooled_pymysql.connect(**bank.kwargs)) for _ in range(MAX_SIZE)]
        ids = []
        for lease in leases:
            with lease.cursor() as cursor:
                cursor.execute("SELECT CONNECTION_ID()")
                ids.append(cursor.fetchone()[0])
        assert len(set(ids)) == MAX_SIZE
        wait_until(lambda: scene.sessions() == sorted(ids), what="the same sessions on both sides")
        stats = pool.stats()
        assert (stats.in_use, stats.idle, stats.opening) == (MAX_SIZE, 0, 0)
    wait_until(is_quiet, 10.0, "a pool at rest")
    assert pool.stats().idle == MAX_SIZE
    pooled_pymysql.close_pools()
    wait_until(lambda: scene.sessions() == [], what="the end of all sessions")
    wait_until(lambda: not own_threads(), 10.0, "the end of the pool's threads")


def own_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("pooled_pymysql")]
