"""PyMySQL's connection with the private parts that this package relies on, declared in one place.

At run time it adds nothing but `Connection[...]`, the class of its cursors, which type checkers know and PyMySQL lacks.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pymysql
from pymysql.connections import Connection, MySQLResult
from pymysql.cursors import Cursor
from pymysql.protocol import FieldDescriptorPacket

IS_1_2 = pymysql.VERSION >= (1, 2)  # it remembers the socket's timeout in `_current_timeout`, among other things

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    C = TypeVar("C", bound=Cursor, default=Cursor)

    class DriverConnection(Connection[C]):
        """What PyMySQL 1.1 and 1.2 have beyond their type stubs."""

        _affected_rows: int
        _closed: bool
        _connect_attrs: Mapping[str, str]
        _current_timeout: float | None
        _local_infile: bool
        _next_seq_id: int
        _read_timeout: float | None
        _result: Any
        _rfile: Any
        _secure: bool
        _write_timeout: float | None
        _sock: Any
        ctx: Any
        server_capabilities: int
        server_status: int
        server_thread_id: tuple[int]
        server_version: str

        def _create_ssl_ctx(self, sslp: Any) -> Any: ...
        def _execute_command(self, command: int, sql: Any) -> None: ...
        def _force_close(self) -> None: ...
        def _get_server_information(self) -> None: ...
        def _read_bytes(self, num_bytes: int) -> bytes: ...
        def _read_ok_packet(self) -> Any: ...
        def _read_packet(self, packet_type: Any = ...) -> Any: ...
        def _read_query_result(self, unbuffered: bool = False) -> int: ...
        def _request_authentication(self) -> None: ...
        def _write_bytes(self, data: bytes) -> None: ...

    class DriverResult(MySQLResult):
        """What PyMySQL 1.1 and 1.2 have beyond their type stubs, and with the types that values really have."""

        connection: Any
        converters: list[tuple[str | None, Any]]
        fields: list[Any]
        has_next: Any
        message: Any

        def _read_load_local_packet(self, first_packet: Any) -> None: ...

    class DriverField(FieldDescriptorPacket):
        """A column definition."""

        charsetnr: int
        type_code: int

        def __init__(self, data: bytes, encoding: str) -> None: ...
        def description(self) -> tuple[Any, ...]: ...
else:
    from typing import TypeVar

    C = TypeVar("C", bound=Cursor)
    DriverResult = MySQLResult
    DriverField = FieldDescriptorPacket

    class DriverConnection(Connection):
        """PyMySQL's connection, subscriptable."""

        __class_getitem__ = classmethod(lambda cls, _cursor: cls)
