"""The catalogue of what a program may do with a connection: what an act is, and the list of all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from pooled_pymysql import Connection

from .scene import Scene


@dataclasses.dataclass
class Stage:
    """One lease on which acts are performed."""

    lease: Connection
    scene: Scene
    held: list[object] = dataclasses.field(default_factory=list)  # outlives the act

    def run(self, sql: str, *args: Any) -> tuple[Any, ...]:
        """Run a statement, read all that comes back, and return the rows of its first result."""
        with self.lease.cursor() as cursor:
            cursor.execute(self.scene.fill(sql), args or None)
            rows = tuple(cursor.fetchall())
            while cursor.nextset():
                cursor.fetchall()
            return rows


@dataclasses.dataclass(frozen=True, repr=False)
class Act:
    """A thing that a program may do.

    `errors` are the numbers of the errors it ends in, any of them, or it may end well if 0 is among them; `mend` are
    the administrator's statements that undo what it has done for good.
    """

    name: str
    perform: Callable[[Stage], object]
    family: str = "both"
    errors: tuple[int | str, ...] = ()
    mend: tuple[str, ...] = ()
    keeps: bool = False  # the session must stay in the pool
    blocks: bool = False  # holds what others wait for
    costly: bool = False  # takes a second
    alters_account: bool = False  # new connections are not what they were

    def is_of(self, scene: Scene) -> bool:
        """Say whether the scene's server can do it."""
        return self.family in ("both", scene.family)

    def __repr__(self) -> str:
        return self.name


def statements(name: str, *sql: str, **options: Any) -> Act:
    """Make an act of statements run one after another."""

    def perform(stage: Stage) -> None:
        for text in sql:
            stage.run(text)

    return Act(name, perform, **options)


def catalogue() -> list[Act]:
    """Return every act that reset="auto" covers."""
    from . import client_acts, error_acts, routine_acts, sql_acts, state_acts

    return [*sql_acts.ACTS, *state_acts.ACTS, *routine_acts.ACTS, *error_acts.ACTS, *client_acts.ACTS]


def hidden() -> list[Act]:
    """Return the acts that neither the text nor the server's replies show: the documented gap of reset="auto"."""
    from . import routine_acts

    return routine_acts.HIDDEN
