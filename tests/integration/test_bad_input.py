"""Arguments and servers that are wrong: the errors are PyMySQL's, come in time, show no password and cost no room."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import socket
import threading
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pymysql
import pytest
import servers
from callers import opening_threads
from servers import HOST, Server, free_port

import pooled_pymysql

SECRET = "S3cr3t"
LIMIT = 0.5  # seconds of connect_timeout
SLACK = 2.0  # seconds that a busy machine may take longer


def failure(call: Callable[[], Any]) -> Exception:
    """Return the exception that a call raises."""
    try:
        connection = call()
    except Exception as error:
        return error
    connection.close()
    raise AssertionError("the call did not fail")


def failure_of_pymysql(**kwargs: Any) -> Exception:
    """Return the exception that PyMySQL's own connect() raises, which may leave a socket open."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        error = failure(lambda: pymysql.connect(**kwargs))
        error.__traceback__ = None
        gc.collect()
    return error


def texts(error: BaseException) -> str:
    """Return all that a log could show of an exception and of those that it hangs on."""
    parts = ["".join(traceback.format_exception(error)), repr(error), str(error)]
    each: BaseException | None = error
    while each is not None:
        parts += [repr(vars(each)), repr(each.args)]
        each = each.__cause__ or each.__context__
    return "".join(parts)


def assert_fails_as_pymysql(*args: Any, plain: dict[str, Any], **kwargs: Any) -> None:
    """Assert that a call fails as PyMySQL's does with `plain`, each time, and that nothing is left of it."""
    expected = failure_of_pymysql(**plain)
    for _ in range(2):
        error = failure(lambda: pooled_pymysql.connect(*args, **kwargs))
        assert type(error) is type(expected)
        assert error.args == expected.args
        assert SECRET not in texts(error)
        for name in vars(expected):
            assert hasattr(error, name)
        for pool in pooled_pymysql.pools():
            stats = pool.stats()
            assert (stats.in_use, stats.idle, stats.opening, stats.waiting) == (0, 0, 0, 0)
            assert stats.opened == sum(stats.closed.values())
            assert SECRET not in repr(pool) + repr(stats)


def assert_good_connect_works(server: Server, **kwargs: Any) -> None:
    with pooled_pymysql.connect(**server.kwargs(**kwargs)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)


