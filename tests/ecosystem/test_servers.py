"""gunicorn and celery, started by `run`: applications that import `pymysql`, and what the server sees of them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from servers import Server, wait_until
from watching import Watch

MAX_SIZE = 3
WAIT = 40.0  # seconds

APP = """
import json, os, sys, threading
import pymysql

WHERE = json.loads(os.environ["WHERE"])

def app(environ, start_response):
    name = environ["PATH_INFO"].lstrip("/")
    connection = pymysql.connect(**WHERE)
    try:
        with connection.cursor() as cursor:
            status = "200 OK"
            if name == "broken":
                try:
                    cursor.execute("SELECT nothing FROM nowhere")
                except pymysql.ProgrammingError as error:
                    status = "500 Internal Server Error"
                    answer = error.args[0]
            else:
                cursor.execute("INSERT INTO hits (name) VALUES (%s)", (name,))
                connection.commit()
                cursor.execute("SELECT COUNT(*), CONNECTION_ID(), SLEEP(0.01) FROM hits WHERE name = %s", (name,))
                answer = [*cursor.fetchone()[:2], os.getpid(), pymysql.__name__]
    finally:
        connection.close()
    start_response(status, [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]

if os.environ.get("CONNECT_FIRST"):  # as applications do that look at the schema when they are imported
    with pymysql.connect(**WHERE) as first, first.cursor() as cursor:
        cursor.execute("SELECT 1")
"""

TASKS = """
import json, os
import celery, pymysql
from celery.signals import worker_process_init

WHERE = json.loads(os.environ["WHERE"])
app = celery.Celery("tasks", broker="filesystem://", backend="db+" + os.environ["BACKEND"])
app.conf.broker_transport_options = {
    "data_folder_in": os.environ["BROKER"], "data_folder_out": os.environ["BROKER"],
    "control_folder": os.environ["BROKER"] + "/control", "polling_interval": 0.05,
}
app.conf.database_engine_options = {"connect_args": {"ssl_disabled": True}}
app.conf.worker_hijack_root_logger = False

with pymysql.connect(**WHERE) as first, first.cursor() as cursor:  # in the parent, before it forks
    cursor.execute("SELECT 1")

@app.task
def hit(name):
    with pymysql.connect(**WHERE) as connection:
        with connection.cursor() as cursor:
            if name == "broken":
                cursor.execute("SELECT nothing FROM nowhere")
            cursor.execute("INSERT INTO hits (name) VALUES (%s)", (name,))
            connection.commit()
            cursor.execute("SELECT COUNT(*), CONNECTION_ID(), SLEEP(0.01) FROM hits WHERE name = %s", (name,))
            return [*cursor.fetchone()[:2], os.getpid(), pymysql.__name__]
"""


@pytest.fixture
def hits(home: Server, admin: Any) -> Server:
    """The server, with a table for the applications."""
    with admin.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {home.database}.hits (name VARCHAR(20)) ENGINE=InnoDB")
    return home


@contextlib.contextmanager
def started(
    *words: str, folder: Path, environment: dict[str, str], plain: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program, by `run` unless it is to be plain, in a process group of its own; end all of it."""
    run = () if plain else ("-m", "pooled_pymysql", "run", "--max-size", str(MAX_SIZE))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *run, *words],
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"} | environment,
            start_new_session=True,
        )
    try:
        yield process
        process.terminate()
        assert process.wait(WAIT) == 0
    except BaseException:
        sys.stderr.write((folder / "log").read_text(errors="replace")[-8000:])
        raise
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(WAIT)


class OverUnixSocket(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=WAIT)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(WAIT)
        self.sock.connect(self.path)


