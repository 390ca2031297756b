"""Sessions under TLS: what must be as without it, what they share, and which certificates they go by."""

from __future__ import annotations

import contextlib
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import proxy as proxies
import pymysql
import pytest
from callers import PATIENCE, Caller, opening_threads
from certificates import Authority, CertifiedServer
from proxy import Link, Proxy
from pymysql.cursors import SSCursor
from servers import Server, unverified, wait_until

import pooled_pymysql

ROWS = "SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3"


@pytest.fixture(scope="session")
def server(tls_server: Server) -> Server:
    return tls_server


@pytest.fixture
def tls(account: Server) -> dict[str, Any]:
    """Connect arguments for one session under TLS, of an account of the test's own."""
    return account.kwargs(ssl=unverified(), pool={"max_size": 1, "timeout": PATIENCE})


def ask(connection: Any, sql: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


def only_pool() -> pooled_pymysql.Pool:
    (pool,) = pooled_pymysql.pools()
    return pool


def opened_and_closed() -> tuple[int, int]:
    stats = only_pool().stats()
    return stats.opened, sum(stats.closed.values())


class Allowing(Proxy):
    """A proxy that passes the server's bytes one by one, and no more of them than it was allowed to."""

    def __init__(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(server.host, server.port)
        monkeypatch.setattr(proxies, "CHUNK", 1)
        self._allowed: float = float("inf")

    def allow(self, count: float) -> None:
        """Let the server say so many more bytes, from now on, on all links together."""
        with self._state:
            self.clear()
            self._allowed = count
            self._state.notify_all()

    def wait_until_used_up(self) -> None:
        wait_until(lambda: self.bytes_to_client == self._allowed, what="the last allowed byte")

    def _count(self, link: Link, to_server: bool, data: bytes) -> None:
        with self._state:
            if not to_server:
                self._state.wait_for(lambda: self.bytes_to_client < self._allowed or link.closed or self._closing)
            super()._count(link, to_server, data)


@pytest.fixture
def allowing(account: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Allowing]:
    with Allowing(account, monkeypatch) as proxy:
        yield proxy
        proxy.allow(float("inf"))
        pooled_pymysql.close_pools()


# Alive or dead


def test_tickets_for_resumption_are_not_taken_for_the_end(tls: dict[str, Any], ids: Callable[[], set[int]]) -> None:
    """TLS 1.3 servers send them on their own; the socket must not be left readable by them."""
    with pooled_pymysql.connect(**tls) as lease:
        assert lease._sock.version() == "TLSv1.3"
        assert lease._sock.session.has_ticket
        number = lease.thread_id()
    for _ in range(20):
        with pooled_pymysql.connect(**tls) as lease:
            assert lease.thread_id() == number
    with pooled_pymysql.connect(**tls) as lease:
        time.sleep(0.001)  # else the first statement does not look again
        assert ask(lease, "SELECT CONNECTION_ID()") == number
    assert ids() == {number}
    assert opened_and_closed() == (1, 0)


def test_session_killed_while_idle_is_replaced_in_silence(
    tls: dict[str, Any], ids: Callable[[], set[int]], admin: Any
) -> None:
    with pooled_pymysql.connect(**tls) as lease:
        number = lease.thread_id()
        ask(lease, "SELECT 1")
    admin.kill(number)
    wait_until(lambda: not ids(), what="the end of the session")
    with pooled_pymysql.connect(**tls) as lease:
        assert ask(lease, "SELECT CONNECTION_ID()") not in (None, number)
    assert opened_and_closed() == (2, 1)


def test_session_killed_before_the_first_statement_is_replaced_in_silence(
    tls: dict[str, Any], ids: Callable[[], set[int]], admin: Any
) -> None:
    with pooled_pymysql.connect(**tls) as lease:
        number = lease.thread_id()
        admin.kill(number)
        wait_until(lambda: not ids(), what="the end of the session")
        assert ask(lease, "SELECT CONNECTION_ID()") not in (None, number)


def test_closing_ends_a_statement_of_another_thread(tls: dict[str, Any], admin: Any) -> None:
    lease = pooled_pymysql.connect(**tls)
    sleeper = Caller(lambda: lease.query("SELECT SLEEP(30)"))
    running = f"SELECT info LIKE '%SLEEP%' FROM information_schema.processlist WHERE id = {lease.thread_id()}"
    wait_until(lambda: ask(admin, running), what="the statement")
    lease.close()
    with pytest.raises(pymysql.err.OperationalError) as caught:
        sleeper.outcome()
    assert caught.value.args[0] == 2013
    with pooled_pymysql.connect(**tls) as lease:
        assert ask(lease, "SELECT 1") == 1


# Replies that are read later

DEEDS: dict[str, tuple[str, ...]] = {
    "reset": ("SET @a = 1, sql_mode = 'ANSI'",),
    "rollback that undoes nothing": ("BEGIN", "SELECT * FROM t"),
    "rollback": ("BEGIN", "INSERT INTO t VALUES (NULL)"),
    "insert id": ("INSERT INTO t VALUES (NULL)", "DELETE FROM t", "COMMIT"),
}


@pytest.fixture
def table(database: str, admin: Any) -> str:
    with admin.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {database}.t (id INT AUTO_INCREMENT PRIMARY KEY) ENGINE=InnoDB")
    return database


@pytest.mark.parametrize("deed", DEEDS.values(), ids=DEEDS)
def test_session_is_used_again_at_once(deed: tuple[str, ...], tls: dict[str, Any], table: str) -> None:
    kwargs = tls | {"database": table}
    numbers = set()
    for _ in range(20):
        with pooled_pymysql.connect(**kwargs) as lease, lease.cursor() as cursor:
            cursor.execute("SELECT CONNECTION_ID(), @a, @@sql_mode LIKE '%ANSI%', LAST_INSERT_ID(), COUNT(*) FROM t")
            number, *state = cursor.fetchone()
            assert state == [None, 0, 0, 0]
            numbers.add(number)
            for statement in deed:
                cursor.execute(statement)
    assert len(numbers) == 1
    assert opened_and_closed() == (1, 0)


@pytest.mark.parametrize("part", [0, 3, 5, 30], ids="{} bytes".format)
def test_reply_that_comes_in_parts_is_waited_for(part: int, tls: dict[str, Any], allowing: Allowing) -> None:
    """A part of a TLS record makes a socket readable that gives nothing to read."""
    kwargs = tls | {"port": allowing.port}
    lease = pooled_pymysql.connect(**kwargs)
    number = ask(lease, "SELECT CONNECTION_ID()")
    ask(lease, "SELECT @a := 1")
    allowing.allow(part)
    lease.close()
    allowing.wait_until_used_up()
    only_pool().tick()  # looks for replies and waits for nothing
    follower = Caller(lambda: pooled_pymysql.connect(**kwargs))
    wait_until(lambda: only_pool().stats().waiting or only_pool().stats().in_use, what="the next caller")
    follower.join(0.1)
    assert follower.is_alive()
    allowing.allow(float("inf"))
    with follower.outcome() as lease:
        assert (ask(lease, "SELECT CONNECTION_ID()"), ask(lease, "SELECT @a")) == (number, None)
    assert opened_and_closed() == (1, 0)


def test_result_that_comes_in_parts_is_read_whole(tls: dict[str, Any], allowing: Allowing) -> None:
    long = "x" * 2000
    with pooled_pymysql.connect(**tls | {"port": allowing.port}) as lease:
        for cursor_class in (pymysql.cursors.Cursor, SSCursor):
            with lease.cursor(cursor_class) as cursor:
                cursor.execute(f"SELECT 1, '{long}' UNION ALL SELECT 2, '{long}'")
                assert tuple(cursor.fetchall()) == ((1, long), (2, long))


def test_unread_result_is_out_of_the_way_of_the_next_lease(tls: dict[str, Any]) -> None:
    numbers = set()
    for _ in range(5):
        with pooled_pymysql.connect(**tls) as lease:
            numbers.add(ask(lease, "SELECT CONNECTION_ID()"))
            cursor = lease.cursor(SSCursor)
            cursor.execute(ROWS)
            assert cursor.fetchone() == (1,)
            del cursor
    assert len(numbers) == 1


# The whole opening ends in time


def bytes_of_an_opening(kwargs: dict[str, Any], proxy: Allowing) -> int:
    """Count what the server says until a session is open."""
    proxy.allow(float("inf"))
    pooled_pymysql.connect(**kwargs).close()
    count = proxy.bytes_to_client
    pooled_pymysql.close_pools()
    return count


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9], ids="after {:.0%}".format)
def test_connect_timeout_ends_an_opening_that_stalls(share: float, tls: dict[str, Any], allowing: Allowing) -> None:
    kwargs = tls | {"port": allowing.port, "pool": {"max_size": 1, "timeout": 0}}
    needed = bytes_of_an_opening(kwargs, allowing)
    allowing.allow(int(needed * share))
    started = time.monotonic()
    with pytest.raises(pymysql.err.OperationalError) as caught:
        pooled_pymysql.connect(**kwargs, connect_timeout=0.2)
    assert 0.15 <= time.monotonic() - started < 10.0
    assert caught.value.args[0] in (2003, 2013)
    stats = only_pool().stats()
    assert (stats.opening, stats.in_use, stats.opened) == (0, 0, 0)
    # Not only the caller, whom the pool lets go in any case.
    wait_until(lambda: not opening_threads(), what="the end of the opening itself")
    allowing.allow(float("inf"))
    with pooled_pymysql.connect(**kwargs) as lease:
        assert ask(lease, "SELECT 1") == 1


