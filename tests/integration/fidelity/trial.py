"""One trial: a lease performs acts and ends, and the next one is compared with a new connection."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import pymysql

import pooled_pymysql

from . import snapshot
from .acts import Act, Stage
from .scene import Scene

ENDINGS = ("close", "with", "del", "exception")

Errors = list[int | str]  # numbers, or names of exceptions that have none


class Boom(Exception):
    """Raised in a `with` block."""


class Outcome(NamedTuple):
    """What a trial has shown."""

    differences: list[str]
    kept: bool  # the session of the first lease is the second one's
    errors: Errors  # in which the acts ended

    def __str__(self) -> str:
        return "\n".join([f"errors {self.errors}, session {'kept' if self.kept else 'closed'}", *self.differences])


@dataclasses.dataclass(frozen=True)
class Trial:
    """A pool of one session, and how to connect without it."""

    scene: Scene
    reset: str = "auto"
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)

    def lease(self) -> pooled_pymysql.Connection:
        options = {"max_size": 1, "reset": self.reset, "timeout": 10}
        return pooled_pymysql.connect(pool=options, **self.scene.kwargs(**self.arguments))

    def connect(self) -> Any:
        """Open a new connection of plain PyMySQL."""
        return pymysql.connect(**self.scene.kwargs(**self.arguments))

    def perform(self, performed: Sequence[Act], ending: str = "close") -> Errors:
        """Perform acts in one lease; return the errors in which they ended."""
        stage = Stage(self.lease(), self.scene)
        errors = live(stage, performed, ending)
        stage.held.clear()
        return errors

    def next_lease(self) -> tuple[pooled_pymysql.Connection, bool]:
        """Lease after another lease; say whether its session was kept: if it was not, it must be gone."""
        before = self.scene.connection_ids()
        second = self.lease()
        number = second.thread_id()
        self.scene.wait_for({number})
        return second, number in before

    def run(self, performed: Sequence[Act], ending: str, names: Sequence[str]) -> Outcome:
        """Perform acts, compare the next lease by these questions, and mend what the acts did for good."""
        try:
            errors = self.perform(performed, ending)
            second, kept = self.next_lease()
            if any(act.alters_account for act in performed):
                _snapshots.clear()
            return Outcome(self._compare(second, names), kept, errors)
        finally:
            self.mend(performed)

    def _compare(self, second: Any, names: Sequence[str]) -> list[str]:
        """Take a snapshot of a lease and return where it differs from one of a new connection."""
        try:
            of_lease = snapshot.take(second, self.scene, names)
        finally:
            close(second)
            pooled_pymysql.close_pools()
        self.scene.wait_for(set())
        found = snapshot.differences(of_lease, self.of_new_connection(names))
        if found:  # the server itself may have changed since: ask the newest
            _snapshots.clear()
            found = snapshot.differences(of_lease, self.of_new_connection(names))
        return found

    def of_new_connection(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the snapshot of a new connection, taken once for each order of questions: few acts alter it."""
        key = (id(self.scene), *names, *map(str, self.arguments.items()))
        if key not in _snapshots:
            new = self.connect()
            try:
                _snapshots[key] = snapshot.take(new, self.scene, names, new=True)
            finally:
                new.close()
        return _snapshots[key]

    def mend(self, performed: Sequence[Act] = ()) -> None:
        """Close the pool and undo what acts did for good."""
        pooled_pymysql.close_pools()
        self.scene.wait_for(set())
        self.scene.mend(*(statement for act in performed for statement in act.mend))
        if any(act.alters_account for act in performed):
            _snapshots.clear()


_snapshots: dict[tuple[Any, ...], dict[str, Any]] = {}


def live(stage: Stage, performed: Sequence[Act], ending: str) -> Errors:
    """Live through one lease: perform the acts and end as `ending` says; return the errors of the acts."""
    if ending == "del":
        return _play_and_drop(stage, performed)
    if ending == "close":
        errors = _play(stage, performed)
        close(stage.lease)
        return errors
    errors = []
    try:
        with stage.lease:
            errors = _play(stage, performed)
            if ending == "exception":
                raise Boom
    except Boom:
        pass
    except pymysql.Error as error:
        assert not stage.lease.open and error.args == ("Already closed",)
    return errors


def _play(stage: Stage, performed: Sequence[Act]) -> Errors:
    errors: Errors = []
    for act in performed:
        try:
            act.perform(stage)
        except (pymysql.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
            is_numbered = isinstance(error, pymysql.Error) and error.args and isinstance(error.args[0], int)
            errors.append(error.args[0] if is_numbered else type(error).__name__)
    return errors


def _play_and_drop(stage: Stage, performed: Sequence[Act]) -> Errors:
    errors = _play(stage, performed)
    reference = weakref.ref(stage.lease)
    stage.held.clear()
    del stage.lease
    if reference() is not None:
        gc.collect()
    assert reference() is None
    return errors


def close(connection: Any) -> None:
    """Close a connection that may be closed already."""
    try:
        connection.close()
    except pymysql.Error as error:
        assert error.args == ("Already closed",)
