"""An engine's pool is its own, and there is no second one."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from callers import PATIENCE, Caller
from proxy import Proxy
from servers import Server, transport, wait_until
from sqlalchemy import create_engine, event, exc, text
from sqlalchemy.pool import NullPool, QueuePool, StaticPool

import pooled_pymysql
from pooled_pymysql.engine_pool import _MOST_LOGINS, LeasePool, _Own

QUERY = 3
MakeEngine = Callable[..., Any]
Ids = Callable[[], set[int]]
SHOW_ID = text("SELECT CONNECTION_ID()")
DRIVERS = ["mysql+pooled_pymysql", "mariadb+pooled_pymysql"]


def ask_id(engine: Any) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(SHOW_ID))


def only_pool(engine: Any) -> pooled_pymysql.Pool:
    (pool,) = engine.pool.pools()
    return pool  # type: ignore[no-any-return]


def queries(proxy: Proxy) -> list[str]:
    return [payload.decode() for code, payload in proxy.commands if code == QUERY]


def in_child(work: Callable[[], None]) -> None:
    """Run `work` in a forked child; its end kills nothing and runs no hook."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(int(PATIENCE))
            work()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


# Leasing


def test_importing_the_package_does_not_import_sqlalchemy() -> None:
    program = "import sys, pooled_pymysql; sys.exit('sqlalchemy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("driver", DRIVERS)
def test_connections_are_leases_of_one_session(make_engine: MakeEngine, ids: Ids, server: Server, driver: str) -> None:
    if driver.startswith("mariadb") and not server.is_mariadb:
        pytest.skip("a server that is not MariaDB")
    engine = make_engine(driver=driver)
    assert engine.dialect.driver == "pooled_pymysql"
    assert isinstance(engine.pool, LeasePool)
    assert engine.pool.pools() == []  # nothing is opened before it is wanted
    first = ask_id(engine)
    assert [ask_id(engine) for _ in range(5)] == [first] * 5
    assert ids() == {first}
    stats = only_pool(engine).stats()
    assert (stats.opened, stats.idle, stats.in_use) == (1, 1, 0)
    with engine.connect() as connection:
        assert isinstance(connection.connection.dbapi_connection, pooled_pymysql.Connection)


def test_a_checkout_sends_nothing(make_engine: MakeEngine, proxy: Proxy) -> None:
    engine = make_engine("?charset=utf8mb4", port=proxy.port)
    ask_id(engine)
    proxy.clear()
    assert ask_id(engine)
    assert queries(proxy) == ["SELECT CONNECTION_ID()", "ROLLBACK"]  # the latter is SQLAlchemy's own
    proxy.clear()
    with engine.begin() as connection:
        connection.execute(text("SELECT 1"))
    assert queries(proxy) == ["SELECT 1", "COMMIT", "ROLLBACK"]
    assert {code for code, _ in proxy.commands} == {QUERY}


def test_rolling_back_can_be_left_to_the_pool(make_engine: MakeEngine, proxy: Proxy, table: str) -> None:
    engine = make_engine(port=proxy.port, pool_reset_on_return=None)
    ask_id(engine)
    proxy.clear()
    with engine.begin() as connection:
        connection.execute(text(f"SELECT size FROM {table}"))
    assert queries(proxy) == [f"SELECT size FROM {table}", "COMMIT"]
    raw = engine.raw_connection()
    raw.cursor().execute(f"UPDATE {table} SET size = 0")
    raw.close()
    with engine.connect() as connection:
        assert connection.scalar(text(f"SELECT MIN(size) FROM {table}")) == 10


def test_what_one_checkout_did_is_not_seen_by_the_next(make_engine: MakeEngine) -> None:
    engine = make_engine()
    with engine.connect() as connection:
        connection.execute(text("SET @left = 1, sql_mode = 'ANSI'"))
        mine = connection.scalar(SHOW_ID)
    with engine.connect() as connection:
        assert connection.scalar(SHOW_ID) == mine
        assert connection.scalar(text("SELECT @left")) is None
        assert "ANSI" not in connection.scalar(text("SELECT @@sql_mode"))


