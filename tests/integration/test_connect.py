"""`connect()`: what it takes, what it returns, and what is left of a lease after `close()`."""

from __future__ import annotations

import copy
import dataclasses
import gc
import json
import logging
import pickle
import subprocess
import sys
import traceback
import types
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pymysql
import pymysql.connections
import pytest
import servers
from pymysql.constants import FIELD_TYPE
from pymysql.cursors import DictCursor
from servers import Server, wait_until

import pooled_pymysql
from pooled_pymysql import PoolOptions, registry

ROOT = Path(pooled_pymysql.__file__).parents[1]


def ask(connection: Any, statement: str) -> Any:
    """Return the first row of a statement's result."""
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()


def connection_id(connection: Any) -> int:
    (number,) = ask(connection, "SELECT CONNECTION_ID()")
    return int(number)


def only_pool() -> pooled_pymysql.Pool:
    (pool,) = pooled_pymysql.pools()
    return pool


def counts() -> tuple[int, int, int]:
    """Return what the one pool has in use, idle, and opening."""
    stats = only_pool().stats()
    return stats.in_use, stats.idle, stats.opening


@pytest.fixture
def table(database: str, admin: Any) -> str:
    """The name of a new, empty table."""
    name = f"{database}.t"
    with admin.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {name} (id INT PRIMARY KEY) ENGINE=InnoDB")
    return name


@pytest.fixture
def refusing(account: Server) -> dict[str, Any]:
    """Arguments with which a server refuses a wrong password: without TLS, MySQL asks for an RSA library first."""
    return servers.transport(account.is_mariadb)


