"""Connections of pools made by hand: their `with` blocks lease, commit or roll back, and give back."""

# ruff: noqa: PT012  a block that raises is a scenario of its own

from __future__ import annotations

import contextlib
import signal
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pymysql
import pytest
from callers import PATIENCE
from proxy import Proxy
from pymysql import err
from pymysql.cursors import SSCursor, SSDictCursor
from servers import Server, wait_until

import pooled_pymysql
from pooled_pymysql import (
    ConnectionPool,
    GetConnectionFromPoolError,
    LeaseBusy,
    PoolTimeout,
    ReturnConnectionToPoolError,
    cursor_names,
    pymysqlpool,
)

COM_QUERY = 0x03


@pytest.fixture
def table(admin: Any, database: str) -> str:
    """A table with a unique number and an AUTO_INCREMENT column."""
    with admin.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {database}.t (id INT AUTO_INCREMENT PRIMARY KEY, a INT UNIQUE) ENGINE=InnoDB")
    return f"{database}.t"


@pytest.fixture
def rows(admin: Any, table: str) -> Callable[[], list[int]]:
    """A function that lists what is committed in the table."""

    def read() -> list[int]:
        with admin.cursor() as cursor:
            cursor.execute(f"SELECT a FROM {table} ORDER BY a")
            return [row[0] for row in cursor.fetchall()]

    return read


def closed_connection(pool: ConnectionPool) -> pymysqlpool.Connection:
    """Return a connection that was given back."""
    con = pool.get_connection()
    con.close()
    return con


def run_all(*works: Callable[[], Any]) -> list[Any]:
    """Run each in a thread of its own; return what they return, or raise what the first one raised."""
    with ThreadPoolExecutor(len(works)) as threads:
        return [future.result(PATIENCE) for future in [threads.submit(work) for work in works]]


# Threads


@pytest.mark.thorough
@pytest.mark.parametrize("objects", [8, 1], ids=["one object each", "one object for all"])
def test_eight_threads_run_ten_thousand_blocks_on_two_connections(
    objects: int, config: dict[str, Any], ids: Callable[[], set[int]]
) -> None:
    pool = ConnectionPool(size=2, timeout=PATIENCE, **config)
    connections = [closed_connection(pool) for _ in range(objects)]
    seen: set[int] = set()

    def work(number: int) -> int:
        con = connections[number % objects]
        for count in range(1250):
            with con as cur:
                assert cur.execute("SELECT %s, %s, CONNECTION_ID()", (number, count)) == 1
                mine, counted, server_id = cur.fetchone()
                assert (mine, counted) == (number, count)
            seen.add(server_id)
        return 1250

    assert sum(run_all(*(lambda number=number: work(number) for number in range(8)))) == 10_000  # type: ignore[misc]
    assert len(seen) <= 2
    assert seen <= ids()
    stats = pool.stats()
    assert (stats.opened, stats.in_use, stats.idle, stats.closed) == (2, 0, 2, {})
    pool.close()


def test_second_thread_waits_for_the_whole_block(config: dict[str, Any]) -> None:
    pool = ConnectionPool(size=2, timeout=PATIENCE, **config)
    con = closed_connection(pool)
    order: list[str] = []
    asks = threading.Event()

    def second() -> None:
        asks.set()
        with con as cur:
            cur.execute("SELECT 2")
            order.append("second")

    with ThreadPoolExecutor(1) as threads:
        with con as cur:
            cur.execute("SELECT 1")
            waiting = threads.submit(second)
            assert asks.wait(PATIENCE)
            time.sleep(0.1)
            assert pool.stats().in_use == 1
            cur.execute("SELECT 1")
            assert cur.fetchall() == ((1,),)
            order.append("first")
        waiting.result(PATIENCE)
    assert order == ["first", "second"]
    pool.close()


def test_wait_for_a_block_ends_with_the_pools_timeout(config: dict[str, Any]) -> None:
    pool = ConnectionPool(size=2, timeout=0.2, **config)
    con = closed_connection(pool)
    with con:
        started = time.monotonic()
        with pytest.raises(LeaseBusy, match="another thread's `with` block") as caught:
            run_all(con.__enter__)
        assert 0.2 <= time.monotonic() - started < 2.0
        assert caught.value.args[0] == 2014
    run_all(lambda: con.execute_query("SELECT 1"))
    pool.close()


def test_blocks_of_one_thread_nest(
    config: dict[str, Any], table: str, rows: Callable[[], list[int]], ids: Callable[[], set[int]]
) -> None:
    pool = ConnectionPool(size=2, autocommit=False, **config)
    con = closed_connection(pool)
    with con as outer:
        outer.execute(f"SELECT a FROM {table}")
        outer.execute("SELECT 1 UNION SELECT 2")
        with con as inner:
            assert pool.size() == 1
            inner.execute(f"INSERT INTO {table} (a) VALUES (1)")
        assert con.execute_query("SELECT 3") == ((3,),)
        assert outer.fetchall() == ((1,), (2,))  # each block has a cursor of its own
        with pytest.raises(KeyError), con:
            raise KeyError
        assert rows() == []
    assert rows() == [1]
    with pytest.raises(KeyError), con as outer:
        with con as inner:
            inner.execute(f"INSERT INTO {table} (a) VALUES (2)")
        raise KeyError
    assert rows() == [1]
    assert (pool.size(), len(ids())) == (2, 2)
    pool.close()


