"""The backend, asked through Django's own connection objects; what the server sees is asserted beside it."""

from __future__ import annotations

import datetime as dt
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from callers import Caller
from django.core.exceptions import ImproperlyConfigured
from django.db import IntegrityError, InterfaceError, OperationalError, close_old_connections, connections, transaction
from proxy import Proxy
from servers import Server, wait_until

import pooled_pymysql

from .aliases import ask, database, run, session_id

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server.host, server.port) as proxy:
        yield proxy
        pooled_pymysql.close_pools()


def own_pool(connection: Any) -> pooled_pymysql.Pool:
    pool = connection.pool
    assert pool is not None
    return pool


def in_thread(call: Callable[[], Any]) -> Any:
    """Make a call in a thread that ends as Django's request threads do."""

    def request() -> Any:
        try:
            return call()
        finally:
            connections["default"].close()

    return Caller(request).outcome()


# Requests


def test_a_request_costs_its_own_statements_alone(use: Any, account: Server, proxy: Proxy) -> None:
    connection = use(options={"pool": True}, PORT=proxy.port)
    ask(connection, "SELECT 1")
    close_old_connections()
    assert connection.connection is None
    proxy.clear()
    assert ask(connection, "SELECT 2") == 2
    close_old_connections()
    assert [text for _, text in proxy.commands] == [b"SELECT 2"]


def test_a_new_thread_asks_the_server_nothing_more(use: Any, proxy: Proxy) -> None:
    connection = use(options={"pool": True}, PORT=proxy.port)
    ask(connection, "SELECT 1")
    connection.close()
    proxy.clear()
    in_thread(lambda: ask(connections["default"], "SELECT 2"))
    assert [text for _, text in proxy.commands] == [b"SELECT 2"]


def test_what_django_asks_of_the_server_is_asked_again_of_another_pool(use: Any, proxy: Proxy) -> None:
    connection = use(options={"pool": True}, PORT=proxy.port)
    session_id(connection)
    connection.close()
    connection.close_pool()
    proxy.clear()
    in_thread(lambda: session_id(connections["default"]))
    assert sum("CONVERT_TZ" in text for text in proxy.statements()) == 1


def test_requests_share_sessions_and_state_does_not_pass(pooled: Any, ids: Callable[[], set[int]]) -> None:
    first = session_id(pooled)
    run(pooled, "SET @mine = 1, sql_mode = 'ANSI'")
    run(pooled, "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE")
    run(pooled, "CREATE TEMPORARY TABLE left_behind (x INT)")
    pooled.close()
    assert session_id(pooled) == first
    assert ask(pooled, "SELECT @mine") is None
    assert isolation(pooled) == "READ-COMMITTED"
    assert ask(pooled, "SELECT @@autocommit") == 1
    with pytest.raises(Exception, match="left_behind"):
        run(pooled, "SELECT * FROM left_behind")
    pooled.close()
    assert ids() == {first}


def isolation(connection: Any) -> str:
    with connection.cursor() as cursor:
        cursor.execute("SHOW SESSION VARIABLES WHERE variable_name IN ('tx_isolation', 'transaction_isolation')")
        return str(cursor.fetchall()[0][1])


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("serializable", "SERIALIZABLE"),
        ("repeatable read", "REPEATABLE-READ"),
        ("READ UNCOMMITTED", "READ-UNCOMMITTED"),
    ],
)
@pytest.mark.parametrize("pool", [True, False])
def test_isolation_level(use: Any, level: str, shown: str, pool: bool) -> None:
    connection = use(options={"pool": pool, "isolation_level": level})
    assert isolation(connection) == shown
    connection.close()
    assert isolation(connection) == shown
    assert connection.isolation_level == level.lower()


def test_without_an_isolation_level_the_servers_holds(use: Any, admin: Any) -> None:
    with admin.cursor() as cursor:
        cursor.execute("SHOW GLOBAL VARIABLES WHERE variable_name IN ('tx_isolation', 'transaction_isolation')")
        shown = cursor.fetchall()[0][1]
    assert isolation(use(options={"pool": True, "isolation_level": None})) == shown


def test_an_unknown_isolation_level_is_refused(use: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="xxx"):
        session_id(use(options={"pool": True, "isolation_level": "xxx"}))


