"""`python -m pooled_pymysql run`: the program runs as `python` runs it, with this package for its PyMySQL."""

from __future__ import annotations

import json
import os
import py_compile
import re
import shlex
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pymysql
import pytest
from servers import Server

import pooled_pymysql
from pooled_pymysql import launcher

RUN = ("-m", "pooled_pymysql", "run")

LOOK = """
import json, os, sys
me = sys.modules["__main__"]
spec = me.__spec__
print(json.dumps({
    "me": vars(me) is globals(),
    "names": {name: type(value).__name__ for name, value in sorted(vars(me).items())},
    "file": vars(me).get("__file__"), "name": __name__, "package": __package__, "doc": __doc__,
    "spec": spec and [spec.name, spec.origin, spec.parent],
    "argv": sys.argv, "orig_argv": sys.orig_argv, "path": sys.path, "cwd": os.getcwd(),
    "flags": repr(sys.flags), "warnings": sys.warnoptions, "x": repr(sys._xoptions), "executable": sys.executable,
    "stdin": sys.stdin.read(),
}))
"""

ENDS = {
    "nothing": "pass",
    "exit_number": "import sys; sys.exit(3)",
    "exit_text": "raise SystemExit('a text')",
    "exit_none": "raise SystemExit",
    "error": "def inner():\n    raise ValueError('told')\ntry:\n    inner()\n"
    "except ValueError as error:\n    raise KeyError(1) from error",
    "syntax_error": "x = = 1",
    # Who starts the tests may ignore the signal.
    "interrupted": "import os, signal, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "os.kill(os.getpid(), signal.SIGINT)\ntime.sleep(30)",
    "killed": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "at_once": "import os; os._exit(7)",
    "own_excepthook": "import sys\nsys.excepthook = lambda *error: print(error[:2])\n1 / 0",
    "bad_excepthook": "import sys\nsys.excepthook = lambda kind: None\n1 / 0",
    "atexit": "import atexit\natexit.register(print, 'late')\natexit.register(print, 'first')\nraise SystemExit(4)",
    "thread": "import threading\nthreading.Thread(target=lambda: 1 / 0).start()",
}


