"""OpenTelemetry's spans: those that its PyMySQL instrumentation gives of the same program, and no others."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pymysql
import pytest
from opentelemetry.instrumentation import dbapi
from opentelemetry.instrumentation.pymysql import PyMySQLInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from servers import Server

import pooled_pymysql
from pooled_pymysql import ConnectionPool
from pooled_pymysql.opentelemetry import PooledPyMySQLInstrumentor

ATTRIBUTES = {"database": "db", "port": "port", "host": "host", "user": "user"}


class Spans:
    """What is traced."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("program")

    def take(self) -> list[dict[str, Any]]:
        """Return what was traced, oldest first, and forget it."""
        spans = sorted(self.exporter.get_finished_spans(), key=lambda span: span.start_time or 0)
        self.exporter.clear()
        names = {span.context.span_id: span.name for span in spans if span.context}
        return [
            {
                "name": span.name,
                "kind": span.kind.name,
                "parent": names.get(span.parent.span_id) if span.parent else None,
                "attributes": dict(span.attributes or {}),
                "status": span.status.status_code.name,
                "events": [
                    (
                        event.name,
                        (event.attributes or {})["exception.type"],
                        (event.attributes or {})["exception.message"],
                    )
                    for event in span.events
                ],
            }
            for span in spans
        ]


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture
def traced(spans: Spans) -> Iterator[PooledPyMySQLInstrumentor]:
    instrumentor = PooledPyMySQLInstrumentor()
    instrumentor.instrument(tracer_provider=spans.provider)
    yield instrumentor
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()


def program(module: Any, where: dict[str, Any], spans: Spans) -> list[Any]:
    """Do what programs do, and what makes a pool work: transactions left open, settings changed, errors."""
    seen: list[Any] = []
    for _ in range(2):
        connection = module.connect(**where, init_command="SET @started = 1")
        with spans.tracer.start_as_current_span("request"), connection.cursor() as cursor:
            cursor.execute("CREATE TEMPORARY TABLE t (id INT PRIMARY KEY AUTO_INCREMENT, word VARCHAR(20))")
            cursor.executemany("INSERT INTO t (word) VALUES (%s)", [("one",), ("two",), ("three",)])
            cursor.execute("/* from a page */ SELECT word FROM t WHERE id > %s", (1,))
            seen.append(cursor.fetchall())
        connection.commit()
        with connection.cursor(module.cursors.DictCursor) as cursor:
            cursor.execute("SET @word = %s, sql_mode = 'ANSI'", ("touched",))
            cursor.execute(query="SELECT @word AS word")
            seen.append(cursor.fetchone())
            with pytest.raises(pymysql.err.ProgrammingError):
                cursor.execute("SELECT nothing FROM nowhere")
            cursor.execute("INSERT INTO t (word) VALUES ('never committed')")
        connection.close()
        connection = module.connect(**where, autocommit=True)
        with connection, connection.cursor(module.cursors.SSCursor) as cursor:
            cursor.execute("SELECT 1 UNION SELECT 2")
            seen.append([*cursor])
            connection.ping()
            connection.select_db(where["database"])
            with pytest.raises(pymysql.err.OperationalError):
                cursor.callproc("no_such_procedure", (1,))
        connection = module.connect(**where)
        connection.query("SELECT 1")  # PyMySQL's instrumentation sees cursors only
        connection.rollback()
        connection.close()
    return seen


def of_program(run: Callable[[], object], spans: Spans) -> list[dict[str, Any]]:
    run()
    found = spans.take()
    assert found
    return found


@pytest.fixture
def plain_spans(server: Server, spans: Spans) -> list[dict[str, Any]]:
    """The spans of the program with PyMySQL."""
    instrumentor = PyMySQLInstrumentor()
    instrumentor.instrument(tracer_provider=spans.provider)
    try:
        return of_program(lambda: program(pymysql, server.kwargs(), spans), spans)
    finally:
        instrumentor.uninstrument()


