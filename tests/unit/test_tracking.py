"""The proof that a lease left nothing behind: it must fail closed whatever the text and whatever the server sends."""

from __future__ import annotations

import random
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymysql.converters import escape_string

from pooled_pymysql.tracking import (
    CLEAN,
    DATABASE,
    INSERT_ID,
    MAX_SCANNED,
    MAY_BE_MANY,
    READS_FOUND_ROWS,
    READS_ROW_COUNT,
    RETIRE,
    STATUS_NO_BACKSLASH_ESCAPES,
    SUSPECT,
    TOUCHED,
    lenenc,
    marks_of_statement,
    marks_of_tail,
)

UTF8 = "utf8"

# The marks for which something is sent at release, or before the statement; the others are notes.
COSTLY = TOUCHED | SUSPECT | RETIRE | INSERT_ID | DATABASE | MAY_BE_MANY | READS_FOUND_ROWS


def marks(sql: str | bytes, encoding: str = UTF8, status: int = 0) -> int:
    return marks_of_statement(sql.encode() if isinstance(sql, str) else sql, encoding, status)


# What does nothing is known to do nothing: without these the rest could be passed by a function that marks everything.

HARMLESS = [
    "SELECT 1",
    "select a, b from t where c = 'x' order by d limit 1",
    "  (SELECT 1) UNION (SELECT 2)",
    "/* application: shop */ SELECT 1",
    "SELECT @@version, @@session.sql_mode, @@GLOBAL.max_connections",
    "SELECT LAST_INSERT_ID()",
    "SELECT 'somebody@example.org', 'a;b', '/*!', 'GET_LOCK'",
    "SELECT 'it''s me@example.org', 'it\\'s me@example.org'",
    "SELECT `a'b`, 'x@y', `c'd`",
    "SELECT 3 - 1 - -1, 4 / 2, 'x@y'",
    "INSERT INTO t (a, b) VALUES (1, 'x@y'), (2, 'y;z')",
    "UPDATE t SET a = 'x@y' WHERE b = 'NEXT year'",
    "DELETE FROM t WHERE a = '@'",
    "REPLACE INTO t VALUES (1)",
    "WITH c AS (SELECT 1) SELECT * FROM c",
    "VALUES (1), (2)",
    "SHOW TABLES LIKE 'x@y'",
    "EXPLAIN SELECT 1",
    "DESC t",
    "BEGIN",
    "begin work",
    "START TRANSACTION",
    "START TRANSACTION READ ONLY, WITH CONSISTENT SNAPSHOT",
    "COMMIT",
    " commit ;",
    "ROLLBACK WORK",
    "SAVEPOINT a",
    "ROLLBACK TO a",
    "ROLLBACK TO SAVEPOINT `a`",
    "RELEASE SAVEPOINT a;",
]


@pytest.mark.parametrize("sql", HARMLESS)
def test_what_changes_nothing_costs_nothing(sql: str) -> None:
    assert marks(sql) & COSTLY == CLEAN


# The first verb

ALLOWED = """SELECT INSERT UPDATE DELETE REPLACE WITH VALUES TABLE SHOW EXPLAIN DESCRIBE DESC SAVEPOINT HELP
BEGIN START COMMIT ROLLBACK RELEASE"""
OTHERS = """SET CREATE ALTER DROP TRUNCATE RENAME LOCK UNLOCK LOAD DO ANALYZE OPTIMIZE CHECK CHECKSUM REPAIR FLUSH KILL
GRANT REVOKE HANDLER USE DEALLOCATE PURGE CACHE CALL EXECUTE PREPARE XA BACKUP BINLOG CHANGE CLONE GET IF LOOP WHILE
CASE RESET RESIGNAL SIGNAL STOP SHUTDOWN INSTALL IMPORT DECLARE FOR REPEAT SELECTED INSERTS COMMITTED S E"""
allowed = frozenset(ALLOWED.split())