@pytest.fixture
def reconnect_is_no_news() -> Iterator[None]:
    """PyMySQL 1.2 warns of ping(reconnect=True)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The 'reconnect' argument", DeprecationWarning)
        yield


# Ways of calling


def test_lease_is_a_pymysql_connection(server: Server) -> None:
    with pooled_pymysql.connect(**server.kwargs()) as connection:
        assert isinstance(connection, pymysql.connections.Connection)
        assert isinstance(connection, pooled_pymysql.Connection)
        assert connection.open
        assert ask(connection, "SELECT 1 + 1") == (2,)
        assert connection_id(connection) == connection.thread_id()
    assert pooled_pymysql.Connect is pooled_pymysql.connect


def test_second_connect_uses_the_same_session(server: Server) -> None:
    seen = set()
    for _ in range(5):
        connection = pooled_pymysql.connect(**server.kwargs())
        seen.add(connection_id(connection))
        connection.close()
    assert len(seen) == 1
    assert counts() == (0, 1, 0)


def test_dsn_and_keywords_lead_to_one_pool(server: Server) -> None:
    for args, kwargs in (((server.dsn(),), {}), ((), server.kwargs())):
        pooled_pymysql.connect(*args, **kwargs).close()
    assert only_pool().stats().opened == 1
    assert pooled_pymysql.pool_for(server.dsn()) is pooled_pymysql.pool_for(**server.kwargs()) is only_pool()


def test_keywords_override_the_dsn(server: Server, database: str) -> None:
    with pooled_pymysql.connect(server.dsn(charset="latin1"), database=database, charset="utf8mb4") as one:
        assert ask(one, "SELECT DATABASE(), @@character_set_client") == (database, "utf8mb4")
    with pooled_pymysql.connect(server.dsn(charset="latin1"), cursorclass=DictCursor) as two:
        row = ask(two, "SELECT DATABASE() AS d, @@character_set_client AS c")
    assert row == {"d": server.database, "c": "latin1"}


@pytest.mark.filterwarnings("ignore:'(db|passwd)' is deprecated:DeprecationWarning")
def test_old_names_override_the_dsn_too(server: Server, refusing: dict[str, Any], database: str) -> None:
    with pooled_pymysql.connect(server.dsn(), db=database) as connection:
        assert ask(connection, "SELECT DATABASE()") == (database,)
    with pytest.raises(pymysql.err.OperationalError, match="1045"):
        pooled_pymysql.connect(server.dsn(), passwd="wrong", **refusing)


@pytest.mark.skipif(pymysql.VERSION < (1, 2), reason="PyMySQL 1.1 does not warn")
def test_old_names_warn_the_caller_each_time(server: Server) -> None:
    kwargs = server.kwargs()
    kwargs["db"], kwargs["passwd"] = kwargs.pop("database"), kwargs.pop("password")
    for _ in range(2):
        with pytest.warns(DeprecationWarning, match="'(db|passwd)' is deprecated") as caught:
            pooled_pymysql.connect(**kwargs).close()
        assert sorted(str(each.message) for each in caught) == [
            "'db' is deprecated, use 'database'",
            "'passwd' is deprecated, use 'password'",
        ]
        assert {each.filename for each in caught} == {__file__}


def test_pool_options_as_object_dict_and_dsn(server: Server) -> None:
    name = f"n{uuid.uuid4().hex}"
    wanted = PoolOptions(max_size=3, timeout=1.5, name=name)
    pooled_pymysql.connect(**server.kwargs(), pool=wanted).close()
    pooled_pymysql.connect(**server.kwargs(), pool={"max_size": 3, "timeout": 1.5, "name": name}).close()
    pooled_pymysql.connect(server.dsn(pool_max_size=3, pool_timeout=1.5, pool_name=name)).close()
    pooled_pymysql.connect(server.dsn(pool_max_size=9, pool_name=name), pool={"max_size": 3, "timeout": 1.5}).close()
    pool = only_pool()
    assert (pool.name, pool.options, pool.stats().opened) == (name, wanted, 1)


def test_pool_options_in_a_dict_are_read_at_every_call(server: Server) -> None:
    options: dict[str, Any] = {"max_size": 1}
    for size in (1, 2, 1):
        options["max_size"] = size
        pooled_pymysql.connect(**server.kwargs(), pool=options).close()
    assert sorted(pool.stats().max_size for pool in pooled_pymysql.pools()) == [1, 2]
    for wrong in (True, 1.0, [1]):  # the first two are equal to 1, but no ints
        options["max_size"] = wrong
        with pytest.raises(TypeError, match="'max_size'"):
            pooled_pymysql.connect(**server.kwargs(), pool=options)


def test_other_options_are_another_pool(server: Server) -> None:
    for size in (1, 2):
        pooled_pymysql.connect(**server.kwargs(), pool={"max_size": size}).close()
    assert sorted(pool.stats().max_size for pool in pooled_pymysql.pools()) == [1, 2]


@pytest.mark.parametrize(
    ("pool", "error", "text"),
    [
        (True, TypeError, "pool= takes a PoolOptions"),
        (5, TypeError, "pool= takes a PoolOptions"),
        ("mysql://u:S3cr3t@h", TypeError, "pool= takes a PoolOptions"),
        ([("max_size", 3)], TypeError, "pool= takes a PoolOptions"),
        ({"max_size": "3"}, TypeError, "'max_size' takes an int"),
        ({"max_size": 0}, ValueError, "'max_size' takes an int, at least 1"),
        ({"max_sise": 3}, TypeError, "did you mean 'max_size'"),
        ({"timeout": -1}, ValueError, "'timeout' takes seconds"),
        ({"reset": "never"}, ValueError, "'reset' takes"),
    ],
)
def test_bad_pool_argument_is_refused_at_once(pool: Any, error: type[Exception], text: str) -> None:
    for _ in range(2):
        with pytest.raises(error, match=text) as caught:
            pooled_pymysql.connect(host="nowhere.invalid", pool=pool)
        assert "S3cr3t" not in str(caught.value)
    assert pooled_pymysql.pools() == []


def test_without_pool_a_connection_is_opened_and_closed(
    account: Server, connection_ids: Callable[..., set[int]]
) -> None:
    for args, kwargs in (((account.dsn(),), {}), ((), account.kwargs())):
        connection = pooled_pymysql.connect(*args, pool=False, **kwargs)
        assert isinstance(connection, pooled_pymysql.Connection)
        assert connection_ids(account.user) == {connection_id(connection)}
        connection.close()
        wait_until(lambda: not connection_ids(account.user), what="the end of the connection")
    assert pooled_pymysql.pools() == []


def test_without_pool_a_callable_password_is_called(account: Server) -> None:
    with pooled_pymysql.connect(**account.kwargs(password=lambda: account.password), pool=False) as connection:
        assert ask(connection, "SELECT 1") == (1,)


def test_deferred_connection_leases_when_told(server: Server) -> None:
    connection = pooled_pymysql.connect(**server.kwargs(), defer_connect=True)
    assert not connection.open
    assert [pool.stats().leases for pool in pooled_pymysql.pools()] in ([], [0])
    with pytest.raises(pymysql.err.InterfaceError):
        connection.query("SELECT 1")
    connection.connect()
    assert ask(connection, "SELECT 1") == (1,)
    assert counts() == (1, 0, 0)
    connection.close()
    assert counts() == (0, 1, 0)
    with pooled_pymysql.connect(**server.kwargs()):
        assert only_pool().stats().opened == 1


def test_deferred_connection_looks_like_pymysqls(server: Server) -> None:
    ours = pooled_pymysql.connect(**server.kwargs(), defer_connect=True)
    plain = pymysql.connect(**server.kwargs(), defer_connect=True)
    assert comparable(ours) == comparable(plain)
    ours.close()
    plain.close()
    with pytest.raises(pymysql.err.Error, match="Already closed"):
        ours.close()


def test_callers_own_client_settings(server: Server) -> None:
    decoders = pymysql.converters.conversions.copy()
    decoders[FIELD_TYPE.VAR_STRING] = lambda text: f"<{text}>"
    with pooled_pymysql.connect(**server.kwargs(), conv=decoders, cursorclass=DictCursor) as connection:
        assert ask(connection, "SELECT 'a' AS n") == {"n": "<a>"}
    with pooled_pymysql.connect(**server.kwargs()) as connection:
        assert ask(connection, "SELECT 'a'") == ("a",)
    with pooled_pymysql.connect(**server.kwargs(), use_unicode=False) as connection:
        assert ask(connection, "SELECT 'a'") == (b"a",)
    assert only_pool().stats().opened == 1


def test_read_timeout_belongs_to_the_lease(server: Server) -> None:
    with (
        pooled_pymysql.connect(**server.kwargs(), read_timeout=0.2) as connection,
        pytest.raises(pymysql.err.OperationalError, match="timed out"),
    ):
        ask(connection, "SELECT SLEEP(5)")
    with pooled_pymysql.connect(**server.kwargs()) as connection:
        assert ask(connection, "SELECT SLEEP(0.3)") == (0,)


# Closing


def test_with_block_closes_and_commits_nothing(server: Server, table: str) -> None:
    with pooled_pymysql.connect(**server.kwargs()) as connection:
        assert connection.cursor().execute(f"INSERT INTO {table} VALUES (1)") == 1
    assert not connection.open
    with server.connect() as plain:
        assert ask(plain, f"SELECT COUNT(*) FROM {table}") == (0,)
    assert counts() == (0, 1, 0)


def test_with_block_closes_when_it_raises(server: Server) -> None:
    connection = pooled_pymysql.connect(**server.kwargs())
    with pytest.raises(ZeroDivisionError), connection:
        raise ZeroDivisionError
    assert not connection.open
    assert counts() == (0, 1, 0)


def test_second_close_raises_as_pymysqls(server: Server) -> None:
    connection = pooled_pymysql.connect(**server.kwargs())
    connection.close()
    with pooled_pymysql.connect(**server.kwargs()) as other:
        for _ in range(2):
            with pytest.raises(pymysql.err.Error) as caught:
                connection.close()
            assert type(caught.value) is pymysql.err.Error
            assert caught.value.args == ("Already closed",)
        assert ask(other, "SELECT 1") == (1,)
        assert counts() == (1, 0, 0)


STALE: dict[str, Callable[[Any], object]] = {
    "query": lambda connection: connection.query("SELECT 1"),
    "commit": lambda connection: connection.commit(),
    "rollback": lambda connection: connection.rollback(),
    "begin": lambda connection: connection.begin(),
    "select_db": lambda connection: connection.select_db("x"),
    "autocommit": lambda connection: connection.autocommit(not connection.get_autocommit()),
    "set_character_set": lambda connection: connection.set_character_set("latin1"),
    "show_warnings": lambda connection: connection.show_warnings(),
    "kill": lambda connection: connection.kill(1),
    "execute": lambda connection: connection.cursor().execute("SELECT 1"),
}


@pytest.mark.parametrize("use", STALE.values(), ids=STALE)
def test_stale_reference_is_dead(use: Callable[[Any], object], server: Server) -> None:
    connection = pooled_pymysql.connect(**server.kwargs())
    connection.close()
    with pooled_pymysql.connect(**server.kwargs()) as other:
        with pytest.raises(pymysql.err.InterfaceError) as caught:
            use(connection)
        assert caught.value.args == (0, "")
        assert not connection.open
        assert ask(other, "SELECT 1") == (1,)


def test_stale_cursor_is_dead_and_keeps_its_rows(server: Server) -> None:
    connection = pooled_pymysql.connect(**server.kwargs())
    cursor = connection.cursor()
    cursor.execute("SELECT 1 UNION SELECT 2")
    connection.close()
    with pooled_pymysql.connect(**server.kwargs()):
        assert list(cursor) == [(1,), (2,)]
        with pytest.raises(pymysql.err.InterfaceError) as caught:
            cursor.execute("SELECT 3")
        assert caught.value.args == (0, "")
        with pytest.raises(pymysql.err.Error, match="Already closed"):
            connection.ping(reconnect=False)
        cursor.close()


OBJECTS = {"ctx", "_result", "_sock"}
# The server makes them up, or they follow the socket: its timeout (PyMySQL 1.2), and where the last reply ended.
DIFFERENT_BY_NATURE = {"server_thread_id", "salt", "_current_timeout", "_next_seq_id"}


def comparable(connection: Any) -> dict[str, Any]:
    """Return the attributes of a connection: names alone where values differ by nature, types of objects."""
    seen: dict[str, Any] = {
        name: type(value) if name in OBJECTS else (type(value), value) if name not in DIFFERENT_BY_NATURE else None
        for name, value in vars(connection).items()
    }
    return seen | {"_rfile": connection._rfile is None}  # a reader of our own


def differences(ours: dict[str, dict[str, Any]], plain: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return what two connections of `use_and_close` have not in common."""
    return {
        f"{name}, {when}": (ours[when].get(name, "absent"), plain[when].get(name, "absent"))
        for when in plain
        for name in sorted(ours[when].keys() | plain[when].keys())
        if ours[when].get(name, "absent") != plain[when].get(name, "absent")
    }


