"""Django's own tests, with our backend and with ours installed as MySQLdb: the results are plain PyMySQL's."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import django
import pytest
from servers import Server

SUITE = Path(__file__).with_name("suite")
LABELS = os.environ.get(
    "DJANGO_SUITE",
    "backends transactions transaction_hooks queries basic select_for_update bulk_create introspection"
    " dbshell get_or_create inspectdb multiple_database raw_query test_utils",
).split()
FEWEST = 1400  # tests in these
LONGEST = 500.0  # seconds for one run

QUOTES = "backends.mysql.test_schema.SchemaEditorTests.test_quote_value"

# What plain PyMySQL fails as well: it quotes bytes and booleans differently from mysqlclient.
KNOWN_FAILURES = {QUOTES: "failed"}

# On MySQL, where passwords go without TLS here, PyMySQL asks for that package.
if importlib.util.find_spec("cryptography") is None:
    KNOWN_ON_MYSQL = {**KNOWN_FAILURES, "backends.tests.BackendTestCase.test_unicode_password": "failed"}
else:
    KNOWN_ON_MYSQL = KNOWN_FAILURES

# That test imports MySQLdb, without which our backend works.
KNOWN_DIFFERENCES = {"engine": {QUOTES: ("failed", "error ModuleNotFoundError")}, "installed": {}}

pytestmark = pytest.mark.timeout(LONGEST * 2.5)


def differences(one: Mapping[str, str], other: Mapping[str, str]) -> dict[str, tuple[str | None, str | None]]:
    """Give the tests of which the outcomes differ, or that only one has run."""
    return {
        test: (one.get(test), other.get(test)) for test in one.keys() | other.keys() if one.get(test) != other.get(test)
    }


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests' folder of the source distribution of the Django that is installed."""
    version = django.get_version()
    folder = Path(os.environ.get("DJANGO_SOURCE") or tmp_path_factory.mktemp("django"))
    if not list(folder.glob(f"*-{version}/tests/runtests.py")):
        what = ["download", "--quiet", "--no-deps", "--no-binary=django", f"--dest={folder}", f"django=={version}"]
        subprocess.run([sys.executable, "-m", "pip", *what], check=True, timeout=LONGEST)
        with tarfile.open(next(folder.glob(f"*-{version}.tar.gz"))) as archive:
            archive.extractall(folder, filter="data")
    return next(folder.glob(f"*-{version}/tests"))


@pytest.fixture(scope="session")
def zoned(server: Server) -> Server:
    """The server, with time zones."""
    with server.connect(autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT COUNT(*) FROM mysql.time_zone_name WHERE name = 'UTC'")
        if cursor.fetchone() == (0,):
            load_zones(server, cursor)
        cursor.execute("SELECT CONVERT_TZ('2001-01-01 01:00:00', 'UTC', 'UTC') IS NOT NULL")
        assert cursor.fetchone() == (1,)
    return server


def load_zones(server: Server, cursor: Any) -> None:
    """Load the system's time zones into MariaDB; UTC alone into MySQL, and where MariaDB's program is missing."""
    program, client = shutil.which("mariadb-tzinfo-to-sql"), shutil.which("mariadb")
    zones = Path("/usr/share/zoneinfo")
    if server.is_mariadb and program and client and zones.is_dir():
        sql = subprocess.run(
            [program, str(zones)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False, timeout=60
        ).stdout
        place = [f"--host={server.host}", f"--port={server.port}", f"--user={server.user}", "--protocol=tcp", "mysql"]
        environment = {**os.environ, "MYSQL_PWD": server.password}
        subprocess.run([client, "--no-defaults", *place], input=sql, env=environment, check=True, timeout=120)
        return
    cursor.execute("INSERT INTO mysql.time_zone (Use_leap_seconds) VALUES ('N')")
    cursor.execute("INSERT INTO mysql.time_zone_name VALUES ('UTC', LAST_INSERT_ID())")
    cursor.execute("INSERT INTO mysql.time_zone_transition_type VALUES (LAST_INSERT_ID(), 0, 0, 0, 'UTC')")


@pytest.fixture(scope="session")
def results(source: Path, zoned: Server, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that runs the suite in one way, once, and gives the outcome of each test."""
    folder = tmp_path_factory.mktemp("results")
    place = {name: getattr(zoned, name) for name in ("host", "port", "user", "password")}

    @functools.cache
    def run(way: str) -> dict[str, str]:
        environment = {
            **os.environ,
            "PYTHONPATH": str(SUITE),
            "SUITE_WAY": way,
            "SUITE_SERVER": json.dumps(place),
            "SUITE_RESULTS": str(folder / way),
        }
        command = [sys.executable, "runtests.py", "--settings=suite_settings", "--parallel=1", "--noinput", *LABELS]
        with (folder / f"{way}.log").open("wb") as log:
            subprocess.run(command, cwd=source, env=environment, stdout=log, stderr=log, timeout=LONGEST, check=False)
        shown = (folder / f"{way}.log").read_text(errors="replace")
        assert (folder / way).exists(), shown[-5_000:]
        sys.stdout.write(shown[-20_000:])  # for who looks at a failure
        outcomes: dict[str, str] = json.loads((folder / way).read_text())
        return outcomes

    return run


def test_plain_pymysql_fails_what_is_known_and_nothing_else(results: Any, server: Server) -> None:
    known = KNOWN_FAILURES if server.is_mariadb else KNOWN_ON_MYSQL
    outcomes = results("plain")
    passed = sum(outcome == "passed" for outcome in outcomes.values())
    sys.stdout.write(f"{len(outcomes)} tests of Django {django.get_version()}, {passed} passed\n")
    harmless = ("passed", "skipped", "failed as expected")
    assert {test: outcome for test, outcome in outcomes.items() if not outcome.startswith(harmless)} == known
    assert len(outcomes) >= FEWEST or "DJANGO_SUITE" in os.environ


@pytest.mark.parametrize("way", ["engine", "installed"])
def test_results_are_those_of_plain_pymysql(results: Any, way: str) -> None:
    assert differences(results("plain"), results(way)) == KNOWN_DIFFERENCES[way]


def test_a_difference_is_noticed() -> None:
    plain = {"a": "passed", "b": "skipped: no", "c": "failed"}
    assert differences(plain, dict(plain)) == {}
    assert differences(plain, {**plain, "a": "error KeyError"}) == {"a": ("passed", "error KeyError")}
    assert differences(plain, {**plain, "d": "passed"}) == {"d": (None, "passed")}
    assert differences(plain, {"a": "passed", "b": "skipped: no"}) == {"c": ("failed", None)}
