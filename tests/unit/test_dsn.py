"""DSN text: what it means, and that nothing wrong with it ever shows a password."""

import inspect
import ipaddress
import string
import traceback
import warnings
from typing import Any
from urllib.parse import quote

import pymysql.connections
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import pooled_pymysql
from pooled_pymysql.dsn import SCHEMES, parse_dsn
from pooled_pymysql.options import OPTION_NAMES, PoolOptions

SECRET = "S3cr3t"
few = settings(max_examples=60, deadline=None)


def encoded(text: str) -> str:
    return quote(text, safe="")


def refused(dsn: str) -> str:
    """Return the text of the ValueError that `dsn` raises, which has no other exception behind it."""
    with pytest.raises(ValueError) as caught:
        parse_dsn(dsn)
    assert type(caught.value) is ValueError
    assert caught.value.__context__ is None
    assert str(caught.value).startswith("invalid DSN: ")
    return str(caught.value)


@pytest.mark.parametrize(
    ("dsn", "connect"),
    [
        ("mysql://", {}),
        ("mysql:///", {}),
        ("mysql://db", {"host": "db"}),
        ("mysql://db/", {"host": "db"}),
        ("MySQL://db", {"host": "db"}),
        ("mysql://db:3307", {"host": "db", "port": 3307}),
        ("mysql://:3307/", {"port": 3307}),
        ("mysql:///shop", {"database": "shop"}),
        ("mysql:///a%2Fb", {"database": "a/b"}),
        ("mysql://app@db", {"user": "app", "host": "db"}),
        ("mysql://app:@db", {"user": "app", "password": "", "host": "db"}),
        ("mysql://:pw@db", {"password": "pw", "host": "db"}),
        ("mysql://@db", {"host": "db"}),
        ("mysql://app:p%40ss@db/shop", {"user": "app", "password": "p@ss", "host": "db", "database": "shop"}),
        ("mysql://app:a+b%2Bc@db", {"user": "app", "password": "a+b+c", "host": "db"}),
        ("mysql://app:a:b%3Ac@db", {"user": "app", "password": "a:b:c", "host": "db"}),
        ("mysql://me@server:pw@db", {"user": "me@server", "password": "pw", "host": "db"}),
        ("mysql://app:p@ss@db", {"user": "app", "password": "p@ss", "host": "db"}),
        ("mysql://app:clé%C3%A9@db", {"user": "app", "password": "cléé", "host": "db"}),
        ("mysql://app:%00%0A%20@db", {"user": "app", "password": "\0\n ", "host": "db"}),
        ("mysql://app:%2525@db", {"user": "app", "password": "%25", "host": "db"}),
        ("mysql://[::1]", {"host": "::1"}),
        (
            "mysql://u@[fe80::1%25eth0]:3307/s",
            {"user": "u", "host": "fe80::1%eth0", "port": 3307, "database": "s"},
        ),
        (
            "mysql://u:p@/s?unix_socket=/run/my.sock",
            {"user": "u", "password": "p", "database": "s", "unix_socket": "/run/my.sock"},
        ),
        (
            "mysql:///?user=u&passwd=a%26b&db=s&port=7",
            {"user": "u", "password": "a&b", "database": "s", "port": 7},
        ),
    ],
)
def test_parts_are_found_and_decoded(dsn: str, connect: dict[str, object]) -> None:
    assert parse_dsn(dsn) == (connect, {})


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_means_the_same(scheme: str) -> None:
    assert parse_dsn(f"{scheme}://u@h/d") == ({"user": "u", "host": "h", "database": "d"}, {})


def test_schemes_are_the_documented_ones() -> None:
    assert set(SCHEMES) == {
        "mysql",
        "mysql+pymysql",
        "mysql+pooled_pymysql",
        "mariadb",
        "mariadb+pymysql",
        "mariadb+pooled_pymysql",
    }


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("charset", "utf8mb4", "utf8mb4"),
        ("init_command", "SET%20@a=1".replace("@", "%40"), "SET @a=1"),
        ("init_command", "SET+x", "SET+x"),
        ("client_flag", "2", 2),
        ("max_allowed_packet", "1048576", 1048576),
        ("connect_timeout", "5", 5),
        ("connect_timeout", "0.5", 0.5),
        ("read_timeout", "2e1", 20.0),
        ("write_timeout", "none", None),
        ("autocommit", "none", None),
        ("autocommit", "ON", True),
        ("autocommit", "0", False),
        ("local_infile", "yes", True),
        ("use_unicode", "false", False),
        ("defer_connect", "1", True),
        ("binary_prefix", "no", False),
        ("ssl_disabled", "true", True),
        ("ssl_verify_identity", "off", False),
        ("ssl_ca", "/etc/ca.pem", "/etc/ca.pem"),
        ("ssl_key_password", "a%20b", "a b"),
        ("ssl_key_password", "", ""),
        ("server_public_key", "-----BEGIN%0A", b"-----BEGIN\n"),
        ("program_name", "a=b", "a=b"),
    ],
)
def test_query_values_have_the_type_of_their_argument(name: str, text: str, value: object) -> None:
    connect, pool = parse_dsn(f"mysql://?{name}={text}")
    assert (connect, pool) == ({name: value}, {})
    assert type(connect[name]) is type(value)


