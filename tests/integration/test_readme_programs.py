"""Programs as people write them, run with PyMySQL and with this package: only the import differs."""

from __future__ import annotations

import contextlib
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pymysql
import pytest
from pymysql.connections import Connection
from servers import Server, wait_until

IMPORTS = {"plain": "import pymysql\n", "pooled": "import pooled_pymysql as pymysql\n"}
WAIT = 20.0  # seconds
REQUESTS = 60
CLIENTS = 6
HANDLERS = 2 * CLIENTS  # at most: a client may ask again while the thread that served it has yet to end

BOOKS = """
def main(where):
    connection = pymysql.connect(**where, charset="utf8mb4", cursorclass=pymysql.cursors.DictCursor)
    seen = []
    with connection:
        with connection.cursor() as cursor:
            cursor.execute(
                "CREATE TABLE books (id INT AUTO_INCREMENT PRIMARY KEY, title VARCHAR(80) NOT NULL UNIQUE,"
                " price DECIMAL(6,2), bought DATE) ENGINE=InnoDB CHARACTER SET utf8mb4"
            )
            insert = "INSERT INTO books (title, price, bought) VALUES (%s, %s, %s)"
            seen.append(cursor.execute(insert, ("Büchner's \\\\ Woyzeck", "7.50", "2024-02-29")))
            seen.append(cursor.lastrowid)
            seen.append(cursor.executemany(insert, [("北京", 1, None), ("100%", None, None)]))
        # Nothing is saved without this.
        connection.commit()

        with connection.cursor() as cursor:
            seen.append(cursor.execute("SELECT id, title, price, bought FROM books ORDER BY id"))
            seen.append(cursor.fetchone())
            seen.extend(cursor.fetchall())
            seen.append([column[0] for column in cursor.description])
            try:
                cursor.execute(insert, ("100%", 2, None))
            except pymysql.err.IntegrityError as error:
                seen.append((type(error), error.args))
            cursor.execute("DELETE FROM books")
    seen.append(connection.open)

    # The deletion was never committed; the connection has ended, and so has what it held.
    connection = pymysql.connect(**where)
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT COUNT(*), @@autocommit, DATABASE() FROM books")
        seen.append(cursor.fetchall())
        cursor.execute("DROP TABLE books")
        late = connection.cursor()
    try:
        late.execute("SELECT 1")
    except pymysql.Error as error:
        seen.append((type(error), error.args))
    return seen
"""

WEB = """
import json
import socketserver
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer


class ThreadingServer(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 64


class Handler(WSGIRequestHandler):
    def log_message(self, *arguments):
        pass


def make_app(where):
    def app(environ, start_response):
        connection = pymysql.connect(**where)
        try:
            with connection.cursor() as cursor:
                path, _, name = environ["PATH_INFO"].lstrip("/").partition("/")
                if path == "hit":
                    cursor.execute("INSERT INTO hits (name) VALUES (%s)", (name,))
                    connection.commit()
                elif path == "forgotten":
                    cursor.execute("INSERT INTO hits (name) VALUES (%s)", (name,))
                elif path == "broken":
                    cursor.execute("SELECT nothing FROM nowhere")
                cursor.execute("SELECT %s, CONNECTION_ID(), COUNT(*) FROM hits WHERE name = %s", (name, name))
                answer = cursor.fetchone()
            status = "200 OK"
        except pymysql.MySQLError as error:
            answer, status = [type(error).__name__, error.args[0]], "500 Internal Server Error"
        finally:
            connection.close()
        start_response(status, [("Content-Type", "application/json")])
        return [json.dumps(answer).encode()]

    return app


def main(where):
    server = ThreadingServer(("127.0.0.1", 0), Handler)
    server.set_app(make_app(where))
    return server
"""


def load(program: str, module: str) -> Callable[..., Any]:
    """Compile a program under one of the two imports and give its `main`."""
    namespace: dict[str, Any] = {}
    exec(compile(IMPORTS[module] + program, f"<{module}>", "exec"), namespace)
    main: Callable[..., Any] = namespace["main"]
    return main


@pytest.fixture
def where(account: Server, database: str) -> dict[str, Any]:
    """Connect arguments for an account and a database of the test's own."""
    return account.kwargs(database=database, ssl_disabled=True)


def test_books_program_sees_the_same(where: dict[str, Any]) -> None:
    plain, pooled = (load(BOOKS, module)(where) for module in IMPORTS)
    assert plain == pooled
    assert plain[:3] == [1, 1, 2]
    assert plain[4]["title"] == "Büchner's \\ Woyzeck"
    duplicate, arguments = plain[-4]
    assert (duplicate, arguments[0]) == (pymysql.err.IntegrityError, 1062)
    assert plain[-3] is False
    assert plain[-2] == ((3, 0, where["database"]),)
    assert plain[-1] == (pymysql.err.InterfaceError, (0, ""))


@contextlib.contextmanager
def serving(module: str, where: dict[str, Any]) -> Iterator[Callable[[str], tuple[int, Any]]]:
    """Run the web program; give a function that requests a path and returns status and answer."""
    server = load(WEB, module)(where)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def request(path: str) -> tuple[int, Any]:
        try:
            with opener.open(f"http://127.0.0.1:{server.server_port}/{path}", timeout=WAIT) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    try:
        yield request
    finally:
        server.shutdown()
        thread.join(WAIT)
        server.server_close()


def visit_all(request: Callable[[str], tuple[int, Any]]) -> list[tuple[int, Any]]:
    """Request every kind of page many times, several at once; answers come in the order of the paths."""
    kinds = ("hit", "show", "forgotten", "broken")
    paths = [f"{kinds[number % len(kinds)]}/name{number}" for number in range(REQUESTS)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(request, paths, timeout=WAIT))


def test_threaded_web_program_sees_the_same_with_few_connections(
    where: dict[str, Any], admin: Connection[Any], connection_ids: Callable[..., set[int]]
) -> None:
    answers: dict[str, list[Any]] = {}
    connections: dict[str, int] = {}
    for module in IMPORTS:
        with admin.cursor() as cursor:
            cursor.execute(f"CREATE TABLE {where['database']}.hits (name VARCHAR(20)) ENGINE=InnoDB")
        with serving(module, where) as request:
            given = visit_all(request)
            if module == "pooled":
                assert len(connection_ids(where["user"])) <= HANDLERS
        connections[module] = len({answer[1] for status, answer in given if status == 200})
        answers[module] = [(status, answer[0], answer[2:]) for status, answer in given]
        with admin.cursor() as cursor:
            # Uncommitted work of the last request may be undone a moment after its answer.
            cursor.execute(f"SELECT name FROM {where['database']}.hits ORDER BY name")
            answers[module].append(cursor.fetchall())
            cursor.execute(f"DROP TABLE {where['database']}.hits")
    assert answers["pooled"] == answers["plain"]
    assert [status for status, *_ in answers["plain"][:4]] == [200, 200, 200, 500]
    assert len(answers["plain"][-1]) == REQUESTS // 4
    assert connections["plain"] == REQUESTS * 3 // 4
    assert connections["pooled"] <= HANDLERS


def test_nothing_stays_open_after_close_pools(
    where: dict[str, Any], admin: Connection[Any], connection_ids: Callable[..., set[int]]
) -> None:
    import pooled_pymysql

    with admin.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {where['database']}.hits (name VARCHAR(20))")
    with serving("pooled", where) as request:
        assert request("show/x") == (200, ["x", *connection_ids(where["user"]), 0])
    pooled_pymysql.close_pools()
    wait_until(lambda: not connection_ids(where["user"]), 5.0, "the end of the pool's connections")
