"""SQLAlchemy's dialect compliance suite, with PyMySQL and with this package: every test must end the same way.

compliance/ is a project of its own for it, run once for each driver on the same databases.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pymysql.connections import Connection
from servers import Server

FOLDER = Path(__file__).with_name("compliance")
DATABASES = ("compliance", "test_schema", "test_schema_2")  # the suite knows the latter by these names
LIMIT = 900.0  # seconds for one run, which takes less than one minute on a machine that does nothing else
PLAIN, OURS = "pymysql", "pooled_pymysql"

pytestmark = pytest.mark.timeout(2 * LIMIT + 60)


def run_suite(driver: str, server: Server, report: Path) -> dict[str, str]:
    """Return how each test ended, by its name without the driver's."""
    url = f"mysql+{driver}://{server.user}:{server.password}@{server.host}:{server.port}/{DATABASES[0]}?charset=utf8mb4"
    command = [sys.executable, "-m", "pytest", "-c", "setup.cfg", "--rootdir=.", "--confcutdir=.", "-q"]
    with report.with_suffix(".log").open("w+") as log:
        finished = subprocess.run(
            [*command, f"--dburi={url}", "--requirements=suite_requirements:Requirements", "test_suite.py"],
            cwd=FOLDER,
            env={name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
            | {"COMPLIANCE_REPORT": str(report)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=LIMIT,
            check=False,
        )
        log.seek(0)
        assert finished.returncode in (0, 1), f"the suite did not run: {log.read()[-4000:]}"
    return {
        name.replace(f"+{driver}_", f"+{PLAIN}_"): outcome for name, outcome in json.loads(report.read_text()).items()
    }


@pytest.fixture(scope="module")
def outcomes(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """How each test ended with each driver."""
    if not server.is_mariadb:
        pytest.skip("suite_requirements.py says what MariaDB can do")
    folder = tmp_path_factory.mktemp("compliance")
    found = {}
    for driver in (PLAIN, OURS):
        with server.connect(autocommit=True) as admin:
            renew(admin)
        found[driver] = run_suite(driver, server, folder / f"{driver}.json")
    return found


def renew(admin: Connection[Any]) -> None:
    with admin.cursor() as cursor:
        for name in DATABASES:
            cursor.execute(f"DROP DATABASE IF EXISTS {name}")
            cursor.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")


def count(outcomes: dict[str, str], outcome: str) -> int:
    return list(outcomes.values()).count(outcome)


def test_the_suite_runs_with_pymysql(outcomes: dict[str, dict[str, str]]) -> None:
    plain = outcomes[PLAIN]
    assert count(plain, "passed") > 1300
    assert count(plain, "passed") > 5 * count(plain, "skipped")
    assert [name for name, outcome in plain.items() if outcome == "failed"] == []


def test_every_test_ends_as_with_pymysql(outcomes: dict[str, dict[str, str]]) -> None:
    plain, ours = outcomes[PLAIN], outcomes[OURS]
    different = [
        f"{name}: {plain.get(name)} with pymysql, {ours.get(name)} here"
        for name in sorted(plain.keys() | ours.keys())
        if plain.get(name) != ours.get(name)
    ]
    assert different == []


def test_nothing_fails(outcomes: dict[str, dict[str, str]]) -> None:
    ours = outcomes[OURS]
    assert count(ours, "passed") == count(outcomes[PLAIN], "passed")
    assert [name for name, outcome in ours.items() if outcome == "failed"] == []
