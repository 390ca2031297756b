"""Tools that wrap `connect()` and what it returns see of a program what they see with PyMySQL, and so does it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from servers import Server

PROGRAM = Path(__file__).with_name("wrapped_program.py")
QUIET = {  # nothing is to be sent anywhere
    "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
    "DD_REMOTE_CONFIGURATION_ENABLED": "false",
    "DD_CRASHTRACKING_ENABLED": "false",
    "NEW_RELIC_DEVELOPER_MODE": "true",
}


def run(tool: str, kind: str, server: Server) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", str(PROGRAM), tool, kind, json.dumps(server.kwargs())]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=50, check=False, env=os.environ | QUIET, cwd=PROGRAM.parent
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout))


OWN = 12  # statements of the program
SEEN = {
    "wrapt": OWN,
    "ddtrace": OWN,
    "elasticapm": 2,  # those in no `with` block
    "newrelic": OWN - 1 + 2,  # those of the thread that it knows, and commits
}


@pytest.mark.parametrize("tool", SEEN)
def test_tool_and_program_see_what_they_see_with_pymysql(tool: str, server: Server) -> None:
    if tool == "ddtrace" and sys.version_info >= (3, 14):
        pytest.skip("ddtrace is not installed there")
    assert find_spec(tool), f"{tool} belongs to these tests' environment"
    pooled = run(tool, "pooled", server)
    assert pooled == run(tool, "plain", server)
    assert len(pooled["statements"]) == SEEN[tool], pooled["statements"]
