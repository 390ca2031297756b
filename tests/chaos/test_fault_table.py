"""docs/faults.md, row by row: what the caller sees of each fault, and how long it takes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest
from callers import PATIENCE, Caller
from pymysql.connections import Connection
from pymysql.cursors import SSCursor
from pymysql.err import InternalError, OperationalError
from servers import HOST, PrivateServer, Server, transport, wait_until

import pooled_pymysql
from pooled_pymysql import LeaseBusy, PoolClosed, PoolFull, PoolTimeout

from .faults import Cut, FaultyProxy, cut_within, replace, silent_address, when
from .schedule import NOT_MYSQL

pytestmark = pytest.mark.thorough

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"

AT_ONCE = 1.0  # seconds: what a busy machine may need for something that waits for nothing
RECOVERY = 1.0  # seconds until the pool notices that the server is back
SHORT = 0.3  # seconds, of whichever time limit a row is about
LONG = 30.0  # seconds, of all others
VALIDATION = 5.0  # seconds that a validation may take at most


@contextlib.contextmanager
def sees(kind: type[Exception], *codes: Any, after: float = 0.0) -> Iterator[Any]:
    """Assert that the block raises this very class with one of these codes, after so many seconds."""
    began = time.monotonic()
    with pytest.raises(pymysql.err.MySQLError) as caught:
        yield caught
    took = time.monotonic() - began
    assert type(caught.value) is kind, repr(caught.value)
    if kind is InternalError:
        assert any(code in str(caught.value) for code in codes), repr(caught.value)
    else:
        assert caught.value.args[0] in codes, repr(caught.value)
    assert after - 0.01 <= took < after + AT_ONCE


@contextlib.contextmanager
def lasts_less_than(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


def ask(connection: Any, sql: str = "SELECT 1") -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


def only_pool() -> pooled_pymysql.Pool:
    (pool,) = pooled_pymysql.pools()
    return pool


@dataclasses.dataclass
class Scene:
    """Arguments for a pool of one's own behind a proxy, and somebody who may do everything, past both."""

    kwargs: dict[str, Any]
    proxy: FaultyProxy
    admin: Connection[Any]

    def connect(self, *, pool: dict[str, Any] | None = None, **overrides: Any) -> Any:
        options = {"timeout": LONG, **(pool or {})}
        return pooled_pymysql.connect(**(self.kwargs | overrides), pool=options)

    def kill(self, connection: Any, what: str = "CONNECTION") -> None:
        """Kill a session, or what it runs; return when the server has done so."""
        number = connection if isinstance(connection, int) else connection.thread_id()
        ask(self.admin, f"KILL {what} {number}")
        if what == "CONNECTION":
            gone = f"SELECT 1 FROM information_schema.processlist WHERE id = {number}"
            wait_until(lambda: not ask(self.admin, gone), what="the end of the session")

    def wait_until_running(self, connection: Any, text: str = "SLEEP") -> None:
        running = f"SELECT info FROM information_schema.processlist WHERE id = {connection.thread_id()}"
        wait_until(lambda: text in str(ask(self.admin, running)), what="the statement")

    def assert_next_is_good(self, **overrides: Any) -> None:
        """Assert that another lease works at once."""
        with lasts_less_than(AT_ONCE), self.connect(**overrides) as connection:
            assert ask(connection, "SELECT 42") == ((42,),)
        wait_until(lambda: only_pool().stats().in_use == 0, what="a pool at rest")

    def can_connect(self, **overrides: Any) -> bool:
        try:
            self.connect(**overrides).close()
        except OperationalError:
            return False
        return True

    def assert_recovers(self, **overrides: Any) -> None:
        """Assert that leases are to be had again within a second."""
        with lasts_less_than(RECOVERY + AT_ONCE):
            wait_until(lambda: self.can_connect(**overrides), what="a lease")
        self.assert_next_is_good(**overrides)


@pytest.fixture
def scene(account: Server, admin: Connection[Any]) -> Iterator[Scene]:
    with FaultyProxy(account.host, account.port) as proxy:
        # Without TLS: the proxy reads what is sent and puts in words of its own.
        yield Scene(
            account.kwargs(port=proxy.port, read_timeout=LONG, connect_timeout=LONG, ssl_disabled=True), proxy, admin
        )
        proxy.heal()
        pooled_pymysql.close_pools()


