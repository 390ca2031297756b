"""The connection of pools that are made by hand: an object that outlives its lease.

A `with` block leases when the connection holds nothing, and gives back at its end: committed if the block ended well,
rolled back if it raised. What `with` yields is the connection, which answers a cursor's names through one cursor of
the block, so that `with con as cur:` and `with con: with con.cursor() as cur:` both run.
"""

import contextlib
import logging
import os
import threading
import time
from typing import Any, Self, TypeVar, cast, overload
from weakref import WeakSet

from pymysql import cursors, err
from pymysql.constants import CR, SERVER_STATUS

from . import lease
from .cursor_names import Cursor, CursorNames, DictCursor, extended
from .exceptions import (
    GetConnectionFromPoolError,
    LeaseBusy,
    PoolClosed,
    PoolFull,
    PoolTimeout,
    ReturnConnectionToPoolError,
)
from .replies import LANDED
from .session import Session
from .sharing import _here, _Thread
from .tracking import RETIRE, TOUCHED

_logger = logging.getLogger("pooled_pymysql")
_getpid = os.getpid

C = TypeVar("C", bound=cursors.Cursor)

# These tell of a statement, or of waiting for a connection; the wire is in order behind them.
_SURE = (
    err.ProgrammingError, err.IntegrityError, err.NotSupportedError, err.DataError,
    PoolTimeout, PoolFull, PoolClosed, LeaseBusy,
)  # fmt: skip
_TOLD_AS_THEY_ARE = (PoolClosed, LeaseBusy)  # where a connection was wanted
_KILLED = (1152, 1158, 1159, 1160, 1161, 1184, 1927, 3169, 4031)  # errors behind which the server closes the connection


class _Renewal:
    """The lock for what a forked child does once."""

    def __init__(self) -> None:
        self.renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> None:
        self.lock = threading.Lock()


_renewal = _Renewal()