def use_and_close(connection: Any) -> dict[str, dict[str, Any]]:
    """Return a connection's attributes at three times."""
    seen = {"new": comparable(connection)}
    del seen["new"]["_result"]  # PyMySQL's is that of init_command; nothing has run in a lease yet
    ask(connection, "SELECT 1 UNION SELECT 2")
    connection.commit()
    seen["used"] = comparable(connection)
    connection.close()
    seen["closed"] = comparable(connection)
    return seen


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"autocommit": True, "charset": "latin1"},
        {"autocommit": None, "sql_mode": "ANSI", "init_command": "SET @a = 1"},
        {"read_timeout": 5, "write_timeout": 6, "connect_timeout": 7, "use_unicode": False},
        {"cursorclass": DictCursor, "program_name": "shop", "collation": "utf8mb4_bin"},
        {"ssl_disabled": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("lease", ["first", "second"])
def test_attributes_are_those_of_a_pymysql_connection(settings: dict[str, Any], lease: str, server: Server) -> None:
    kwargs = server.kwargs(**settings)
    if lease == "second":
        use_and_close(pooled_pymysql.connect(**kwargs))
    ours, plain = use_and_close(pooled_pymysql.connect(**kwargs)), use_and_close(pymysql.connect(**kwargs))
    assert differences(ours, plain) == {}


def test_what_still_answers_after_close(server: Server) -> None:
    ours, plain = pooled_pymysql.connect(**server.kwargs()), pymysql.connect(**server.kwargs())
    number = ours.thread_id()
    for connection in (ours, plain):
        ask(connection, "SELECT 1")
        connection.close()
    assert ours.thread_id() == number
    for method in ("get_autocommit", "character_set_name", "get_server_info", "get_host_info", "get_proto_info"):
        assert getattr(ours, method)() == getattr(plain, method)()
    assert ours.escape("a'b") == plain.escape("a'b")
    assert ours.affected_rows() == plain.affected_rows()
    assert ours.insert_id() == plain.insert_id()
    assert type(ours.cursor()) is type(plain.cursor())


# Connecting again


AGAIN: dict[str, Callable[[Any], object]] = {
    "connect": lambda connection: connection.connect(),
    "ping": lambda connection: connection.ping(reconnect=True),
}


@pytest.mark.usefixtures("reconnect_is_no_news")
@pytest.mark.parametrize("again", AGAIN.values(), ids=AGAIN)
@pytest.mark.parametrize("before", ["open", "closed"])
def test_connecting_again_stays_in_the_pool(
    again: Callable[[Any], object], before: str, account: Server, connection_ids: Callable[..., set[int]]
) -> None:
    connection = pooled_pymysql.connect(**account.kwargs(), pool={"max_size": 1, "timeout": 0})
    if before == "closed":
        connection.close()
    again(connection)
    assert connection.open
    assert connection_ids(account.user) == {connection_id(connection)}
    assert counts() == (1, 0, 0)
    with pytest.raises(pooled_pymysql.PoolTimeout):
        only_pool().acquire()
    connection.close()
    assert counts() == (0, 1, 0)
    assert only_pool().stats().opened == 1


@pytest.mark.usefixtures("reconnect_is_no_news")
@pytest.mark.parametrize("again", AGAIN.values(), ids=AGAIN)
@pytest.mark.parametrize("before", ["open", "closed", "killed"])
def test_connecting_again_keeps_the_connections_settings(
    again: Callable[[Any], object],
    before: str,
    server: Server,
    admin: Any,
    connection_ids: Callable[..., set[int]],
) -> None:
    connection = pooled_pymysql.connect(**server.kwargs())
    connection.set_character_set("latin1", "latin1_bin")
    connection.autocommit(True)
    if before == "closed":
        connection.close()
    elif before == "killed":
        end(connection, admin, connection_ids)
    again(connection)
    row = ask(connection, "SELECT @@character_set_client, @@collation_connection, @@autocommit, DATABASE()")
    assert row == ("latin1", "latin1_bin", 1, server.database)
    assert (connection.charset, connection.encoding) == ("latin1", "cp1252")
    assert connection.get_autocommit()
    connection.close()
    with pooled_pymysql.connect(**server.kwargs()) as other:
        assert ask(other, "SELECT @@character_set_client, @@autocommit") == ("utf8mb4", 0)


def end(connection: Any, admin: Any, connection_ids: Callable[..., set[int]]) -> None:
    """Kill a connection, and wait until its end has come."""
    admin.kill(connection.thread_id())
    wait_until(lambda: connection.thread_id() not in connection_ids(), what="the end of the connection")


@pytest.mark.usefixtures("reconnect_is_no_news")
def test_connecting_again_gives_the_old_session_back_clean(server: Server, table: str) -> None:
    connection = pooled_pymysql.connect(**server.kwargs())
    connection.cursor().execute(f"INSERT INTO {table} VALUES (1)")
    connection.connect()
    assert ask(connection, f"SELECT COUNT(*) FROM {table}") == (0,)
    connection.ping(reconnect=True)
    assert counts() == (1, 0, 0)
    connection.close()


def test_ping_without_reconnect_on_a_closed_lease_raises(server: Server) -> None:
    connection = pooled_pymysql.connect(**server.kwargs())
    connection.ping(reconnect=False)
    connection.close()
    with pytest.raises(pymysql.err.Error, match=r"^Already closed$"):
        connection.ping(reconnect=False)


# Refused


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps], ids=lambda each: each.__name__)
def test_copying_and_pickling_are_refused(duplicate: Callable[[Any], object], server: Server) -> None:
    with pooled_pymysql.connect(**server.kwargs()) as connection:
        with pytest.raises(TypeError, match="cannot be copied"):
            duplicate(connection)
        gc.collect()
        assert ask(connection, "SELECT 1") == (1,)


