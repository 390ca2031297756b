"""Parse a DSN into PyMySQL's connect arguments and pool options.

The grammar is RFC 3986's, read strictly, because a DSN holds a password and guessing could send a part of it
to a host that the author never meant, or show it in an error text:

    scheme "://" [user [":" password] "@"] [host] [":" port] ["/" [database]] ["?" name "=" value *("&" ...)]

- Every part is percent-decoded as UTF-8 and nothing else: "+" is a plus sign, in the query as well.
- User and password end at the last "@" of the authority, and the first ":" divides them. "/", "?" and "#" in
  them must be percent-encoded. After the authority no "@" may stand unencoded, so that a password with "/" or
  "?" is noticed instead of cut in two.
- What is not written is absent from the result. "user:@host" gives an empty password; an empty user is
  absent.
- An error says what is wrong, and never shows what may be a part of the password. It is always a ValueError
  raised here, without another exception as its context.
"""

import ipaddress
import re
from collections.abc import Callable
from typing import NamedTuple, NoReturn
from urllib.parse import unquote_to_bytes

from .options import (
    OPTION_NAMES,
    from_text,
    parse_flag,
    parse_integer,
    parse_number,
    suggest,
)

__all__ = ["SCHEMES", "parse_dsn"]

SCHEMES = tuple(
    database + driver for database in ("mysql", "mariadb") for driver in ("", "+pymysql", "+pooled_pymysql")
)

