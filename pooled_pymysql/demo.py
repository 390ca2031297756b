"""The demo: one small program run with PyMySQL, with PyMySQL without TLS, and with this package."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import platform
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import unquote

import pymysql

import pooled_pymysql
from pooled_pymysql.dsn import parse_dsn
from pooled_pymysql.throwaway import ThrowawayError, ThrowawayServer

SUMMARY = "show what pooling saves: the same program with pymysql and with pooled_pymysql"

_THREADS = 8
_QUERIES_A_ROUND = 2
_TARGET_SECONDS = 7.0  # for the slowest run; server start and the other runs take the demo to about ten
_TRIAL_ROUNDS = 2
_MOST_ROUNDS = 250
_LEAVE_SECONDS = 5.0
_TABLE = "  {:<24} {:>13} {:>9} {:>11} {:>10}"


def visit(pymysql: Any, where: dict[str, Any]) -> int:
    connection = pymysql.connect(**where)
    with connection.cursor() as cursor:
        cursor.execute("SELECT CONNECTION_ID()")
        (number,) = cursor.fetchone()
        cursor.execute("SELECT %s + 1", (number,))
        assert cursor.fetchone() == (number + 1,)
    connection.close()
    return int(number)


class Variant(NamedTuple):
    """One way to run the program; `refusal` says why it cannot be run."""

    label: str
    line: str
    module: Any
    where: dict[str, Any]
    refusal: str = ""


class Outcome(NamedTuple):
    """What one run took."""

    connections: int
    queries: int
    seconds: float


class _Run:
    """One run of the program: every thread visits the server `rounds` times."""

    def __init__(self, variant: Variant, threads: int, rounds: int) -> None:
        self.variant = variant
        self.rounds = rounds
        self.numbers: set[int] = set()
        self.failure: Exception | None = None
        self.halt = threading.Event()
        self.gate = threading.Barrier(threads + 1)
        # Daemons: a thread stuck in a dead network must not keep Ctrl-C from ending the process.
        self.threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]

    def _work(self) -> None:
        mine: set[int] = set()
        try:
            self.gate.wait()
            for _ in range(self.rounds):
                if self.halt.is_set():
                    break
                mine.add(visit(self.variant.module, self.variant.where))
        except threading.BrokenBarrierError:
            pass
        except Exception as error:  # noqa: BLE001 - raised again in the main thread
            self.failure = error
            self.halt.set()
        self.numbers.update(mine)

    def measure(self) -> Outcome:
        """Block until all threads are through; raise the first failure of any."""
        try:
            for thread in self.threads:
                thread.start()
            self.gate.wait()
            begin = time.perf_counter()
            for thread in self.threads:
                thread.join()
            seconds = time.perf_counter() - begin
        except BaseException:
            self._abandon()
            raise
        if self.failure is not None:
            raise self.failure
        queries = len(self.threads) * self.rounds * _QUERIES_A_ROUND
        return Outcome(len(self.numbers), queries, seconds)

    def _abandon(self) -> None:
        self.halt.set()
        self.gate.abort()
        deadline = time.monotonic() + _LEAVE_SECONDS
        for thread in self.threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))


def _variants(where: dict[str, Any], pool: dict[str, Any]) -> list[Variant]:
    plain = Variant("pymysql", "import pymysql", pymysql, where)
    # Nothing goes in the clear to a server whose DSN asks for TLS.
    wants_tls = any(name.startswith("ssl") and name != "ssl_disabled" for name in where)
    return [
        plain,
        plain._replace(
            label="pymysql, ssl_disabled",
            line="import pymysql                    with ssl_disabled=True",
            where={**where, "ssl_disabled": True},
            refusal="not run: the DSN asks for TLS" if wants_tls else "",
        ),
        Variant(
            "pooled_pymysql",
            "import pooled_pymysql as pymysql",
            pooled_pymysql,
            {**where, "pool": pool} if pool else where,
        ),
    ]


def _choose_rounds(variant: Variant, threads: int) -> int:
    """Return the rounds that the slowest variant does in a few seconds here, by a short trial."""
    trial = _Run(variant, threads, _TRIAL_ROUNDS).measure()
    return max(1, min(_MOST_ROUNDS, int(_TARGET_SECONDS * _TRIAL_ROUNDS / trial.seconds)))


def _describe_server(where: dict[str, Any]) -> str:
    """Return the server's kind and version; the first contact, where an unusable address shows."""
    connection = pymysql.connect(**where)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT VERSION()")
            (version,) = cursor.fetchone()
    finally:
        connection.close()
    return f"MariaDB {version.split('-')[0]}" if "mariadb" in version.lower() else f"MySQL {version}"


