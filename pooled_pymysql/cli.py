"""The command line: `python -m pooled_pymysql COMMAND`."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

from pooled_pymysql import demo, launcher

INTERRUPTED = 130  # what shells report for a program that a Ctrl-C ended


class Command(NamedTuple):
    """One subcommand; `run` returns the exit status.

    `split` parts the words behind the command in those for its parser and those that come as `rest`.
    """

    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    split: Callable[[Sequence[str]], tuple[list[str], list[str]]] | None = None


COMMANDS = {
    "demo": Command(demo.SUMMARY, demo.add_arguments, demo.run),
    "run": Command(launcher.SUMMARY, launcher.add_arguments, launcher.run, launcher.split),
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
    words = list(sys.argv[1:] if arguments is None else arguments)
    rest: list[str] = []
    command = COMMANDS.get(words[0]) if words else None
    if command is not None and command.split is not None:
        own, rest = command.split(words[1:])
        words = [words[0], *own]
    chosen = build_parser().parse_args(words, argparse.Namespace(rest=rest))
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
