"""Django's own MySQL backend, to build upon, whichever driver is there for it, or none."""

import contextlib
import sys
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType

from django.core.exceptions import ImproperlyConfigured

import pooled_pymysql

_BACKEND = "django.db.backends.mysql"
_IMPORT_THE_DRIVER = ("base", "introspection")  # its modules that do so
_VERSION = (99, 0, 0, "final", 0)  # Django asks for one of mysqlclient's; PyMySQL 1.1 names one that Django 6 refuses


def load_backend() -> ModuleType:
    """Return Django's module `base` for MySQL.

    Where Django accepts what `import MySQLdb` gives, it is the module that every other alias uses. Else it is one of
    our own, and nothing is left behind: another alias without a driver fails as it would without us.
    """
    try:
        return import_module(f"{_BACKEND}.base")
    except ImproperlyConfigured:
        with _standing_in():
            return import_module(f"{_BACKEND}.base")


@contextlib.contextmanager
def _standing_in() -> Iterator[None]:
    """Answer to `import MySQLdb` inside, in all threads, and have the backend's modules loaded anew."""
    package = import_module(_BACKEND)
    before = _taken_out(package)
    pooled_pymysql.install_as_MySQLdb()
    stand_in = sys.modules["MySQLdb"] = ModuleType("MySQLdb")
    vars(stand_in).update({**vars(pooled_pymysql), "version_info": _VERSION})
    try:
        yield
    finally:
        _taken_out(package)
        sys.modules.update(before)


def _taken_out(package: ModuleType) -> dict[str, ModuleType]:
    """Take MySQLdb, and the modules that have imported it, out of `sys.modules`, and return them."""
    for name in _IMPORT_THE_DRIVER:
        vars(package).pop(name, None)
    users = [f"{_BACKEND}.{name}" for name in _IMPORT_THE_DRIVER]
    names = [name for name in sys.modules if name in users or name.partition(".")[0] == "MySQLdb"]
    return {name: sys.modules.pop(name) for name in names}
