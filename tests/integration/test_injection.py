"""A session that keeps its last user's settings turns correct parameters into SQL; a lease of ours never gets one.

PyMySQL escapes on the client, by what it believes of the session. A pool that hands on a session whose settings it has
not undone makes that belief wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import pymysql
import pytest
from servers import Server

import pooled_pymysql

Connect = Callable[[], Any]
LOGIN = "SELECT name FROM users WHERE name = %s AND password = 'secret'"
SECRETS = (("alice",), ("bob",))


class Attack(NamedTuple):
    """What one user does to the session, and what the next one's program is given as a parameter."""

    setting: str
    name: Any


ATTACKS = {
    # In UTF-8 the character ends in 0x81. To a server that reads GBK this and the escaping backslash are one character,
    # and the quote behind them ends the literal.
    "names": Attack("SET NAMES gbk", "\N{CJK UNIFIED IDEOGRAPH-4E01}' OR 1=1 -- "),
    "character_set_client": Attack("SET character_set_client = gbk", "\N{CJK UNIFIED IDEOGRAPH-4E01}' OR 1=1 -- "),
    # Not a string: PyMySQL escapes the text of other objects with backslashes, whatever the sql_mode.
    "sql_mode": Attack("SET SESSION sql_mode = 'NO_BACKSLASH_ESCAPES'", PurePosixPath("x' OR 1=1 -- ")),
}


class NaivePool:
    """What pools over PyMySQL do: hand the connection to the next user as the last one left it."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._idle: list[Any] = []

    def acquire(self) -> Any:
        return self._idle.pop() if self._idle else self._connect()

    def release(self, connection: Any) -> None:
        connection.rollback()
        self._idle.append(connection)


@pytest.fixture
def users(admin: Any, database: str) -> str:
    with admin.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {database}.users (name VARCHAR(50), password VARCHAR(50)) CHARACTER SET utf8mb4")
        cursor.execute(f"INSERT INTO {database}.users VALUES ('alice', 'a'), ('bob', 'b')")
    return database


def spoil(connection: Any, attack: Attack) -> None:
    with connection.cursor() as cursor:
        cursor.execute(attack.setting)


def log_in(connection: Any, attack: Attack) -> Any:
    """Ask for the users whose name and password are right, as every manual says that one should."""
    with connection.cursor() as cursor:
        cursor.execute(LOGIN, (attack.name,))
        return cursor.fetchall()


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_reusing_a_session_as_it_is_makes_correct_parameters_injectable(
    server: Server, users: str, attack: Attack
) -> None:
    pool = NaivePool(lambda: server.connect(database=users, charset="utf8mb4"))
    connection = pool.acquire()
    assert log_in(connection, attack) == ()  # the query is right, and so is its parameter
    spoil(connection, attack)
    pool.release(connection)
    with pool.acquire() as connection:
        assert log_in(connection, attack) == SECRETS


@pytest.mark.parametrize("reset", ["auto", "always"])
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_lease_cannot_be_made_injectable_by_an_earlier_one(
    server: Server, users: str, attack: Attack, reset: str
) -> None:
    arguments = server.kwargs(ssl_disabled=True, database=users, charset="utf8mb4")
    pool = {"max_size": 1, "reset": reset}
    sessions = set()
    for _ in range(3):
        connection = pooled_pymysql.connect(**arguments, pool=pool)
        sessions.add(connection.thread_id())
        assert log_in(connection, attack) == ()
        spoil(connection, attack)
        connection.close()
    assert len(sessions) == 1  # restored, not replaced


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_an_unpooled_connection_is_as_injectable_as_pymysqls_own(server: Server, users: str, attack: Attack) -> None:
    # Whoever spoils a session and goes on using it gets what PyMySQL gives: the pool is what must not pass it on.
    arguments = server.kwargs(ssl_disabled=True, database=users, charset="utf8mb4")
    found = []
    for connect in (pymysql.connect, lambda **kwargs: pooled_pymysql.connect(**kwargs, pool=False)):
        with connect(**arguments) as connection:
            spoil(connection, attack)
            found.append(log_in(connection, attack))
    assert found == [SECRETS, SECRETS]