def test_many_threads_share_the_few_connections_of_the_pool(make_engine: MakeEngine, ids: Ids) -> None:
    engine = make_engine("?pool_max_size=5")
    seen: set[int] = set()
    most: list[int] = []
    five = threading.Barrier(5, timeout=PATIENCE)

    def work() -> None:
        with engine.connect() as connection:
            seen.add(connection.scalar(SHOW_ID))
            five.wait()  # so many at once can be had
        for _ in range(10):
            with engine.begin() as connection:
                seen.add(connection.scalar(SHOW_ID))
                connection.execute(text("DO SLEEP(0.001)"))

    callers = [Caller(work) for _ in range(40)]
    while any(caller.is_alive() for caller in callers):
        most.append(len(ids()))
    for caller in callers:
        caller.outcome()
    assert len(seen) == 5
    assert max(most) <= 5  # as the server counts them, all the time
    assert ids() == seen
    assert only_pool(engine).stats().opened == 5


def test_the_first_threads_agree_on_one_pool(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    both = threading.Barrier(2, timeout=PATIENCE)
    real = engine.pool.options_for

    def wait_for_the_other(given: Any) -> Any:
        both.wait()
        return real(given)

    monkeypatch.setattr(engine.pool, "options_for", wait_for_the_other)
    callers = [Caller(lambda: ask_id(engine)) for _ in range(2)]
    for caller in callers:
        caller.outcome()
    assert len(engine.pool.pools()) == 1


def test_a_dropped_connection_comes_back(make_engine: MakeEngine) -> None:
    engine = make_engine()
    connection = engine.connect()
    first = connection.scalar(SHOW_ID)
    del connection
    gc.collect()
    assert ask_id(engine) == first
    assert only_pool(engine).stats().in_use == 0


def test_a_detached_connection_counts_until_it_is_closed(make_engine: MakeEngine) -> None:
    engine = make_engine("?pool_max_size=2")
    connection = engine.connect()
    first = connection.scalar(SHOW_ID)
    connection.detach()
    assert ask_id(engine) != first
    assert only_pool(engine).stats().in_use == 1
    connection.close()
    assert only_pool(engine).stats().in_use == 0


def test_a_wrapped_connect_is_called(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = pooled_pymysql.connect

    def traced(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["host"])
        return real(*args, **kwargs)

    monkeypatch.setattr(pooled_pymysql, "connect", traced)
    ask_id(make_engine())
    assert len(calls) == 1


# Whose pool


def test_engines_with_equal_urls_share_nothing(make_engine: MakeEngine, account: Server, ids: Ids) -> None:
    one, other = make_engine(), make_engine()
    first, second = ask_id(one), ask_id(other)
    with pooled_pymysql.connect(**account.kwargs(ssl_disabled=True)) as shared:
        third = shared.thread_id()
    assert ids() == {first, second, third}
    assert len({first, second, third}) == 3
    one.dispose()
    wait_until(lambda: ids() == {second, third}, what="the end of the first engine's session")
    assert ask_id(other) == second


def test_an_engine_works_after_dispose(make_engine: MakeEngine, ids: Ids) -> None:
    engine = make_engine("?pool_max_size=2")
    first = ask_id(engine)
    with engine.connect() as held:
        assert held.scalar(SHOW_ID) == first
        old = engine.pool
        engine.dispose()
        assert engine.pool is not old
        assert held.scalar(SHOW_ID) == first  # who has a connection keeps it
        second = ask_id(engine)
        assert second != first
    wait_until(lambda: ids() == {second}, what="the end of the old session")
    assert only_pool(engine).options.max_size == 2
    assert ask_id(engine) == second
    with closing(old.connect()) as raw:  # a pool that was kept by hand works too, as SQLAlchemy's do
        assert raw.thread_id() == second
    engine.dispose()
    wait_until(lambda: not ids(), what="the end of all sessions")


def test_who_waits_while_the_engine_is_disposed_of_is_served(make_engine: MakeEngine) -> None:
    engine = make_engine(pool_size=1, max_overflow=0, pool_timeout=PATIENCE)
    with engine.connect() as held:
        first = held.scalar(SHOW_ID)
        pool = only_pool(engine)
        caller = Caller(lambda: ask_id(engine))
        wait_until(lambda: pool.stats().waiting == 1, what="a waiter")
        engine.dispose()
        assert caller.outcome() != first


def test_close_pools_does_not_end_an_engine(make_engine: MakeEngine) -> None:
    engine = make_engine()
    first = ask_id(engine)
    pooled_pymysql.close_pools()
    assert ask_id(engine) != first


def test_dispose_without_closing_leaves_the_old_connections_alone(make_engine: MakeEngine, ids: Ids) -> None:
    engine = make_engine()
    first = ask_id(engine)
    engine.dispose(close=False)
    second = ask_id(engine)
    assert ids() == {first, second} and first != second


def test_sessions_of_an_engine_that_was_collected_end(make_engine: MakeEngine, account: Server, ids: Ids) -> None:
    url = f"mysql+pooled_pymysql://{account.user}:{account.password}@{account.host}:{account.port}/{account.database}"
    forgotten = create_engine(url, connect_args={"ssl_disabled": True})
    ask_id(forgotten)
    del forgotten
    gc.collect()
    kept = ask_id(make_engine())  # making one is when it is looked at
    wait_until(lambda: ids() == {kept}, what="the end of the collected engine's session")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
@pytest.mark.parametrize("disposing", [False, True])
def test_a_forked_child_has_connections_of_its_own(make_engine: MakeEngine, ids: Ids, disposing: bool) -> None:
    engine = make_engine()
    first = ask_id(engine)
    with engine.connect() as held:
        assert held.scalar(SHOW_ID) == first

        def work() -> None:
            if disposing:  # as SQLAlchemy's documentation says
                engine.dispose(close=False)
            assert ask_id(engine) == ask_id(engine) != first
            engine.dispose()

        in_child(work)
        assert held.scalar(SHOW_ID) == first
    assert ask_id(engine) == first
    assert ids() == {first}


# Lost connections


def kill(admin: Any, number: int) -> None:
    with admin.cursor() as cursor:
        cursor.execute(f"KILL {number}")


def test_a_connection_that_died_idle_is_replaced_unseen(make_engine: MakeEngine, admin: Any, ids: Ids) -> None:
    engine = make_engine()
    first = ask_id(engine)
    kill(admin, first)
    wait_until(lambda: not ids(), what="the end of the killed session")
    assert ask_id(engine) != first


def test_a_lost_connection_is_a_disconnect_and_costs_no_other(make_engine: MakeEngine, admin: Any, ids: Ids) -> None:
    engine = make_engine()
    with engine.connect() as other, engine.connect() as connection:
        kept, first = other.scalar(SHOW_ID), connection.scalar(SHOW_ID)
        other.rollback()
        kill(admin, first)
        wait_until(lambda: first not in ids(), what="the end of the killed session")
        with pytest.raises(exc.OperationalError) as told:
            connection.execute(SHOW_ID)
        assert told.value.connection_invalidated
        assert connection.invalidated
        connection.rollback()
        second = connection.scalar(SHOW_ID)
        assert second not in {first, kept}
        connection.rollback()
        assert other.scalar(SHOW_ID) == kept
    assert ids() == {kept, second}
    stats = only_pool(engine).stats()
    assert (stats.opened, stats.idle, sum(stats.closed.values())) == (3, 2, 1)


def test_invalidating_closes_the_session(make_engine: MakeEngine, ids: Ids) -> None:
    engine = make_engine()
    with engine.connect() as connection:
        first = connection.scalar(SHOW_ID)
        connection.invalidate()
        connection.rollback()
        second = connection.scalar(SHOW_ID)
    assert first != second
    wait_until(lambda: ids() == {second}, what="the end of the invalidated session")
    assert only_pool(engine).stats().closed == {"retired": 1}


def test_an_error_that_a_handler_calls_a_disconnect_ends_all_sessions(make_engine: MakeEngine, ids: Ids) -> None:
    """A handler does so for a demoted server, whose other sessions are as useless."""
    engine = make_engine()

    @event.listens_for(engine, "handle_error")
    def call_it_a_disconnect(context: Any) -> None:
        context.is_disconnect = True

    with engine.connect() as one, engine.connect() as other:
        old = {one.scalar(SHOW_ID), other.scalar(SHOW_ID)}
        other.close()
        with pytest.raises(exc.ProgrammingError):
            one.execute(text("SELECT * FROM no_such_table"))
    assert ask_id(engine) not in old
    wait_until(lambda: not ids() & old, what="the end of the old sessions")


def test_sessions_that_came_after_such_an_error_stay(make_engine: MakeEngine) -> None:
    engine = make_engine()

    @event.listens_for(engine, "handle_error")
    def call_it_a_disconnect(context: Any) -> None:
        context.is_disconnect = True

    with engine.connect() as one, engine.connect() as other:
        for connection in (one, other):
            connection.scalar(SHOW_ID)
        with pytest.raises(exc.ProgrammingError):
            one.execute(text("SELECT * FROM no_such_table"))
        new = ask_id(engine)
        with pytest.raises(exc.ProgrammingError):
            other.execute(text("SELECT * FROM no_such_table"))
    assert ask_id(engine) == new


def test_the_other_threads_unread_result_is_no_disconnect(make_engine: MakeEngine) -> None:
    engine = make_engine()
    assert not engine.dialect.is_disconnect(pooled_pymysql.LeaseBusy(2014, "busy"), None, None)
    assert engine.dialect.is_disconnect(pooled_pymysql.OperationalError(2014, "out of sync"), None, None)


def test_do_ping(make_engine: MakeEngine, admin: Any, ids: Ids) -> None:
    engine = make_engine()
    raw = engine.raw_connection()
    assert engine.dialect.do_ping(raw.dbapi_connection)
    number = raw.thread_id()
    kill(admin, number)
    wait_until(lambda: number not in ids(), what="the end of the killed session")
    with pytest.raises(pooled_pymysql.Error) as told:
        engine.dialect.do_ping(raw.dbapi_connection)
    assert engine.dialect.is_disconnect(told.value, raw.dbapi_connection, None)
    raw.invalidate()


def test_waiting_in_vain_is_told_as_with_sqlalchemys_own_pool(make_engine: MakeEngine) -> None:
    engine = make_engine(pool_size=1, max_overflow=0, pool_timeout=0)
    with engine.connect(), pytest.raises(exc.TimeoutError, match=r"no connection within 0\.0 s \(in_use=1") as told:
        engine.connect()
    assert isinstance(told.value.__cause__, pooled_pymysql.PoolTimeout)
    assert ask_id(engine)


def test_a_full_queue_is_told_in_the_same_way(make_engine: MakeEngine) -> None:
    engine = make_engine("?pool_max_size=1&pool_max_waiting=0")
    with engine.connect(), pytest.raises(exc.TimeoutError, match="max_waiting=0") as told:
        engine.connect()
    assert isinstance(told.value.__cause__, pooled_pymysql.PoolFull)


def test_a_server_that_refuses_is_told_as_pymysql_tells_it(make_engine: MakeEngine, account: Server) -> None:
    engine = make_engine(connect_args=transport(account.is_mariadb) | {"password": "wrong"})
    with pytest.raises(exc.OperationalError) as told:
        engine.connect()
    assert told.value.orig.args[0] == 1045


# Events


def events_of(engine: Any) -> list[str]:
    """Return the pool's events of a plain checkout, an invalidated one, and one after dispose()."""
    seen: list[str] = []
    for name in ("first_connect", "connect", "checkout", "reset", "checkin", "close", "invalidate"):
        event.listen(engine, name, lambda *_, name=name: seen.append(name))
    ask_id(engine)
    seen.append("invalidating")
    with engine.connect() as connection:
        connection.invalidate()
    engine.dispose()
    seen.append("disposed of")
    ask_id(engine)
    return seen


def test_events_are_those_of_a_pool_that_keeps_nothing(make_engine: MakeEngine) -> None:
    ours = events_of(make_engine())
    assert ours[:7] == ["first_connect", "connect", "checkout", "reset", "checkin", "close", "invalidating"]
    assert ours == events_of(make_engine(driver="mysql+pymysql", poolclass=NullPool))


def test_a_connect_listener_has_its_settings_at_each_checkout(make_engine: MakeEngine) -> None:
    engine = make_engine()

    @event.listens_for(engine, "connect")
    def settle(connection: Any, _record: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET @tenant = 'me'")

    for _ in range(3):
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT @tenant")) == "me"
            connection.execute(text("SET @tenant = 'another'"))
    assert only_pool(engine).stats().opened == 1


def test_a_checkout_listener_may_refuse_a_connection(make_engine: MakeEngine) -> None:
    engine = make_engine()
    first = ask_id(engine)

    @event.listens_for(engine, "checkout")
    def refuse(connection: Any, _record: Any, _proxy: Any) -> None:
        if connection.thread_id() == first:
            raise exc.DisconnectionError

    assert ask_id(engine) != first


def test_tokens_instead_of_a_password(make_engine: MakeEngine, account: Server, ids: Ids) -> None:
    """A new password at each call must not mean a new pool, as the server takes each only for logging in."""
    engine = make_engine(connect_args=transport(account.is_mariadb))
    tokens: list[str] = []

    @event.listens_for(engine, "do_connect")
    def log_in(_dialect: Any, _record: Any, _cargs: Any, cparams: Any) -> None:
        tokens.append(f"token {len(tokens)}")
        cparams["password"] = tokens[-1]

    with account.connect(autocommit=True) as owner, owner.cursor() as cursor:
        for _ in range(4):
            cursor.execute("ALTER USER %s@'%%' IDENTIFIED BY %s", (account.user, f"token {len(tokens)}"))
            ask_id(engine)
        known = ask_id(engine)  # no login, so no right token is wanted
        with engine.connect() as one:
            assert one.scalar(SHOW_ID) == known
            cursor.execute("ALTER USER %s@'%%' IDENTIFIED BY %s", (account.user, f"token {len(tokens)}"))
            other = ask_id(engine)
    assert len(tokens) == 7
    assert len(engine.pool.pools()) == 1
    wait_until(lambda: ids() == {known, other}, what="no other session than two")


def test_who_waits_while_the_password_changes_takes_the_newest(make_engine: MakeEngine, account: Server) -> None:
    login = transport(account.is_mariadb)
    engine = make_engine(pool_size=1, max_overflow=0, pool_timeout=PATIENCE, connect_args=login)
    passwords = iter([account.password, account.password, "another", "another"])
    event.listen(engine, "do_connect", lambda _d, _r, _a, cparams: cparams.update(password=next(passwords)))
    with engine.connect() as held:
        first = held.scalar(SHOW_ID)
        pool = only_pool(engine)
        caller = Caller(lambda: ask_id(engine))
        wait_until(lambda: pool.stats().waiting == 1, what="a waiter")
        with account.connect(autocommit=True) as owner, owner.cursor() as cursor:
            cursor.execute("ALTER USER %s@'%%' IDENTIFIED BY 'another'", (account.user,))
        second = ask_id(engine)
        assert second != first
        assert caller.outcome() == second
    assert ask_id(engine) == second
    assert len(engine.pool.pools()) == 1


def test_logins_are_not_remembered_without_limit() -> None:
    own = _Own()
    options = own.options(None, lambda _: pooled_pymysql.PoolOptions())
    for number in range(3 * _MOST_LOGINS):
        own.settle_password(options, (), {"user": f"user {number}", "password": "secret"})
    assert len(own._logins) <= _MOST_LOGINS


def test_do_connect_may_choose_among_databases(make_engine: MakeEngine, database: str, account: Server) -> None:
    engine = make_engine()
    wanted = [account.database, database, account.database, database]
    chosen = iter(wanted)
    event.listen(engine, "do_connect", lambda _d, _r, _a, cparams: cparams.update(database=next(chosen)))
    for name in wanted:
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT DATABASE()")) == name
    pools = engine.pool.pools()
    assert sorted(pool.stats().opened for pool in pools) == [1, 1]
    engine.dispose()
    assert engine.pool.pools() == []


def test_a_listener_may_use_another_engine(make_engine: MakeEngine) -> None:
    engine, other = make_engine(), make_engine(poolclass=NullPool)
    seen = []
    event.listen(engine, "do_connect", lambda *_: seen.append(ask_id(other)))
    assert ask_id(engine) not in seen
    engine.dispose()
    assert ask_id(other) in seen  # which is not the first one's to close


# Other ways in


def test_the_module_under_sqlalchemys_own_dialect(make_engine: MakeEngine, ids: Ids, table: str) -> None:
    engine = make_engine(driver="mysql+pymysql", module=pooled_pymysql, pool_size=2)
    assert isinstance(engine.pool, QueuePool)
    first = ask_id(engine)
    assert ask_id(engine) == first
    with engine.begin() as connection:
        assert connection.execute(text(f"UPDATE {table} SET size = 10 WHERE id < 3")).rowcount == 2
    engine.dispose()  # gives back to the pool that belongs to the arguments
    (pool,) = pooled_pymysql.pools()
    assert (pool.stats().idle, pool.stats().in_use) == (1, 0)
    assert ids() == {first}


def test_creator_may_lease(make_engine: MakeEngine, account: Server, ids: Ids) -> None:
    arguments = account.kwargs(ssl_disabled=True)
    engine = create_engine("mysql+pooled_pymysql://", creator=lambda: pooled_pymysql.connect(**arguments))
    assert ask_id(engine) == ask_id(engine)
    assert len(ids()) == 1
    with engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT @@autocommit")) == 0
    engine.dispose()
    assert len(ids()) == 1  # it is the pool of connect(), not the engine's


def test_creator_that_opens_connections_is_warned_of(account: Server, ids: Ids) -> None:
    engine = create_engine("mysql+pooled_pymysql://", creator=account.connect)
    with pytest.warns(exc.SAWarning, match=r"let it return pooled_pymysql\.connect"):
        first = ask_id(engine)
    assert ask_id(engine) != first  # warned of once
    engine.dispose()
    ask_id(engine)
    wait_until(lambda: not ids(), what="the end of the connections")


@pytest.mark.parametrize("poolclass", [NullPool, StaticPool])
def test_poolclass_is_respected(make_engine: MakeEngine, ids: Ids, poolclass: Any) -> None:
    engine = make_engine("?pool_max_size=3", poolclass=poolclass)
    assert type(engine.pool) is poolclass
    assert ask_id(engine) == ask_id(engine)
    (pool,) = pooled_pymysql.pools()
    assert pool.options.max_size == 3
    with engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        assert connection.scalar(text("SELECT @@autocommit")) == 1
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT @@autocommit")) == 0
    engine.dispose()
    assert len(ids()) == 1


def test_queue_pool_on_top_is_warned_of(make_engine: MakeEngine, ids: Ids) -> None:
    with pytest.warns(exc.SAWarning, match="leave poolclass= out"):
        engine = make_engine(poolclass=QueuePool, pool_recycle=0)
    first = ask_id(engine)
    wait_until(lambda: ask_id(engine) != first, what="a recycled connection")
    engine.dispose()


def test_without_a_pool(make_engine: MakeEngine, ids: Ids) -> None:
    engine = make_engine(connect_args={"pool": False})
    assert ask_id(engine) != ask_id(engine)
    assert engine.pool.pools() == []
    wait_until(lambda: not ids(), what="the end of the connections")


def test_counts(make_engine: MakeEngine) -> None:
    engine = make_engine(pool_size=3, max_overflow=1, pool_timeout=2)
    pool = engine.pool
    assert (pool.size(), pool.timeout(), pool.status()) == (4, 2.0, "no session")
    with engine.connect(), engine.connect():
        pass
    with engine.connect():
        assert (pool.size(), pool.checkedin(), pool.checkedout(), pool.overflow()) == (4, 1, 1, -2)
        assert pool.size() - pool.checkedin() + pool.overflow() == pool.checkedout()  # as with QueuePool
        assert "in_use=1 idle=1" in pool.status()


IMPERSONATING = """
import sys
import pooled_pymysql
getattr(pooled_pymysql, sys.argv[1])()
from sqlalchemy import create_engine, text
engine = create_engine(sys.argv[2], pool_size=1)
assert engine.dialect.dbapi is pooled_pymysql
with engine.begin() as connection:
    connection.execute(text("CREATE TEMPORARY TABLE t (a INT)"))
    connection.execute(text("INSERT INTO t VALUES (1), (1)"))
    assert connection.execute(text("UPDATE t SET a = 1")).rowcount == 2
    result = connection.execution_options(stream_results=True).execute(text("SELECT a FROM t"))
    assert type(result.cursor).__name__ == "SSCursor" and result.all() == [(1,), (1,)]
with engine.connect() as connection:
    assert engine.dialect.do_ping(connection.connection.dbapi_connection)
(pool,) = pooled_pymysql.pools()
assert pool.stats().opened == 1
engine.dispose()
"""


@pytest.mark.parametrize(
    ("function", "driver"), [("install_as_pymysql", "mysql+pymysql"), ("install_as_MySQLdb", "mysql+mysqldb")]
)
def test_urls_of_programs_that_cannot_be_edited(function: str, driver: str, account: Server) -> None:
    where = f"{account.user}:{account.password}@{account.host}:{account.port}/{account.database}"
    command = [sys.executable, "-c", IMPERSONATING, function, f"{driver}://{where}"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize(("style", "ends"), [("rollback", "ROLLBACK"), ("commit", "COMMIT"), (None, None)])
def test_what_is_sent_at_checkin_can_be_chosen(
    make_engine: MakeEngine, proxy: Proxy, style: str | None, ends: str | None
) -> None:
    engine = make_engine(port=proxy.port, pool_reset_on_return=style, echo_pool=False)
    engine.connect().close()
    for _ in range(2):
        proxy.clear()
        engine.connect().close()
        assert queries(proxy) == ([] if ends is None else [ends])
        engine.dispose()  # and the new pool does the same
        engine.connect().close()
