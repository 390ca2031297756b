"""The pure parts of the benchmarks: what is counted, how it is written, what is drawn from it."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import peers
import results
from wire import Link, Packets, Tally, Way


def cell(median: float, **more: Any) -> dict[str, Any]:
    return results.cell([median, median - 0.1, median + 0.1], control=1.0, void=False, tries=1, **more)


@pytest.fixture
def found() -> dict[str, Any]:
    cells = {
        "pooled_pymysql": cell(1.2),
        "faster": cell(1.1),
        "slower": cell(2.5),
        "void": {**cell(0.5), "void": True, "control": 1.3},
        "gone": results.failed("hung: no answer within 60 s"),
    }
    rows = [results.row("select, loopback", "one thread", "Lease + SELECT 1", "x the floor", cells)]
    verdicts = {"pooled_pymysql": {"good": True, "seen": "as before"}, "slower": {"good": False, "seen": "(5,)"}}
    return {
        "quick": True,
        "conditions": {"python": "3", "pymysql": "1", "server": "10", "begun": "2020-01-01T00:00:00+00:00"},
        "rows": rows,
        "probes": {"leak: user variable": {"title": "it is not seen", "verdicts": verdicts}},
    }


def packet(number: int, body: bytes) -> bytes:
    return len(body).to_bytes(3, "little") + bytes([number]) + body


def test_packets_are_counted_however_they_are_cut() -> None:
    stream = packet(0, b"one") + packet(1, b"") + packet(2, b"x" * 300)
    for size in (1, 2, 3, 5, 7, 1000):
        packets = Packets()
        pieces = (stream[start : start + size] for start in range(0, len(stream), size))
        assert sum(packets.feed(piece) for piece in pieces) == 3


def test_nothing_is_counted_once_a_connection_is_encrypted() -> None:
    link = Link()
    request = (0x800).to_bytes(4, "little") + bytes(28)
    assert link.feed(True, packet(1, request)) == 1
    assert link.encrypted
    assert link.feed(True, b"\x16\x03\x01" * 20) == 0
    plain = Link()
    plain.feed(True, packet(1, request + bytes(28)))
    assert not plain.encrypted


def test_a_round_trip_is_waited_for_when_something_follows_its_delivery() -> None:
    with socket.socket() as one, socket.socket() as other:
        to_server, to_client = (Way(one, other, way, Link(), 0.0) for way in (True, False))
        second = Way(one, other, True, Link(), 0.0)
        tally = Tally()
        # A query waited for, a rollback that is not, and the next query on another connection.
        for way in (to_server, to_client, to_server, second, to_client, to_client):
            tally.count(way, packet(0, b"x"))
        counted = tally.take()
        assert (counted["waits"], counted["packets_to_server"], counted["packets_to_client"]) == (1, 3, 3)
        assert tally.take()["bytes_to_server"] == 0


def test_a_table_has_the_best_first_and_hides_neither_void_nor_failed(found: dict[str, Any]) -> None:
    (row,) = found["rows"]
    assert results.ordered(row) == ["void", "faster", "pooled_pymysql", "slower", "gone"]
    text = results.row_text(row)
    assert "0.50 (0.40-0.60)      floor to floor 1.300, VOID" in text
    assert "gone                              -  (hung: no answer within 60 s)" in text
    row["better"] = "higher"
    assert results.ordered(row) == ["slower", "pooled_pymysql", "faster", "void", "gone"]


def test_who_is_ahead_is_told_from_valid_figures_of_rivals(found: dict[str, Any]) -> None:
    (row,) = found["rows"]
    (told,) = results.beaten([row], ["faster", "slower", "void", "gone"])
    assert told == f"Lease + SELECT 1: 1.20; faster 1.10. To close it: {results.LEASE}."
    (told,) = results.beaten([{**row, "key": "spike"}], ["faster"])
    assert "opening_limit" in told
    assert results.beaten([row], ["slower", "void"]) == []
    (told,) = results.beaten([{**row, "better": "higher"}], ["faster", "slower"])
    assert told.startswith("Lease + SELECT 1: 1.20; slower 2.50. ")
    assert (results.void_count([row]), results.valid_count([row]), results.valid_count([row], "void")) == (1, 1, 0)


def test_the_grid_says_yes_no_and_that_there_was_no_answer(found: dict[str, Any]) -> None:
    lines = results.grid_text(found["probes"], ["pooled_pymysql", "slower", "gone"]).splitlines()
    assert lines[-1].split() == ["leak:", "user", "variable", "yes", "NO", "?"]
    assert results.wrongs(found["probes"], "slower")["leak: user variable"]["seen"] == "(5,)"
    assert results.wrongs(found["probes"], "pooled_pymysql") == {}


def test_figures_have_about_three_digits() -> None:
    assert [results.figure(value) for value in (0, 4, 0.123, 1.239, 12.34, 1234.5)] == [
        "0", "4", "0.12", "1.24", "12.3", "1234",
    ]  # fmt: skip


def test_peers_are_found_without_importing_them() -> None:
    known = {peer.name: peer for peer in peers.found()}
    assert next(iter(known)) == "ours"
    assert {"dbutils", "mariadb", "peewee", "plain", "pymysqlpool", "sqlalchemy"} < set(known)
    labels = [label for peer in known.values() for label in peer.labels()]
    assert len(labels) == len(set(labels)) and results.OURS in labels
    assert not [name for name in known if f"peers.{name}" in sys.modules]


def test_the_same_figures_give_the_same_charts(found: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    import charts

    first, second = ([path.read_bytes() for path in charts.draw_all(found, tmp_path)] for _ in range(2))
    assert first == second and len(first) == 2  # what there are no figures for is not drawn
    assert b"QUICK RUN" in first[0] and b"pooled_pymysql" in first[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["correctness.svg", "speed.svg"]
