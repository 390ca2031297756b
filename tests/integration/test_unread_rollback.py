"""A statement may be sent behind a ROLLBACK whose reply nobody has read; if that reply is bad, nothing is believed."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pymysql
import pytest
from proxy import Chunks, Link, Proxy
from pymysql.constants import COMMAND
from pymysql.err import OperationalError
from servers import Server, wait_until

import pooled_pymysql

RESET = 0x1F
ROLLBACK = (COMMAND.COM_QUERY, b"ROLLBACK")
# As a Galera node answers that has lost its cluster: the transaction stays open.
REFUSAL = b"\xff" + (1047).to_bytes(2, "little") + b"#08S01WSREP has not yet prepared node for application use"

Connect = Callable[..., Any]
Change = Callable[[bytes], bytes]


class Changed:
    """A socket of the proxy whose incoming bytes are changed."""

    def __init__(self, source: socket.socket, change: Change) -> None:
        self._source = source
        self._change = change

    def recv(self, size: int) -> bytes:
        return self._change(self._source.recv(size))


class MeddlingProxy(Proxy):
    """A proxy that can hold back what the server sends on a link, and change commands and replies."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self.held: set[Link] = set()
        self.change_command: Change = bytes
        self.change_reply: Change = bytes
        self.meddled = 0

    def hold(self, connection: Any) -> Link:
        link = self.link_of(connection)
        with self._state:
            self.held.add(link)
        return link

    def let_go(self) -> None:
        self.change_command = self.change_reply = bytes
        with self._state:
            self.held.clear()
            self._state.notify_all()

    def _count(self, link: Link, to_server: bool, data: bytes) -> None:
        if not to_server:
            with self._state:
                self._state.wait_for(lambda: link not in self.held or link.closed or self._closing)
        super()._count(link, to_server, data)

    def _read(self, link: Link, source: Any, chunks: Chunks) -> None:
        def change(data: bytes) -> bytes:
            if link not in self.held:
                return data
            changed = (self.change_command if source is link.client else self.change_reply)(data)
            if changed != data:  # once is enough: what follows is told as it is
                self.change_command = self.change_reply = bytes
                self.meddled += 1
            return changed

        super()._read(link, Changed(source, change), chunks)  # type: ignore[arg-type]


def misspell(data: bytes) -> bytes:
    """Make the server itself refuse the ROLLBACK, so that the transaction stays open."""
    return data.replace(b"\x03ROLLBACK", b"\x03ROLLBUCK").replace(b"\x03DO LAST_", b"\x03DO LOST_")


def refuse(data: bytes) -> bytes:
    """Turn the OK with which a chunk begins into an error, though the server has done what it was told."""
    if data[3:5] != b"\x01\0":
        return data
    return len(REFUSAL).to_bytes(3, "little") + b"\1" + REFUSAL + data[4 + int.from_bytes(data[:3], "little") :]


@pytest.fixture
def proxy(server: Server) -> Iterator[MeddlingProxy]:
    with MeddlingProxy(server.host, server.port) as proxy:
        yield proxy
        proxy.let_go()
        pooled_pymysql.close_pools()


@pytest.fixture
def table(admin: Any, database: str) -> str:
    name = f"{database}.t"
    run(admin, f"CREATE TABLE {name} (id INT AUTO_INCREMENT PRIMARY KEY, a INT) ENGINE=InnoDB")
    run(admin, f"INSERT INTO {name} (a) VALUES (0)")
    return name


@pytest.fixture
def connect(proxy: MeddlingProxy, account: Server) -> Connect:
    """Give a function that leases from a pool behind the proxy, by default of one session."""

    def connect(*, max_size: int = 1, timeout: float = 10.0, autocommit: bool = False) -> Any:
        arguments = account.kwargs(port=proxy.port, ssl_disabled=True, autocommit=autocommit)
        return pooled_pymysql.connect(**arguments, pool={"max_size": max_size, "timeout": timeout})

    return connect


