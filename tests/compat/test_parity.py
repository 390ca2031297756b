"""Every public name of PyMySQL is here, and is the same object."""

import importlib
import inspect
import pkgutil
from types import ModuleType

import pymysql
import pytest

import pooled_pymysql

# What this package has of its own, by intention.
OWN = {"connect", "Connect", "Connection", "threadsafety", "install_as_MySQLdb"}


def public_modules() -> list[str]:
    """Return the names of PyMySQL's public submodules, below the package."""
    found = pkgutil.walk_packages(pymysql.__path__, "pymysql.")
    return [module.name.removeprefix("pymysql.") for module in found if "._" not in module.name]


def names(module: ModuleType) -> set[str]:
    """Return all names of a module but those that the interpreter gives every module."""
    return {name for name in vars(module) if not name.startswith("__")}


def public_names(module: ModuleType, *, foreign: bool = True) -> list[str]:
    """Return the public names of a module, with or without those of modules like `sys` that it imports."""
    found = sorted(name for name in names(module) if not name.startswith("_"))
    values = {name: getattr(module, name) for name in found}
    return [
        name
        for name, value in values.items()
        if foreign or not isinstance(value, ModuleType) or value.__name__.startswith("pymysql.")
    ]


def test_the_known_submodules_are_discovered() -> None:
    known = {"charset", "connections", "constants", "converters", "cursors", "err", "times"}
    assert known | {"constants.CLIENT", "constants.ER"} <= set(public_modules())


@pytest.mark.parametrize("name", public_names(pymysql, foreign=False))
def test_public_name_of_the_package(name: str) -> None:
    theirs, ours = getattr(pymysql, name), getattr(pooled_pymysql, name)
    if isinstance(theirs, ModuleType):
        thin = importlib.import_module(theirs.__name__.replace("pymysql.", "pooled_pymysql.", 1))
        assert ours is thin or (name == "FIELD_TYPE" and ours is theirs)
    elif isinstance(theirs, str) and name not in OWN:
        assert ours == theirs
    elif name not in OWN:
        assert ours is theirs


def test_versions_are_those_of_pymysql() -> None:
    assert pooled_pymysql.__version__ is pymysql.__version__
    assert pooled_pymysql.version_info >= (2, 2, 1)


def test_own_names_are_what_the_db_api_wants() -> None:
    assert pooled_pymysql.connect is pooled_pymysql.Connect
    assert pooled_pymysql.threadsafety == 2
    assert issubclass(pooled_pymysql.Connection, pymysql.connections.Connection)
    for name in OWN - {"threadsafety"}:
        assert callable(getattr(pooled_pymysql, name))


def test_star_import_gives_what_pymysql_gives() -> None:
    theirs: dict[str, object] = {}
    ours: dict[str, object] = {}
    exec("from pymysql import *", theirs)
    exec("from pooled_pymysql import *", ours)
    assert set(theirs) <= set(ours)


@pytest.mark.parametrize("name", public_modules())
def test_names_of_a_submodule_are_the_same_objects(name: str) -> None:
    theirs = importlib.import_module(f"pymysql.{name}")
    ours = importlib.import_module(f"pooled_pymysql.{name}")
    assert ours.__name__ == f"pooled_pymysql.{name}"
    for each in names(theirs):
        value = getattr(theirs, each)
        if name == "constants":
            value = importlib.import_module(f"pooled_pymysql.constants.{each}")
        assert getattr(ours, each) is value, each


@pytest.mark.parametrize("name", [name for name in public_modules() if name != "constants"])
def test_public_names_of_a_submodule_are_listed(name: str) -> None:
    theirs = importlib.import_module(f"pymysql.{name}")
    ours = importlib.import_module(f"pooled_pymysql.{name}")
    assert public_names(ours) == public_names(theirs)


def test_name_that_pymysql_lacks_is_an_attribute_error_naming_it() -> None:
    cursors = importlib.import_module("pooled_pymysql.cursors")
    with pytest.raises(AttributeError, match="nonsense"):
        cursors.nonsense  # noqa: B018 - reading it is the test
    with pytest.raises(ImportError):
        importlib.import_module("pooled_pymysql.cursors.nonsense")


def test_name_added_to_pymysql_later_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    added = object()
    monkeypatch.setattr("pymysql.converters.added_later", added, raising=False)
    assert importlib.import_module("pooled_pymysql.converters").added_later is added


def test_private_names_that_tools_use_are_found() -> None:
    connections = importlib.import_module("pooled_pymysql.connections")
    assert connections._lenenc_int(1) == b"\x01"
    assert importlib.import_module("pooled_pymysql.charset")._charsets.by_id(45).name == "utf8mb4"


def test_exceptions_are_caught_under_both_names() -> None:
    for name, theirs in inspect.getmembers(pymysql.err, inspect.isclass):
        ours = getattr(importlib.import_module("pooled_pymysql.err"), name)
        assert ours is theirs
