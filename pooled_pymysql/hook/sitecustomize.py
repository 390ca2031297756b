"""Stand in for PyMySQL in a Python process that `python -m pooled_pymysql run` has started, or a child of one.

The folder of this file is on PYTHONPATH there, so `site` imports it before the program begins. Nothing is loaded
until the program imports `pymysql` or `MySQLdb`: other programs start as fast as ever, and gevent and eventlet patch
first. PYTHONPATH reaches every Python below, whatever its version, so this is written for old ones too.
"""

import os
import sys

TYPE_CHECKING = False  # importing typing for it would cost every program some milliseconds
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType

FOLDER = os.path.dirname(os.path.abspath(__file__))
PACKAGE = "pooled_pymysql"
NAMES = ("pymysql", "MySQLdb", PACKAGE)


class Finder:
    """Answer the first import of one of NAMES by installing the package under all of them."""

    def __init__(self) -> None:
        self.busy = False

    def find_spec(self, name: str, path: object = None, target: object = None) -> "ModuleSpec | None":  # noqa: ARG002
        """Return a spec for the module that now has this name, or None where others are to answer."""
        if self.busy or name not in NAMES:
            return None
        self.busy = True  # what is imported meanwhile is the real thing
        try:
            package = load()
            package.install_as_pymysql()
            package.install_as_MySQLdb()
        except Exception as error:  # noqa: BLE001  the program is to run, whatever this was
            # Where there is no PyMySQL, its absence is for the program to meet.
            if getattr(error, "name", None) != "pymysql":
                sys.stderr.write("pooled_pymysql: PyMySQL stays without a pool in this process: %r\n" % error)  # noqa: UP031
        finally:
            self.busy = False
            if self in sys.meta_path:
                sys.meta_path.remove(self)
        # Left there, it would be loaded a second time, from its own spec.
        module = sys.modules.pop(name, None)
        if module is None:
            return None
        from importlib.machinery import ModuleSpec

        return ModuleSpec(name, Loader(module), origin=module.__file__)  # type: ignore[arg-type]


class Loader:
    """Hand over a module that is loaded already."""

    def __init__(self, module: "ModuleType") -> None:
        self.module = module
        self.spec = module.__spec__

    def create_module(self, spec: object) -> "ModuleType":  # noqa: ARG002
        """Return the module."""
        return self.module

    def exec_module(self, module: "ModuleType") -> None:
        """Undo what the import system has just done to it."""
        module.__spec__ = self.spec


def load() -> "ModuleType":
    """Import the package: this interpreter's own, or else the one that this file belongs to."""
    from importlib import import_module, util

    try:
        return import_module(PACKAGE)
    except ImportError as error:
        if error.name != PACKAGE:
            raise
    root = os.path.dirname(FOLDER)
    spec = util.spec_from_file_location(PACKAGE, os.path.join(root, "__init__.py"), submodule_search_locations=[root])
    module = sys.modules[PACKAGE] = util.module_from_spec(spec)  # type: ignore[arg-type]
    try:
        spec.loader.exec_module(module)  # type: ignore[union-attr]
    except BaseException:
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]
        raise
    return module


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
if sys.version_info >= (3, 11):  # noqa: UP036
    # First, so that tools which the next one starts meet what the program will use.
    sys.meta_path.insert(0, Finder())
run_next()
