"""Packets taken from whole buffers, without a server."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest

from pooled_pymysql.packets import Packets

ERROR = b"\x09\0\0\1\xff\x28\x04#42000"
OK = b"\x07\0\0\1\0\0\0\2\0\0\0"


class Interrupted:
    """A reader that is interrupted just behind its first read, and knows how much was asked for."""

    def __init__(self, data: bytes) -> None:
        self.reader = io.BytesIO(data)
        self.asked = 0

    def read(self, size: int) -> bytes:
        data = self.reader.read(size)
        self.asked += size
        if self.asked == size:
            raise KeyboardInterrupt
        return data


def read_one(packets: Packets) -> None:
    try:
        packets.next()
        packets.settle()
    finally:
        packets.settle()  # as the callers do; a second read would wait on the network


@pytest.mark.parametrize("data", [ERROR, OK])
def test_an_interruption_behind_a_read_does_not_make_it_read_twice(data: bytes) -> None:
    reader = Interrupted(data)
    with pytest.raises(KeyboardInterrupt):
        read_one(Packets(SimpleNamespace(_rfile=reader, _peek=lambda: data, _next_seq_id=1, reader_ahead=None)))
    assert reader.asked == len(data)