@pytest.mark.parametrize(
    ("options", "own"),
    [
        pytest.param({"init_command": "SET sql_mode='STRICT_TRANS_TABLES'"}, [], id="sql_mode"),
        pytest.param({"init_command": "set @@session.sql_mode = 'STRICT_TRANS_TABLES' ; "}, [], id="sql_mode-2"),
        pytest.param({"init_command": "SET @a = 5, sql_mode='STRICT_TRANS_TABLES'"}, ["SET SESSION"], id="another"),
        pytest.param(
            {"init_command": "SET @a = 5; SET sql_mode='STRICT_TRANS_TABLES';", "client_flag": 65536 | 2}, [], id="many"
        ),
    ],
)
def test_an_init_command_of_the_users_and_the_isolation_level_both_hold(
    use: Any, proxy: Proxy, options: dict[str, Any], own: list[str]
) -> None:
    connection = use(options={"pool": True, **options}, PORT=proxy.port)
    session_id(connection)
    connection.close()
    if own:  # the level was set on the session, which is reset
        reset = (31, b"")
        wait_until(lambda: reset in proxy.commands and "SET autocommit" in proxy.statements()[-1], what="the reset")
    proxy.clear()
    assert ask(connection, "SELECT @@sql_mode") == "STRICT_TRANS_TABLES"
    sent = [text for text in proxy.statements() if not text.startswith("SELECT @@sql_mode")]
    assert [text[:11] for text in sent] == own
    assert isolation(connection) == "READ-COMMITTED"
    if "@a" in options["init_command"]:
        assert ask(connection, "SELECT @a") == 5


def test_autocommit_off_is_the_sessions_own(use: Any, proxy: Proxy) -> None:
    connection = use(options={"pool": True}, AUTOCOMMIT=False, PORT=proxy.port)
    session_id(connection)
    connection.close()
    proxy.clear()
    assert ask(connection, "SELECT @@autocommit") == 0
    assert [text for text in proxy.statements() if "utocommit" in text.lower()] == ["SELECT @@autocommit"]


def test_atomic_commits_and_rolls_back_and_leaves_autocommit_on(pooled: Any) -> None:
    run(pooled, "CREATE TABLE IF NOT EXISTS atoms (x INT)")
    run(pooled, "DELETE FROM atoms")
    try:
        with transaction.atomic():
            run(pooled, "INSERT INTO atoms VALUES (1)")
        with transaction.atomic():
            run(pooled, "INSERT INTO atoms VALUES (2)")
            with transaction.atomic():
                run(pooled, "INSERT INTO atoms VALUES (3)")
                transaction.set_rollback(True)
            assert ask(pooled, "SELECT SUM(x) FROM atoms") == 3
            transaction.set_rollback(True)
        pooled.close()
        assert ask(pooled, "SELECT SUM(x) FROM atoms") == 1
        assert ask(pooled, "SELECT @@autocommit") == 1
        transaction.set_autocommit(False)
        run(pooled, "INSERT INTO atoms VALUES (5)")
        close_old_connections()  # Django closes what does not have the alias's own autocommit
        assert pooled.connection is None
        assert ask(pooled, "SELECT SUM(x) FROM atoms") == 1
        assert ask(pooled, "SELECT @@autocommit") == 1
    finally:
        run(pooled, "DROP TABLE atoms")


def test_the_connection_is_a_lease_of_pymysqls_class_and_none_after_closing(pooled: Any) -> None:
    from pymysql.connections import Connection

    session_id(pooled)
    lease = pooled.connection
    assert isinstance(lease, Connection)
    pooled.close()
    assert pooled.connection is None
    assert not lease.open
    pooled.close()


def test_times_are_times(pooled: Any) -> None:
    assert ask(pooled, "SELECT CAST('10:20:30' AS TIME)") == dt.time(10, 20, 30)


def test_errors_are_djangos(pooled: Any) -> None:
    with pytest.raises(OperationalError) as caught:
        run(pooled, "SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = 1205, MESSAGE_TEXT = 'waited'")
    assert isinstance(caught.value.__cause__, pooled_pymysql.OperationalError)
    for code in (1048, 1690, 3819, 4025):
        with pytest.raises(IntegrityError):
            run(pooled, f"SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = {code}, MESSAGE_TEXT = 'no'")
        with pytest.raises(IntegrityError), pooled.cursor() as cursor:
            cursor.executemany("SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = %s, MESSAGE_TEXT = 'no'", [(code,)])


# The pool


@pytest.mark.parametrize("pool", [{}, {"pool": False}, {"pool": None}])
def test_without_a_pool_closing_ends_the_connection(use: Any, ids: Callable[[], set[int]], pool: Any) -> None:
    connection = use(options=pool)
    own = session_id(connection)
    assert type(connection.connection) is pooled_pymysql.Connection
    assert ids() == {own}
    assert connection.pool is None
    connection.close_pool()
    assert session_id(connection) == own
    connection.close()
    wait_until(lambda: not ids(), what="the end of the connection")
    assert pooled_pymysql.pools() == []