@pytest.fixture(autouse=True)
def no_secret_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a test does, the log shows no password."""
    caplog.set_level(logging.DEBUG)
    yield
    assert SECRET not in caplog.text


@pytest.fixture
def secretive(server: Server, admin: Any) -> Iterator[Server]:
    """The server with an account whose password is SECRET."""
    user = f"u_{uuid.uuid4().hex[:12]}"
    servers.create_account(admin, user, SECRET)
    own = dataclasses.replace(server, user=user, password=SECRET)
    own.connect().close()  # MySQL remembers an account's first login, after which it needs no TLS
    yield own
    with admin.cursor() as cursor:
        cursor.execute("DROP USER %s@'%%'", (user,))


# What the server refuses


REFUSED_BY_THE_SERVER: dict[str, dict[str, Any]] = {
    "wrong password": {"password": f"not-{SECRET}"},
    "no password": {"password": ""},
    "unknown user": {"user": "nobody_of_this_name"},
    "unknown database": {"database": "no_such_database"},
    "unknown collation": {"collation": "no_such_collation"},
    "collation of another charset": {"charset": "utf8mb4", "collation": "latin1_bin"},
    "unknown sql_mode": {"sql_mode": "no_such_mode"},
    "bad init_command": {"init_command": "SELEKT 1"},
    "init_command for an unknown table": {"init_command": "SELECT * FROM no_such_table"},
}


@pytest.mark.parametrize("wrong", REFUSED_BY_THE_SERVER.values(), ids=REFUSED_BY_THE_SERVER)
def test_what_the_server_refuses(wrong: dict[str, Any], secretive: Server) -> None:
    kwargs = secretive.kwargs(**servers.transport(secretive.is_mariadb))
    assert_fails_as_pymysql(**kwargs | wrong, plain=kwargs | wrong, pool={"max_size": 1, "timeout": 0})
    assert_good_connect_works(secretive)


@pytest.mark.parametrize("wrong", ["password", "user", "database"])
def test_what_the_server_refuses_of_a_dsn(wrong: str, secretive: Server) -> None:
    kwargs = secretive.kwargs(**{wrong: f"{wrong}_that_is_wrong"}) | {"ssl_disabled": True}
    dsn = dataclasses.replace(secretive, **{wrong: kwargs[wrong]}).dsn(ssl_disabled=1)
    if wrong == "user" and not secretive.is_mariadb:
        pytest.skip("MySQL wants TLS, or an RSA library, of users that it does not know")
    if wrong == "password" and not secretive.is_mariadb:
        pytest.skip("MySQL wants TLS, or an RSA library, for a password that is not the remembered one")
    assert_fails_as_pymysql(dsn, plain=kwargs)
    assert_good_connect_works(secretive)


def test_locked_account(secretive: Server, admin: Any) -> None:
    with admin.cursor() as cursor:
        cursor.execute("ALTER USER %s@'%%' ACCOUNT LOCK", (secretive.user,))
    kwargs = secretive.kwargs(**servers.transport(secretive.is_mariadb))
    assert_fails_as_pymysql(**kwargs, plain=kwargs)


# What cannot be reached


def test_unknown_host(server: Server) -> None:
    kwargs = {"host": "host.invalid", "user": "u", "password": SECRET}
    assert_fails_as_pymysql(**kwargs, plain=kwargs)
    assert_fails_as_pymysql(f"mysql://u:{SECRET}@host.invalid", plain=kwargs)
    assert_good_connect_works(server)


def test_refused_port(server: Server) -> None:
    kwargs = {"host": HOST, "port": free_port(), "user": "u", "password": SECRET}
    assert_fails_as_pymysql(**kwargs, plain=kwargs)
    assert_fails_as_pymysql(f"mysql://u:{SECRET}@{HOST}:{kwargs['port']}", plain=kwargs)
    assert_good_connect_works(server)


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
def test_missing_unix_socket(tmp_path: Path) -> None:
    kwargs = {"unix_socket": str(tmp_path / "none.sock"), "user": "u", "password": SECRET}
    assert_fails_as_pymysql(**kwargs, plain=kwargs)


def test_bind_address_that_is_not_ours(server: Server) -> None:
    kwargs = server.kwargs(bind_address="192.0.2.1")
    assert_fails_as_pymysql(**kwargs, plain=kwargs)


# Servers that do not do their part


def packet(number: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "little") + bytes([number]) + payload


CLIENT_SSL = 0x800
CAPABILITIES = 0x81BFF7FF & ~CLIENT_SSL  # what a common server can do, TLS left out


def greeting(capabilities: int = CAPABILITIES) -> bytes:
    """Return the first packet of a server, as in the protocol's HandshakeV10."""
    return packet(
        0,
        b"\x0a8.0.0-fake\0"
        + (7).to_bytes(4, "little")
        + b"12345678\0"
        + (capabilities & 0xFFFF).to_bytes(2, "little")
        + b"\x2d\x02\0"
        + (capabilities >> 16).to_bytes(2, "little")
        + bytes([21])
        + bytes(10)
        + b"123456789012\0"
        + b"mysql_native_password\0",
    )


class FakeServer:
    """A listening socket; each connection to it is handled by `behave(socket, ended)` in a thread."""

    def __init__(self, behave: Callable[[socket.socket, threading.Event], None]) -> None:
        self.behave = behave
        self.ended = threading.Event()
        self.listener = socket.create_server((HOST, 0))
        self.port: int = self.listener.getsockname()[1]
        self.threads = [threading.Thread(target=self.accept, daemon=True)]

    def __enter__(self) -> Self:
        self.threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(10.0)
            assert not thread.is_alive()

    def accept(self) -> None:
        while not self.ended.is_set():
            try:
                client = self.listener.accept()[0]
            except OSError:
                return
            thread = threading.Thread(target=self.serve, args=(client,), daemon=True)
            self.threads.append(thread)
            thread.start()

    def serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.settimeout(10.0)
            self.behave(client, self.ended)


