"""What one lease did is not there in the next, on the server's side and on the client's."""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pymysql
import pytest
from pymysql.constants import CLIENT
from pymysql.cursors import DictCursor, SSCursor
from servers import Server, wait_until

import pooled_pymysql

RESETS = ("auto", "always")
# Where a test wants the same session again: with room for another, that one may be opened while this is cleaned.
ONE = {"max_size": 1}


def rows(connection: Any, statement: str) -> Any:
    """Return all rows of a statement's first result, or the error's number."""
    try:
        with connection.cursor(pymysql.cursors.Cursor) as cursor:
            cursor.execute(statement)
            return cursor.fetchall()
    except pymysql.err.MySQLError as error:
        return error.args[0]


def run(connection: Any, *statements: str) -> None:
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def counts() -> tuple[int, int]:
    """Return what the one pool has in use and idle."""
    (pool,) = pooled_pymysql.pools()
    return pool.stats().in_use, pool.stats().idle


@pytest.fixture
def kwargs(server: Server, database: str, admin: Any) -> dict[str, Any]:
    """How to connect to a new database that has one table `t`, which is empty, and one called `other`."""
    for table in ("t", "other"):
        run(admin, f"CREATE TABLE {database}.{table} (id INT AUTO_INCREMENT PRIMARY KEY) ENGINE=InnoDB")
    return server.kwargs(database=database)


# What was done → what the next one asks. It must see what a new connection sees, on the same session.
DEEDS: dict[str, tuple[tuple[str, ...], str]] = {
    "user variable": (("SET @a = 5",), "SELECT @a"),
    "user variable by assignment in SELECT": (("SELECT @b := 2",), "SELECT @b"),
    "user variable by SELECT INTO": (("SELECT 1 INTO @c",), "SELECT @c"),
    "USE": (("USE information_schema",), "SELECT DATABASE()"),
    "sql_mode": (("SET sql_mode = 'ANSI_QUOTES'",), "SELECT @@sql_mode"),
    "NO_BACKSLASH_ESCAPES": (("SET sql_mode = 'NO_BACKSLASH_ESCAPES'",), r"SELECT 'a\\b'"),
    "SET NAMES": (("SET NAMES latin1",), "SHOW VARIABLES LIKE 'character_set_c%'"),
    "SET NAMES of a multi-byte charset": (("SET NAMES gbk",), "SHOW VARIABLES LIKE 'character_set_c%'"),
    "collation": (
        ("SET collation_connection = 'utf8mb4_bin'",),
        "SELECT @@character_set_connection, @@collation_connection",
    ),
    "time_zone": (("SET time_zone = '+05:00'",), "SELECT @@time_zone"),
    "isolation level": (
        ("SET SESSION TRANSACTION ISOLATION LEVEL READ UNCOMMITTED",),
        "SHOW VARIABLES WHERE variable_name IN ('tx_isolation', 'transaction_isolation')",
    ),
    "isolation level of the next transaction": (
        ("SET TRANSACTION READ ONLY",),
        "INSERT INTO other (id) VALUES (NULL)",
    ),
    "read only": (("SET SESSION TRANSACTION READ ONLY",), "INSERT INTO other (id) VALUES (NULL)"),
    "autocommit": (("SET autocommit = 1",), "SELECT @@autocommit"),
    "foreign_key_checks": (("SET foreign_key_checks = 0",), "SELECT @@foreign_key_checks"),
    "sql_log_bin": (("SET sql_log_bin = 0",), "SELECT @@sql_log_bin"),
    "insert_id": (("SET insert_id = 77",), "SELECT @@insert_id"),
    "timestamp": (("SET timestamp = 86400",), "SELECT @@timestamp = 86400"),
    "timeouts": (("SET wait_timeout = 100, lock_wait_timeout = 7",), "SELECT @@wait_timeout, @@lock_wait_timeout"),
    "temporary table": (("CREATE TEMPORARY TABLE x (a INT)",), "SELECT * FROM x"),
    "temporary table that hides another": (
        ("CREATE TEMPORARY TABLE t (a INT)", "INSERT INTO t VALUES (1)"),
        "SELECT * FROM t",
    ),
    "LOCK TABLES": (("LOCK TABLES t WRITE",), "SELECT * FROM other"),
    "GET_LOCK": (("SELECT GET_LOCK('pooled_pymysql', 1)",), "SELECT IS_FREE_LOCK('pooled_pymysql')"),
    "HANDLER": (("HANDLER t OPEN",), "HANDLER t READ FIRST"),
    "prepared statement": (("PREPARE p FROM 'SELECT 1'",), "EXECUTE p"),
    "open transaction": (("INSERT INTO t VALUES (1)",), "SELECT * FROM t"),
    "explicit transaction": (("BEGIN", "INSERT INTO t VALUES (1)"), "SELECT * FROM t"),
    "read only transaction": (("START TRANSACTION READ ONLY",), "INSERT INTO other (id) VALUES (NULL)"),
    "savepoint": (("INSERT INTO t VALUES (1)", "SAVEPOINT s"), "ROLLBACK TO s"),
    "last insert id": (("INSERT INTO t VALUES (NULL)",), "SELECT LAST_INSERT_ID()"),
    "last insert id by hand": (("SELECT LAST_INSERT_ID(77)",), "SELECT LAST_INSERT_ID()"),
    "warnings": (("SELECT CAST('a' AS SIGNED)",), "SHOW WARNINGS"),
}


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize(("deeds", "question"), DEEDS.values(), ids=DEEDS)
def test_next_lease_does_not_see(deeds: tuple[str, ...], question: str, reset: str, kwargs: dict[str, Any]) -> None:
    with pymysql.connect(**kwargs) as plain:
        expected = rows(plain, question)
    with pooled_pymysql.connect(**kwargs, pool={"reset": reset, **ONE}) as connection:
        before = rows(connection, "SELECT CONNECTION_ID()")
        run(connection, *deeds)
        if question != "SHOW WARNINGS" and "insert id" not in question:
            assert rows(connection, question) != expected or deeds[0] == "SET TRANSACTION READ ONLY"
    with pooled_pymysql.connect(**kwargs, pool={"reset": reset, **ONE}) as connection:
        assert rows(connection, question) == expected
        assert rows(connection, "SELECT CONNECTION_ID()") == before
    assert counts() == (0, 1)


