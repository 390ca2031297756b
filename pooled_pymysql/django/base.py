"""`DatabaseWrapper`: Django's MySQL backend on our connections, with `OPTIONS["pool"]` as Django's PostgreSQL has it.

All that depends on the driver is defined here: the parent's own `Database` may be another one.
"""

import os
import re
import weakref
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from django.core.exceptions import ImproperlyConfigured
from django.db import IntegrityError
from django.db.backends.base.base import NO_DB_ALIAS
from django.db.backends.utils import typecast_time
from django.utils.asyncio import async_unsafe
from django.utils.functional import cached_property

import pooled_pymysql
from pooled_pymysql.constants import CLIENT, FIELD_TYPE
from pooled_pymysql.converters import conversions

from .mysql import load_backend

_parent = load_backend()
if TYPE_CHECKING:  # Django has no types: what of it is called from here

    class _Cursor:
        cursor: Any
        codes_for_integrityerror: tuple[int, ...]

        def __init__(self, cursor: Any) -> None: ...

    class _Creation:
        connection: Any

        def __init__(self, connection: Any) -> None: ...
        def _create_test_db(self, *args: Any, **kwargs: Any) -> Any: ...
        def _destroy_test_db(self, *args: Any, **kwargs: Any) -> None: ...

    class _Wrapper:
        mysql_server_data: Any

        def __init__(self, *args: Any, **kwargs: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...
        def get_connection_params(self) -> dict[str, Any]: ...
        def init_connection_state(self) -> None: ...
else:
    _Wrapper = _parent.DatabaseWrapper
    _Cursor = _parent.CursorWrapper
    _Creation = _Wrapper.creation_class
_wrappers: weakref.WeakSet[Any] = weakref.WeakSet()  # for a forked child

django_conversions: dict[Any, Any] = {**conversions, FIELD_TYPE.TIME: typecast_time}

# An init_command that Django's documentation recommends, and that connect() has an argument for.
_SETS_SQL_MODE = re.compile(r"\s*SET\s+(?:SESSION\s+|@@(?:SESSION\.)?)?sql_mode\s*=\s*'([^'\\]*)'[\s;]*", re.IGNORECASE)


class CursorWrapper(_Cursor):
    """Sort the errors that Django wants to be IntegrityErrors, as its own wrapper does for its driver's."""

    def execute(self, query: Any, args: Any = None) -> Any:
        """Run one statement."""
        try:
            return self.cursor.execute(query, args)
        except pooled_pymysql.OperationalError as error:
            self._raise_sorted(error)

    def executemany(self, query: Any, args: Any) -> Any:
        """Run one statement for each of several sets of arguments."""
        try:
            return self.cursor.executemany(query, args)
        except pooled_pymysql.OperationalError as error:
            self._raise_sorted(error)

    def _raise_sorted(self, error: pooled_pymysql.OperationalError) -> NoReturn:
        if error.args and error.args[0] in self.codes_for_integrityerror:
            raise IntegrityError(*error.args) from error
        raise error


class DatabaseCreation(_Creation):
    """Keep no session for a test database that is about to go: with `min_size`, the pool would go on opening others."""

    def _create_test_db(self, *args: Any, **kwargs: Any) -> Any:
        self.connection.close_pool()  # one that was left over is removed first
        return super()._create_test_db(*args, **kwargs)

    def _destroy_test_db(self, *args: Any, **kwargs: Any) -> None:
        self.connection.close_pool()
        super()._destroy_test_db(*args, **kwargs)


class DatabaseWrapper(_Wrapper):
    """One alias in one thread: holds a lease from its first query until Django closes it, at the end of a request.

    `OPTIONS["pool"]` is True or a dict of pool options; anything false: connections without a pool.
    """

    Database = pooled_pymysql
    creation_class = DatabaseCreation

    # What Django asks each server once per thread, kept with the pool instead.
    _server_data: ClassVar[weakref.WeakKeyDictionary[Any, Any]] = weakref.WeakKeyDictionary()

    connection: Any
    isolation_level: str | None
    _params: Mapping[str, Any] = MappingProxyType({"pool": False})  # with which the last connection was made
    _is_lease = False  # the last connection came from a pool
    _comes_isolated = False  # the arguments set the isolation level
    _is_isolated = False  # the connection is new and has its isolation level

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _wrappers.add(self)

    # The pool

    @property
    def pool(self) -> pooled_pymysql.Pool | None:
        """The pool that this alias uses, or None: without `OPTIONS["pool"]`, and before the first connection."""
        params = self.get_connection_params()
        if params["pool"]:
            self._check_age(params["pool"])
        return pooled_pymysql.pool_for(**params)

    def close_pool(self) -> None:
        """Close the idle sessions of this alias, and those in use as they are given back; later queries open others.

        Of all databases that the alias has named, in all threads of this process. Blocks for less than a second.
        """
        if options := self._pool_options():
            for pool in self._pools(options):
                pool.close()

    def _pool_options(self) -> dict[str, Any] | None:
        """Return the pool options, with a name that tells this alias's pools from all others; None: no pool."""
        given = self.settings_dict["OPTIONS"].get("pool")
        if not given or self.alias == NO_DB_ALIAS:
            return None
        if given is not True and not isinstance(given, Mapping):
            raise ImproperlyConfigured(
                f"DATABASES[{self.alias!r}]: OPTIONS['pool'] takes True, False or a dict of pool options"
            )
        options: dict[str, Any] = {"validate_after": 0} if self.settings_dict["CONN_HEALTH_CHECKS"] else {}
        if given is not True:
            options.update(given)
        options["name"] = options.get("name") or f"django:{self.alias}"
        return options

    def _pools(self, options: Mapping[str, Any]) -> list[pooled_pymysql.Pool]:
        """Return the pools of this alias, whichever database they were made for."""
        return [pool for pool in pooled_pymysql.pools() if pool.options.name == options["name"]]

    def _check_age(self, options: Mapping[str, Any]) -> None:
        """Refuse CONN_MAX_AGE before the alias's first pool is made; raises ImproperlyConfigured."""
        age = self.settings_dict["CONN_MAX_AGE"]
        if age != 0 and not self._pools(options):
            raise ImproperlyConfigured(
                f"DATABASES[{self.alias!r}]: with OPTIONS['pool'], CONN_MAX_AGE must be 0, not {age!r}; "
                "the pool option 'max_lifetime' limits a connection's age"
            )

    # Connecting

    def get_connection_params(self) -> dict[str, Any]:
        """Return arguments for our connect(): all that Django would set on each new connection is among them.

        So it shapes the sessions of the pool, is restored with them, and costs a lease no round trip.
        """
        params: dict[str, Any] = super().get_connection_params()
        if params["conv"] is _parent.django_conversions:
            params["conv"] = django_conversions
        params["pool"] = self._pool_options() or False
        params.setdefault("autocommit", self.settings_dict["AUTOCOMMIT"])
        self._comes_isolated = False
        if level := self.isolation_level:
            statement = f"SET SESSION TRANSACTION ISOLATION LEVEL {level.upper()}"
            self._comes_isolated = _set_at_login(params, statement)
        return params

    @async_unsafe
    def get_new_connection(self, conn_params: dict[str, Any]) -> pooled_pymysql.Connection:
        """Lease a connection, or open one without a pool; blocks and raises as our connect() does."""
        if conn_params["pool"]:
            self._check_age(conn_params["pool"])
        while True:
            try:
                connection = pooled_pymysql.connect(**conn_params)
            except pooled_pymysql.PoolClosed:
                continue  # close_pool() was called meanwhile, in another thread
            self._params = conn_params
            self._is_lease = bool(conn_params["pool"])
            self._is_isolated = self._comes_isolated
            return connection

    def init_connection_state(self) -> None:
        """Do what the connection did not come with; when called again, all of it."""
        level = self.isolation_level
        if self._is_isolated:
            self._is_isolated, self.isolation_level = False, None
        try:
            super().init_connection_state()
        finally:
            self.isolation_level = level

    @async_unsafe
    def create_cursor(self, name: str | None = None) -> CursorWrapper:  # noqa: ARG002  Django's signature
        """Return a cursor of the connection."""
        return CursorWrapper(self.connection.cursor())

    @cached_property
    def mysql_server_data(self) -> Any:
        """What Django wants to know of the server: asked once for each pool, and not in each thread."""
        with self.temporary_connection():
            pool = pooled_pymysql.pool_for(**self._params)
            if pool is None:
                return super().mysql_server_data
            data = self._server_data.get(pool)
            if data is None:
                data = self._server_data[pool] = super().mysql_server_data
            return data

    # Using and closing

    def is_usable(self) -> bool:
        """Ask the server; a lost connection is not opened again behind Django's back."""
        try:
            self.connection.ping(reconnect=False)
        except pooled_pymysql.Error:
            return False
        return True

    def forget_parent(self) -> None:
        """Have the next query in a forked child lease a session of its own; sends nothing."""
        if self.connection is None or not self._is_lease:  # one without a pool is Django's matter, as ever
            return
        self.connection = None
        if self.in_atomic_block:  # the transaction is the parent's
            self.closed_in_transaction = self.needs_rollback = True


def _set_at_login(params: dict[str, Any], statement: str) -> bool:
    """Add a statement to the init_command of connect arguments; say whether there is room for it."""
    own = params.get("init_command")
    if own and "sql_mode" not in params and (found := _SETS_SQL_MODE.fullmatch(own)):
        params["sql_mode"] = found[1]
        own = None
    if not own:
        params["init_command"] = statement
    elif params["client_flag"] & CLIENT.MULTI_STATEMENTS:
        params["init_command"] = f"{own.rstrip().rstrip(';')}; {statement}"
    else:
        return False
    return True


def _after_fork_in_child() -> None:
    for wrapper in list(_wrappers):
        wrapper.forget_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
