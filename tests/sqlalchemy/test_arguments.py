"""What the engine's arguments and the URL mean for the pool."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from proxy import Proxy
from servers import Server, transport
from sqlalchemy import create_engine, create_pool_from_url, engine_from_config, exc, text
from sqlalchemy.engine import make_url

import pooled_pymysql
from pooled_pymysql import PoolOptions
from pooled_pymysql.sqlalchemy import MariaDBDialect_pooled_pymysql, MySQLDialect_pooled_pymysql

RESET = 0x1F
MakeEngine = Callable[..., Any]
URL = "mysql+pooled_pymysql://app:secret@db.example/shop"


def options_of(engine: Any) -> PoolOptions:
    """Return the options of the pool that a connection is leased from."""
    engine.connect().close()
    (pool,) = engine.pool.pools()
    assert isinstance(pool.options, PoolOptions)
    return pool.options


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"max_size": 100, "timeout": 30.0, "max_lifetime": 3600.0, "validate_after": 30.0}),
        ({"pool_size": 7}, {"max_size": 17}),
        ({"max_overflow": 3}, {"max_size": 8}),
        ({"pool_size": 7, "max_overflow": 0}, {"max_size": 7}),
        ({"pool_size": 0}, {"max_size": 100_000}),
        ({"pool_size": 7, "max_overflow": -1}, {"max_size": 100_000}),
        ({"pool_timeout": 2.5}, {"timeout": 2.5}),
        ({"pool_timeout": None}, {"timeout": None}),
        ({"pool_recycle": 280}, {"max_lifetime": 280.0}),
        ({"pool_recycle": -1}, {"max_lifetime": None}),
        ({"pool_pre_ping": True}, {"validate_after": 0.0}),
        ({"pool_pre_ping": False}, {"validate_after": 30.0}),
        ({"pool_use_lifo": True}, {"max_size": 100}),
        ({"pool_logging_name": "orders"}, {"name": "orders"}),
    ],
    ids=str,
)
def test_engine_arguments_become_pool_options(
    make_engine: MakeEngine, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    options = options_of(make_engine(**given))
    assert {name: getattr(options, name) for name in expected} == expected


def test_defaults_of_the_process_hold(make_engine: MakeEngine) -> None:
    pooled_pymysql.configure(max_size=3, timeout=4)
    try:
        options = options_of(make_engine(pool_timeout=9))
    finally:
        pooled_pymysql.configure(max_size=100, timeout=30.0)
    assert (options.max_size, options.timeout) == (3, 9.0)


def test_pre_ping_finds_out_before_the_first_statement(make_engine: MakeEngine, proxy: Proxy) -> None:
    engine = make_engine(port=proxy.port, pool_pre_ping=True)
    engine.connect().close()
    proxy.clear()
    engine.connect().close()
    assert [code for code, _ in proxy.commands].count(RESET) == 1


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"pool_size": "5"}, TypeError, "pool_size takes an int, at least 0, not '5'"),
        ({"pool_size": -1}, ValueError, "pool_size takes an int, at least 0, not -1"),
        ({"max_overflow": -2}, ValueError, "max_overflow takes an int, at least -1, not -2"),
        ({"pool_timeout": -1}, ValueError, "pool option 'timeout' takes seconds"),
        ({"pool_recycle": "x"}, TypeError, "'<' not supported|pool option 'max_lifetime' takes seconds"),
        ({"max_size": 5}, TypeError, "Invalid argument"),
    ],
    ids=str,
)
def test_wrong_engine_arguments_are_told_at_once(given: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        create_engine(URL, **given)


def test_fifo_is_told_to_have_no_effect() -> None:
    with pytest.warns(exc.SAWarning, match="pool_use_lifo=False has no effect"):
        create_engine(URL, pool_use_lifo=False)


def test_engine_from_config(make_engine: MakeEngine) -> None:
    config = {
        "sqlalchemy.url": f"{URL}?pool_idle_timeout=5",
        "sqlalchemy.pool_size": "3",
        "sqlalchemy.max_overflow": "1",
        "sqlalchemy.pool_timeout": "2",
        "sqlalchemy.pool_recycle": "60",
        "sqlalchemy.pool_pre_ping": "false",
    }
    pool = engine_from_config(config).pool
    assert (pool.size(), pool.timeout()) == (4, 2.0)
    options = pool.options_for(None)
    assert (options.max_lifetime, options.idle_timeout, options.validate_after) == (60.0, 5.0, 30.0)


def test_a_pool_without_an_engine(account: Server) -> None:
    url = make_url(f"mysql+pooled_pymysql://{account.host}:{account.port}/{account.database}")
    url = url.set(username=account.user, password=account.password)
    pool = create_pool_from_url(url, pool_size=2, max_overflow=0, timeout=1, connect_args={"ssl_disabled": True})
    with closing(pool.connect()) as connection, connection.cursor() as cursor:
        assert cursor.execute("SELECT 1") == 1
    assert pool.size() == 2
    pool.dispose()


# Options of our own


def test_pool_options_in_the_url(make_engine: MakeEngine) -> None:
    options = options_of(make_engine("?pool_max_size=20&pool_timeout=none&pool_reset=always&pool_name=orders"))
    assert (options.max_size, options.timeout, options.reset, options.name) == (20, None, "always", "orders")


@pytest.mark.parametrize("given", [{"max_size": 6, "reset": "always"}, PoolOptions(max_size=6, reset="always")])
def test_pool_options_as_a_connect_argument(make_engine: MakeEngine, given: Any) -> None:
    options = options_of(make_engine("?pool_idle_timeout=5", connect_args={"pool": given}))
    assert (options.max_size, options.reset) == (6, "always")
    assert options.idle_timeout == (5.0 if isinstance(given, dict) else 600.0)  # PoolOptions are taken whole


def test_options_of_our_own_go_before_engine_arguments(make_engine: MakeEngine) -> None:
    with pytest.warns(
        exc.SAWarning, match="pool_size with max_overflow is not used, because the URL's pool option max_size=20"
    ):
        engine = make_engine("?pool_max_size=20", pool_size=5, pool_timeout=2)
    options = options_of(engine)
    assert (options.max_size, options.timeout) == (20, 2.0)
    engine.dispose()  # and is told once
    assert options_of(engine).max_size == 20


def test_saying_the_same_twice_is_no_reason_to_warn(make_engine: MakeEngine) -> None:
    assert options_of(make_engine("?pool_timeout=2", pool_timeout=2)).timeout == 2.0


@pytest.mark.parametrize("given", [{"timeout": 7}, PoolOptions(timeout=7)])
def test_connect_args_go_before_engine_arguments(make_engine: MakeEngine, given: Any) -> None:
    engine = make_engine(pool_timeout=2, connect_args={"pool": given})
    with pytest.warns(exc.SAWarning, match="pool_timeout is not used, because connect_args' pool option timeout=7"):
        engine.connect().close()
    assert options_of(engine).timeout == 7.0


# The URL


def arguments_of(query: str, dialect: type[MySQLDialect_pooled_pymysql] = MySQLDialect_pooled_pymysql) -> Any:
    made = dialect(dbapi=pooled_pymysql)  # type: ignore[no-untyped-call]
    _, arguments = made.create_connect_args(make_url(URL + query))
    return arguments


def test_the_query_is_read_as_a_dsns() -> None:
    arguments = arguments_of(
        "?charset=utf8mb4&autocommit=false&connect_timeout=2.5&read_timeout=none&local_infile=yes&client_flag=65536"
        "&pool_max_size=4&unix_socket=/tmp/s&program_name=a%26b"
    )
    assert arguments == {
        "host": "db.example",
        "user": "app",
        "password": "secret",
        "database": "shop",
        "charset": "utf8mb4",
        "autocommit": False,
        "connect_timeout": 2.5,
        "read_timeout": None,
        "local_infile": True,
        "client_flag": 65536 | 2,  # with FOUND_ROWS
        "unix_socket": "/tmp/s",
        "program_name": "a&b",
        "pool": {"max_size": 4},
    }


def test_found_rows_is_asked_for_by_both_dialects() -> None:
    for dialect in (MySQLDialect_pooled_pymysql, MariaDBDialect_pooled_pymysql):
        assert arguments_of("", dialect)["client_flag"] == 2


def test_tls_is_written_as_for_sqlalchemys_own_dialects() -> None:
    query = "?ssl_ca=/ca.pem&ssl_check_hostname=false"
    _, plain = make_url(URL.replace("pooled_", "") + query).get_dialect()().create_connect_args(make_url(URL + query))
    assert arguments_of(query)["ssl"] == plain["ssl"] == {"ca": "/ca.pem", "check_hostname": False}
    with_own = arguments_of("?ssl_ca=/ca.pem&ssl_verify_identity=true&ssl_verify_cert=true&ssl_key_password=x")
    assert with_own["ssl"] == {"ca": "/ca.pem", "check_hostname": True, "verify_mode": True, "password": "x"}
    assert arguments_of("?ssl_disabled=true")["ssl_disabled"] is True
    assert "ssl" not in arguments_of("?ssl_disabled=true")


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("?pool_max_sizes=1", r"invalid URL: parameter 'pool_max_sizes' is unknown \(did you mean 'pool_max_size'\?\)"),
        ("?pool_max_size=many", "invalid URL: parameter 'pool_max_size' takes an int, at least 1, not 'many'"),
        ("?pool_max_size=1&pool_max_size=2", "gives max_size a second time"),
        ("?cursorclass=x", "parameter 'cursorclass' has no text form"),
        ("?autocommit=maybe", "parameter 'autocommit' takes true"),
    ],
)
def test_wrong_urls_are_told_at_once(query: str, words: str) -> None:
    with pytest.raises(exc.ArgumentError, match=words):
        create_engine(URL + query)


def test_no_password_is_shown(make_engine: MakeEngine, account: Server) -> None:
    login = transport(account.is_mariadb) | {"password": "tell-nobody"}
    engine = make_engine("?pool_max_size=1", connect_args=login, pool_timeout=0)
    with pytest.raises(exc.OperationalError) as told:
        engine.connect()
    said = repr(engine) + repr(engine.pool) + engine.pool.status() + str(told.value) + repr(engine.pool.pools())
    assert "tell-nobody" not in said


PROVISIONING = """
import sys
from sqlalchemy.engine import make_url
for name in ("mysql", "mariadb"):
    sys.modules.pop("sqlalchemy.dialects.mysql.provision", None)
    make_url(name + "+pooled_pymysql://").get_dialect().load_provisioning()
    assert "sqlalchemy.dialects.mysql.provision" in sys.modules
"""


def test_provisioning_is_that_of_mysql() -> None:
    finished = subprocess.run(
        [sys.executable, "-c", PROVISIONING], capture_output=True, text=True, timeout=60, check=False
    )
    assert finished.returncode == 0, finished.stderr


def test_urls_find_the_dialects() -> None:
    assert make_url(URL).get_dialect() is MySQLDialect_pooled_pymysql
    mariadb = make_url(URL.replace("mysql+", "mariadb+")).get_dialect()
    assert mariadb is MariaDBDialect_pooled_pymysql
    assert mariadb().is_mariadb
    assert mariadb.import_dbapi() is pooled_pymysql
    assert text("SELECT 1").compile(dialect=mariadb()).string == "SELECT 1"