def say_nothing(_: socket.socket, ended: threading.Event) -> None:
    ended.wait(30.0)


def drip(client: socket.socket, data: bytes, ended: threading.Event) -> None:
    """Send a byte every 100 ms: each comes in time, all together do not."""
    for byte in data:
        client.sendall(bytes([byte]))
        if ended.wait(0.1):
            return


def drip_greeting(client: socket.socket, ended: threading.Event) -> None:
    drip(client, greeting(), ended)


def stall_in_authentication(client: socket.socket, ended: threading.Event) -> None:
    client.sendall(greeting())
    client.recv(1024)
    ended.wait(30.0)


def drip_authentication(client: socket.socket, ended: threading.Event) -> None:
    client.sendall(greeting())
    client.recv(1024)
    drip(client, packet(2, b"\xff\x15\x04#28000" + b"Access denied, told one letter at a time"), ended)


def stall_after_authentication(client: socket.socket, ended: threading.Event) -> None:
    client.sendall(greeting())
    client.recv(1024)
    client.sendall(packet(2, b"\0\0\0\x02\0\0\0"))
    client.recv(1024)  # SET NAMES
    ended.wait(30.0)


def drip_through_the_first_statements(client: socket.socket, ended: threading.Event) -> None:
    client.sendall(greeting())
    client.recv(1024)
    client.sendall(packet(2, b"\0\0\0\x02\0\0\0"))
    while client.recv(1024):
        drip(client, packet(1, b"\0\0\0\x02\0\0\0"), ended)


SILENT = {
    "never greets": say_nothing,
    "drips its greeting": drip_greeting,
    "stalls in authentication": stall_in_authentication,
    "drips in authentication": drip_authentication,
    "stalls after authentication": stall_after_authentication,
    "drips after authentication": drip_through_the_first_statements,
}


@pytest.mark.parametrize("behave", SILENT.values(), ids=SILENT)
def test_connect_timeout_bounds_the_whole_opening(behave: Any, server: Server) -> None:
    with FakeServer(behave) as fake, FakeServer(say_nothing) as silent:
        kwargs = {"host": HOST, "user": "u", "password": SECRET, "ssl_disabled": True}
        # PyMySQL's own connect_timeout ends before the greeting: its read_timeout tells what an end looks like.
        expected = failure_of_pymysql(**kwargs, port=silent.port, read_timeout=0.05)
        call = kwargs | {"port": fake.port, "connect_timeout": LIMIT, "pool": {"max_size": 1, "timeout": 0}}
        started = time.monotonic()
        error = failure(lambda: pooled_pymysql.connect(**call))
        took = time.monotonic() - started
        assert LIMIT - 0.05 <= took < LIMIT + SLACK
        assert type(error) is type(expected)
        assert error.args == expected.args
        assert SECRET not in texts(error)
        (pool,) = pooled_pymysql.pools()
        assert (pool.stats().in_use, pool.stats().opening, pool.stats().opened) == (0, 0, 0)
    gc.collect()  # a socket that was left open would warn
    assert_good_connect_works(server)


@pytest.mark.parametrize("stall", ["before", "in the middle"])
def test_connect_timeout_bounds_the_tls_handshake(stall: str) -> None:
    def behave(client: socket.socket, ended: threading.Event) -> None:
        client.sendall(greeting(CAPABILITIES | CLIENT_SSL))
        client.recv(1024)
        if stall == "before":
            ended.wait(30.0)
        else:  # a TLS record of 1,000 bytes
            drip(client, b"\x16\x03\x03\x03\xe8" + bytes(1000), ended)

    with FakeServer(behave) as fake:
        kwargs = {"host": HOST, "port": fake.port, "user": "u", "password": SECRET, "ssl": servers.unverified()}
        started = time.monotonic()
        error = failure(lambda: pooled_pymysql.connect(**kwargs, connect_timeout=LIMIT))
        assert LIMIT - 0.05 <= time.monotonic() - started < LIMIT + SLACK
        assert isinstance(error, pymysql.err.OperationalError)
        assert error.args[0] in (2003, 2013)
        assert SECRET not in texts(error)
        (pool,) = pooled_pymysql.pools()
        assert (pool.stats().in_use, pool.stats().opening) == (0, 0)
        # Not only the caller's wait, which the pool ends in any case.
        servers.wait_until(lambda: not opening_threads(), what="the end of the opening itself")
    gc.collect()


