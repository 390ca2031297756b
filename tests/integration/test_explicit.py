"""Pools made by hand: the story of their users, sizes, waiting, collection, processes."""

from __future__ import annotations

import gc
import json
import logging
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pymysql
import pytest
from callers import PATIENCE
from proxy import Proxy
from servers import Server, free_port, wait_until

import pooled_pymysql
from pooled_pymysql import (
    ConnectionPool,
    GetConnectionFromPoolError,
    PoolClosed,
    PoolTimeout,
    ReturnConnectionToPoolError,
    pymysqlpool,
)
from pooled_pymysql.housekeeper import Housekeeper

COM_RESET_CONNECTION = 0x1F


def closed_connection(pool: ConnectionPool) -> pymysqlpool.Connection:
    """Return a connection that was given back."""
    con = pool.get_connection()
    con.close()
    return con


def run_all(*works: Callable[[], Any]) -> list[Any]:
    """Run each in a thread of its own; return what they return, or raise what the first one raised."""
    with ThreadPoolExecutor(len(works)) as threads:
        return [future.result(PATIENCE) for future in [threads.submit(work) for work in works]]


# The story


def test_story(config: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "pooled_pymysql")
    pool = ConnectionPool(size=2, name="pool1", **config)
    assert pool.size() == 2
    con1 = pool.get_connection()
    con2 = pool.get_connection()
    assert pool.size() == 0
    started = time.monotonic()
    with pytest.raises(GetConnectionFromPoolError) as caught:
        pool.get_connection(timeout=0, retry_num=0)
    assert time.monotonic() - started < 0.5
    code, text = caught.value.args
    assert code == 1040
    assert text.startswith("can't get connection from pool(pool1) within 0*1 second(s), waited 0.0 s (")
    assert "(in_use=2 idle=0 opening=0 waiting=0 max_size=2)" in text
    assert isinstance(caught.value, PoolTimeout)
    assert isinstance(caught.value.__cause__, PoolTimeout)
    con1.close()
    con2.close()
    assert pool.size() == 2
    with con1 as cur:
        assert pool.size() == 1
        assert cur.execute("select 1+1") == 1
        assert cur.fetchone() == (2,)
    assert pool.size() == 2
    messages = [record.getMessage() for record in caplog.records if record.name == "pooled_pymysql"]
    get, put = "Get connection from pool(pool1)", "Put connection back to pool(pool1)"
    assert messages == [get, get, put, put, get, put]
    pool.close()


def test_both_forms_of_a_block(config: dict[str, Any]) -> None:
    pool = ConnectionPool(size=1, **config)
    for make in (pool.get_connection, lambda: closed_connection(pool)):
        con = make()
        with con:
            assert pool.size() == 0
            with con.cursor() as cur:
                cur.execute("SELECT 5")
                assert cur.fetchall() == ((5,),)
        assert pool.size() == 1
    with pool.get_connection() as con, con.cursor() as cur:
        cur.execute("SELECT 6")
        assert cur.fetchall() == ((6,),)
    assert (pool.size(), pool.stats().opened) == (1, 1)
    pool.close()


def test_native_methods_are_all_there(config: dict[str, Any], ids: Callable[[], set[int]]) -> None:
    pool = ConnectionPool(size=1, maxsize=3, name="shop", **config)
    assert isinstance(pool, pooled_pymysql.Pool)
    assert pool in pooled_pymysql.pools()
    pool.wait_ready(5.0)
    lease = pool.acquire(timeout=5.0)
    assert type(lease) is pymysqlpool.Connection
    with pool.connection() as other:
        assert type(other) is pymysqlpool.Connection
        assert (pool.total_num, pool.available_num, pool.name) == (2, 0, "shop")
    lease.close()
    assert (pool.stats().in_use, pool.stats().idle) == (0, 2)
    pool.resize(0, 1)
    pool.drain()
    assert repr(pool) == "<ConnectionPool 'shop' in_use=0 idle=0 opening=0 waiting=0 max_size=1>"
    pool.close()
    assert pool not in pooled_pymysql.pools()
    wait_until(lambda: not ids(), what="the end of the connections")


