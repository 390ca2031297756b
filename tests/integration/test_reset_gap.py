"""What reset="auto" does not see, so that the page docs/what-auto-does-not-see.md stays true."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from servers import Server

import pooled_pymysql

Connect = Callable[[str], Any]


class Gap(NamedTuple):
    """A routine of the server's that changes the session out of sight, how it is called, and what shows the change."""

    setup: tuple[str, ...]
    call: str
    ask: str
    hidden: str = ""  # the same done by the statement itself, which is seen


def function(body: str) -> str:
    return f"CREATE FUNCTION f() RETURNS INT DETERMINISTIC BEGIN {body}; RETURN 1; END"


LOCK = "DO GET_LOCK(CONCAT(DATABASE(), '.gap'), 0)"
HOLDER = "SELECT IS_USED_LOCK(CONCAT(DATABASE(), '.gap')) IS NOT NULL"
VARIABLE = "SELECT @gap IS NOT NULL"
LAST_VALUE = "SELECT LASTVAL(s) IS NOT NULL"
PACKAGE = (
    "SET sql_mode = 'ORACLE'",
    "CREATE PACKAGE p AS FUNCTION step RETURN INT; END",
    "CREATE PACKAGE BODY p AS n INT := 0; FUNCTION step RETURN INT AS BEGIN n := n + 1; RETURN n; END; END",
    "SET sql_mode = DEFAULT",
)
GAPS = {
    "GET_LOCK in a function": Gap((function(LOCK),), "SELECT f()", HOLDER, LOCK),
    "INTO @x in a function": Gap((function("SELECT 1 INTO @gap"),), "SELECT f()", VARIABLE, "SELECT 1 INTO @gap"),
    ":= in a function": Gap((function("DO @gap := 1"),), "SELECT f()", VARIABLE, "SELECT @gap := 1"),
    "a view that calls the function": Gap(
        (function(LOCK), "CREATE VIEW v AS SELECT f() AS a"), "SELECT * FROM v", HOLDER
    ),
    "GET_LOCK in a trigger": Gap(
        ("CREATE TABLE t (a INT)", f"CREATE TRIGGER r BEFORE INSERT ON t FOR EACH ROW {LOCK}"),
        "INSERT INTO t VALUES (1)",
        HOLDER,
    ),
    "INTO @x in a trigger": Gap(
        ("CREATE TABLE t (a INT)", "CREATE TRIGGER r BEFORE INSERT ON t FOR EACH ROW SELECT 1 INTO @gap"),
        "INSERT INTO t VALUES (1)",
        VARIABLE,
    ),
    "LAST_INSERT_ID(x) in a view": Gap(
        ("CREATE VIEW v AS SELECT LAST_INSERT_ID(88) AS a",),
        "SELECT * FROM v",
        "SELECT LAST_INSERT_ID() = 88",
        "SELECT LAST_INSERT_ID(88)",
    ),
    # MariaDB's alone.
    "a sequence in a DEFAULT": Gap(
        ("CREATE SEQUENCE s", "CREATE TABLE t (a INT DEFAULT NEXT VALUE FOR s, b INT)"),
        "INSERT INTO t (b) VALUES (1)",
        LAST_VALUE,
        "SELECT NEXT VALUE FOR s",
    ),
    "a sequence in a view": Gap(
        ("CREATE SEQUENCE s", "CREATE VIEW v AS SELECT NEXT VALUE FOR s AS a"), "SELECT * FROM v", LAST_VALUE
    ),
    "a sequence in a trigger": Gap(
        (
            "CREATE SEQUENCE s",
            "CREATE TABLE t (a INT, b INT)",
            "CREATE TRIGGER r BEFORE INSERT ON t FOR EACH ROW SET NEW.a = NEXT VALUE FOR s",
        ),
        "INSERT INTO t (b) VALUES (1)",
        LAST_VALUE,
    ),
    "a variable of a package": Gap(PACKAGE, "SELECT {db}.p.step()", "SELECT {db}.p.step() > 1"),
    "the GTID of the last transaction": Gap(
        ("CREATE TABLE t (a INT)",), "INSERT INTO t VALUES (1)", "SELECT @@last_gtid <> ''"
    ),
}
MARIADBS = [name for name in GAPS if name.startswith(("a sequence", "a variable", "the GTID"))]