def hang_up(client: socket.socket, _: threading.Event) -> None:
    client.shutdown(socket.SHUT_RDWR)


def hang_up_after_greeting(client: socket.socket, _: threading.Event) -> None:
    client.sendall(greeting())
    client.recv(1024)


def too_many(client: socket.socket, _: threading.Event) -> None:
    client.sendall(packet(0, b"\xff\x10\x04Too many connections"))


def another_protocol(client: socket.socket, _: threading.Event) -> None:
    client.sendall(b"SSH-2.0-OpenSSH_9.2\r\n" * 4)


def refuse_in_authentication(client: socket.socket, _: threading.Event) -> None:
    client.sendall(greeting())
    client.recv(1024)
    client.sendall(packet(2, b"\xff\x15\x04#28000Access denied"))


BROKEN = {
    "hangs up": hang_up,
    "hangs up after its greeting": hang_up_after_greeting,
    "has too many connections": too_many,
    "refuses": refuse_in_authentication,
}


@pytest.mark.parametrize("behave", BROKEN.values(), ids=BROKEN)
def test_server_that_breaks_off(behave: Any) -> None:
    with FakeServer(behave) as fake:
        kwargs = {"host": HOST, "port": fake.port, "user": "u", "password": SECRET, "ssl_disabled": True}
        assert_fails_as_pymysql(**kwargs, plain=kwargs)
    gc.collect()


def test_server_of_another_protocol() -> None:
    with FakeServer(another_protocol) as fake:
        kwargs = {"host": HOST, "port": fake.port, "user": "u", "password": SECRET}
        assert_fails_as_pymysql(**kwargs, plain=kwargs)
    gc.collect()