# Without a pool


def test_class_called_directly_is_not_pooled(account: Server, connection_ids: Callable[..., set[int]]) -> None:
    connection = pooled_pymysql.Connection(**account.kwargs())
    assert ask(connection, "SELECT 1") == (1,)
    assert connection_ids(account.user) == {connection.thread_id()}
    connection.close()
    wait_until(lambda: not connection_ids(account.user), what="the end of the connection")
    with pytest.raises(pymysql.err.Error, match="Already closed"):
        connection.close()
    assert pooled_pymysql.pools() == []


def test_class_called_directly_looks_like_pymysqls(server: Server) -> None:
    ours, plain = pooled_pymysql.Connection(**server.kwargs()), pymysql.connect(**server.kwargs())
    assert differences(use_and_close(ours), use_and_close(plain)) == {}


def test_subclass_is_not_pooled_and_has_its_own_constructor(server: Server) -> None:
    class Named(pooled_pymysql.Connection):
        def __init__(self, name: str, settings: dict[str, Any], **more: Any) -> None:
            self.name = name
            super().__init__(**settings, **more)

    with Named("shop", server.kwargs(), autocommit=True) as connection:
        assert (connection.name, connection.get_autocommit()) == ("shop", True)
        assert ask(connection, "SELECT 1") == (1,)
    assert not connection.open
    assert pooled_pymysql.pools() == []