BLANKS = [" ", "\n", "\t", "\r\n", "\v", "\f", "/**/", "/* x */", "/* ' */", "/* * / ** */", '/* " ` */']
COMMENTS_TO_END_OF_LINE = ["-- x\n", "-- '\n", "--\n", "# x\n", "#'\n"]
blanks = st.sampled_from(BLANKS)
any_blanks = st.lists(st.sampled_from(BLANKS + COMMENTS_TO_END_OF_LINE), max_size=3).map("".join)


def any_case(text: str) -> st.SearchStrategy[str]:
    return st.lists(st.booleans(), min_size=len(text), max_size=len(text)).map(
        lambda upper: "".join(c.upper() if u else c.lower() for c, u in zip(text, upper, strict=True))
    )


words = st.one_of(st.sampled_from(OTHERS.split()), st.from_regex(r"[A-Za-z]{1,30}", fullmatch=True))
encodings = st.sampled_from([UTF8, "ascii", "cp1252", "gbk", "cp932", "big5", "gb18030", "euc_kr"])
statuses = st.sampled_from([0, 2, STATUS_NO_BACKSLASH_ESCAPES | 2, 0xFFFF])


other_verbs = words.filter(lambda word: word.upper() not in allowed).flatmap(any_case)


@given(st.tuples(any_blanks, other_verbs, blanks, st.text(max_size=50)).map("".join), encodings, statuses)
def test_a_verb_that_is_not_known_to_be_harmless_is_a_touch(sql: str, encoding: str, status: int) -> None:
    assert marks(sql, encoding, status) & (TOUCHED | RETIRE)


@given(st.binary(max_size=80), encodings, statuses)
def test_text_without_a_verb_is_a_touch(sql: bytes, encoding: str, status: int) -> None:
    if sql.lstrip(b" \t\r\n\v\f(/*")[:1].isalpha():
        return
    assert marks(sql, encoding, status) & TOUCHED


@given(any_blanks, any_case("xa"), any_blanks.filter(bool), st.sampled_from(["START 'x'", "PREPARE 'x'", "RECOVER"]))
def test_an_xa_statement_never_passes_for_something_that_a_reset_undoes(
    front: str, verb: str, blank: str, rest: str
) -> None:
    assert marks(f"{front}{verb}{blank}{rest}") & (RETIRE | SUSPECT)


@pytest.mark.parametrize(
    "sql",
    [
        "XA START 'x'",
        " /* x */ xa\tprepare 'x'",
        "(XA RECOVER)",
        "SET ROLE r",
        "set/**/role none",
        "SET @@session.optimizer_trace = 'enabled=on'",
        "SET SESSION AUTHORIZATION u@'%'",
        "SET /* x */ PASSWORD = 'x'",
        "/* x */ binlog 'x'",
        "SELECT 1; BINLOG 'x'",
        "DO 1; SET SESSION\nAUTHORIZATION u@'%'",
        "/*!50000 BINLOG 'x' */",
        "GRANT SELECT ON a.* TO u",
        "revoke all on *.* from current_user",
        "ALTER USER u IDENTIFIED BY 'x'",
        "DROP /* x */ USER IF EXISTS u",
        "RENAME\tUSER u TO v",
        "CREATE OR REPLACE USER u",
    ],
)
def test_what_nothing_undoes_retires_the_session(sql: str) -> None:
    assert marks(sql) & RETIRE


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER TABLE users ADD password INT",
        "DROP TABLE user_role",
        "CREATE TABLE user (role INT, password INT)",
        "SELECT role, password, resource FROM user WHERE name = 'x@y'; SELECT 2",
        'SELECT password FROM user WHERE name = "x@y"',
        "SHOW BINLOG EVENTS",
        "CALL set_role()",
    ],
)
def test_what_only_sounds_like_that_does_not(sql: str) -> None:
    assert not marks(sql) & RETIRE


