"""Threads that share one lease and run statements of every kind on it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pymysql
import pytest
from callers import Caller
from pymysql.constants import CLIENT
from pymysql.cursors import Cursor, DictCursor, SSCursor, SSDictCursor
from servers import Server

CLOSED = {2013, 2006, 0}  # what a statement fails with on a connection that somebody else closed


class Shouting(DictCursor):
    """A user's own cursor class."""

    def _conv_row(self, row: Any) -> Any:
        return {name.upper(): value for name, value in super()._conv_row(row).items()}


class Crowd:
    """Threads that share one lease; each statement carries its thread's number, and each answer is checked."""

    def __init__(self, lease: Any, threads: int, folder: Path) -> None:
        self.lease = lease
        self.old_cursors = [lease.cursor() for _ in range(threads)]
        self.files = [folder / f"{number}.tsv" for number in range(threads)]
        for number, file in enumerate(self.files):
            file.write_text("".join(f"{number}\t{row}\n" for row in range(3)))
        self.kinds = [getattr(self, name) for name in dir(self) if name.startswith("do_")]

    def do_buffered(self, me: int, number: int) -> None:
        with self.lease.cursor() as cursor:
            assert cursor.execute("SELECT %s, %s", (me, number)) == 1
            assert cursor.fetchall() == ((me, number),)

    def do_old_cursor(self, me: int, number: int) -> None:
        cursor = self.old_cursors[me]
        cursor.execute("SELECT %s, %s", (me, number))
        assert (cursor.fetchone(), cursor.fetchone(), cursor.rowcount) == ((me, number), None, 1)

    def do_own_class(self, me: int, number: int) -> None:
        with self.lease.cursor(Shouting) as cursor:
            cursor.execute("SELECT %s AS a, %s AS b", (me, number))
            assert cursor.fetchall() == [{"A": me, "B": number}]

    def do_unbuffered(self, me: int, number: int) -> None:
        with self.lease.cursor(SSCursor) as cursor:
            cursor.execute("SELECT %s, %s UNION ALL SELECT %s, 0", (me, number, me))
            assert list(cursor) == [(me, number), (me, 0)]

    def do_unbuffered_left(self, me: int, number: int) -> None:
        cursor = self.lease.cursor(SSDictCursor)
        cursor.execute("SELECT %s AS a, %s AS b UNION ALL SELECT %s, 0", (me, number, me))
        assert cursor.fetchone() == {"a": me, "b": number}
        if number % 2:
            cursor.close()  # else it goes with the function's frame

    def do_more_results(self, me: int, number: int) -> None:
        with self.lease.cursor(SSCursor if number % 2 else Cursor) as cursor:
            cursor.execute("SELECT %s, 1; SELECT %s, 2", (me, me))
            assert tuple(cursor.fetchall()) == ((me, 1),)
            assert cursor.nextset() is True
            assert tuple(cursor.fetchall()) == ((me, 2),)
            assert cursor.nextset() is None

    def do_call(self, me: int, number: int) -> None:
        with self.lease.cursor() as cursor:
            cursor.execute("CALL twice(%s)", (me,))
            assert cursor.fetchall() == ((me, "first"),)
            assert cursor.nextset()
            assert cursor.fetchall() == ((me, "second"),)

    def do_insert(self, me: int, number: int) -> None:
        with self.lease.cursor() as cursor:
            assert cursor.execute("INSERT INTO tagged (me, number) VALUES (%s, %s)", (me, number)) == 1
            key = cursor.lastrowid
            assert (self.lease.insert_id(), self.lease.affected_rows(), cursor.rowcount) == (key, 1, 1)
            cursor.execute("SELECT me, number FROM tagged WHERE id = %s", (key,))
            assert cursor.fetchall() == ((me, number),)

    def do_many(self, me: int, number: int) -> None:
        with self.lease.cursor() as cursor:
            rows = [(me, number)] * (number % 5 + 2)
            assert cursor.executemany("INSERT INTO tagged (me, number) VALUES (%s, %s)", rows) == len(rows)
            assert self.lease.affected_rows() == len(rows)

    def do_load(self, me: int, number: int) -> None:
        with self.lease.cursor() as cursor:
            assert cursor.execute("LOAD DATA LOCAL INFILE %s INTO TABLE loaded", (str(self.files[me]),)) == 3

    def do_ping(self, me: int, number: int) -> None:
        self.lease.ping(reconnect=False)  # PyMySQL 1.1 would connect again, were it closed

    def do_commit(self, me: int, number: int) -> None:
        self.lease.commit()

    def do_rollback(self, me: int, number: int) -> None:
        self.lease.rollback()

    def do_error(self, me: int, number: int) -> None:
        with self.lease.cursor() as cursor, pytest.raises(pymysql.err.ProgrammingError, match=f"missing_{me}_{number}"):
            cursor.execute(f"SELECT * FROM missing_{me}_{number}")

    def do_wrong_parameters(self, me: int, number: int) -> None:
        # PyMySQL 1.1 raises the former, 1.2 the latter.
        wrong = (TypeError, pymysql.err.ProgrammingError)
        with self.lease.cursor() as cursor, pytest.raises(wrong, match="not enough"):
            cursor.execute("SELECT %s, %s", (me,))

    def do_query(self, me: int, number: int) -> None:
        count = number % 3 + 1
        assert self.lease.query(" UNION ALL ".join([f"SELECT {me}"] * count)) == count
        assert self.lease.affected_rows() == count

    def work(self, me: int, statements: int) -> None:
        chance = random.Random(me)
        for number in range(statements):
            chance.choice(self.kinds)(me, number)


def prepare(lease: Any) -> None:
    with lease.cursor() as cursor:
        cursor.execute("CREATE TABLE tagged (id INT AUTO_INCREMENT PRIMARY KEY, me INT, number INT) ENGINE=InnoDB")
        cursor.execute("CREATE TABLE loaded (me INT, number INT) ENGINE=InnoDB")
        cursor.execute(
            "CREATE PROCEDURE twice(IN me INT) BEGIN SELECT me, 'first'; SELECT me, 'second'; END"
        )  # fmt: skip


def crowd_arguments(server: Server, database: str) -> dict[str, Any]:
    return server.kwargs(
        database=database,
        autocommit=True,
        local_infile=True,
        client_flag=CLIENT.MULTI_STATEMENTS,
        pool={"max_size": 2, "timeout": 60.0},
    )


def run_crowd(crowd: Crowd, threads: int, statements: int) -> None:
    workers = [Caller(lambda me=me: crowd.work(me, statements)) for me in range(threads)]
    for worker in workers:
        worker.join(600)
        worker.outcome()
