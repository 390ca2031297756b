"""Cursors with the extras that pymysql-pool's users know, and a cursor's names for a connection to answer."""

import functools
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self, TypedDict, cast

from pymysql import cursors

_CLASSES_KEPT = 64  # of the program's own, with the extras


class Modified(TypedDict):
    """What `db_modify()` returns."""

    rowcount: int
    lastrowid: int


class CursorNames:
    """The names of a cursor, answered by `_cursor()`. Blocking, errors and thread-safety are those of the cursor's."""

    __slots__ = ()

    def _cursor(self) -> Any:
        """Return the cursor to ask."""
        raise NotImplementedError

    def epoch(self) -> object:
        """Return what stands for the lease that there is now, or None."""
        raise NotImplementedError

    def given_back(self) -> Exception:
        """Return the error of whoever uses a lease that has ended."""
        raise NotImplementedError

    def execute(self, query: str, args: Any = None) -> int:
        """Run a statement on the block's cursor; see PyMySQL's Cursor, as for all names below."""
        return cast(int, self._cursor().execute(query, args))

    def executemany(self, query: str, args: Iterable[Any]) -> int | None:
        """Run a statement once for each item of `args`."""
        return cast(int | None, self._cursor().executemany(query, args))

    def callproc(self, procname: str, args: Iterable[Any] = ()) -> Any:
        """Call a stored procedure."""
        return self._cursor().callproc(procname, args)

    def mogrify(self, query: str, args: Any = None) -> str:
        """Return the statement as execute() would send it."""
        return cast(str, self._cursor().mogrify(query, args))

    def fetchone(self) -> Any:
        """Return the next row, or None."""
        return self._cursor().fetchone()

    def fetchmany(self, size: int | None = None) -> Sequence[Any]:
        """Return the next `size` rows, or `arraysize`."""
        return cast(Sequence[Any], self._cursor().fetchmany(size))

    def fetchall(self) -> Sequence[Any]:
        """Return all rows that are left."""
        return cast(Sequence[Any], self._cursor().fetchall())

    def fetchall_unbuffered(self) -> Iterator[Any]:
        """Return an iterator over the rows, if the cursor is an unbuffered one."""
        return cast(Iterator[Any], self._cursor().fetchall_unbuffered())

    def read_next(self) -> Any:
        """Read the next row, if the cursor is an unbuffered one."""
        return self._cursor().read_next()

    def nextset(self) -> bool | None:
        """Go on to the next result set; None when there is none."""
        return cast(bool | None, self._cursor().nextset())

    def scroll(self, value: int, mode: str = "relative") -> None:
        """Move within the rows."""
        self._cursor().scroll(value, mode)

    def setinputsizes(self, *args: Any) -> None:
        """Do nothing (PEP 249)."""

    def setoutputsizes(self, *args: Any) -> None:
        """Do nothing (PEP 249)."""

    def db_query(self, query: str, args: Any = ()) -> Sequence[Any]:
        """Run a query and return all its rows; see Cursor."""
        return cast(Extras, self._cursor()).db_query(query, args)

    def db_modify(self, query: str, args: Any = (), exec_many: bool = False) -> Modified:
        """Run a statement and return its row count and its last row's id; see Cursor."""
        return cast(Extras, self._cursor()).db_modify(query, args, exec_many)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._cursor())

    def __next__(self) -> Any:
        return next(self._cursor())

    @property
    def connection(self) -> Self:
        """The connection itself."""
        return self

    @property
    def description(self) -> Any:
        """The columns of the last result, or None."""
        return self._cursor().description

    @property
    def rowcount(self) -> int:
        """The rows of the last result, or those that the last statement affected; -1 before the first."""
        return cast(int, self._cursor().rowcount)

    @property
    def rownumber(self) -> int:
        """Where the next row is fetched from, counted from 0."""
        return cast(int, self._cursor().rownumber)

    @property
    def lastrowid(self) -> int | None:
        """The AUTO_INCREMENT value of the last statement; None before the first."""
        return cast(int | None, getattr(self._cursor(), "lastrowid", None))

    @property
    def warning_count(self) -> int:
        """The warnings of the last statement."""
        return cast(int, self._cursor().warning_count)

    @property
    def arraysize(self) -> int:
        """How many rows fetchmany() returns unless told."""
        return cast(int, self._cursor().arraysize)

    @arraysize.setter
    def arraysize(self, size: int) -> None:
        self._cursor().arraysize = size


class Extras(cursors.Cursor):
    """What cursors of these connections have beyond PyMySQL's; mixed into whatever class is asked for.

    A cursor belongs to the lease it was made in, or first used in: later ones it refuses to use.
    """

    def __init__(self, connection: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(connection, *args, **kwargs)
        self._epoch: object = None
        self._bind()

    def _bind(self) -> None:
        connection: Any = self.connection
        if isinstance(connection, CursorNames):
            if self._epoch is None:
                self._epoch = connection.epoch()
            elif self._epoch is not connection.epoch():
                raise connection.given_back()

    def _query(self, q: Any) -> Any:
        """Run a statement: every one of a cursor's passes through here."""
        self._bind()
        return super()._query(q)  # type: ignore[misc]

    def db_query(self, query: str, args: Any = ()) -> Sequence[Any]:
        """Run a query and return all its rows, in the form of the cursor's class.

        As in PyMySQL, a literal `%` is written `%%` unless `args` is None. Blocks and raises as execute() does.
        """
        self.execute(query, args)
        return self.fetchall()

    def db_modify(self, query: str, args: Any = (), exec_many: bool = False) -> Modified:
        """Run a statement, with `exec_many` once for each item of `args`; return its row count and its last row's id.

        Blocks and raises as execute() and executemany() do.
        """
        count = self.executemany(query, args) if exec_many else self.execute(query, args)
        if count is None:  # there was nothing to execute
            return {"rowcount": 0, "lastrowid": 0}
        return {"rowcount": count, "lastrowid": self.lastrowid}


class Cursor(Extras):
    """PyMySQL's cursor with `db_query()` and `db_modify()`."""


class DictCursor(Extras, cursors.DictCursor):  # type: ignore[misc]  # the stubs' DictCursorMixin overrides so
    """PyMySQL's cursor that returns dicts, with `db_query()` and `db_modify()`."""


def extended(kind: Any) -> Any:
    """Return a cursor class with the extras: a subclass of the one that was asked for."""
    return _extended(kind) if isinstance(kind, type) else kind


@functools.lru_cache(_CLASSES_KEPT)
def _extended(kind: type) -> type:
    if kind is cursors.Cursor:
        return Cursor
    if kind is cursors.DictCursor:
        return DictCursor
    if issubclass(kind, Extras) or not issubclass(kind, cursors.Cursor):
        return kind
    own = {name: getattr(kind, name) for name in ("__doc__", "__module__", "__qualname__")}
    return types.new_class(kind.__name__, (Extras, kind), None, lambda namespace: namespace.update(own))
