"""Keyword arguments of `connect()` → what shapes a session, what belongs to one lease, and the `PoolKey`.

PyMySQL's own constructor reads the arguments (with defer_connect, so nothing is sent): its errors, defaults and option
files hold here without being written again, and the attributes that it leaves are sorted into two groups.
"""

import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pymysql
from pymysql import converters

from .driver import DriverConnection
from .options import PoolOptions

# Attributes that concern the client side of one lease alone. Whatever else PyMySQL's constructor leaves behind, now or
# in a later version, is taken to shape the session and so goes into the key.
LEASE_ATTRIBUTES = frozenset(
    {
        "_binary_prefix", "_read_timeout", "_write_timeout", "connect_timeout", "cursorclass", "decoders", "encoders",
        "max_allowed_packet", "use_unicode",
    }
)  # fmt: skip

# Attributes that say what state a connection is in; equal for every connection that has not connected yet.
_STATE_ATTRIBUTES = frozenset({"_affected_rows", "_result", "_sock", "ctx", "host_info"})

_ALIASES_WARN = pymysql.VERSION >= (1, 2)  # 'db' and 'passwd' are silent aliases in PyMySQL 1.1

_TLS_FILES = ("ca", "capath", "cert", "key")

Stat = tuple[str, int, int, int]
Conversions = tuple[dict[Any, Any], dict[Any, Any]]  # encoders, decoders


class PoolKey(NamedTuple):
    """What decides which pool a `connect()` uses. Hashable; equal for equal meaning; its repr shows no secret."""

    host: str
    port: int
    user: object
    password: object
    database: object
    unix_socket: object
    bind_address: object
    charset: str
    collation: object
    sql_mode: object
    init_command: object
    autocommit: object
    client_flag: int
    local_infile: bool
    auth_plugins: object
    server_public_key: object
    connect_attributes: object
    tls: object
    others: object
    options: PoolOptions

    def __repr__(self) -> str:
        return f"<PoolKey {self.address}>"

    @property
    def place(self) -> tuple[object, ...]:
        """What names the server."""
        return (str(self.unix_socket),) if self.unix_socket else (self.host, self.port)

    @property
    def address(self) -> str:
        """`user@host:port/database`, or with the socket's path, for messages."""
        where = str(self.unix_socket) if self.unix_socket else f"{self.host}:{self.port}"
        return f"{_text(self.user)}@{where}/{_text(self.database)}"

    def __str__(self) -> str:
        return repr(self)


class Template(DriverConnection):
    """A PyMySQL connection that is never connected: it reads arguments."""

    __slots__ = ("tls",)

    def __init__(self, **kwargs: Any) -> None:
        self.tls: Any = None
        super().__init__(**kwargs, defer_connect=True)

    def _create_ssl_ctx(self, sslp: Any) -> None:
        """Note what the context would be made of: building one costs 19 ms, and the pool shares it."""
        self.tls = sslp

    def __del__(self) -> None:
        """Nothing to close."""


class Arguments:
    """The arguments of one way of calling `connect()`, read once.

    Immutable but for `_conversions`, which is replaced whole; may be shared by threads.
    """

    __slots__ = (
        "_conversions", "_option_file", "connect_timeout", "conv", "defer", "key", "leak_tracking", "overlay",
        "password", "read_timeout", "template", "tls", "write_timeout",
    )  # fmt: skip

    defer: bool
    key: PoolKey
    leak_tracking: bool
    overlay: dict[str, Any]
    tls: Any

    def __init__(self, kwargs: Mapping[str, Any], options: PoolOptions) -> None:
        given = _without_aliases(kwargs)
        self.defer = bool(given.pop("defer_connect", False))
        self.password: Callable[[], str | bytes] | None = None
        if callable(given.get("password")):
            self.password = given.pop("password")
        elif isinstance(given.get("password"), bytearray | memoryview):
            given["password"] = bytes(given["password"])  # the caller may wipe it
        if isinstance(given.get("ssl"), dict):
            given["ssl"] = dict(given["ssl"])  # PyMySQL writes the option file's values into it
        self._option_file = option_file_stat(given)
        template = Template(**given)
        self.tls = template.tls
        self.conv: Mapping[Any, Any] | None = given.get("conv")
        self.template: dict[str, Any] = vars(template)
        self.connect_timeout: float | None = self.template["connect_timeout"]
        self.read_timeout: float | None = self.template["_read_timeout"]
        self.write_timeout: float | None = self.template["_write_timeout"]
        self.overlay = {
            name: value
            for name, value in self.template.items()
            if name in LEASE_ATTRIBUTES and name not in ("encoders", "decoders")
        }
        self._conversions = (
            {**self.template["encoders"], **self.template["decoders"]},
            self.template["encoders"],
            self.template["decoders"],
        )
        self.key = self._make_key(options)
        self.leak_tracking = options.leak_tracking or options.leak_threshold is not None

    def conversions(self, conv: Mapping[Any, Any] | None) -> Conversions:
        """Return encoders and decoders of one lease's own, split as PyMySQL splits `conv`.

        Both the argument and PyMySQL's global table may have been changed since the last call; comparing is four
        times cheaper than splitting.
        """
        table = converters.conversions if conv is None else conv
        seen, encoders, decoders = self._conversions
        if table != seen:
            encoders = {key: value for key, value in table.items() if type(key) is not int}
            decoders = {key: value for key, value in table.items() if type(key) is int}
            self._conversions = (dict(table), encoders, decoders)
        return encoders.copy(), decoders.copy()

    @property
    def has_option_file(self) -> bool:
        """Whether PyMySQL reads an option file for these arguments."""
        return self._option_file is not None

    def is_current(self) -> bool:
        """Say whether the option file, if there is one, is still the one that was read."""
        return self._option_file is None or self._option_file == stat_of(self._option_file[0])

    def _make_key(self, options: PoolOptions) -> PoolKey:
        left = {
            name: value
            for name, value in self.template.items()
            if name not in LEASE_ATTRIBUTES and name not in _STATE_ATTRIBUTES
        }
        attributes = dict(left.pop("_connect_attrs"))
        attributes.pop("_pid", None)
        password = left.pop("password")
        return PoolKey(
            host=left.pop("host"),
            port=left.pop("port"),
            user=_bytes(left.pop("user"), self.template["encoding"]),
            password=password if self.password is None else _frozen(self.password),
            database=_bytes(left.pop("db"), self.template["encoding"]),
            unix_socket=left.pop("unix_socket"),
            bind_address=left.pop("bind_address"),
            charset=left.pop("charset"),
            collation=left.pop("collation"),
            sql_mode=left.pop("sql_mode"),
            init_command=left.pop("init_command"),
            autocommit=_autocommit(left.pop("autocommit_mode")),
            client_flag=left.pop("client_flag"),
            local_infile=left.pop("_local_infile"),
            auth_plugins=_frozen(left.pop("_auth_plugin_map")),
            server_public_key=left.pop("server_public_key"),
            connect_attributes=_frozen(attributes),
            tls=_frozen(self.tls),
            others=_frozen(left),
            options=options,
        )


