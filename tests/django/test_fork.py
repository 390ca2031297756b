"""Forked processes: the child leases sessions of its own, and the parent never notices."""

from __future__ import annotations

import os

import pytest
from servers import Server

from .programs import run_program

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

PRELUDE = """
import os, traceback
from django.db import InterfaceError, ProgrammingError, close_old_connections, connections, transaction

def in_child(call):
    pid = os.fork()
    if not pid:
        try:
            call()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0

set_up(default=OURS)
connection = connections["default"]
own = ask(connection)
"""


@pytest.mark.parametrize(
    "act", ["pass", "close_old_connections()", "connection.close()", "connections.close_all()", "connection.is_usable"]
)
def test_a_child_uses_sessions_of_its_own(server: Server, act: str) -> None:
    run_program(
        f"""{PRELUDE}
def child():
    {act}
    first = ask(connection)
    assert first != own
    connection.close()
    assert ask(connection) == first
    with transaction.atomic():
        assert ask(connection) == first
    connection.close()

in_child(child)
in_child(child)
assert ask(connection) == own
connection.close()
in_child(child)
assert ask(connection) == own
connection.close()
""",
        server,
    )


def test_a_child_of_a_server_that_forks_without_hooks_uses_sessions_of_its_own(server: Server) -> None:
    run_program(
        f"""
import logging, os, random, threading
import pymysql
register = os.register_at_fork
del os.register_at_fork
import pooled_pymysql, pooled_pymysql.django.base
os.register_at_fork = register
{PRELUDE}

def child():
    close_old_connections()  # as at the beginning of each request
    first = ask(connection)
    assert first != own
    connection.close()
    assert ask(connection) == first
    connection.close()

in_child(child)
assert ask(connection) == own
connection.close()
""",
        server,
    )


def test_without_a_pool_a_child_is_djangos_matter(server: Server) -> None:
    run_program(
        f"""
OURS = {{"ENGINE": "pooled_pymysql.django"}}
{PRELUDE}
def child():
    assert connection.connection is inherited

inherited = connection.connection
in_child(child)
connection.close()
""",
        server,
    )


def test_a_transaction_stays_with_the_parent(server: Server) -> None:
    run_program(
        f"""{PRELUDE}
def child():
    for _ in range(2):
        try:
            ask(connection)
        except ProgrammingError as error:
            assert "atomic block" in str(error)
        else:
            raise AssertionError("a query in the parent's transaction")
    block.__exit__(None, None, None)
    assert ask(connection) != own

run = connection.cursor().execute
run("CREATE TABLE IF NOT EXISTS forked (x INT)")
try:
    with transaction.atomic() as block:
        pass
    block = transaction.atomic()
    with block:
        run("INSERT INTO forked VALUES (1)")
        in_child(child)
        assert ask(connection) == own
    assert ask(connection, "SELECT COUNT(*) FROM forked") == 1
finally:
    run("DROP TABLE forked")
connection.close()
""",
        server,
    )


def test_a_process_pool_of_workers_each_has_its_own_session(server: Server) -> None:
    run_program(
        f"""{PRELUDE}
import multiprocessing

def work(number):
    return os.getpid(), ask(connection), ask(connection, f"SELECT {{number}}")

with multiprocessing.get_context("fork").Pool(3) as workers:
    answers = workers.map(work, range(60), chunksize=1)
assert [answer for _, _, answer in answers] == list(range(60))
sessions = {{}}
for pid, session, _ in answers:
    assert sessions.setdefault(pid, session) == session
assert len(set(sessions.values())) == len(sessions) and own not in sessions.values()
assert ask(connection) == own
connection.close()
""",
        server,
    )
