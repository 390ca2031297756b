"""Stand in for PyMySQL in a Python process that `python -m pooled_pymysql run` has started, or a child of one.

The folder of this file is on PYTHONPATH there, so `site` imports it before the program begins. Nothing is loaded
until the program imports `pymysql` or `MySQLdb`: other programs start as fast as ever, and gevent and eventlet patch
first. PYTHONPATH reaches every Python below, whatever its version, so this is written for old ones too.
"""

import os
import sys
from _thread import get_ident

TYPE_CHECKING = False  # importing typing for it would cost every program some milliseconds
if TYPE_CHECKING:
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType

FOLDER = os.path.dirname(os.path.abspath(__file__))
PACKAGE = "pooled_pymysql"
NAMES = ("pymysql", "MySQLdb")


class Finder:
    """Answer the first import of one of NAMES, or of the package, by installing the package under all names.

    Only PyMySQL's import waits for the package's, and only MySQLdb's for PyMySQL's: threads cannot block each other.
    """

    owner: int

    stands_in = True  # for PyMySQL: another copy of this file need not

    def __init__(self) -> None:
        self.owner = 0  # the thread that loads the package: what it imports meanwhile is the real thing

    def find_spec(self, name: str, path: object = None, target: object = None) -> "ModuleSpec | None":  # noqa: ARG002
        """Return how to load a module of this name, or None where others are to answer."""
        if self.owner == get_ident() or (name not in NAMES and name != PACKAGE):
            return None
        from importlib.machinery import ModuleSpec
        from importlib.util import find_spec

        self.owner = get_ident()
        try:
            if find_spec("pymysql") is None:
                return None
            spec = find_spec(PACKAGE) or belonging()
        finally:
            self.owner = 0
        if name == PACKAGE:
            spec.loader = PackageLoader(self, spec)  # type: ignore[assignment]
            return spec
        return ModuleSpec(name, Alias(self), origin=spec.origin)  # type: ignore[arg-type]

    def retire(self) -> None:
        """Leave all further imports alone."""
        self.owner = 0
        if self in sys.meta_path:
            sys.meta_path.remove(self)


class PackageLoader:
    """Load the package, and install it under the other names."""

    real: "Loader"

    def __init__(self, finder: Finder, spec: "ModuleSpec") -> None:
        self.finder = finder
        self.spec = spec
        self.real = spec.loader  # type: ignore[assignment]

    def __getattr__(self, name: str) -> object:
        return getattr(self.real, name)

    def create_module(self, spec: "ModuleSpec") -> "ModuleType | None":
        """Let the real loader decide."""
        return self.real.create_module(spec)

    def exec_module(self, module: "ModuleType") -> None:
        """Run the package, for which PyMySQL is PyMySQL."""
        module.__loader__ = self.spec.loader = self.real
        self.finder.owner = get_ident()
        try:
            self.real.exec_module(module)
            module.install_as_pymysql()
            module.install_as_MySQLdb()
        finally:
            self.finder.retire()


class Alias:
    """Give the package another name."""

    def __init__(self, finder: Finder) -> None:
        self.finder = finder
        self.spec = None  # type: ModuleSpec | None

    def create_module(self, spec: "ModuleSpec") -> "ModuleType":
        """Return the package; if it cannot be loaded, what has this name without it."""
        from importlib import import_module

        try:
            import_module("pymysql" if spec.name != "pymysql" else PACKAGE)
            module = import_module(PACKAGE)
        except Exception as error:  # noqa: BLE001  the program is to run, whatever this was
            sys.stderr.write("pooled_pymysql: PyMySQL stays without a pool in this process: %r\n" % error)  # noqa: UP031
            for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
                del sys.modules[name]
            self.finder.retire()
            module = import_module(spec.name)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: "ModuleType") -> None:
        """Undo what the import system has just done to a module that is loaded already."""
        module.__spec__ = self.spec


def belonging() -> "ModuleSpec":
    """Return how to load the package that this file belongs to, for an interpreter that has none of its own."""
    from importlib.util import spec_from_file_location

    root = os.path.dirname(FOLDER)
    file = os.path.join(root, "__init__.py")
    return spec_from_file_location(PACKAGE, file, submodule_search_locations=[root])  # type: ignore[return-value]


def run_next() -> None:
    """Run the `sitecustomize` that this one hides."""
    from importlib.machinery import PathFinder

    spec = PathFinder.find_spec("sitecustomize")
    if spec is None or spec.loader is None:
        return
    from importlib.util import module_from_spec

    module = sys.modules["sitecustomize"] = module_from_spec(spec)
    spec.loader.exec_module(module)


# The program sees the path as it would without us; what it starts inherits PYTHONPATH.
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != FOLDER]
if sys.version_info >= (3, 11) and not any(hasattr(each, "stands_in") for each in sys.meta_path):
    # First, so that tools which the next one starts meet what the program will use.
    sys.meta_path.insert(0, Finder())
run_next()
