"""What a lease costs on the wire, counted by a proxy: which packets are sent, and that nobody waits for their replies.

That nobody waits is shown without a clock: the proxy holds the reply back, and what must not wait returns all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from proxy import Link, Proxy
from pymysql.constants import COMMAND
from servers import Server, wait_until

import pooled_pymysql
from pooled_pymysql import liveness
from pooled_pymysql.liveness import is_only_data
from pooled_pymysql.session import Mail, Session

RESET = 0x1F
# What a touched session is sent: the reset, the init statement, its database.
RESTORING = [RESET, COMMAND.COM_QUERY, COMMAND.COM_INIT_DB]
Connect = Callable[..., Any]


class HoldingProxy(Proxy):
    """A proxy that can hold back what the server sends on some links, and notes the order of things."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self.held: set[Link] = set()
        self.writes: list[tuple[str, int]] = []  # who sent a chunk, and how many commands or packets it completed

    def hold(self, connection: Any) -> None:
        with self._state:
            self.held.add(self.link_of(connection))

    def let_go(self) -> None:
        with self._state:
            self.held.clear()
            self._state.notify_all()

    def clear(self) -> None:
        super().clear()
        self.writes.clear()

    def _count(self, link: Link, to_server: bool, data: bytes) -> None:
        with self._state:
            if not to_server:
                self._state.wait_for(lambda: link not in self.held or link.closed or self._closing)
            before = len(self.commands) if to_server else self.server_packets
            super()._count(link, to_server, data)
            after = len(self.commands) if to_server else self.server_packets
            self.writes.append(("client" if to_server else "server", after - before))


@pytest.fixture
def proxy(server: Server) -> Iterator[HoldingProxy]:
    with HoldingProxy(server.host, server.port) as proxy:
        yield proxy
        proxy.let_go()
        pooled_pymysql.close_pools()


@pytest.fixture
def connect(proxy: HoldingProxy, server: Server, table: str) -> Connect:
    """Give a function that leases from a pool behind the proxy."""

    def connect(*, pool: Any = None, **overrides: Any) -> Any:
        database = table.partition(".")[0]
        arguments = server.kwargs(port=proxy.port, ssl_disabled=True, database=database) | overrides
        return pooled_pymysql.connect(**arguments, pool=pool or {})

    return connect


@pytest.fixture
def table(admin: Any, database: str) -> str:
    name = f"{database}.t"
    run(admin, f"CREATE TABLE {name} (id INT AUTO_INCREMENT PRIMARY KEY, a INT) ENGINE=InnoDB")
    return name


