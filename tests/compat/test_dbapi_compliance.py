"""The dbapi-compliance suite (PEP 249), run against PyMySQL and against this package.

Both must fail in the same tests, and those are the deviations of PyMySQL that docs/pep249.md lists.
"""

import contextlib
from typing import Any

import dbapi20
import pymysql
import pytest
import servers

import pooled_pymysql

PYMYSQL_DEVIATES = {
    "test_fetchone": (
        AssertionError,
        "fetchone() after a statement without rows returns None instead of raising",
    ),
    "test_fetchall": (
        AssertionError,
        "fetchall() after a statement without rows returns () instead of raising",
    ),
    "test_setoutputsize_basic": (AttributeError, "setoutputsize() is spelt setoutputsizes()"),
}


class Suite(dbapi20.DatabaseAPI20Test):
    """The suite with the three hooks that its author leaves to the driver's."""

    __test__ = False  # the two classes below have it run

    lower_func = "dbapi20test_lower"

    @pytest.fixture(autouse=True)
    def use_server(self, server: servers.Server, database: str) -> None:
        self.connect_kw_args = server.kwargs(database=database)

    def setUp(self) -> None:
        with contextlib.closing(self._connect()) as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE PROCEDURE {self.lower_func}(word TEXT) SELECT LOWER(word)")

    def _connect(self) -> Any:
        connection = super()._connect()
        self.addCleanup(self.close_if_open, connection)
        return connection

    @staticmethod
    def close_if_open(connection: Any) -> None:
        # Some tests leave their connection open, and its transaction would block the DROP that follows.
        if connection.open:
            connection.close()

    def help_nextset_setUp(self, cursor: Any) -> None:  # noqa: N802 - the suite's name
        table = f"{self.table_prefix}booze"
        cursor.execute(f"CREATE PROCEDURE deleteme() BEGIN SELECT COUNT(*) FROM {table}; SELECT name FROM {table}; END")

    def help_nextset_tearDown(self, cursor: Any) -> None:  # noqa: N802 - the suite's name
        cursor.execute("DROP PROCEDURE deleteme")

    def test_nextset(self) -> None:
        # The suite defines this test twice, and the second time only to refuse. This is the first.
        with contextlib.closing(self._connect()) as connection, connection.cursor() as cursor:
            self.executeDDL1(cursor)
            for statement in self._populate():
                cursor.execute(statement)
            self.help_nextset_setUp(cursor)
            try:
                cursor.callproc("deleteme")
                assert cursor.fetchone() == (len(self.samples),)
                assert cursor.nextset()
                assert sorted(name for (name,) in cursor.fetchall()) == self.samples
                # The status of the CALL itself is a result set without rows in MySQL's protocol.
                assert cursor.nextset()
                assert cursor.description is None
                assert cursor.nextset() is None
            finally:
                self.help_nextset_tearDown(cursor)

    def test_setoutputsize(self) -> None:
        # PyMySQL fetches long columns whole, whatever is announced; the method exists under its own spelling.
        with contextlib.closing(self._connect()) as connection, connection.cursor() as cursor:
            cursor.setoutputsizes(1)
            cursor.execute("SELECT REPEAT('x', 100000)")
            assert cursor.fetchone() == ("x" * 100_000,)


for name, (error, reason) in PYMYSQL_DEVIATES.items():
    setattr(Suite, name, pytest.mark.xfail(raises=error, reason=reason, strict=True)(getattr(Suite, name)))


class TestPyMySQL(Suite):
    """PyMySQL itself: keeps the list of deviations honest."""

    __test__ = True
    driver = pymysql


class TestPooledPyMySQL(Suite):
    """This package, with the same deviations and no others."""

    __test__ = True
    driver = pooled_pymysql
