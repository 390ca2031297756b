"""A program under a tool that wraps `connect()`, with PyMySQL or with this package under PyMySQL's name.

Prints as JSON what the program saw and which statements the tool saw. Run as a process of its own: the tools patch for
good. Arguments: the tool, "plain" or "pooled", and the connect arguments as JSON.
"""

from __future__ import annotations

import gc
import json
import sys
import threading
from collections.abc import Callable
from typing import Any

Seen = Callable[[], list[str]]  # the statements that the tool has seen


def use_wrapt() -> Seen:
    """Wrap as the tools do, in the fewest lines."""
    import wrapt

    statements: list[str] = []

    class Cursor(wrapt.ObjectProxy):
        def execute(self, query: str, args: Any = None) -> Any:
            statements.append(query)
            return self.__wrapped__.execute(query, args)

        def executemany(self, query: str, args: Any) -> Any:
            statements.append(query)
            return self.__wrapped__.executemany(query, args)

        def __enter__(self) -> Any:
            self.__wrapped__.__enter__()
            return self

    class Connection(wrapt.ObjectProxy):
        def cursor(self, *args: Any) -> Any:
            return Cursor(self.__wrapped__.cursor(*args))

        def __enter__(self) -> Any:
            self.__wrapped__.__enter__()
            return self

    wrapt.wrap_function_wrapper(
        "pymysql", "connect", lambda connect, _, args, kwargs: Connection(connect(*args, **kwargs))
    )
    return lambda: statements


def use_ddtrace() -> Seen:
    import ddtrace
    from ddtrace.trace import TraceFilter, tracer

    statements: list[str] = []

    class Keep(TraceFilter):
        def process_trace(self, trace: Any) -> None:
            statements.extend(span.resource for span in trace if span.name == "pymysql.query")

    tracer.configure(trace_processors=[Keep()])
    ddtrace.patch(pymysql=True)
    return lambda: statements


def use_elasticapm() -> Seen:
    import elasticapm

    statements: list[str] = []

    class Client(elasticapm.Client):
        def queue(self, event_type: str, data: dict[str, Any], flush: bool = False) -> None:
            if event_type == "span":
                statements.append(data["context"]["db"]["statement"])

    client = Client(
        service_name="program",
        server_version=(8, 0, 0),  # else it is asked for
        cloud_provider="none",
        central_config=False,
        metrics_interval="0ms",
        span_compression_enabled=False,
        exit_span_min_duration="0ms",
    )
    elasticapm.instrument()
    client.begin_transaction("program")

    def seen() -> list[str]:
        client.end_transaction("program")
        client.close()
        return statements

    return seen


def use_newrelic() -> Seen:
    import newrelic.agent
    from newrelic.api.database_trace import DatabaseTrace

    statements: list[str] = []
    newrelic.agent.initialize()
    assert newrelic.agent.global_settings().developer_mode, "it would send"
    application = newrelic.agent.register_application("program", timeout=10.0)
    task = newrelic.agent.BackgroundTask(application, "program")
    task.__enter__()
    finalize = DatabaseTrace.finalize_data

    def note(trace: Any, *args: Any, **kwargs: Any) -> Any:
        statements.append(trace.sql)
        return finalize(trace, *args, **kwargs)

    DatabaseTrace.finalize_data = note

    def seen() -> list[str]:
        task.__exit__(None, None, None)
        return statements

    return seen


def program(pymysql: Any, where: dict[str, Any]) -> list[Any]:
    seen: list[Any] = []
    for _ in range(2):
        connection = pymysql.connect(**where)
        seen.append(isinstance(connection, pymysql.connections.Connection))
        with connection.cursor() as cursor:
            cursor.execute("CREATE TEMPORARY TABLE t (id INT PRIMARY KEY AUTO_INCREMENT, word VARCHAR(20))")
            cursor.executemany("INSERT INTO t (word) VALUES (%s)", [("one",), ("two",)])
            connection.commit()
            cursor.execute("SELECT word FROM t WHERE id > %s", (1,))
            seen.append(cursor.fetchall())
            seen.append((cursor.rowcount, cursor.description[0][0]))
            try:
                cursor.execute("SELECT nothing FROM nowhere")
            except pymysql.err.ProgrammingError as error:
                seen.append(error.args[0])
        cursor = connection.cursor()
        cursor.execute("SELECT 'in no block'")  # elastic-apm's proxies do not outlast a `with`
        seen.append(cursor.fetchone())
        cursor.close()
        connection.close()
        try:
            connection.close()
        except pymysql.Error as error:
            seen.append(str(error))
        seen.append(connection.open)
    with pymysql.connect(**where) as connection:
        with connection.cursor(pymysql.cursors.SSDictCursor) as cursor:
            cursor.execute("SELECT 1 AS x UNION SELECT 2")
            seen.append(list(cursor))
        seen.append(connection.get_server_info() == connection.server_version)
        connection.ping()

    def work() -> None:
        with pymysql.connect(**where) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT 'in a thread'")
            seen.append(cursor.fetchone())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    del connection, cursor
    gc.collect()
    return seen


def main(tool: str, kind: str, where: dict[str, Any]) -> None:
    if kind == "pooled":
        import pooled_pymysql

        pooled_pymysql.install_as_pymysql()
    statements = {
        "wrapt": use_wrapt, "ddtrace": use_ddtrace, "elasticapm": use_elasticapm, "newrelic": use_newrelic
    }[tool]()  # fmt: skip
    import pymysql

    assert (pymysql.__name__ == "pooled_pymysql") is (kind == "pooled")
    seen = program(pymysql, where)
    if kind == "pooled":
        (pool,) = pymysql.pools()
        stats = pool.stats()
        assert (stats.in_use, stats.dropped) == (0, 0), stats
        assert stats.opened < stats.leases, stats
    json.dump({"seen": seen, "statements": statements()}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