def test_failing_constructor_of_the_class_leaves_nothing_behind(account: Server, refusing: dict[str, Any]) -> None:
    with pytest.raises(pymysql.err.OperationalError, match="1045"):
        pooled_pymysql.Connection(**account.kwargs(password="wrong", **refusing))
    with pytest.raises(TypeError):
        pooled_pymysql.Connection(nonsense=1)
    gc.collect()


# Passwords


def test_callable_password_is_asked_once_a_physical_connection(account: Server) -> None:
    calls = []

    def token() -> str:
        calls.append(1)
        return account.password

    kwargs = account.kwargs(password=token)
    for _ in range(3):
        pooled_pymysql.connect(**kwargs).close()
    assert len(calls) == 1
    with pooled_pymysql.connect(**kwargs), pooled_pymysql.connect(**kwargs):
        assert len(calls) == 2
    assert only_pool().stats().opened == 2


def test_callable_password_may_give_another_one_each_time(account: Server, refusing: dict[str, Any]) -> None:
    token: str | bytes = "wrong"
    kwargs = account.kwargs(password=lambda: token, **refusing)
    with pytest.raises(pymysql.err.OperationalError, match="1045"):
        pooled_pymysql.connect(**kwargs)
    token = account.password.encode()
    with pooled_pymysql.connect(**kwargs):
        token = "wrong"
        with pytest.raises(pymysql.err.OperationalError, match="1045"):
            pooled_pymysql.connect(**kwargs)
        assert counts() == (1, 0, 0)


def test_two_callable_passwords_are_two_pools(account: Server, refusing: dict[str, Any]) -> None:
    pooled_pymysql.connect(**account.kwargs(password=lambda: account.password, **refusing)).close()
    with pytest.raises(pymysql.err.OperationalError, match="1045"):
        pooled_pymysql.connect(**account.kwargs(password=lambda: "wrong", **refusing))
    assert len(pooled_pymysql.pools()) == 2


@pytest.mark.parametrize(("given", "error"), [(5, TypeError), (None, TypeError), (KeyError("vault"), KeyError)])
def test_callable_password_that_gives_none(given: object, error: type[Exception], account: Server) -> None:
    def token() -> Any:
        if isinstance(given, Exception):
            raise given
        return given

    for _ in range(2):
        with pytest.raises(error):
            pooled_pymysql.connect(**account.kwargs(password=token), pool={"max_size": 1, "timeout": 0})
        assert counts() == (0, 0, 0)


Call = tuple[tuple[Any, ...], dict[str, Any]]
FORMS = ("str", "bytes", "DSN", "callable")


def calls_with(account: Server, password: str) -> dict[str, Call]:
    """Return positional and keyword arguments that give a password in each form."""
    refusing = servers.transport(account.is_mariadb)
    dsn = account.dsn().replace(f":{account.password}@", f":{password}@")
    return {
        "str": ((), account.kwargs(password=password, **refusing)),
        "bytes": ((), account.kwargs(password=password.encode(), **refusing)),
        "DSN": ((dsn,), refusing),
        "callable": ((), account.kwargs(password=lambda: password, **refusing)),
    }


def wrong_calls(account: Server) -> dict[str, Call]:
    """Return positional and keyword arguments that give a wrong password, in each form and in some more."""
    refusing = servers.transport(account.is_mariadb)
    return {
        **calls_with(account, "wrong"),
        "empty": ((), account.kwargs(password="", **refusing)),
        "none": ((), account.kwargs(password=None, **refusing)),
        "longer": ((), account.kwargs(password=account.password + "x", **refusing)),
        "other case": ((), account.kwargs(password=account.password.upper(), **refusing)),
        "overriding": ((account.dsn(),), {"password": b"wrong", **refusing}),
    }


@pytest.mark.parametrize("right", FORMS)
@pytest.mark.parametrize("wrong", [*FORMS, "empty", "none", "longer", "other case", "overriding"])
def test_wrong_password_never_gets_the_right_ones_session(right: str, wrong: str, account: Server) -> None:
    good, bad = calls_with(account, account.password)[right], wrong_calls(account)[wrong]
    for _ in range(2):
        pooled_pymysql.connect(*good[0], **good[1]).close()
        with pytest.raises(pymysql.err.OperationalError) as caught:
            pooled_pymysql.connect(*bad[0], **bad[1])
        assert caught.value.args[0] == 1045
    good_pool = pooled_pymysql.pool_for(*good[0], **good[1])
    assert good_pool
    assert good_pool is not pooled_pymysql.pool_for(*bad[0], **bad[1])
    assert good_pool.stats().leases == 2