def test_other_threads_may_work_in_a_block_that_handed_them_the_connection(config: dict[str, Any]) -> None:
    pool = ConnectionPool(size=1, **config)
    with pool.get_connection() as cur, cur.cursor() as own:
        assert run_all(lambda: cur.execute("SELECT 8"), lambda: own.execute("SELECT 9")) == [1, 1]
        assert (cur.fetchall(), own.fetchall()) == (((8,),), ((9,),))
    pool.close()


# After it was given back

USES: dict[str, Callable[[Any], Any]] = {
    "close": lambda con: con.close(),
    "query": lambda con: con.query("SELECT 1"),
    "cursor": lambda con: con.cursor().execute("SELECT 1"),
    "executemany": lambda con: con.cursor().executemany("DO %s", [(1,)]),
    "callproc": lambda con: con.cursor().callproc("p", (1,)),
    "commit": lambda con: con.commit(),
    "rollback": lambda con: con.rollback(),
    "begin": lambda con: con.begin(),
    "ping": lambda con: con.ping(),
    "ping without reconnecting": lambda con: con.ping(reconnect=False),
    "select_db": lambda con: con.select_db("tests"),
    "autocommit": lambda con: con.autocommit(False),
    "show_warnings": lambda con: con.show_warnings(),
    "next_result": lambda con: con.next_result(),
    "set_character_set": lambda con: con.set_character_set("latin1"),
    "kill": lambda con: con.kill(con.thread_id()),
    "execute": lambda con: con.execute("SELECT 1"),
    "fetchone": lambda con: con.fetchone(),
    "rowcount": lambda con: con.rowcount,
    "iter": list,
    "arraysize": lambda con: setattr(con, "arraysize", 5),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("how", ["close", "put_connection", "block"])
def test_use_after_it_was_given_back_harms_nobody(use: Callable[[Any], Any], how: str, config: dict[str, Any]) -> None:
    pool = ConnectionPool(size=1, name="shop", **config)
    con = pool.get_connection()
    if how == "close":
        con.close()
    elif how == "block":
        with con:
            pass
    else:
        pool.put_connection(con)
    with pool.get_connection() as other:
        with pytest.raises(ReturnConnectionToPoolError, match=r"given back to pool\(shop\)") as caught:
            use(con)
        assert isinstance(caught.value, pymysql.err.InterfaceError)
        assert caught.value.args[0] == 0
        assert not con.open
        assert other.execute_query("SELECT 1") == ((1,),)
    assert (pool.size(), pool.stats().opened) == (1, 1)
    with con as cur:
        cur.execute("SELECT 1")
    pool.close()


def test_cursors_that_are_still_around_are_dead_also_when_the_connection_leases_again(config: dict[str, Any]) -> None:
    pool = ConnectionPool(size=1, **config)
    con = pool.get_connection()
    stale = [con.cursor(), con.cursor(pymysql.cursors.DictCursor), con.cursor(SSCursor)]
    stale[0].execute("SELECT 1 UNION SELECT 2")
    stale[2].execute("SELECT 1 UNION SELECT 2")
    con.close()
    before = con.cursor()
    with con as cur:
        cur.execute("SET @a = 5")
        for cursor in stale:
            with pytest.raises(ReturnConnectionToPoolError):
                cursor.execute("SET @a = 6")
            with pytest.raises(ReturnConnectionToPoolError):
                cursor.executemany("SET @a = %s", [(6,)])
        cur.execute("SELECT @a")
        assert cur.fetchone() == (5,)
        before.execute("SELECT @a")  # made when there was no lease: this is its first
        assert before.fetchone() == (5,)
    assert stale[0].fetchall() == ((1,), (2,))  # read long ago
    with pytest.raises(pymysql.err.MySQLError):
        stale[2].fetchall()
    with con as cur:
        inside = con.cursor()
        inside.execute("SELECT 1")
    with con, pytest.raises(ReturnConnectionToPoolError):
        inside.execute("SELECT 1")
    for cursor in (*stale, before, inside):
        cursor.close()
    with con, pytest.raises(err.ProgrammingError, match="Cursor closed"):
        before.execute("SELECT @a")
    assert pool.size() == 1
    pool.close()


@pytest.mark.filterwarnings("ignore:The 'reconnect' argument is deprecated:DeprecationWarning")
def test_thread_that_gave_it_back_cannot_reach_into_another_threads_block(
    config: dict[str, Any], table: str, rows: Callable[[], list[int]]
) -> None:
    pool = ConnectionPool(size=2, autocommit=False, **config)
    con = pool.get_connection()
    old = con.cursor()
    con.close()
    inside, go_on = threading.Event(), threading.Event()

    def other() -> None:
        with con as cur:
            cur.execute(f"INSERT INTO {table} (a) VALUES (1)")
            inside.set()
            assert go_on.wait(PATIENCE)
            cur.execute(f"INSERT INTO {table} (a) VALUES (2)")

    with ThreadPoolExecutor(1) as threads:
        work = threads.submit(other)
        assert inside.wait(PATIENCE)
        uses = [use for name, use in USES.items() if name != "autocommit"]  # which is off, and sends nothing
        uses += [lambda con: con.connect(), lambda con: con.ping(reconnect=True)]
        for use in (*uses, lambda _: old.execute("COMMIT"), lambda _: con.__exit__(None, None, None)):
            with pytest.raises((ReturnConnectionToPoolError, err.ProgrammingError)):
                use(con)
        assert rows() == []
        go_on.set()
        work.result(PATIENCE)
    assert rows() == [1, 2]
    assert pool.size() == 2
    pool.close()


def test_thread_that_never_had_it_cannot_close_it_under_a_block(config: dict[str, Any]) -> None:
    pool = ConnectionPool(size=1, **config)
    with pool.get_connection() as cur:
        cur.execute("SELECT 1")
        for end in (cur.close, cur.connect, lambda: pool.put_connection(cur)):
            with pytest.raises(ReturnConnectionToPoolError, match="another thread's `with` block"):
                run_all(end)
        assert cur.fetchone() == (1,)
        assert cur.execute("SELECT 2") == 1
    assert pool.size() == 1
    pool.close()


def test_two_threads_that_close_at_once(config: dict[str, Any]) -> None:
    pool = ConnectionPool(size=1, **config)
    for _ in range(200):
        con = pool.get_connection()
        start = threading.Barrier(4)

        def close(con: Any = con, start: threading.Barrier = start) -> bool:
            start.wait(PATIENCE)
            try:
                con.close()
            except ReturnConnectionToPoolError:
                return False
            return True

        assert sorted(run_all(*[close] * 4)) == [False, False, False, True]
    assert (pool.size(), pool.stats().opened, pool.stats().in_use) == (1, 1, 0)
    pool.close()


def test_connect_and_ping_with_reconnect_lease_again(config: dict[str, Any]) -> None:
    pool = ConnectionPool(size=1, **config)
    con = closed_connection(pool)
    con.connect()
    cursor = con.cursor()
    con.connect()  # as in PyMySQL, its cursors go on
    cursor.execute("SELECT 4")
    assert cursor.fetchone() == (4,)
    con.close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        con.ping(reconnect=True)
    con.close()
    assert pool.size() == 1
    pool.close()


# How blocks end


@pytest.mark.parametrize("autocommit", [False, True])
def test_block_commits_at_a_good_end_and_rolls_back_when_it_raised(
    autocommit: bool, config: dict[str, Any], table: str, rows: Callable[[], list[int]]
) -> None:
    pool = ConnectionPool(size=1, autocommit=autocommit, **config)
    con = closed_connection(pool)
    with con as cur:
        con.begin()
        cur.execute(f"INSERT INTO {table} (a) VALUES (1)")
    assert rows() == [1]
    for error in (KeyError, KeyboardInterrupt, GeneratorExit):
        with pytest.raises(error), con as cur:
            con.begin()
            cur.execute(f"INSERT INTO {table} (a) VALUES (2)")
            raise error
        assert rows() == [1]
    with con as cur:
        con.begin()
        cur.execute(f"INSERT INTO {table} (a) VALUES (3)")
        con.rollback()
        cur.execute("SELECT 1")
    assert rows() == [1]
    assert pool.stats().opened == 1
    pool.close()


def test_commit_after_an_error_that_the_block_caught(
    config: dict[str, Any], table: str, rows: Callable[[], list[int]]
) -> None:
    pool = ConnectionPool(size=1, autocommit=False, **config)
    with pool.get_connection() as cur:
        cur.execute(f"INSERT INTO {table} (a) VALUES (1)")
        with pytest.raises(err.IntegrityError):
            cur.execute(f"INSERT INTO {table} (a) VALUES (1)")
    assert rows() == [1]
    pool.close()


HIDDEN = {
    "behind an error": "START TRANSACTION; INSERT INTO t (a) VALUES (1); SIGNAL SQLSTATE '45000';",
    "behind an unread result": "START TRANSACTION; INSERT INTO t (a) VALUES (1); SELECT 1 UNION SELECT 2;",
}


@pytest.mark.parametrize("body", HIDDEN.values(), ids=HIDDEN)
def test_commit_of_a_transaction_that_no_reply_told_of(
    body: str, config: dict[str, Any], table: str, rows: Callable[[], list[int]], admin: Any
) -> None:
    database = table.partition(".")[0]
    with admin.cursor() as cursor:
        cursor.execute(f"CREATE PROCEDURE {database}.p () BEGIN {body} END")
    pool = ConnectionPool(size=1, **config | {"database": database}, cursorclass=SSCursor)
    with pool.get_connection() as cur, contextlib.suppress(err.MySQLError):
        cur.callproc("p")
    assert rows() == [1]
    pool.close()


def test_block_that_only_read_sends_nothing_more(account: Server, config: dict[str, Any]) -> None:
    with Proxy(account.host, account.port) as proxy:
        pool = ConnectionPool(size=1, **config | {"port": proxy.port})
        con = closed_connection(pool)
        before = len(proxy.commands)
        for _ in range(3):
            with con as cur:
                cur.execute("SELECT 1")
        assert [text for code, text in proxy.commands[before:] if code == COM_QUERY] == [b"SELECT 1"] * 3
        assert len(proxy.commands) == before + 3
        pool.close()


def fail(cur: Any, statement: str) -> None:
    cur.execute(statement)


KEPT: dict[str, tuple[Any, Callable[[Any, str], Any]]] = {
    "ProgrammingError": (err.ProgrammingError, lambda cur, _: fail(cur, "SELECT nothing FROM nowhere")),
    "IntegrityError": (err.IntegrityError, lambda cur, table: fail(cur, f"INSERT INTO {table} (a) VALUES (1)")),
    "DataError": (err.DataError, lambda cur, table: fail(cur, f"INSERT INTO {table} (a) VALUES (99999999999)")),
    # PyMySQL 1.1 raises TypeError.
    "of the client": ((err.ProgrammingError, TypeError), lambda cur, _: cur.execute("SELECT %s %s", (1,))),
    "SIGNAL": (
        err.MySQLError,
        lambda cur, _: fail(cur, "BEGIN NOT ATOMIC SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no'; END"),
    ),
}
RAISED: dict[str, tuple[BaseException, bool]] = {
    "NotSupportedError": (err.NotSupportedError("no"), True),
    "DataError": (err.DataError(1264, "out of range"), True),
    "deadlock": (err.OperationalError(1213, "deadlock"), True),
    "PoolTimeout": (PoolTimeout(1040, "of another pool"), True),
    "LeaseBusy": (LeaseBusy(2014, "of another thread"), True),
    "ValueError": (ValueError("the program's own"), True),
    "KeyboardInterrupt": (KeyboardInterrupt(), True),
    "lost": (err.OperationalError(2013, "lost"), False),
    "out of step": (err.OperationalError(2014, "out of sync"), False),
    "killed": (err.OperationalError(1927, "killed"), False),
    "without a code": (err.OperationalError("no code"), False),
    "without arguments": (err.OperationalError(), False),
    "InternalError": (err.InternalError("Packet sequence number wrong"), False),
    "InterfaceError": (err.InterfaceError("what"), False),
}


@pytest.mark.parametrize(("error", "act"), KEPT.values(), ids=KEPT)
def test_errors_that_keep_the_session(  # noqa: PLR0917
    error: type[BaseException], act: Callable[[Any, str], Any], server: Server, config: dict[str, Any], table: str,
    rows: Callable[[], list[int]], ids: Callable[[], set[int]],
) -> None:  # fmt: skip
    if error is err.MySQLError and not server.is_mariadb:
        pytest.skip("MySQL has no compound statements outside of routines")
    pool = ConnectionPool(size=1, autocommit=False, **config)
    con = closed_connection(pool)
    con.execute_query(f"INSERT INTO {table} (a) VALUES (1)")
    before = ids()
    with pytest.raises(error), con as cur:
        cur.execute(f"INSERT INTO {table} (a) VALUES (2)")
        act(cur, table)
    assert rows() == [1]
    with con as cur:
        assert {con.thread_id()} == before
        cur.execute("SELECT 1")
    assert (pool.stats().opened, pool.stats().closed) == (1, {})
    pool.close()


@pytest.mark.parametrize(("error", "is_kept"), RAISED.values(), ids=RAISED)
def test_what_an_exception_says_decides_about_the_session(
    error: BaseException, is_kept: bool, config: dict[str, Any], ids: Callable[[], set[int]]
) -> None:
    pool = ConnectionPool(size=2, **config)
    con = closed_connection(pool)
    with pytest.raises(type(error)), con as cur:
        cur.execute("SELECT 1")
        number = con.thread_id()
        raise error
    wait_until(lambda: pool.size() == 2, what="the pool's strength")
    assert (number in ids()) is is_kept
    assert sum(pool.stats().closed.values()) == (0 if is_kept else 1)
    assert len(ids()) == 2
    pool.close()


def test_session_in_an_unsure_state_is_closed_also_where_nothing_is_reset(config: dict[str, Any]) -> None:
    pool = ConnectionPool(size=1, reset="rollback", **config)
    con = closed_connection(pool)
    with pytest.raises(err.InternalError), con:
        number = con.thread_id()
        raise err.InternalError
    with con:
        assert con.thread_id() != number
    pool.close()


def test_interrupt_in_mid_statement(config: dict[str, Any], table: str, rows: Callable[[], list[int]]) -> None:
    pool = ConnectionPool(size=2, autocommit=False, **config)
    con = closed_connection(pool)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    alarm = threading.Timer(0.2, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
    alarm.start()
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt), con as cur:
            cur.execute(f"INSERT INTO {table} (a) VALUES (1)")
            cur.execute("SELECT SLEEP(2)")
    finally:
        signal.signal(signal.SIGINT, before)
        alarm.join()
    assert time.monotonic() - started < 1.5
    wait_until(lambda: pool.size() == 2, what="the pool's strength")
    wait_until(lambda: con.execute_query("SELECT 1") == ((1,),), what="an answer")
    assert rows() == []
    pool.close()


def test_blocks_of_many_threads_stay_whole_while_sessions_are_killed(
    admin: Any, config: dict[str, Any], table: str, rows: Callable[[], list[int]], ids: Callable[[], set[int]]
) -> None:
    pool = ConnectionPool(size=3, autocommit=False, timeout=PATIENCE, **config)
    shared = closed_connection(pool)
    over = threading.Event()
    done: list[int] = []

    def work(number: int) -> None:
        con = shared if number % 2 else closed_connection(pool)
        for count in range(60):
            first = (number * 1000 + count) * 2
            try:
                with con as cur:
                    cur.execute(f"INSERT INTO {table} (a) VALUES (%s)", (first,))
                    if count % 5 == 0:
                        raise KeyError
                    cur.execute(f"INSERT INTO {table} (a) VALUES (%s)", (first + 1,))
                done.append(first)
            except (KeyError, err.MySQLError):
                pass

    def kill() -> None:
        with admin.cursor() as cursor:
            while not over.wait(0.02):
                for number in list(ids())[:1]:
                    with contextlib.suppress(err.MySQLError):
                        cursor.execute(f"KILL {number}")

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        run_all(*(lambda number=number: work(number) for number in range(6)))  # type: ignore[misc]
    finally:
        over.set()
        killer.join(PATIENCE)
    found = rows()
    assert {value for value in found if value % 2 == 0} == {value - 1 for value in found if value % 2}
    assert set(done) <= set(found)
    assert len(done) > 100
    leases = [pool.get_connection(timeout=5) for _ in range(3)]
    for lease in leases:
        assert lease.execute_query("SELECT 1") == ((1,),)
    wait_until(lambda: pool.size() == 3 and len(ids()) == 3, what="the pool's strength")
    assert (pool.stats().in_use, pool.stats().waiting) == (0, 0)
    pool.close()


@pytest.mark.parametrize("caught", [False, True])
def test_killed_session_is_replaced_without_anyone_asking(
    caught: bool, admin: Any, config: dict[str, Any], ids: Callable[[], set[int]]
) -> None:
    pool = ConnectionPool(size=2, **config)
    con = closed_connection(pool)
    with pytest.raises(err.MySQLError), con as cur:
        con.begin()
        cur.execute("SELECT CONNECTION_ID()")
        (number,) = cur.fetchone()
        with admin.cursor() as killer:
            killer.execute(f"KILL {number}")
        if caught:
            with pytest.raises(err.OperationalError):
                cur.execute("SELECT 1")
            # The end of the block cannot commit, and must not pretend that it did.
        else:
            cur.execute("SELECT 1")
    wait_until(lambda: pool.size() == 2 and len(ids()) == 2, what="the pool's strength")
    assert number not in ids()
    with con as cur:
        cur.execute("SELECT 1")
        assert cur.fetchone() == (1,)
    pool.close()


def test_block_on_an_open_connection_that_was_lost_leases_another(admin: Any, config: dict[str, Any]) -> None:
    pool = ConnectionPool(size=1, **config)
    con = pool.get_connection()
    con.query("SELECT 1")
    with admin.cursor() as killer:
        killer.execute(f"KILL {con.thread_id()}")
    with pytest.raises(err.OperationalError):
        con.query("SELECT 1")
    with con as cur:
        assert cur.execute("SELECT 1") == 1
    assert (pool.size(), pool.stats().in_use) == (1, 0)
    pool.close()


MANY = (
    "WITH RECURSIVE s(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM s WHERE x < 900) SELECT x, REPEAT('x', 9999) FROM s"
)


@pytest.mark.parametrize("raises", [True, False])
def test_block_that_leaves_an_unbuffered_result_behind(
    raises: bool, config: dict[str, Any], table: str, rows: Callable[[], list[int]]
) -> None:
    pool = ConnectionPool(size=1, autocommit=False, cursorclass=SSCursor, **config)
    con = closed_connection(pool)
    try:
        with con as cur:
            cur.execute(f"INSERT INTO {table} (a) VALUES (1)")
            cur.execute(MANY)
            assert cur.fetchone()[0] == 1
            if raises:
                raise KeyError
    except KeyError:
        pass
    wait_until(lambda: pool.size() == 1, what="the pool's strength")
    assert rows() == ([] if raises else [1])
    assert con.execute_query("SELECT 1") == [(1,)]
    pool.close()


def test_close_in_a_block_closes_the_blocks_cursor(
    config: dict[str, Any], table: str, rows: Callable[[], list[int]]
) -> None:
    """Both a cursor and a connection have close(); what was done must not be lost."""
    pool = ConnectionPool(size=1, autocommit=False, **config)
    con = closed_connection(pool)
    with con as cur:
        cur.execute(f"INSERT INTO {table} (a) VALUES (1)")
        cur.close()
        cur.close()
        with pytest.raises(err.ProgrammingError, match="Cursor closed"):
            cur.execute("SELECT 1")
        with con.cursor() as another:
            another.execute("SELECT 1")
        assert pool.size() == 0
    assert rows() == [1]
    assert pool.size() == 1
    pool.close()


def test_with_of_plain_leases_means_what_it_means_in_pymysql(
    config: dict[str, Any], table: str, rows: Callable[[], list[int]]
) -> None:
    with pooled_pymysql.connect(**config) as con:
        assert not hasattr(con, "execute")
        con.cursor().execute(f"INSERT INTO {table} (a) VALUES (1)")
    assert not con.open
    assert rows() == []
    with pytest.raises(err.InterfaceError) as caught:
        con.__enter__().query("SELECT 1")
    assert caught.value.args == (0, "")


def test_no_connection_for_a_block(config: dict[str, Any]) -> None:
    pool = ConnectionPool(size=1, timeout=0.2, name="shop", **config)
    con = closed_connection(pool)
    with pool.get_connection():
        with pytest.raises(GetConnectionFromPoolError, match=r"pool\(shop\): .*no connection within 0\.2 s") as caught:
            con.__enter__()
        assert isinstance(caught.value.__cause__, PoolTimeout)
        with pytest.raises(GetConnectionFromPoolError):
            con.execute_query("SELECT 1")
    assert run_all(lambda: con.execute_query("SELECT 1")) == [((1,),)]  # nobody holds its lock
    pool.close()


def test_end_of_a_block_that_was_not_begun(config: dict[str, Any]) -> None:
    pool = ConnectionPool(size=1, **config)
    con = pool.get_connection()
    with pytest.raises(err.ProgrammingError, match="no `with` block"):
        con.__exit__(None, None, None)
    with pytest.raises(err.ProgrammingError, match="within a `with` block only"):
        con.execute("SELECT 1")
    con.close()
    assert pool.size() == 1
    pool.close()


def test_unfinished_transaction_is_rolled_back(
    config: dict[str, Any], table: str, rows: Callable[[], list[int]]
) -> None:
    pool = ConnectionPool(size=1, **config)
    con = pool.get_connection()
    con.begin()
    con.cursor().execute(f"INSERT INTO {table} (a) VALUES (1)")
    con.close()
    with pool.get_connection() as con:
        con.execute_query("SELECT 1")
    assert rows() == []
    pool.close()


# Queries


def test_execute_query(config: dict[str, Any], table: str, rows: Callable[[], list[int]]) -> None:
    pool = ConnectionPool(size=1, autocommit=False, **config)
    con = closed_connection(pool)
    insert = f"INSERT INTO {table} (a) VALUES (%s)"
    assert con.execute_query(insert, [(1,), (2,), (3,)], exec_many=True) == ()
    assert con.execute_query(insert, (4,), return_one=True) is None
    assert con.execute_query(f"INSERT INTO {table} (a) VALUES (5)") == ()
    assert rows() == [1, 2, 3, 4, 5]
    select = f"SELECT a FROM {table} WHERE a > %s ORDER BY a"
    assert con.execute_query(select, (3,)) == ((4,), (5,))
    assert con.execute_query(select, (3,), return_one=True) == (4,)
    assert con.execute_query(select, (9,), return_one=True) is None
    assert list(con.execute_query(select, (9,))) == []
    assert list(con.execute_query(select, [3], True)) == [{"a": 4}, {"a": 5}]
    assert con.execute_query(select, [3], dictcursor=True, return_one=True) == {"a": 4}
    named = f"SELECT a FROM {table} WHERE a = %(a)s"
    assert con.execute_query(named, {"a": 4}) == ((4,),)
    assert con.execute_query("SELECT '%%'") == (("%",),)  # formatted as PyMySQL formats with ()
    assert con.execute_query("SELECT '%'", None) == (("%",),)
    assert con.execute_query("DO 1") == ()
    with pytest.raises((err.ProgrammingError, TypeError)):  # TypeError in PyMySQL 1.1
        con.execute_query("SELECT '%'")
    with pytest.raises(err.IntegrityError):
        con.execute_query(insert, [(6,), (1,)], exec_many=True)
    assert rows() == [1, 2, 3, 4, 5]
    assert (pool.size(), pool.stats().opened) == (1, 1)
    with con:
        con.execute_query(insert, (7,))
        assert rows() == [1, 2, 3, 4, 5]  # the block decides
    assert rows() == [1, 2, 3, 4, 5, 7]
    lease = pool.get_connection()
    assert lease.execute_query("SELECT 1") == ((1,),)
    assert not lease.open
    pool.close()


class Shouting(pymysql.cursors.Cursor):
    """A program's own cursor class."""

    def fetchone(self) -> Any:
        row = super().fetchone()
        return None if row is None else tuple(str(value) + "!" for value in row)


class Counting:
    """No cursor class, but something that makes cursors."""

    made = 0

    def __call__(self, connection: Any) -> Any:
        self.made += 1
        return pymysql.cursors.Cursor(connection)


@pytest.mark.parametrize(
    "kind",
    [None, pymysql.cursors.Cursor, pymysql.cursors.DictCursor, SSCursor, SSDictCursor, pymysqlpool.Cursor,
     pymysqlpool.DictCursor, Shouting],
)  # fmt: skip
@pytest.mark.parametrize("where", ["cursor()", "cursorclass"])
def test_cursors_of_every_class(kind: Any, where: str, config: dict[str, Any], table: str) -> None:
    chosen = {} if kind is None or where == "cursor()" else {"cursorclass": kind}
    pool = ConnectionPool(size=1, **chosen, **config)
    con = pool.get_connection()
    with con.cursor(*([kind] if where == "cursor()" else [])) as cursor:
        assert isinstance(cursor, kind or pymysql.cursors.Cursor)
        assert type(cursor) is type(con.cursor(kind))
        assert type(cursor).__name__ == (kind or pymysql.cursors.Cursor).__name__
        insert = f"INSERT INTO {table} (a) VALUES (%s)"
        assert cursor.db_modify(insert, (5,)) == {"rowcount": 1, "lastrowid": 1}
        assert cursor.db_modify(insert, [(6,), (7,)], True) == {"rowcount": 2, "lastrowid": 2}
        assert cursor.db_modify(insert, [], exec_many=True) == {"rowcount": 0, "lastrowid": 0}
        assert cursor.db_modify(f"UPDATE {table} SET a = a + 10") == {"rowcount": 3, "lastrowid": 0}
        found = cursor.db_query(f"SELECT a FROM {table} WHERE a > %s ORDER BY a", (15,))
        values = [row["a"] if isinstance(row, dict) else row[0] for row in found]
        assert values == [16, 17]
        assert isinstance(found[0], dict) is (kind is not None and "Dict" in kind.__name__)
        assert list(cursor.db_query("SELECT 1 FROM DUAL WHERE 0")) == []
    with con as cur:
        assert cur.db_modify(insert, (8,))["rowcount"] == 1
        assert len(cur.db_query(f"SELECT a FROM {table}")) == 4
    pool.close()


def test_cursor_classes_of_the_programs_own_keep_their_ways(config: dict[str, Any]) -> None:
    pool = ConnectionPool(size=1, **config)
    with pool.get_connection() as con, con.cursor(Shouting) as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == ("1!",)
        assert type(con.cursor(Shouting)) is type(cursor)
        assert type(cursor).__doc__ == Shouting.__doc__
        factory = Counting()
        with con.cursor(factory) as made:  # type: ignore[call-overload]
            made.execute("SELECT 1")
        assert factory.made == 1
    pool.close()


def test_new_cursor_has_modified_nothing(config: dict[str, Any]) -> None:
    pool = ConnectionPool(size=1, **config)
    with pool.get_connection() as cur:
        assert cur.db_modify("DO %s", [], exec_many=True) == {"rowcount": 0, "lastrowid": 0}
        assert (cur.rowcount, cur.description, cur.lastrowid, cur.arraysize) == (-1, None, None, 1)
    pool.close()


def test_connection_answers_a_cursors_names(config: dict[str, Any], table: str) -> None:
    pool = ConnectionPool(size=1, **config)
    with pool.get_connection() as cur:
        assert cur.connection is cur
        assert cur.executemany(f"INSERT INTO {table} (a) VALUES (%s)", [(1,), (2,), (3,)]) == 3
        assert (cur.rowcount, cur.lastrowid, cur.warning_count) == (3, 1, 0)
        assert cur.execute(f"SELECT a FROM {table} ORDER BY a") == 3
        assert [column[0] for column in cur.description] == ["a"]
        assert (cur.fetchone(), cur.rownumber) == ((1,), 1)
        cur.scroll(-1)
        cur.arraysize = 2
        assert (cur.fetchmany(), cur.arraysize) == (((1,), (2,)), 2)
        assert next(cur) == (3,)
        with pytest.raises(StopIteration):
            next(cur)
        cur.scroll(0, mode="absolute")
        assert list(cur) == [(1,), (2,), (3,)]
        cur.scroll(0, "absolute")
        assert cur.fetchmany(1) == ((1,),)
        assert cur.mogrify("SELECT %s", ("x",)) == "SELECT 'x'"
        assert cur.nextset() is None
        cur.setinputsizes(1)
        cur.setoutputsizes(1)
        cur.execute("SELECT 1")
        assert cur.fetchall() == ((1,),)
    with pool.get_connection() as con, con.cursor() as cursor:
        names = {name for name in (*dir(pymysql.cursors.Cursor), *vars(cursor)) if not name.startswith("_")}
        for name in names - {"max_stmt_length"}:
            assert hasattr(con, name), name
    pool.close()


def test_unbuffered_cursors_names(config: dict[str, Any]) -> None:
    pool = ConnectionPool(size=1, cursorclass=SSCursor, **config)
    with pool.get_connection() as cur:
        cur.execute("SELECT 1 UNION SELECT 2 UNION SELECT 3")
        assert cur.read_next() == (1,)
        assert list(cur.fetchall_unbuffered()) == [(2,), (3,)]
        cur.execute("SELECT 1 UNION SELECT 2 UNION SELECT 3")
        assert list(cur) == [(1,), (2,), (3,)]
    pool.close()


def test_procedures(config: dict[str, Any], database: str, admin: Any) -> None:
    with admin.cursor() as cursor:
        cursor.execute(f"CREATE PROCEDURE {database}.p (n INT) BEGIN SELECT n; SELECT n + 1; END")
    pool = ConnectionPool(size=1, **config | {"database": database})
    with pool.get_connection() as cur:
        assert cur.callproc("p", (4,)) == (4,)
        assert cur.fetchall() == ((4,),)
        assert cur.nextset() is True
        assert cur.fetchall() == ((5,),)
    assert pool.get_connection().execute_query("SELECT 1") == ((1,),)
    pool.close()


# Without a pool


def test_connection_without_a_pool(config: dict[str, Any], table: str, rows: Callable[[], list[int]]) -> None:
    con = pymysqlpool.Connection(**config)
    insert = f"INSERT INTO {table} (a) VALUES (%s)"
    number = con.thread_id()
    assert con.execute_query(insert, (1,)) == ()
    assert rows() == [1]  # though autocommit is off, as in PyMySQL
    with pytest.raises(err.IntegrityError):
        con.execute_query(insert, [(2,), (1,)], exec_many=True)
    assert rows() == [1]
    assert con.execute_query("SELECT CONNECTION_ID()", return_one=True) == (number,)
    assert con.open
    with con.cursor(pymysql.cursors.DictCursor) as cursor:
        assert list(cursor.db_query("SELECT 1 AS one")) == [{"one": 1}]
    con.rollback()
    with con as cur:
        cur.execute(insert, (2,))
    assert rows() == [1, 2]
    assert not con.open
    with pytest.raises(KeyError), con as cur:  # connects again
        cur.execute(insert, (3,))
        raise KeyError
    assert rows() == [1, 2]
    assert con.execute_query("SELECT 1") == ((1,),)
    con.close()
    with pytest.raises(err.Error, match="Already closed"):
        con.close()
    with pytest.raises(err.InterfaceError) as caught:
        con.commit()
    assert caught.value.args == (0, "")


def test_connection_without_a_pool_shared_by_threads(config: dict[str, Any]) -> None:
    con = pymysqlpool.Connection(**config)

    def work(number: int) -> None:
        for count in range(50):
            assert con.execute_query("SELECT %s, %s", (number, count)) == ((number, count),)

    run_all(*(lambda number=number: work(number) for number in range(4)))  # type: ignore[misc]
    con.close()


def test_dropped_connection_goes_back_clean(
    config: dict[str, Any], table: str, rows: Callable[[], list[int]], ids: Callable[[], set[int]]
) -> None:
    pool = ConnectionPool(size=1, **config)
    con: Any = pool.get_connection()
    con.begin()
    con.cursor().execute(f"INSERT INTO {table} (a) VALUES (1)")
    with pytest.warns(ResourceWarning, match="dropped without close"):
        del con
    with pool.get_connection(timeout=5) as con:
        assert con.execute_query(f"SELECT a FROM {table}") in ((), [])
    assert (rows(), pool.stats().dropped, len(ids())) == ([], 1, 1)
    pool.close()


def test_private_class_cache_is_bounded() -> None:
    for number in range(200):
        cursor_names.extended(type(f"Cursor{number}", (pymysql.cursors.Cursor,), {}))
    assert cursor_names._extended.cache_info().currsize <= 64
