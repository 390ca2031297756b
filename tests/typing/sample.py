"""A strictly typed program that uses the module as its users do; mypy --strict reads it, nothing runs it."""

from typing import Any, assert_type

import pooled_pymysql as pymysql
import pooled_pymysql.converters
import pooled_pymysql.times
from pooled_pymysql import PoolClosed, PoolFull, PoolOptions, PoolTimeout, cursors
from pooled_pymysql.charset import charset_by_name
from pooled_pymysql.connections import MySQLResult
from pooled_pymysql.constants import CLIENT, COMMAND, CR, ER, FIELD_TYPE, FLAG, SERVER_STATUS
from pooled_pymysql.cursors import Cursor, DictCursor, SSCursor, SSDictCursor
from pooled_pymysql.err import IntegrityError, OperationalError
from pooled_pymysql.optionfile import Parser
from pooled_pymysql.protocol import MysqlPacket

DSN = "mysql://app:p%40ss@db:3306/shop?charset=utf8mb4&pool_max_size=20"


def connect_in_every_way() -> list[pymysql.Connection]:
    options = PoolOptions(max_size=20, timeout=5, reset="always", name="reports")
    return [
        pymysql.connect(host="db", user="app", password="secret", database="shop", port=3306),
        pymysql.connect(DSN),
        pymysql.Connect(DSN, autocommit=True, cursorclass=DictCursor),
        pymysql.connect(DSN, pool=options),
        pymysql.connect(DSN, pool={"max_size": 20, "timeout": None}),
        pymysql.connect(DSN, pool=False),
        pymysql.connect(DSN, password=lambda: "token", client_flag=CLIENT.FOUND_ROWS),
    ]


def read_rows(connection: pymysql.Connection) -> int:
    found = 0
    with connection.cursor(Cursor) as plain:
        found += plain.execute("SELECT id, name FROM items WHERE id > %s", (5,))
        assert_type(plain.fetchone(), tuple[Any, ...] | None)
        assert_type(plain.rowcount, int)
        found += sum(len(each) for each in plain.fetchmany(10))
    with connection.cursor(DictCursor) as by_name:
        by_name.execute("SELECT id, name FROM items WHERE name = %(name)s", {"name": "x"})
        assert_type(by_name, DictCursor)
        assert_type(by_name.fetchone(), dict[str, Any] | None)
        found += len([str(each["name"]) for each in by_name.fetchall()])
    with connection.cursor(SSCursor) as streamed:
        streamed.execute("SELECT id FROM items")
        found += sum(int(each[0]) for each in streamed.fetchall_unbuffered())
    with connection.cursor(SSDictCursor) as both:
        both.execute("SELECT id FROM items")
        found += sum(int(each["id"]) for each in both.fetchall_unbuffered())
    return found


def write(connection: pymysql.Connection) -> int:
    try:
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO items VALUES (%s)", [(1,), (2,)])
        connection.commit()
    except IntegrityError as error:
        connection.rollback()
        return 0 if error.args[0] == ER.DUP_ENTRY else -1
    except pymysql.OperationalError:
        return -2
    finally:
        connection.close()
    return 1


def wait_for_a_connection() -> str:
    try:
        with pymysql.connect(DSN) as connection:
            connection.ping(reconnect=False)
            return connection.get_host_info()
    except (PoolTimeout, PoolFull, PoolClosed, pymysql.LeaseBusy) as error:
        code: int = error.args[0]
        wider: OperationalError = error
        return f"{code} {wider}"


def look_at_the_pools() -> dict[str, int]:
    pymysql.configure(max_size=20, timeout=None)
    pool = pymysql.pool_for(DSN)
    if pool is not None:
        pool.wait_ready(10)
        with pool.connection() as connection:
            write(connection)
        leased = pool.acquire(timeout=1.5)
        leased.close()
    counts = {each.name: each.stats().in_use + each.stats().idle for each in pymysql.pools()}
    for each in pymysql.pools():
        each.close()
    pymysql.close_pools()
    return counts


def use_the_rest_of_the_module() -> tuple[object, ...]:
    pymysql.install_as_MySQLdb()
    pymysql.install_as_pymysql()
    assert_type(pymysql.apilevel, str)
    assert_type(pymysql.threadsafety, int)
    assert_type(pymysql.paramstyle, str)
    assert_type(pymysql.version_info, tuple[int, int, int, str, int])
    numbers: list[int] = [CLIENT.FOUND_ROWS, COMMAND.COM_PING, CR.CR_SERVER_LOST, ER.DUP_ENTRY]
    numbers += [FIELD_TYPE.LONG, FLAG.NOT_NULL, SERVER_STATUS.SERVER_STATUS_IN_TRANS]
    return (
        numbers,
        pymysql.Binary(b"x"),
        pymysql.Date(2024, 2, 29),
        pymysql.STRING == FIELD_TYPE.VAR_STRING,
        pymysql.VERSION,
        pymysql.__version__,
        pooled_pymysql.converters.conversions,
        pooled_pymysql.times.TimeDelta,
        cursors.RE_INSERT_VALUES,
        charset_by_name("utf8mb4"),
        MySQLResult,
        MysqlPacket,
        Parser,
        pymysql.err.Error,
        pymysql.cursors.DictCursor,
        pymysql.constants.ER,
        pymysql.connections.Connection,
    )
