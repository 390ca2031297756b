"""A lease can't be told from a new connection, whatever the lease before it has done.

One lease performs acts and ends; the next one, on the same session if that was kept, is compared with a new connection
of plain PyMySQL made with the same arguments.
"""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pymysql
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from servers import Server

import pooled_pymysql

from . import acts, snapshot
from .acts import Act, Stage
from .scene import Scene, a_scene

ENDINGS = ("close", "with", "del", "exception")
COVERED = acts.catalogue()
ALL = [*COVERED, *acts.hidden()]

# What the examples are drawn from for other connect arguments: what a difference in them could matter to.
VARIANTS: dict[str, dict[str, Any]] = {
    "autocommit": {"autocommit": True},
    "autocommit_of_server": {"autocommit": None},
    "no_database": {"database": None},
    "init_command": {"init_command": "SET @from_init = 1, time_zone = '+03:00'"},
    "init_query": {"init_command": "SELECT 1 UNION SELECT 2", "autocommit": True},
    "sql_mode": {"sql_mode": "ANSI_QUOTES,NO_BACKSLASH_ESCAPES"},
    "latin1": {"charset": "latin1"},
    "gbk": {"charset": "gbk"},
    "plain": {"client_flag": 0, "local_infile": False, "read_timeout": None, "write_timeout": None},
    "dictionaries": {"cursorclass": pymysql.cursors.DictCursor, "use_unicode": True, "collation": "utf8mb4_bin"},
}


@pytest.fixture(scope="module")
def scene(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with a_scene(server, tmp_path_factory.mktemp("fidelity")) as built:
        yield built


class Boom(Exception):
    """Raised in a `with` block."""


def lease(scene: Scene, reset: str, arguments: dict[str, Any]) -> pooled_pymysql.Connection:
    """Lease from a pool of one session."""
    return pooled_pymysql.connect(pool={"max_size": 1, "reset": reset, "timeout": 10}, **scene.kwargs(**arguments))


def play(stage: Stage, performed: Sequence[Act]) -> list[int | str]:
    """Perform acts; return the errors in which they ended, by number or name."""
    errors: list[int | str] = []
    for act in performed:
        try:
            act.perform(stage)
        except (pymysql.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
            is_numbered = isinstance(error, pymysql.Error) and error.args and isinstance(error.args[0], int)
            errors.append(error.args[0] if is_numbered else type(error).__name__)
    return errors


@pytest.mark.filterwarnings("ignore:Previous unbuffered result")
def live(stage: Stage, performed: Sequence[Act], ending: str) -> list[int | str]:
    """Live through one lease: perform the acts and end as `ending` says; return the errors of the acts."""
    connection = stage.lease
    if ending == "del":
        errors = play(stage, performed)
        reference = weakref.ref(connection)
        stage.held.clear()
        del connection, stage.lease
        if reference() is not None:
            gc.collect()
        assert reference() is None
        return errors
    if ending == "close":
        errors = play(stage, performed)
        close(connection)
        return errors
    errors = []
    try:
        with connection:
            errors = play(stage, performed)
            if ending == "exception":
                raise Boom
    except Boom:
        pass
    except pymysql.Error as error:
        assert not connection.open and error.args == ("Already closed",)
    return errors


def close(connection: Any) -> None:
    """Close a connection that may be closed already."""
    try:
        connection.close()
    except pymysql.Error as error:
        assert error.args == ("Already closed",)


def perform(scene: Scene, reset: str, performed: Sequence[Act], ending: str, arguments: dict[str, Any]) -> Any:
    """Perform acts in one lease; return the errors."""
    stage = Stage(lease(scene, reset, arguments), scene)
    errors = live(stage, performed, ending)
    stage.held.clear()
    return errors


def next_lease(scene: Scene, reset: str, arguments: dict[str, Any]) -> tuple[pooled_pymysql.Connection, bool]:
    """Lease after another lease; say whether its session was kept: if it was not, it must be gone."""
    before = scene.connection_ids()
    second = lease(scene, reset, arguments)
    number = second.thread_id()
    scene.wait_for({number})
    return second, number in before


def compare(scene: Scene, second: Any, names: Sequence[str], arguments: dict[str, Any]) -> list[str]:
    """Take snapshots of a lease and of a new connection, one after the other; return the differences."""
    try:
        of_lease = snapshot.take(second, scene, names)
    finally:
        close(second)
        pooled_pymysql.close_pools()
    scene.wait_for(set())
    new = pymysql.connect(**scene.kwargs(**arguments))
    try:
        return snapshot.differences(of_lease, snapshot.take(new, scene, names))
    finally:
        new.close()


def mend(scene: Scene, performed: Sequence[Act]) -> None:
    """Undo what the acts did for good."""
    pooled_pymysql.close_pools()
    scene.wait_for(set())
    scene.mend(*(statement for act in performed for statement in act.mend))


def of_family(scene: Scene, act: Act) -> bool:
    return act.family in ("both", scene.family)


def differences_after(
    scene: Scene, reset: str, performed: Sequence[Act], ending: str, names: Sequence[str], arguments: dict[str, Any]
) -> tuple[list[str], bool, list[int | str]]:
    """Perform acts, compare, mend; return the differences, whether the session was kept, and the acts' errors."""
    try:
        errors = perform(scene, reset, performed, ending, arguments)
        second, kept = next_lease(scene, reset, arguments)
        return compare(scene, second, names, arguments), kept, errors
    finally:
        mend(scene, performed)


# Every act alone


@pytest.mark.filterwarnings("ignore:Previous unbuffered result")
@pytest.mark.parametrize("reset", ["auto", "always"])
@pytest.mark.parametrize("act", ALL, ids=str)
def test_an_act_alone_leaves_nothing_behind(scene: Scene, act: Act, reset: str) -> None:
    if not of_family(scene, act):
        pytest.skip(f"of {act.family} alone")
    if reset == "auto" and act not in COVERED:
        pytest.skip("the documented gap")
    found, kept, errors = differences_after(scene, reset, [act], "close", list(snapshot.PROBES), {})
    assert not found, "\n" + "\n".join(found)
    assert set(errors) <= set(act.errors) - {0}
    assert errors or not act.errors or 0 in act.errors
    assert kept or not act.keeps


@pytest.mark.filterwarnings("ignore:Previous unbuffered result")
@pytest.mark.parametrize("act", COVERED, ids=str)
def test_the_first_statement_of_the_next_lease_sees_nothing_of_an_act(scene: Scene, act: Act) -> None:
    """What only a first statement can ask is asked first, once each."""
    if not of_family(scene, act) or act.costly:
        pytest.skip(f"of {act.family} alone, or slow")
    found = {}
    try:
        for name in snapshot.FIRST:
            perform(scene, "auto", [act], "close", {"autocommit": True})
            second = lease(scene, "auto", {"autocommit": True})
            answer = snapshot.PROBES[name](second, scene)
            second.close()
            expected = answer_of_new_connection(scene, name)
            if answer != expected:
                found[name] = (answer, expected)
    finally:
        mend(scene, [act])
    assert not found, found


_answers: dict[tuple[int, str], Any] = {}


def answer_of_new_connection(scene: Scene, name: str) -> Any:
    """Ask a new connection once: the answers to these questions do not depend on what is in the tables."""
    key = (id(scene), name)
    if key not in _answers:
        new = pymysql.connect(**scene.kwargs(autocommit=True))
        _answers[key] = snapshot.PROBES[name](new, scene)
        new.close()
    return _answers[key]
