"""What a statement, or a server's reply to it, may have changed in the session: the proof that fails closed.

Two witnesses are heard. The text, before it is sent: only statements that begin with a verb of the allow-list, and
hold nothing of the deny-list, count as harmless. The server, in the status and the session-state tail of its replies.
Whatever neither of them clears is a mark, and the marks of a lease decide how its session is cleaned.

Pure functions: no connection, no state.
"""

import re
from collections.abc import Callable
from typing import Final

# Marks, combined by `|`.
CLEAN: Final = 0
TOUCHED: Final = 1  # a reset is needed
SUSPECT: Final = 2  # the role, the database or the resource group may have changed out of sight: ask behind the reset
RETIRE: Final = 4  # holds something that no reset restores
INSERT_ID: Final = 8  # LAST_INSERT_ID() is not 0
WROTE: Final = 16  # a transaction may hold changes, so rolling it back may take long
DATABASE: Final = 32  # the current database may have changed
READS_FOUND_ROWS: Final = 64  # asks for FOUND_ROWS(), which no reset clears
READS_ROW_COUNT: Final = 128  # asks for ROW_COUNT(), which a clean lease leaves behind
IN_TRANSACTION: Final = 4096  # a transaction is open
OPENED: Final = 16384  # with autocommit off: may hold metadata locks or a savepoint, of which no status tells
ENDS: Final = 32768  # ends a transaction
SWITCHES: Final = 131072  # sets autocommit and nothing else: no touch if it is as it was when the lease ends
HOLDS: Final = 65536  # metadata locks may be held, or a savepoint kept, without a transaction
ENDED: Final = 8192  # the lease has ended
FORGOTTEN: Final = 2048  # what the last lease left in FOUND_ROWS() was cleared
MAY_BE_MANY: Final = 1024  # not read to its end: more statements may follow, if the connection allows them
EXECUTED: Final = 256  # the lease has run a statement of its own, so ROW_COUNT() is its own
SELECTED: Final = 512  # FOUND_ROWS() is the lease's own, or may be

# Bits of a reply's status, https://dev.mysql.com/doc/dev/mysql-server/latest/mysql__com_8h.html
STATUS_IN_TRANS: Final = 0x0001
STATUS_AUTOCOMMIT: Final = 0x0002
STATUS_MORE_RESULTS: Final = 0x0008
STATUS_NO_BACKSLASH_ESCAPES: Final = 0x0200
STATUS_SESSION_STATE_CHANGED: Final = 0x4000

# Types of entries in the tail of an OK packet (enum_session_state_type, same page).
_TRACK_SCHEMA = 1
_TRACK_GTIDS = 3
_TRACK_TRANSACTION_STATE = 5

# Longer statements are not read: a reset costs less than reading them, and a bulk insert does not notice it.
MAX_SCANNED: Final = 4096

# White space and plain comments may stand in front; a versioned comment (/*! or /*M!) is no plain comment.
# Every alternative begins with a character of its own, so nothing here backtracks and no text takes long. (Possessive
# quantifiers would say so, but Python 3.11 before 3.11.5 matches them wrongly.)
_HEAD = re.compile(rb"(?:[\s(]|/\*(?!M?!)[^*]*\*+(?:[^/*][^*]*\*+)*/)*([A-Za-z]{1,20})")
_MAX_HEAD = 512

# Of statements that may read or set FOUND_ROWS() out of sight: cleared before them if they are the lease's first, and
# taken for the lease's own from then on.
_READS_COUNTS: Final = READS_ROW_COUNT | SELECTED

# Verbs that change nothing in the session beyond what replies tell, unless the deny-list below finds something. Which
# of the last group set FOUND_ROWS() depends on the server; what the last lease left is cleared before them.
_HARMLESS = {
    b"SELECT": SELECTED,
    **dict.fromkeys(b"WITH VALUES TABLE INSERT UPDATE DELETE REPLACE".split(), SELECTED | OPENED),
    b"SAVEPOINT": OPENED,  # without autocommit it is kept, though no transaction is open yet
    **dict.fromkeys(b"SHOW EXPLAIN DESCRIBE DESC HELP".split(), _READS_COUNTS | OPENED),
}

