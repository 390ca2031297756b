"""Questions of correctness, asked by doing: what one lease leaves to the next, and what faults do to a pool.

A probe runs in a peer's process, which is killed when it does not answer. Its verdict is what was seen.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pymysql

PATIENCE = 15.0  # seconds in which what is said to be bounded must end


class Verdict(NamedTuple):
    """Whether a peer does right, and what was seen."""

    good: bool
    seen: str


class State(NamedTuple):
    """What a lease leaves behind, and how another one would see it."""

    leave: Sequence[str]
    ask: str
    autocommit: bool = True


STATES = {
    "user variable": State(["SET @probe = 5"], "SELECT @probe"),
    "sql_mode": State(["SET sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES'"], "SELECT @@sql_mode"),
    "character set": State(["SET NAMES latin1"], "SELECT @@character_set_client"),
    "time zone": State(["SET time_zone = '+03:00'"], "SELECT @@time_zone"),
    "isolation level": State(
        ["SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE"], "SHOW SESSION VARIABLES LIKE 't%isolation'"
    ),
    "temporary table": State(
        ["CREATE TEMPORARY TABLE probe_temporary (a INT)"], "SELECT COUNT(*) FROM probe_temporary"
    ),
    "prepared statement": State(["PREPARE probe FROM 'SELECT 5'"], "EXECUTE probe"),
    "database": State(["USE information_schema"], "SELECT DATABASE()"),
    "role": State(["SET ROLE probe_role"], "SELECT CURRENT_ROLE()"),
    "autocommit": State(["SET autocommit = 0"], "SELECT @@autocommit"),
    "autocommit, where it is off": State(["SELECT 1"], "SELECT @@autocommit", autocommit=False),
    "last insert id": State(["INSERT INTO probe_ids (a) VALUES (1)"], "SELECT LAST_INSERT_ID()"),
}
# What makes what the states need; errors mean that it is there already.
PREPARATION = (
    "CREATE TABLE IF NOT EXISTS probe_ids (id INT AUTO_INCREMENT PRIMARY KEY, a INT) ENGINE=InnoDB",
    "CREATE TABLE IF NOT EXISTS probe_rows (a INT PRIMARY KEY) ENGINE=InnoDB",
    "CREATE ROLE IF NOT EXISTS probe_role",
    "CREATE FUNCTION IF NOT EXISTS probe_hidden(name VARCHAR(40)) RETURNS INT NO SQL RETURN GET_LOCK(name, 0)",
)

# Name -> what a "yes" means; the order is that of the table. Those with a second step come last.
TITLES = {
    **{f"leak: {name}": f"the next lease does not see the last one's {name}" for name in STATES},
    "leak: transaction": "an unfinished transaction is rolled back, neither committed nor left open",
    "leak: GET_LOCK": "a named lock is free after release",
    "leak: GET_LOCK in a function": "the same where a stored function took it",
    "leak: LOCK TABLES": "a table lock is free after release",
    "old reference": "after release, the old reference cannot drive the session",
    "old cursor": "nor can an old cursor",
    "dropped lease": "a lease that was dropped without release comes back",
    "KILL while idle": "a session that was killed while idle is replaced without an error",
    "KILL while leased": "after a session was killed in use the pool goes on",
    "lost in mid-transaction": "a connection lost in mid-transaction is an error; nothing is committed by halves",
    "fork": "parent and child do not share a session, and the parent's survives",
    "restart": "after a restart of the server the first lease works",
    "dead link, at once": f"an idle session whose link has just died: use ends within {PATIENCE:.0f} s",
    "dead link, idle for long": f"the same 40 s later: use ends within {PATIENCE:.0f} s",
}
TWO_STEPS = ("restart", "dead link, at once", "dead link, idle for long")


def query(connection: Any, sql: str) -> list[str]:
    """Run a statement with any driver; return its rows as text."""
    cursor = connection.cursor()
    try:
        cursor.execute(sql)
        return [str(tuple(row)) for row in cursor.fetchall()] if cursor.description else []
    finally:
        cursor.close()


def answer(connection: Any, sql: str) -> str:
    """Return the answer, be it an error."""
    try:
        return " ".join(query(connection, sql))
    except Exception as error:  # noqa: BLE001  each driver has its own
        return f"{type(error).__name__} {error.args[:1]}"


def failure(run: Callable[[], object]) -> str | None:
    """Run something; return the error it raised, or None."""
    try:
        run()
    except Exception as error:  # noqa: BLE001  each driver has its own
        return f"{type(error).__name__}: {error}"[:120]
    return None


class Prober:
    """Asks one variant of a peer."""

    def __init__(self, adapter: Any, options: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
        self._adapter, self._options, self._arguments = adapter, options, dict(arguments)
        self._pool: Any = None

    def run(self, name: str, step: int) -> Verdict | None:
        """Ask one question; the first step of two gives None."""
        if name == "restart":
            return self._after_restart() if step else self._use()
        if name.startswith("dead link"):
            return self._over_dead_link() if step else self._use()
        if name.removeprefix("leak: ") in STATES:
            return self._leak(STATES[name.removeprefix("leak: ")])
        return _PROBES[name](self)

    def pool(self, *, autocommit: bool = True) -> Any:
        """Make a pool of one session, so that the next lease gets the same one if it may."""
        return self._adapter.Pool(self._options, self._arguments, size=1, autocommit=autocommit, tls=False)

    @contextlib.contextmanager
    def admin(self) -> Iterator[Any]:
        with pymysql.connect(**self._arguments, ssl_disabled=True, autocommit=True) as connection:
            yield connection

    @contextlib.contextmanager
    def rows(self) -> Iterator[Any]:
        """Empty the table `probe_rows`, without waiting for what a lock of a leak would hold."""
        with self.admin() as admin:
            query(admin, "SET lock_wait_timeout = 2, innodb_lock_wait_timeout = 2")
            query(admin, "DELETE FROM probe_rows")
            yield admin

    # What the next lease sees

    def _leak(self, state: State) -> Verdict:
        pool = self.pool(autocommit=state.autocommit)
        lease = pool.acquire()
        before = answer(lease, state.ask)
        for statement in state.leave:
            query(lease, statement)
        pool.release(lease)
        lease = pool.acquire()
        after = answer(lease, state.ask)
        pool.release(lease)
        return Verdict(after == before, f"{after} instead of {before}" if after != before else "as before")

    def _transaction(self) -> Verdict:
        pool = self.pool()
        with self.rows() as admin:
            lease = pool.acquire()
            query(lease, "START TRANSACTION")
            query(lease, "INSERT INTO probe_rows VALUES (1)")
            pool.release(lease)
            lease = pool.acquire()
            query(lease, "SELECT 1")
            pool.release(lease)
            if query(admin, "SELECT a FROM probe_rows"):
                return Verdict(good=False, seen="committed")
            if error := failure(lambda: query(admin, "INSERT INTO probe_rows VALUES (1)")):
                return Verdict(good=False, seen=f"left open: {error}")
        return Verdict(good=True, seen="rolled back")

    def _named_lock(self, call: str = "GET_LOCK('{}', 0)") -> Verdict:
        pool = self.pool()
        name = f"probe_{time.monotonic_ns()}"
        with self.admin() as admin:
            lease = pool.acquire()
            taken = query(lease, f"SELECT {call.format(name)}")
            assert taken == ["(1,)"], taken
            pool.release(lease)
            deadline = time.monotonic() + 2.0
            while (free := query(admin, f"SELECT IS_FREE_LOCK('{name}')")) != ["(1,)"]:
                if time.monotonic() > deadline:
                    return Verdict(good=False, seen=f"still taken: {free}")
                time.sleep(0.01)
        return Verdict(good=True, seen="free")

    def _named_lock_in_function(self) -> Verdict:
        return self._named_lock("probe_hidden('{}')")

    def _table_lock(self) -> Verdict:
        pool = self.pool()
        with self.rows() as admin:
            lease = pool.acquire()
            query(lease, "LOCK TABLES probe_rows WRITE")
            pool.release(lease)
            error = failure(lambda: query(admin, "INSERT INTO probe_rows VALUES (1)"))
        return Verdict(error is None, error or "free")

    # Stale references

    def _old_reference(self) -> Verdict:
        pool = self.pool()
        old = pool.acquire()
        pool.release(old)
        new = pool.acquire()
        failure(lambda: query(old, "SET @probe = 6"))
        return self._driven(new)

    def _old_cursor(self) -> Verdict:
        pool = self.pool()
        old = pool.acquire()
        cursor = old.cursor()
        pool.release(old)
        new = pool.acquire()
        failure(lambda: cursor.execute("SET @probe = 6"))
        return self._driven(new)

    def _driven(self, new: Any) -> Verdict:
        found = answer(new, "SELECT @probe")
        return Verdict(found == "(None,)", "dead" if found == "(None,)" else f"the new lease sees {found}")

    def _dropped(self) -> Verdict:
        pool = self.pool()
        outcome = []

        def drop() -> None:
            query(pool.acquire(), "SELECT 1")

        def take() -> None:
            outcome.append(self._turn(pool))

        for target in (drop, take):
            thread = threading.Thread(target=target, daemon=True)
            thread.start()
            thread.join(4.0)
            gc.collect()
        if not outcome:
            return Verdict(good=False, seen="nothing within 4 s")
        return Verdict(outcome[0] is None, outcome[0] or "came back")

    # Faults

    def _kill(self, lease_id: str) -> None:
        with self.admin() as admin:
            with contextlib.suppress(pymysql.err.OperationalError):  # it is gone already
                query(admin, f"KILL {lease_id}")
            gone = f"SELECT COUNT(*) FROM information_schema.processlist WHERE id = {lease_id}"
            while query(admin, gone) != ["(0,)"]:
                time.sleep(0.005)

    def _id(self, lease: Any) -> str:
        return query(lease, "SELECT CONNECTION_ID()")[0].strip("(),")

    def _turn(self, pool: Any) -> str | None:
        """Take a lease and use it; return the error, if there was one."""

        def turn() -> None:
            lease = pool.acquire()
            try:
                query(lease, "SELECT 1")
            finally:
                pool.release(lease)

        return failure(turn)

    def _killed_idle(self) -> Verdict:
        pool = self.pool()
        lease = pool.acquire()
        number = self._id(lease)
        pool.release(lease)
        self._kill(number)
        error = self._turn(pool)
        return Verdict(error is None, error or "replaced")

    def _killed_leased(self) -> Verdict:
        pool = self.pool()
        lease = pool.acquire()
        self._kill(self._id(lease))
        first = failure(lambda: query(lease, "SELECT 1"))
        failure(lambda: pool.release(lease))
        errors = [error for _ in range(3) if (error := self._turn(pool))]
        seen = f"{'an error' if first else 'no error'} in the lease, then {len(errors)} of 3 leases failed"
        return Verdict(not errors, seen + (f": {errors[0]}" if errors else ""))

    def _mid_transaction(self) -> Verdict:
        pool = self.pool()
        with self.rows() as admin:
            lease = pool.acquire()
            query(lease, "START TRANSACTION")
            query(lease, "INSERT INTO probe_rows VALUES (1)")
            self._kill(self._id(lease))
            error = failure(lambda: query(lease, "INSERT INTO probe_rows VALUES (2)"))
            error = failure(lease.commit) or error
            failure(lambda: pool.release(lease))
            rows = query(admin, "SELECT a FROM probe_rows")
        told = "an error was raised" if error else "no error was raised"
        return Verdict(error is not None and not rows, f"{told}; committed: {', '.join(rows) or 'nothing'}")

    def _fork(self) -> Verdict:
        pool = self.pool()
        lease = pool.acquire()
        mine = self._id(lease)
        pool.release(lease)
        child = os.fork()
        if not child:
            signal.alarm(10)
            status = 4
            try:
                lease = pool.acquire()
                status = 5 if self._id(lease) == mine else 0
                pool.release(lease)
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        error = self._turn(pool)
        seen = {0: "a session of its own", 5: "the child used its parent's session"}.get(status, "the child got none")
        return Verdict(status == 0 and error is None, seen + (f"; then in the parent {error}" if error else ""))

    # In two steps, with something done outside in between

    def _use(self) -> None:
        self._pool = self.pool()
        if error := self._turn(self._pool):
            raise RuntimeError(error)

    def _after_restart(self) -> Verdict:
        errors = [self._turn(self._pool) for _ in range(3)]
        failed = [error for error in errors if error]
        return Verdict(errors[0] is None, f"{len(failed)} of 3 failed: {failed[0]}" if failed else "works")

    def _over_dead_link(self) -> Verdict:
        began = time.monotonic()
        error = self._turn(self._pool)
        took = time.monotonic() - began
        return Verdict(took <= PATIENCE, f"{error or 'works'} after {took:.1f} s")


_PROBES: dict[str, Callable[[Prober], Verdict]] = {
    "leak: transaction": Prober._transaction,
    "leak: GET_LOCK": Prober._named_lock,
    "leak: GET_LOCK in a function": Prober._named_lock_in_function,
    "leak: LOCK TABLES": Prober._table_lock,
    "old reference": Prober._old_reference,
    "old cursor": Prober._old_cursor,
    "dropped lease": Prober._dropped,
    "KILL while idle": Prober._killed_idle,
    "KILL while leased": Prober._killed_leased,
    "lost in mid-transaction": Prober._mid_transaction,
    "fork": Prober._fork,
}