def test_without_a_pool_connections_may_persist(use: Any) -> None:
    connection = use(CONN_MAX_AGE=60)
    own = session_id(connection)
    close_old_connections()
    assert session_id(connection) == own


def test_options_are_the_pools(use: Any) -> None:
    connection = use(options={"pool": {"max_size": 1, "timeout": 0.05}})
    session_id(connection)
    options = own_pool(connection).options
    assert (options.max_size, options.timeout, options.name) == (1, 0.05, "django:default")
    text = r"pool 'django:default': no connection within 0\.\d s \(in_use=1 .*max_size=1\)"
    with pytest.raises(OperationalError, match=text) as caught:
        in_thread(lambda: session_id(connections["default"]))
    assert isinstance(caught.value.__cause__, pooled_pymysql.PoolTimeout)


def test_a_name_is_taken_and_none_is_no_name(use: Any, account: Server) -> None:
    foreign = pooled_pymysql.connect(**account.kwargs(ssl_disabled=True))
    for given, name in (("mine", "mine"), (None, "django:default")):
        connection = use(options={"pool": {"name": given}})
        session_id(connection)
        pool = own_pool(connection)
        assert pool.name == name
        connection.close_pool()
        assert pool.closed
        connection.close()
        del connections["default"]
    foreign.close()
    assert [pool.stats().idle for pool in pooled_pymysql.pools()] == [1]  # nobody closed what is not the alias's


def test_defaults_of_the_process_hold(use: Any) -> None:
    pooled_pymysql.configure(max_size=7)
    try:
        connection = use(options={"pool": {"min_size": 1}})
        session_id(connection)
        assert (own_pool(connection).options.min_size, own_pool(connection).options.max_size) == (1, 7)
    finally:
        pooled_pymysql.configure(max_size=100)


@pytest.mark.parametrize("pool", ["yes", 5, [("max_size", 1)]])
def test_a_pool_that_is_neither_true_nor_a_dict_is_refused(use: Any, pool: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"DATABASES\['default'\].*True, False or a dict"):
        session_id(use(options={"pool": pool}))


def test_an_unknown_option_is_named(use: Any) -> None:
    with pytest.raises(TypeError, match=r"max_sice.*did you mean 'max_size'"):
        session_id(use(options={"pool": {"max_sice": 1}}))


@pytest.mark.parametrize("age", [None, 60])
def test_connections_cannot_persist_beside_a_pool(use: Any, age: Any, ids: Callable[[], set[int]]) -> None:
    connection = use(options={"pool": True}, CONN_MAX_AGE=age)
    with pytest.raises(ImproperlyConfigured, match=rf"CONN_MAX_AGE must be 0, not {age}.*max_lifetime"):
        session_id(connection)
    with pytest.raises(ImproperlyConfigured):
        _ = connection.pool
    connection.close_pool()
    assert not ids()


@pytest.mark.parametrize(
    ("checks", "given", "seconds"), [(True, {}, 0), (True, {"validate_after": 5}, 5), (False, {}, 30)]
)
def test_health_checks_are_validations(use: Any, checks: bool, given: Any, seconds: float) -> None:
    connection = use(options={"pool": {"max_size": 2, **given}}, CONN_HEALTH_CHECKS=checks)
    session_id(connection)
    assert own_pool(connection).options.validate_after == seconds


def test_each_alias_has_a_pool_of_its_own(use: Any, account: Server, ids: Callable[[], set[int]]) -> None:
    others = {"other": database(account, {"pool": True})}
    connection = use(options={"pool": True}, others=others)
    first, second = session_id(connection), session_id(connections["other"])
    assert own_pool(connection) is not own_pool(connections["other"])
    connection.close()
    connections["other"].close()
    connection.close_pool()
    wait_until(lambda: ids() == {second}, what="the end of the first alias's session alone")
    assert session_id(connections["other"]) == second != first


def test_a_closed_pool_is_followed_by_another(pooled: Any, ids: Callable[[], set[int]]) -> None:
    first = session_id(pooled)
    pooled.close_pool()
    assert session_id(pooled) == first  # in use, and so it stays until it is given back
    pooled.close()
    wait_until(lambda: not ids(), what="the end of the session")
    assert session_id(pooled) != first


def test_who_waits_for_a_pool_that_is_closed_gets_a_connection_of_the_next(use: Any) -> None:
    connection = use(options={"pool": {"max_size": 1}})
    session_id(connection)
    pool = own_pool(connection)
    caller = Caller(lambda: (session_id(connections["default"]), connections["default"].close()))
    wait_until(lambda: pool.stats().waiting, what="a caller who waits")
    connection.close_pool()
    assert caller.outcome()[0] != session_id(connection)