def verdict(connect: Callable[..., Any], server: Server, verify: object) -> object:
    """Return how connecting with `ssl_verify_cert` ends: "connected", or the error's number."""
    try:
        connect(**server.kwargs(ssl_verify_cert=verify)).close()
    except pymysql.err.OperationalError as error:
        return error.args[0]
    return "connected"


@pytest.mark.thorough
def test_demanding_a_verified_certificate_is_not_fulfilled_by_less(tls_server: Server) -> None:
    """PyMySQL verifies with True and not with 1, which Python takes for equal."""
    plain = [verdict(pymysql.connect, tls_server, verify) for verify in (1, True)]
    assert plain == ["connected", 2003]
    for _ in range(2):
        assert [verdict(pooled_pymysql.connect, tls_server, verify) for verify in (1, True)] == plain
    assert len(pooled_pymysql.pools()) == 2


@pytest.mark.parametrize("password", [bytearray, memoryview], ids=lambda each: each.__name__)
def test_password_in_a_buffer(password: Callable[[bytes], Any], account: Server) -> None:
    given = password(account.password.encode())
    with account.connect(password=given) as plain:
        assert plain.open
    with pooled_pymysql.connect(**account.kwargs(password=given)) as connection:
        assert connection.open


def test_option_file_is_read_again_when_it_was_rewritten(
    account: Server, refusing: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "my.cnf"
    login = account.kwargs(read_default_file=str(file), **refusing)
    del login["password"]
    file.write_text("[client]\npassword = wrong\n")
    with pytest.raises(pymysql.err.OperationalError, match="1045"):
        pooled_pymysql.connect(**login)
    file.write_text(f"[client]\npassword = {account.password}\n")
    pooled_pymysql.connect(**login).close()
    file.write_text("[client]\npassword = wrong-again\n")
    with pytest.raises(pymysql.err.OperationalError, match="1045"):
        pooled_pymysql.connect(**login)


# Pools


def test_pool_for_finds_what_connect_uses(server: Server) -> None:
    assert pooled_pymysql.pool_for(**server.kwargs()) is None
    assert pooled_pymysql.pool_for(server.dsn()) is None
    assert pooled_pymysql.pools() == []
    pooled_pymysql.connect(**server.kwargs()).close()
    assert pooled_pymysql.pool_for(**server.kwargs()) is only_pool()
    assert pooled_pymysql.pool_for(**server.kwargs(), conv={}, cursorclass=DictCursor) is only_pool()
    assert pooled_pymysql.pool_for(**server.kwargs(), pool={"max_size": 2}) is None
    assert pooled_pymysql.pool_for(**server.kwargs(user="other")) is None


def test_closed_pool_is_replaced_by_the_next_connect(account: Server, connection_ids: Callable[..., set[int]]) -> None:
    with pooled_pymysql.connect(**account.kwargs()) as leased:
        pooled_pymysql.connect(**account.kwargs()).close()
        old = only_pool()
        old.close()
        old.close()
        assert old.closed
        assert pooled_pymysql.pools() == []
        assert pooled_pymysql.pool_for(**account.kwargs()) is None
        assert ask(leased, "SELECT 1") == (1,)
        wait_until(lambda: len(connection_ids(account.user)) == 1, what="the end of the idle session")
        with pytest.raises(pooled_pymysql.PoolClosed) as caught:
            old.acquire()
        assert caught.value.args[0] == 2006
        with pooled_pymysql.connect(**account.kwargs()):
            assert only_pool() is not old
            assert len(connection_ids(account.user)) == 2
    assert (old.stats().in_use, old.stats().idle) == (0, 0)
    assert sum(old.stats().closed.values()) == old.stats().opened == 2
    wait_until(lambda: len(connection_ids(account.user)) == 1, what="the end of the leased session")


def test_closed_pool_needs_no_further_call_to_be_replaced(server: Server) -> None:
    pooled_pymysql.connect(**server.kwargs()).close()
    only_pool().close()
    with pooled_pymysql.connect(**server.kwargs(), cursorclass=DictCursor) as connection:
        assert ask(connection, "SELECT 1 AS one") == {"one": 1}


def test_close_pools_closes_all(account: Server, connection_ids: Callable[..., set[int]]) -> None:
    for size in (1, 2, 3):
        pooled_pymysql.connect(**account.kwargs(), pool={"max_size": size}).close()
    assert len(connection_ids(account.user)) == len(pooled_pymysql.pools()) == 3
    pooled_pymysql.close_pools()
    assert pooled_pymysql.pools() == []
    wait_until(lambda: not connection_ids(account.user), what="the end of all connections")
    with pooled_pymysql.connect(**account.kwargs(), pool={"max_size": 1}) as connection:
        assert ask(connection, "SELECT 1") == (1,)


def test_connection_block_commits_when_it_ends_well(server: Server, table: str) -> None:
    pooled_pymysql.connect(**server.kwargs()).close()
    with only_pool().connection() as connection:
        connection.cursor().execute(f"INSERT INTO {table} VALUES (1)")
        assert counts() == (1, 0, 0)
    assert not connection.open
    assert counts() == (0, 1, 0)
    with server.connect() as plain:
        assert ask(plain, f"SELECT COUNT(*) FROM {table}") == (1,)


def insert_and_raise(block: Any, table: str) -> None:
    with block as connection:
        connection.cursor().execute(f"INSERT INTO {table} VALUES (1)")
        raise ZeroDivisionError


def test_connection_block_rolls_back_when_it_raises(server: Server, table: str) -> None:
    pooled_pymysql.connect(**server.kwargs()).close()
    with pytest.raises(ZeroDivisionError):
        insert_and_raise(only_pool().connection(), table)
    assert counts() == (0, 1, 0)
    with server.connect() as plain:
        assert ask(plain, f"SELECT COUNT(*) FROM {table}") == (0,)


def test_connection_block_gives_back_when_the_commit_fails(
    server: Server, admin: Any, connection_ids: Callable[..., set[int]]
) -> None:
    pooled_pymysql.connect(**server.kwargs()).close()
    block = only_pool().connection()
    connection = block.__enter__()
    connection.query("SELECT 1")
    end(connection, admin, connection_ids)
    with pytest.raises(pymysql.err.OperationalError):
        block.__exit__(None, None, None)
    assert counts() == (0, 0, 0)


@pytest.mark.parametrize("ending", ["well", "badly"])
def test_connection_block_may_close_it_itself(ending: str, server: Server) -> None:
    """The commit of a block that ended well fails, as PyMySQL's does; that of the other is not tried."""
    pooled_pymysql.connect(**server.kwargs()).close()
    block = only_pool().connection()
    block.__enter__().close()
    if ending == "well":
        with pytest.raises(pymysql.err.InterfaceError):
            block.__exit__(None, None, None)
    else:
        assert not block.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert counts() == (0, 1, 0)


def test_wait_ready_waits_for_min_size(account: Server, connection_ids: Callable[..., set[int]]) -> None:
    pooled_pymysql.connect(**account.kwargs(), pool={"min_size": 3}).close()
    only_pool().wait_ready(10.0)
    assert counts() == (0, 3, 0)
    assert len(connection_ids(account.user)) == 3
    leases = [only_pool().acquire() for _ in range(3)]
    assert {connection_id(lease) for lease in leases} == connection_ids(account.user)
    for lease in leases:
        lease.close()
    assert only_pool().stats().opened == 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_wait_ready_tells_why_not(account: Server, admin: Any, caplog: pytest.LogCaptureFixture) -> None:
    pooled_pymysql.connect(**account.kwargs(), pool={"min_size": 2, "max_size": 2}).close()
    only_pool().wait_ready(10.0)
    with admin.cursor() as cursor:
        cursor.execute("ALTER USER %s@'%%' ACCOUNT LOCK", (account.user,))
    for number in wait_until(lambda: servers.connection_ids(admin, account.user)):
        admin.kill(number)
    wait_until(lambda: not servers.connection_ids(admin, account.user))
    with pytest.raises(pymysql.err.OperationalError):
        only_pool().acquire()
    with pytest.raises(pooled_pymysql.PoolTimeout, match=r"min_size not reached within 0\.3 s") as caught:
        only_pool().wait_ready(0.3)
    assert caught.value.args[0] == 1040
    assert isinstance(caught.value.__cause__, pymysql.err.OperationalError)
    assert "cannot open a session" in caplog.text


def test_stats_agree_with_the_server(account: Server, connection_ids: Callable[..., set[int]]) -> None:
    leases = [pooled_pymysql.connect(**account.kwargs(), pool={"max_size": 7}) for _ in range(3)]
    assert {connection_id(lease) for lease in leases} == connection_ids(account.user)
    assert counts() == (3, 0, 0)
    leases.pop().close()
    leases.pop().close()
    stats = only_pool().stats()
    assert (stats.in_use, stats.idle, stats.opening, stats.waiting, stats.max_size) == (1, 2, 0, 0, 7)
    assert (stats.opened, stats.leases, dict(stats.closed)) == (3, 3, {})
    assert len(connection_ids(account.user)) == stats.in_use + stats.idle
    pooled_pymysql.connect(**account.kwargs(), pool={"max_size": 7}).close()
    assert only_pool().stats().leases == 4
    with pytest.raises(AttributeError):
        stats.idle = 5  # type: ignore[misc]
    leases.pop().close()
    assert counts() == (0, 3, 0)
    assert len(connection_ids(account.user)) == 3


def test_dropped_lease_comes_back(account: Server, connection_ids: Callable[..., set[int]]) -> None:
    for _ in range(3):
        connection = pooled_pymysql.connect(**account.kwargs(), pool={"max_size": 1, "timeout": 10.0})
        assert ask(connection, "SELECT 1") == (1,)
        with pytest.warns(ResourceWarning, match="dropped without close"):
            del connection
    wait_until(lambda: counts()[0] == 0, what="the return of the dropped lease")
    assert only_pool().stats().dropped == 3
    assert len(connection_ids(account.user)) <= 1


# Defaults of the process


PROGRAM = """
import json, os, sys
import pooled_pymysql
dsn, configured, pool = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
pooled_pymysql.connect(dsn).close()
before = pooled_pymysql.pool_for(dsn)
pooled_pymysql.configure(**configured)
pooled_pymysql.connect(dsn, pool=pool).close()
after = pooled_pymysql.pool_for(dsn, pool=pool)
print(json.dumps([before.stats().max_size, after.stats().max_size, after.options.timeout, before is after]))
"""


@pytest.mark.parametrize(
    ("environment", "configured", "pool", "expected"),
    [
        ({}, {}, None, [100, 100, 30.0, True]),
        ({"POOLED_PYMYSQL_MAX_SIZE": "20"}, {}, None, [20, 20, 30.0, True]),
        ({}, {"max_size": 21}, None, [100, 21, 30.0, False]),
        ({"POOLED_PYMYSQL_TIMEOUT": "2"}, {"max_size": 21}, None, [100, 21, 2.0, False]),
        ({"POOLED_PYMYSQL_MAX_SIZE": "20"}, {"max_size": 21}, {"max_size": 22}, [20, 22, 30.0, False]),
    ],
)
def test_defaults_from_environment_and_configure(
    environment: dict[str, str], configured: dict[str, Any], pool: Any, expected: list[Any], server: Server
) -> None:
    done = run_program(PROGRAM, server.dsn(), json.dumps(configured), json.dumps(pool), **environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == expected


def test_bad_environment_is_told_by_name(server: Server) -> None:
    done = run_program(PROGRAM, server.dsn(), "{}", "null", POOLED_PYMYSQL_MAX_SIZE="many")
    assert done.returncode == 1
    assert "ValueError: environment variable POOLED_PYMYSQL_MAX_SIZE takes an int, at least 1" in done.stderr


def run_program(program: str, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, warnings being errors."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=30.0,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"} | environment,
    )


LEAVE_OPEN = """
import sys, threading
import pooled_pymysql
held = pooled_pymysql.connect(sys.argv[1])
pooled_pymysql.connect(sys.argv[1]).close()
deferred = pooled_pymysql.connect(sys.argv[1], defer_connect=True)
"""


def test_program_that_ends_without_closing_ends_its_connections(
    account: Server, connection_ids: Callable[..., set[int]]
) -> None:
    done = run_program(
        "import warnings\nwarnings.simplefilter('ignore', ResourceWarning)\n" + LEAVE_OPEN, account.dsn()
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    wait_until(lambda: not connection_ids(account.user), what="the end of all connections")


# Secrets


def ours_within(*roots: object) -> list[object]:
    """Return all objects of the package's own classes that can be reached from `roots`."""
    seen: dict[int, object] = {}
    found: list[object] = []
    stack: list[object] = [vars(each) if isinstance(each, types.ModuleType) else each for each in roots]
    while stack:
        each = stack.pop()
        if id(each) in seen or isinstance(each, (type, types.ModuleType, types.FunctionType)):
            continue
        seen[id(each)] = each
        if type(each).__module__.startswith("pooled_pymysql"):
            found.append(each)
        stack.extend(gc.get_referents(each))
    return found


@pytest.fixture
def secretive(server: Server, admin: Any) -> Iterator[Server]:
    """The server with an account whose password is not its name."""
    user, password = f"u_{uuid.uuid4().hex[:12]}", f"S3cr3t-{uuid.uuid4().hex[:12]}"
    servers.create_account(admin, user, password)
    own = dataclasses.replace(server, user=user, password=password)
    own.connect().close()  # MySQL remembers an account's first login, after which it needs no TLS
    yield own
    with admin.cursor() as cursor:
        cursor.execute("DROP USER %s@'%%'", (user,))


def test_no_text_of_any_object_shows_a_password(secretive: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = secretive.password
    leases = [
        pooled_pymysql.connect(secretive.dsn()),
        pooled_pymysql.connect(**secretive.kwargs(password=secret.encode())),
        pooled_pymysql.connect(**secretive.kwargs(), defer_connect=True),
        pooled_pymysql.connect(**secretive.kwargs(), pool=False),
    ]
    leases[0].close()
    reached = ours_within(registry, only_pool(), only_pool().stats(), *leases)
    names = {type(each).__name__ for each in reached}
    assert {"Pool", "Connection", "PoolKey", "PoolOptions", "PoolStats", "Session"} <= names
    for each in reached:
        assert secret not in f"{each!r} {each!s}"
    for lease in leases[1:]:
        lease.close()
    assert secret not in "".join(f"{lease!r}" for lease in leases)
    assert secret not in caplog.text


def errors_of(secretive: Server) -> Iterator[tuple[Callable[[], object], type[Exception]]]:
    """Yield calls that fail in the package's own ways."""
    kwargs = secretive.kwargs(pool={"max_size": 1, "timeout": 0.1, "max_waiting": 0})
    held = pooled_pymysql.connect(**kwargs)
    pool = only_pool()
    yield lambda: pooled_pymysql.connect(**kwargs), pooled_pymysql.PoolFull
    yield lambda: pool.acquire(timeout=0), pooled_pymysql.PoolTimeout
    pool.close()
    yield pool.acquire, pooled_pymysql.PoolClosed
    held.close()
    yield held.close, pymysql.err.Error
    yield lambda: copy.copy(held), TypeError
    yield lambda: pooled_pymysql.connect(secretive.dsn() + "?nonsense=1"), ValueError
    yield lambda: pooled_pymysql.connect(**secretive.kwargs(), nonsense=1), TypeError
    nobody = secretive.kwargs(user="nobody_of_this_name", **servers.transport(secretive.is_mariadb))
    yield lambda: pooled_pymysql.connect(**nobody), pymysql.err.OperationalError
    yield lambda: pooled_pymysql.connect(secretive.dsn(), database="no_such"), pymysql.err.OperationalError


def test_no_error_shows_a_password(secretive: Server) -> None:
    for call, kind in errors_of(secretive):
        with pytest.raises(kind) as caught:
            call()
        shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
        assert secretive.password not in shown
