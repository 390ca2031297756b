"""Tests of the dialect, for `tox -e sqlalchemy`: other environments have no SQLAlchemy, and collect nothing here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest
from proxy import Proxy
from servers import Server

# Not by importing it: without SQLAlchemy that would find this very folder.
spec = find_spec("sqlalchemy")
if spec is None or spec.origin is None:
    collect_ignore_glob = ["*"]
else:
    collect_ignore = ["compliance"]  # a project of its own, which test_compliance.py runs

QUERY = 3
MakeEngine = Callable[..., Any]


@pytest.fixture
def make_engine(account: Server) -> Iterator[MakeEngine]:
    """A function that makes engines with the test's own account; they are disposed of with the test."""
    import sqlalchemy

    made = []

    def make(query: str = "", driver: str = "mysql+pooled_pymysql", port: int = account.port, **arguments: Any) -> Any:
        own = arguments.get("connect_args", {})
        arguments["connect_args"] = own if "ssl" in own else {"ssl_disabled": True, **own}
        url = f"{driver}://{account.user}:{account.password}@{account.host}:{port}/{account.database}{query}"
        engine = sqlalchemy.create_engine(url, **arguments)
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.dispose()


@pytest.fixture
def proxy(account: Server) -> Iterator[Proxy]:
    """A proxy before the server, which counts."""
    with Proxy(account.host, account.port) as between:
        yield between


@pytest.fixture
def table(database: str, admin: Any) -> str:
    """The name of a new table with three rows."""
    name = f"{database}.things"
    with admin.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {name} (id INT PRIMARY KEY, size INT NOT NULL)")
        cursor.execute(f"INSERT INTO {name} VALUES (1, 10), (2, 10), (3, 30)")
    return name