def test_program_has_the_spans_that_it_has_with_pymysql(
    server: Server, spans: Spans, plain_spans: list[dict[str, Any]], traced: PooledPyMySQLInstrumentor
) -> None:
    found = of_program(lambda: program(pooled_pymysql, server.kwargs(), spans), spans)
    assert found == plain_spans
    assert [span["name"] for span in found[:11]] == [
        "request", "CREATE", "INSERT", "SELECT", "SET", "tests", "SELECT", "INSERT", "SELECT", "no_such_procedure",
        "request",
    ]  # fmt: skip
    assert found[1] == {
        "name": "CREATE",
        "kind": "CLIENT",
        "parent": "request",
        "attributes": {
            "db.system": "mysql",
            "db.name": server.database,
            "db.statement": "CREATE TEMPORARY TABLE t (id INT PRIMARY KEY AUTO_INCREMENT, word VARCHAR(20))",
            "db.user": server.user,
            "net.peer.name": server.host,
            "net.peer.port": server.port,
        },
        "status": "UNSET",
        "events": [],
    }
    assert found[6]["status"] == "ERROR"
    stats = [pool.stats() for pool in pooled_pymysql.pools()]
    assert sum(each.leases for each in stats) >= 6 > sum(each.opened for each in stats), "nothing was pooled"


def test_wrap_connect_of_the_dbapi_package_gives_the_same(
    server: Server, spans: Spans, plain_spans: list[dict[str, Any]]
) -> None:
    dbapi.wrap_connect(__name__, pooled_pymysql, "connect", "mysql", ATTRIBUTES, tracer_provider=spans.provider)
    try:
        assert of_program(lambda: program(pooled_pymysql, server.kwargs(), spans), spans) == plain_spans
    finally:
        dbapi.unwrap_connect(pooled_pymysql, "connect")
    assert pooled_pymysql.connect is pooled_pymysql.registry.connect


def test_pools_own_work_is_in_no_span(server: Server, spans: Spans, traced: PooledPyMySQLInstrumentor) -> None:
    options = {"max_size": 1, "min_size": 1, "validate_after": 0, "reset": "always"}
    connect = server.kwargs(init_command="SET @a = 1", autocommit=False, pool=options)
    for _ in range(3):
        pooled_pymysql.connect(**connect).close()
    with pooled_pymysql.connect(**connect) as connection:
        connection.begin()
        connection.ping()
    (pool,) = pooled_pymysql.pools()
    pool.tick()
    assert pool.stats().leases == 4
    assert spans.take() == []


def test_opening_without_a_pool_is_in_no_span(server: Server, spans: Spans, traced: PooledPyMySQLInstrumentor) -> None:
    connection = pooled_pymysql.connect(**server.kwargs(init_command="SET @a = 1", pool=False))
    assert spans.take() == []
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT @a")
        assert cursor.fetchone() == (1,)
    assert [span["name"] for span in spans.take()] == ["SELECT"]


def test_every_way_to_a_connection_is_traced(server: Server, spans: Spans, traced: PooledPyMySQLInstrumentor) -> None:
    by_hand = ConnectionPool(1, **server.kwargs())
    with by_hand.get_connection() as cursor:
        cursor.execute("SELECT 'block'")
        assert cursor.fetchone() == ("block",)
        assert cursor.db_query("SELECT 'query'") == (("query",),)
        assert cursor.db_modify("DO 'modify'") == {"rowcount": 0, "lastrowid": 0}
        inner = cursor.cursor(pooled_pymysql.cursors.DictCursor)
        assert inner.db_query("SELECT 'dict' AS x") == [{"x": "dict"}]
    connection = by_hand.get_connection()
    assert connection.execute_query("SELECT 'whole'", return_one=True) == ("whole",)
    with by_hand.connection() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 'lent'")
    pooled_pymysql.connect(**server.kwargs()).close()
    pool = pooled_pymysql.pool_for(**server.kwargs())
    assert pool is not None
    with pool.connection() as connection:
        assert type(connection) is pooled_pymysql.Connection, "connections stay what they are"
        cursor = connection.cursor()
        assert isinstance(cursor, pymysql.cursors.Cursor)
        assert not hasattr(cursor, "db_query")
        cursor.execute("SELECT 'acquired'")
    statements = [span["attributes"]["db.statement"] for span in spans.take()]
    assert statements == [
        "SELECT 'block'", "SELECT 'query'", "DO 'modify'", "SELECT 'dict' AS x", "SELECT 'whole'", "SELECT 'lent'",
        "SELECT 'acquired'",
    ]  # fmt: skip


