"""What benchmarks do on a connection, whatever driver it comes from. Imports no pool."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pymysql

TABLE = "pooled_pymysql_benchmark"
ROWS_TABLE = f"{TABLE}_rows"


class Work(NamedTuple):
    """The statements of one row; `floor_end` is what a second floor does at the end of each turn."""

    label: str
    run: Callable[[Any], object]
    autocommit: bool = True
    floor_end: Callable[[Any], object] | None = None


def select_one(connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        cursor.fetchall()


def read_row(connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT value FROM {TABLE} WHERE id = 1")
        cursor.fetchall()


def sleep_a_millisecond(connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT SLEEP(0.001)")
        cursor.fetchall()


def nothing(connection: Any) -> None:
    pass


def fetch_rows(connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT id, value, text FROM {ROWS_TABLE}")
        cursor.fetchall()


def insert_row(connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"INSERT INTO {TABLE} (value) VALUES (1)")
    connection.commit()


def touch(connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET @x=1")


WORKS = (
    Work("SELECT 1, autocommit", select_one),
    Work("SELECT from InnoDB", read_row, autocommit=False, floor_end=lambda connection: connection.rollback()),
    Work("INSERT + commit", insert_row, autocommit=False),
    Work("SET @x=1, autocommit", touch),
)


@contextlib.contextmanager
def sample_table(arguments: Mapping[str, Any]) -> Iterator[None]:
    with pymysql.connect(**arguments, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(f"DROP TABLE IF EXISTS {TABLE}")
        cursor.execute(f"CREATE TABLE {TABLE} (id INT AUTO_INCREMENT PRIMARY KEY, value INT) ENGINE=InnoDB")
        cursor.execute(f"INSERT INTO {TABLE} (value) VALUES (1)")
        try:
            yield
        finally:
            cursor.execute(f"DROP TABLE {TABLE}")


def fill_rows(connection: Any, count: int) -> None:
    """Make the table that fetch_rows() reads; whoever calls this drops it."""
    rows = ",".join(f"({number}, 'text of row {number}')" for number in range(1000))
    with connection.cursor() as cursor:
        cursor.execute(f"DROP TABLE IF EXISTS {ROWS_TABLE}")
        cursor.execute(f"CREATE TABLE {ROWS_TABLE} (id INT AUTO_INCREMENT PRIMARY KEY, value INT, text VARCHAR(40))")
        for _ in range(count // 1000):
            cursor.execute(f"INSERT INTO {ROWS_TABLE} (value, text) VALUES {rows}")
    connection.commit()
