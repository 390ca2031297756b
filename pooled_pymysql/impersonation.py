"""Answer to other drivers' names in `sys.modules`.

Once `pymysql` means this package, `import pymysql` gives this package everywhere, in its own code too. The
names below it, `pymysql.connections` and so on, stay PyMySQL's. So what this package imports later than its
own loading (inside functions, in modules loaded on demand) names a submodule of PyMySQL, never its top.
"""

import os
import sys
from contextlib import suppress
from importlib import import_module

_PACKAGE = __name__.rpartition(".")[0]


def install_as_MySQLdb() -> None:  # noqa: N802 - PyMySQL's name
    """Make `import MySQLdb` give this package, and every `MySQLdb.x` the submodule of that name.

    To be called before the code that imports MySQLdb; it may be called again, from any thread.
    """
    for name in _names_in_pymysql():
        with suppress(ModuleNotFoundError):  # PyMySQL's private modules have no counterpart here
            sys.modules[f"MySQLdb.{name}"] = import_module(f"{_PACKAGE}.{name}")
    sys.modules["MySQLdb"] = sys.modules[_PACKAGE]


def install_as_pymysql() -> None:
    """Make `import pymysql` give this package, for code whose imports cannot be edited.

    To be called before that code is imported: it keeps what it has taken from PyMySQL earlier. It may be
    called again, from any thread. Only the top name is taken. The submodules remain PyMySQL's, so that no
    class exists twice and exceptions can be pickled; all are loaded now, as they would not be found later.
    """
    package = sys.modules[_PACKAGE]
    for name in _names_in_pymysql():
        with suppress(ImportError):  # what cannot be loaded here could not have been imported either
            module = import_module(f"pymysql.{name}")
            if "." not in name and not hasattr(package, name):
                setattr(package, name, module)  # PyMySQL's private modules
    sys.modules["pymysql"] = package


def _names_in_pymysql() -> list[str]:
    """Return the names of PyMySQL's submodules, such as "err" and "constants.ER"."""
    from pkgutil import walk_packages

    # Where PyMySQL is, is asked of a submodule: the top name may be ours already.
    folder = os.path.dirname(str(import_module("pymysql.connections").__file__))
    return [module.name.removeprefix("pymysql.") for module in walk_packages([folder], "pymysql.")]
