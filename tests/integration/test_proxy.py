"""The proxy itself, between plain PyMySQL and the server."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pymysql
import pytest
from proxy import KEPT, Packets, Proxy
from pymysql.connections import Connection
from pymysql.constants import COMMAND
from pymysql.err import OperationalError
from servers import Server, connection_ids, unverified, wait_until


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server.host, server.port) as proxy:
        yield proxy
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("proxy_")]


def connect(proxy: Proxy, server: Server, **overrides: Any) -> Connection[Any]:
    return pymysql.connect(**server.kwargs(port=proxy.port, ssl_disabled=True, **overrides))


def ask(connection: Connection[Any], text: str = "SELECT 1") -> Any:
    with connection.cursor() as cursor:
        cursor.execute(text)
        return cursor.fetchall()


def test_commands_packets_and_connections_are_counted(proxy: Proxy, server: Server) -> None:
    with connect(proxy, server) as connection:
        assert [link.encrypted for link in proxy.links] == [False]
        proxy.clear()
        assert ask(connection, "SELECT 7") == ((7,),)
        assert proxy.commands == [(COMMAND.COM_QUERY, b"SELECT 7")]
        assert proxy.statements() == ["SELECT 7"]
        assert proxy.server_packets == 5  # column count, column, EOF, row, EOF
        assert proxy.bytes_to_server == 4 + 1 + len("SELECT 7")
        connection.ping(reconnect=False)
        with connect(proxy, server) as other:
            ask(other)
            first, second = proxy.links
            assert [code for code, _ in first.commands] == [COMMAND.COM_QUERY, COMMAND.COM_PING]
            assert (COMMAND.COM_QUERY, b"SELECT 1") in second.commands
    assert proxy.connections == 1
    wait_until(lambda: not proxy.links, what="the end of the links")
    assert [code for code, _ in proxy.commands].count(COMMAND.COM_QUIT) == 2


def test_large_results_and_statements_pass_unchanged(proxy: Proxy, server: Server) -> None:
    with connect(proxy, server) as connection:
        proxy.clear()
        size = 3 * KEPT
        assert ask(connection, f"SELECT '{'x' * size}', 2") == (("x" * size, 2),)
        assert ask(connection, "SELECT 3") == ((3,),)
        (_, long), (_, short) = proxy.commands
        assert len(long) == KEPT - 1
        assert short == b"SELECT 3"
        assert proxy.bytes_to_client > size


@pytest.mark.thorough
def test_encrypted_links_are_forwarded_and_only_bytes_counted(tls_server: Server) -> None:
    with (
        Proxy(tls_server.host, tls_server.port) as proxy,
        pymysql.connect(**tls_server.kwargs(port=proxy.port, ssl=unverified())) as connection,
    ):
        # PyMySQL 1.1 goes on without TLS where the server has none.
        assert ask(connection, "SHOW STATUS LIKE 'Ssl_cipher'")[0][1]
        proxy.clear()
        ask(connection)
        assert proxy.links[0].encrypted
        assert proxy.commands == []
        assert proxy.bytes_to_client > 0


@pytest.mark.parametrize("reset", [False, True])
def test_cut_ends_the_links_on_both_sides(proxy: Proxy, server: Server, admin: Connection[Any], reset: bool) -> None:
    connection = connect(proxy, server)
    assert connection.thread_id() in connection_ids(admin, server.user)
    proxy.cut(reset=reset)
    assert proxy.links == []
    with pytest.raises(OperationalError):
        ask(connection)
    wait_until(lambda: connection.thread_id() not in connection_ids(admin, server.user))
    with connect(proxy, server) as other:
        assert ask(other) == ((1,),)


def test_cut_reaches_links_that_are_stalled_or_delayed(proxy: Proxy, server: Server) -> None:
    started = time.monotonic()
    connection = connect(proxy, server, read_timeout=30)
    proxy.delay(20)
    errors: list[BaseException] = []

    def asking() -> None:
        try:
            ask(connection)
        except OperationalError as error:
            errors.append(error)

    thread = threading.Thread(target=asking)
    thread.start()
    time.sleep(0.05)
    proxy.stall()
    proxy.cut()
    thread.join(10)
    assert errors
    assert time.monotonic() - started < 10


def test_stall_keeps_links_open_and_restore_delivers(proxy: Proxy, server: Server) -> None:
    with connect(proxy, server, read_timeout=1) as hasty, connect(proxy, server) as patient:
        proxy.stall()
        with pytest.raises(OperationalError, match="timed out"):
            ask(hasty)
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.append(ask(patient, "SELECT 2")))
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        proxy.restore()
        thread.join(5)
        assert answers == [((2,),)]


@pytest.mark.parametrize("seconds", [0.001, 0.05])
def test_delay_is_exact_and_overlaps(proxy: Proxy, server: Server, seconds: float) -> None:
    with connect(proxy, server) as connection:
        ask(connection)
        proxy.delay(seconds)
        times = []
        for _ in range(5):
            started = time.perf_counter()
            ask(connection)
            times.append(time.perf_counter() - started)
        # The fastest of several: a busy machine adds to single ones.
        assert 2 * seconds <= min(times) < 2 * seconds + 0.01
        started = time.perf_counter()
        text = ask(connection, f"SELECT REPEAT('x', {8 << 20})")[0][0]
        assert len(text) == 8 << 20
        # 128 chunks or more: delayed one after another, they would take 6 s at the longer delay.
        assert time.perf_counter() - started < 2 * seconds + 2.0
        proxy.delay(0)
        ask(connection)


def test_what_a_client_said_before_it_went_away_is_delivered(proxy: Proxy, server: Server) -> None:
    connection = connect(proxy, server)
    proxy.clear()
    proxy.delay(0.3)
    for _ in range(2):  # the second reply finds the client gone, before its goodbye is through
        connection._execute_command(COMMAND.COM_QUERY, "SELECT 1")
        connection._result = None
        time.sleep(0.05)
    time.sleep(0.4)
    connection.close()
    wait_until(lambda: not proxy.links, what="the end of the link")
    assert [code for code, _ in proxy.commands] == [COMMAND.COM_QUERY, COMMAND.COM_QUERY, COMMAND.COM_QUIT]


def test_refuse_concerns_new_links_only(proxy: Proxy, server: Server) -> None:
    with connect(proxy, server) as connection:
        proxy.refuse()
        with pytest.raises(OperationalError) as caught:
            connect(proxy, server)
        assert caught.value.args[0] == 2003
        assert ask(connection) == ((1,),)
        proxy.restore()
        with connect(proxy, server) as other:
            assert ask(other) == ((1,),)


def test_many_links_at_once(proxy: Proxy, server: Server) -> None:
    answers: list[Any] = []

    def work(number: int) -> None:
        with connect(proxy, server) as connection:
            answers.append(ask(connection, f"SELECT {number}") == ((number,),))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert answers == [True] * 40
    assert proxy.connections == 40


def test_target_that_does_not_listen() -> None:
    with Proxy("127.0.0.1", 1) as proxy, pytest.raises(OperationalError):
        pymysql.connect(host=proxy.host, port=proxy.port, user="x", ssl_disabled=True)


@pytest.mark.parametrize("step", [1, 3, 4, 5, 1000, 1 << 20])
def test_packets_are_found_however_they_arrive(step: int) -> None:
    sizes = [0, 1, 5, 0, KEPT - 1, KEPT, KEPT + 1, 70_000, 3]
    stream = b"".join(
        struct.pack("<I", size | number << 24) + bytes([number]) * size for number, size in enumerate(sizes)
    )
    packets = Packets()
    found = [packet for start in range(0, len(stream), step) for packet in packets.feed(stream[start : start + step])]
    assert found == [(number, size, bytes([number]) * min(size, KEPT)) for number, size in enumerate(sizes)]