@given(any_blanks, any_case("set"), any_blanks.filter(bool), st.sampled_from(["role", "resource"]), any_blanks)
def test_a_role_or_resource_group_never_passes_for_something_that_a_reset_undoes(
    front: str, verb: str, blank: str, what: str, end: str
) -> None:
    assert marks(f"{front}{verb}{blank}{what}{end} a") & (RETIRE | SUSPECT)


@pytest.mark.parametrize("verb", ["CALL p()", "EXECUTE s", "EXECUTE IMMEDIATE 'x'", "PREPARE s FROM 'x'", "IF 1 THEN"])
def test_statements_that_can_run_any_other_are_suspect(verb: str) -> None:
    assert marks(verb) & SUSPECT and marks(verb) & DATABASE


@pytest.mark.parametrize(
    "sql",
    [
        "SET STATEMENT max_statement_time = 1 FOR CALL p()",
        "set statement max_statement_time=1 for execute immediate concat('SET RO', 'LE r')",
        "/* x */ SET/**/STATEMENT/**/max_statement_time=1 FOR EXECUTE s",
    ],
)
def test_a_set_that_runs_another_statement_is_as_suspect_as_that(sql: str) -> None:
    assert marks(sql) & (SUSPECT | RETIRE)


# What hides behind a harmless verb. Each as words, so that blanks of every kind can stand between them.

HIDDEN: list[tuple[list[str], int]] = [
    (["@a"], TOUCHED),
    (["@a", ":=", "1"], TOUCHED),
    (["@`a`"], TOUCHED),
    (["@'a'", ":=", "1"], TOUCHED),
    (["@$a"], TOUCHED),
    (["GET_LOCK", "(", "1", ",", "0", ")"], TOUCHED),
    (["`GET_LOCK`", "(", "1", ",", "0", ")"], TOUCHED),
    (["RELEASE_LOCK", "(", "1", ")"], TOUCHED),
    (["RELEASE_ALL_LOCKS", "(", ")"], TOUCHED),
    (["LAST_INSERT_ID", "(", "7", ")"], INSERT_ID),
    (["LAST_INSERT_ID", "(", "LAST_INSERT_ID", "(", ")", "+", "1", ")"], INSERT_ID),
    (["NEXTVAL", "(", "s", ")"], TOUCHED),
    (["NEXT", "VALUE", "FOR", "s"], TOUCHED),
    (["PREVIOUS", "VALUE", "FOR", "s"], TOUCHED),
    (["SETVAL", "(", "s", ",", "1", ")"], TOUCHED),
    (["s", ".", "NEXTVAL"], TOUCHED),
    (["SERVICE_GET_WRITE_LOCKS", "(", "1", ")"], TOUCHED),
    (["VERSION_TOKENS_LOCK_SHARED", "(", "1", ")"], TOUCHED),
    (["FOUND_ROWS", "(", ")"], READS_FOUND_ROWS),
    (["ROW_COUNT", "(", ")"], READS_ROW_COUNT),
    (["/*!", "1", "*/"], TOUCHED),
    (["/*!99999", "1", "*/"], TOUCHED),
    (["/*M!", "1", "*/"], TOUCHED),
    (["/*m!100100", "1", "*/"], TOUCHED),
    (["1", ";", "SELECT", "2"], TOUCHED),
]
# {} takes what hides, ~ any blanks.
SLOTS = [
    "SELECT~{}",
    "SELECT~{}~FROM t",
    "SELECT a,~{}~AS b FROM t WHERE c = 'x'",
    "SELECT 1 FROM t WHERE a = 'x'~AND~{}~= 'y'",
    "SELECT `a`,~{}~, `b`",
    "(SELECT~{}~)",
    "INSERT INTO t VALUES ('x',~{}~,'y')",
    "REPLACE t SELECT~{}",
    "UPDATE t SET a =~{}~WHERE b = 'it''s'",
    "DELETE FROM t WHERE a = 'it\\'s' AND~{}",
    "WITH c AS (SELECT~{}~) SELECT * FROM c",
    "VALUES (~{}~)",
    "EXPLAIN SELECT~{}",
    "SHOW TABLES WHERE~{}",
]


