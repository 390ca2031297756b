"""The server that integration tests share, and what each of them gets of its own."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import run_limit
import servers
from pymysql.connections import Connection
from servers import Server

if TYPE_CHECKING:
    from certificates import CertifiedServer

# Time limits for single examples fail at random on a busy machine; pytest-timeout bounds the whole test.
hypothesis.settings.register_profile(
    "project",
    parent=hypothesis.settings.get_profile(hypothesis.settings.get_current_profile_name()),
    deadline=None,
)
hypothesis.settings.load_profile("project")


THOROUGH = {
    "test_bad_input",
    "test_blocks",
    "test_demo",
    "test_fault_table",
    "test_fidelity",
    "test_fork",
    "test_greenlets",
    "test_load",
    "test_pymysqlpool_defects",
    "test_replies",
    "test_run_limit",
    "test_throwaway",
    "test_tls",
    "test_transfers",
}

# What depends neither on the interpreter's version nor on PyMySQL's.
ONCE = {"test_demo", "test_pymysqlpool_defects", "test_run_limit", "test_throwaway"}

# What the README's known gaps name.
UNFINISHED = {
    "test_fidelity": ("[init_query]",),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        module = item.path.stem
        if module in THOROUGH:
            item.add_marker(pytest.mark.thorough)
        if module in ONCE:
            item.add_marker(pytest.mark.once)
        if any(name in item.name for name in UNFINISHED.get(module, ())):
            item.add_marker(pytest.mark.unfinished)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--server-dsn",
        metavar="mysql://USER:PASSWORD@HOST:PORT/DATABASE",
        help="use this running server, whose account may do everything, instead of starting one",
    )


def pytest_configure(config: pytest.Config) -> None:
    run_limit.pytest_configure(config)


def pytest_unconfigure() -> None:
    if servers.guard.cache_info().currsize:
        servers.guard().close()
        servers.guard.cache_clear()


@pytest.fixture(scope="session")
def main_server(request: pytest.FixtureRequest) -> Server:
    """The server for integration tests, with its account for TCP connections."""
    if dsn := request.config.getoption("--server-dsn"):
        return servers.running_server(dsn)
    process = request.getfixturevalue("server_process")
    return servers.prepared_server(process.port, process.unixsocket)


@pytest.fixture(scope="session")
def server(main_server: Server) -> Server:
    """The server on which a test has its account and its database; tests of TLS put `tls_server` in its place."""
    return main_server


@pytest.fixture(scope="session")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CertifiedServer]:
    """A private server with TLS, whose certificate an authority of our own has signed."""
    from certificates import CertifiedServer

    with CertifiedServer(tmp_path_factory.mktemp("tls") / "server") as private:
        yield private


@pytest.fixture(scope="session")
def tls_server(main_server: Server, request: pytest.FixtureRequest) -> Server:
    """A server with TLS: the main one where that has it, else a private one. Nobody may know who signed for it."""
    if servers.has_tls(main_server):
        return main_server
    private: CertifiedServer = request.getfixturevalue("certified")
    return private.server


@pytest.fixture(scope="session")
def server_remains(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[subprocess.Popen[Any]]]:
    """Tidy up after pytest-mysql has stopped the server: what was set up first is torn down last."""
    processes: list[subprocess.Popen[Any]] = []
    yield processes
    for process in processes:
        if process.poll() is None:  # stopping it was interrupted
            process.kill()
            process.wait()
        servers.guard().release(process.pid)
    # pytest would keep the data of the last three runs, 50 MB each.
    for folder in tmp_path_factory.getbasetemp().glob("pytest-mysql-*"):
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def server_process(
    request: pytest.FixtureRequest,
    server_remains: list[subprocess.Popen[Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """pytest-mysql's server process, made to work for any user, with the options that our tests need."""
    options = servers.Programs.find().wrappers(tmp_path_factory.mktemp("programs"))
    options |= {"mysql_params": " ".join(servers.OPTIONS), "mysql_host": servers.HOST, "mysql_user": "root"}
    for name, value in options.items():
        if getattr(request.config.option, name) is None:
            setattr(request.config.option, name, value)
    process = request.getfixturevalue("mysql_proc")
    server_remains.append(process.process)
    servers.guard().hold(process.process.pid)
    return process


@pytest.fixture
def admin(server: Server) -> Iterator[Connection[Any]]:
    """A plain autocommit connection that may do everything, and waits for nothing longer than a test may take."""
    # Else DROP DATABASE would wait a day for the transaction of a test that failed in the middle of it.
    patience = {"init_command": "SET SESSION lock_wait_timeout = 15", "read_timeout": 45}
    with server.connect(autocommit=True, **patience) as connection:
        yield connection


@pytest.fixture
def database(admin: Connection[Any]) -> Iterator[str]:
    """The name of a new, empty database."""
    name = f"t_{uuid.uuid4().hex[:12]}"
    with admin.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
        yield name
        cursor.execute(f"DROP DATABASE IF EXISTS {name}")


@pytest.fixture
def account(server: Server, admin: Connection[Any]) -> Iterator[Server]:
    """The server with a new account that may do everything: its connections are this test's alone."""
    user = f"u_{uuid.uuid4().hex[:12]}"
    servers.create_account(admin, user, user)
    own = dataclasses.replace(server, user=user, password=user)
    own.connect().close()  # MySQL remembers an account's first login, after which it needs no TLS
    servers.wait_until(lambda: not servers.connection_ids(admin, user), what="the end of the first login")
    yield own
    with admin.cursor() as cursor:
        cursor.execute("DROP USER %s@'%%'", (user,))


@pytest.fixture
def connection_ids(server: Server, admin: Connection[Any]) -> Callable[[], set[int]]:
    """A function that lists the ids of the account's connections on the server, `admin` left out."""

    def list_ids(user: str = server.user) -> set[int]:
        return servers.connection_ids(admin, user)

    return list_ids


@pytest.fixture
def config(account: Server) -> dict[str, Any]:
    """Connect arguments of an account of the test's own."""
    return account.kwargs(ssl_disabled=True)


@pytest.fixture
def ids(account: Server, connection_ids: Callable[..., set[int]]) -> Callable[[], set[int]]:
    """A function that lists the account's connections on the server."""
    return lambda: connection_ids(account.user)


@pytest.fixture(autouse=True)
def no_pool_left() -> Iterator[None]:
    """End every pool with its test, so that no test meets another one's sessions."""
    yield
    package = sys.modules.get("pooled_pymysql")
    if close_pools := getattr(package, "close_pools", None):
        close_pools()
