"""What is sent to a session to restore it, and what the server must answer."""

import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Literal, NamedTuple

from pymysql.constants import COMMAND

from .packets import Ok
from .tracking import (
    CLEAN,
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


def packet(command: int, payload: bytes = b"") -> bytes:
    return struct.pack("<IB", len(payload) + 1, command) + payload


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


class LightReply:
    """The reply to a light command: one OK packet. Without state, so that one serves all.

    For sessions with tracking, since nothing else can prove that a light command will do.
    """

    __slots__ = ()

    is_light = True

    def feed(self, sequence: int, data: bytes) -> bool:
        """Do as Reply.feed()."""
        if sequence != 1 or data[0] != 0:
            raise NotRestorable("bad reply")
        status = Ok(data, True).status
        if status & (STATUS_MORE_RESULTS | STATUS_IN_TRANS):
            raise NotRestorable("bad reply" if status & STATUS_MORE_RESULTS else "still in a transaction")
        if len(_good_packets) < _MOST_GOOD and len(data) < _LONGEST_GOOD:
            _good_packets.add(_HEADER_OF_FIRST(len(data) | 1 << 24) + data)
        return True


_good_packets: set[bytes] = set()  # with their headers; servers repeat themselves
_MOST_GOOD = 64
_LONGEST_GOOD = 200
_HEADER_OF_FIRST = struct.Struct("<I").pack  # length in 24 bits, sequence number


def skip_good(data: bytes, owed: "list[Reply | LightReply]") -> int:
    """Take light replies off those that are owed, as long as `data` begins with ones that have been good before.

    Returns the number of bytes that these were.
    """
    start = 0
    while owed and owed[0].is_light and start < len(data):
        stop = start + 4 + data[start]
        if data[start:stop] not in _good_packets:
            break
        del owed[0]
        start = stop
    return start


_LIGHT_REPLY = LightReply()
_RESET = Command(packet(COM_RESET_CONNECTION))


class Script:
    """What is sent to a session, in one write or command by command."""

    __slots__ = ("commands", "data", "is_light", "is_private", "light_replies", "resets")

    commands: list[Command]
    data: bytes
    light_replies: list[LightReply]  # what is owed for it, if it is light
    is_light: bool
    is_private: bool
    resets: bool

    def __init__(self, *commands: Command, is_private: bool = False) -> None:
        self.commands = list(commands)
        self.data = b"".join(command.packet for command in commands)
        self.is_light = all(command.is_light for command in commands)  # a statement may be sent behind it
        self.light_replies = [_LIGHT_REPLY] * len(commands)
        self.is_private = is_private  # nobody but this very session can tell when it is done
        self.resets = _RESET in commands


_ROLLBACK = packet(COMMAND.COM_QUERY, b"ROLLBACK")
_LIGHT_ROLLBACK = Command(_ROLLBACK, is_light=True)
_HEAVY_ROLLBACK = Command(_ROLLBACK)
_FORGET_INSERT_ID = Command(packet(COMMAND.COM_QUERY, b"DO LAST_INSERT_ID(0)"), is_light=True)

# By the marks that call for them.
_HAS_TRANSACTION = IN_TRANSACTION | HOLDS
_NOTHING = Script()
_ONLY_ROLLBACK = Script(_HEAVY_ROLLBACK)
_WITHOUT_RESET = {
    ended | wrote | insert_id: Script(
        *([_HEAVY_ROLLBACK if wrote else _LIGHT_ROLLBACK] if ended else []),
        *([_FORGET_INSERT_ID] if insert_id else []),
        is_private=not ended,
    )
    for ended in (CLEAN, IN_TRANSACTION, HOLDS, _HAS_TRANSACTION)
    for wrote in (CLEAN, WROTE)
    for insert_id in (CLEAN, INSERT_ID)
}

TRACKING = "session_track_state_change"

_RESOURCE_GROUP = "(SELECT RESOURCE_GROUP FROM performance_schema.threads WHERE PROCESSLIST_ID = CONNECTION_ID())"
_TRACES = "(SELECT COUNT(*) FROM information_schema.OPTIMIZER_TRACE)"
_PROFILES = "(SELECT COUNT(*) FROM information_schema.PROFILING)"


def _only_as(role: bytes | None, statement: bytes) -> bytes:
    """Make the last init statement fail in another role: a function may have set it, which MySQL never tells.

    A question would be one more packet for each reset. 2 is no value of this variable, while NULL would turn it off.
    """
    is_the_same = "IS NULL" if role is None else f"<=> x'{role.hex()}'"
    return statement.replace(f"{TRACKING}=1".encode(), f"{TRACKING}=IF(CURRENT_ROLE() {is_the_same}, 1, 2)".encode())


def _question(expected: dict[str, object]) -> Command:
    """Return a query for these expressions, whose answer must be these values."""
    query = f"SELECT {', '.join(expected)}".encode()
    return Command(packet(COMMAND.COM_QUERY, query), expected=tuple(expected.values()))


class Facts(NamedTuple):
    """What decides how a session is restored."""

    reset: Literal["auto", "always", "rollback"]
    one_write: bool
    can_prove: bool  # the server tells what a statement changes
    init_connect: bool  # the server runs something of its own when a session is opened
    is_mariadb: bool
    database: bytes | None
    statements: tuple[bytes, ...]  # that initialise a session
    has_roles: bool
    role: bytes | None  # of a session that is as good as new


class Restoration:
    """How sessions are restored of which the same is true; shared by them, and never changed."""

    __slots__ = ("_ask_all", "_facts", "_init", "_resets", "_return", "one_write")

    one_write: bool

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self.one_write = facts.one_write
        statements = facts.statements
        expected: dict[str, object] = {}
        if facts.has_roles:
            statements = (*statements[:-1], _only_as(facts.role, statements[-1]))
            expected["CURRENT_ROLE()"] = facts.role
            if not facts.is_mariadb:
                expected[_RESOURCE_GROUP] = b"USR_default"
                expected[_TRACES] = b"0"
        self._init = [Command(packet(COMMAND.COM_QUERY, statement)) for statement in statements]
        self._return: list[Command] = []
        if facts.database is not None:
            self._return.append(Command(packet(COMMAND.COM_INIT_DB, facts.database)))
        else:  # no command leads from a current database to none
            expected["DATABASE()"] = None
        self._ask_all: list[Command] = []
        if expected:
            self._ask_all.append(_question(expected))
        if facts.is_mariadb:
            # A question of its own: a profile that goes on unseen has the one before in it.
            self._ask_all.append(_question({_PROFILES: b"0"}))
        self._resets = {asking: self._reset(asking) for asking in (False, True)}

    def mask(self) -> int:
        """Return the marks that call for `script()`."""
        if self._facts.reset == "auto" and self._facts.can_prove:
            return TOUCHED | SUSPECT | RETIRE | INSERT_ID | IN_TRANSACTION | HOLDS
        return ENDED

    def script(self, marks: int) -> Script:
        """Return what must be sent to a session that a lease has left with these marks (design: docs/architecture.md).

        Raises NotRestorable.
        """
        if marks & RETIRE:
            raise NotRestorable("not restorable")
        facts = self._facts
        if facts.reset == "rollback":
            return _ONLY_ROLLBACK if marks & (_HAS_TRANSACTION | TOUCHED) else _NOTHING
        if facts.can_prove and not marks & TOUCHED:
            return _WITHOUT_RESET[marks & (_HAS_TRANSACTION | WROTE | INSERT_ID)]
        if marks & SUSPECT and marks & IN_TRANSACTION:  # perhaps XA, out of sight
            raise NotRestorable("not restorable")
        if facts.init_connect:  # a reset loses what it did, and the server does not run it again
            raise NotRestorable("init_connect")
        asking = marks & SUSPECT or not facts.can_prove or (marks & DATABASE and not self._return)
        return self._resets[bool(asking)]

    def _reset(self, asking: bool) -> Script:
        commands = [_RESET]
        if asking:  # before autocommit is switched off, with which a question would keep a metadata lock
            commands += self._ask_all
        # The database is named again because a reset takes its character set away from it, or it may be another one;
        # not before SET NAMES, in which the name is sent, nor behind init_command, which may lead elsewhere.
        return Script(*commands, *self._init[:1], *self._return, *self._init[1:])


@lru_cache(maxsize=64)
def restoration(facts: Facts) -> Restoration:
    """Return how sessions are restored of which this is true."""
    return Restoration(facts)


class Reply:
    """One reply that a session owes: parses its packets as they come.

    https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_command_phase.html
    """

    __slots__ = ("_columns", "_command", "_has_tracking", "_rows", "_sequence", "_stage")

    is_light = False

    def __init__(self, command: Command, has_tracking: bool) -> None:
        self._command = command
        self._has_tracking = has_tracking
        self._sequence = 1
        # A function, since a method that is bound to this reply would make it a cycle.
        self._stage: Callable[[Reply, bytes], bool] = Reply._first
        self._columns = 0
        self._rows: list[bytes] = []

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