@st.composite
def with_something_hidden(draw: st.DrawFn) -> tuple[str, int]:
    """Draw a statement with a harmless verb that holds something of the deny-list, and the mark it deserves."""
    parts, mark = draw(st.sampled_from(HIDDEN))
    between = any_blanks.filter(bool) if len(parts) > 1 else st.just("")
    text = "".join(draw(any_case(part)) + draw(between) for part in parts)
    before, after = draw(st.sampled_from(SLOTS)).split("{}")
    filler = any_blanks.filter(bool)
    return draw(any_blanks) + before.replace("~", draw(filler)) + text + after.replace("~", draw(filler)), mark


@pytest.mark.parametrize("blank", BLANKS + COMMENTS_TO_END_OF_LINE, ids=repr)
def test_no_blank_or_comment_within_it_hides_what_servers_do_not_report(blank: str) -> None:
    for parts, mark in HIDDEN:
        assert marks("SELECT " + blank.join(parts)) & (mark | TOUCHED), parts


@settings(max_examples=500)
@given(with_something_hidden(), encodings, statuses)
def test_what_servers_do_not_report_is_marked_wherever_it_stands(
    drawn: tuple[str, int], encoding: str, status: int
) -> None:
    sql, mark = drawn
    found = marks(sql, encoding, status)
    assert found & (mark | TOUCHED), sql
    if mark in (READS_FOUND_ROWS, READS_ROW_COUNT):
        assert found & mark, sql


# The guard of FOUND_ROWS() and ROW_COUNT() depends on seeing every statement that may read them.


@pytest.mark.parametrize(("function", "mark"), [("FOUND_ROWS()", READS_FOUND_ROWS), ("ROW_COUNT()", READS_ROW_COUNT)])
@pytest.mark.parametrize(
    "sql",
    [
        "SELECT {}",
        "-- x\nSELECT {}",
        "# x\nSELECT {}",
        "/*!40000 SELECT {} */",
        "SELECT '" + MAX_SCANNED * "x" + "', {}",
        "/*" + 600 * "x" + "*/ SELECT {}",
        "SET @a = {}",
        "DO SLEEP({})",
        "CALL p({})",
        "CREATE TABLE t SELECT {}",
        "SELECT/**/{}",
        'SELECT {}, "x"',
        "COMMIT; SELECT {}",
    ],
)
def test_a_reader_of_counts_is_seen_in_any_statement(sql: str, function: str, mark: int) -> None:
    assert marks(sql.format(function)) & mark


# Several statements in one

FIRST = [
    "SELECT 1",
    "SELECT 'x@y'",
    "SELECT '" + MAX_SCANNED * "x" + "'",
    "INSERT INTO t VALUES ('" + MAX_SCANNED * "x" + "')",
    "COMMIT",
    "ROLLBACK TO a",
    "ROLLBACK TO SAVEPOINT a",
    "RELEASE SAVEPOINT a",
    "SAVEPOINT a",
    "START TRANSACTION",
    "SET @a = 1",
    "DROP TABLE t",
    "DO 1",
]
SECOND = [
    "XA START 'x'",
    "XA/**/START'x'",
    "SET ROLE r",
    "SET/**/ROLE/**/r",
    "USE d",
    "USE`d`",
    "CALL p()",
    "CALL`p`()",
]


@given(st.sampled_from(FIRST), st.sampled_from([";", "; ", " ;\n", ";;"]), st.sampled_from(SECOND), encodings)
def test_what_follows_the_first_statement_is_suspect_whatever_the_first_one_is(
    first: str, separator: str, second: str, encoding: str
) -> None:
    found = marks(first + separator + second, encoding)
    suspect = found & MAY_BE_MANY or (found & SUSPECT and found & DATABASE)
    assert found & RETIRE or (found & TOUCHED and suspect)