# Of these, the ones that are long as a rule (bulk inserts) and never ask for FOUND_ROWS() then.
_WRITING = frozenset(b"INSERT UPDATE DELETE REPLACE".split())

# Verbs that may be followed by much: harmless in exactly these forms.
_NAME = rb"(?:[A-Za-z0-9_$\x80-\xff]+|`[^`;]+`)"
_TRANSACTION = re.compile(
    rb"[\s(]*(?:BEGIN(?:\s+WORK)?"
    rb"|START\s+TRANSACTION(?:\s+WITH\s+CONSISTENT\s+SNAPSHOT|\s+READ\s+(?:ONLY|WRITE)|\s*,)*"
    rb"|COMMIT(?:\s+WORK)?"
    rb"|ROLLBACK(?:\s+WORK)?(?:\s+TO\s+(?:SAVEPOINT\s+)?" + _NAME + rb")?"
    rb"|RELEASE\s+SAVEPOINT\s+" + _NAME + rb")\s*;?\s*",
    re.IGNORECASE,
)
_LONGEST_TRANSACTION = 200
_TRANSACTION_VERBS = frozenset(b"BEGIN START COMMIT ROLLBACK RELEASE".split())

_KNOWN = {
    b"COMMIT": ENDS, b"ROLLBACK": ENDS, b"BEGIN": CLEAN,
    # As PyMySQL's autocommit() sends it: Django does so at both ends of a transaction.
    b"SET AUTOCOMMIT = 0": SWITCHES, b"SET AUTOCOMMIT = 1": SWITCHES,
}  # fmt: skip
_known = dict(_KNOWN)  # and the harmless statements of late
# What marks_of_statement() would say of a statement of at most LONGEST_KNOWN bytes, or None.
known_marks: Callable[[bytes], int | None] = _known.get
LONGEST_KNOWN: Final = 200
_MOST_KNOWN = 1024

# Verbs of statements that a reset undoes completely, or that act outside the session. All others (CALL, EXECUTE,
# PREPARE, compound statements, ...) can run statements that are not seen here, so role and database are asked for.
_PLAIN = frozenset(
    b"""SET CREATE ALTER TRUNCATE RENAME LOCK UNLOCK LOAD DO ANALYZE OPTIMIZE CHECK CHECKSUM REPAIR FLUSH KILL GRANT
    REVOKE HANDLER USE DROP DEALLOCATE PURGE CACHE""".split()
)
# Of these, the ones that neither return rows nor run routines, so that they leave FOUND_ROWS() alone.
_SILENT = frozenset(b"SET LOCK UNLOCK USE FLUSH KILL GRANT REVOKE DEALLOCATE TRUNCATE RENAME DROP ALTER LOAD".split())
_CHANGES_DATABASE = frozenset([b"USE", b"DROP"])

# Nothing undoes what these do: XA to the transaction, BINLOG to the format that further ones are read in. And a session
# keeps the rights that its account had when it was opened.
_LASTING_VERBS = frozenset(b"XA BINLOG GRANT REVOKE".split())
_LASTING = {
    # A role, a resource group, MariaDB's profiles, MySQL's traces, another user (MariaDB 12).
    b"SET": re.compile(rb"\bROLE\b|\bRESOURCE\b|PROFILING|OPTIMIZER_TRACE|AUTHORIZATION|\bPASSWORD\b"),
    **dict.fromkeys(b"ALTER DROP RENAME".split(), re.compile(rb"\bUSER\b")),
    b"CREATE": re.compile(rb"\bREPLACE\b.*\bUSER\b", re.DOTALL),
}
# The same in what is only seen to be more than one statement: those of which nothing is asked behind the reset.
_LASTING_UNASKED = re.compile(rb"\bBINLOG\b|\bSESSION\s+AUTHORIZATION\b")

