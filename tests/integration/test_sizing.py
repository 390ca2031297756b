"""What docs/sizing.md says of tasks that hold two connections at once."""

from __future__ import annotations

from typing import Any

import pytest
from watching import crowd

import pooled_pymysql

THREADS = 8


def hold_two(config: dict[str, Any], size: int, timeout: float) -> list[bool]:
    """Let each thread take a connection, and another while all have one; say who got both."""
    pool = {"max_size": size, "timeout": timeout}
    first = [pooled_pymysql.connect(**config, pool=pool) for _ in range(THREADS)]

    def work(me: int) -> bool:
        with first[me]:
            try:
                pooled_pymysql.connect(**config, pool=pool).close()
            except pooled_pymysql.PoolTimeout:
                return False
            return True

    return crowd(work, THREADS)


def test_one_session_more_than_threads_is_enough_for_two_each(config: dict[str, Any]) -> None:
    assert all(hold_two(config, THREADS + 1, 30.0))


def test_as_many_sessions_as_threads_are_not(config: dict[str, Any]) -> None:
    assert not all(hold_two(config, THREADS, 0.5))


@pytest.mark.parametrize("most", [100, 2])
def test_a_pool_holds_no_more_than_were_wanted_at_once(most: int, config: dict[str, Any], ids: Any) -> None:
    for _ in range(20):
        with pooled_pymysql.connect(**config, pool={"max_size": most}) as connection:
            connection.ping()
    assert len(ids()) == 1
