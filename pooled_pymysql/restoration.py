"""What is sent to a session to restore it, and what the server must answer."""

import struct
from collections.abc import Callable

from pymysql.constants import COMMAND

from .options import PoolOptions
from .packets import Ok
from .replies import Tracked
from .tracking import (
    DATABASE,
    ENDED,
    HOLDS,
    IN_TRANSACTION,
    INSERT_ID,
    RETIRE,
    STATUS_IN_TRANS,
    STATUS_MORE_RESULTS,
    SUSPECT,
    TOUCHED,
    WROTE,
    lenenc,
)

COM_RESET_CONNECTION = 0x1F  # https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_com_reset_connection.html


class NotRestorable(Exception):
    """The session must be closed; the text says why."""


class Command:
    """A command that restores, as a packet, and what its reply must be."""

    __slots__ = ("expected", "is_light", "packet")

    expected: tuple[object, ...] | None
    is_light: bool
    packet: bytes

    def __init__(self, packet: bytes, *, is_light: bool = False, expected: tuple[object, ...] | None = None) -> None:
        self.packet = packet
        self.is_light = is_light
        self.expected = expected  # the one row that the reply must have


def packet(command: int, payload: bytes = b"") -> bytes:
    return struct.pack("<IB", len(payload) + 1, command) + payload


_ROLLBACK = packet(COMMAND.COM_QUERY, b"ROLLBACK")
_LIGHT_ROLLBACK = Command(_ROLLBACK, is_light=True)
_HEAVY_ROLLBACK = Command(_ROLLBACK)
_FORGET_INSERT_ID = Command(packet(COMMAND.COM_QUERY, b"DO LAST_INSERT_ID(0)"), is_light=True)
_RESET = Command(packet(COM_RESET_CONNECTION))

TRACKING = "session_track_state_change"

_RESOURCE_GROUP = "(SELECT RESOURCE_GROUP FROM performance_schema.threads WHERE PROCESSLIST_ID = CONNECTION_ID())"
_TRACES = "(SELECT COUNT(*) FROM information_schema.OPTIMIZER_TRACE)"
_PROFILES = "(SELECT COUNT(*) FROM information_schema.PROFILING)"


def _only_as(role: object, statement: str) -> str:
    """Make the last init statement fail in another role: a function may have set it, which MySQL never tells.

    A question would be one more packet for each reset. 2 is no value of this variable, while NULL would turn it off.
    """
    is_the_same = f"<=> x'{role.hex()}'" if isinstance(role, bytes) else "IS NULL"
    return statement.replace(f"{TRACKING}=1", f"{TRACKING}=IF(CURRENT_ROLE() {is_the_same}, 1, 2)")


def _question(expected: dict[str, object]) -> Command:
    """Return a query for these expressions, whose answer must be these values."""
    query = f"SELECT {', '.join(expected)}".encode()
    return Command(packet(COMMAND.COM_QUERY, query), expected=tuple(expected.values()))