def python(
    *words: str, folder: Path, text: str = "", environment: dict[str, str] | None = None, program: str = sys.executable
) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder and wait."""
    return subprocess.run(
        [program, *words],
        cwd=folder,
        input=text,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **(environment or {})},
    )


def good(*words: str, folder: Path, **more: Any) -> str:
    """Run Python, which must succeed in silence, and give what it printed."""
    done = python(*words, folder=folder, **more)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one program in every form that Python runs."""
    (tmp_path / "program.py").write_text(LOOK)
    (tmp_path / "link.py").symlink_to(tmp_path / "deep" / "real.py")
    for name in ("deep/real.py", "package/__main__.py", "package/module.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(LOOK)
    (tmp_path / "package" / "__init__.py").write_text("")
    py_compile.compile(str(tmp_path / "program.py"), str(tmp_path / "compiled.pyc"))
    with zipfile.ZipFile(tmp_path / "archive.pyz", "w") as archive:
        archive.writestr("__main__.py", LOOK)
    for name, text in ENDS.items():
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


FORMS: list[Sequence[str]] = [
    ["program.py"],
    ["./deep/../program.py", "--max-size", "x", "-m", "--", "-"],
    ["{folder}/program.py", "-h"],
    ["link.py"],
    ["compiled.pyc", "a"],
    ["package", "a"],
    ["archive.pyz", "a"],
    ["-m", "package", "-m", "b"],
    ["-m", "package.module"],
    ["-mprogram", "--help"],
    ["-c", LOOK, "-c", "x"],
    ["-", "a"],
    *([f"{name}.py"] for name in ENDS),
    *(["-m", name] for name in ENDS),
    ["-c", ENDS["error"]],
    ["missing.py"],
    ["-m", "missing"],
    ["-m", "package.missing"],
    ["deep"],
]


@pytest.mark.parametrize("form", FORMS, ids=[" ".join(form).split("\n")[0] or "-c" for form in FORMS])
def test_program_cannot_tell_it_from_python(form: Sequence[str], folder: Path) -> None:
    words = [word.format(folder=folder) if word.startswith("{folder}") else word for word in form]
    text = LOOK.replace("sys.stdin.read()", "0") if words[0] == "-" else "input"
    expected = python(*words, folder=folder, text=text)
    found = python(*RUN, *words, folder=folder, text=text)
    assert (found.returncode, found.stderr, found.stdout) == (expected.returncode, expected.stderr, expected.stdout)
    if "names" in expected.stdout:
        assert json.loads(found.stdout)["me"] is True


@pytest.mark.parametrize(
    "flags", [["-X", "dev"], ["-P"], ["-u", "-W", "error", "-X", "utf8=0"], ["-Bs"], ["-O"]], ids=" ".join
)
def test_pythons_own_flags_reach_the_program(flags: list[str], folder: Path) -> None:
    expected = good(*flags, "program.py", folder=folder)
    assert good(*flags, *RUN, "program.py", folder=folder) == expected
    assert flags[0] in json.loads(expected)["orig_argv"]


def test_flag_joined_with_the_m(folder: Path) -> None:
    expected = good("-O", "-c", "import sys; print(sys.flags)", folder=folder)
    assert good("-Ompooled_pymysql", "run", "-c", "import sys; print(sys.flags)", folder=folder) == expected


SAME = """
import sys
import pymysql, MySQLdb, pooled_pymysql, pymysql.err, MySQLdb.err
assert pymysql is MySQLdb is pooled_pymysql
for name in ("pymysql", "MySQLdb", "pooled_pymysql"):
    assert sys.modules[name] is pooled_pymysql, name
assert pymysql.__spec__.name == pymysql.__name__ == "pooled_pymysql"
assert pymysql.err.OperationalError is MySQLdb.OperationalError is pooled_pymysql.err.OperationalError
connections = sys.modules["pymysql.connections"]
assert issubclass(pymysql.Connection, connections.Connection) and pymysql.Connection is not connections.Connection
assert not [each for each in sys.meta_path if type(each).__name__ == "Finder"]
print("same")
"""


@pytest.mark.parametrize(
    "first", ["pymysql", "MySQLdb", "pooled_pymysql", "pymysql.cursors", "MySQLdb.constants.ER", "pooled_pymysql.err"]
)
def test_every_name_gives_this_package_whichever_comes_first(first: str, tmp_path: Path) -> None:
    assert good("-W", "error", *RUN, "-c", f"import {first}\n{SAME}", folder=tmp_path) == "same"


def test_looking_for_a_module_does_not_load_it_twice(tmp_path: Path) -> None:
    code = "from importlib.util import find_spec\nassert [find_spec(name).origin for name in"
    code += " ('pymysql', 'MySQLdb', 'pooled_pymysql')]\nimport sys; assert 'pymysql' not in sys.modules\n"
    assert good("-W", "error", *RUN, "-c", code + SAME, folder=tmp_path) == "same"


@pytest.mark.parametrize("name", ["pooled_pymysql", "pooled_pymysql.cli"])
def test_package_can_be_run_by_a_program(name: str, tmp_path: Path) -> None:
    code = f"import runpy\ntry:\n    runpy.run_module({name!r})\nexcept SystemExit:\n    pass\n"
    assert good("-W", "error", *RUN, "-c", code + SAME, folder=tmp_path) == "same"


def test_nothing_is_loaded_before_it_is_wanted(tmp_path: Path) -> None:
    code = "import sys; print(sorted({'pymysql', 'pooled_pymysql', 'ssl', 'threading', 'socket'} & set(sys.modules)))"
    assert good(*RUN, "-c", code, folder=tmp_path) == good("-c", code, folder=tmp_path)


def test_threads_that_import_at_once_get_one_module(tmp_path: Path) -> None:
    # Of the two names alone: a submodule beside its package ends in a deadlock error with plain PyMySQL as well.
    code = """
    import importlib, threading
    names = ["pymysql", "MySQLdb"] * 8
    start, found, failed = threading.Barrier(len(names)), set(), []
    def load(name):
        start.wait(20)
        try:
            importlib.import_module(name)
            found.add(id(importlib.import_module(name.partition(".")[0])))
        except BaseException as error:
            failed.append(error)
    threads = [threading.Thread(target=load, args=(name,)) for name in names]
    for thread in threads: thread.start()
    for thread in threads: thread.join(20)
    print(len(found), failed)
    """
    (tmp_path / "program.py").write_text("if True:" + code)
    assert good(*RUN, "program.py", folder=tmp_path) == "1 []"


# Children

TELL = "import pymysql; print(pymysql.__name__, flush=True)"
CHILDREN = {
    "subprocess": f"import subprocess, sys; subprocess.run([sys.executable, '-c', {TELL!r}], check=True)",
    "grandchild": "import subprocess, sys; subprocess.run([sys.executable, '-c', "
    + repr(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {TELL!r}], check=True)")
    + "], check=True)",
    "exec": f"import os, sys; os.execv(sys.executable, [sys.executable, '-c', {TELL!r}])",
    "run_again": f"import os, sys; os.execv(sys.executable, [sys.executable, *{RUN!r}, '-c', {TELL!r}])",
    **{
        method: "import multiprocessing\n"
        f"def tell():\n    {TELL}\n"
        "if __name__ == '__main__':\n"
        f"    context = multiprocessing.get_context({method!r})\n"
        "    child = context.Process(target=tell)\n"
        "    child.start(); child.join(40); assert child.exitcode == 0, child.exitcode"
        for method in ("fork", "spawn", "forkserver")
    },
}