def run(connection: Any, sql: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


def warm(connect: Connect, count: int = 1, **options: Any) -> list[int]:
    """Open that many sessions, leave them idle, and list their ids."""
    leases = [connect(**options) for _ in range(count)]
    for lease in leases:
        lease.close()
    # What a session owes from being opened or restored is in before anything is counted.
    for lease in (leases := [connect(**options) for _ in range(count)]):
        run(lease, "DO 0")
    ids = [lease.thread_id() for lease in leases]
    for lease in leases:
        lease.close()
    pool = pooled_pymysql.pools()[0]
    wait_until(lambda: pool.tick() and not pool._ledger.owing, what="the replies that sessions owe")
    assert pool.stats().idle == count
    return ids


def commands_of(proxy: HoldingProxy, count: int) -> list[tuple[int, bytes]]:
    """Wait until the proxy has seen that many commands, and list all that it has seen."""
    wait_until(lambda: len(proxy.commands) >= count, what=f"{count} commands")
    return list(proxy.commands)


def query(sql: str) -> tuple[int, bytes]:
    return (COMMAND.COM_QUERY, sql.encode())


ROLLBACK = query("ROLLBACK")


def test_a_clean_lease_costs_exactly_its_statement(proxy: HoldingProxy, connect: Connect) -> None:
    for autocommit in (True, False):
        warm(connect, autocommit=autocommit)
        proxy.clear()
        for _ in range(5):
            lease = connect(autocommit=autocommit)
            assert run(lease, "SELECT 1") == ((1,),)
            lease.close()
        # The next lease's statement comes behind all that the last release sent.
        with connect(autocommit=autocommit) as lease:
            run(lease, "SELECT 'end'")
            assert proxy.commands == [*5 * [query("SELECT 1")], query("SELECT 'end'")]
        assert proxy.connections == 0
        assert proxy.server_packets == 6 * 4  # the number of columns, one column, one row, the end
        pooled_pymysql.close_pools()


def test_leases_that_do_nothing_send_nothing(proxy: HoldingProxy, connect: Connect) -> None:
    warm(connect)
    proxy.clear()
    for _ in range(5):
        connect().close()
    with connect() as lease:
        run(lease, "SELECT 'end'")
        assert proxy.commands == [query("SELECT 'end'")]


def test_a_read_transaction_costs_its_select_and_one_rollback(
    proxy: HoldingProxy, connect: Connect, table: str
) -> None:
    warm(connect, autocommit=False)
    proxy.clear()
    for _ in range(5):
        lease = connect(autocommit=False)
        run(lease, f"SELECT * FROM {table}")
        lease.close()
    select = query(f"SELECT * FROM {table}")
    assert commands_of(proxy, 10) == 5 * [select, ROLLBACK]


def lease_behind_a_rollback(proxy: HoldingProxy, connect: Connect, table: str) -> Any:
    """Lease the pool's one session again after a read transaction, the reply to whose ROLLBACK is held back."""
    lease = connect(pool={"max_size": 1})
    run(lease, f"SELECT * FROM {table}")
    proxy.clear()
    proxy.hold(lease)
    lease.close()
    return connect(pool={"max_size": 1})


def test_nobody_waits_for_the_rollback_of_a_read_transaction(proxy: HoldingProxy, connect: Connect, table: str) -> None:
    (first,) = warm(connect, pool={"max_size": 1})
    lease = lease_behind_a_rollback(proxy, connect, table)
    assert lease.thread_id() == first
    assert commands_of(proxy, 1) == [ROLLBACK]
    assert proxy.server_packets == 0  # its reply has not been delivered
    proxy.let_go()
    assert run(lease, "SELECT 7") == ((7,),)
    lease.close()
    with connect(pool={"max_size": 1}) as lease:
        run(lease, "SELECT 'end'")
        assert proxy.commands == [ROLLBACK, query("SELECT 7"), query("SELECT 'end'")]


def test_a_statement_goes_out_behind_a_rollback_without_waiting_for_it(
    proxy: HoldingProxy, connect: Connect, table: str
) -> None:
    warm(connect, pool={"max_size": 1})
    lease = lease_behind_a_rollback(proxy, connect, table)
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(run, lease, "SELECT 8")
        assert commands_of(proxy, 2) == [ROLLBACK, query("SELECT 8")]
        assert proxy.server_packets == 0 and not answer.done()
        proxy.let_go()
        assert answer.result(10) == ((8,),)
    lease.close()


@pytest.mark.parametrize("chosen", [1, 2])  # while only that session is waited for, or others as well
def test_an_interruption_of_waiting_for_a_reset_costs_that_session_alone(
    proxy: HoldingProxy, connect: Connect, monkeypatch: pytest.MonkeyPatch, chosen: int
) -> None:
    (number,) = warm(connect, pool={"max_size": 1})
    lease = connect(pool={"max_size": 1})
    run(lease, "SET @a = 1")
    proxy.hold(lease)
    lease.close()
    collect = Session.collect
    waits = 0

    def collect_in_vain(session: Session, deadline: float | None = None) -> Mail:
        """Lose what has come, as an exception can that is delivered when a read returns."""
        nonlocal waits
        waits += deadline is not None
        if waits != chosen:
            return collect(session, deadline)
        monkeypatch.setattr(Session, "collect", collect)
        proxy.let_go()
        session.sock.settimeout(5.0)
        session.sock.recv(65536)
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "collect", collect_in_vain)
    with pytest.raises(KeyboardInterrupt):
        connect(pool={"max_size": 1})
    with connect(pool={"max_size": 1}) as lease:
        assert run(lease, "SELECT @a") == ((None,),)
        assert lease.thread_id() != number


SWITCH = {value: query(f"SET AUTOCOMMIT = {int(value)}") for value in (False, True)}