class Restoration:
    """How sessions of one pool are restored; made when a session is opened, by what its server can do."""

    __slots__ = ("_ask_all", "_init", "_return", "can_prove", "init_connect", "one_write", "reset")

    can_prove: bool
    init_connect: bool
    one_write: bool

    def __init__(self, options: PoolOptions) -> None:
        self.reset = options.reset
        self.one_write = options.one_write
        self.can_prove = False
        self.init_connect = False
        self._init: list[Command] = []
        self._return: list[Command] = []
        self._ask_all: list[Command] = []

    def learn(self, wire: Tracked, statements: list[str], role: object, has_roles: bool) -> None:
        """Note the statements that initialise a session, and what must be true of one that is as good as new."""
        encoding = wire.encoding
        if has_roles:
            statements = [*statements[:-1], _only_as(role, statements[-1])]
        self._init = [Command(packet(COMMAND.COM_QUERY, text.encode(encoding))) for text in statements]
        is_mariadb = "mariadb" in wire.server_version.lower()
        expected: dict[str, object] = {}
        if has_roles:
            expected["CURRENT_ROLE()"] = role
            if not is_mariadb:
                expected[_RESOURCE_GROUP] = b"USR_default"
                expected[_TRACES] = b"0"
        if wire.db:
            name = wire.db.encode(encoding) if isinstance(wire.db, str) else wire.db
            self._return = [Command(packet(COMMAND.COM_INIT_DB, name))]
        else:  # no command leads from a current database to none
            expected["DATABASE()"] = None
        if expected:
            self._ask_all = [_question(expected)]
        if is_mariadb:
            # A question of its own: a profile that goes on unseen has the one before in it.
            self._ask_all.append(_question({_PROFILES: b"0"}))

    def mask(self) -> int:
        """Return the marks that call for `commands()`."""
        if self.reset == "auto" and self.can_prove:
            return TOUCHED | SUSPECT | RETIRE | INSERT_ID | IN_TRANSACTION | HOLDS
        return ENDED

    def commands(self, marks: int) -> list[Command]:
        """Return what must be sent to a session that a lease has left with these marks (design: docs/architecture.md).

        Raises NotRestorable.
        """
        if marks & RETIRE:
            raise NotRestorable("not restorable")
        if self.reset == "rollback":
            return [_HEAVY_ROLLBACK] if marks & (IN_TRANSACTION | HOLDS | TOUCHED) else []
        if self.can_prove and not marks & TOUCHED:
            return self._light_commands(marks)
        if marks & SUSPECT and marks & IN_TRANSACTION:  # perhaps XA, out of sight
            raise NotRestorable("not restorable")
        if self.init_connect:  # a reset loses what it did, and the server does not run it again
            raise NotRestorable("init_connect")
        commands = [_RESET]
        # Before autocommit is switched off, with which a question would keep a metadata lock.
        if marks & SUSPECT or not self.can_prove or (marks & DATABASE and not self._return):
            commands += self._ask_all
        # The database is named again because a reset takes its character set away from it, or it may be another one;
        # not before SET NAMES, in which the name is sent, nor behind init_command, which may lead elsewhere.
        return commands + self._init[:1] + self._return + self._init[1:]

    @staticmethod
    def _light_commands(marks: int) -> list[Command]:
        commands = []
        if marks & (IN_TRANSACTION | HOLDS):
            commands.append(_HEAVY_ROLLBACK if marks & WROTE else _LIGHT_ROLLBACK)
        if marks & INSERT_ID:
            commands.append(_FORGET_INSERT_ID)
        return commands


class Reply:
    """One reply that a session owes: parses its packets as they come.

    https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_command_phase.html
    """

    __slots__ = ("_columns", "_command", "_has_tracking", "_rows", "_sequence", "_stage")

    def __init__(self, command: Command, has_tracking: bool) -> None:
        self._command = command
        self._has_tracking = has_tracking
        self._sequence = 1
        # A function, since a method that is bound to this reply would make it a cycle.
        self._stage: Callable[[Reply, bytes], bool] = Reply._first
        self._columns = 0
        self._rows: list[bytes] = []

    @property
    def is_light(self) -> bool:
        """Whether a statement may be sent behind it."""
        return self._command.is_light

    def feed(self, sequence: int, data: bytes) -> bool:
        """Take the next packet; say whether it was the last. Raises NotRestorable if all is not well."""
        if sequence != self._sequence or data[0] == 0xFF:
            raise NotRestorable("bad reply")
        self._sequence = (sequence + 1) & 0xFF
        return self._stage(self, data)

    def _first(self, data: bytes) -> bool:
        if data[0] == 0:
            return self._end(Ok(data, self._has_tracking).status)
        count, _ = lenenc(data, 0)
        if not count:
            raise NotRestorable("bad reply")
        self._columns = count
        self._stage = Reply._column
        return False

    def _column(self, _data: bytes) -> bool:
        self._columns -= 1
        if self._columns == 0:
            self._stage = Reply._row if self._has_tracking else Reply._end_of_columns
        return False

    def _end_of_columns(self, _data: bytes) -> bool:
        self._stage = Reply._row
        return False

    def _row(self, data: bytes) -> bool:
        if data[0] == 0xFE and len(data) < (0xFFFFFF if self._has_tracking else 9):
            status = Ok(data, True).status if self._has_tracking else int.from_bytes(data[3:5], "little")
            return self._end(status)
        self._rows.append(data)
        return False

    def _end(self, status: int) -> bool:
        if status & STATUS_MORE_RESULTS:
            self._stage = Reply._first
            return False
        if status & STATUS_IN_TRANS:  # an XA transaction survives
            raise NotRestorable("still in a transaction")
        if self._command.expected is not None and self._values() != self._command.expected:
            raise NotRestorable("role, database or resource group changed")
        return True

    def _values(self) -> tuple[object, ...] | None:
        if len(self._rows) != 1:
            return None
        data, position = self._rows[0], 0
        values: list[object] = []
        while position < len(data):
            if data[position] == 0xFB:
                values.append(None)
                position += 1
                continue
            length, position = lenenc(data, position)
            stop = position + (length or 0)
            values.append(data[position:stop])
            position = stop
        return tuple(values)
