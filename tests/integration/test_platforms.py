"""What other platforms lack is hidden before the import: the package works without it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from servers import Server

import pooled_pymysql

ROOT = Path(pooled_pymysql.__file__).parents[1]
HIDDEN = ("select.poll", "os.register_at_fork", "socket.TCP_USER_TIMEOUT", "socket.AF_UNIX")

PROGRAM = """
import os, random, select, socket, sys, time  # random: the library itself takes what os has for granted
from concurrent.futures import ThreadPoolExecutor

dsn, hidden = sys.argv[1], sys.argv[2].split()
for name in hidden:
    module, _, attribute = name.partition(".")
    if hasattr(sys.modules[module], attribute):
        delattr(sys.modules[module], attribute)

import pooled_pymysql

def ask(statement):
    with pooled_pymysql.connect(dsn) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0]

# Connect, query, close: one session.
ids = {ask("SELECT CONNECTION_ID()") for _ in range(5)}
assert len(ids) == 1, ids

# A session that died while it was idle is noticed and replaced.
(old,) = ids
with pooled_pymysql.connect(dsn, pool=False) as admin, admin.cursor() as cursor:
    admin.kill(old)
    deadline = time.monotonic() + 10
    while cursor.execute("SELECT 1 FROM information_schema.processlist WHERE id = %s", (old,)):
        assert time.monotonic() < deadline
new = ask("SELECT CONNECTION_ID()")
assert new != old
(pool,) = pooled_pymysql.pools()
assert pool.stats().opened == 2, pool

# Threads wait for one another.
small = pooled_pymysql.connect(dsn, pool={"max_size": 2})
small.close()
small = pooled_pymysql.pool_for(dsn, pool={"max_size": 2})

def share(number):
    with small.connection() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT %s", (number,))
        return cursor.fetchone()[0]

with ThreadPoolExecutor(8) as threads:
    assert list(threads.map(share, range(100))) == list(range(100))
assert small.stats().in_use == 0 and small.stats().opened <= 2

missing = [name for name in hidden if hasattr(sys.modules[name.split(".")[0]], name.split(".")[1])]
assert not missing, missing
print("good")
"""

# As in an isolated sub-interpreter.
WITHOUT_DAEMONS = """
import threading
plain = threading.Thread.__init__
def init(self, *args, daemon=None, **kwargs):
    if daemon:
        raise RuntimeError("daemon threads are disabled in this (sub)interpreter")
    plain(self, *args, **kwargs)
threading.Thread.__init__ = init
"""


@pytest.mark.parametrize("hidden", [*HIDDEN, " ".join(HIDDEN), ""], ids=[*HIDDEN, "all of them", "nothing"])
def test_works_without(hidden: str, server: Server) -> None:
    run(PROGRAM, server.dsn(), hidden)


def test_works_without_daemon_threads(server: Server) -> None:
    run(WITHOUT_DAEMONS + PROGRAM, server.dsn(), "")


def run(program: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=45.0,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "good\n", "")