class Site:
    """gunicorn with the application, and its visitors."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(self.path) == 0

    def get(self, path: str) -> tuple[int, Any]:
        with contextlib.closing(OverUnixSocket(self.path)) as connection:
            connection.request("GET", f"/{path}")
            response = connection.getresponse()
            return response.status, json.load(response)

    def visit(self, paths: list[str], clients: int = 24) -> list[Any]:
        with ThreadPoolExecutor(clients) as pool:
            return list(pool.map(self.get, paths, timeout=WAIT))


@contextlib.contextmanager
def gunicorn(
    *words: str, folder: Path, hits: Server, plain: bool = False
) -> Iterator[tuple[Site, subprocess.Popen[bytes]]]:
    """Run gunicorn on a unix socket."""
    (folder / "web.py").write_text(APP)
    environment = {"WHERE": json.dumps(hits.kwargs(ssl_disabled=True)), "CONNECT_FIRST": "yes"}
    site = Site(folder / "web.sock")
    command = ["-m", "gunicorn", "--bind", f"unix:{site.path}", "--no-control-socket", *words, "web:app"]
    with started(*command, folder=folder, environment=environment, plain=plain) as process:
        wait_until(site.listens, WAIT, "gunicorn")
        yield site, process


WORKERS = 2
KINDS = {
    "gthread": ("--worker-class", "gthread", "--threads", "12"),
    "preload": ("--worker-class", "gthread", "--threads", "12", "--preload"),
    "gevent": ("--worker-class", "gevent"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.timeout(120)
def test_gunicorn(kind: str, hits: Server, ids: Any, tmp_path: Path) -> None:
    words = ("--workers", str(WORKERS), *KINDS[kind])
    paths = [f"name{number}" if number % 6 else "broken" for number in range(120)]
    with gunicorn(*words, folder=tmp_path, hits=hits) as (site, _), Watch(ids) as watch:
        answers = site.visit(paths)
        again = site.get("name1")
    for path, (status, answer) in zip(paths, answers, strict=True):
        if path == "broken":
            assert (status, answer) == (500, 1146)
        else:
            assert (status, answer[0], answer[3]) == (200, 1, "pooled_pymysql")
    assert again[1][0] == 2
    good = [answer for status, answer in answers if status == 200]
    used = {process: {each[1] for each in good if each[2] == process} for process in {each[2] for each in good}}
    assert all(len(connections) <= MAX_SIZE for connections in used.values())
    # The arbiter has one more when it has loaded the application itself.
    assert 1 <= watch.most <= WORKERS * MAX_SIZE + 1


@pytest.mark.timeout(120)
def test_the_same_gunicorn_without_run_opens_a_connection_for_each_request(
    hits: Server, ids: Any, tmp_path: Path
) -> None:
    words = ("--workers", str(WORKERS), *KINDS["gthread"])
    with gunicorn(*words, folder=tmp_path, hits=hits, plain=True) as (site, _), Watch(ids) as watch:
        answers = site.visit([f"name{number}" for number in range(120)])
    assert {answer[3] for _, answer in answers} == {"pymysql"}
    assert len({answer[1] for _, answer in answers}) == 120
    assert watch.most > WORKERS * MAX_SIZE + 1


@pytest.mark.timeout(120)
def test_gunicorn_reloads_and_starts_itself_anew(hits: Server, tmp_path: Path) -> None:
    with gunicorn("--worker-class", "gthread", folder=tmp_path, hits=hits) as (site, process):
        _, (_, _, first, name) = site.get("a")
        assert name == "pooled_pymysql"
        process.send_signal(signal.SIGHUP)
        second = wait_until(lambda: (answer := site.get("b")[1])[2] != first and answer, WAIT, "the next worker")
        assert second[3] == "pooled_pymysql"

        # USR2: the same command line again, by exec, without `run` in it.
        process.send_signal(signal.SIGUSR2)
        others = wait_until(lambda: children(process.pid) - {first, second[2]}, WAIT, "the new arbiter")
        (arbiter,) = others
        wait_until(lambda: children(arbiter), WAIT, "the new arbiter's worker")
        process.send_signal(signal.SIGWINCH)  # gunicorn: the old workers go
        third = wait_until(lambda: (answer := site.get("c")[1])[2] != second[2] and answer, WAIT, "the new arbiter's")
        assert third[3] == "pooled_pymysql"
        os.kill(arbiter, signal.SIGTERM)
        wait_until(lambda: arbiter not in children(process.pid), WAIT, "the new arbiter's end")


def children(process: int) -> set[int]:
    """The processes that a process has started and that still run."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(parent) == process and state != "Z":
                found.add(int(folder.name))
    return found


CONCURRENCY = 8
# What each pool of celery may have on the server: one pool for the tasks and one for their results in each process.
POOLS = {
    "threads": 2 * MAX_SIZE,
    "gevent": 2 * MAX_SIZE,
    "prefork": 2 * (CONCURRENCY + 1),  # each process runs one task at a time
}


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.timeout(150)
def test_celery(pool: str, hits: Server, ids: Any, admin: Any, tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "broker" / "control").mkdir(parents=True)
    url = f"mysql+pymysql://{hits.user}:{hits.password}@{hits.host}:{hits.port}/{hits.database}"
    environment = {
        "WHERE": json.dumps(hits.kwargs(ssl_disabled=True)),
        "BACKEND": url,
        "BROKER": str(tmp_path / "broker"),
    }
    worker = ["-m", "celery", "-A", "tasks", "worker", "--pool", pool, "--concurrency", str(CONCURRENCY)]
    worker += ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "INFO"]
    # The client's connections are not counted.
    other = environment | {"WHERE": environment["WHERE"].replace(hits.user, "test")}
    other["BACKEND"] = url.replace(hits.user, "test")

    def client(text: str, *words: str) -> Any:
        command = [sys.executable, "-c", "import json, sys, tasks\n" + text, *words]
        everything = {**os.environ, **other, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=tmp_path, env=everything, capture_output=True, timeout=90, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    # All are sent before the worker begins: it would read the files of this broker while they are written.
    tickets = client("print(json.dumps([tasks.hit.delay(f'name{n}' if n % 6 else 'broken').id for n in range(60)]))")
    with started(*worker, folder=tmp_path, environment=environment), Watch(ids) as watch:
        found = client(
            f"results = [tasks.app.AsyncResult(t).get(timeout={WAIT}, interval=0.05, propagate=False)"
            " for t in sys.argv[1:]]\n"
            "print(json.dumps([x if isinstance(x, list) else [type(x).__name__, x.args[0]] for x in results]))",
            *tickets,
        )
        wait_until(lambda: " ready." in (tmp_path / "log").read_text(), WAIT, "the worker")
    for number, answer in enumerate(found):
        if number % 6:
            assert (answer[0], answer[3]) == (1, "pooled_pymysql")
        else:
            assert answer == ["ProgrammingError", 1146]
    good = [answer for answer in found if len(answer) == 4]
    used = {process: {each[1] for each in good if each[2] == process} for process in {each[2] for each in good}}
    assert all(len(connections) <= MAX_SIZE for connections in used.values())
    assert 1 <= watch.most <= POOLS[pool]
    assert len(watch.seen) <= POOLS[pool]  # for 60 tasks and as many results
    with admin.cursor() as cursor:
        cursor.execute(f"SELECT COUNT(*) FROM {hits.database}.celery_taskmeta")
        assert cursor.fetchone() == (60,)