def test_attributes_are_those_of_each_connection(
    server: Server, database: str, spans: Spans, traced: PooledPyMySQLInstrumentor
) -> None:
    for name in (server.database, database, server.database):
        with pooled_pymysql.connect(**server.kwargs(database=name)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    assert [span["attributes"]["db.name"] for span in spans.take()] == [server.database, database, server.database]


def test_uninstrument_ends_it_for_open_connections_too(
    server: Server, spans: Spans, traced: PooledPyMySQLInstrumentor
) -> None:
    with pooled_pymysql.connect(**server.kwargs()) as connection:
        connection.cursor().execute("SELECT 1")
        assert len(spans.take()) == 1
        traced.uninstrument()
        connection.cursor().execute("SELECT 1")
        assert type(connection.cursor()) is pymysql.cursors.Cursor
    with ConnectionPool(1, **server.kwargs()).get_connection() as cursor:
        cursor.execute("SELECT 1")
    assert spans.take() == []
    traced.instrument(tracer_provider=spans.provider)
    with pooled_pymysql.connect(**server.kwargs()) as connection:
        connection.cursor().execute("SELECT 1")
    assert len(spans.take()) == 1


def test_one_connection_can_be_traced(server: Server, spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    first, second = (pooled_pymysql.connect(**server.kwargs()) for _ in range(2))
    proxy = PooledPyMySQLInstrumentor.instrument_connection(first, spans.provider)
    for connection in (proxy, second):
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    assert [span["name"] for span in spans.take()] == ["SELECT"]
    assert PooledPyMySQLInstrumentor.uninstrument_connection(proxy) is first
    proxy.close()
    assert not first.open
    instrumentor = PooledPyMySQLInstrumentor()
    instrumentor.instrument(tracer_provider=spans.provider)
    try:
        assert instrumentor.instrument_connection(second) is second
        assert "all connections are traced already" in caplog.text
    finally:
        instrumentor.uninstrument()
    second.close()


def test_comments_for_the_servers_log_cost_no_reset(server: Server, spans: Spans) -> None:
    instrumentor = PooledPyMySQLInstrumentor()
    instrumentor.instrument(tracer_provider=spans.provider, enable_commenter=True, enable_attribute_commenter=True)
    try:
        with pooled_pymysql.connect(**server.kwargs(autocommit=True)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT %s", ("it's",))
            assert cursor.fetchone() == ("it's",)
            session = connection._session
            assert session is not None
        assert not session.marks & session.restore_mask, "the comment looks as if it changed the session"
        (span,) = spans.take()
        statement = span["attributes"]["db.statement"]
        assert statement.startswith("SELECT %s /*") and "db_driver='pooled_pymysql" in statement
    finally:
        instrumentor.uninstrument()


# Programs that nobody edits

PROGRAM = """
import json, sys
import pooled_pymysql
with pooled_pymysql.connect(**json.loads(sys.argv[1])) as connection, connection.cursor() as cursor:
    cursor.execute("SELECT 42")
    assert cursor.fetchone() == (42,)
"""


def test_entry_point_leads_to_the_instrumentor() -> None:
    (point,) = entry_points(group="opentelemetry_instrumentor", name="pooled_pymysql")
    assert point.load() is PooledPyMySQLInstrumentor


def test_opentelemetry_instrument_traces_a_program(server: Server, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    command = [str(Path(sys.executable).parent / "opentelemetry-instrument")]
    command += ["--traces_exporter", "console", "--metrics_exporter", "none", "--logs_exporter", "none"]
    command += [sys.executable, str(script), json.dumps(server.kwargs())]
    run = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert run.returncode == 0, run.stderr
    found = list(_objects(run.stdout))
    assert [(span["name"], span["attributes"]["db.statement"]) for span in found] == [("SELECT", "SELECT 42")], (
        run.stdout
    )


def _objects(text: str) -> Iterator[Any]:
    """Read one JSON object after another."""
    decoder, rest = json.JSONDecoder(), text.strip()
    while rest:
        found, end = decoder.raw_decode(rest)
        yield found
        rest = rest[end:].lstrip()
