"""The command line: `python -m pooled_pymysql COMMAND`."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

from pooled_pymysql import demo

INTERRUPTED = 130  # what shells report for a program that a Ctrl-C ended


class Command(NamedTuple):
    """One subcommand; `run` returns the exit status."""

    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


COMMANDS = {
    "demo": Command(demo.SUMMARY, demo.add_arguments, demo.run),
}


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser that does not repeat the password of a DSN given in the wrong place."""

    def error(self, message: str) -> NoReturn:
        super().error(re.sub(r"://.*@", "://***@", message, flags=re.DOTALL))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser for all commands."""
    parser = _Parser(prog="python -m pooled_pymysql", description="Pooled connections for PyMySQL.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        added = commands.add_parser(name, help=command.summary, description=command.summary)
        command.add_arguments(added)
        added.set_defaults(run=command.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; wrong usage raises SystemExit(2)."""
    chosen = build_parser().parse_args(arguments)
    try:
        status: int = chosen.run(chosen)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`| head`); keep the interpreter's own flush at exit quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status