@pytest.fixture
def wait_gone(connection_ids: Any, account: Server) -> Callable[[int], None]:
    """Give a function that waits until the server has ended a session of the account."""

    def wait_gone(number: int) -> None:
        wait_until(lambda: number not in connection_ids(account.user), what=f"the end of session {number}")

    return wait_gone


def run(connection: Any, sql: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


def rows(admin: Any, table: str) -> int:
    ((count,),) = run(admin, f"SELECT COUNT(*) FROM {table} WHERE a > 0")
    return int(count)


def leave(
    connect: Connect, proxy: MeddlingProxy, state: str, table: str, *, command: Change = bytes, reply: Change = bytes
) -> tuple[int, Link]:
    """Run one lease that ends in a given state, holding back all replies from its end on; give id and link.

    `command` and `reply` change what restores the session and how that is answered.
    """
    connection = connect(autocommit=state != "reading")
    if state == "reading":
        run(connection, f"SELECT * FROM {table}")
    elif state == "begun":
        connection.begin()
        run(connection, f"SELECT * FROM {table}")
    else:
        run(connection, f"INSERT INTO {table} (a) VALUES (-1)")  # leaves an insert id
    number = connection.thread_id()
    link = proxy.hold(connection)
    proxy.clear()
    proxy.change_command, proxy.change_reply = command, reply
    connection.close()
    if state == "inserted":  # nobody else can tell: it is sent with the next statement
        assert not link.commands
    else:
        wait_until(lambda: link.commands, what="what restores the session")
    return number, link


def insert_behind(connection: Any, link: Link, table: str, threads: ThreadPoolExecutor) -> Future[Any]:
    """Send an INSERT while the reply to what was sent before it is held back."""
    sent = len(link.commands)
    answer = threads.submit(run, connection, f"INSERT INTO {table} (a) VALUES (1)")
    wait_until(lambda: len(link.commands) > sent, what="the INSERT")
    assert link.server_packets == 0
    assert not answer.done()
    return answer


@pytest.mark.parametrize("state", ["reading", "begun", "inserted"])
@pytest.mark.parametrize("changes", [{"command": misspell}, {"reply": refuse}], ids=["by the server", "on the way"])
def test_what_was_sent_behind_a_refused_restoration_fails_and_is_not_believed(
    *, proxy: MeddlingProxy, connect: Connect, wait_gone: Any, admin: Any, table: str, state: str, changes: Any
) -> None:
    autocommit = state != "reading"
    for attempt in range(1, 4):  # a slot lost by any of them would make the next one time out
        number, link = leave(connect, proxy, state, table, **changes)
        connection = connect(autocommit=autocommit)
        assert connection.thread_id() == number
        with ThreadPoolExecutor(1) as threads:
            answer = insert_behind(connection, link, table, threads)
            wait_until(lambda expected=attempt: proxy.meddled == expected, what="the refusal")
            proxy.let_go()
            with pytest.raises(OperationalError) as caught:
                answer.result(10)
        assert caught.value.args[0] == 2013
        assert not connection.open
        with pytest.raises(pymysql.err.InterfaceError):
            run(connection, "SELECT 1")
        connection.close()
        wait_gone(number)
        # With autocommit the server may have kept the row, but nobody was told so.
        assert rows(admin, table) <= (attempt if autocommit else 0)
        assert pooled_pymysql.pools()[0].stats().in_use == 0
    with connect(autocommit=autocommit) as connection:
        assert run(connection, "SELECT 7") == ((7,),)


@pytest.mark.parametrize("changes", [{"command": misspell}, {"reply": refuse}], ids=["by the server", "on the way"])
def test_a_refused_restoration_that_is_known_in_time_costs_no_statement(
    *, proxy: MeddlingProxy, connect: Connect, wait_gone: Any, admin: Any, table: str, changes: Any
) -> None:
    connection = connect()
    session = connection._session
    connection.close()
    number, _ = leave(connect, proxy, "reading", table, **changes)
    wait_until(lambda: proxy.meddled == 1, what="the refusal")
    proxy.let_go()
    wait_until(lambda: session.poll(0), what="its arrival")
    connection = connect()
    run(connection, f"INSERT INTO {table} (a) VALUES (1)")
    connection.commit()
    assert connection.thread_id() != number
    wait_gone(number)
    connection.close()
    assert rows(admin, table) == 1


def test_an_acknowledged_row_stays_after_a_restoration_that_was_answered_late(
    proxy: MeddlingProxy, connect: Connect, admin: Any, table: str
) -> None:
    number, link = leave(connect, proxy, "reading", table)
    connection = connect()
    with ThreadPoolExecutor(1) as threads:
        answer = insert_behind(connection, link, table, threads)
        proxy.let_go()
        answer.result(10)
    assert (connection.thread_id(), connection.insert_id()) == (number, 2)
    connection.commit()
    connection.close()
    assert rows(admin, table) == 1


def test_a_session_that_is_killed_before_its_rollback_is_read_acknowledges_nothing(
    *, proxy: MeddlingProxy, connect: Connect, wait_gone: Any, admin: Any, table: str
) -> None:
    number, _ = leave(connect, proxy, "reading", table)
    run(admin, f"KILL {number}")
    wait_gone(number)
    connection = connect()
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(run, connection, f"INSERT INTO {table} (a) VALUES (1)")
        proxy.let_go()
        try:
            answer.result(10)
        except OperationalError as error:
            assert error.args[0] in (2006, 2013)
            assert not connection.open
        else:  # the loss was noticed in time
            assert connection.thread_id() != number
            connection.rollback()
    connection.close()
    assert rows(admin, table) == 0
    with connect() as connection:
        assert run(connection, "SELECT 7") == ((7,),)


@pytest.mark.parametrize("what", ["reset", "rollback of changes"])
def test_nothing_is_sent_behind_what_may_take_long(
    proxy: MeddlingProxy, connect: Connect, admin: Any, table: str, what: str
) -> None:
    options: dict[str, Any] = {"timeout": 0.3}
    connection = connect(**options)
    run(connection, "SET @a = 1" if what == "reset" else f"INSERT INTO {table} (id, a) VALUES (70, 1)")
    number = connection.thread_id()
    link = proxy.hold(connection)
    proxy.clear()
    connection.close()
    wait_until(lambda: link.commands, what="what restores the session")
    with pytest.raises(pooled_pymysql.PoolTimeout):
        connect(**options)
    restoring = list(proxy.commands)
    assert restoring[0] == ((RESET, b"") if what == "reset" else ROLLBACK)
    assert link.server_packets == 0
    proxy.let_go()
    connection = wait_until(lambda: leased(connect, options), what="the restored session")
    assert connection.thread_id() == number
    assert run(connection, "SELECT @a") == ((None,),)
    assert proxy.commands == [*restoring, (COMMAND.COM_QUERY, b"SELECT @a")]
    connection.close()
    assert rows(admin, table) == 0


def leased(connect: Connect, options: dict[str, Any]) -> Any:
    try:
        return connect(**options)
    except pooled_pymysql.PoolTimeout:
        return None


@pytest.mark.parametrize("what", ["reset", "rollback of changes"])
def test_with_room_another_session_is_opened_instead_of_waiting_for_a_long_restoration(
    proxy: MeddlingProxy, connect: Connect, admin: Any, table: str, what: str
) -> None:
    connection = connect(max_size=2)
    run(connection, "SET @a = 1" if what == "reset" else f"INSERT INTO {table} (a) VALUES (1)")
    number = connection.thread_id()
    link = proxy.hold(connection)
    proxy.clear()
    connection.close()
    other = connect(max_size=2)
    assert other.thread_id() != number
    assert run(other, f"SELECT COUNT(*), @a FROM {table} WHERE a > 0") == ((0, None),)
    wait_until(lambda: link.commands, what="what restores the session")
    assert link.server_packets == 0
    proxy.let_go()
    third = connect(max_size=2)
    assert third.thread_id() == number
    other.close()
    third.close()
    assert rows(admin, table) == 0