# Certificates


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> list[ssl.SSLContext]:
    """A list to which every context is added that PyMySQL builds."""
    built: list[ssl.SSLContext] = []
    build = ssl.create_default_context

    def noted(*args: Any, **kwargs: Any) -> ssl.SSLContext:
        time.sleep(0)  # lets another thread come in between
        built.append(build(*args, **kwargs))
        return built[-1]

    monkeypatch.setattr(ssl, "create_default_context", noted)
    return built


@pytest.fixture
def verifying(certified: CertifiedServer, tmp_path: Path) -> dict[str, Any]:
    """Connect arguments that verify the server's certificate against a file of the test's own."""
    file = tmp_path / "ca.pem"
    file.write_bytes(certified.authority.file.read_bytes())
    return certified.server.kwargs(ssl_ca=str(file), ssl_verify_cert=True, ssl_verify_identity=True)


@pytest.fixture
def foreign(tmp_path: Path) -> Authority:
    """An authority that the server knows nothing of."""
    return Authority(tmp_path / "foreign")


def test_one_context_serves_all_sessions_of_a_pool(verifying: dict[str, Any], contexts: list[ssl.SSLContext]) -> None:
    together = threading.Barrier(20)

    def lease() -> Any:
        together.wait(PATIENCE)
        return pooled_pymysql.connect(**verifying, pool={"opening_limit": 20})

    callers = [Caller(lease) for _ in range(20)]
    leases = [caller.outcome() for caller in callers]
    assert len({lease.thread_id() for lease in leases}) == 20
    assert all(ask(lease, "SHOW STATUS LIKE 'Ssl_cipher'") for lease in leases)
    assert len(contexts) == 1
    assert all(lease._sock.context is contexts[0] for lease in leases)
    for lease in leases:
        lease.close()