def test_every_connect_argument_is_converted_or_refused_with_a_reason() -> None:
    for name in inspect.signature(pymysql.connections.Connection).parameters:
        try:
            connect, _ = parse_dsn(f"mysql://?{name}=1")
        except ValueError as error:
            assert "has no text form" in str(error) or "not supported by PyMySQL" in str(error)
        else:
            assert len(connect) == 1


def test_arguments_without_text_form_name_the_way_out() -> None:
    for name in ("conv", "cursorclass", "ssl", "auth_plugin_map"):
        assert "give it as a keyword argument" in refused(f"mysql://h?{name}=x")


def test_converted_arguments_are_taken_by_pymysql() -> None:
    dsn = (
        "mysql://u:p@h:3307/d?charset=utf8mb4&autocommit=none&connect_timeout=1.5&read_timeout=none&client_flag=2"
        "&ssl_disabled=on&local_infile=no&server_public_key=k&use_unicode=1&max_allowed_packet=1024&sql_mode=ANSI"
    )
    connect: Any = parse_dsn(dsn)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = pymysql.connections.Connection(**connect, defer_connect=True)
    assert (made.user, made.password, made.host, made.port, made.db) == ("u", b"p", "h", 3307, "d")


def test_pool_options_are_typed_and_apart() -> None:
    connect, pool = parse_dsn("mysql://h?pool_max_size=20&charset=utf8&pool_timeout=none&pool_one_write=no&pool_name=a")
    assert connect == {"host": "h", "charset": "utf8"}
    assert pool == {"max_size": 20, "timeout": None, "one_write": False, "name": "a"}


def test_every_pool_option_has_a_parameter() -> None:
    for name in OPTION_NAMES:
        value = getattr(PoolOptions(), name)
        assert parse_dsn(f"mysql://?pool_{name}={str(value).lower()}")[1] == {name: value}


