"""SQLAlchemy's dialects `mysql+pooled_pymysql` and `mariadb+pooled_pymysql`: engines on this package's pool.

SQLAlchemy pools nothing here: each checkout is a lease and each checkin gives it back. An engine's pool is its own. See
docs/sqlalchemy.md.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar, Literal
from urllib.parse import quote

from sqlalchemy import exc, util
from sqlalchemy.dialects.mysql.mariadb import MariaDBDialect
from sqlalchemy.dialects.mysql.pymysql import MySQLDialect_pymysql
from sqlalchemy.engine.characteristics import IsolationLevelCharacteristic
from sqlalchemy.pool import QueuePool

import pooled_pymysql

from . import dsn
from .engine_pool import LeasePool, OwnOptions, asking
from .exceptions import LeaseBusy
from .lease import Connection

# SQLAlchemy reads these, and makes one argument `ssl` of them; what else it knows there, PyMySQL takes by other names.
_TLS_NAMES = ("ssl_ca", "ssl_capath", "ssl_cert", "ssl_check_hostname", "ssl_cipher", "ssl_key")
_TLS_NAMES_OF_PYMYSQL = {
    "ssl_key_password": "password",
    "ssl_verify_cert": "verify_mode",
    "ssl_verify_identity": "check_hostname",
}


# The dialects


class _IsolationLevel(IsolationLevelCharacteristic):
    """Leave it to the pool to undo an isolation level: giving back does it, and waits for nothing."""

    __slots__ = ()

    def reset_characteristic(self, dialect: Any, dbapi_conn: Any) -> None:
        home = getattr(dbapi_conn, "_home", None)
        if home is None or not isinstance(home.options, OwnOptions) or home.options.reset == "rollback":
            super().reset_characteristic(dialect, dbapi_conn)


class MySQLDialect_pooled_pymysql(MySQLDialect_pymysql):  # noqa: N801  SQLAlchemy's way of naming them
    """The dialect behind `mysql+pooled_pymysql://`."""

    driver = "pooled_pymysql"
    poolclass = LeasePool
    supports_statement_cache = True
    connection_characteristics: Any = util.immutabledict(
        {**MySQLDialect_pymysql.connection_characteristics, "isolation_level": _IsolationLevel()}
    )
    engine_config_types: Any = util.immutabledict(
        {**MySQLDialect_pymysql.engine_config_types, "pool_pre_ping": util.asbool, "pool_use_lifo": util.asbool}
    )
    _levels: ClassVar[tuple[str, ...]] = ("SERIALIZABLE", "READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ")
    url_options: Mapping[str, Any] = util.EMPTY_DICT  # pool options

    @classmethod
    def import_dbapi(cls) -> ModuleType:
        """Return the driver module."""
        return pooled_pymysql

    @classmethod
    def load_provisioning(cls) -> None:
        """Import what SQLAlchemy's test suites need to know of MySQL."""
        __import__("sqlalchemy.dialects.mysql.provision")

    @classmethod
    def engine_created(cls, engine: Any) -> None:
        """Tell of two pools, one on top of the other."""
        if isinstance(engine.pool, QueuePool):
            util.warn(
                "poolclass=QueuePool keeps sessions on lease while nobody uses them, on top of pooled_pymysql's own"
                " pool: leave poolclass= out, pool_size and the like are understood"
            )

    def create_connect_args(self, url: Any, _translate_args: dict[str, Any] | None = None) -> Any:
        """Read a URL: its query as that of a DSN, but for TLS, which it writes as SQLAlchemy's own dialects do."""
        ours = {name: value for name, value in url.query.items() if name not in _TLS_NAMES}
        args, kwargs = super().create_connect_args(url.difference_update_query(ours), _translate_args)
        arguments, options = _parse_query(ours)
        kwargs["client_flag"] = kwargs.get("client_flag", 0) | arguments.pop("client_flag", 0)
        if "ssl" in kwargs:
            for name in _TLS_NAMES_OF_PYMYSQL.keys() & arguments:
                kwargs["ssl"][_TLS_NAMES_OF_PYMYSQL[name]] = arguments.pop(name)
        kwargs.update(arguments)
        self.url_options = options
        if options:
            kwargs["pool"] = options
        return args, kwargs

    def connect(self, *cargs: Any, **cparams: Any) -> Any:
        """Lease from the engine's own pool, or, under a pool class of the user's, from that of the arguments.

        Blocks and raises as `pooled_pymysql.connect()` does; see LeasePool.lease().
        """
        name, value = self._session_isolation()
        if name is not None and name not in cparams:
            cparams[name] = value
        pool = asking.get()
        if pool is None or pool._dialect is not self:
            return self.loaded_dbapi.connect(*cargs, **cparams)
        return pool.lease(self.loaded_dbapi.connect, cargs, cparams)

    # Isolation

    def _session_isolation(self) -> tuple[str | None, Any]:
        """Return the connect argument that gives each session create_engine()'s isolation level, or None."""
        wanted: Any = self._on_connect_isolation_level
        level = wanted.replace("_", " ").upper() if isinstance(wanted, str) else None
        if level == "AUTOCOMMIT":
            return "autocommit", True
        if level in self._levels:
            return "init_command", f"SET SESSION TRANSACTION ISOLATION LEVEL {level}"
        return None, None

    def _builtin_onconnect(self) -> Any:
        """Set create_engine()'s isolation level on connections that were not opened with it."""
        name, value = self._session_isolation()
        listener = super()._builtin_onconnect()
        if name is None or listener is None:
            return listener
        attribute = "autocommit_mode" if name == "autocommit" else name

        def set_where_missing(dbapi_conn: Any, record: Any) -> None:
            if getattr(dbapi_conn, attribute, None) != value:
                listener(dbapi_conn, record)

        return set_where_missing

    # Connections

    def on_connect(self) -> Any:
        """Return None, for nothing to send: a session has its character set from when it was opened."""
        return None

    def do_ping(self, dbapi_connection: Any) -> Literal[True]:
        """Ask the server for a sign of life; a connection that has none is never opened again behind the caller."""
        dbapi_connection.ping(reconnect=False)
        return True

    def do_terminate(self, dbapi_connection: Any) -> None:
        """Close a connection that SQLAlchemy invalidates, and its session with it."""
        if isinstance(dbapi_connection, Connection):
            dbapi_connection.retire()
        else:
            dbapi_connection.close()

    def is_disconnect(self, e: Any, connection: Any, cursor: Any) -> bool:
        """Say whether an error means that the connection is lost; one that another thread reads from is not."""
        return not isinstance(e, LeaseBusy) and super().is_disconnect(e, connection, cursor)


class MariaDBDialect_pooled_pymysql(MariaDBDialect, MySQLDialect_pooled_pymysql):  # noqa: N801
    """The dialect behind `mariadb+pooled_pymysql://`, which refuses servers that are not MariaDB."""

    supports_statement_cache = True


dialect = MySQLDialect_pooled_pymysql
mariadb_dialect = MariaDBDialect_pooled_pymysql


def _parse_query(query: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return connect arguments and pool options, each with the type it needs; raises ArgumentError."""
    if not query:
        return {}, {}
    pairs = [
        f"{quote(name, safe='')}={quote(value, safe='')}"
        for name, values in query.items()
        for value in ([values] if isinstance(values, str) else values)
    ]
    try:
        return dsn.parse_dsn(f"mysql://?{'&'.join(pairs)}")
    except ValueError as error:
        problem = str(error).removeprefix("invalid DSN: ")
    raise exc.ArgumentError(f"invalid URL: {problem}")
