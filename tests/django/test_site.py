"""A small site: served by Django's servers, tested by its runner, managed by its commands."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, Self

import pytest
from callers import Caller
from servers import Server, free_port, wait_until

from .programs import finished, manage, site

CROWD = 12  # requests at the same time
FEW = 3
POOL = {"pool": {"max_size": FEW}}
NONE: dict[str, Any] = {}


@pytest.fixture
def shop(account: Server, admin: Any) -> Iterator[Server]:
    """An account whose database has the site's tables."""
    import dataclasses

    own = dataclasses.replace(account, database=account.user)
    with admin.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {own.database}")
        try:
            manage(own, "migrate", "--run-syncdb", "-v", "0")
            yield own
        finally:
            cursor.execute(f"DROP DATABASE {own.database}")


class Watch:
    """The most connections that the server had at once, sampled in a thread."""

    def __init__(self, ids: Callable[[], set[int]]) -> None:
        self.most: set[int] = set()
        self._ids = ids
        self._over = threading.Event()
        self._caller = Caller(self._look)

    def _look(self) -> None:
        while not self._over.wait(0.005):
            self.most = max(self.most, self._ids(), key=len)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._caller.outcome()


@contextlib.contextmanager
def runserver(server: Server, options: dict[str, Any]) -> Iterator[Callable[[str], Any]]:
    """Run Django's threaded development server; gives a function that fetches a page."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "manage.py", "runserver", "--noreload", f"127.0.0.1:{port}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **site(server, options),
    )

    def get(page: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=30) as answer:
            return json.load(answer)

    def answers() -> Any:
        assert process.poll() is None, process.stdout and process.stdout.read()
        with contextlib.suppress(OSError):
            return get("session")

    try:
        wait_until(answers, 30, "an answer of the site")
        yield get
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("options", [POOL, NONE], ids=["pool", "none"])
def test_threads_of_runserver(shop: Server, ids: Callable[[], set[int]], options: dict[str, Any]) -> None:
    with runserver(shop, options) as get:
        with Watch(ids) as watch:
            callers = [Caller(lambda: get("session")) for _ in range(CROWD)]
            answers = [caller.outcome() for caller in callers]
            answers += [get("session") for _ in range(3)]
        assert all(answer["left"] is None for answer in answers)
        used = {answer["id"] for answer in answers}
        if options:
            assert len(used | watch.most) <= FEW
        else:
            assert len(watch.most) > FEW and len(used) == len(answers)
        names = [f"hat{number}" for number in range(CROWD)]
        for caller in [Caller(lambda name=name: get(f"sell/{name}")) for name in names]:
            caller.outcome()
        with pytest.raises(urllib.error.HTTPError, match="500"):
            get("fail")
        with pytest.raises(urllib.error.HTTPError, match="500"):
            get("sell/hat0")  # there is one
        assert sold(shop) == sorted(names)
        if options:
            assert ids() <= used | watch.most


def sold(server: Server) -> list[str]:
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT name FROM shop_item ORDER BY name")
        return [name for (name,) in cursor.fetchall()]


@pytest.mark.parametrize("options", [POOL, NONE], ids=["pool", "none"])
def test_requests_through_the_asgi_handler(shop: Server, ids: Callable[[], set[int]], options: dict[str, Any]) -> None:
    with Watch(ids) as watch:
        printed = finished([sys.executable, "asgi_load.py", str(CROWD)], "", **site(shop, options))
    answers = json.loads(printed.splitlines()[-1])
    assert [status for status, _ in answers] == [200] * CROWD * 3
    assert all(answer["left"] is None for _, answer in answers)
    used = {answer["id"] for _, answer in answers}
    if options:
        assert len(used | watch.most) <= FEW
    else:
        assert len(watch.most) > FEW and len(used) == len(answers)


@pytest.mark.parametrize(
    ("words", "method"),
    [
        pytest.param([], "", id="one process"),
        pytest.param(["--parallel", "2"], "fork", id="fork"),
        pytest.param(["--parallel", "2"], "spawn", id="spawn"),
        pytest.param(["--keepdb"], "", id="keepdb"),
    ],
)
@pytest.mark.timeout(120)
def test_djangos_test_runner(
    shop: Server, admin: Any, ids: Callable[[], set[int]], words: list[str], method: str
) -> None:
    for _ in range(2 if "--keepdb" in words else 1):
        printed = manage(shop, "test", "--noinput", *words, options=POOL, SITE_START_METHOD=method)
        assert "Ran 7 tests" in printed and "\nOK" in printed
        places = {line.partition("database=")[2] for line in printed.splitlines() if "process=" in line}
        copies = {f"test_{shop.database}_{number}" for number in (1, 2)}
        assert places and places <= (copies if "--parallel" in words else {f"test_{shop.database}"})
    wait_until(lambda: not ids(), what="the end of the sessions")
    with admin.cursor() as cursor:
        cursor.execute("SHOW DATABASES LIKE %s", (f"test\\_{shop.database}%",))
        left = [name for (name,) in cursor.fetchall()]
        assert left == ([f"test_{shop.database}"] if "--keepdb" in words else [])
        for name in left:
            cursor.execute(f"DROP DATABASE {name}")


def test_no_session_is_kept_for_a_test_database_that_goes(shop: Server, use: Any, ids: Callable[[], set[int]]) -> None:
    import pooled_pymysql

    from .aliases import ask

    connection = use(shop, options={"pool": {"min_size": 1}})
    assert ask(connection, "SELECT DATABASE()") == shop.database
    for _ in range(2):
        old = connection.settings_dict["NAME"]
        connection.creation.create_test_db(verbosity=0, autoclobber=True)
        assert ask(connection, "SELECT DATABASE()") == f"test_{shop.database}"
        connection.close()
        before = ids()
        connection.creation._create_test_db(verbosity=0, autoclobber=True)  # removes the one that is there
        wait_until(lambda before=before: not ids() & before, what="the end of the sessions")
        assert ask(connection, "SELECT DATABASE()") == f"test_{shop.database}"
        connection.creation.destroy_test_db(old, verbosity=0)
        assert pooled_pymysql.pools() == []
        assert ask(connection, "SELECT DATABASE()") == shop.database
        connection.close()


def test_inspectdb(shop: Server) -> None:
    printed = manage(shop, "inspectdb")
    assert "class ShopItem(models.Model):" in printed
    assert "name = models.CharField(unique=True, max_length=50)" in printed


def test_dbshell(shop: Server) -> None:
    assert "42" in manage(shop, "dbshell", "--", "-e", "SELECT 40 + 2").split()