@pytest.mark.parametrize("autocommit", [True, False])
def test_autocommit_that_is_back_where_it_was_costs_no_reset(
    proxy: HoldingProxy, connect: Connect, table: str, autocommit: bool
) -> None:
    warm(connect, autocommit=autocommit)
    proxy.clear()
    update = f"UPDATE {table} SET a = a + 1"
    for _ in range(3):
        with connect(autocommit=autocommit) as lease:
            lease.autocommit(not autocommit)
            run(lease, update)
            lease.commit()
            lease.autocommit(autocommit)
    with connect(autocommit=autocommit) as lease:
        run(lease, "SELECT 'end'")
    turn = [SWITCH[not autocommit], query(update), query("COMMIT"), SWITCH[autocommit]]
    assert proxy.commands == [*3 * turn, query("SELECT 'end'")]


def test_autocommit_that_stays_switched_is_restored(proxy: HoldingProxy, connect: Connect) -> None:
    warm(connect, autocommit=True)
    with connect(autocommit=True) as lease:
        lease.autocommit(False)
        proxy.clear()
    assert commands_of(proxy, 1)[0][0] == RESET
    with connect(autocommit=True) as lease:
        assert run(lease, "SELECT @@autocommit") == ((1,),)


@pytest.mark.parametrize("tells_hangups", [True, False])
def test_a_rollback_that_was_answered_meanwhile_does_not_cost_the_session(
    proxy: HoldingProxy, connect: Connect, table: str, monkeypatch: pytest.MonkeyPatch, tells_hangups: bool
) -> None:
    if not tells_hangups:
        monkeypatch.setattr(liveness, "_POLLRDHUP", 0)
    (number,) = warm(connect, pool={"max_size": 1})
    lease = lease_behind_a_rollback(proxy, connect, table)
    proxy.let_go()
    wait_until(lambda: lease._session.poll(0), what="the reply")
    assert run(lease, "SELECT 8") == ((8,),)
    assert lease.thread_id() == number
    assert proxy.commands == [ROLLBACK, query("SELECT 8")]
    lease.close()


@pytest.mark.parametrize("when", ["before it is leased", "before its first statement"])
def test_a_session_that_hangs_up_behind_a_rollback_is_replaced(
    proxy: HoldingProxy, connect: Connect, admin: Any, table: str, when: str
) -> None:
    lease = connect(pool={"max_size": 1})
    run(lease, f"SELECT * FROM {table}")
    number, session = lease.thread_id(), lease._session
    lease.close()
    if when == "before its first statement":
        lease = connect(pool={"max_size": 1})
        assert lease._session is session
    run(admin, f"KILL {number}")
    wait_until(lambda: session.poll(0) and not is_only_data(session.poll(0)), what="the end of the link")
    if when == "before it is leased":
        lease = connect(pool={"max_size": 1})
    assert run(lease, "SELECT 8") == ((8,),)
    assert lease.thread_id() != number
    lease.close()


FORGET = query("DO LAST_INSERT_ID(0)")


def test_an_insert_id_is_cleared_with_the_next_statement(proxy: HoldingProxy, connect: Connect, table: str) -> None:
    options: dict[str, Any] = {"autocommit": True, "pool": {"max_size": 1}}
    warm(connect, **options)
    proxy.clear()
    insert = f"INSERT INTO {table} (a) VALUES (1)"
    for _ in range(3):
        with connect(**options) as lease:
            run(lease, insert)
        connect(**options).close()
    with connect(**options) as lease:
        assert run(lease, "SELECT LAST_INSERT_ID()") == ((0,),)
    assert proxy.commands == [*3 * [query(insert), FORGET], query("SELECT LAST_INSERT_ID()")]


def test_an_insert_id_is_cleared_once(proxy: HoldingProxy, connect: Connect, table: str) -> None:
    options: dict[str, Any] = {"autocommit": True, "pool": {"max_size": 1, "validate_after": 0}}
    warm(connect, **options)
    with connect(**options) as lease:
        run(lease, f"INSERT INTO {table} (a) VALUES (1)")
    proxy.clear()
    with connect(**options) as lease:  # after a reset, which clears it too
        assert run(lease, "SELECT LAST_INSERT_ID()") == ((0,),)
    assert proxy.commands[0][0] == RESET
    assert FORGET not in proxy.commands


