"""`opentelemetry-instrument` in front of `python -m pooled_pymysql run`: an unedited program is pooled and traced."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from servers import Server

PROGRAM = """
import json, sys
import pymysql
for number in range(2):
    with pymysql.connect(**json.loads(sys.argv[1])) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 42, CONNECTION_ID()")
        answer, mine = cursor.fetchone()
        print("ROW", answer, mine, pymysql.__name__)
"""


@pytest.mark.parametrize(
    ("run", "name", "sessions"),
    [([], "pymysql", 2), (["-m", "pooled_pymysql", "run"], "pooled_pymysql", 1)],
    ids=["plain", "run"],
)
def test_each_statement_has_one_span(run: list[str], name: str, sessions: int, account: Server, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    tool = shutil.which("opentelemetry-instrument", path=str(Path(sys.executable).parent))
    assert tool
    exporters = {"OTEL_TRACES_EXPORTER": "console", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
    if run:
        exporters["OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"] = "pymysql"
    command = [tool, sys.executable, *run, "program.py", json.dumps(account.kwargs(ssl_disabled=True))]
    environment = os.environ | exporters
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("ROW")]
    assert [(answer, found) for answer, _, found in rows] == [("42", name)] * 2
    assert len({mine for _, mine, _ in rows}) == sessions
    assert done.stdout.count('"db.statement": "SELECT 42, CONNECTION_ID()"') == 2