def test_pools_that_ask_for_nothing_special_share_one_context(account: Server, contexts: list[ssl.SSLContext]) -> None:
    """Unasked, PyMySQL 1.2 uses TLS where the server has it, and 1.1 does not."""
    leases = [pooled_pymysql.connect(**account.kwargs(program_name=name)) for name in ("a", "b", "c")]
    assert len(pooled_pymysql.pools()) == 3
    used = {getattr(lease._sock, "context", None) for lease in leases}
    assert len(used) == 1
    assert (used == {None}) == (pymysql.VERSION < (1, 2))
    assert len(contexts) <= 1
    for lease in leases:
        lease.close()


def rewrite(file: Path, content: bytes) -> None:
    file.write_bytes(content)


def replace(file: Path, content: bytes) -> None:
    new = file.with_suffix(".new")
    new.write_bytes(content)
    os.replace(new, file)


@contextlib.contextmanager
def refused() -> Iterator[None]:
    """Assert that a session cannot be opened, for a reason of TLS."""
    with pytest.raises(pymysql.err.OperationalError) as caught:
        yield
    # In TLS 1.3 a client has begun to talk before it learns that its own certificate is refused: 2006, 2013.
    assert caught.value.args[0] in (2003, 2006, 2013)


@pytest.mark.parametrize("rotate", [rewrite, replace])
def test_a_new_ca_file_is_used_for_the_next_session_that_is_opened(
    rotate: Callable[[Path, bytes], None],
    verifying: dict[str, Any],
    contexts: list[ssl.SSLContext],
    certified: CertifiedServer,
    foreign: Authority,
) -> None:
    # Of one session, lest a slow opening have another begun beside it.
    kwargs = verifying | {"pool": {"max_size": 1, "timeout": PATIENCE}}
    file = Path(verifying["ssl_ca"])
    first = pooled_pymysql.connect(**kwargs)
    number = first.thread_id()
    only_pool().resize(min_size=0, max_size=2)

    rotate(file, foreign.file.read_bytes())
    with refused():
        pooled_pymysql.connect(**kwargs)
    assert len(contexts) == 2

    # Sessions that are open stay.
    assert ask(first, "SELECT CONNECTION_ID()") == number
    first.close()
    with pooled_pymysql.connect(**kwargs) as lease:
        assert ask(lease, "SELECT CONNECTION_ID()") == number
        rotate(file, foreign.file.read_bytes() + certified.authority.file.read_bytes())
        with pooled_pymysql.connect(**kwargs) as second:
            assert ask(second, "SELECT CONNECTION_ID()") != number
            assert second._sock.context is contexts[-1]
    assert len(contexts) == 3
    assert len(pooled_pymysql.pools()) == 1


