"""Packets taken from whole buffers, without a server."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pymysql
import pytest
from pymysql.connections import MySQLResult

from pooled_pymysql.packets import Packets
from pooled_pymysql.reader import Reader
from pooled_pymysql.replies import Result

ERROR = b"\x09\0\0\1\xff\x28\x04#42000"
OK = b"\x07\0\0\1\0\0\0\2\0\0\0"


class Source:
    """Stands in for a socket."""

    def __init__(self, recv: Callable[[int], bytes]) -> None:
        self.recv = recv


def connection(*chunks: bytes) -> Any:
    """Stand in for a connection whose server sends these, a chunk each time it is read from."""
    arriving = iter(chunks)
    reader = Reader(Source(lambda _size: next(arriving)))
    return SimpleNamespace(_rfile=reader, _peek=reader.peek, _next_seq_id=1)


@pytest.mark.parametrize("data", [ERROR, OK])
def test_settling_twice_is_settling_once(data: bytes) -> None:
    # As the callers do behind an error, and behind an interruption.
    of = connection(data + b"rest")
    packets = Packets(of)
    with contextlib.suppress(pymysql.err.MySQLError):
        packets.next()
    for _ in range(2):
        packets.settle()
        assert (of._rfile.data, of._next_seq_id) == (b"rest", 2)


@pytest.mark.parametrize("ahead", [1, 2, 100, 16384])
def test_a_reader_gives_what_was_asked_for_however_it_arrives(ahead: int) -> None:
    whole = bytes(range(200)) * 3
    for piece in (1, 2, 7, 599, 600):
        source = io.BytesIO(whole)
        reader = Reader(Source(lambda size, source=source, piece=piece: source.read(min(size, piece))), ahead)  # type: ignore[misc]
        assert reader.read(3) == whole[:3]
        seen = reader.peek()
        assert seen == reader.peek() == whole[3 : 3 + len(seen)] != b""
        assert reader.read(500) == whole[3:503]
        assert reader.read(500) == whole[503:]  # the end
        assert (reader.read(1), reader.peek()) == (b"", b"")


def test_a_reader_asks_for_no_more_than_it_may() -> None:
    asked: list[int] = []

    def receive(size: int) -> bytes:
        asked.append(size)
        return b"x" * min(size, 3)

    assert Reader(Source(receive), ahead=1).read(7) == b"x" * 7
    assert asked == [7, 4, 1]
    del asked[:]
    Reader(Source(receive)).read(16_390)
    assert asked[:3] == [16_390, 16_387, 16_384]
    assert set(asked[3:]) == {16_384}
    Reader(Source(lambda size: asked.append(size) or b"")).read(1 << 30)  # type: ignore[func-returns-value]
    assert asked[-1] == 262_144


def test_a_result_has_all_that_pymysqls_has() -> None:
    assert vars(MySQLResult(None)).keys() <= {*dir(Result), *vars(Result(None))}  # type: ignore[arg-type]
    assert all(getattr(Result(None), name) == value for name, value in vars(MySQLResult(None)).items())  # type: ignore[arg-type]