@pytest.mark.parametrize(
    ("dsn", "says"),
    [
        ("", "must start with one of mysql://, mysql+pymysql://"),
        ("db", "must start with"),
        ("mysql:", "must start with"),
        ("mysql:/h", "must start with"),
        ("postgresql://h", "must start with"),
        ("mysql+mysqldb://h", "must start with"),
        ("mysql://h\n", "control character at position 9"),
        ("mysql://u:a b@h", "position 11"),
        ("mysql://u:a\u3000b@h", "position 11"),
        ("mysql://u:a\0b@h", "position 11"),
        ("mysql://u:a\ud800b@h", "surrogate"),
        ("mysql://u:a#b@h", "unencoded '#' at position 11"),
        ("mysql://h/d#part", "as %23"),
        ("mysql://u:%zz@h", "two hexadecimal digits"),
        ("mysql://u:a@h/%4", "two hexadecimal digits"),
        ("mysql://u:%@h", "written %25"),
        ("mysql://u:%FF@h", "password is not UTF-8"),
        ("mysql://%C3@h", "user is not UTF-8"),
        ("mysql://h?charset=%FF", "'charset' is not UTF-8"),
        ("mysql://h?%FF=1", "the name of parameter 1 of the query is not UTF-8"),
        ("mysql://u:a/b@h", "unencoded '@' after the first '/' or '?'"),
        ("mysql://u:a?b@h", "unencoded '@' after"),
        ("mysql://u:p@x/b@h/d", "unencoded '@' after"),
        ("mysql://u:p@h?init_command=SET%20@x=1", "'@' as %40"),
        ("mysql://h/a/b", "one database name"),
        ("mysql://h/a/", "one database name"),
        ("mysql://h?", "nothing follows"),
        ("mysql://h:", "must be a port from 1 to 65535"),
        ("mysql://h:0", "must be a port"),
        ("mysql://h:65536", "must be a port"),
        ("mysql://h:-1", "must be a port"),
        ("mysql://h:33o6", "must be a port"),
        ("mysql://h:3_3", "must be a port"),
        ("mysql://h:٣", "must be a port"),
        ("mysql://h:%33", "must be a port"),
        ("mysql://[::1]:x", "must be a port"),
        ("mysql://::1/d", "stands in brackets"),
        ("mysql://[::1", "may follow the ']'"),
        ("mysql://[::1]3306", "may follow the ']'"),
        ("mysql://[]", "must be an IPv6 address"),
        ("mysql://[1.2.3.4]", "must be an IPv6 address"),
        ("mysql://[db]", "must be an IPv6 address"),
        ("mysql://[fe80::1%25]", "must be an IPv6 address"),
        ("mysql://[fe80::1%40x]", "must be an IPv6 address"),
        ("mysql://a[1]", "a bracket in the host"),
        ("mysql://h]", "a bracket in the host"),
        ("mysql://a%20b", "host holds a blank"),
        ("mysql://a%00b", "host holds a control character"),
        ("mysql://u%00@h", "user holds a control character"),
        ("mysql://h/d%00", "database holds a control character"),
        ("mysql://h?charset", "parameter 1 of the query is not name=value"),
        ("mysql://h?charset=utf8&", "parameter 2 of the query is not name=value"),
        ("mysql://h?=x", "is not name=value"),
        ("mysql://h?charset=", "takes text"),
        ("mysql://h?chraset=utf8", "parameter 'chraset' is unknown (did you mean 'charset'?)"),
        ("mysql://h?pool_maxsize=2", "(did you mean 'pool_max_size'?)"),
        ("mysql://h?max_size=2", "(did you mean 'pool_max_size'?)"),
        ("mysql://h?charset=a&charset=a", "parameter 'charset' gives charset a second time"),
        ("mysql://h?pool_name=a&pool_name=b", "gives name a second time"),
        ("mysql://h/d?db=d", "parameter 'db' gives database a second time"),
        ("mysql://u:p@h?passwd=p", "gives password a second time"),
        ("mysql://h:1?port=2", "gives port a second time"),
        ("mysql://?port=0", "parameter 'port' takes a port from 1 to 65535, not '0'"),
        ("mysql://?client_flag=-1", "takes a whole number, at least 0, not '-1'"),
        ("mysql://?connect_timeout=0", "takes seconds, more than 0"),
        ("mysql://?connect_timeout=1e9", "at most a year"),
        ("mysql://?read_timeout=soon", "takes seconds, more than 0, or none, not 'soon'"),
        ("mysql://?local_infile=maybe", "takes true, yes, on, 1, false, no, off or 0, not 'maybe'"),
        ("mysql://?charset=a%0Ab", "without control characters"),
        ("mysql://?compress=1", "is not supported by PyMySQL"),
        ("mysql://?pool_max_size=0", "parameter 'pool_max_size' takes an int, at least 1, not '0'"),
        ("mysql://?pool_max_size=9e9", "parameter 'pool_max_size' takes"),
        ("mysql://?pool_reset=never", "takes 'auto', 'always' or 'rollback', not 'never'"),
    ],
)
def test_wrong_dsn_is_refused_with_a_clear_text(dsn: str, says: str) -> None:
    assert says in refused(dsn)


@pytest.mark.parametrize("value", [b"mysql://h", None, 5, ["mysql://h"], {"host": "h"}])
def test_what_is_not_text_is_a_type_error_that_shows_only_the_type(value: Any) -> None:
    with pytest.raises(TypeError, match=f"not {type(value).__name__}$"):
        parse_dsn(value)


def shown(error: BaseException) -> str:
    """Return all that logging or an uncaught error would show."""
    parts = ["".join(traceback.format_exception(error))]
    seen: BaseException | None = error
    while seen is not None:
        parts += [str(seen), repr(seen), repr(seen.args)]
        seen = seen.__context__ or seen.__cause__
    return "".join(parts)


def check_never_shown(dsn: str) -> None:
    try:
        parse_dsn(dsn)
    except ValueError as error:
        text = shown(error)
        assert SECRET not in text
        assert error.__context__ is None
        assert "urllib" not in text
        assert "ipaddress.py" not in text


# Characters that mean something to a DSN, raw or percent-encoded, between pieces of a password.
PITFALLS = st.lists(
    st.one_of(
        st.just(SECRET),
        st.sampled_from([*":/?#[]@%&=+;\\ \t\n\0", "%zz", "%4", "%ff", "%00", "%40", "://", "[::1]", "\ud800", "é"]),
        st.sampled_from(["password=", "pool_max_size=", "port=", "&charset=", "?user="]),
    ),
    max_size=8,
).map("".join)


@pytest.mark.parametrize(
    "dsn",
    [
        "mysql://u:{}@h/d",
        "mysql://u:{}@[::1]:1/d?charset=utf8&pool_max_size=2",
        "mysql://u:{}@h:x",
        "u:{}@h/d",
        "mysql://u:{}",
    ],
)
def test_password_with_any_character_unencoded_is_never_shown(dsn: str) -> None:
    for piece in [*map(chr, range(256)), "\ud800", "\u2028", "[::1", "%f", "://"]:
        check_never_shown(dsn.format(f"{piece}{SECRET}"))
        check_never_shown(dsn.format(f"a{piece}{SECRET}{piece}b"))