def test_close_pools_closes_it_too(config: dict[str, Any], ids: Callable[[], set[int]]) -> None:
    pool = ConnectionPool(size=2, **config)
    con = closed_connection(pool)
    pooled_pymysql.close_pools()
    wait_until(lambda: not ids(), what="the end of the connections")
    for attempt in (pool.get_connection, con.__enter__, pool.acquire):
        with pytest.raises(PoolClosed, match="was closed") as caught:
            attempt()
        assert "connect()" not in str(caught.value)


# The page for those who come over

PAGE = (Path(__file__).parents[2] / "docs" / "migrating-from-pymysql-pool.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("text", EXAMPLES, ids=range(len(EXAMPLES)))
def test_example_runs(text: str, config: dict[str, Any]) -> None:
    keywords = 'host="db.example", user="app", password="secret", database="shop"'
    changed = text.replace(keywords, "**config")
    assert changed != text, "an example that names no server shows nothing"
    exec(compile(changed, "page", "exec"), {"config": config})


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3
    for name in pymysqlpool.__all__:
        assert f"`{name}" in PAGE


# Making one


@pytest.mark.parametrize(
    ("arguments", "opened", "most"),
    [
        ({}, 10, 10),
        ({"size": 3}, 3, 3),
        ({"size": 3, "maxsize": 5}, 3, 5),
        ({"size": 3, "pre_create_num": 1}, 1, 3),
        ({"size": 3, "pre_create_num": 3}, 3, 3),
        ({"size": 3, "pre_create_num": 0, "maxsize": 4}, 0, 4),
    ],
)
def test_sizes(
    arguments: dict[str, Any], opened: int, most: int, config: dict[str, Any], ids: Callable[[], set[int]]
) -> None:
    pool = ConnectionPool(**arguments, **config)
    assert (pool.size(), pool.total_num, len(ids())) == (opened, opened, opened)
    assert (pool.stats().max_size, pool.stats().leases) == (most, 0)
    leases = [pool.get_connection() for _ in range(most)]
    with pytest.raises(GetConnectionFromPoolError, match=f"max_size={most}"):
        pool.get_connection(timeout=0, retry_num=0)
    assert len(ids()) == most
    for lease in leases:
        lease.close()
    pool.close()


class Clock:
    """The pool's clock, and how far it is put forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        for module in ("stock", "pool"):
            monkeypatch.setattr(f"pooled_pymysql.{module}._monotonic", lambda: time.monotonic() + self.ahead)


@pytest.mark.parametrize("first", [None, 0, 1])
def test_it_grows_to_maxsize_and_shrinks_back_to_size(
    first: int | None, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    pool = ConnectionPool(
        size=2, maxsize=5, pre_create_num=first, idle_timeout=50.0, validate_after=None, con_lifetime=0, **config
    )
    leases = [pool.get_connection() for _ in range(5)]
    for lease in leases:
        lease.close()
    pool.tick()
    assert pool.total_num == 5
    clock.ahead = 51.0
    pool.tick()
    assert (pool.total_num, pool.stats().closed) == (2, {"idle_timeout": 3})
    clock.ahead = 500.0
    pool.tick()
    assert pool.total_num == 2
    pool.close()


def test_resize_decides_what_is_kept(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    pool = ConnectionPool(size=3, idle_timeout=50.0, validate_after=None, con_lifetime=0, **config)
    with pytest.raises(ValueError, match="min_size"):
        pool.resize(5, 4)
    pool.resize(1, 3)
    clock.ahead = 51.0
    pool.tick()
    assert (pool.total_num, pool.stats().min_size) == (1, 1)
    pool.resize(2, 3)
    wait_until(lambda: pool.size() == 2, what="two connections")
    pool.close()


@pytest.mark.parametrize(("given", "kept"), [(3600, 3600.0), (0, None), (-1, None), (None, None), (2.5, 2.5)])
def test_lifetime(given: float | None, kept: float | None, config: dict[str, Any]) -> None:
    pool = ConnectionPool(size=1, pre_create_num=0, con_lifetime=given, **config)
    assert pool.options.max_lifetime == kept
    pool.close()


def test_arguments_may_be_given_by_position(config: dict[str, Any]) -> None:
    pool = ConnectionPool(1, 2, "shop", 0, 60, False, **config)
    assert (pool.stats().max_size, pool.name, pool.size(), pool.options.max_lifetime) == (2, "shop", 0, 60.0)
    with pool.get_connection() as con:
        assert con.get_autocommit() is False
    pool.close()


def test_connect_arguments_and_pool_options_are_taken(config: dict[str, Any]) -> None:
    pool = ConnectionPool(
        size=1, cursorclass=pymysql.cursors.DictCursor, init_command="SET @a = 7", reset="always", timeout=3, **config
    )
    with pool.get_connection() as con:
        assert con.get_autocommit() is True
        assert con.execute_query("SELECT @a AS a") == [{"a": 7}] or con.execute_query("SELECT @a AS a") == ({"a": 7},)
    assert (pool.options.reset, pool.options.timeout, pool.options.min_size) == ("always", 3.0, 1)
    pool.close()


def test_several_pools_side_by_side(config: dict[str, Any], database: str) -> None:
    here = ConnectionPool(size=1, **config)
    there = ConnectionPool(size=1, **config | {"database": database})
    nowhere = ConnectionPool(size=1, pre_create_num=0, **{name: config[name] for name in config if name != "database"})
    address = f"{config['host']}-{config['port']}-{config['user']}"
    assert (here.name, there.name) == (f"{address}-{config['database']}", f"{address}-{database}")
    assert nowhere.name == address
    assert here.get_connection().execute_query("SELECT DATABASE()") == ((config["database"],),)
    assert there.get_connection().execute_query("SELECT DATABASE()") == ((database,),)
    stranger = there.get_connection()
    with pytest.raises(
        ReturnConnectionToPoolError, match=re.escape(f"pool({there.name}) was given back to pool({here.name})")
    ):
        here.put_connection(stranger)
    assert stranger.open
    there.put_connection(stranger)
    assert (here.size(), there.size()) == (1, 1)
    for pool in (here, there, nowhere):
        pool.close()


@pytest.mark.parametrize("wrong", [None, object(), "con"])
def test_what_is_no_connection_cannot_be_put_back(wrong: Any, config: dict[str, Any]) -> None:
    pool = ConnectionPool(size=1, pre_create_num=0, **config)
    with pytest.raises(TypeError, match="takes a connection"):
        pool.put_connection(wrong)
    with pooled_pymysql.connect(**config, pool={"name": "hidden"}) as lease:
        with pytest.raises(ReturnConnectionToPoolError, match="hidden"):
            pool.put_connection(lease)
        lease.ping()
    with pymysqlpool.Connection(**config) as single:
        with pytest.raises(ReturnConnectionToPoolError, match="no pool"):
            pool.put_connection(single)
        single.ping()
    pool.close()


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"size": 0}, ValueError, "size takes an int, at least 1, not 0"),
        ({"size": -1}, ValueError, "size takes an int, at least 1, not -1"),
        ({"size": "2"}, TypeError, "size takes an int, at least 1, not '2'"),
        ({"size": True}, TypeError, "size takes"),
        ({"size": 2.0}, TypeError, "size takes"),
        ({"size": None}, TypeError, "size takes"),
        ({"size": 3, "maxsize": 2}, ValueError, r"maxsize \(2\) is below size \(3\)"),
        ({"size": 3, "maxsize": "5"}, TypeError, "maxsize takes"),
        ({"size": 3, "maxsize": 0}, ValueError, "maxsize takes"),
        ({"size": 3, "pre_create_num": 4}, ValueError, r"pre_create_num \(4\) is above size \(3\)"),
        ({"size": 3, "pre_create_num": -1}, ValueError, "pre_create_num takes"),
        ({"size": 3, "pre_create_num": "x"}, TypeError, "pre_create_num takes"),
        ({"con_lifetime": "x"}, TypeError, "con_lifetime takes"),
        ({"con_lifetime": True}, TypeError, "con_lifetime takes"),
        ({"con_lifetime": float("nan")}, ValueError, "con_lifetime takes"),
        ({"con_lifetime": float("inf")}, ValueError, "con_lifetime takes"),
        ({"con_lifetime": 10**400}, ValueError, "con_lifetime takes"),
        ({"name": ""}, ValueError, "'name' takes text"),
        ({"name": "a\nb"}, ValueError, "'name' takes text"),
        ({"name": 5}, TypeError, "'name' takes text"),
        ({"name": b"x"}, TypeError, "'name' takes text"),
        ({"hots": "db"}, TypeError, r"does not take 'hots' \(did you mean 'host'\?\)"),
        ({"max_sise": 5}, TypeError, r"did you mean 'maxsize'\?"),
        ({"idle_timeuot": 5}, TypeError, r"did you mean 'idle_timeout'\?"),
        ({"quite_another": 5}, TypeError, "does not take 'quite_another'; it takes PyMySQL's connect arguments"),
        ({"min_size": 5}, TypeError, "it takes 'size' or 'pre_create_num'"),
        ({"max_size": 5}, TypeError, "it takes 'size' or 'maxsize'"),
        ({"max_lifetime": 5}, TypeError, "it takes 'con_lifetime'"),
        ({"defer_connect": True}, TypeError, "pre_create_num=0"),
        ({"pool": {"max_size": 5}}, TypeError, "the pool options themselves"),
        ({"timeout": "x"}, TypeError, "pool option 'timeout' takes"),
        ({"reset": "never"}, ValueError, "pool option 'reset' takes"),
        ({"port": "x"}, ValueError, "port should be of type int"),
    ],
)  # fmt: skip
def test_argument_that_makes_no_sense(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ConnectionPool(**{"host": "127.0.0.1", "port": 1, "user": "u", "password": "p", **arguments})
    assert pooled_pymysql.pools() == []


def test_old_argument_names_warn_as_pymysqls_do(config: dict[str, Any]) -> None:
    with warnings.catch_warnings(record=True) as plain:
        warnings.simplefilter("always")
        pymysql.connect(defer_connect=True, db="x", passwd="y")
    with warnings.catch_warnings(record=True) as ours:
        warnings.simplefilter("always")
        ConnectionPool(size=1, pre_create_num=0, db="x", passwd="y").close()
    assert [str(warning.message) for warning in ours] == [str(warning.message) for warning in plain]
    assert all(warning.filename == __file__ for warning in ours)


def test_server_that_is_down_raises_at_construction_what_pymysql_raises(caplog: pytest.LogCaptureFixture) -> None:
    where = {"host": "127.0.0.1", "port": free_port(), "user": "u", "password": "p"}
    with pytest.raises(pymysql.err.OperationalError) as plain:
        pymysql.connect(**where)
    with pytest.raises(pymysql.err.OperationalError) as caught:
        ConnectionPool(size=3, **where)
    assert type(caught.value) is type(plain.value)
    assert caught.value.args == plain.value.args
    assert pooled_pymysql.pools() == []
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []
    del caught
    pool = ConnectionPool(size=3, pre_create_num=0, name="later", **where)
    with pytest.raises(GetConnectionFromPoolError, match=r" s \(in_use=0 .*\): Can't connect to MySQL") as late:
        pool.get_connection()
    assert late.value.args[0] == plain.value.args[0]
    assert late.value.__cause__ is not None
    assert late.value.__cause__.args == plain.value.args
    pool.close()


def test_later_connection_that_fails_is_told_at_construction_as_well(
    account: Server, admin: Any, config: dict[str, Any], ids: Callable[[], set[int]]
) -> None:
    with admin.cursor() as cursor:
        cursor.execute(f"ALTER USER {account.user}@'%' WITH MAX_USER_CONNECTIONS 2")
    with pytest.raises(pymysql.err.MySQLError) as caught:
        ConnectionPool(size=4, **config)
    assert caught.value.args[0] == 1226
    wait_until(lambda: not ids(), what="the end of those that were opened")
    pool = ConnectionPool(size=2, **config)
    assert pool.size() == 2
    pool.close()


def test_wrong_password_is_told_at_construction(config: dict[str, Any]) -> None:
    with pytest.raises(pymysql.err.OperationalError) as caught:
        ConnectionPool(size=2, **config | {"password": "wrong"})
    assert caught.value.args[0] == 1045


# Getting one


def test_retries_keep_their_place_in_the_queue(config: dict[str, Any]) -> None:
    pool = ConnectionPool(size=1, **config)
    held = pool.get_connection()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(pool.get_connection, timeout=0.05, retry_num=200, retry_interval=0.05)
        time.sleep(0.3)  # the first tries are over
        assert pool.stats().waiting == 1
        released = time.monotonic()
        held.close()
        con = waiting.result(PATIENCE)
        assert time.monotonic() - released < 0.04  # woken, not polled
    con.close()
    assert pool.stats().timeouts == 0
    pool.close()


@pytest.mark.parametrize(
    ("arguments", "least", "said"),
    [
        ({}, 2.1, "within 1*2 second(s)"),
        ({"timeout": 0.2, "retry_num": 0}, 0.2, "within 0.2*1 second(s)"),
        ({"timeout": 0.1, "retry_num": 2, "retry_interval": 0.1}, 0.5, "within 0.1*3 second(s)"),
        ({"timeout": 0, "retry_num": 2, "retry_interval": 0.1}, 0.2, "within 0*3 second(s)"),
    ],
)
def test_time_that_it_waits(arguments: dict[str, Any], least: float, said: str, config: dict[str, Any]) -> None:
    pool = ConnectionPool(size=1, name="shop", **config)
    held = pool.get_connection()
    started = time.monotonic()
    with pytest.raises(GetConnectionFromPoolError, match=re.escape(said)):
        pool.get_connection(**arguments)
    assert least <= time.monotonic() - started < least + 1.0
    held.close()
    pool.get_connection(**arguments).close()
    pool.close()


def test_failed_connect_is_tried_again(config: dict[str, Any]) -> None:
    passwords = ["wrong", "wrong", config["password"]]
    pool = ConnectionPool(size=1, pre_create_num=0, **config | {"password": lambda: passwords.pop(0)})
    started = time.monotonic()
    pool.get_connection(timeout=5, retry_num=4, retry_interval=0.2).close()
    assert time.monotonic() - started >= 0.4
    assert passwords == []
    pool.close()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"timeout": -1}, ValueError),
        ({"timeout": "1"}, TypeError),
        ({"timeout": True}, TypeError),
        ({"timeout": float("nan")}, ValueError),
        ({"retry_num": -1}, ValueError),
        ({"retry_num": 1.5}, TypeError),
        ({"retry_interval": -0.1}, ValueError),
        ({"retry_interval": None}, TypeError),
    ],
)
def test_number_that_makes_no_sense(arguments: dict[str, Any], error: type[Exception], config: dict[str, Any]) -> None:
    pool = ConnectionPool(size=1, pre_create_num=0, **config)
    with pytest.raises(error, match=next(iter(arguments))):
        pool.get_connection(**arguments)
    assert pool.total_num == 0
    for timeout in (-1, "1"):
        with pytest.raises((TypeError, ValueError), match="timeout takes"):
            pool.acquire(timeout)  # type: ignore[arg-type]
    pool.close()


def test_no_limit_waits(config: dict[str, Any]) -> None:
    pool = ConnectionPool(size=1, **config)
    held = pool.get_connection()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(pool.get_connection, timeout=None)
        wait_until(lambda: pool.stats().waiting == 1, what="one who waits")
        held.close()
        waiting.result(PATIENCE).close()
    pool.close()


def test_pre_ping_asks_the_server_and_leaves_a_dead_session_aside(account: Server, config: dict[str, Any]) -> None:
    with Proxy(account.host, account.port) as proxy:
        pool = ConnectionPool(size=1, maxsize=2, **config | {"port": proxy.port})

        def resets() -> int:
            return sum(code == COM_RESET_CONNECTION for code, _ in proxy.commands)

        pool.get_connection().close()
        assert resets() == 0
        with pool.get_connection(pre_ping=True) as con:
            assert resets() == 1
            assert con.execute_query("SELECT 1") == ((1,),)
        proxy.stall()
        started = time.monotonic()
        with pytest.raises(GetConnectionFromPoolError):
            pool.get_connection(timeout=0.3, retry_num=0, pre_ping=True)
        assert time.monotonic() - started < 2.0
        proxy.restore()
        pool.close()


def test_pre_ping_with_a_killed_session(admin: Any, config: dict[str, Any]) -> None:
    pool = ConnectionPool(size=1, **config)
    with pool.get_connection() as con:
        number = con.thread_id()
    with admin.cursor() as cursor:
        cursor.execute(f"KILL {number}")
    with pool.get_connection(pre_ping=True) as con:
        assert con.execute_query("SELECT CONNECTION_ID()") != ((number,),)
    pool.close()


# The names


def test_names() -> None:
    assert sorted(pymysqlpool.__all__) == [
        "Connection", "ConnectionPool", "ConnectionPoolSingleton", "Cursor", "DictCursor",
        "GetConnectionFromPoolError", "ReturnConnectionToPoolError", "logger",
    ]  # fmt: skip
    for name in ("ConnectionPool", "GetConnectionFromPoolError", "ReturnConnectionToPoolError", "logger"):
        assert getattr(pooled_pymysql, name) is getattr(pymysqlpool, name)
        assert name in pooled_pymysql.__all__
    assert pooled_pymysql.logger is logging.getLogger("pooled_pymysql")
    assert issubclass(pymysqlpool.Connection, pooled_pymysql.Connection)
    assert GetConnectionFromPoolError.__bases__ == (PoolTimeout,)
    assert ReturnConnectionToPoolError.__bases__ == (pymysql.err.InterfaceError,)


def test_importing_installs_no_handler_and_no_filter() -> None:
    program = """
import logging, warnings
before = list(warnings.filters)
import pooled_pymysql.pymysqlpool as module
assert warnings.filters == before
for logger in (module.logger, logging.getLogger()):
    assert logger.handlers == []
    assert not logger.filters
assert module.logger.level == logging.NOTSET
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE)