def test_lock_is_free_for_others_when_the_lease_is_closed(kwargs: dict[str, Any], admin: Any) -> None:
    with pooled_pymysql.connect(**kwargs) as connection:
        run(connection, "SELECT GET_LOCK('pooled_pymysql', 1)", "LOCK TABLES t WRITE")
    assert rows(admin, "SELECT GET_LOCK('pooled_pymysql', 10), RELEASE_LOCK('pooled_pymysql')") == ((1, 1),)
    run(admin, "SET lock_wait_timeout = 10", f"INSERT INTO {kwargs['database']}.t VALUES (1)")


def test_row_is_unlocked_and_uncommitted_when_the_lease_is_closed(kwargs: dict[str, Any], admin: Any) -> None:
    table = f"{kwargs['database']}.t"
    run(admin, f"INSERT INTO {table} VALUES (1)", "SET innodb_lock_wait_timeout = 10")
    with pooled_pymysql.connect(**kwargs) as connection:
        run(connection, "UPDATE t SET id = 2")
    assert rows(admin, f"SELECT id FROM {table} FOR UPDATE") == ((1,),)


def test_row_lock_of_a_failed_insert_is_given_up(kwargs: dict[str, Any], admin: Any) -> None:
    table = f"{kwargs['database']}.t"
    run(admin, f"INSERT INTO {table} VALUES (1)", "SET innodb_lock_wait_timeout = 10")
    with pooled_pymysql.connect(**kwargs) as connection, pytest.raises(pymysql.err.IntegrityError):
        run(connection, "INSERT INTO t VALUES (1)")
    assert admin.cursor().execute(f"DELETE FROM {table}") == 1


