"""`install_as_MySQLdb()` and `install_as_pymysql()`; each test is a program of its own."""

import ast
import importlib.util
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


def run(program: str) -> None:
    """Run `program` in a fresh interpreter, where this package is importable, with warnings as errors."""
    spec = importlib.util.find_spec("pooled_pymysql")
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent.parent
    prologue = f"import sys; sys.path.insert(0, {str(root)!r})\n"
    command = [sys.executable, "-W", "error", "-c", prologue + textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr


def test_mysqldb_imports_of_django_work() -> None:
    run(
        """
        import pooled_pymysql
        pooled_pymysql.install_as_MySQLdb()
        import MySQLdb as Database
        from MySQLdb.constants import CLIENT, FIELD_TYPE
        from MySQLdb.converters import conversions
        import pymysql.constants.CLIENT, pymysql.converters

        assert Database is pooled_pymysql
        assert Database.version_info >= (2, 2, 1)
        assert isinstance(Database.__version__, str)
        assert CLIENT.FOUND_ROWS == pymysql.constants.CLIENT.FOUND_ROWS
        assert conversions is pymysql.converters.conversions
        assert FIELD_TYPE.TIME in {**conversions}
        assert Database.connect is pooled_pymysql.connect
        for name in ("DataError", "OperationalError", "IntegrityError", "InterfaceError", "Binary"):
            assert getattr(Database, name) is getattr(pymysql, name)
        """
    )


def test_every_mysqldb_submodule_is_ours_and_none_is_loaded_twice() -> None:
    run(
        """
        import pooled_pymysql
        pooled_pymysql.install_as_MySQLdb()
        pooled_pymysql.install_as_MySQLdb()
        import importlib, pkgutil
        import pymysql

        for found in pkgutil.walk_packages(pymysql.__path__, ""):
            if not found.name.startswith("_"):
                module = importlib.import_module("MySQLdb." + found.name)
                assert module is importlib.import_module("pooled_pymysql." + found.name)
        for name in ("CLIENT", "COMMAND", "CR", "ER", "FIELD_TYPE", "FLAG", "SERVER_STATUS"):
            assert "MySQLdb.constants." + name in sys.modules
        import MySQLdb.cursors, MySQLdb.constants.ER
        assert MySQLdb.cursors.DictCursor is pymysql.cursors.DictCursor
        assert MySQLdb.constants.ER.DUP_ENTRY == 1062
        assert sys.modules["pymysql"].__name__ == "pymysql"
        """
    )


CHECK_PYMYSQL = """
import importlib, importlib.metadata, importlib.util, pickle, copy

# What old code finds.
import pymysql
import pymysql.cursors
import pymysql.connections
from pymysql import cursors, err, connect, OperationalError
from pymysql.constants import ER, CLIENT
from pymysql.err import IntegrityError
import pymysql.constants.FIELD_TYPE as field_type
assert pymysql is pooled_pymysql
assert connect is pymysql.connect is pymysql.Connect is pooled_pymysql.connect
assert pymysql.threadsafety == 2
assert cursors.DictCursor is pymysql.cursors.DictCursor
assert ER.DUP_ENTRY == 1062 and CLIENT.FOUND_ROWS == 2 and field_type.TINY == 1

# PyMySQL's own modules are what they were, and each class exists once.
own = importlib.import_module("pymysql.err")
assert own.__spec__.name == own.__name__ == "pymysql.err"
assert own is sys.modules["pymysql.err"]
assert own.IntegrityError is IntegrityError is pymysql.IntegrityError is err.IntegrityError
connections = importlib.import_module("pymysql.connections")
assert issubclass(pymysql.Connection, connections.Connection)
assert pymysql.Connection is not connections.Connection
assert connections.err.OperationalError is OperationalError
assert connections is not pymysql.connections
assert pymysql.connections.Connection is connections.Connection
import pymysql._auth
assert pymysql._auth is sys.modules["pymysql._auth"] is connections._auth

# Pickles and copies find their classes.
for kind in (OperationalError, IntegrityError, pymysql.Warning, pymysql.PoolTimeout):
    again = pickle.loads(pickle.dumps(kind(1040, "text")))
    assert type(again) is kind and again.args == (1040, "text")
assert type(pickle.loads(pickle.dumps(pymysql.STRING))) is pymysql.DBAPISet
assert pickle.loads(pickle.dumps(pymysql.cursors.DictCursor)) is pymysql.cursors.DictCursor
assert pickle.loads(pickle.dumps(connections.Connection)) is connections.Connection
assert pickle.loads(pickle.dumps(pymysql.Connection)) is pymysql.Connection
assert copy.copy(pymysql.Date) is pymysql.Date

# Import machinery.
assert importlib.util.find_spec("pymysql") is pooled_pymysql.__spec__
assert importlib.util.find_spec("pymysql.cursors").origin == sys.modules["pymysql.cursors"].__file__
assert importlib.metadata.version("PyMySQL") == pymysql.VERSION_STRING
try:
    import pymysql.nonsense
except ModuleNotFoundError:
    pass
else:
    raise AssertionError

# PyMySQL's own code runs.
plain = connections.Connection(defer_connect=True)
assert plain.cursor().mogrify("%s", (5,)) == "5"
assert plain._connect_attrs["_client_name"] == "pymysql"
try:
    connections.Connection(host="127.0.0.1", port=1, connect_timeout=1)
except OperationalError as error:
    assert error.args[0] == 2003
else:
    raise AssertionError
"""


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("before", ["", "import pymysql", "import pymysql.cursors", "import pymysql.constants.ER"])
def test_pymysql_gives_this_package(before: str, times: int) -> None:
    install = "pooled_pymysql.install_as_pymysql()\n" * times
    run(f"{before}\nimport pooled_pymysql\n{install}\n{CHECK_PYMYSQL}")


def test_pymysql_and_mysqldb_together() -> None:
    both = "pooled_pymysql.install_as_pymysql()\npooled_pymysql.install_as_MySQLdb()\n"
    run(f"import pooled_pymysql\n{both}{both}\n{CHECK_PYMYSQL}\nimport MySQLdb\nassert MySQLdb is pymysql")


def test_old_code_leases_from_a_pool_under_the_old_name() -> None:
    run(
        """
        import pooled_pymysql
        pooled_pymysql.install_as_pymysql()
        import pymysql
        try:
            pymysql.connect("mysql://u:p@127.0.0.1:1/d?connect_timeout=1", pool={"timeout": 1})
        except pymysql.err.OperationalError as error:
            assert error.args[0] == 2003
        connection = pymysql.connect(host="127.0.0.1", port=1, defer_connect=True)
        assert type(connection) is pooled_pymysql.Connection
        pymysql.close_pools()
        """
    )


def test_modules_of_this_package_loaded_afterwards_get_the_real_pymysql() -> None:
    run(
        """
        import pooled_pymysql
        real = sys.modules["pymysql"]
        pooled_pymysql.install_as_pymysql()
        for name in [name for name in sys.modules if name.startswith("pooled_pymysql.c")]:
            if name.split(".")[1] in ("charset", "converters", "cursors", "constants"):
                del sys.modules[name]
        import pooled_pymysql.cursors, pooled_pymysql.converters, pooled_pymysql.constants.ER
        assert pooled_pymysql.cursors.Cursor is real.cursors.Cursor
        assert pooled_pymysql.cursors._backquote_escape is real.cursors._backquote_escape
        assert pooled_pymysql.converters.conversions is real.converters.conversions
        assert pooled_pymysql.constants.ER.DUP_ENTRY is real.constants.ER.DUP_ENTRY
        """
    )


# These run in processes of their own, where nothing is impersonated.
PROGRAMS = {"__main__", "cli", "demo", "throwaway", "throwaway_guard"}


def imports_of_top_pymysql(tree: ast.AST) -> list[int]:
    """Return the lines that would get this package once it stands in for PyMySQL."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            # `import pymysql.err` binds the top name; `import pymysql.err as err` reads it.
            hit = any(alias.name.partition(".")[0] == "pymysql" for alias in node.names)
        else:
            hit = isinstance(node, ast.ImportFrom) and node.module == "pymysql" and not node.level
        if hit:
            lines.append(node.lineno)
    return lines


def test_nothing_in_this_package_imports_the_top_of_pymysql_after_loading() -> None:
    spec = importlib.util.find_spec("pooled_pymysql")
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent
    check = "import pooled_pymysql, sys; print(*(m for m in sys.modules if m.startswith('pooled_pymysql')))"
    command = [sys.executable, "-c", check]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True, cwd=root.parent)
    loaded = set(done.stdout.split())
    found = []
    for path in sorted(root.rglob("*.py")):
        if path.stem in PROGRAMS:
            continue
        module = ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        late: list[ast.AST] = [tree]
        if module in loaded:  # whatever stands outside functions ran before anything could be impersonated
            late = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.Lambda)]
        found += [f"{module}:{line}" for node in late for line in imports_of_top_pymysql(node)]
    assert found == []
    assert "pooled_pymysql" in loaded
