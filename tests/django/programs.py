"""Programs in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from servers import Server

from .aliases import database

PATIENCE = 50.0  # seconds for a program
SITE = Path(__file__).with_name("site")

PRELUDE = """
import json, sys
import django
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

ALIASES = json.loads(sys.stdin.readline())

def set_up(**engines):
    settings.configure(DATABASES={alias: {**ALIASES["default"], **change} for alias, change in engines.items()})
    django.setup()

def ask(connection, sql="SELECT CONNECTION_ID()"):
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]

OURS = {"ENGINE": "pooled_pymysql.django", "OPTIONS": {**ALIASES["default"]["OPTIONS"], "pool": True}}
DJANGOS = {"ENGINE": "django.db.backends.mysql"}
"""


def run_program(text: str, server: Server) -> str:
    """Run a program that knows the server's aliases, and give what it printed; it must end well."""
    return finished(
        [sys.executable, "-W", "error", "-c", PRELUDE + text], json.dumps({"default": database(server, {})}) + "\n"
    )


def manage(server: Server, *words: str, options: dict[str, Any] | None = None, **environment: str) -> str:
    """Run a management command of the site."""
    return finished([sys.executable, "-W", "error", "manage.py", *words], "", **site(server, options, **environment))


def site(server: Server, options: dict[str, Any] | None = None, **environment: str) -> dict[str, Any]:
    """Give where, and in which environment, a program of the site runs."""
    given = json.dumps(database(server, {"pool": True} if options is None else options))
    return {"cwd": SITE, "env": {**os.environ, "SITE_DATABASE": given, **environment}}


def finished(command: list[str], stdin: str, **more: Any) -> str:
    done = subprocess.run(
        command,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
        **more,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