@pytest.fixture
def connect(server: Server, database: str) -> Connect:
    def connect(reset: str) -> Any:
        arguments = server.kwargs(ssl_disabled=True, database=database, autocommit=True)
        return pooled_pymysql.connect(**arguments, pool={"reset": reset, "max_size": 1})

    return connect


def run(connection: Any, sql: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


def seen_by_the_next_lease(connect: Connect, reset: str, call: str, ask: str) -> bool:
    """Say whether what one lease's `call` did is still there in the next lease of the same session."""
    with connect(reset) as connection:
        number = connection.thread_id()
        run(connection, call)
    with connect(reset) as connection:
        assert connection.thread_id() == number
        ((seen,),) = run(connection, ask)
        return bool(seen)


@pytest.fixture(params=GAPS)
def gap(request: pytest.FixtureRequest, server: Server, admin: Any, database: str) -> Gap:
    gap = GAPS[request.param]
    if request.param in MARIADBS and not server.is_mariadb:
        pytest.skip("of MariaDB alone")
    if "GTID" in request.param and run(admin, "SELECT @@GLOBAL.log_bin") == ((0,),):
        pytest.skip("this server writes no binary log")
    run(admin, f"USE {database}")
    for sql in gap.setup:
        run(admin, sql)
    return gap._replace(call=gap.call.replace("{db}", database), ask=gap.ask.replace("{db}", database))


def test_auto_does_not_see_what_a_routine_hides(connect: Connect, gap: Gap) -> None:
    # When this fails, a server has begun to tell of it: then the page must say so.
    assert seen_by_the_next_lease(connect, "auto", gap.call, gap.ask)


def test_always_undoes_it(connect: Connect, gap: Gap) -> None:
    assert not seen_by_the_next_lease(connect, "always", gap.call, gap.ask)


def test_auto_sees_the_same_in_the_statement_itself(connect: Connect, gap: Gap) -> None:
    if gap.hidden:
        assert not seen_by_the_next_lease(connect, "auto", gap.hidden, gap.ask)


def test_found_rows_of_an_earlier_lease_is_seen_behind_an_insert_alone(
    connect: Connect, admin: Any, database: str
) -> None:
    run(admin, f"CREATE TABLE {database}.t (a INT)")
    with connect("auto") as connection:
        run(connection, "SELECT 1 UNION SELECT 2 UNION SELECT 3")
    with connect("auto") as connection:
        run(connection, "INSERT INTO t VALUES (1)")
        found = run(connection, "SELECT FOUND_ROWS()")
    with connect("auto") as connection:
        assert found == ((3,),) != run(connection, "SELECT FOUND_ROWS()")


@pytest.mark.parametrize("reset", ["auto", "always"])
def test_a_routine_that_sets_a_variable_with_set_is_seen(
    connect: Connect, admin: Any, database: str, reset: str
) -> None:
    run(admin, f"USE {database}")
    run(admin, function("SET @gap = 1"))
    assert not seen_by_the_next_lease(connect, reset, "SELECT f()", VARIABLE)


def test_a_touch_by_anything_else_in_the_lease_closes_the_gap(connect: Connect, gap: Gap) -> None:
    with connect("auto") as connection:
        run(connection, gap.call)
        run(connection, "SET @anything = 1")
    with connect("auto") as connection:
        assert run(connection, gap.ask) == ((0,),)


@pytest.mark.parametrize("reset", ["auto", "always"])
def test_a_role_that_a_function_sets_is_seen_by_mariadb_and_by_always(
    account: Server, admin: Any, database: str, reset: str
) -> None:
    role = f"r_{account.user}"
    run(admin, f"USE {database}")
    run(admin, f"CREATE ROLE {role}")
    try:
        run(admin, f"GRANT {role} TO {account.user}@'%'")
        run(
            admin,
            f"CREATE FUNCTION f() RETURNS INT DETERMINISTIC SQL SECURITY INVOKER BEGIN SET ROLE {role}; RETURN 1; END",
        )
        arguments = account.kwargs(ssl_disabled=True, database=database, autocommit=True)
        pool = {"reset": reset, "max_size": 1}
        with pooled_pymysql.connect(**arguments, pool=pool) as connection:
            run(connection, "SELECT f()")
        with pooled_pymysql.connect(**arguments, pool=pool) as connection:
            ((found,),) = run(connection, "SELECT CURRENT_ROLE()")
            assert (role in (found or "")) == (reset == "auto" and not account.is_mariadb)
    finally:
        run(admin, f"DROP ROLE {role}")