def test_a_new_client_certificate_is_used_for_the_next_session_that_is_opened(
    verifying: dict[str, Any],
    contexts: list[ssl.SSLContext],
    certified: CertifiedServer,
    foreign: Authority,
    tmp_path: Path,
) -> None:
    files = tmp_path / "client.pem", tmp_path / "client.key"

    def use(authority: Authority) -> None:
        for file, signed in zip(files, authority.sign("client"), strict=True):
            replace(file, signed.read_bytes())

    kwargs = verifying | {"user": "certified", "ssl_cert": str(files[0]), "ssl_key": str(files[1])}
    with certified.server.connect(autocommit=True) as admin, admin.cursor() as cursor:
        cursor.execute("CREATE USER certified@'%%' IDENTIFIED BY %s REQUIRE X509", (kwargs["password"],))
        cursor.execute("GRANT ALL PRIVILEGES ON *.* TO certified@'%'")
        try:
            use(foreign)
            with refused():
                pooled_pymysql.connect(**kwargs)
            use(certified.authority)
            with pooled_pymysql.connect(**kwargs) as lease:
                assert ask(lease, "SELECT CURRENT_USER()") == "certified@%"
            assert len(contexts) == 2
            with pooled_pymysql.connect(**kwargs) as lease:
                assert ask(lease, "SELECT CURRENT_USER()") == "certified@%"
            assert len(contexts) == 2
        finally:
            pooled_pymysql.close_pools()
            cursor.execute("DROP USER certified@'%'")


def test_files_that_stay_are_not_read_again(verifying: dict[str, Any], contexts: list[ssl.SSLContext]) -> None:
    for _ in range(3):
        with pooled_pymysql.connect(**verifying, pool={"max_size": 1}) as lease:
            assert ask(lease, "SELECT 1") == 1
        only_pool().drain()
    assert (only_pool().stats().opened, len(contexts)) == (3, 1)


VERIFIED: dict[str, Callable[[dict[str, Any], Authority], dict[str, Any]]] = {
    "right": lambda right, _: right,
    "another authority": lambda right, foreign: right | {"ssl_ca": str(foreign.file)},
    "another authority, not verified": lambda right, foreign: {
        **right, "ssl_ca": str(foreign.file), "ssl_verify_identity": False, "ssl_verify_cert": False
    },
    "another name": lambda right, _: right | {"host": "localhost"},
    "another name, not looked at": lambda right, _: right | {"host": "localhost", "ssl_verify_identity": False},
    "the name alone": lambda right, _: {**right, "ssl_verify_cert": None},  # to PyMySQL 1.1 a ValueError
    "no key": lambda right, foreign: right | {"ssl_cert": str(foreign.file)},
    "a file that is not there": lambda right, _: right | {"ssl_ca": "/no/such/file"},
    "as a dict": lambda right, _: right_as_dict(right),
    "a dict with another authority": lambda right, foreign: right_as_dict(right | {"ssl_ca": str(foreign.file)}),
}  # fmt: skip


def right_as_dict(right: dict[str, Any]) -> dict[str, Any]:
    without = {name: value for name, value in right.items() if not name.startswith("ssl")}
    return without | {"ssl": {"ca": right["ssl_ca"], "check_hostname": True}}


def outcome(connect: Callable[..., Any], kwargs: dict[str, Any]) -> object:
    """Connect and return the error's type and text, or whether TLS is used."""
    try:
        connection = connect(**kwargs)
    except (pymysql.Error, OSError, ValueError) as error:
        return type(error), error.args
    with connection:
        return bool(ask(connection, "SHOW STATUS LIKE 'Ssl_cipher'"))


@pytest.mark.parametrize("change", VERIFIED.values(), ids=VERIFIED)
def test_certificates_are_verified_as_in_pymysql(
    change: Callable[..., dict[str, Any]], verifying: dict[str, Any], foreign: Authority
) -> None:
    kwargs = change(verifying, foreign)
    plain = outcome(pymysql.connect, kwargs)
    assert [outcome(pooled_pymysql.connect, kwargs) for _ in range(2)] == [plain, plain]


def test_a_server_without_tls_is_refused_or_used_as_in_pymysql(main_server: Server) -> None:
    """PyMySQL 1.2 refuses what asked for TLS and does not get it; 1.1 goes on without."""
    kwargs = main_server.kwargs(ssl=unverified())
    assert outcome(pooled_pymysql.connect, kwargs) == outcome(pymysql.connect, kwargs)