@pytest.fixture
def shaky(private: PrivateServer) -> Iterator[Scene]:
    """The same before a server that a test may stop and restart; `admin` is lost by that."""
    kwargs = private.server.kwargs(read_timeout=LONG, connect_timeout=LONG, **transport(private.server.is_mariadb))
    with FaultyProxy(private.server.host, private.port) as proxy, private.server.connect(autocommit=True) as admin:
        yield Scene(kwargs | {"port": proxy.port}, proxy, admin)
        pooled_pymysql.close_pools()
        if not private.running:
            private.start()


def test_each_row_is_a_test() -> None:
    rows = re.findall(r"\| `(\w+)` \|$", PAGE.read_text(), re.MULTILINE)
    own = {name.removeprefix("test_") for name in globals() if name.startswith("test_")} - {"each_row_is_a_test"}
    assert set(rows) == own


# Asking for a connection


def test_nobody_listens(scene: Scene) -> None:
    scene.proxy.refuse()
    with sees(OperationalError, 2003):
        scene.connect()


def test_name_unknown(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with sees(OperationalError, 2003):
        scene.connect(host="nowhere.invalid")


@pytest.fixture
def stuck_resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    go_on = threading.Event()
    resolve = socket.getaddrinfo

    def wait(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host != "slow.invalid":
            return resolve(host, *args, **kwargs)
        go_on.wait(PATIENCE)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", wait)
    yield
    go_on.set()


@pytest.mark.usefixtures("stuck_resolver")
def test_resolver_stuck(scene: Scene) -> None:
    with sees(OperationalError, 2003, after=SHORT):
        scene.connect(host="slow.invalid", connect_timeout=SHORT)


def test_packets_vanish(scene: Scene) -> None:
    with silent_address() as port, sees(OperationalError, 2003, after=SHORT):
        scene.connect(port=port, connect_timeout=SHORT)


def test_server_stopped(shaky: Scene, private: PrivateServer) -> None:
    with private.paused(), sees(OperationalError, 2013, after=SHORT):
        shaky.connect(connect_timeout=SHORT)
    shaky.assert_recovers(connect_timeout=SHORT)


def test_opening_drips(scene: Scene) -> None:
    scene.proxy.drip(0.05)
    with sees(OperationalError, 2013, after=SHORT):
        scene.connect(connect_timeout=SHORT)
    scene.proxy.heal()
    scene.assert_recovers(connect_timeout=SHORT)


@pytest.mark.parametrize("how", ["silent server", "silent address", "slow server"])
def test_opening_outlasts_timeout(scene: Scene, how: str) -> None:
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(silent_address()) if how == "silent address" else scene.proxy.port
        if how == "silent server":
            scene.proxy.answer(b"")
        else:
            scene.proxy.drip(0.05)
        with sees(PoolTimeout, 1040, after=SHORT):
            scene.connect(port=port, pool={"timeout": SHORT})


def test_greeting_cut(scene: Scene) -> None:
    with FaultyProxy(HOST, 1) as without_server, sees(OperationalError, 2013):
        scene.connect(port=without_server.port)


def test_not_a_server(scene: Scene) -> None:
    scene.proxy.answer(NOT_MYSQL)
    with sees(InternalError, "Packet sequence number wrong"):
        scene.connect()


def test_too_many_connections(shaky: Scene, private: PrivateServer) -> None:
    ask(shaky.admin, "CREATE USER IF NOT EXISTS plain@'%' IDENTIFIED BY 'plain'")
    plain = {"user": "plain", "password": "plain", "database": None}
    ask(shaky.admin, "SET GLOBAL max_connections = 10")
    try:
        with contextlib.ExitStack() as others:
            with contextlib.suppress(OperationalError):
                for _ in range(10):
                    others.enter_context(private.server.connect(**plain))
            with sees(OperationalError, 1040):
                shaky.connect(**plain)
    finally:
        ask(shaky.admin, "SET GLOBAL max_connections = 1000")
    shaky.assert_recovers(**plain)


def test_account_limit(scene: Scene, account: Server) -> None:
    ask(scene.admin, f"ALTER USER {account.user}@'%' WITH MAX_USER_CONNECTIONS 1")
    with account.connect(), sees(OperationalError, 1226):
        scene.connect()
    scene.assert_recovers()


@pytest.mark.parametrize("given_back", [False, True])
def test_limit_reached_in_use(scene: Scene, account: Server, given_back: bool) -> None:
    ask(scene.admin, f"ALTER USER {account.user}@'%' WITH MAX_USER_CONNECTIONS 1")
    pool = {"timeout": PATIENCE if given_back else SHORT}
    with scene.connect(pool=pool) as connection:
        number = connection.thread_id()
        if not given_back:
            with sees(PoolTimeout, 1040, after=SHORT) as caught:
                scene.connect(pool=pool)
            cause = caught.value.__cause__
            assert isinstance(cause, OperationalError) and cause.args[0] == 1226
            return
        caller = Caller(lambda: scene.connect(pool=pool))
        wait_until(lambda: only_pool().stats().waiting == 1, what="a waiting caller")
    lease = caller.outcome()
    assert lease.thread_id() == number
    lease.close()


def test_wrong_password(scene: Scene) -> None:
    with sees(OperationalError, 1045):
        scene.connect(password="wrong")


def test_unknown_database(scene: Scene) -> None:
    with sees(OperationalError, 1049):
        scene.connect(database="nowhere")


def test_no_right_to_the_database(scene: Scene, account: Server) -> None:
    ask(scene.admin, f"REVOKE ALL PRIVILEGES, GRANT OPTION FROM {account.user}@'%'")
    with sees(OperationalError, 1044):
        scene.connect()


def test_all_in_use(scene: Scene) -> None:
    pool = {"max_size": 1, "timeout": SHORT}
    with scene.connect(pool=pool), sees(PoolTimeout, 1040, after=SHORT):
        scene.connect(pool=pool)
    scene.assert_next_is_good(pool=pool)


def waiting(scene: Scene, count: int, pool: dict[str, Any]) -> list[Caller]:
    """Have so many callers wait."""
    callers = [Caller(lambda: scene.connect(pool=pool).close()) for _ in range(count)]
    wait_until(lambda: only_pool().stats().waiting == count, what=f"{count} waiting callers")
    return callers


def test_queue_full(scene: Scene) -> None:
    pool = {"max_size": 1, "max_waiting": 1}
    with scene.connect(pool=pool):
        callers = waiting(scene, 1, pool)
        with sees(PoolFull, 1040):
            scene.connect(pool=pool)
    callers[0].outcome()


def test_down_while_waiting(scene: Scene) -> None:
    pool = {"max_size": 1}
    held = scene.connect(pool=pool)
    ask(held)
    callers = waiting(scene, 5, pool)
    scene.proxy.refuse()
    scene.proxy.cut()
    with contextlib.suppress(OperationalError):
        ask(held)
    with lasts_less_than(AT_ONCE):
        held.close()
        for caller in callers:
            with sees(OperationalError, 2003):
                caller.outcome()


def test_server_is_back(scene: Scene) -> None:
    scene.proxy.refuse()
    for _ in range(5):
        with sees(OperationalError, 2003):
            scene.connect()
    scene.proxy.heal()
    scene.assert_recovers()


def test_pool_closed(scene: Scene) -> None:
    pool = {"max_size": 1}
    with scene.connect(pool=pool):
        callers = waiting(scene, 2, pool)
        with lasts_less_than(AT_ONCE):
            pooled_pymysql.close_pools()
            for caller in callers:
                with sees(PoolClosed, 2006):
                    caller.outcome()


# Idle sessions


def leave_idle(scene: Scene, **overrides: Any) -> int:
    """Leave one used session idle in the pool, with nothing owed; return its id."""
    with scene.connect(**overrides) as connection:
        ask(connection)
        return int(connection.thread_id())


def assert_replaced_unseen(scene: Scene, number: int, **overrides: Any) -> None:
    with lasts_less_than(AT_ONCE), scene.connect(**overrides) as connection:
        assert ask(connection, "SELECT 42") == ((42,),)
        assert connection.thread_id() != number
    stats = only_pool().stats()
    assert (stats.in_use, stats.idle, sum(stats.closed.values())) == (0, 1, 1)


def test_killed_while_idle(scene: Scene) -> None:
    number = leave_idle(scene)
    scene.kill(number)
    wait_until(lambda: not scene.proxy.links, what="the end of the link")
    assert_replaced_unseen(scene, number)


def test_timed_out_while_idle(scene: Scene) -> None:
    number = leave_idle(scene, init_command="SET wait_timeout = 1")
    wait_until(lambda: not scene.proxy.links, what="the end of the session")
    assert_replaced_unseen(scene, number, init_command="SET wait_timeout = 1")


def test_restarted_while_idle(shaky: Scene, private: PrivateServer) -> None:
    leave_idle(shaky)
    private.restart()
    with lasts_less_than(AT_ONCE), shaky.connect() as connection:  # the ids begin anew
        assert ask(connection, "SELECT 42") == ((42,),)
    assert only_pool().stats().opened == 2


def test_reset_while_idle(scene: Scene) -> None:
    number = leave_idle(scene)
    scene.proxy.cut(how=Cut.RST)
    assert_replaced_unseen(scene, number)


def test_stray_bytes_while_idle(scene: Scene) -> None:
    number = leave_idle(scene)
    (link,) = scene.proxy.links
    link.client.send(b"\x07\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00")  # an OK packet
    wait_until(lambda: readable(only_pool()), what="the bytes")
    assert_replaced_unseen(scene, number)


def readable(pool: Any) -> bool:
    return all(session.poll(0) for session in pool._ledger.idle)


def test_link_died_long_ago(scene: Scene) -> None:
    pool = {"validate_after": 0}
    number = leave_idle(scene, pool=pool)
    scene.proxy.half_open()
    with lasts_less_than(VALIDATION), scene.connect(pool=pool) as connection:
        assert ask(connection, "SELECT 42") == ((42,),)
        assert connection.thread_id() != number
    # The one that does not answer is given up in the background.
    wait_until(lambda: sum(only_pool().stats().closed.values()) == 1, PATIENCE, "the end of the dead session")
    assert only_pool().stats().idle == 1


def test_link_died_just_now(scene: Scene) -> None:
    numbers = set()
    with scene.connect(read_timeout=SHORT) as one, scene.connect(read_timeout=SHORT) as other:
        for connection in (one, other):
            ask(connection)
            numbers.add(connection.thread_id())
    scene.proxy.half_open()
    with scene.connect(read_timeout=SHORT) as connection, sees(OperationalError, 2013, after=SHORT):
        ask(connection)
    # The loss of one casts doubt on all others: none of them is handed out unseen.
    with lasts_less_than(VALIDATION), scene.connect(read_timeout=SHORT) as connection:
        assert ask(connection, "SELECT 42") == ((42,),)
        assert connection.thread_id() not in numbers


@pytest.mark.parametrize("how", ["killed", "cut", "reset"])
def test_lost_before_the_first_statement(scene: Scene, how: str) -> None:
    leave_idle(scene)
    with scene.connect() as connection:
        number = connection.thread_id()
        if how == "killed":
            link = scene.proxy.link_of(connection)
            scene.kill(connection)
            wait_until(lambda: link not in scene.proxy.links, what="the end of the link")
        else:
            scene.proxy.cut(how=Cut.FIN if how == "cut" else Cut.RST)
        with lasts_less_than(AT_ONCE):
            assert ask(connection, "SELECT CONNECTION_ID(), 42")[0][1] == 42
        assert connection.thread_id() != number
    scene.assert_next_is_good()


def test_lost_and_not_replaceable(scene: Scene) -> None:
    leave_idle(scene)
    connection = scene.connect()
    scene.proxy.refuse()
    scene.proxy.cut()
    with sees(OperationalError, 2003):
        ask(connection)
    connection.close()  # as silent as after any other lost connection
    scene.proxy.heal()
    scene.assert_recovers()


# During a lease


def test_killed_between_statements(scene: Scene) -> None:
    with scene.connect() as connection:
        ask(connection)
        scene.kill(connection)
        with sees(OperationalError, 2006, 2013):
            ask(connection)
    scene.assert_next_is_good()


@contextlib.contextmanager
def while_it_runs(scene: Scene, connection: Any, fault: Callable[[], object]) -> Iterator[None]:
    """Have the fault happen as soon as the server runs the block's statement."""

    def wait_and_do() -> None:
        scene.wait_until_running(connection)
        fault()

    caller = Caller(wait_and_do)
    yield
    caller.outcome()


def test_killed_in_a_statement(scene: Scene) -> None:
    with (
        scene.connect() as connection,
        while_it_runs(scene, connection, lambda: scene.kill(connection)),
        sees(OperationalError, 2013),
    ):
        ask(connection, f"SELECT SLEEP({LONG})")
    scene.assert_next_is_good()


def test_timed_out_between_statements(scene: Scene, account: Server) -> None:
    if not account.is_mariadb:
        pytest.skip("MySQL tells: see told_of_the_timeout")
    brief = {"init_command": "SET wait_timeout = 1"}
    with scene.connect(**brief) as connection:
        ask(connection)
        wait_until(lambda: not scene.proxy.links, what="the end of the session")
        with sees(OperationalError, 2006, 2013):
            ask(connection)
    scene.assert_next_is_good(**brief)


def test_told_of_the_timeout(scene: Scene) -> None:
    text = b"#HY000The client was disconnected by the server because of inactivity."
    packet = b"\xff" + (4031).to_bytes(2, "little") + text
    with scene.connect() as connection:
        ask(connection)
        link = scene.proxy.link_of(connection)
        link.client.send(len(packet).to_bytes(3, "little") + b"\0" + packet)
        scene.proxy.cut([link])
        with sees(OperationalError, 4031):
            ask(connection)
    scene.assert_next_is_good()


def test_shut_down_in_a_statement(shaky: Scene, private: PrivateServer) -> None:
    with (
        shaky.connect() as connection,
        while_it_runs(shaky, connection, private.stop),
        sees(OperationalError, 1053, 1317, 2013),
    ):
        ask(connection, f"SELECT SLEEP({LONG})")
    private.start()
    shaky.assert_next_is_good()


def test_crashed_in_a_statement(shaky: Scene, private: PrivateServer) -> None:
    with (
        shaky.connect() as connection,
        while_it_runs(shaky, connection, private.kill),
        sees(OperationalError, 2013),
    ):
        ask(connection, f"SELECT SLEEP({LONG})")
    private.start()
    shaky.assert_next_is_good()


def test_stopped_in_a_statement(shaky: Scene, private: PrivateServer) -> None:
    with shaky.connect(read_timeout=SHORT) as connection:
        ask(connection)
        with private.paused(), sees(OperationalError, 2013, after=SHORT):
            ask(connection)
    shaky.assert_next_is_good(read_timeout=SHORT)


@pytest.mark.parametrize("kept", [0, 1, 4, 5, 9])
def test_cut_within_a_reply(scene: Scene, kept: int) -> None:
    with scene.connect() as connection:
        ask(connection)
        scene.proxy.twist([scene.proxy.link_of(connection)], down=cut_within(kept))
        with sees(OperationalError, 2013):
            ask(connection)
    scene.assert_next_is_good()


def test_reset_in_a_statement(scene: Scene) -> None:
    with scene.connect() as connection:
        reset = functools.partial(scene.proxy.cut, how=Cut.RST)
        with while_it_runs(scene, connection, reset), sees(OperationalError, 2013):
            ask(connection, f"SELECT SLEEP({LONG})")
    scene.assert_next_is_good()


@pytest.mark.parametrize("arrives", [True, False])
def test_commit_unanswered(scene: Scene, database: str, arrives: bool) -> None:
    ask(scene.admin, f"CREATE TABLE {database}.t (id INT PRIMARY KEY) ENGINE=InnoDB")
    commits = []
    with scene.connect(database=database) as connection:
        ask(connection, "INSERT INTO t VALUES (1)")
        link = scene.proxy.link_of(connection)

        def lose_the_reply() -> None:
            commits.append(1)
            link.down.twist = replace(Cut.FIN)

        scene.proxy.twist([link], up=when(b"COMMIT", lose_the_reply) if arrives else replace(Cut.FIN))
        with sees(OperationalError, 2013):
            connection.commit()
    scene.assert_next_is_good(database=database)
    assert ask(scene.admin, f"SELECT COUNT(*) FROM {database}.t") == ((int(arrives),),)
    assert len(commits) == arrives


def test_garbage_for_a_reply(scene: Scene) -> None:
    with scene.connect() as connection:
        ask(connection)
        scene.proxy.twist([scene.proxy.link_of(connection)], down=replace(NOT_MYSQL))
        with sees(InternalError, "Packet sequence number wrong"):
            ask(connection)
    scene.assert_next_is_good()


def test_slow_reply(scene: Scene) -> None:
    with scene.connect(read_timeout=SHORT) as connection:
        ask(connection)
        scene.proxy.drip(0.02)
        began = time.monotonic()
        assert ask(connection, "SELECT 42") == ((42,),)
        assert time.monotonic() - began > SHORT
        scene.proxy.heal()
    scene.assert_next_is_good(read_timeout=SHORT)


def test_statement_stuck(scene: Scene) -> None:
    with scene.connect(write_timeout=SHORT) as connection:
        ask(connection)
        scene.proxy.stall()
        with sees(OperationalError, 2006, after=SHORT):
            ask(connection, f"SELECT '{'x' * (15 << 20)}'")
        scene.proxy.heal()
    scene.assert_next_is_good(write_timeout=SHORT)


def test_shared_connection_busy(scene: Scene) -> None:
    with scene.connect(pool={"timeout": SHORT}) as connection, connection.cursor(SSCursor) as reading:
        reading.execute("SELECT 1 UNION SELECT 2")
        caller = Caller(lambda: ask(connection))
        with sees(LeaseBusy, 2014, after=SHORT):
            caller.outcome()
        assert reading.fetchall() == [(1,), (2,)]
    scene.assert_next_is_good(pool={"timeout": SHORT})


# Errors that the server answers with


@pytest.fixture
def rows(scene: Scene, database: str) -> str:
    """The name of a table with two rows."""
    ask(scene.admin, f"CREATE TABLE {database}.t (id INT PRIMARY KEY, a INT) ENGINE=InnoDB")
    ask(scene.admin, f"INSERT INTO {database}.t VALUES (1, 0), (2, 0)")
    return f"{database}.t"


def assert_kept(scene: Scene, number: int, **overrides: Any) -> None:
    with scene.connect(**overrides) as connection:
        assert ask(connection, "SELECT 42") == ((42,),)
        assert connection.thread_id() == number


def assert_closed(scene: Scene, number: int) -> None:
    with lasts_less_than(AT_ONCE), scene.connect() as connection:
        assert ask(connection, "SELECT 42") == ((42,),)
        assert connection.thread_id() != number


def test_deadlock(scene: Scene, rows: str) -> None:
    with scene.connect() as connection, pymysql.connect(**scene.kwargs) as other:
        number = connection.thread_id()
        ask(connection, f"UPDATE {rows} SET a = 1 WHERE id = 1")
        # The one that has done more survives.
        ask(other, f"UPDATE {rows} SET a = 2 WHERE id = 2")
        ask(other, f"INSERT INTO {rows} VALUES (3, 0), (4, 0), (5, 0), (6, 0)")
        blocked = Caller(lambda: ask(other, f"UPDATE {rows} SET a = 2 WHERE id = 1"))
        waits = f"SELECT trx_state FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = {other.thread_id()}"

        def is_waiting() -> bool:
            ask(scene.admin, "DO SLEEP(0.15)")  # the table is as it was for whoever asks again within 0.1 s
            return bool(ask(scene.admin, waits) == (("LOCK WAIT",),))

        wait_until(is_waiting, what="the lock wait")
        with sees(OperationalError, 1213):
            ask(connection, f"UPDATE {rows} SET a = 1 WHERE id = 2")
        blocked.outcome()
        other.rollback()
        assert ask(connection, f"SELECT a FROM {rows} WHERE id = 1") == ((0,),)
    assert_kept(scene, number)


def test_lock_wait(scene: Scene, rows: str) -> None:
    with pymysql.connect(**scene.kwargs) as other, scene.connect() as connection:
        number = connection.thread_id()
        ask(other, f"UPDATE {rows} SET a = 1 WHERE id = 1")
        ask(connection, "SET innodb_lock_wait_timeout = 1")
        ask(connection, f"UPDATE {rows} SET a = 5 WHERE id = 2")
        with sees(OperationalError, 1205, after=1.0):
            ask(connection, f"UPDATE {rows} SET a = 5 WHERE id = 1")
        assert ask(connection, f"SELECT a FROM {rows} WHERE id = 2") == ((5,),)
    assert_kept(scene, number)
    assert ask(scene.admin, f"SELECT a FROM {rows} WHERE id = 2") == ((0,),)


def test_query_killed(scene: Scene, rows: str) -> None:
    with scene.connect() as connection:
        number = connection.thread_id()
        ask(connection, f"UPDATE {rows} SET a = 5 WHERE id = 2")
        with while_it_runs(scene, connection, lambda: scene.kill(connection, "QUERY")), sees(OperationalError, 1317):
            ask(connection, f"SELECT COUNT(*) FROM {rows} WHERE SLEEP({LONG})")
        assert ask(connection, f"SELECT a FROM {rows} WHERE id = 2") == ((5,),)
    assert_kept(scene, number)
    assert ask(scene.admin, f"SELECT a FROM {rows} WHERE id = 2") == ((0,),)


def test_statement_time(scene: Scene, rows: str, account: Server) -> None:
    limit = "SET max_statement_time = 0.3" if account.is_mariadb else "SET max_execution_time = 300"
    with scene.connect(init_command=limit) as connection:
        number = connection.thread_id()
        ask(connection, f"UPDATE {rows} SET a = 5 WHERE id = 2")
        with sees(OperationalError, 1969, 3024, after=0.3):
            ask(connection, f"SELECT COUNT(*) FROM {rows} WHERE SLEEP({LONG})")
        assert ask(connection, f"SELECT a FROM {rows} WHERE id = 2") == ((5,),)
    assert_kept(scene, number, init_command=limit)


def test_read_only_transaction(scene: Scene, rows: str) -> None:
    with scene.connect() as connection:
        number = connection.thread_id()
        ask(connection, "START TRANSACTION READ ONLY")
        with sees(OperationalError, 1792):
            ask(connection, f"UPDATE {rows} SET a = 5")
    assert_kept(scene, number)


def test_read_only_server(shaky: Scene, private: PrivateServer) -> None:
    plain = {"user": "plain", "password": "plain", "database": None}
    ask(shaky.admin, "CREATE USER IF NOT EXISTS plain@'%' IDENTIFIED BY 'plain'")
    ask(shaky.admin, "GRANT ALL PRIVILEGES ON tests.* TO plain@'%'")
    ask(shaky.admin, "SET GLOBAL read_only = 1")
    try:
        with shaky.connect(**plain) as connection:
            number = connection.thread_id()
            with sees(OperationalError, 1290):
                ask(connection, "CREATE TABLE tests.refused (id INT)")
        with shaky.connect(**plain) as connection:
            assert connection.thread_id() != number
    finally:
        ask(shaky.admin, "SET GLOBAL read_only = 0")


def signal(code: int, text: str) -> str:
    """Have MariaDB answer with any error."""
    return f"BEGIN NOT ATOMIC SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {code}, MESSAGE_TEXT = '{text}'; END"


def number_after(scene: Scene, account: Server, code: int, text: str) -> int:
    if not account.is_mariadb:
        pytest.skip("only MariaDB runs a block outside a routine")
    leave_idle(scene)
    with scene.connect() as connection:
        with sees(OperationalError, code):
            ask(connection, signal(code, text))
        return int(connection.thread_id())


def test_refused_by_an_option(scene: Scene, account: Server) -> None:
    text = "The MariaDB server is running with the --secure-file-priv option so it cannot execute this statement"
    assert_kept(scene, number_after(scene, account, 1290, text))


def test_kept_after_an_error(scene: Scene, account: Server) -> None:
    assert_kept(scene, number_after(scene, account, 3101, "Plugin instructed the server to rollback"))


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (1047, "WSREP has not yet prepared node for application use"),
        (1053, "Server shutdown in progress"),
        (1290, "The MariaDB server is running with the --read-only option so it cannot execute this statement"),
        (1290, "The MySQL server is running with the --super-read-only option so it cannot execute this statement"),
        (1836, "Running in read-only mode"),
        (1927, "Connection was killed"),
        (3032, "The server is currently in offline mode"),
        (3100, "Error on observer while running replication hook before_commit"),
        (4031, "The client was disconnected by the server because of inactivity."),
    ],
)
def test_closed_after_an_error(scene: Scene, account: Server, code: int, text: str) -> None:
    assert_closed(scene, number_after(scene, account, code, text))
