"""The pools that are compared: one module each, found by its name, and imported only in a process of its own.

A module says what it needs and how its pool is used:

- REQUIREMENTS: what pip is to install, newest releases; without it the peer is there already
- DISTRIBUTIONS: whose versions are noted
- IMPORTS: what a program imports to use the pool; DRIVER_IMPORTS: to use the driver alone
- VARIANTS: label -> options; each is measured in a process of its own
- POOLS: False where every lease is a new connection, so that there is nothing to share among threads
- MAX_SIZE: the most sessions a pool may have, where there is such a limit
- THREAD_BOUND: True where a thread can have one lease only
- NOTE: what must be known to read the figures, or nothing
- bare(arguments, autocommit=, tls=): a connection of the driver without any pool, the floor
- Pool(options, arguments, size=, autocommit=, tls=): `acquire()`, `release(lease)`, `close()`. All sizes are limits. A
  caller waits for PATIENCE seconds, by what the pool has for that; where it has nothing, by asking every POLL seconds

A lease is whatever the pool hands out, with `cursor()` and `commit()` of the DB-API.
"""

from __future__ import annotations

import ast
import os
import pkgutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

PATIENCE = float(os.environ.get("BENCHMARK_PATIENCE", "30"))
POLL = 0.001


class Facts(NamedTuple):
    """What a peer's module says of it: read without importing it, since it may not be installed here."""

    name: str
    requirements: tuple[str, ...]
    distributions: tuple[str, ...]
    imports: str
    driver_imports: str
    variants: Mapping[str, Mapping[str, Any]]
    pools: bool
    max_size: int | None
    note: str

    def labels(self) -> list[str]:
        return list(self.variants)


def found() -> list[Facts]:
    """Find the peers beside this file, in the order of their names, this package's own first."""
    folder = str(Path(__file__).parent)
    names = sorted((module.name for module in pkgutil.iter_modules([folder])), key=lambda name: (name != "ours", name))
    return [facts(name) for name in names]


def facts(name: str) -> Facts:
    """Read what a peer's module says in constants."""
    tree = ast.parse((Path(__file__).parent / f"{name}.py").read_text())
    said: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Name) and target.id.isupper():
            said[target.id] = ast.literal_eval(node.value)
    return Facts(
        name,
        said.get("REQUIREMENTS", ()),
        said.get("DISTRIBUTIONS", ()),
        said["IMPORTS"],
        said["DRIVER_IMPORTS"],
        said["VARIANTS"],
        said.get("POOLS", True),
        said.get("MAX_SIZE"),
        said.get("NOTE", ""),
    )


def pymysql_bare(arguments: Mapping[str, Any], *, autocommit: bool = True, tls: bool = False) -> Any:
    """Open a plain PyMySQL connection."""
    import pymysql

    return pymysql.connect(**pymysql_arguments(arguments, autocommit=autocommit, tls=tls))


def pymysql_arguments(arguments: Mapping[str, Any], *, autocommit: bool, tls: bool) -> dict[str, Any]:
    """Return PyMySQL's arguments; TLS means its default, which tries it."""
    return {**arguments, "autocommit": autocommit, **({} if tls else {"ssl_disabled": True})}


def polled(acquire: Callable[[], Any], exhausted: type[Exception]) -> Any:
    """Ask until there is a session: for pools whose callers do not wait."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return acquire()
        except exhausted:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL)