@pytest.mark.parametrize("kind", CHILDREN)
def test_children_are_reached(kind: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(CHILDREN[kind])
    assert good("program.py", folder=tmp_path) == ("pooled_pymysql" if kind == "run_again" else "pymysql")
    assert good(*RUN, "program.py", folder=tmp_path) == "pooled_pymysql"


def test_two_copies_of_the_hook_are_one_too_many(tmp_path: Path) -> None:
    """As when the program of one virtual environment starts `run` in another."""
    hook = Path(launcher.__file__).parent / "hook"
    (tmp_path / "other").symlink_to(hook)
    environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path / "other"), str(hook)])}
    code = "import sys; assert [type(each).__name__ for each in sys.meta_path].count('Finder') == 1\n" + SAME
    assert good("-W", "error", "-c", code, folder=tmp_path, environment=environment) == "same"


def test_children_see_no_folder_of_ours_on_their_path(tmp_path: Path) -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import sys; print(sys.path)'], check=True)"
    assert good(*RUN, "-c", code, folder=tmp_path) == good("-c", code, folder=tmp_path)


def test_pythonpath_is_kept_and_the_hook_stands_in_it_once(tmp_path: Path) -> None:
    code = "import os, sys; print(os.environ['PYTHONPATH'].split(os.pathsep)[1:], sys.path[1])"
    kept = str(tmp_path / "kept")
    environment = {"PYTHONPATH": kept}
    assert good(*RUN, "-c", code, folder=tmp_path, environment=environment) == f"{[kept]} {kept}"
    again = f"import os, sys; os.execv(sys.executable, [sys.executable, *{RUN!r}, '-c', {code!r}])"
    assert good(*RUN, "-c", again, folder=tmp_path, environment=environment) == f"{[kept]} {kept}"
    alone = "import os; print(os.environ['PYTHONPATH'].split(os.pathsep)[1:])"
    assert good(*RUN, "-c", alone, folder=tmp_path, environment={"PYTHONPATH": ""}) == "[]"


def test_the_next_sitecustomize_runs_and_meets_this_package(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "sitecustomize.py").write_text("import pymysql\nmine = pymysql.__name__\n")
    code = "import sitecustomize; print(sitecustomize.mine, sitecustomize.__spec__.name)"
    environment = {"PYTHONPATH": str(tmp_path / "other")}
    found = good(*RUN, "-c", code, folder=tmp_path, environment=environment)
    assert found == "pooled_pymysql sitecustomize"