# Singletons


def test_singleton_is_one_pool_for_equal_arguments(config: dict[str, Any], database: str) -> None:
    make = pymysqlpool.ConnectionPoolSingleton
    pools = run_all(*[lambda: make(size=1, **config)] * 6)
    assert len(set(map(id, pools))) == 1
    pool = pools[0]
    assert isinstance(pool, ConnectionPool)
    assert make(1, **dict(reversed(config.items())), conv=None, name=None) is not pool  # conv is an argument more
    assert make(1, None, **dict(reversed(config.items()))) is pool
    assert make(size=1, **config | {"database": database}) is not pool
    assert make(size=2, **config) is not pool
    assert "eprecated" in (make.__doc__ or "")
    pool.close()
    again = make(size=1, **config)
    assert again is not pool
    assert again.get_connection().execute_query("SELECT 1") == ((1,),)
    table = dict(pymysql.converters.conversions)
    assert make(size=1, conv=table, **config) is make(size=1, conv=dict(table), **config)
    with pytest.raises(TypeError, match="hash"):
        make(size=1, **config | {"conv": [1]})
    with pytest.raises(ValueError, match="size takes"):
        make(size=0, **config)


# Collection


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What finalizers raised."""
    seen: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    yield seen
    gc.collect()
    assert seen == []


def test_pool_that_nobody_refers_to_closes_its_connections(
    config: dict[str, Any], ids: Callable[[], set[int]], unraisable: list[Any]
) -> None:
    pool = ConnectionPool(size=3, **config)
    con = closed_connection(pool)
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert con.execute_query("SELECT 1") == ((1,),)  # a connection may lease again: it keeps its pool
    del con
    wait_until(lambda: gc.collect() >= 0 and gone() is None, what="the end of the pool")
    wait_until(lambda: not ids(), what="the end of the connections")
    assert pooled_pymysql.pools() == []


@pytest.mark.parametrize("cyclic", [False, True])
def test_pool_and_lease_that_are_collected_together(
    cyclic: bool, config: dict[str, Any], ids: Callable[[], set[int]], unraisable: list[Any]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # one that is recorded refers to the lease
        pool = ConnectionPool(size=2, **config)
        con = pool.get_connection()
        if cyclic:
            pool.cycle = con  # type: ignore[attr-defined]
        gone = weakref.ref(pool)
        del pool, con
        wait_until(lambda: gc.collect() >= 0 and gone() is None, what="the end of the pool")
        wait_until(lambda: not ids(), what="the end of the connections")


def test_pool_with_the_id_of_a_collected_one_is_watched() -> None:
    class Watched:
        ticks = 0

        def tick(self) -> float | None:
            self.ticks += 1
            return None

    housekeeper = Housekeeper()
    old, new = Watched(), Watched()
    housekeeper._watched[id(new)] = weakref.ref(old)
    del old
    housekeeper.watch(new)
    housekeeper.wake()
    wait_until(lambda: new.ticks, what="a tick")
    assert housekeeper.stop(5.0)


# Processes

PRELUDE = """
import gc, json, os, signal, sys, threading, time
import pymysql
from pooled_pymysql import *
from pooled_pymysql import pymysqlpool, pools
signal.alarm(20)
config = json.loads(sys.argv[1])