def deprecated_aliases(kwargs: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the (old, new) argument names for which the installed PyMySQL would warn."""
    found = []
    if _ALIASES_WARN:
        if kwargs.get("db") is not None and kwargs.get("database") is None:
            found.append(("db", "database"))
        if kwargs.get("passwd") is not None and not kwargs.get("password"):
            found.append(("passwd", "password"))
    return found


def _without_aliases(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    given = dict(kwargs)
    database, password = given.pop("db", None), given.pop("passwd", None)
    if database is not None and given.get("database") is None:
        given["database"] = database
    if password is not None and not given.get("password"):
        given["password"] = password
    return given


def option_file_stat(kwargs: Mapping[str, Any]) -> Stat | None:
    """Return the identity of the option file that PyMySQL would read, or None when it reads none."""
    path = kwargs.get("read_default_file")
    if not path:
        if not kwargs.get("read_default_group"):
            return None
        path = "c:\\my.ini" if sys.platform.startswith("win") else "/etc/my.cnf"  # as PyMySQL
    return stat_of(os.path.expanduser(path))


def stat_of(path: str) -> Stat:
    """Return what changes when a file is written or replaced; zeros for a file that is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return (path, 0, 0, 0)
    return (path, found.st_mtime_ns, found.st_size, found.st_ino)


class SharedTLS:
    """The one SSLContext of a pool: building it costs 19 ms and 845 KiB.

    It is built again when one of its files was replaced (rotated certificates), which is looked at when a session is
    opened. Threads that open at once wait for the one that builds it.
    """

    __slots__ = ("_built", "_lock", "_parameters")

    def __init__(self, parameters: Any) -> None:
        self._lock = threading.Lock()
        self._parameters = parameters
        self._built: tuple[tuple[Stat, ...], Any] | None = None

    def context(self, template: Mapping[str, Any]) -> Any:
        """Return the context for a connection with the attributes of `template`, or None if it uses no TLS."""
        if not template["ssl"]:
            return None
        if self._parameters == {}:
            return _DEFAULT_TLS._from_files()
        return self._from_files()

    def forget_parent(self) -> None:
        """Take a new lock in a forked child: a thread of the parent may have held the old one."""
        self._lock = threading.Lock()
        _DEFAULT_TLS._lock = threading.Lock()

    def _from_files(self) -> Any:
        files: tuple[Stat, ...] = ()
        if isinstance(self._parameters, dict):
            files = tuple(stat_of(str(self._parameters[name])) for name in _TLS_FILES if self._parameters.get(name))
        with self._lock:
            if self._built is None or self._built[0] != files:
                bare = DriverConnection.__new__(DriverConnection)
                self._built = (files, bare._create_ssl_ctx(self._parameters))
            return self._built[1]


# The context of everyone who asked for no TLS option: nothing in it depends on the DSN.
_DEFAULT_TLS = SharedTLS({})


def _frozen(value: Any) -> Any:
    """Return something hashable that is equal for equal meaning only: True and 1 differ in TLS options."""
    if isinstance(value, dict):
        return frozenset((name, _frozen(item)) for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, (bool, int, float)):
        return (type(value).__name__, value)
    try:
        hash(value)
    except TypeError:
        return ("id", id(value), repr(type(value)))
    return value


def _bytes(value: Any, encoding: str) -> Any:
    """Return a name as the bytes that PyMySQL sends; one that cannot be encoded is told at connecting."""
    if not isinstance(value, str):
        return value
    try:
        return value.encode(encoding)
    except UnicodeEncodeError:
        return value


def _autocommit(value: Any) -> bool | None:
    return None if value is None else bool(value)


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return "" if value is None else str(value)