def test_sitecustomize_that_takes_itself_off_pythonpath_reaches_the_program(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    text = "import os, sys\nos.environ.pop('PYTHONPATH', 0) and print('begun', flush=True)\n"
    (tmp_path / "other" / "sitecustomize.py").write_text(text)
    environment = {"PYTHONPATH": str(tmp_path / "other")}
    assert good("-c", TELL, folder=tmp_path, environment=environment).split() == ["begun", "pymysql"]
    found = good(*RUN, "-c", TELL, folder=tmp_path, environment=environment)
    # Once in the process that `run` itself is, once in the program.
    assert found.split() == ["begun", "begun", "pooled_pymysql"]


# Other interpreters


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """An interpreter without packages, and a folder with a copy of this package and one with PyMySQL's."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder / "venv", symlinks=True, with_pip=False)
    shutil.copytree(Path(pooled_pymysql.__file__).parent, folder / "ours" / "pooled_pymysql")
    shutil.copytree(Path(pymysql.__file__).parent, folder / "theirs" / "pymysql")
    return str(folder / "venv" / "bin" / "python"), folder


def test_interpreter_without_this_package_takes_the_one_that_run_belongs_to(bare: tuple[str, Path]) -> None:
    program, folder = bare
    path = os.pathsep.join([str(folder / "ours" / "pooled_pymysql" / "hook"), str(folder / "theirs")])
    assert good("-c", SAME, folder=folder, program=program, environment={"PYTHONPATH": path}) == "same"


def test_interpreter_without_pymysql_misses_it_as_ever(bare: tuple[str, Path]) -> None:
    program, folder = bare
    code = "import sys\ntry:\n    import pymysql\nexcept ModuleNotFoundError as error:\n    print(error.name)\n"
    code += "print([name for name in sys.modules if 'pymysql' in name])"
    environment = {"PYTHONPATH": str(folder / "ours" / "pooled_pymysql" / "hook")}
    assert good("-c", code, folder=folder, program=program, environment=environment) == "pymysql\n[]"


def test_package_that_cannot_be_loaded_leaves_pymysql_and_says_so(bare: tuple[str, Path], tmp_path: Path) -> None:
    program, folder = bare
    shutil.copytree(folder / "ours" / "pooled_pymysql", tmp_path / "pooled_pymysql")
    (tmp_path / "pooled_pymysql" / "registry.py").write_text("raise RuntimeError('broken')")
    path = os.pathsep.join([str(tmp_path / "pooled_pymysql" / "hook"), str(folder / "theirs")])
    code = "import pymysql, sys; print(pymysql.__name__, sys.modules['pymysql'] is pymysql)\n"
    code += "print([name for name in sys.modules if name.startswith('pooled')])\n"
    code += "try:\n    import MySQLdb\nexcept ModuleNotFoundError as error:\n    print(error)"
    done = python("-c", code, folder=tmp_path, program=program, environment={"PYTHONPATH": path})
    assert (done.returncode, done.stdout) == (0, "pymysql True\n[]\nNo module named 'MySQLdb'\n")
    assert done.stderr.startswith("pooled_pymysql: PyMySQL stays without a pool in this process: RuntimeError('broken'")


# Options

SHOW = "import json, sys, pymysql; o = pymysql.options.defaults(); print([getattr(o, name) for name in sys.argv[1:]])"


def test_options_by_flag_and_by_environment(tmp_path: Path) -> None:
    flags = ["--max-size", "20", "--timeout=none", "--reset", "always", "--one-write", "no", "--name", "web -m"]
    names = ["max_size", "timeout", "reset", "one_write", "name", "min_size", "opening_limit"]
    environment = {"POOLED_PYMYSQL_MAX_SIZE": "7", "POOLED_PYMYSQL_MIN_SIZE": "3"}
    found = good(*RUN, *flags, "-c", SHOW, *names, folder=tmp_path, environment=environment)
    assert found == str([20, None, "always", False, "web -m", 3, 8])


def test_flags_reach_children(tmp_path: Path) -> None:
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SHOW!r}, 'max_size'], check=True)"
    assert good(*RUN, "--max-size=5", "--", "-c", code, folder=tmp_path) == "[5]"


@pytest.mark.parametrize("name", pooled_pymysql.options.OPTION_NAMES)
def test_there_is_a_flag_for_each_option(name: str, tmp_path: Path) -> None:
    done = python(*RUN, "--" + name.replace("_", "-"), "", "program.py", folder=tmp_path)
    assert done.returncode == 2
    assert f"--{name.replace('_', '-')} takes " in done.stderr


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        (["--max-size", "x", "program.py"], {}, "--max-size takes an int, at least 1, not 'x'"),
        (["--max-size"], {}, "argument --max-size: expected one argument"),
        (["--max-sise=3", "program.py"], {}, "--max-sise=3 is no option of run (did you mean '--max-size'?)"),
        (["--min-size", "101", "program.py"], {}, "'min_size' (101) is above 'max_size' (100)"),
        (["-i", "program.py"], {}, "-i is no option of run; Python's own come before -m"),
        ([], {}, "no program is given"),
        (["-m"], {}, "nothing follows -m"),
        (
            ["program.py"],
            {"POOLED_PYMYSQL_MAX_SIZE": "many"},
            "environment variable POOLED_PYMYSQL_MAX_SIZE takes an int, at least 1, not 'many'",
        ),
    ],
)
def test_wrong_usage_runs_nothing(words: list[str], environment: dict[str, str], said: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("print('ran')")
    done = python(*RUN, *words, folder=tmp_path, environment=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_flags_that_switch_pythonpath_off_are_refused(tmp_path: Path) -> None:
    for flag in ("-E", "-I"):
        done = python(flag, *RUN, "-c", "print('ran')", folder=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert "which Python's flags -E, -I and -S switch off" in done.stderr


def test_another_tool_in_front_is_refused(tmp_path: Path) -> None:
    code = "import runpy, sys; sys.argv[1:] = ['run', 'x.py']; runpy.run_module('pooled_pymysql', run_name='__main__')"
    done = python("-c", code, folder=tmp_path)
    assert done.returncode == 2
    assert "run must be started by Python itself" in done.stderr


def test_commands_of_the_documentation_are_understood(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "run.md").read_text()
    (block,) = re.findall(r"^```sh\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    lines = block.splitlines()
    assert len(lines) == 4
    for line in lines:
        words = shlex.split(line)[1:]
        after = words.index("run") + 1
        own, program = launcher.split(words[after:])
        assert program[0] in {"script.py", "-m", "manage.py"}
        show = ["-c", "import sys; print(sys.argv[1:])", *program[1:]]
        assert good(*words[:after], *own, *show, folder=tmp_path) == str(program[1:])


def test_help_names_the_options(tmp_path: Path) -> None:
    for words in (["-h"], ["--help"], ["--max-size", "3", "-h"]):
        found = good(*RUN, *words, folder=tmp_path)
        assert found.startswith("usage: python -m pooled_pymysql run [option ...] (script | ")
        assert "--leak-threshold VALUE" in found


# Connections

CROWD = """
import json, sys, threading
import pymysql
where, seen, failed = json.loads(sys.argv[1]), set(), []
def work():
    try:
        for number in range(10):
            connection = pymysql.connect(**where)
            with connection.cursor() as cursor:
                cursor.execute("SELECT CONNECTION_ID(), %s", (number,))
                (mine, answer), = cursor.fetchall()
            assert answer == number
            seen.add(mine)
            connection.close()
    except BaseException as error:
        failed.append(error)
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join(30)
assert not failed, failed
print(len(seen))
"""


def test_threads_of_an_unedited_program_share_few_connections(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(CROWD)
    assert good("program.py", json.dumps(config), folder=tmp_path) == "80"
    assert 1 <= int(good(*RUN, "--max-size", "2", "program.py", json.dumps(config), folder=tmp_path)) <= 2


CHILD_OF_POOL = """
import json, multiprocessing, sys
import pymysql

def ask(where):
    with pymysql.connect(**where) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT CONNECTION_ID()")
        return cursor.fetchone()[0]

if __name__ == "__main__":
    where = json.loads(sys.argv[2])
    mine = ask(where)
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as workers:
        found = workers.map(ask, [where] * 20, chunksize=1)
        print(mine not in found, 1 <= len(set(found)) <= 2, ask(where) == mine)
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_each_process_of_multiprocessing_has_its_own_pool(method: str, config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(CHILD_OF_POOL)
    assert good(*RUN, "program.py", method, json.dumps(config), folder=tmp_path) == "True True True"


def test_server_is_reached_by_old_code(server: Server, tmp_path: Path) -> None:
    """MySQLdb's names for the arguments, as in settings that were written for it."""
    code = "import json, sys, MySQLdb; print(MySQLdb.connect(**json.loads(sys.argv[1])).get_server_info())"
    known = server.kwargs()
    old = {"host": known["host"], "port": known["port"], "user": known["user"], "ssl_disabled": True}
    old |= {"password": known["password"], "database": known["database"]}
    done = python("-W", "ignore", *RUN, "-c", code, json.dumps(old), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout[0].isdigit()