def test_tasks_that_close_the_pool_when_they_end_do_not_disturb_others(use: Any, ids: Callable[[], set[int]]) -> None:
    """Celery's way, in threads."""
    session_id(use(options={"pool": {"max_size": 2}}))
    connections["default"].close()

    def work() -> list[int]:
        answers = []
        for number in range(40):
            answers.append(ask(connections["default"], "SELECT %s", (number,)))
            connections["default"].close()
            connections["default"].close_pool()
        return answers

    for caller in [Caller(work) for _ in range(6)]:
        assert caller.outcome() == list(range(40))
    wait_until(lambda: not ids(), what="the end of the sessions")


def test_another_database_is_another_pool(use: Any, admin: Any) -> None:
    connection = use(options={"pool": True})
    assert ask(connection, "SELECT DATABASE()") == "tests"
    connection.close()
    connection.settings_dict["NAME"] = "mysql"
    assert ask(connection, "SELECT DATABASE()") == "mysql"
    connection.close()
    assert len(pooled_pymysql.pools()) == 2
    connection.close_pool()
    assert pooled_pymysql.pools() == []


# Lost connections


def test_a_session_that_was_killed_while_idle_is_replaced_unseen(pooled: Any, admin: Any, ids: Any) -> None:
    first = session_id(pooled)
    pooled.close()
    admin.kill(first)
    wait_until(lambda: not ids(), what="the end of the session")
    assert session_id(pooled) != first


def test_a_session_that_was_killed_in_use_fails_once(pooled: Any, admin: Any, ids: Any) -> None:
    first = session_id(pooled)
    assert pooled.is_usable()
    admin.kill(first)
    wait_until(lambda: not ids(), what="the end of the session")
    with pytest.raises((OperationalError, InterfaceError)):
        session_id(pooled)
    assert not pooled.is_usable()
    assert not pooled.is_usable()  # asking does not connect again
    close_old_connections()
    assert pooled.connection is None
    assert session_id(pooled) != first


# Threads


def test_many_threads_share_few_sessions(use: Any, ids: Callable[[], set[int]]) -> None:
    connection = use(options={"pool": {"max_size": 3}})
    session_id(connection)
    connection.close()
    begin = threading.Barrier(20)
    most = []

    def request() -> set[int]:
        begin.wait(20)
        own = set()
        for _ in range(5):
            run(connections["default"], "DO SLEEP(0.002)")
            own.add(session_id(connections["default"]))
            most.append(len(ids_of_all()))
            close_old_connections()
        return own

    def ids_of_all() -> set[int]:
        with lock:
            return ids()

    lock = threading.Lock()  # the asking connection is one for all
    callers = [Caller(request) for _ in range(20)]
    used = set().union(*(caller.outcome() for caller in callers))
    assert len(used) <= 3 and max(most) <= 3
    assert own_pool(connection).stats().opened <= 3


def test_a_thread_that_ends_without_closing_gives_its_session_back(pooled: Any) -> None:
    session_id(pooled)
    pooled.close()

    def forget() -> None:
        Caller(lambda: session_id(connections["default"])).outcome()
        gc.collect()  # Django's objects refer to one another
        wait_until(lambda: own_pool(pooled).stats().in_use == 0, what="the dropped session")

    with pytest.warns(ResourceWarning, match=r"django:default.*dropped without close"):
        forget()
    session_id(pooled)
    assert own_pool(pooled).stats().opened == 1


def test_async_code_uses_the_pool_in_its_threads(use: Any, ids: Callable[[], set[int]]) -> None:
    import asyncio

    from asgiref.sync import sync_to_async

    connection = use(options={"pool": {"max_size": 2}})

    def query(number: int) -> tuple[int, int]:
        try:
            return ask(connections["default"], "SELECT %s", (number,)), session_id(connections["default"])
        finally:
            connections["default"].close()

    async def main() -> list[tuple[int, int]]:
        calls = [sync_to_async(query, thread_sensitive=False)(number) for number in range(30)]
        return await asyncio.gather(*calls)

    answers = asyncio.run(main())
    assert [answer for answer, _ in answers] == list(range(30))
    assert len(ids()) == len({own for _, own in answers} | ids()) <= 2
    assert own_pool(connection).stats().in_use == 0


def test_the_connection_is_refused_in_a_coroutine(pooled: Any) -> None:
    import asyncio

    from django.core.exceptions import SynchronousOnlyOperation

    async def main() -> None:
        session_id(pooled)

    with pytest.raises(SynchronousOnlyOperation):
        asyncio.run(main())