SETTINGS: dict[str, dict[str, Any]] = {
    "charset": {"charset": "latin1"},
    "collation": {"collation": "utf8mb4_bin"},
    "sql_mode": {"sql_mode": "ANSI"},
    "autocommit": {"autocommit": True},
    "the server's autocommit": {"autocommit": None},
    "init_command": {"init_command": "SET @a = 7, time_zone = '+03:00'"},
    "init_command that counts": {"init_command": "SET @a = COALESCE(@a, 0) + 1"},
}
SPOIL = ("SET NAMES utf8mb3", "SET sql_mode = '', autocommit = 0, time_zone = '+01:00', @a = 1, @b = 2")
ALL_SETTINGS = """
    SELECT @@character_set_client, @@character_set_connection, @@character_set_results, @@collation_connection,
           @@sql_mode, @@autocommit, @@time_zone, @a, @b, DATABASE()
"""


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_each_lease_has_the_settings_it_was_asked_for(settings: dict[str, Any], kwargs: dict[str, Any]) -> None:
    with pymysql.connect(**kwargs, **settings) as plain:
        expected = rows(plain, ALL_SETTINGS), plain.get_autocommit()
    numbers = set()
    for spoil in (SPOIL, (), SPOIL, SPOIL):
        with pooled_pymysql.connect(pool=ONE, **kwargs, **settings) as connection:
            assert (rows(connection, ALL_SETTINGS), connection.get_autocommit()) == expected
            run(connection, *spoil)
            numbers.add(connection.thread_id())
    assert len(numbers) == 1


def test_methods_that_change_the_session_are_undone(kwargs: dict[str, Any]) -> None:
    with pooled_pymysql.connect(pool=ONE, **kwargs) as connection:
        before = rows(connection, ALL_SETTINGS)
        number = connection.thread_id()
        connection.autocommit(True)
        connection.set_character_set("latin1")
        connection.select_db("information_schema")
        connection.begin()
    with pooled_pymysql.connect(pool=ONE, **kwargs) as connection:
        assert rows(connection, ALL_SETTINGS) == before
        assert not connection.get_autocommit()
        assert (connection.character_set_name(), connection.encoding) == ("utf8mb4", "utf8")
        assert connection.thread_id() == number


@pytest.mark.parametrize("how", ["USE", "select_db"])
def test_without_a_database_the_next_lease_has_none(how: str, server: Server) -> None:
    kwargs = server.kwargs(database=None)
    for _ in range(3):
        with pooled_pymysql.connect(**kwargs) as connection:
            assert rows(connection, "SELECT DATABASE()") == ((None,),)
            if how == "USE":
                run(connection, f"USE {server.database}")
            else:
                connection.select_db(server.database)
            assert rows(connection, "SELECT DATABASE()") == ((server.database,),)
    assert counts()[0] == 0


def test_without_a_database_a_session_is_used_again(server: Server) -> None:
    kwargs = server.kwargs(database=None)
    numbers = set()
    for _ in range(3):
        with pooled_pymysql.connect(pool=ONE, **kwargs) as connection:
            run(connection, "SET @a = 1")
            numbers.add(connection.thread_id())
    assert len(numbers) == 1


def test_dropped_database_is_there_again_or_fails_loudly(kwargs: dict[str, Any], admin: Any) -> None:
    with pooled_pymysql.connect(**kwargs) as connection:
        run(connection, f"DROP DATABASE {kwargs['database']}", f"CREATE DATABASE {kwargs['database']}")
        assert rows(connection, "SELECT DATABASE()") == ((None,),)
    with pooled_pymysql.connect(**kwargs) as connection:
        assert rows(connection, "SELECT DATABASE()") == ((kwargs["database"],),)
        run(connection, f"DROP DATABASE {kwargs['database']}")
    with pytest.raises(pymysql.err.OperationalError, match="1049"):
        pooled_pymysql.connect(**kwargs)
    assert counts() == (0, 0)


def test_escaping_is_right_after_a_lease_that_changed_it(kwargs: dict[str, Any]) -> None:
    for spoil in ("SET NAMES gbk", "SET sql_mode = 'NO_BACKSLASH_ESCAPES'"):
        text = "\xbf\\' OR 1=1 -- \\"
        with pooled_pymysql.connect(**kwargs) as connection:
            run(connection, spoil)
        with pooled_pymysql.connect(**kwargs) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT %s", (text,))
            assert cursor.fetchone() == (text,)


# The client's side


def spoil_client(connection: Any) -> None:
    """Change all that a program can reach of a connection."""
    connection.cursorclass = DictCursor
    connection.encoders.clear()
    connection.encoders[str] = lambda value, mapping: "'spoilt'"
    connection.decoders.clear()
    connection.decoders[253] = lambda value: "spoilt"
    connection._read_timeout = connection._write_timeout = 0.001
    connection.connect_timeout = 1
    connection.max_allowed_packet = 10
    connection.use_unicode = False
    connection.autocommit_mode = True
    connection.charset, connection.encoding = "latin1", "latin1"
    connection.sql_mode, connection.init_command = "ANSI", "DO SLEEP(9)"
    connection.server_version = "0"
    connection.db = connection.user = connection.password = b"spoilt"
    connection.host_info = "spoilt"
    connection._connect_attrs["spoilt"] = "spoilt"
    connection._auth_plugin_map["spoilt"] = dict
    connection.new_attribute = "spoilt"
    connection.query = connection.commit = lambda *_: None
    connection.server_status |= 0x200


