"""The command `run`: start a program for which `pymysql` and `MySQLdb` mean this package.

The program is started by Python itself, in the place of this process, with hook/ on PYTHONPATH: so it is what it
would be without us to the last detail, and the Python processes that it starts are reached too. Running it inside
this process instead would load this package before gevent or eventlet could patch anything.
"""

from __future__ import annotations

import argparse
import os
import re
import site
import subprocess
import sys
import sysconfig
from collections.abc import MutableMapping, Sequence
from typing import NoReturn

from . import options

__all__ = ["PROG", "SUMMARY", "add_arguments", "run", "split"]

SUMMARY = "run a Python program whose pymysql and MySQLdb are this package"
PROG = "python -m pooled_pymysql run"
USAGE = f"{PROG} [option ...] (script | directory | -m module | -c code | -) [argument ...]"
WRONG_USAGE = 2

_HOOK = os.path.join(os.path.dirname(os.path.abspath(__file__)), "hook")
_OTHERS = "other tools come after it, as in: run -m coverage run script.py"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each pool option; the program is taken off before, by split()."""
    parser.usage = USAGE
    parser.allow_abbrev = False
    parser.epilog = "Everything from the program on is the program's, as after `python`."
    group = parser.add_argument_group("pool options", "for every pool of the program that does not set its own")
    code = options.PoolOptions()
    for name in options.OPTION_NAMES:
        takes = options.takes(name).replace("%", "%%")
        group.add_argument(
            _flag(name), dest=name, metavar="VALUE", help=f"{takes} (default: {str(getattr(code, name)).lower()})"
        )


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split what follows `run` into our own flags, and the program with its arguments."""
    flags = {_flag(name) for name in options.OPTION_NAMES}
    index = 0
    while index < len(words) and words[index].partition("=")[0] in flags:
        index += 1 if "=" in words[index] else 2
    if words[index : index + 1] == ["--"]:
        return list(words[:index]), list(words[index + 1 :])
    if words[index : index + 1] in (["-h"], ["--help"]):
        index += 1
    return list(words[:index]), list(words[index:])


def run(chosen: argparse.Namespace) -> int:
    """Become the program; return only after an error of ours, or where a process cannot become another."""
    try:
        environment = dict(os.environ)
        given = {name: text for name in options.OPTION_NAMES if (text := getattr(chosen, name)) is not None}
        _set_options(environment, given)
        command = [sys.executable, *_interpreter_flags(sys.orig_argv, len(sys.argv)), *_program(chosen.rest)]
        _set_path(environment)
    except ValueError as error:
        _refuse(str(error))
    if os.name == "posix":
        os.execve(sys.executable, command, environment)  # noqa: S606  no shell is wanted
    return subprocess.call(command, env=environment)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _refuse(message: str) -> NoReturn:
    sys.stderr.write(f"usage: {USAGE}\n{PROG}: error: {message}\n")
    raise SystemExit(WRONG_USAGE)


def _set_options(environment: MutableMapping[str, str], given: dict[str, str]) -> None:
    """Write the given options into the environment; raise ValueError unless all that it says now makes sense."""
    for name, text in given.items():
        options.from_text(name, text, _flag(name))
        environment[options.ENVIRONMENT_PREFIX + name.upper()] = text
    options.from_environment(environment)


def _program(rest: Sequence[str]) -> list[str]:
    if not rest:
        raise ValueError("no program is given")
    first = rest[0]
    if first.startswith("-") and first != "-" and not re.match(r"-[mc]", first):
        flags = [_flag(name) for name in options.OPTION_NAMES]
        raise ValueError(f"{first} is no option of run{options.suggest(first, flags)}; Python's own come before -m")
    if first in ("-m", "-c") and len(rest) == 1:
        raise ValueError(f"nothing follows {first}")
    return list(rest)


def _interpreter_flags(original: Sequence[str], count: int) -> list[str]:
    """Return Python's own flags from the command line `python FLAGS -m pooled_pymysql WORDS`, with count - 1 words."""
    head = list(original[1 : len(original) - count + 1])
    package = __name__.partition(".")[0]
    flag = ""
    if head and head[-1] == package:
        head.pop()
        flag = head.pop() if head else ""
    elif head and head[-1].endswith(package):
        flag = head.pop().removesuffix(package)
    if not re.fullmatch(r"-[a-zA-Z]*m", flag):
        raise ValueError(f"run must be started by Python itself, as `{PROG}`; {_OTHERS}")
    return [*head, flag[:-1]] if flag != "-m" else head


def _set_path(environment: MutableMapping[str, str]) -> None:
    """Put the hook in front of PYTHONPATH."""
    if sys.flags.ignore_environment or sys.flags.no_site:
        raise ValueError("run reaches the program through PYTHONPATH, which Python's flags -E, -I and -S switch off")
    if os.pathsep in _HOOK:
        raise ValueError(f"{_HOOK} cannot be in PYTHONPATH, where {os.pathsep!r} separates folders")
    old = environment.get("PYTHONPATH", "")
    folders = [folder for folder in old.split(os.pathsep) if folder != _HOOK] if old else []
    environment["PYTHONPATH"] = os.pathsep.join([_HOOK, *_hidden_folders(folders), *folders])


def _hidden_folders(folders: Sequence[str]) -> list[str]:
    """Return the folder of the `sitecustomize` that ran in this process, if the program would not find it.

    opentelemetry-instrument, for one, takes its own off PYTHONPATH once it has run.
    """
    file = getattr(sys.modules.get("sitecustomize"), "__file__", None)
    if not file:
        return []
    folder = os.path.dirname(os.path.abspath(file))
    found_anyway = {*folders, *sysconfig.get_paths().values(), *site.getsitepackages(), site.getusersitepackages()}
    return [] if folder == _HOOK or folder in found_anyway or folder not in sys.path else [folder]