def test_session_that_opened_in_time_has_no_limit_left(server: Server) -> None:
    with (
        pooled_pymysql.connect(**server.kwargs(connect_timeout=LIMIT)) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT SLEEP(%s)", (2 * LIMIT,))
        assert cursor.fetchone() == (0,)


# Arguments of the wrong kind


class Odd:
    """Something that is of no use as an argument."""

    def __repr__(self) -> str:
        return "Odd()"


BAD_ARGUMENTS: dict[str, dict[str, Any]] = {
    "port is text": {"port": "3306"},
    "port is a float": {"port": 3306.0},
    "port is a bool": {"port": True},
    "port is too large": {"port": 99999},
    "port is negative": {"port": -1},
    "host is a number": {"host": 5},
    "connect_timeout is 0": {"connect_timeout": 0},
    "connect_timeout is negative": {"connect_timeout": -1},
    "connect_timeout is too large": {"connect_timeout": 31536001},
    "connect_timeout is text": {"connect_timeout": "10"},
    "connect_timeout is None": {"connect_timeout": None},
    "read_timeout is 0": {"read_timeout": 0},
    "read_timeout is text": {"read_timeout": "5"},
    "write_timeout is 0": {"write_timeout": 0},
    "write_timeout is negative": {"write_timeout": -0.5},
    "charset is unknown": {"charset": "no_such_charset"},
    "charset is a number": {"charset": 5},
    "compress": {"compress": True},
    "named_pipe": {"named_pipe": True},
    "unknown argument": {"nonsense": 1},
    "misspelt argument": {"hots": "db"},
    "pool option as argument": {"max_size": 5},
    "conv is a number": {"conv": 5},
    "conv is text": {"conv": "abc"},
    "conv is a list": {"conv": [1, 2]},
    "client_flag is text": {"client_flag": "FOUND_ROWS"},
    "ssl is a number": {"ssl": 5},
    "ssl names a file that is not there": {"ssl": {"ca": "/no/such/file"}},
    "ssl_ca is not there": {"ssl_ca": "/no/such/file"},
    "ssl_cert is not there": {"ssl_cert": "/no/such/file", "ssl_key_password": SECRET},
    "ssl has a bad cipher": {"ssl": {"cipher": "no-such-cipher"}},
    "password is a number": {"password": 5},
    "password is an object": {"password": Odd()},
    "password has no latin1 form": {"password": "\N{SNOWMAN}"},
    "user is a number": {"user": 5},
    "database is a number": {"database": 5},
    "init_command is a number": {"init_command": 5},
    "init_command sets what is unknown": {"init_command": "SET sql_safe_updates=1, no_such_variable=1"},
    "the same without autocommit": {"init_command": "SET no_such_variable=1", "autocommit": None},
    "sql_mode is a number": {"sql_mode": 5.5},
    "unix_socket is a number": {"unix_socket": 5},
    "bind_address is a number": {"bind_address": 5},
    "program_name is a number": {"program_name": 5},
    "defer_connect and a bad port": {"defer_connect": True, "port": "3306"},
}


@pytest.mark.parametrize("wrong", BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_bad_argument_fails_as_in_pymysql(wrong: dict[str, Any], secretive: Server) -> None:
    kwargs = secretive.kwargs() | wrong
    assert_fails_as_pymysql(**kwargs, plain=kwargs, pool={"max_size": 1, "timeout": 0})
    gc.collect()
    assert_good_connect_works(secretive)


@pytest.mark.parametrize("wrong", [{"port": "3306"}, {"nonsense": 1}, {"charset": "x"}], ids=str)
def test_bad_argument_of_other_ways_in(wrong: dict[str, Any], secretive: Server) -> None:
    kwargs = secretive.kwargs() | wrong
    expected = failure_of_pymysql(**kwargs)
    for call in (
        lambda: pooled_pymysql.connect(secretive.dsn(), **wrong),
        lambda: pooled_pymysql.connect(**kwargs, pool=False),
        lambda: pooled_pymysql.Connection(**kwargs),
        lambda: pooled_pymysql.pool_for(**kwargs),
    ):
        error = failure(call)
        assert type(error) is type(expected)
        assert error.args == expected.args
        assert SECRET not in texts(error)
    assert pooled_pymysql.pools() == []


@pytest.mark.parametrize("pool", [None, {"max_size": 2}], ids=str)
def test_wrong_type_is_refused_after_an_equal_value_of_the_right_one(pool: Any, server: Server) -> None:
    for _ in range(2):
        assert_good_connect_works(server, pool=pool)
        error = failure(lambda: pooled_pymysql.connect(**server.kwargs(port=float(server.port), pool=pool)))
        assert type(error) is ValueError
        assert error.args == ("port should be of type int",)


def test_positional_arguments_are_refused(server: Server) -> None:
    for args in (("localhost", "root"), (server.dsn(), SECRET), (server.dsn(), "root", SECRET)):
        error = failure(lambda args=args: pooled_pymysql.connect(*args))
        assert isinstance(error, TypeError)
        assert SECRET not in texts(error)


# DSNs


@pytest.mark.parametrize(
    "dsn",
    [
        f"u:{SECRET}@db/shop",
        f"postgresql://u:{SECRET}@db/shop",
        f"mysql:/u:{SECRET}@db/shop",
        f"mysql://u:{SECRET}@db:33o6/shop",
        f"mysql://u:{SECRET}@db:0/shop",
        f"mysql://u:{SECRET}@[::1/shop",
        f"mysql://u:{SECRET}@[nonsense]/shop",
        f"mysql://u:a/{SECRET}@db/shop",
        f"mysql://u:a?{SECRET}@db/shop",
        f"mysql://u:a#{SECRET}@db/shop",
        f"mysql://u:{SECRET}%@db/shop",
        f"mysql://u:{SECRET}%zz@db/shop",
        f"mysql://u:{SECRET}%ff@db/shop",
        f"mysql://u:{SECRET} @db/shop",
        f"mysql://u:{SECRET}@db/shop?nonsense=1",
        f"mysql://u:{SECRET}@db/shop?charset",
        f"mysql://u:{SECRET}@db/shop?",
        f"mysql://u:{SECRET}@db/shop?connect_timeout=soon",
        f"mysql://u:{SECRET}@db/shop?pool_max_size=0",
        f"mysql://u:{SECRET}@db/shop?pool_max_size=many",
        f"mysql://u:{SECRET}@db/shop?pool_max_sise=5",
        f"mysql://u:{SECRET}@db/shop?conv=1",
        f"mysql://db/shop?user=u&password={SECRET}&{SECRET}",
        f"mysql://u:{SECRET}",
    ],
)
def test_malformed_dsn_is_refused_without_showing_the_password(dsn: str) -> None:
    for call in (
        lambda: pooled_pymysql.connect(dsn),
        lambda: pooled_pymysql.connect(dsn, pool=False),
        lambda: pooled_pymysql.connect(dsn, database="other", defer_connect=True),
        lambda: pooled_pymysql.pool_for(dsn),
    ):
        error = failure(call)
        assert type(error) is ValueError
        assert str(error).startswith("invalid DSN: ")
        assert SECRET not in texts(error)
        assert error.__cause__ is None
        assert error.__context__ is None or error.__suppress_context__
    assert pooled_pymysql.pools() == []


@pytest.mark.parametrize("dsn", [5, b"mysql://u:S3cr3t@db", ["mysql://u:S3cr3t@db"], {"host": "db"}, True], ids=str)
def test_dsn_that_is_no_text_is_a_type_error(dsn: Any) -> None:
    error = failure(lambda: pooled_pymysql.connect(dsn))
    assert type(error) is TypeError
    assert SECRET not in texts(error)


# Pool options


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"max_size": 0}, ValueError),
        ({"max_size": -1}, ValueError),
        ({"max_size": 1.5}, TypeError),
        ({"max_size": None}, TypeError),
        ({"max_size": True}, TypeError),
        ({"min_size": 2, "max_size": 1}, ValueError),
        ({"min_size": -1}, ValueError),
        ({"timeout": "30"}, TypeError),
        ({"timeout": float("nan")}, ValueError),
        ({"max_waiting": -1}, ValueError),
        ({"idle_timeout": -1}, ValueError),
        ({"max_lifetime": "1h"}, TypeError),
        ({"validate_after": -1}, ValueError),
        ({"reset": None}, TypeError),
        ({"one_write": 1}, TypeError),
        ({"name": ""}, ValueError),
        ({"nonsense": 1}, TypeError),
        ({"pool_size": 5}, TypeError),
        ({5: 5}, TypeError),
    ],
)
def test_bad_pool_option_is_refused_by_name(options: dict[Any, Any], kind: type[Exception], server: Server) -> None:
    for call in (
        lambda: pooled_pymysql.connect(**server.kwargs(password=SECRET), pool=options),
        lambda: pooled_pymysql.connect(server.dsn(), password=SECRET, pool=options),
        lambda: pooled_pymysql.pool_for(**server.kwargs(password=SECRET), pool=options),
    ):
        error = failure(call)
        assert type(error) is kind
        assert str(next(iter(options))) in str(error)
        assert SECRET not in texts(error)
    assert pooled_pymysql.pools() == []


@pytest.mark.parametrize("timeout", ["5", -1, float("nan"), object()], ids=str)
def test_bad_timeout_of_one_call_costs_no_room(timeout: Any, server: Server) -> None:
    kwargs = server.kwargs(pool={"max_size": 1, "timeout": 0})
    with pooled_pymysql.connect(**kwargs):
        (pool,) = pooled_pymysql.pools()
        for _ in range(2):
            failure(lambda: pool.acquire(timeout))
            assert (pool.stats().in_use, pool.stats().waiting) == (1, 0)
    assert_good_connect_works(server, pool={"max_size": 1, "timeout": 0})