@given(st.sampled_from(["ROLLBACK TO {}", "RELEASE SAVEPOINT {}", "ROLLBACK TO SAVEPOINT {}"]), any_blanks)
def test_the_name_of_a_savepoint_hides_no_statement(sql: str, blank: str) -> None:
    for name in ("a;SET@a=1", "a/*!;SET@a=1*/", "`a`;SELECT`GET_LOCK`('a',0)", "a;USE`d`"):
        assert marks(sql.format(blank + name)) & TOUCHED


# Literals

texts = st.one_of(
    st.text(max_size=200),
    st.lists(
        st.sampled_from(
            ["@", "'", '"', "\\", "`", ";", "/*!", "*/", "--", "#", "GET_LOCK(", "\0", "\x1a", "é", "丁", "@a:="]
        ),
        max_size=30,
    ).map("".join),
)
WITH_PARAMETERS = [
    "SELECT {}",
    "SELECT a FROM `t` WHERE b = {} AND c = {}",
    "INSERT INTO t VALUES ({}, 1, {}), ({}, -1, {})",
    "UPDATE t SET a = {} WHERE b IN ({},{})",
]


@given(st.sampled_from(WITH_PARAMETERS), st.lists(texts, min_size=4, max_size=4))
def test_no_parameter_makes_a_harmless_statement_cost_a_reset(template: str, parameters: list[str]) -> None:
    sql = template.format(*(f"'{escape_string(text)}'" for text in parameters)).encode()
    if len(sql) <= MAX_SCANNED:
        assert marks(sql) & COSTLY == CLEAN


def ended_in_backslash(lead: bytes) -> bytes:
    """Give a literal of a double-byte encoding in which the last character ends in the byte of a backslash."""
    return b"'" + lead + b"\\'"


def escaped(text: str) -> bytes:
    return b"'" + escape_string(text).encode("gbk", "replace") + b"'"


def doubled(text: str) -> bytes:
    return b"'" + text.replace("'", "''").encode("gbk", "replace") + b"'"


@st.composite
def around(draw: st.DrawFn) -> tuple[list[bytes], str, int]:
    """Draw whole tokens of one way of quoting, the encoding and the status that go with it."""
    kind = draw(st.sampled_from(["plain", "no backslash", "gbk"]))
    pieces: list[st.SearchStrategy[bytes]] = [
        st.sampled_from([b"1", b"a", b"`a'b`", b"`a``b`", b"``", b'`"`', b"'a''b'", b"''", b"-", b"/", b"*", b"N'x'"]),
        st.sampled_from([b"/*'*/", b"/*`*/", b'/*"*/', b"-- '\n", b"-- `\n", b"#'\n", b'#"\n', b"--'", b"/*/*'*/"]),
        st.sampled_from([b'"a\'b"', b'"a""b"', b'"a`b"', b'"--"', b'"/*"', b"'--'", b"'/*'", b"'#'", b"`#`", b"`--`"]),
    ]
    if kind == "no backslash":
        pieces += [texts.map(doubled), st.sampled_from([b"'\\'", b"'a\\'", b"'\\\\'", b'"\\"'])]
        return draw(st.lists(st.one_of(pieces), max_size=6)), UTF8, STATUS_NO_BACKSLASH_ESCAPES
    if kind == "gbk":
        pieces += [st.sampled_from([b"\xbf", b"\x81", b"\xfe"]).map(ended_in_backslash)]
        return draw(st.lists(st.one_of(pieces), max_size=6)), draw(st.sampled_from(["gbk", "cp932", "big5"])), 0
    pieces += [texts.map(escaped), st.sampled_from([b"'\\\\'", b"'\\''", b"'a\\\\'", b'"\\""'])]
    return draw(st.lists(st.one_of(pieces), max_size=6)), UTF8, 0