def in_child(work):
    number = os.fork()
    if not number:
        signal.alarm(20)
        try:
            work()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(number, 0)[1] == 0
"""


def run_program(body: str, config: dict[str, Any]) -> str:
    """Run a program in a process of its own; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", "-c", PRELUDE + body, json.dumps(config)],
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_forked_child_begins_with_an_empty_pool(config: dict[str, Any]) -> None:
    run_program(
        """
pool = ConnectionPool(size=2, **config)
con = pool.get_connection()
closed = pool.get_connection()
closed.close()
mine = con.thread_id()

def child():
    assert pool in pools()
    assert (pool.size(), pool.total_num) == (0, 0)
    for use in (con.close, con.commit, lambda: con.execute("SELECT 1")):
        try:
            use()
        except ReturnConnectionToPoolError:
            pass
        else:
            raise AssertionError("an inherited lease answers")
    for each in (closed, con):
        with each as cur:
            cur.execute("SELECT CONNECTION_ID()")
            assert cur.fetchone() != (mine,)
    pool.close()

in_child(child)
assert con.execute_query("SELECT CONNECTION_ID()") == ((mine,),)
pool.close()
""",
        config,
    )


def test_fork_in_the_middle_of_blocks(config: dict[str, Any]) -> None:
    run_program(
        """
pool = ConnectionPool(size=2, autocommit=False, **config)
con, other = pool.get_connection(), pool.get_connection()
con.close(), other.close()
inside, go_on = threading.Event(), threading.Event()

def block():
    with other as cur:
        cur.execute("SELECT 5")
        inside.set()
        go_on.wait(10)
        assert cur.fetchone() == (5,)

thread = threading.Thread(target=block)
thread.start()
inside.wait(10)

def child():
    # The parent's thread is inside of this one for ever, here.
    with other as cur:
        cur.execute("SELECT 1")
        assert cur.fetchone() == (1,)

def child_in_block():
    try:
        with con as cur:
            assert cur.execute("SELECT 1") == 1
    except ReturnConnectionToPoolError:
        pass
    else:
        raise AssertionError("an inherited block goes on")

import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # the parent has a thread, on purpose
in_child(child)
with con as cur:
    cur.execute("SELECT 6")
    in_child(child_in_block)
    number = os.fork()
    if not number:
        break_out = True
    else:
        break_out = False
        assert os.waitpid(number, 0)[1] == 0
        assert cur.fetchone() == (6,)
    if break_out:
        try:
            con.__exit__(None, None, None)
        except ReturnConnectionToPoolError:
            with con as cur:
                cur.execute("SELECT 7")
                assert cur.fetchone() == (7,)
            os._exit(0)
        os._exit(1)
go_on.set()
thread.join(10)
pool.close()
""",
        config,
    )


