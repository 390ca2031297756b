"""What restores a session, without a server."""

from __future__ import annotations

import gc

from pooled_pymysql.restoration import Command, Reply

OK = b"\0\0\0\2\0\0\0"
QUESTION = (b"\1", b"column", b"\3abc", b"\xfe\0\0\2\0\0\0")  # columns, a column, a row, the end


def test_replies_leave_nothing_to_the_collector() -> None:
    gc.collect()
    for packets, expected in (((OK,), None), (QUESTION, (b"abc",))):
        reply = Reply(Command(b"", expected=expected), has_tracking=True)
        assert [reply.feed(number, data) for number, data in enumerate(packets, 1)][-1]
        del reply
        assert gc.collect() == 0