_SET_STATEMENT = re.compile(rb"\bSTATEMENT\b").search

# Within harmless verbs, what servers do not report. Upper-cased text; one alternation of literals, which is fastest.
_HIDDEN = re.compile(
    rb"@|/\*M?!|;|_LOCK|LOCK_(?:SHARED|EXCLUSIVE)|LAST_INSERT_ID|RETURNING|NEXTVAL|NEXT\b|SETVAL|LASTVAL|PREVIOUS\b"
    rb"|SQL_CALC_FOUND_ROWS|FOUND_ROWS|ROW_COUNT"
)
_MARKS_OF_HIDDEN = {
    b"LAST_INSERT_ID": INSERT_ID,
    b"RETURNING": INSERT_ID | WROTE,  # the reply is a result set, which tells neither
    b"FOUND_ROWS": READS_FOUND_ROWS,
    b"ROW_COUNT": READS_ROW_COUNT,
}
_UNREADABLE = TOUCHED | SUSPECT | DATABASE | READS_FOUND_ROWS | _READS_COUNTS
_SYSTEM_VARIABLE = re.compile(rb"@@(?!(?:SESSION\s*\.\s*|LOCAL\s*\.\s*)?(?:IDENTITY|LAST_INSERT_ID))[A-Z_]")
_READS_INSERT_ID = re.compile(rb"LAST_INSERT_ID\s*\(\s*\)")

# A statement whose quoting is beyond doubt, whatever the sql_mode: literals in single quotes, names in backticks,
# no comment and no double quote (which ANSI_QUOTES makes a name) outside of them.
_LITERAL = rb"'(?:[^'\\]|\\.)*'"  # a doubled quote ends one and begins the next
_PLAIN_QUOTING = re.compile(rb"(?:[^'\"`#/\-]|" + _LITERAL + rb"|`[^`]*`|-(?!-)|/(?!\*))*", re.DOTALL)
_LITERALS = re.compile(rb"(`[^`]*`)|" + _LITERAL, re.DOTALL)

# Encodings in which a byte below 0x80 is always the ASCII character.
_PLAIN_ENCODINGS = frozenset(["utf8", "ascii", "latin1", "cp1252", "cp1250", "cp1251", "koi8_r", "koi8_u"])


def marks_of_statement(sql: bytes, encoding: str, status: int) -> int:  # noqa: PLR0911  one return for each way out
    """Return what a statement may change in the session as far as the server will not tell.

    `encoding` and `status` (the server status before it) decide whether quotes can be trusted. Costs about 1 µs for
    200 bytes and no more for a megabyte.
    """
    known = known_marks(sql) if len(sql) <= LONGEST_KNOWN else None
    if known is not None:
        return known
    head = _HEAD.match(sql, 0, _MAX_HEAD)
    if head is None:
        return _unreadable(sql[:MAX_SCANNED].upper())
    verb = head[1].upper()
    marks = _HARMLESS.get(verb)
    if marks is not None:
        if len(sql) > MAX_SCANNED:
            return TOUCHED | MAY_BE_MANY | SELECTED if verb in _WRITING else _UNREADABLE | SELECTED
        text = sql.upper()
        if b"FROM" in text or b"(" in text:
            marks |= OPENED
        if _HIDDEN.search(text) is not None:
            return marks | _look_again(text, encoding, status)
        if len(sql) <= LONGEST_KNOWN:
            _remember(sql, marks)
        return marks
    if verb in _TRANSACTION_VERBS and len(sql) <= _LONGEST_TRANSACTION and _TRANSACTION.fullmatch(sql):
        return CLEAN
    return _marks_of_other(verb, sql)


def _remember(sql: bytes, marks: int) -> None:
    """Keep the marks of a short statement of which nothing depends on the connection; programs repeat themselves."""
    if len(_known) >= _MOST_KNOWN:
        _known.clear()
        _known.update(_KNOWN)
    _known[sql] = marks