def test_exit_says_goodbye(account: Server, config: dict[str, Any], admin: Any, ids: Callable[[], set[int]]) -> None:
    with admin.cursor() as cursor:
        cursor.execute("SHOW GLOBAL STATUS LIKE 'Aborted_clients'")
        before = cursor.fetchone()
    run_program("pool = ConnectionPool(size=2, **config)\nassert pool.size() == 2\n", config)
    wait_until(lambda: not ids(), what="the end of the connections")
    with admin.cursor() as cursor:
        cursor.execute("SHOW GLOBAL STATUS LIKE 'Aborted_clients'")
        assert cursor.fetchone() == before


def test_interrupt_while_it_opens_closes_the_pool(config: dict[str, Any], ids: Callable[[], set[int]]) -> None:
    asked, answer = threading.Semaphore(0), threading.Semaphore(0)

    def password() -> str:
        asked.release()
        assert answer.acquire(timeout=PATIENCE)
        return str(config["password"])

    main = threading.get_ident()

    def interrupt() -> None:
        assert asked.acquire(timeout=PATIENCE)
        signal.pthread_kill(main, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            ConnectionPool(size=2, **config | {"password": password})
    finally:
        signal.signal(signal.SIGINT, before)
        interrupter.join(PATIENCE)
    assert pooled_pymysql.pools() == []
    answer.release(9)
    threads = [thread for thread in threading.enumerate() if thread.name == "pooled_pymysql helper"]
    for thread in threads:
        thread.join(PATIENCE)
    wait_until(lambda: not ids(), what="the end of what was being opened")
