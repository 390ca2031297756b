"""What the server itself does for each new connection (init_connect) is there in every lease."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from servers import Server

import pooled_pymysql


@pytest.fixture
def kwargs(server: Server, admin: Any, database: str) -> Iterator[dict[str, Any]]:
    """Connect arguments of an account for which the server runs init_connect: one without special rights."""
    user = f"u_{uuid.uuid4().hex[:12]}"
    with admin.cursor() as cursor:
        cursor.execute("SELECT @@GLOBAL.init_connect")
        ((before,),) = cursor.fetchall()
        cursor.execute(f"CREATE USER {user}@'%' IDENTIFIED BY 'lowly'")
        cursor.execute(f"GRANT SELECT ON {database}.* TO {user}@'%'")
        cursor.execute("SET GLOBAL init_connect = 'SET group_concat_max_len = 4321'")
        try:
            yield server.kwargs(user=user, password="lowly", database=database)
        finally:
            cursor.execute("SET GLOBAL init_connect = %s", (before,))
            pooled_pymysql.close_pools()
            cursor.execute(f"DROP USER {user}@'%'")


def look(lease: Any) -> tuple[int, int]:
    with lease.cursor() as cursor:
        cursor.execute("SELECT CONNECTION_ID(), @@group_concat_max_len")
        found: tuple[int, int] = cursor.fetchone()
        return found


@pytest.mark.parametrize("statement", ["SET @a = 1", "SET group_concat_max_len = 99", "DO GET_LOCK('x', 0)"])
@pytest.mark.parametrize("reset", ["auto", "always"])
def test_touched_session_is_replaced_and_not_reset(kwargs: dict[str, Any], reset: str, statement: str) -> None:
    with pooled_pymysql.connect(**kwargs, pool={"reset": reset}) as lease:
        first = look(lease)
        assert first[1] == 4321
        with lease.cursor() as cursor:
            cursor.execute(statement)
    with pooled_pymysql.connect(**kwargs, pool={"reset": reset}) as lease:
        second = look(lease)
    assert second[1] == 4321
    assert second[0] != first[0]
    (pool,) = pooled_pymysql.pools()
    assert pool.stats().closed["init_connect"] >= 1


def test_clean_session_is_kept(kwargs: dict[str, Any]) -> None:
    seen = set()
    for _ in range(3):
        with pooled_pymysql.connect(**kwargs) as lease:
            seen.add(look(lease))
    assert len(seen) == 1


def test_validated_session_is_not_reset(kwargs: dict[str, Any]) -> None:
    for _ in range(2):
        with pooled_pymysql.connect(**kwargs, pool={"validate_after": 0}) as lease:
            assert look(lease)[1] == 4321
