"""A strictly typed program with pools made by hand; mypy --strict reads it, nothing runs it."""

from collections.abc import Sequence
from typing import Any, assert_type

import pooled_pymysql
from pooled_pymysql import ConnectionPool, GetConnectionFromPoolError, PoolTimeout, ReturnConnectionToPoolError, cursors
from pooled_pymysql.pymysqlpool import Connection, ConnectionPoolSingleton, Cursor, DictCursor, logger


def make_pools() -> list[ConnectionPool]:
    logger.debug("making pools")
    return [
        ConnectionPool(host="db", user="app", password="secret", database="shop"),
        ConnectionPool(2, 5, "pool1", 0, 3600, False, host="db", idle_timeout=60.0, reset="always"),
        ConnectionPool(size=2, maxsize=None, name=None, pre_create_num=None, con_lifetime=None, host="db"),
        ConnectionPoolSingleton(size=2, host="db"),
    ]


def use(pool: ConnectionPool) -> int:
    con = pool.get_connection(timeout=0.5, retry_num=2, retry_interval=0.1, pre_ping=True)
    assert_type(con, Connection)
    with con as cur:
        assert_type(cur, Connection)
        found: int = cur.execute("SELECT %s", (1,))
        first: tuple[int] | None = cur.fetchone()
        rest: Sequence[Any] = cur.fetchall()
        found += cur.rowcount + len(rest) + (0 if first is None else first[0])
        for row in cur:
            found += len(row)
    with con.cursor() as plain:
        assert_type(plain, Cursor)
        found += plain.db_modify("DELETE FROM t")["rowcount"]
    with con.cursor(DictCursor) as by_name:
        assert_type(by_name, DictCursor)
        assert_type(by_name.fetchone(), dict[str, Any] | None)
        found += len(by_name.db_query("SELECT * FROM t", (1,)))
    with con.cursor(cursors.SSCursor) as streamed:
        assert_type(streamed, cursors.SSCursor)
    pool.put_connection(con)
    assert_type(pool.acquire(), Connection)
    with pool.connection() as leased:
        assert_type(leased, Connection)
        leased.execute_query("SELECT 1", (), dictcursor=True, return_one=True, exec_many=False)
    return found + pool.size() + pool.total_num + pool.available_num + pool.stats().idle + len(pool.name)


def without_a_pool() -> object:
    con = Connection(host="db", user="app")
    return con.execute_query("SELECT 1")


def fail(pool: ConnectionPool) -> str:
    try:
        pool.get_connection().close()
    except GetConnectionFromPoolError as error:
        wider: PoolTimeout = error
        return str(wider)
    except ReturnConnectionToPoolError as error:
        below: pooled_pymysql.InterfaceError = error
        return str(below)
    return ""
