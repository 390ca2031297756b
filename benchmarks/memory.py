"""What an idle pooled session costs in memory, with and without TLS, and what forgotten pools leave behind.

    python benchmarks/memory.py [--server-dsn DSN] [--quick] [--json FILE]

Starts a private server unless a DSN is given. Each figure comes from processes of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lease
import method
import pymysql
from lease import Server
from method import Spread, resident

sys.path.append(str(Path(__file__).parents[1]))  # the working copy, unless the package is installed

import pooled_pymysql
from pooled_pymysql.dsn import parse_dsn
from pooled_pymysql.throwaway import ThrowawayServer

STEP = 100  # sessions between two looks; the first that many are not measured, they fill caches
TLS_OFF: dict[str, Any] = {"ssl_disabled": True}
TLS_ON: dict[str, Any] = {"ssl": {"check_hostname": False, "verify_mode": False}}


class Effort(NamedTuple):
    """How much is measured."""

    sessions: int
    processes: int
    pools: int


FULL = Effort(sessions=600, processes=3, pools=10_000)
QUICK = Effort(sessions=300, processes=2, pools=2_000)


# In a process of its own


def sessions(arguments: dict[str, Any], count: int) -> list[float]:
    """Return the bytes that a session takes, for each step on the way to so many idle ones.

    Each step has a pool of its own: leases that are held at the same time need memory too, and what they leave is used
    again by those of the next step.
    """
    found = []
    for number in range(0, count + STEP, STEP):
        given = {**arguments, "pool": {"max_size": STEP, "name": f"step {number}"}}
        for connection in [pooled_pymysql.connect(**given) for _ in range(STEP)]:
            connection.close()
        gc.collect()
        found.append(resident())
    return [(after - before) / STEP for before, after in itertools.pairwise(found)]


class Forgotten(NamedTuple):
    """What is left of pools that nobody uses any more."""

    growth: float  # bytes a pool, over the later half of them
    kept: int  # bytes more than with the first pool
    most_connections: int  # that the server saw
    live_pools: int
    threads: int


def forgotten(arguments: dict[str, Any], count: int, by: str) -> Forgotten:
    """Make so many pools and forget them: closed, or left to the registry by ever new arguments."""
    threads = threading.active_count()
    most = 0
    first = half = 0
    with pymysql.connect(**arguments) as admin, admin.cursor() as cursor:
        for number in range(count):
            secret = arguments["password"]
            pooled_pymysql.connect(**{**arguments, "password": lambda secret=secret: secret}).close()
            if by == "close":
                pooled_pymysql.close_pools()
            if number % (count // 10) == count // 10 - 1:
                cursor.execute("SHOW STATUS LIKE 'Threads_connected'")
                most = max(most, int(cursor.fetchone()[1]) - 1)
            if number in {0, count // 2}:
                gc.collect()
                first, half = first or resident(), resident()
    gc.collect()
    growth, kept = (resident() - half) / (count - count // 2), resident() - first
    live = len(pooled_pymysql.pools())
    pooled_pymysql.close_pools()
    # A housekeeper with nothing left to do may take a tick to see it.
    for thread in threading.enumerate():
        if thread.name.startswith("pooled_pymysql"):
            thread.join(3.0)
    return Forgotten(growth, kept, most, live, threading.active_count() - threads)


# All of it


def in_process(*task: Any) -> Any:
    line = [sys.executable, __file__, "--task", json.dumps(task)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


def measure_sessions(arguments: Mapping[str, Any], effort: Effort) -> dict[str, Spread | None]:
    ways = {"without TLS": {**arguments, **TLS_OFF}}
    if speaks_tls(arguments):
        ways["with TLS"] = {**arguments, **TLS_ON}
    found = method.rotate(
        {name: lambda given=given: in_process("sessions", given, effort.sessions) for name, given in ways.items()},
        effort.processes,
    )
    return {name: Spread.of(value for values in found[name] for value in values) for name in ways}


def speaks_tls(arguments: Mapping[str, Any]) -> bool:
    try:
        with pymysql.connect(**arguments, **TLS_ON) as connection, connection.cursor() as cursor:
            cursor.execute("SHOW STATUS LIKE 'Ssl_cipher'")
            return bool(cursor.fetchone()[1])
    except pymysql.Error:
        return False


@contextlib.contextmanager
def chosen_server(options: argparse.Namespace) -> Iterator[Server]:
    if options.server_dsn is not None:
        yield Server({"host": "127.0.0.1", "port": 3306, **parse_dsn(options.server_dsn)[0]}, ())
        return
    with tempfile.TemporaryDirectory() as folder:
        certificate = [f"--ssl-cert={folder}/cert.pem", f"--ssl-key={folder}/key.pem"] if sign(folder) else []
        with ThrowawayServer(options=("--max-connections=2000", *certificate), start_timeout=120.0) as own:
            yield Server(own.kwargs(), (own.pid,))


def sign(folder: str) -> bool:
    """Make a certificate; say whether that was possible."""
    key, certificate = os.path.join(folder, "key.pem"), os.path.join(folder, "cert.pem")
    line = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "1"]
    try:
        subprocess.run([*line, "-keyout", key, "-out", certificate], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    for path, mode in ((folder, 0o755), (key, 0o644)):  # the server may run as another user
        os.chmod(path, mode)
    return True


def measure(server: Server, effort: Effort) -> dict[str, Any]:
    """Measure and print; return all figures."""
    known = lease.conditions(server, None)
    method.show_conditions(known)
    per_session = measure_sessions(server.arguments, effort)
    print(f"\nMemory of an idle session, KiB ({effort.processes} processes, {effort.sessions} sessions each)")
    for name in ("without TLS", "with TLS"):
        spread = per_session.get(name)
        print(f"  {name:<50}{method.text(spread, 1024, 1) if spread else 'the server has none':>24}", flush=True)
    left = {}
    for by in ("close", "registry"):
        left[by] = found = Forgotten(*in_process("forgotten", server.arguments, effort.pools, by))
        label = "closed by close_pools()" if by == "close" else "left alone, each with arguments of its own"
        print(f"\n{effort.pools} pools, {label}")
        print(f"  growth over the later half, bytes a pool: {found.growth:.0f}; kept: {found.kept / 2**20:.1f} MiB")
        print(f"  connections at once: {found.most_connections}; pools at the end: {found.live_pools};", end=" ")
        print(f"threads left: {found.threads}", flush=True)
    known["load_after"] = method.load()
    print(f"\nLoad at the end: {method.loads(known['load_after'])}")
    return {"conditions": known, "sessions": per_session, "forgotten": left}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--server-dsn", metavar="DSN", help="a running server with room for 1,000 connections")
    parser.add_argument("--quick", action="store_true", help="under a minute, with wider spreads")
    parser.add_argument("--json", metavar="FILE", help="write all figures there as well")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        name, *arguments = json.loads(options.task)
        print(json.dumps({"sessions": sessions, "forgotten": forgotten}[name](*arguments)))
        return 0
    with chosen_server(options) as server:
        found = measure(server, QUICK if options.quick else FULL)
    method.keep(found, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