def seen_by_client(connection: Any) -> dict[str, Any]:
    """Return a connection's attributes, without those of its result and of its place in a conversation."""
    left_out = {"_result", "_next_seq_id", "_current_timeout", "_affected_rows"}
    return {
        name: dict(value) if isinstance(value, dict) else value
        for name, value in vars(connection).items()
        if name not in left_out
    }


def test_client_side_of_the_next_lease_is_new(kwargs: dict[str, Any]) -> None:
    with pooled_pymysql.connect(pool=ONE, **kwargs) as connection:
        before = seen_by_client(connection)
        assert rows(connection, "SELECT 'a', 1") == (("a", 1),)
        spoil_client(connection)
    with pooled_pymysql.connect(pool=ONE, **kwargs) as connection:
        assert seen_by_client(connection) == before
        assert not hasattr(connection, "new_attribute")
        assert rows(connection, "SELECT 'a', 1") == (("a", 1),)
        assert rows(connection, "SELECT SLEEP(0.1)") == ((0,),)
        assert connection.escape("a'b") == r"'a\'b'"


def test_dictionaries_are_not_shared_with_a_lease_that_is_open(kwargs: dict[str, Any]) -> None:
    with pooled_pymysql.connect(**kwargs) as one, pooled_pymysql.connect(**kwargs) as two:
        before = seen_by_client(two)
        spoil_client(one)
        assert seen_by_client(two) == before


def test_timeouts_of_a_lease_end_with_it(kwargs: dict[str, Any]) -> None:
    with pooled_pymysql.connect(pool=ONE, **kwargs, read_timeout=0.2, write_timeout=0.2) as connection:
        assert rows(connection, "SELECT 1") == ((1,),)
    with pooled_pymysql.connect(pool=ONE, **kwargs) as connection:
        assert rows(connection, "SELECT SLEEP(0.4)") == ((0,),)
        number = connection.thread_id()
    with pooled_pymysql.connect(pool=ONE, **kwargs, read_timeout=0.2) as connection:
        assert connection.thread_id() == number
        assert rows(connection, "SELECT SLEEP(5)") == 2013
    assert counts() == (0, 0)


def test_result_of_the_last_lease_is_forgotten(kwargs: dict[str, Any]) -> None:
    with pooled_pymysql.connect(**kwargs) as connection:
        run(connection, "INSERT INTO t VALUES (NULL)")
        connection.commit()
        run(connection, "INSERT INTO t VALUES (NULL)")
        assert connection.insert_id() == 2
    with pooled_pymysql.connect(**kwargs) as connection:
        assert (connection.insert_id(), connection.affected_rows()) == (0, 0)
        assert connection.show_warnings() == ()


# Unread results


MANY = "SELECT a.id, b.id, REPEAT('x', 100) FROM (SELECT 1 AS id{}) a, (SELECT 1 AS id{}) b".format(
    *[" UNION SELECT ".join(["", *map(str, range(2, 60))])] * 2
)


@pytest.fixture
def dead_cursors() -> Iterator[None]:
    """Collect what the test leaves while its filter for warnings holds."""
    yield
    gc.collect()


def leaves_unread(test: Any) -> Any:
    """Mark a test that closes a connection before its SSCursor: collected, that fails in reading on, as in PyMySQL."""
    test = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")(test)
    return pytest.mark.usefixtures("dead_cursors")(test)


def assert_next_is_right(kwargs: dict[str, Any], **more: Any) -> None:
    assert counts()[0] == 0
    with pooled_pymysql.connect(**kwargs, **more) as connection:
        for number in range(3):
            assert rows(connection, f"SELECT {number}, 'next'") == ((number, "next"),)
    assert counts()[0] == 0