@few
@given(
    raw=PITFALLS,
    tail=st.sampled_from(["h", "h:3306", "h/d", "[::1]:1/d", "h?charset=x", "h?pool_max_size=0", "h?no=1", "h:x", "/"]),
)
@example(raw=f"a@x?{SECRET}=1", tail="h")
@example(raw=f"a@x/{SECRET}", tail="h")
def test_unencoded_password_is_never_shown_whatever_stands_round_it(raw: str, tail: str) -> None:
    check_never_shown(f"mysql://app:{raw}{SECRET}{raw}@{tail}")
    check_never_shown(f"mysql://{raw}:{SECRET}{raw}@{tail}")
    check_never_shown(f"app:{SECRET}{raw}@{tail}")


@few
@given(raw=PITFALLS, name=st.sampled_from(["password", "passwd", "ssl_key_password", "%70assword"]))
@example(raw="&charset=", name="password")
@example(raw="&pool_max_size=", name="password")
@example(raw="&", name="passwd")
def test_password_in_the_query_is_never_shown(raw: str, name: str) -> None:
    check_never_shown(f"mysql://h?pool_max_size=2&{name}={SECRET}{raw}{SECRET}&port=x")
    check_never_shown(f"mysql://h?{name}={raw}{SECRET}")
    check_never_shown(f"mysql://h?{name}=a&port={SECRET}")
    check_never_shown(f"mysql://h?{name}=a&{SECRET}=1")


DSN_LIKE = st.text(st.sampled_from(string.ascii_letters + string.digits + ":/?#[]@!$&'()*+,;=%._-~"))


@few
@given(st.one_of(st.text(), DSN_LIKE))
def test_any_text_is_parsed_or_a_value_error(text: str) -> None:
    for dsn in (text, f"mysql://{text}", f"mysql://u:p@h/{text}", f"mysql://?{text}", f"mysql://u@[{text}]"):
        try:
            connect, pool = parse_dsn(dsn)
        except ValueError as error:
            assert str(error).startswith("invalid DSN: ")
            assert error.__context__ is None
        else:
            assert isinstance(connect, dict)
            assert set(pool) <= set(OPTION_NAMES)


ANY = st.text(st.characters(exclude_categories=["Cs"]))
PLAIN = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)
HOSTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1),
    st.ip_addresses(v=4).map(str),
)


@few
@given(user=PLAIN, password=ANY, host=HOSTS, database=PLAIN, port=st.integers(1, 65535))
def test_what_quote_encoded_comes_back_exactly(user: str, password: str, host: str, database: str, port: int) -> None:
    dsn = f"mysql://{encoded(user)}:{encoded(password)}@{encoded(host)}:{port}/{encoded(database)}"
    assert parse_dsn(dsn)[0] == {
        "user": user,
        "password": password,
        "host": host,
        "port": port,
        "database": database,
    }


@few
@given(
    address=st.ip_addresses(v=6),
    zone=st.text(string.ascii_lowercase + string.digits, max_size=5),
    password=ANY,
)
def test_ipv6_addresses_come_back_exactly(address: ipaddress.IPv6Address, zone: str, password: str) -> None:
    suffix = f"%25{zone}" if zone else ""
    connect, _ = parse_dsn(f"mysql://u:{encoded(password)}@[{address}{suffix}]/d")
    assert connect["host"] == str(address) + (f"%{zone}" if zone else "")
    assert connect["password"] == password


@few
@given(value=PLAIN, password=ANY)
def test_query_values_that_quote_encoded_come_back_exactly(value: str, password: str) -> None:
    dsn = f"mysql://?init_command={encoded(value)}&password={encoded(password)}&program_name={encoded(value)}"
    assert parse_dsn(dsn)[0] == {"init_command": value, "password": password, "program_name": value}


@pytest.mark.parametrize("call", [pooled_pymysql.connect, pooled_pymysql.pool_for])
@pytest.mark.parametrize(
    ("dsn", "arguments"),
    [
        (f"mysql://u:{SECRET}@h:x", {}),
        (f"mysql://u:{SECRET}@h?pool_max_size=0", {}),
        (f"mysql://u:{SECRET}@h", {"pool": 5}),
        (f"mysql://u:{SECRET}@h", {"pool": {"max_size": 0}}),
        (f"mysql://u:{SECRET}@h", {"no_such_argument": 1}),
        ("mysql://h", {"password": SECRET, "port": "x"}),
    ],
)
def test_password_is_in_no_traceback_of_a_call_with_bad_arguments(call: Any, dsn: str, arguments: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        call(dsn, **arguments)
    assert SECRET not in shown(caught.value)