@given(around(), around(), st.sampled_from([b"", b"'", b'"', b"`", b"/*", b"/*!", b"'\\", b"--", b"-- '", b"#"]))
def test_no_quoting_hides_what_stands_outside_the_literals(
    before: tuple[list[bytes], str, int], after: tuple[list[bytes], str, int], unterminated: bytes
) -> None:
    pieces, encoding, status = before
    # After it anything may come, in whatever way of quoting: the server has run it by then, or has refused it all.
    for hidden in (b"GET_LOCK('a', 0)", b"@a := 1", b"@'a' := 1"):
        sql = b" ".join([b"SELECT", *pieces, hidden, *after[0], unterminated])
        assert marks(sql, encoding, status) & TOUCHED, sql


@pytest.mark.parametrize(
    ("sql", "encoding", "status"),
    [
        (b"SELECT '\xbf\\', @a := 1, '\xbf\\'", "gbk", 0),
        (b"SELECT '\x81\\', @a := 1, '\x81\\'", "cp932", 0),
        (b"SELECT '\\', @a := 1, '\\'", UTF8, STATUS_NO_BACKSLASH_ESCAPES),
        (b'SELECT "\'", @a := 1, "\'"', UTF8, 0),  # a name under ANSI_QUOTES, a literal otherwise
        (b"SELECT 1 -- '\n, @a := 1 -- '", UTF8, 0),
        (b"SELECT 1 # '\n, @a := 1 # '", UTF8, 0),
        (b"SELECT 1 /* ' */, @a := 1 /* ' */", UTF8, 0),
        (b"SELECT 1--'\n', @a := 1, '", UTF8, 0),  # no comment: minus minus a literal
        (b"SELECT `'`, @a := 1, `'`", UTF8, 0),
        (b"SELECT '@a := 1", UTF8, 0),
    ],
)
def test_each_known_way_to_hide_a_side_effect_in_quotes_is_seen(sql: bytes, encoding: str, status: int) -> None:
    assert marks(sql, encoding, status) & TOUCHED


# Length


class Opaque(bytes):
    """Text that must not be read as a whole."""

    def _refuse(self, *_: object) -> NoReturn:
        raise AssertionError("a long statement is read to its end")

    __hash__ = upper = lower = strip = rstrip = lstrip = find = count = replace = __contains__ = _refuse


FRONTS = [b"SELECT ", b"INSERT INTO t VALUES ", b"SET @a = ", b"COMMIT ", b"START TRANSACTION", b"ROLLBACK TO ", b"XA "]
FRONTS += [b"", b"(", b"/*", b"/* *", b"/*!", b"--", b"SELECT '", b"SELECT `", b'SELECT "', b"\xff", b"X", b"USE "]
FILLINGS = [b" ", b"(", b"'", b"''", b"\\", b"\\'", b"a", b"@", b"*", b"/**/", b"/* */", b"-", b"/", b",", b";", b"`"]
FILLINGS += [b"\xbf'", b"SELECT ", b" READ ONLY", b"\n", b"*/", b"' '", b"\0"]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("front", FRONTS)
def test_a_statement_of_a_megabyte_is_not_read_and_is_a_touch(front: bytes) -> None:
    for filling in FILLINGS:
        sql = Opaque(front + filling * (1_000_000 // len(filling)))
        assert marks_of_statement(sql, UTF8, 0) & (TOUCHED | RETIRE)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("front", FRONTS)
def test_no_statement_that_is_read_takes_long(front: bytes) -> None:
    # Text that makes a regular expression backtrack takes ages at this length.
    for filling in FILLINGS:
        for end in (b"", b"@", b"'@", b"!"):
            sql = (front + filling * MAX_SCANNED)[: MAX_SCANNED - len(end)] + end
            for encoding, status in ((UTF8, 0), ("gbk", 0), (UTF8, STATUS_NO_BACKSLASH_ESCAPES)):
                marks_of_statement(sql, encoding, status)


def test_the_longest_statement_that_is_read_is_judged_like_a_short_one() -> None:
    for hidden, expected in ((b"1", CLEAN), (b"@a", TOUCHED)):
        end = b"', " + hidden
        sql = b"SELECT '".ljust(MAX_SCANNED - len(end), b"x") + end
        assert len(sql) == MAX_SCANNED
        assert marks(sql) & TOUCHED == expected


# What servers tell

KNOWN_HARMLESS = {3, 5}  # the ids of transactions and their state


def encoded(number: int) -> bytes:
    """Write a length-encoded integer in the shortest way."""
    if number < 0xFB:
        return bytes([number])
    for marker, width in ((0xFC, 2), (0xFD, 3), (0xFE, 8)):
        if number < 1 << 8 * width:
            return bytes([marker]) + number.to_bytes(width, "little")
    raise OverflowError


entries = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=300)), max_size=6)


