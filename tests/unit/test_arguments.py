"""`PoolKey`: equal for calls that mean the same session, different for all others, and silent about passwords."""

import functools
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pymysql
import pymysql.connections
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymysql.constants import CLIENT
from pymysql.cursors import DictCursor, SSCursor

from pooled_pymysql.arguments import Arguments, PoolKey
from pooled_pymysql.options import PoolOptions

SECRET = "S3cr3t"
OPTIONS = PoolOptions()
few = settings(max_examples=40, deadline=None)


def key_of(options: PoolOptions = OPTIONS, **kwargs: Any) -> PoolKey:
    return Arguments(kwargs, options).key


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Say whether two calls have one key; asserts that its hash agrees."""
    one, other = key_of(**left), key_of(**right)
    assert one != other or hash(one) == hash(other)
    return one == other


class Plugin:
    """Stands for an authentication plugin."""


class OtherPlugin:
    """Stands for another one."""


def first_token() -> str:
    return "one"


def second_token() -> str:
    return "two"


CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ({"db": "shop"}, {"database": "shop"}),
        ({"db": "other", "database": "shop"}, {"database": "shop"}),
        ({"db": None}, {}),
        ({"passwd": SECRET}, {"password": SECRET}),
        ({"passwd": "other", "password": SECRET}, {"password": SECRET}),
        ({"password": SECRET}, {"password": SECRET.encode()}),
        ({"password": SECRET}, {"password": bytearray(SECRET, "ascii")}),
        ({"password": "pä"}, {"password": "pä".encode("latin1")}),
        ({"password": ""}, {"password": None}),
        ({"password": b""}, {}),
        ({"user": "app"}, {"user": b"app"}),
        ({"user": "ä"}, {"user": "ä".encode()}),
        ({"user": "ä", "charset": "latin1"}, {"user": b"\xe4", "charset": "latin1"}),
        ({"database": "shop"}, {"database": b"shop"}),
        ({"database": "ä", "charset": "latin1"}, {"database": b"\xe4", "charset": "latin1"}),
        ({"host": "localhost"}, {}),
        ({"host": None}, {"host": ""}),
        ({"port": 3306}, {}),
        ({"port": 0}, {}),
        ({"user": pymysql.connections.DEFAULT_USER}, {}),
        ({"charset": "utf8mb4"}, {}),
        ({"charset": ""}, {}),
        ({"autocommit": False}, {}),
        ({"autocommit": 0}, {"autocommit": False}),
        ({"autocommit": 1}, {"autocommit": True}),
        ({"local_infile": 1}, {"local_infile": True}),
        ({"client_flag": 0}, {}),
        ({"ssl": None}, {}),
        ({"ssl": {}}, {}),
        ({"ssl_disabled": 1}, {"ssl_disabled": True}),
        ({"ssl_disabled": False}, {}),
        ({"ssl": {"ca": None, "verify_mode": None}}, {"ssl": {"verify_mode": None, "ca": None}}),
        ({"ssl": CONTEXT}, {"ssl": CONTEXT}),
        ({"auth_plugin_map": {}}, {}),
        ({"auth_plugin_map": {"a": Plugin, "b": Plugin}}, {"auth_plugin_map": {"b": Plugin, "a": Plugin}}),
        ({"password": first_token}, {"passwd": first_token}),
        ({"user": "a", "host": "b", "port": 7}, {"port": 7, "host": "b", "user": "a"}),
    ],
)
def test_calls_that_mean_the_same_have_one_key(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert same(left, right)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ({"password": "a"}, {"password": "b"}),
        ({"password": "a"}, {"password": "A"}),
        ({"password": "a"}, {"password": b"a "}),
        ({"password": "a"}, {"password": ""}),
        ({"password": first_token}, {"password": second_token}),
        ({"password": first_token}, {"password": "one"}),
        ({"user": "app"}, {"user": "App"}),
        ({"user": "ä", "charset": "latin1"}, {"user": "ä".encode(), "charset": "latin1"}),
        ({"user": "app"}, {}),
        ({"host": "db"}, {}),
        ({"host": "127.0.0.1"}, {"host": "localhost"}),
        ({"port": 3307}, {}),
        ({"unix_socket": "/a"}, {"unix_socket": "/b"}),
        ({"unix_socket": "/a"}, {}),
        ({"bind_address": "127.0.0.1"}, {}),
        ({"database": "shop"}, {}),
        ({"database": "shop"}, {"database": "Shop"}),
        ({"charset": "latin1"}, {}),
        ({"charset": "utf8"}, {}),
        ({"collation": "utf8mb4_bin"}, {}),
        ({"sql_mode": "ANSI"}, {}),
        ({"sql_mode": ""}, {}),
        ({"init_command": "SET @a = 1"}, {}),
        ({"init_command": "SET @a = 1"}, {"init_command": "SET @a = 2"}),
        ({"autocommit": True}, {}),
        ({"autocommit": None}, {}),
        ({"client_flag": CLIENT.FOUND_ROWS}, {}),
        ({"client_flag": CLIENT.MULTI_STATEMENTS}, {"client_flag": CLIENT.FOUND_ROWS}),
        ({"local_infile": True}, {}),
        ({"program_name": "shop"}, {}),
        ({"program_name": "shop"}, {"program_name": "shoq"}),
        ({"server_public_key": b"key"}, {}),
        ({"auth_plugin_map": {"a": Plugin}}, {}),
        ({"auth_plugin_map": {"a": Plugin}}, {"auth_plugin_map": {"b": Plugin}}),
        ({"auth_plugin_map": {"a": Plugin}}, {"auth_plugin_map": {"a": OtherPlugin}}),
        ({"ssl": {"verify_mode": True}}, {"ssl": {"verify_mode": 1}}),
        ({"ssl": {"verify_mode": "none"}}, {"ssl": {"verify_mode": "required"}}),
        ({"ssl": {"ca": "/a"}}, {"ssl": {"ca": "/b"}}),
        ({"ssl": {"cipher": "AES128-SHA"}}, {"ssl": {"cipher": "AES256-SHA"}}),
        ({"ssl": {"password": "a"}}, {"ssl": {"password": "b"}}),
        ({"ssl": {"check_hostname": False}}, {"ssl": {"check_hostname": True}}),
        ({"ssl": {"check_hostname": False}}, {}),
        ({"ssl_ca": "/a"}, {"ssl_ca": "/b"}),
        ({"ssl_ca": "/a", "ssl_verify_cert": True}, {"ssl_ca": "/a", "ssl_verify_cert": 1}),
        ({"ssl_ca": "/a", "ssl_verify_cert": True}, {"ssl_ca": "/a", "ssl_verify_cert": False}),
        ({"ssl_ca": "/a", "ssl_verify_identity": True}, {"ssl_ca": "/a", "ssl_verify_identity": False}),
        ({"ssl_key": "/k", "ssl_key_password": "a"}, {"ssl_key": "/k", "ssl_key_password": "b"}),
        ({"ssl": CONTEXT}, {"ssl": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)}),
        ({"ssl": CONTEXT}, {"ssl": {"check_hostname": False}}),
    ],
)
def test_calls_that_mean_different_sessions_have_different_keys(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert not same(left, right)


def test_no_tls_is_not_the_default_where_tls_is_the_default() -> None:
    assert same({"ssl_disabled": True}, {}) is (pymysql.VERSION < (1, 2))


@pytest.mark.parametrize(
    "of_the_lease",
    [
        {"cursorclass": DictCursor},
        {"cursorclass": SSCursor},
        {"conv": {}},
        {"conv": {10: str}},
        {"read_timeout": 5},
        {"write_timeout": 5.5},
        {"connect_timeout": 3},
        {"use_unicode": False},
        {"max_allowed_packet": 1024},
        {"binary_prefix": True},
        {"defer_connect": True},
    ],
    ids=str,
)
def test_what_concerns_one_lease_only_is_not_in_the_key(of_the_lease: dict[str, Any]) -> None:
    assert same(of_the_lease, {})


def test_pool_options_are_in_the_key() -> None:
    assert key_of() == key_of(PoolOptions())
    assert key_of() != key_of(PoolOptions(max_size=99))
    assert key_of(PoolOptions(name="a")) != key_of(PoolOptions(name="b"))


SHAPING = {
    "host": st.sampled_from(["db", "10.0.0.1", "::1"]),
    "port": st.integers(1, 65535),
    "user": st.text("abcä", min_size=1, max_size=3),
    "password": st.text("abcä", min_size=1, max_size=3),
    "database": st.text("abcä", min_size=1, max_size=3),
    "charset": st.sampled_from(["utf8", "latin1", "gbk"]),
    "autocommit": st.sampled_from([True, None]),
    "sql_mode": st.sampled_from(["", "ANSI"]),
    "init_command": st.sampled_from(["DO 1", "DO 2"]),
    "program_name": st.text("ab", min_size=1),
    "ssl": st.fixed_dictionaries({}, optional={"ca": st.sampled_from("ab"), "verify_mode": st.booleans()}),
}
OF_THE_LEASE = {
    "cursorclass": st.sampled_from([DictCursor, SSCursor]),
    "read_timeout": st.integers(1, 9),
    "write_timeout": st.integers(1, 9),
    "connect_timeout": st.integers(1, 9),
    "use_unicode": st.booleans(),
}
shaping = st.fixed_dictionaries({}, optional=SHAPING)


@few
@given(call=shaping, lease=st.fixed_dictionaries({}, optional=OF_THE_LEASE), data=st.data())
def test_spelling_and_order_do_not_matter(call: dict[str, Any], lease: dict[str, Any], data: Any) -> None:
    other = call | lease
    for name, alias in (("database", "db"), ("password", "passwd")):
        if name in other and data.draw(st.booleans()):
            other[alias] = other.pop(name)
    for name in ("password", "passwd"):
        if name in other and data.draw(st.booleans()):
            other[name] = other[name].encode("latin1")
    assert same(call, dict(data.draw(st.permutations(list(other.items())))))


@few
@given(call=shaping, data=st.data())
def test_every_argument_that_shapes_the_session_matters(call: dict[str, Any], data: Any) -> None:
    name = data.draw(st.sampled_from(sorted(SHAPING)))
    other = call | {name: data.draw(SHAPING[name])}
    defaults = {"ssl": {}, "port": 3306, "autocommit": False}
    alike = call.get(name, defaults.get(name)) == other[name]
    assert same(call, other) is alike


@few
@given(password=st.text("abcä", min_size=1), other=st.text("abcä", min_size=1))
def test_another_password_is_another_key(password: str, other: str) -> None:
    assert same({"password": password}, {"password": other.encode("latin1")}) is (password == other)


# Passwords


@dataclass
class UnhashableToken:
    """A callable without a hash, which dataclasses are by default."""

    token: str

    def __call__(self) -> str:
        return self.token


@pytest.mark.parametrize(
    "source", [lambda: "token", functools.partial(str, "token"), UnhashableToken("token").__call__]
)
def test_callable_password_is_held_and_not_called(source: Callable[[], str]) -> None:
    arguments = Arguments({"password": source}, OPTIONS)
    assert arguments.password is source
    assert key_of(password=source) == arguments.key
    hash(arguments.key)


def test_callable_password_needs_no_hash() -> None:
    source = UnhashableToken("token")
    assert {key_of(password=source): 1}[key_of(password=source)] == 1
    assert key_of(password=source) != key_of(password=UnhashableToken("other"))


def test_password_that_changes_later_does_not_change_the_key() -> None:
    password = bytearray(b"secret")
    key = key_of(password=password)
    password[:] = b"\0\0\0\0\0\0"
    assert key == key_of(password="secret")


@pytest.mark.parametrize(
    "secrets",
    [
        {"password": SECRET},
        {"password": SECRET.encode()},
        {"passwd": SECRET},
        {"ssl": {"password": SECRET, "check_hostname": False}},
        {"ssl_key": "/k", "ssl_key_password": SECRET},
        {"password": functools.partial(str, SECRET)},
        {"password": UnhashableToken(SECRET).__call__},
    ],
    ids=str,
)
def test_no_text_of_a_key_shows_a_password(secrets: dict[str, Any]) -> None:
    arguments = Arguments({"user": "app", "database": "shop"} | secrets, OPTIONS)
    key = arguments.key
    texts = [repr(key), str(key), f"{key}", f"{key!r:>99}", "%s %r" % (key, key), key.address]  # noqa: UP031
    texts += [repr({key: [key]}), repr(arguments), str(arguments), repr(KeyError(key))]
    assert SECRET not in "".join(texts)
    assert "app@localhost:3306/shop" in repr(key)


def test_key_names_what_it_stands_for() -> None:
    assert key_of(user=b"app", host="db", port=7, database=b"shop").address == "app@db:7/shop"
    assert key_of(user="app", unix_socket="/run/s.sock").address == "app@/run/s.sock/"


# What the caller passes stays the caller's


def test_arguments_of_the_caller_are_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "my.cnf"
    file.write_text("[client]\nssl-cipher = AES128-SHA\n")
    tls: dict[str, Any] = {"check_hostname": False}
    kwargs = {"db": "shop", "passwd": SECRET, "ssl": tls, "read_default_file": str(file), "defer_connect": True}
    before = dict(kwargs)
    key = key_of(**kwargs)
    assert kwargs == before
    assert tls == {"check_hostname": False}
    tls["check_hostname"] = True
    assert key != key_of(**kwargs)


# Option files


def write_option_file(path: Path, **values: str) -> None:
    """Write an option file that no stat takes for the one before."""
    path.write_text("\n".join(["[client]", *(f"{name} = {value}" for name, value in values.items())]))
    status = path.stat()
    write_option_file.writes += 1  # type: ignore[attr-defined]
    later = status.st_mtime_ns + write_option_file.writes * 10**9  # type: ignore[attr-defined]
    os.utime(path, ns=(later, later))


write_option_file.writes = 0  # type: ignore[attr-defined]


def test_option_file_means_what_it_says(tmp_path: Path) -> None:
    file = tmp_path / "my.cnf"
    write_option_file(file, user="app", password=SECRET, host="db", port="7", database="shop")
    spelled = {"user": "app", "password": SECRET, "host": "db", "port": 7, "database": "shop"}
    assert same({"read_default_file": str(file)}, spelled)
    assert same({"read_default_file": str(file), "user": "root"}, spelled | {"user": "root"})


def test_rewritten_option_file_changes_the_key(tmp_path: Path) -> None:
    file = tmp_path / "my.cnf"
    write_option_file(file, user="app", password="old")
    old = Arguments({"read_default_file": str(file)}, OPTIONS)
    assert old.is_current()
    write_option_file(file, user="app", password="new")
    assert not old.is_current()
    new = Arguments({"read_default_file": str(file)}, OPTIONS)
    assert new.is_current()
    assert old.key != new.key
    assert new.key == key_of(user="app", password="new")


@pytest.mark.parametrize("change", ["same length, later", "replaced", "removed", "created"])
def test_any_change_of_an_option_file_is_noticed(tmp_path: Path, change: str) -> None:
    file = tmp_path / "my.cnf"
    if change != "created":
        write_option_file(file, user="aaa")
    arguments = Arguments({"read_default_file": str(file)}, OPTIONS)
    assert arguments.is_current()
    if change == "removed":
        file.unlink()
    elif change == "replaced":
        status = file.stat()
        other = tmp_path / "other.cnf"
        other.write_text(file.read_text().replace("aaa", "bbb"))
        os.utime(other, ns=(status.st_mtime_ns, status.st_mtime_ns))
        other.replace(file)
    else:
        write_option_file(file, user="bbb")
    assert not arguments.is_current()


def test_option_file_is_found_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_option_file(tmp_path / "my.cnf", user="app")
    arguments = Arguments({"read_default_file": "~/my.cnf"}, OPTIONS)
    assert arguments.key == key_of(user="app")
    write_option_file(tmp_path / "my.cnf", user="other")
    assert not arguments.is_current()


def test_calls_without_option_file_are_always_current() -> None:
    assert Arguments({}, OPTIONS).is_current()


# Conversions belong to one lease


def test_conversions_are_copies_split_as_pymysql_splits_them() -> None:
    plain = pymysql.connections.Connection(defer_connect=True)
    arguments = Arguments({}, OPTIONS)
    encoders, decoders = arguments.conversions(None)
    assert (encoders, decoders) == (plain.encoders, plain.decoders)
    encoders.clear()
    decoders.clear()
    assert arguments.conversions(None) == (plain.encoders, plain.decoders)


def test_conversions_follow_the_table_that_is_given() -> None:
    arguments = Arguments({}, OPTIONS)
    table: dict[Any, Any] = {1: str, str: repr}
    assert arguments.conversions(table) == ({str: repr}, {1: str})
    table[2] = int
    assert arguments.conversions(table) == ({str: repr}, {1: str, 2: int})
    assert arguments.conversions({}) == ({}, {})


def test_conversions_follow_what_is_added_to_pymysqls_table(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = Arguments({}, OPTIONS)
    arguments.conversions(None)
    monkeypatch.setitem(pymysql.converters.conversions, Plugin, repr)
    assert arguments.conversions(None)[0][Plugin] is repr
