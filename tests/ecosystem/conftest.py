"""Tools of the ecosystem, each used for real on this package (`./run test -e tools`).

Everywhere the pool may have MAX_SIZE sessions, more threads than that work at once, and the server is asked.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from servers import Server

import pooled_pymysql

MAX_SIZE = 3

# How SQLAlchemy is told to use this package: the URL's scheme, and the arguments of create_engine() that it needs.
SCHEMES: dict[str, Mapping[str, Any]] = {
    "mysql+pymysql": {"module": pooled_pymysql, "poolclass": sqlalchemy.NullPool},
    "mysql+pooled_pymysql": {},
}


@dataclasses.dataclass(frozen=True)
class Place:
    """A database of the test's own, and how SQLAlchemy reaches it through the pool."""

    scheme: str
    server: Server

    @property
    def url(self) -> str:
        own = self.server
        return f"{self.scheme}://{own.user}:{own.password}@{own.host}:{own.port}/{own.database}"

    @property
    def options(self) -> dict[str, Any]:
        return {**SCHEMES[self.scheme], "connect_args": {"ssl_disabled": True}}

    def engine(self, **more: Any) -> sqlalchemy.Engine:
        return sqlalchemy.create_engine(self.url, **self.options, **more)


@pytest.fixture(autouse=True)
def few() -> Iterator[int]:
    """Let pools that name no size have MAX_SIZE sessions."""
    before = pooled_pymysql.options.defaults().max_size
    pooled_pymysql.configure(max_size=MAX_SIZE)
    yield MAX_SIZE
    pooled_pymysql.configure(max_size=before)


@pytest.fixture
def home(account: Server, admin: Any, database: str) -> Server:
    """The server, with an account and a database of the test's own."""
    with admin.cursor() as cursor:
        cursor.execute(f"ALTER DATABASE {database} CHARACTER SET utf8mb4")
    return dataclasses.replace(account, database=database)


@pytest.fixture(params=SCHEMES)
def place(request: pytest.FixtureRequest, home: Server) -> Place:
    """The same for SQLAlchemy, in each way there is."""
    return Place(request.param, home)


Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A function that runs `python -m pooled_pymysql run` on a program's text, and gives what it printed."""

    def run_program(text: str, *words: str, through: tuple[str, ...] = ()) -> str:
        (tmp_path / "program.py").write_text(text)
        warnings = ["-W", "error", "-W", "ignore:'passwd' is deprecated"]  # playhouse.db_url gives it
        command = [sys.executable, *warnings, "-m", "pooled_pymysql", "run", "--max-size", str(MAX_SIZE)]
        done = subprocess.run(
            [*command, *through, "program.py", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run_program