def tail(items: list[tuple[int, bytes]]) -> bytes:
    return b"".join(bytes([kind]) + encoded(len(data)) + data for kind, data in items)


@given(entries)
def test_a_tail_is_clean_only_if_it_holds_nothing_but_transactions(items: list[tuple[int, bytes]]) -> None:
    kinds = {kind for kind, _ in items}
    found = marks_of_tail(tail(items))
    assert (found == CLEAN) == (kinds <= KNOWN_HARMLESS)
    assert bool(found & DATABASE) == (1 in kinds)


awkward_bytes = st.lists(st.sampled_from([0, 1, 3, 5, 250, 251, 252, 253, 254, 255]), max_size=40).map(bytes)


@given(st.one_of(st.binary(max_size=400), awkward_bytes))
def test_any_bytes_are_judged_and_only_whole_entries_are_clean(data: bytes) -> None:
    if marks_of_tail(data) == CLEAN:
        position = 0
        while position < len(data):
            assert data[position] in KNOWN_HARMLESS
            length, position = lenenc(data, position + 1)
            assert length is not None
            position += length
        assert position == len(data)


@given(entries.filter(bool), st.data())
def test_a_tail_that_was_cut_short_is_a_touch(items: list[tuple[int, bytes]], data: st.DataObject) -> None:
    whole = tail(items)
    ends = {len(tail(items[:count])) for count in range(len(items) + 1)}
    cut = data.draw(st.integers(1, len(whole)))
    if cut not in ends:
        assert marks_of_tail(whole[:cut]) & TOUCHED


@given(st.integers(0, (1 << 64) - 1), st.binary(max_size=5), st.binary(max_size=5))
def test_length_encoded_integers_come_back_as_they_were(number: int, before: bytes, after: bytes) -> None:
    data = before + encoded(number) + after
    assert lenenc(data, len(before)) == (number, len(data) - len(after))


@given(st.binary(max_size=12), st.integers(0, 15))
def test_an_integer_that_is_not_there_is_none_and_moves_nothing(data: bytes, position: int) -> None:
    number, stop = lenenc(data, position)
    if number is None:
        assert stop == position
    else:
        assert position < stop <= len(data)


@pytest.mark.parametrize(
    "data", [b"", b"\xfb", b"\xff", b"\xfb\0\0", b"\xff\0\0", b"\xfc\0", b"\xfd\0\0", b"\xfe" + bytes(7)]
)
def test_what_is_no_integer_is_none(data: bytes) -> None:
    # 0xFB stands for NULL and 0xFF begins an error.
    assert lenenc(data, 0) == (None, 0)


def test_long_random_texts_are_judged_without_an_error() -> None:
    source = random.Random(20)
    alphabet = b"'\"`\\/*!-#;@ \nSELECTset:=()0\xbf\x81\xff\0"
    for _ in range(2000):
        sql = b"SELECT " + bytes(source.choices(alphabet, k=source.randrange(200)))
        for encoding in (UTF8, "gbk"):
            assert marks_of_statement(sql, encoding, 0) >= 0