def _marks_of_other(verb: bytes, sql: bytes) -> int:
    """Return the marks of a statement that no allow-list knows."""
    if verb in _LASTING_VERBS:
        return RETIRE
    marks = TOUCHED if verb in _PLAIN else TOUCHED | SUSPECT | DATABASE
    if verb in _CHANGES_DATABASE:
        marks |= DATABASE
    if len(sql) > MAX_SCANNED:
        return _UNREADABLE
    text = sql.upper()
    if b"_ROWS" in text or b"ROW_COUNT" in text:
        marks |= READS_FOUND_ROWS | READS_ROW_COUNT
    if verb not in _SILENT:
        marks |= _READS_COUNTS
    if b";" in text.rstrip(b"; \t\r\n") or b"/*!" in text or b"/*M!" in text or _SET_STATEMENT(text):
        marks |= SUSPECT | DATABASE  # SET STATEMENT ... FOR runs any statement (MariaDB)
    lasting = _LASTING.get(verb)
    if (lasting is not None and lasting.search(text)) or (marks & SUSPECT and _LASTING_UNASKED.search(text)):
        marks |= RETIRE
    return marks


def _unreadable(text: bytes) -> int:
    """Return the marks of what may be several statements, or any."""
    return _UNREADABLE | (RETIRE if _LASTING_UNASKED.search(text) else CLEAN)


def _look_again(text: bytes, encoding: str, status: int) -> int:
    """Judge a statement in which something of the deny-list was found, without what stands in its literals.

    An e-mail address in a parameter must not cost a reset; but where the quoting is in doubt, it does.
    """
    if encoding not in _PLAIN_ENCODINGS or status & STATUS_NO_BACKSLASH_ESCAPES or not _PLAIN_QUOTING.fullmatch(text):
        return _UNREADABLE
    bare = _LITERALS.sub(rb"\1''", text).rstrip(b"; \t\r\n")
    if b";" in bare:
        return _unreadable(bare)
    marks = CLEAN
    bare = _READS_INSERT_ID.sub(b"", _SYSTEM_VARIABLE.sub(b"", bare))
    for found in _HIDDEN.findall(bare):
        marks |= _MARKS_OF_HIDDEN.get(found, TOUCHED)
    return marks


def marks_of_end(marks: int, status: int, first_status: int) -> int:
    """Return the marks of a lease that ends, given the last status of its server and that of a new session."""
    if marks & SWITCHES and (status ^ first_status) & STATUS_AUTOCOMMIT:
        marks |= TOUCHED
    if status & STATUS_IN_TRANS:
        marks |= IN_TRANSACTION
    elif marks & OPENED and not status & STATUS_AUTOCOMMIT:
        marks |= HOLDS
    return marks | ENDED


def marks_of_tail(tail: bytes) -> int:
    """Return what the session-state tail of an OK packet tells; fails closed on a tail that makes no sense.

    https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_basic_ok_packet.html: entries of type, length, data.
    MySQL 9 raises the flag at every BEGIN, COMMIT and ROLLBACK with the transaction's state as the only entry: that
    alone is no touch, nor is the id of a transaction.
    """
    marks = CLEAN
    position, end = 0, len(tail)
    while position < end:
        kind = tail[position]
        length, position = lenenc(tail, position + 1)
        if length is None or position + length > end:
            return TOUCHED | DATABASE
        position += length
        if kind == _TRACK_SCHEMA:
            marks |= TOUCHED | DATABASE
        elif kind not in (_TRACK_TRANSACTION_STATE, _TRACK_GTIDS):
            marks |= TOUCHED
    return marks


def lenenc(data: bytes, position: int) -> tuple[int | None, int]:
    """Return a length-encoded integer and the position behind it; None where there is none.

    https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_basic_dt_integers.html
    """
    if position >= len(data):
        return None, position
    first = data[position]
    if first < 0xFB:
        return first, position + 1
    width = {0xFC: 2, 0xFD: 3, 0xFE: 8}.get(first, 0)
    stop = position + 1 + width
    if not width or stop > len(data):
        return None, position
    return int.from_bytes(data[position + 1 : stop], "little"), stop
