"""A strictly typed program written for PyMySQL, with the import changed; type checkers read it, nothing runs it."""

from contextlib import closing
from typing import Any, assert_type

import pooled_pymysql as pymysql
from pooled_pymysql.cursors import Cursor, DictCursor, SSCursor, SSDictCursor


class Settings:
    """What a program might read its arguments from."""

    host: str = "db"
    port: int = 3306
    options: dict[str, Any] = {}  # noqa: RUF012  as people write it


def plain_rows() -> list[str]:
    connection = pymysql.connect(host=Settings.host, port=Settings.port, user="app", password="secret", database="shop")
    assert_type(connection, pymysql.Connection[Cursor])
    with connection, connection.cursor() as cursor:
        assert_type(cursor, Cursor)
        cursor.execute("SELECT id, name FROM items WHERE id > %s", (5,))
        assert_type(cursor.fetchone(), tuple[Any, ...] | None)
        assert_type(cursor.fetchall(), tuple[tuple[Any, ...], ...])
        return [str(row[1]) for row in cursor.fetchall()]


def rows_by_name() -> list[str]:
    connection = pymysql.connect(host="db", charset="utf8mb4", cursorclass=DictCursor, autocommit=True)
    assert_type(connection, pymysql.Connection[DictCursor])
    with connection.cursor() as cursor:
        assert_type(cursor, DictCursor)
        assert_type(cursor.fetchone(), dict[str, Any] | None)
        names = [str(row["name"]) for row in cursor.fetchall()]
    with connection.cursor(SSCursor) as streamed:
        assert_type(streamed, SSCursor)
    with closing(connection) as same:
        assert_type(same, pymysql.Connection[DictCursor])
    return names


def in_every_way() -> None:
    assert_type(pymysql.Connect(cursorclass=SSDictCursor).cursor(), SSDictCursor)
    assert_type(pymysql.connect("mysql://app@db/shop", cursorclass=DictCursor).cursor(), DictCursor)
    assert_type(pymysql.connect("mysql://app@db/shop", pool={"max_size": 3}).cursor(), Cursor)
    pymysql.connect(**Settings.options).close()
    assert_type(pymysql.Connection(host="db", cursorclass=DictCursor).cursor(), DictCursor)
    wider: pymysql.connections.Connection[DictCursor] = pymysql.connect(cursorclass=DictCursor)
    wider.close()


def refuse_what_is_wrong() -> None:
    pymysql.connect(hots="db")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    pymysql.connect(port="3306")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    pymysql.connect(pool=True)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    pymysql.connect(cursorclass=str)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    for row in pymysql.connect(cursorclass=DictCursor).cursor().fetchall():
        row[0]  # type: ignore[index]  # pyright: ignore[reportArgumentType]