@leaves_unread
@pytest.mark.parametrize("read", [0, 1, 5])
def test_lease_closed_in_the_middle_of_an_unbuffered_result(read: int, kwargs: dict[str, Any]) -> None:
    connection = pooled_pymysql.connect(**kwargs)
    cursor = connection.cursor(SSCursor)
    cursor.execute(MANY)
    assert len(cursor.fetchmany(read)) == read
    connection.close()
    assert_next_is_right(kwargs)


def test_lease_closed_after_an_unbuffered_result_was_read(kwargs: dict[str, Any]) -> None:
    numbers = set()
    for _ in range(2):
        with pooled_pymysql.connect(pool=ONE, **kwargs, cursorclass=SSCursor) as connection:
            cursor = connection.cursor()
            cursor.execute(MANY)
            assert len(cursor.fetchall()) == 59 * 59
            numbers.add(connection.thread_id())
    assert len(numbers) == 1


def test_closed_unbuffered_cursor_leaves_a_clean_session(kwargs: dict[str, Any]) -> None:
    with pooled_pymysql.connect(**kwargs) as connection, connection.cursor(SSCursor) as cursor:
        cursor.execute(MANY)
        cursor.fetchone()
    assert_next_is_right(kwargs)


@pytest.mark.parametrize("read", ["nothing", "first", "second"])
def test_lease_closed_with_more_results_pending(read: str, kwargs: dict[str, Any]) -> None:
    connection = pooled_pymysql.connect(**kwargs, client_flag=CLIENT.MULTI_STATEMENTS)
    cursor = connection.cursor()
    cursor.execute("SELECT 1; SELECT 2; SELECT SLEEP(0.2); INSERT INTO t VALUES (1)")
    if read != "nothing":
        assert cursor.fetchall() == ((1,),)
    if read == "second":
        assert cursor.nextset()
        assert cursor.fetchall() == ((2,),)
    connection.close()
    assert_next_is_right(kwargs, client_flag=CLIENT.MULTI_STATEMENTS)


@leaves_unread
def test_old_cursor_cannot_read_the_next_leases_rows(kwargs: dict[str, Any]) -> None:
    connection = pooled_pymysql.connect(**kwargs)
    stale = connection.cursor(SSCursor)
    stale.execute(MANY)
    stale.fetchone()
    connection.close()
    with pooled_pymysql.connect(**kwargs) as other, other.cursor(SSCursor) as cursor:
        cursor.execute("SELECT 1 UNION SELECT 2 UNION SELECT 3")
        assert cursor.fetchone() == (1,)
        with pytest.raises(Exception):  # noqa: B017 - PyMySQL's is an AttributeError
            stale.fetchall()
        del stale
        gc.collect()
        assert cursor.fetchall() == [(2,), (3,)]
        assert rows(other, "SELECT 4") == ((4,),)


@leaves_unread
def test_rest_of_a_result_that_comes_late_reaches_nobody(kwargs: dict[str, Any]) -> None:
    """At the time of close() there is nothing to read, and half a second later there is."""
    connection = pooled_pymysql.connect(**kwargs)
    cursor = connection.cursor(SSCursor)
    cursor.execute("SELECT REPEAT('x', 100000), 0 UNION ALL SELECT 'late', SLEEP(0.5)")
    assert cursor.fetchone() == ("x" * 100000, 0)
    connection.close()
    assert_next_is_right(kwargs)


class Interrupted(BaseException):
    """What a signal handler raises."""


@pytest.fixture
def alarm() -> Iterator[Callable[[float], None]]:
    """A function that has Interrupted raised in the main thread so many seconds later (SIGALRM is pytest-timeout's)."""

    def interrupt(*_: object) -> None:
        raise Interrupted

    main = threading.main_thread().ident
    assert main
    timers: list[threading.Timer] = []

    def set_alarm(seconds: float) -> None:
        timers.append(threading.Timer(seconds, signal.pthread_kill, (main, signal.SIGUSR1)))
        timers[-1].start()

    before = signal.signal(signal.SIGUSR1, interrupt)
    yield set_alarm
    for timer in timers:
        timer.join(10.0)
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no such signals here")
@pytest.mark.parametrize("close", ["itself", "with block"])
def test_reply_to_an_interrupted_statement_reaches_nobody(
    close: str, alarm: Callable[[float], None], kwargs: dict[str, Any]
) -> None:
    connection = pooled_pymysql.connect(**kwargs)
    run(connection, "INSERT INTO t VALUES (1)")
    alarm(0.1)
    with pytest.raises(Interrupted):
        run(connection, "SELECT 'late', SLEEP(0.5)")
    if close == "itself":
        connection.close()
    else:
        with connection:
            pass
    assert_next_is_right(kwargs)
    with pooled_pymysql.connect(**kwargs) as other:
        assert rows(other, "SELECT * FROM t") == ()


