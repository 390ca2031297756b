"""How `connect()` looks to type checkers: PyMySQL's arguments, and a connection that knows its cursor class."""

from collections.abc import Callable, Mapping
from ssl import SSLContext
from typing import Any, Literal, Protocol, TypedDict, Unpack

from .driver import C
from .lease import Connection
from .options import PoolOptions

__all__ = ["Connect", "ConnectArguments"]

_Text = str | bytes


class ConnectArguments(TypedDict, total=False):
    """PyMySQL's arguments, but for `cursorclass` and `conv`."""

    user: _Text | None
    password: _Text | Callable[[], _Text]
    host: str | None
    database: _Text | None
    unix_socket: Any
    port: int
    charset: str
    collation: str | None
    sql_mode: str | None
    read_default_file: str | None
    read_default_group: str | None
    use_unicode: bool
    client_flag: int
    init_command: str | None
    connect_timeout: float
    read_timeout: float | None
    write_timeout: float | None
    autocommit: bool | None
    local_infile: bool
    max_allowed_packet: int
    defer_connect: bool
    auth_plugin_map: Mapping[Any, Any] | None
    bind_address: str | None
    binary_prefix: bool
    program_name: str | None
    server_public_key: bytes | None
    ssl: SSLContext | Mapping[str, Any] | None
    ssl_ca: str | None
    ssl_cert: str | None
    ssl_disabled: bool | None
    ssl_key: str | None
    ssl_key_password: Any
    ssl_verify_cert: bool | None
    ssl_verify_identity: bool | None
    compress: Any
    named_pipe: Any
    passwd: _Text | None
    db: _Text | None


class Connect(Protocol):
    """The type of `connect()`."""

    def __call__(
        self,
        dsn: str | None = None,
        /,
        *,
        cursorclass: type[C] = ...,
        pool: PoolOptions | Mapping[str, Any] | Literal[False] | None = None,
        conv: Mapping[Any, Any] | None = None,
        **arguments: Unpack[ConnectArguments],
    ) -> Connection[C]:
        """Lease a connection, see registry.connect."""
        ...