_POOL_PREFIX = "pool_"
_LONGEST_CONNECT_TIMEOUT = 31_536_000  # PyMySQL's own bound, in seconds
# "\s" is what str.isspace() says, for text.
_NEVER_RAW = re.compile(r"[\s\x00-\x1f\x7f-\x9f#\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_BLANK = re.compile(r"\s")
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PORT = re.compile(r"[0-9]{1,5}")
_ZONED_ADDRESS = re.compile(r"([0-9A-Fa-f:.]+)(?:%25(.+))?")

_ENCODE_HINT = "percent-encode it in user, password, database and values"


class _Argument(NamedTuple):
    """What one connect argument takes in a query; `parse` returns None for text that is no such value."""

    takes: str
    parse: Callable[[str], object]
    optional: bool = False  # the word "none" is None
    secret: bool = False
    may_be_empty: bool = False


def _parse_seconds(text: str) -> int | float | None:
    seconds = parse_number(text)
    return seconds if seconds is not None and seconds > 0 else None


def _parse_connect_timeout(text: str) -> int | float | None:
    seconds = _parse_seconds(text)
    return seconds if seconds is not None and seconds <= _LONGEST_CONNECT_TIMEOUT else None


def _parse_count(text: str) -> int | None:
    count = parse_integer(text)
    return count if count is not None and count >= 0 else None


def _parse_port(text: str) -> int | None:
    # Not 0 either: PyMySQL takes it for "not given", which a DSN says by leaving the port out.
    port = int(text) if _PORT.fullmatch(text) else 0
    return port if 1 <= port <= 65535 else None


def _parse_plain(text: str) -> str | None:
    """Return `text` unless it holds control characters, which would end a field early in the handshake."""
    return None if _CONTROL.search(text) else text


_PORT_TAKES = "a port from 1 to 65535"
_text = _Argument("text without control characters", _parse_plain)
_free_text = _Argument("text", str)
_secret = _Argument("text", str, secret=True, may_be_empty=True)
_flag = _Argument("true, yes, on, 1, false, no, off or 0", parse_flag)
_count = _Argument("a whole number, at least 0", _parse_count)
_optional_seconds = _Argument("seconds, more than 0, or none", _parse_seconds, optional=True)

_ARGUMENTS: dict[str, _Argument] = {
    "user": _text,
    "password": _secret,
    "host": _text,
    "database": _text,
    "port": _Argument(_PORT_TAKES, _parse_port),
    "unix_socket": _text,
    "charset": _text,
    "collation": _text,
    "sql_mode": _text,
    "init_command": _free_text,
    "read_default_file": _text,
    "read_default_group": _text,
    "use_unicode": _flag,
    "client_flag": _count,
    "connect_timeout": _Argument("seconds, more than 0, at most a year", _parse_connect_timeout),
    "read_timeout": _optional_seconds,
    "write_timeout": _optional_seconds,
    "autocommit": _Argument(f"{_flag.takes}, or none", parse_flag, optional=True),
    "local_infile": _flag,
    "max_allowed_packet": _count,
    "defer_connect": _flag,
    "bind_address": _text,
    "binary_prefix": _flag,
    "program_name": _text,
    "server_public_key": _Argument("text", str.encode),
    "ssl_ca": _text,
    "ssl_cert": _text,
    "ssl_disabled": _flag,
    "ssl_key": _text,
    "ssl_key_password": _secret,
    "ssl_verify_cert": _flag,
    "ssl_verify_identity": _flag,
}
_ALIASES = {"db": "database", "passwd": "password"}
_REFUSED = {
    "conv": "has no text form: give it as a keyword argument",
    "cursorclass": "has no text form: give it as a keyword argument",
    "ssl": "has no text form: give it as a keyword argument, or use ssl_ca and its like",
    "auth_plugin_map": "has no text form: give it as a keyword argument",
    "compress": "is not supported by PyMySQL",
    "named_pipe": "is not supported by PyMySQL",
}
_KNOWN_NAMES = (*_ARGUMENTS, *_ALIASES, *(_POOL_PREFIX + name for name in OPTION_NAMES))


def parse_dsn(text: str) -> tuple[dict[str, object], dict[str, object]]:
    """Return the connect arguments and the pool options that a DSN gives, each with the type it needs.

    The arguments have PyMySQL's names, never the deprecated `db` and `passwd`; the options are those of
    `PoolOptions`, each valid by itself. Raises TypeError for anything but text, ValueError for a wrong DSN.
    """
    if not isinstance(text, str):
        raise TypeError(f"a DSN is text (str), not {type(text).__name__}")
    _check_characters(text)
    scheme, separator, rest = text.partition("://")
    if not separator or scheme.lower() not in SCHEMES:
        _refuse(f"it must start with one of {', '.join(name + '://' for name in SCHEMES)}")
    authority, path, query = _split(rest)
    userinfo, at, location = authority.rpartition("@")
    connect = _parse_userinfo(userinfo) if at else {}
    connect.update(_parse_location(location))
    if path:
        connect["database"] = _plain_part("database", path)
    pool: dict[str, object] = {}
    if query:
        _parse_query(query, connect, pool)
    return connect, pool


def _refuse(problem: str) -> NoReturn:
    # Never called while another exception is handled: that one would be the context, and may quote the DSN.
    raise ValueError(f"invalid DSN: {problem}")


def _check_characters(text: str) -> None:
    """Refuse characters that no DSN has unencoded, showing their position only."""
    if found := _NEVER_RAW.search(text):
        where = f"at position {found.start()}"
        if found[0] == "#":
            _refuse(f"unencoded '#' {where}; {_ENCODE_HINT} as %23")
        if found[0] >= "\ud800":
            _refuse(f"the character {where} is half of a surrogate pair and has no UTF-8 form")
        _refuse(f"blank or control character {where}; {_ENCODE_HINT} (a space is %20)")
    if bad := _BAD_PERCENT.search(text):
        where = f"at position {bad.start()}"
        _refuse(f"'%' {where} is not followed by two hexadecimal digits; '%' itself is written %25")


def _split(rest: str) -> tuple[str, str, str]:
    """Return authority, database and query, all still encoded, of what follows the scheme."""
    rest, question, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    if "@" in path or "@" in query:
        _refuse(
            "unencoded '@' after the first '/' or '?'; percent-encode '/' as %2F and '?' as %3F in user and"
            " password, and '@' as %40 in database and values"
        )
    if "/" in path:
        _refuse("the path takes one database name; percent-encode '/' in it as %2F")
    if question and not query:
        _refuse("nothing follows the '?'")
    return authority, path, query


def _decode(what: str, encoded: str) -> str:
    """Return `encoded` percent-decoded, "+" left alone."""
    try:
        return unquote_to_bytes(encoded).decode()
    except UnicodeDecodeError:
        pass
    _refuse(f"{what} is not UTF-8 after percent-decoding")


def _plain_part(what: str, encoded: str) -> str:
    decoded = _parse_plain(_decode(what, encoded))
    if decoded is None:
        _refuse(f"{what} holds a control character")
    return decoded


def _parse_userinfo(userinfo: str) -> dict[str, object]:
    found: dict[str, object] = {}
    user, colon, password = userinfo.partition(":")
    if user:
        found["user"] = _plain_part("user", user)
    if colon:
        found["password"] = _decode("password", password)
    return found


def _parse_location(location: str) -> dict[str, object]:
    """Return host and port; an IPv6 address stands in brackets, its zone after %25."""
    found: dict[str, object] = {}
    if location.startswith("["):
        address, bracket, tail = location[1:].partition("]")
        if not bracket or (tail and not tail.startswith(":")):
            _refuse("only ':' and a port may follow the ']' of an IPv6 address")
        found["host"] = _parse_address(address)
        colon, port = tail[:1], tail[1:]
    else:
        host, colon, port = location.partition(":")
        if ":" in port:
            _refuse("more than one ':' in host and port; an IPv6 address stands in brackets")
        if "[" in location or "]" in location:
            _refuse("a bracket in the host that does not enclose an IPv6 address")
        if host:
            found["host"] = _parse_host(host)
    if colon:
        found["port"] = _parse_port(port)
        if found["port"] is None:
            # What stands here is not shown: without an "@" it may be a password ("mysql://user:password").
            _refuse(f"what follows the host and ':' must be {_PORT_TAKES}")
    return found


def _parse_host(encoded: str) -> str:
    host = _plain_part("host", encoded)
    if _BLANK.search(host):
        _refuse("host holds a blank")
    return host


def _parse_address(address: str) -> str:
    """Return the IPv6 address, with "%zone" if it has a zone."""
    parts = _ZONED_ADDRESS.fullmatch(address)
    problem = "what stands in brackets must be an IPv6 address, with %25 before a zone"
    if not parts:
        _refuse(problem)
    try:
        ipaddress.IPv6Address(parts[1])
    except ValueError:
        parts = None
    if not parts:
        _refuse(problem)
    return parts[1] if parts[2] is None else f"{parts[1]}%{_parse_host(parts[2])}"


def _parse_query(query: str, connect: dict[str, object], pool: dict[str, object]) -> None:
    """Add the query's arguments to `connect` and its pool options to `pool`."""
    secret_seen = False  # an unencoded "&" in a secret makes parameters of the rest of it: they are not shown
    for number, field in enumerate(query.split("&"), 1):
        name, equals, encoded = field.partition("=")
        what = f"parameter {number} of the query"
        if not name or not equals:
            _refuse(f"{what} is not name=value; percent-encode '&' in values as %26")
        name = _decode(f"the name of {what}", name)
        if not secret_seen or name in _KNOWN_NAMES:
            what = f"parameter {name!r}"
        if name in _REFUSED:
            _refuse(f"{what} {_REFUSED[name]}")
        if name not in _KNOWN_NAMES:
            _refuse(f"{what} is unknown{suggest(name, _KNOWN_NAMES)}")
        secret_seen = secret_seen or _is_secret(name)
        option = name.removeprefix(_POOL_PREFIX)
        target, key = (pool, option) if option != name else (connect, _ALIASES.get(name, name))
        if key in target:
            _refuse(f"{what} gives {key} a second time")
        value = _decode(what, encoded)
        if target is pool:
            target[key] = from_text(key, value, f"invalid DSN: {what}", show=not secret_seen)
        else:
            target[key] = _convert(key, value, what, show=not secret_seen)


def _is_secret(name: str) -> bool:
    argument = _ARGUMENTS.get(_ALIASES.get(name, name))
    return argument is not None and argument.secret


def _convert(name: str, text: str, what: str, *, show: bool) -> object:
    """Return the value that `text` writes for connect argument `name`."""
    argument = _ARGUMENTS[name]
    if argument.optional and text.lower() == "none":
        return None
    value = argument.parse(text) if text or argument.may_be_empty else None
    if value is None:
        shown = f", not {text!r}" if show else ""
        _refuse(f"{what} takes {argument.takes}{shown}")
    return value