def test_lease_closed_in_the_middle_of_load_data(kwargs: dict[str, Any], tmp_path: Any) -> None:
    missing = tmp_path / "missing.csv"
    with (
        pooled_pymysql.connect(**kwargs, local_infile=True) as connection,
        pytest.raises(pymysql.err.OperationalError),
    ):
        run(connection, f"LOAD DATA LOCAL INFILE '{missing}' INTO TABLE t")
    assert_next_is_right(kwargs, local_infile=True)


# Errors


def test_lease_whose_statement_failed_is_used_again(kwargs: dict[str, Any]) -> None:
    numbers = set()
    for _ in range(3):
        with pooled_pymysql.connect(pool=ONE, **kwargs) as connection:
            with pytest.raises(pymysql.err.ProgrammingError):
                run(connection, "SELEKT 1")
            assert rows(connection, "SELECT 1") == ((1,),)
            numbers.add(connection.thread_id())
    assert len(numbers) == 1


def killed(connection: Any, admin: Any, connection_ids: Callable[..., set[int]]) -> int:
    """Kill a lease's session, wait until its end has come, and return its number."""
    number = int(connection.thread_id())
    admin.kill(number)
    wait_until(lambda: number not in connection_ids(), what="the end of the session")
    return number


def test_killed_lease_fails_once_and_the_next_is_good(
    kwargs: dict[str, Any], admin: Any, connection_ids: Callable[..., set[int]]
) -> None:
    connection = pooled_pymysql.connect(**kwargs, pool={"max_size": 1, "timeout": 0})
    connection.query("SELECT 1")
    old = killed(connection, admin, connection_ids)
    with pytest.raises(pymysql.err.OperationalError) as caught:
        connection.query("SELECT 1")
    assert caught.value.args[0] in (2006, 2013)
    assert not connection.open
    with pytest.raises(pymysql.err.InterfaceError):
        connection.query("SELECT 1")
    connection.close()
    assert counts() == (0, 0)
    with pooled_pymysql.connect(**kwargs, pool={"max_size": 1, "timeout": 0}) as connection:
        assert rows(connection, "SELECT 1") == ((1,),)
        assert connection.thread_id() != old
    assert counts() == (0, 1)


def test_killed_lease_that_did_not_notice_comes_back_closed(
    kwargs: dict[str, Any], admin: Any, connection_ids: Callable[..., set[int]]
) -> None:
    with pooled_pymysql.connect(**kwargs) as connection:
        run(connection, "INSERT INTO t VALUES (1)")
        killed(connection, admin, connection_ids)
    with pooled_pymysql.connect(**kwargs) as connection:
        assert rows(connection, "SELECT * FROM t") == ()
    (pool,) = pooled_pymysql.pools()
    stats = pool.stats()
    assert (stats.in_use, stats.idle, stats.opened, sum(stats.closed.values())) == (0, 1, 2, 1)


def test_session_killed_while_idle_is_replaced_in_silence(
    kwargs: dict[str, Any], admin: Any, connection_ids: Callable[..., set[int]]
) -> None:
    connection = pooled_pymysql.connect(**kwargs)
    connection.close()
    old = killed(connection, admin, connection_ids)
    with pooled_pymysql.connect(**kwargs) as connection:
        assert rows(connection, "SELECT 1") == ((1,),)
        assert connection.thread_id() != old
    assert counts() == (0, 1)


def test_lease_killed_in_mid_statement(kwargs: dict[str, Any], admin: Any) -> None:
    connection = pooled_pymysql.connect(**kwargs)
    run(connection, "SET @a = 1")
    with pytest.raises(pymysql.err.MySQLError):
        run(connection, f"KILL {connection.thread_id()}", "SELECT 1")
    connection.close()
    assert_next_is_right(kwargs)


def test_lease_whose_socket_is_gone_comes_back_closed(kwargs: dict[str, Any]) -> None:
    connection = pooled_pymysql.connect(**kwargs)
    connection._force_close()
    connection.close()
    assert counts() == (0, 0)
    assert_next_is_right(kwargs)
