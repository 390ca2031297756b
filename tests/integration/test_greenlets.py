"""gevent and eventlet, monkey-patched: no hang, no mixed answers, no needless turn of the hub, no lost session."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from servers import Server, connection_ids, wait_until

import pooled_pymysql

GEVENT = """
from gevent import monkey; monkey.patch_all()
import gevent, gevent.hub
spawn, sleep = gevent.spawn, gevent.sleep
def join(tasks): gevent.joinall(tasks, timeout=20, raise_error=True); assert all(task.ready() for task in tasks)
def kill(task): task.kill()
def limited(seconds): return gevent.Timeout(seconds)
Limit = gevent.Timeout
"""
EVENTLET = """
import warnings; warnings.simplefilter("ignore")
import eventlet; eventlet.monkey_patch()
spawn, sleep = eventlet.spawn, eventlet.sleep
def join(tasks):
    with eventlet.Timeout(20):
        for task in tasks:
            try: task.wait()
            except eventlet.greenlet.GreenletExit: pass
def kill(task): task.kill()
def limited(seconds): return eventlet.Timeout(seconds)
Limit = eventlet.Timeout
"""
LIBRARIES = {"gevent": GEVENT, "eventlet": EVENTLET}

PRELUDE = """
import faulthandler, gc, json, logging, random, sys, time
logging.basicConfig(level=logging.CRITICAL)
faulthandler.dump_traceback_later(25, exit=True)
import pymysql
from pymysql.cursors import SSCursor
import pooled_pymysql
pooled_pymysql.stock._MISSING_TIME = 3.0  # seconds until the sweep takes what a killed greenlet left
KWARGS = json.loads(sys.argv[1])

def connect(**options):
    return pooled_pymysql.connect(**KWARGS, **options)

def ask(lease, answer=42, seconds=0):
    with lease.cursor() as cursor:
        cursor.execute("SELECT %s, SLEEP(%s)", (answer, seconds))
        assert cursor.fetchall() == ((answer, 0),)

def only_pool():
    (pool,) = pooled_pymysql.pools()
    return pool

def settle():
    deadline = time.monotonic() + 20
    while only_pool().stats().in_use:
        assert time.monotonic() < deadline, only_pool().stats()
        gc.collect()
        only_pool().tick()
        sleep(0.02)
    only_pool()._ledger.check()
"""

PROGRAMS = {
    "pool": """
def work(me):
    for number in range(20):
        with connect() as lease:
            ask(lease, me * 1000 + number)
            lease.query("SET @left = 1")
            if number % 5 == 0: ask(lease, me, 0.001)
join([spawn(work, me) for me in range(30)])
assert only_pool().stats().opened <= 4, only_pool().stats()
settle()
""",
    "shared": """
lease = connect()
def work(me):
    for number in range(10):
        ask(lease, me * 1000 + number, 0.001 if number % 5 == 0 else 0)
        with lease.cursor(SSCursor) as cursor:
            cursor.execute("SELECT %s UNION ALL SELECT %s", (me, number))
            sleep(0)
            assert cursor.fetchall() == [(me,), (number,)]
join([spawn(work, me) for me in range(20)])
lease.close()
settle()
""",
    "concurrent": """
started = time.monotonic()
def work(me):
    with connect() as lease: ask(lease, me, 0.5)
join([spawn(work, me) for me in range(4)])
assert time.monotonic() - started < 1.5
settle()
""",
    "waiting": """
held = [connect() for _ in range(4)]
waiting = [spawn(lambda: ask(connect())) for _ in range(3)]
sleep(0.1)
assert only_pool().stats().waiting == 3
started = time.monotonic()
try: only_pool().acquire(timeout=0.2)
except pooled_pymysql.PoolTimeout: pass
else: raise AssertionError
assert time.monotonic() - started < 5
for lease in held: lease.close()
del lease
join(waiting)
del held
settle()
""",
    "killed": """
chance = random.Random(1)
killed = 0
for number in range(60):
    opened = only_pool().stats().opened if pooled_pymysql.pools() else 0
    def work():
        with connect() as lease:
            ask(lease, 1)
            lease.query("SET @left = 1")
            ask(lease, 2, 0.01)
    task = spawn(work)
    sleep(chance.random() * 0.012)
    kill(task)
    del task
    gc.collect()
    with connect() as lease, lease.cursor() as cursor:
        cursor.execute("SELECT %s, @left", (number,))
        assert cursor.fetchall() == ((number, None),)
    assert only_pool().stats().opened <= opened + 2, only_pool().stats()
settle()
assert sum(only_pool().stats().closed.values()) <= 60
""",
    "limited": """
for number in range(30):
    lease = connect()
    try:
        with limited(0.001 * (number % 10)): ask(lease, 7, 0.005)
    except Limit: pass
    lease.close()
    with connect() as lease: ask(lease, number)
settle()
""",
    "killed while waiting": """
held = [connect() for _ in range(4)]
waiting = [spawn(lambda: connect().close()) for _ in range(5)]
sleep(0.1)
for task in waiting[:4]: kill(task)
for lease in held: lease.close()
join(waiting[4:])
del held, lease
settle()
assert only_pool().stats().waiting == 0
""",
    "liveness": """
# A round without a statement needs no network, and so must not let others in.
turns = []
def turn():
    while True:
        turns.append(1)
        sleep(0)
connect().close()
other = spawn(turn)
sleep(0.01)
before = len(turns)
for _ in range(200): connect().close()
assert len(turns) == before, len(turns) - before
kill(other)
""",
    "exit": """
for lease in [connect() for _ in range(3)]:
    ask(lease)
    lease.close()
def for_ever():
    while True: sleep(0.01)
spawn(for_ever)
sleep(0.05)
""",
}


def installed(library: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.util.find_spec(library) is not None


def run_program(text: str, kwargs: dict[str, Any]) -> None:
    root = str(Path(pooled_pymysql.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", text, json.dumps(kwargs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": root},
    )
    try:
        _, errors = process.communicate(timeout=40)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        raise AssertionError(f"it does not end: {process.communicate()[1]}") from None
    assert (process.returncode, errors) == (0, ""), errors


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_greenlets(library: str, name: str, account: Server, admin: Any) -> None:
    if not installed(library):
        pytest.skip(f"{library} is not installed")
    kwargs = account.kwargs(ssl_disabled=True, pool={"max_size": 4, "timeout": 15.0})
    run_program(LIBRARIES[library] + PRELUDE + PROGRAMS[name], kwargs)
    wait_until(lambda: not connection_ids(admin, account.user), what="the end of every session")