def _print_program(variants: list[Variant], threads: int, rounds: int) -> None:
    body = textwrap.dedent("".join(inspect.getsource(visit).splitlines(keepends=True)[1:]))
    print(f"\n{threads} threads do this {rounds} times each:\n")
    print(textwrap.indent(body, "    "))
    print("The same program, run three times; only its import changes:\n")
    for number, variant in enumerate(variants, 1):
        print(f"  {number}. {variant.line}")
    print()


def _print_row(variant: Variant, outcome: Outcome, base: Outcome) -> None:
    rate = f"{outcome.queries / outcome.seconds:,.0f}"
    ratio = f"{base.seconds / outcome.seconds:,.1f} x"
    row = _TABLE.format(variant.label, f"{outcome.connections:,}", f"{outcome.seconds:.3f} s", rate, ratio)
    print(row, flush=True)


def show(where: dict[str, Any], pool: dict[str, Any], threads: int, rounds: int | None, place: str) -> None:
    """Run the program in its variants against one server and print what each took."""
    server = _describe_server(where)
    versions = f"PyMySQL {pymysql.VERSION_STRING}, Python {platform.python_version()}, {server}"
    print(f"{versions} ({place})", flush=True)
    variants = _variants(where, pool)
    if rounds is None:
        rounds = _choose_rounds(variants[0], threads)
    _print_program(variants, threads, rounds)
    print(_TABLE.format("", "connections", "elapsed", "queries/s", "speed"), flush=True)
    outcomes: list[Outcome] = []
    for variant in variants:
        if variant.refusal:
            print(f"  {variant.label:<24} {variant.refusal}")
            continue
        outcomes.append(_Run(variant, threads, rounds).measure())
        _print_row(variant, outcomes[-1], outcomes[0])
    first, last = outcomes[0], outcomes[-1]
    print(
        f"\npooled_pymysql used {last.connections:,} server connections where pymysql used"
        f" {first.connections:,},\nand took {last.seconds:.3f} s where pymysql took {first.seconds:.3f} s."
    )


@contextlib.contextmanager
def _server(dsn: str | None) -> Iterator[tuple[dict[str, Any], dict[str, Any], str]]:
    """Give connect arguments, pool options and a word on where: the DSN's server, or one of our own."""
    if dsn is None:
        print("Starting a private server in a temporary directory ...", flush=True)
        with ThrowawayServer() as server:
            yield server.kwargs(), {}, "private, gone afterwards"
        return
    where, pool = parse_dsn(dsn)
    for name in ("cursorclass", "defer_connect"):
        where.pop(name, None)  # the program counts on tuples, and on connections that are open
    yield where, pool, "the DSN's"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the demo's arguments to its parser."""
    parser.add_argument(
        "dsn",
        nargs="?",
        metavar="DSN",
        help="mysql://USER:PASSWORD@HOST:PORT/DATABASE; nothing is left behind there"
        " (default: a private server, started for the demo and removed afterwards)",
    )
    parser.add_argument("--threads", type=_count, default=_THREADS, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--rounds", type=_count, metavar="N", help="rounds of each thread (default: what fits ten seconds)"
    )


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("it must be at least 1")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; return 0, or 1 after a line on stderr that says what went wrong."""
    try:
        with _server(arguments.dsn) as (where, pool, place):
            try:
                show(where, pool, arguments.threads, arguments.rounds, place)
            finally:
                pooled_pymysql.close_pools()
    except (pymysql.err.Error, ThrowawayError, ValueError, TypeError, OSError, RuntimeError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        print(f"error: {_without_password(_one_line(error), arguments.dsn)}", file=sys.stderr)
        return 1
    return 0


def _one_line(error: Exception) -> str:
    if isinstance(error, pymysql.err.Error) and len(error.args) > 1:
        return f"({error.args[0]}) {error.args[1]}"
    return str(error) or type(error).__name__


def _without_password(text: str, dsn: str | None) -> str:
    """Strike out a DSN's password wherever a message repeats it."""
    userinfo, _, _ = (dsn or "").partition("://")[2].rpartition("@")
    user, _, secret = userinfo.partition(":")
    for form in {secret, unquote(secret)} - {"", user, unquote(user)}:
        text = text.replace(form, "***")
    return text
