"""Django, configured once, whose alias `default` each test points at a database account of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import pytest
from servers import Server

# `tests/` is on the path, where this very folder could pass for a package of that name: metadata is asked.
try:
    metadata.version("django")
except metadata.PackageNotFoundError:
    collect_ignore_glob = ["test_*.py"]  # another environment than `tox -e django`


@pytest.fixture(scope="session", autouse=True)
def configured() -> None:
    import django
    from django.conf import settings

    settings.configure(DATABASES={}, USE_TZ=True)
    django.setup()


@pytest.fixture
def use(account: Server) -> Iterator[Callable[..., Any]]:
    """A function that sets the aliases (`default` by keyword arguments) and gives the connection of `default`."""
    from django.conf import settings as django_settings
    from django.db import connections

    from .aliases import database

    used: list[Any] = []

    def set_aliases(server: Server = account, options: Any = None, others: Any = None, **settings: Any) -> Any:
        aliases = {"default": database(server, options or {}, **settings), **(others or {})}
        django_settings.DATABASES = aliases
        connections.settings = connections.configure_settings(aliases)  # type: ignore[attr-defined]
        used.extend(aliases)
        return connections["default"]

    yield set_aliases
    for alias in dict.fromkeys(used):
        connections[alias].close()
        del connections[alias]


@pytest.fixture
def pooled(use: Callable[..., Any]) -> Any:
    """The connection of an alias with a pool."""
    return use(options={"pool": True})
