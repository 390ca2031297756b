"""How many connections the server sees, counted by the server and by what passes on the network."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from proxy import Proxy
from servers import Server

import pooled_pymysql

ROUNDS_IN_A_ROW = 1000
THREADS = 200
ROUNDS = 50
MAX_SIZE = 8


def one_round(kwargs: dict[str, Any], tag: str) -> int:
    """Connect, query, close; return the server's number of the connection when the answer is the right one."""
    with pooled_pymysql.connect(**kwargs) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT CONNECTION_ID(), %s", (tag,))
        number, answer = cursor.fetchone()
        assert answer == tag
        assert cursor.fetchone() is None
    return int(number)


def test_a_thousand_in_a_row_use_one_connection(account: Server, connection_ids: Callable[..., set[int]]) -> None:
    used = {one_round(account.kwargs(), f"round {number}") for number in range(ROUNDS_IN_A_ROW)}
    assert len(used) == 1
    assert connection_ids(account.user) == used
    (pool,) = pooled_pymysql.pools()
    stats = pool.stats()
    assert (stats.opened, stats.leases, stats.in_use, stats.idle) == (1, ROUNDS_IN_A_ROW, 0, 1)
    assert stats.closed == {}


def test_the_network_sees_one_connection(account: Server) -> None:
    with Proxy(account.host, account.port) as proxy:
        kwargs = account.kwargs(port=proxy.port)
        used = {one_round(kwargs, f"round {number}") for number in range(100)}
        assert (len(used), proxy.connections) == (1, 1)
        pooled_pymysql.close_pools()


class Crowd:
    """Threads that start together and note what they saw."""

    def __init__(self, kwargs: dict[str, Any]) -> None:
        self.kwargs = kwargs
        self.used: set[int] = set()
        self.rounds = 0
        self.failures: list[BaseException] = []
        self.lock = threading.Lock()
        self.start_line = threading.Barrier(THREADS + 1)
        self.threads = [threading.Thread(target=self.run, args=(each,), daemon=True) for each in range(THREADS)]

    def run(self, me: int) -> None:
        try:
            self.start_line.wait(30)
            used = [one_round(self.kwargs, f"thread {me} round {number}") for number in range(ROUNDS)]
        except BaseException as error:
            with self.lock:
                self.failures.append(error)
        else:
            with self.lock:
                self.used.update(used)
                self.rounds += len(used)

    def busy(self) -> bool:
        return any(thread.is_alive() for thread in self.threads)


@pytest.mark.timeout(180)
def test_two_hundred_threads_share_eight_connections(account: Server, connection_ids: Callable[..., set[int]]) -> None:
    crowd = Crowd(account.kwargs(pool={"max_size": MAX_SIZE, "timeout": 120.0}))
    for thread in crowd.threads:
        thread.start()
    crowd.start_line.wait(30)
    most = 0
    while crowd.busy():
        most = max(most, len(connection_ids(account.user)))
        crowd.threads[0].join(0.05)
        if not crowd.threads[0].is_alive():
            crowd.threads[-1].join(0.05)
    assert crowd.failures == []
    assert crowd.rounds == THREADS * ROUNDS
    assert 0 < most <= MAX_SIZE
    assert len(crowd.used) <= MAX_SIZE
    (pool,) = pooled_pymysql.pools()
    stats = pool.stats()
    assert (stats.in_use, stats.opening, stats.waiting) == (0, 0, 0)
    assert stats.leases == THREADS * ROUNDS
    assert stats.opened == stats.idle == len(crowd.used)
    assert connection_ids(account.user) == crowd.used
