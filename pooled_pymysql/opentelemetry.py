"""OpenTelemetry's tracing: the spans that its PyMySQL instrumentation gives, one for each statement of the program.

Nothing that the pool does by itself passes a cursor, so no span comes of it. What is wrapped is `cursor()` of our
connections, not `connect()`: so it holds for every way to get one (`ConnectionPool`, `Pool.connection()`, a `connect`
that was imported by name before), and connections stay what they are.
"""

import logging
import sys
from collections.abc import Callable, Collection
from typing import Any

from opentelemetry.instrumentation import dbapi
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]
from opentelemetry.instrumentation.utils import unwrap
from wrapt import wrap_function_wrapper

from . import blocks, lease
from .cursor_names import Extras, Modified

_logger = logging.getLogger("pooled_pymysql")

_SYSTEM = "mysql"
_ATTRIBUTES = {"database": "db", "port": "port", "host": "host", "user": "user"}  # span attribute -> connection's
_DRIVER: Any = sys.modules[__package__]
_TRACED = (lease.Connection, blocks.Connection)
_INTEGRATIONS = 256  # accounts and databases whose integration is kept


class PooledPyMySQLInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Traces the cursors of all connections of this package, those that are open as well.

    `instrument()` takes what OpenTelemetry's PyMySQLInstrumentor takes: `tracer_provider`, `enable_commenter`,
    `commenter_options`, `enable_attribute_commenter`. Use one of the two for a program that imports this package by the
    name of `pymysql`: both would trace.
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        """Return what must be installed."""
        return ("pymysql >= 1.1, < 2",)

    def _instrument(self, **kwargs: Any) -> None:
        tracer = _Tracer(
            tracer_provider=kwargs.get("tracer_provider"),
            enable_commenter=kwargs.get("enable_commenter", False),
            commenter_options=kwargs.get("commenter_options"),
            enable_attribute_commenter=kwargs.get("enable_attribute_commenter", False),
        )
        for kind in _TRACED:
            wrap_function_wrapper(kind, "cursor", tracer)

    def _uninstrument(self, **_: Any) -> None:
        for kind in _TRACED:
            unwrap(kind, "cursor")

    @staticmethod
    def instrument_connection(
        connection: Any,
        tracer_provider: Any = None,
        enable_commenter: bool = False,
        commenter_options: dict[str, Any] | None = None,
        enable_attribute_commenter: bool = False,
    ) -> Any:
        """Return a proxy of one connection, whose cursors are traced."""
        if PooledPyMySQLInstrumentor().is_instrumented_by_opentelemetry:
            _logger.warning("all connections are traced already")
            return connection
        return dbapi.instrument_connection(
            __name__,
            connection,
            _SYSTEM,
            _ATTRIBUTES,
            tracer_provider=tracer_provider,
            enable_commenter=enable_commenter,
            commenter_options=commenter_options,
            connect_module=_DRIVER,
            enable_attribute_commenter=enable_attribute_commenter,
        )

    @staticmethod
    def uninstrument_connection(connection: Any) -> Any:
        """Return the connection behind a proxy of instrument_connection()."""
        return dbapi.uninstrument_connection(connection)


class TracedCursor(dbapi.TracedCursorProxy):  # type: ignore[type-arg]  # not generic in earlier versions
    """A cursor with `db_query()` and `db_modify()`, whose statements are traced like all others."""

    def db_query(self, query: str, args: Any = ()) -> Any:
        """Run a query and return all its rows; see Cursor."""
        return Extras.db_query(self, query, args)  # type: ignore[arg-type]

    def db_modify(self, query: str, args: Any = (), exec_many: bool = False) -> Modified:
        """Run a statement and return its row count and its last row's id; see Cursor."""
        return Extras.db_modify(self, query, args, exec_many)  # type: ignore[arg-type]


class _Tracer:
    """What is put round `cursor()`."""

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self._integrations: dict[Any, dbapi.DatabaseApiIntegration] = {}  # making one takes longer than a lease

    def __call__(self, cursor: Callable[..., Any], connection: Any, args: Any, kwargs: Any) -> Any:
        made = cursor(*args, **kwargs)
        if connection._turn._is_owned():  # PyMySQL's connect() runs the init_command of a connection without a pool
            return made
        kind = TracedCursor if isinstance(made, Extras) else dbapi.TracedCursorProxy
        return kind(made, self._integration(connection))

    def _integration(self, connection: Any) -> dbapi.DatabaseApiIntegration:
        """Return what holds the attributes of a connection's spans."""
        key = connection.host, connection.port, connection.user, connection.db
        found = self._integrations.get(key)
        if found is None:
            found = dbapi.DatabaseApiIntegration(
                __name__, _SYSTEM, _ATTRIBUTES, connect_module=_DRIVER, **self._settings
            )
            found.get_connection_attributes(connection)
            if len(self._integrations) >= _INTEGRATIONS:
                self._integrations.clear()
            self._integrations[key] = found
        return found