class Connection(CursorNames, lease.Connection):
    """A connection that leases for each `with` block; without a pool when it is made directly.

    Threads may share it: one that enters while another is inside waits until that one's outermost block has ended.
    """

    __slots__ = ("_blocks", "_entry", "_entry_pid", "_epoch", "_gone")

    _blocks: list[cursors.Cursor | None]  # the cursor of each block that is open, once it has one; outermost first
    _entry: Any  # an RLock: the thread that is inside of a block holds it
    _entry_pid: int
    _epoch: object  # another one as soon as a lease has ended
    _gone: "WeakSet[_Thread]"  # the threads that have given it back and not entered again

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls, *args, **kwargs)
        self.start_blocks()
        return self

    def start_blocks(self) -> None:
        """Begin outside of all blocks."""
        self._blocks = []
        self._entry = threading.RLock()
        self._entry_pid = _getpid()
        self._epoch = object()
        self._gone = WeakSet()

    # Blocks

    def __enter__(self) -> Self:
        """Lease if nothing is leased; commit or roll back, and give back, at the end of the block.

        Waits while another thread is inside, and for a session, each up to the pool's `timeout`. Raises LeaseBusy and
        GetConnectionFromPoolError then, PoolClosed, and the latter also for whatever else kept it from leasing.
        Blocks of one thread nest: the outermost one leases, and decides. Without a pool, a closed connection connects.
        """
        self._wait_outside()
        depth = len(self._blocks)
        try:
            self._blocks.append(None)  # first: who does not belong here is kept out from now on
            self._gone.discard(_here.thread)
            if not depth and self._sock is None:
                self._begin()
        except BaseException:
            del self._blocks[depth:]
            self._entry.release()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End a block: the outermost one commits if it ended well, rolls back if it raised, and gives back.

        A session that is lost, or in an unsure state by what was raised, is closed, and the pool opens another.
        Raises what commit() raises.
        """
        error = exc_info[1] if len(exc_info) > 1 else None
        self._leave(error if isinstance(error, BaseException) else None)

    def _wait_outside(self) -> None:
        if self._entry_pid != _getpid() and not self._entry._is_owned():
            self._forget_parents_blocks()
        entry = self._entry
        if entry.acquire(False):
            return
        started = time.monotonic()
        timeout = self.turn_timeout()
        if not entry.acquire(timeout=-1 if timeout is None else min(timeout, threading.TIMEOUT_MAX)):
            waited = time.monotonic() - started
            text = f"the connection was in another thread's `with` block for {waited:.1f} s"
            raise LeaseBusy(CR.CR_COMMANDS_OUT_OF_SYNC, text)

    def _forget_parents_blocks(self) -> None:
        """Begin outside of all blocks in a forked child: who is inside may be a thread that only the parent has."""
        with _renewal.lock:
            if self._entry_pid != _getpid():
                self._blocks = []
                self._entry = threading.RLock()
                self._entry_pid = _getpid()

    def _begin(self) -> None:
        try:
            self.connect()
        except BaseException as error:
            self._return()
            if self._find_home is None or not isinstance(error, err.MySQLError) or isinstance(error, _TOLD_AS_THEY_ARE):
                raise
            raise not_gotten(self._find_home().name, error) from error

    def _leave(self, error: BaseException | None, *, stays_open: bool = False) -> None:
        """End the innermost block of this thread."""
        if not self._blocks or not self._entry._is_owned():
            raise err.ProgrammingError("this thread is in no `with` block of the connection")
        try:
            cursor = self._blocks.pop()
            if self._blocks:
                if cursor is not None and error is None:
                    cursor.close()
            else:
                self._end(cursor, error, stays_open)
        finally:
            self._entry.release()

    def _end(self, cursor: cursors.Cursor | None, error: BaseException | None, stays_open: bool) -> None:
        try:
            if error is not None:
                self._roll_back_after(error)
                return
            if cursor is not None:
                cursor.close()
            if self._may_be_in_transaction():
                self.commit()
        finally:
            if not stays_open:
                self._return()

    def _roll_back_after(self, error: BaseException) -> None:
        if self._sock is None or self._flight != LANDED:
            return  # lost, or in the middle of a result: giving back takes care of it
        if self._may_be_in_transaction():
            with contextlib.suppress(Exception):  # the block's own exception tells more
                self.rollback()
        if not _is_sure(error):
            self._marks |= RETIRE

    def _may_be_in_transaction(self) -> bool:
        """Say whether there may be something to commit: not if the server's last word was that there is nothing."""
        if self._session is None or self._flight != LANDED or self._marks & TOUCHED:
            return True
        status = self.server_status
        return bool(status & SERVER_STATUS.SERVER_STATUS_IN_TRANS) or not (
            status & SERVER_STATUS.SERVER_STATUS_AUTOCOMMIT
        )

    def _return(self) -> None:
        """End the lease, if there is one, or the connection that has no pool."""
        self._epoch = object()
        self._gone.add(_here.thread)
        if self._find_home is not None:
            with contextlib.suppress(IndexError):
                self._give_back(self._held.pop())
        elif self.open:
            super().close()

    # The end of a lease

    def close(self) -> None:
        """Give the session back to its pool; without one, close the connection. Sends at most one packet.

        Within a `with` block it closes the block's cursor, and the end of the block gives back. Raises
        ReturnConnectionToPoolError, and does nothing, when it was given back already or is in another thread's block.
        """
        self._refuse_from_outside()
        if self._blocks and self._entry_pid == _getpid():
            self._cursor().close()
            return
        self._epoch = object()
        self._gone.add(_here.thread)
        try:
            super().close()
        except err.Error as error:
            if type(error) is not err.Error or not self._is_given_back():
                raise
            raise self.given_back() from None

    def connect(self, sock: Any = None) -> None:
        """Lease again, or connect, as leases do; an open one is given back first.

        Raises ReturnConnectionToPoolError, and does nothing, when it is in another thread's block.
        """
        self._refuse_from_outside()
        super().connect(sock)

    def _refuse_from_outside(self) -> None:
        """Keep other threads from ending the lease of a thread that is inside of a block."""
        if self._blocks and self._entry_pid == _getpid() and not self._entry._is_owned():
            text = "the connection is in another thread's `with` block, whose end gives it back"
            raise ReturnConnectionToPoolError(0, text)

    def epoch(self) -> object:
        """Return what stands for the lease that there is now, or None."""
        return self._epoch if self._held else None

    def given_back(self) -> ReturnConnectionToPoolError:
        """Return the error of whoever uses a connection after it was given back."""
        name = "" if self._home is None else f" to pool({self._home.name})"
        return ReturnConnectionToPoolError(0, f"the connection was given back{name}; a `with` block leases again")

    def _is_given_back(self) -> bool:
        return self._find_home is not None and not self._held

    def take_turn(self, work: Any, *args: Any) -> Any:
        """Call `work(*args)` while the wire is ours; see sharing.Shared."""
        if self._gone:
            self._refuse_stale_thread()
        try:
            return super().take_turn(work, *args)
        except err.InterfaceError as error:
            if error.args != (0, "") or not self._is_given_back():
                raise
            raise self.given_back() from None

    def _send(self, command: int, sql: Any) -> None:
        if self._gone:  # once more: who waited for the turn may find another's block
            self._refuse_stale_thread()
        super()._send(command, sql)

    def _refuse_stale_thread(self) -> None:
        """Keep a thread that has given the connection back out of another thread's block."""
        if self._blocks and _here.thread in self._gone and not self._entry._is_owned():
            raise self.given_back()

    def ping(self, reconnect: bool | None = None) -> None:
        """Ask the server for a sign of life, as PyMySQL does; leases again only with `reconnect=True`.

        Raises ReturnConnectionToPoolError when it was given back.
        """
        if self._is_given_back() and reconnect is not True:
            raise self.given_back()
        if reconnect is None:
            super().ping()
        else:
            super().ping(reconnect)

    def _give_back(self, session: Session) -> None:
        super()._give_back(session)
        if _logger.isEnabledFor(logging.DEBUG) and self._home is not None:
            _logger.debug("Put connection back to pool(%s)", self._home.name)

    def _connect_again(self, sock: Any) -> None:
        super()._connect_again(sock)
        self.tell_gotten()

    def tell_gotten(self) -> None:
        """Log that a session was leased."""
        if _logger.isEnabledFor(logging.DEBUG) and self._home is not None:
            _logger.debug("Get connection from pool(%s)", self._home.name)

    # Queries

    @overload
    def cursor(self, cursor: None = None) -> Cursor: ...
    @overload
    def cursor(self, cursor: type[C]) -> C: ...
    def cursor(self, cursor: Any = None) -> Any:
        """Return a cursor of the class given, or of `cursorclass`, with `db_query()` and `db_modify()`."""
        return extended(cursor or self.cursorclass)(self)

    def execute_query(
        self,
        query: str,
        args: Any = (),
        dictcursor: bool = False,
        return_one: bool = False,
        exec_many: bool = False,
    ) -> Any:
        """Run a statement in a block of its own and return its rows, as tuples or dicts; with `return_one` the first.

        Statements without rows return an empty tuple (None with `return_one`). `exec_many` runs it once for each item
        of `args`. As in PyMySQL, a literal `%` is written `%%` unless `args` is None.

        Leases, commits or rolls back, and gives back, as `with` does; within a block, that block does. Without a pool
        the connection stays open. Blocks and raises as entering a block and execute() do.
        """
        stays_open = self._find_home is None
        self.__enter__()
        try:
            with self.cursor(DictCursor if dictcursor else cast(Any, None)) as cursor:
                if exec_many:
                    cursor.executemany(query, args)
                else:
                    cursor.execute(query, args)
                rows: Any = None if return_one else ()
                if cursor.description is not None:
                    rows = cursor.fetchone() if return_one else cursor.fetchall()
        except BaseException as error:
            self._leave(error, stays_open=stays_open)
            raise
        self._leave(None, stays_open=stays_open)
        return rows

    def _cursor(self) -> Any:
        """Return the block's cursor; it is made when it is first asked for."""
        self._refuse_stale_thread()
        if not self._blocks or self._entry_pid != _getpid():
            if self._is_given_back():
                raise self.given_back()
            raise err.ProgrammingError("a connection has a cursor's methods within a `with` block only; use cursor()")
        cursor = self._blocks[-1]
        if cursor is None:
            cursor = self._blocks[-1] = self.cursor()
        return cursor


def not_gotten(name: str, error: BaseException, told: str | None = None) -> GetConnectionFromPoolError:
    """Return the error of whoever did not get a connection, with the code of its cause, or 1040."""
    code, text = 1040, str(error)
    if len(error.args) == 2 and isinstance(error.args[0], int):
        code, text = error.args
    said = f": {text}" if told is None else told
    return GetConnectionFromPoolError(code, f"can't get connection from pool({name}){said}")


def _is_sure(error: BaseException) -> bool:
    """Say whether the wire is in order behind an exception that ended a block.

    The server's own word ends a command in order, unless it says that it is the last one. What the client's side raised
    leaves that in doubt.
    """
    if not isinstance(error, err.MySQLError) or isinstance(error, _SURE):
        return True
    code = error.args[0] if error.args else None
    return isinstance(code, int) and (1000 <= code < 2000 or code >= 3000) and code not in _KILLED