@pytest.mark.parametrize("release", ["rollback", "reset"])
def test_with_another_session_ready_even_the_next_statement_waits_for_nothing(
    proxy: HoldingProxy, connect: Connect, table: str, release: str
) -> None:
    ids = warm(connect, 2)
    lease = connect()
    run(lease, f"SELECT * FROM {table}" if release == "rollback" else "SET @a = 1")
    used = lease.thread_id()
    link = proxy.link_of(lease)
    proxy.clear()
    proxy.hold(lease)
    lease.close()
    lease = connect()
    assert run(lease, "SELECT 7, @a") == ((7, None),)
    assert {used, lease.thread_id()} == set(ids)
    wait_until(lambda: link.commands, what="what restores the first session")
    assert link.server_packets == 0  # its reply has not been delivered
    lease.close()
    assert proxy.connections == 0


def test_an_insert_with_an_id_costs_itself_its_commit_and_at_most_one_packet(
    proxy: HoldingProxy, connect: Connect, table: str
) -> None:
    (first,) = warm(connect, pool={"max_size": 1})
    lease = connect(pool={"max_size": 1})
    proxy.clear()
    run(lease, f"INSERT INTO {table} (a) VALUES (1)")
    lease.commit()
    delivered = proxy.server_packets
    proxy.hold(lease)
    lease.close()
    lease = connect(pool={"max_size": 1})
    assert lease.thread_id() == first
    assert proxy.server_packets == delivered  # nobody waited for anything more
    proxy.let_go()
    assert run(lease, "SELECT LAST_INSERT_ID()") == ((0,),)
    own = [query(f"INSERT INTO {table} (a) VALUES (1)"), query("COMMIT")]
    found = list(proxy.commands)
    assert found[:2] == own and found[-1] == query("SELECT LAST_INSERT_ID()")
    assert len(found) - len(own) - 1 <= 1
    lease.close()


def test_nobody_waits_at_release_for_a_session_to_be_reset(proxy: HoldingProxy, connect: Connect) -> None:
    warm(connect)
    lease = connect()
    proxy.clear()
    run(lease, "SET @a = 1")
    delivered = proxy.server_packets
    proxy.hold(lease)
    lease.close()
    found = commands_of(proxy, 1 + len(RESTORING))
    assert [code for code, _ in found] == [COMMAND.COM_QUERY, *RESTORING]
    assert found[2][1].startswith(b"SET NAMES")
    assert proxy.server_packets == delivered


def test_a_reset_and_what_goes_with_it_are_one_write(proxy: HoldingProxy, connect: Connect) -> None:
    warm(connect)
    with connect() as lease:
        run(lease, "SET @a = 1")
        proxy.clear()
    commands_of(proxy, len(RESTORING))
    assert proxy.writes[0] == ("client", len(RESTORING))


def test_one_write_turned_off_reads_each_reply_before_the_next_packet(
    proxy: HoldingProxy, connect: Connect, table: str
) -> None:
    options = {"pool": {"one_write": False, "max_size": 1}, "autocommit": False}
    (first,) = warm(connect, **options)
    for sql, codes in ((f"SELECT * FROM {table}", [3]), ("SET @a = 1", RESTORING)):
        lease = connect(**options)
        run(lease, sql)
        proxy.clear()
        lease.close()
        assert [code for code, _ in proxy.commands] == codes
        # Command, reply, command, reply: never two commands in a row.
        assert [sender for sender, _ in proxy.writes] == len(codes) * ["client", "server"]
        assert {count for sender, count in proxy.writes if sender == "client"} == {1}
    with connect(**options) as lease:
        assert lease.thread_id() == first


def test_a_clean_lease_costs_nothing_more_when_one_write_is_turned_off(proxy: HoldingProxy, connect: Connect) -> None:
    warm(connect, pool={"one_write": False})
    proxy.clear()
    for _ in range(3):
        with connect(pool={"one_write": False}) as lease:
            run(lease, "SELECT 1")
    assert proxy.commands == 3 * [query("SELECT 1")]


def test_always_resets_after_every_lease_in_one_write(proxy: HoldingProxy, connect: Connect) -> None:
    pool = {"reset": "always", "max_size": 1}
    (first,) = warm(connect, pool=pool)
    lease = connect(pool=pool)
    run(lease, "SELECT 1")
    proxy.clear()
    lease.close()
    found = commands_of(proxy, 2)
    assert found[0] == (RESET, b"") and any(text.startswith(b"SET NAMES") for _, text in found)
    assert proxy.writes[0] == ("client", len(found))
    with connect(pool=pool) as lease:
        assert lease.thread_id() == first
