"""Our reader of replies beside PyMySQL's: whatever a program can see of a result is the same, the status is right."""

from __future__ import annotations

import decimal
import gc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest
from pymysql.constants import CLIENT, FIELD_TYPE, SERVER_STATUS
from pymysql.converters import conversions
from pymysql.cursors import Cursor, DictCursor, SSCursor, SSDictCursor
from servers import Server

import pooled_pymysql

Connect = Callable[..., Any]
# What the connection agrees on with the server: session tracking and no EOF packets, or what PyMySQL agrees on.
POOLS: dict[str, Any] = {"auto": {"reset": "auto"}, "always": {"reset": "always"}, "no pool": False}
CURSORS = [Cursor, SSCursor, DictCursor, SSDictCursor]
TRANSACTION = SERVER_STATUS.SERVER_STATUS_IN_TRANS
MORE = SERVER_STATUS.SERVER_MORE_RESULTS_EXISTS
MIB = 1 << 20
ENCODERS = {key: value for key, value in conversions.items() if not isinstance(key, int)}


@pytest.fixture(params=POOLS)
def connect(request: pytest.FixtureRequest, server: Server, database: str) -> Iterator[Connect]:
    """Give a function that opens one of ours in the test's own database."""
    yield opener(server, database, pooled_pymysql.connect, pool=POOLS[request.param])
    pooled_pymysql.close_pools()


@pytest.fixture
def connect_plain(server: Server, database: str) -> Connect:
    return opener(server, database, pymysql.connect)


def opener(server: Server, database: str, function: Connect, **fixed: Any) -> Connect:
    def connect(**overrides: Any) -> Any:
        return function(**server.kwargs(database=database, ssl_disabled=True) | fixed | overrides)

    return connect


def run(connection: Any, sql: str, cursor_class: type[Cursor] = Cursor) -> Any:
    with connection.cursor(cursor_class) as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


# What is there to be seen


def seen_of_result(connection: Any, cursor: Any) -> dict[str, Any]:
    """Fetch a result and list what a program can see of it and of the connection."""
    before = (cursor.rowcount, cursor.rownumber)
    rows = list(cursor.fetchall())
    result = cursor._result
    return {
        "rows": rows,
        "types": [[type(value) for value in (row.values() if isinstance(row, dict) else row)] for row in rows],
        "counts": (before, cursor.rowcount, cursor.rownumber, connection.affected_rows()),
        "description": cursor.description,
        "ids": (cursor.lastrowid, connection.insert_id()),
        "warning_count": cursor.warning_count,
        "result": {name: getattr(result, name) for name in ("affected_rows", "field_count", "insert_id", "message")},
        "fields": [vars(field) for field in getattr(result, "fields", [])],
    }


def seen(connection: Any, sql: str, cursor_class: type[Cursor] = Cursor) -> list[Any]:
    """Run a statement and list all that can be seen of its results, or of its error."""
    found: list[Any] = []
    with connection.cursor(cursor_class) as cursor:
        try:
            cursor.execute(sql)
            found.append(seen_of_result(connection, cursor))
            while cursor.nextset():
                found.append(seen_of_result(connection, cursor))
        except Exception as error:
            found.append((type(error), error.args))
    found.append(connection.client_flag)
    return found


def seen_of_script(connect: Connect, script: tuple[str, ...], cursor_class: type[Cursor], overrides: Any) -> list[Any]:
    with connect(**overrides) as connection:
        return [seen(connection, sql, cursor_class) for sql in script]


def compare(
    connect: Connect, connect_plain: Connect, *script: str, setup: tuple[str, ...] = (), **overrides: Any
) -> None:
    """Run a script with every class of cursor, first by PyMySQL and then by us, and find that it shows the same."""
    for cursor_class in CURSORS:
        runs = []
        for function in (connect_plain, connect):
            with connect_plain(autocommit=True) as helper:
                for sql in setup:
                    run(helper, sql)
            runs.append(seen_of_script(function, script, cursor_class, overrides))
        for sql, expected, found in zip(script, *runs, strict=True):
            assert found == expected, sql


# Types and sizes

COLUMNS = {
    "TINYINT": "-128",
    "TINYINT UNSIGNED": "255",
    "BOOL": "TRUE",
    "SMALLINT": "-32768",
    "MEDIUMINT": "8388607",
    "INT": "-2147483648",
    "INT(8) ZEROFILL": "42",
    "BIGINT": "-9223372036854775808",
    "BIGINT UNSIGNED": "18446744073709551615",
    "DECIMAL(65, 30)": "-12345678901234567890.123456789",
    "FLOAT": "3.25",
    "DOUBLE": "-1.7976931348623157e308",
    "BIT(1)": "b'1'",
    "BIT(64)": "b'1010101'",
    "DATE": "'0000-00-00'",
    "TIME": "'-838:59:59'",
    "TIME(6)": "'12:34:56.789'",
    "DATETIME": "'9999-12-31 23:59:59'",
    "DATETIME(3)": "'2024-02-29 01:02:03.004'",
    "TIMESTAMP NULL": "'2001-02-03 04:05:06'",
    "YEAR": "1999",
    "CHAR(10)": "'é '",
    "VARCHAR(250)": "REPEAT('x', 250)",
    "VARCHAR(300)": "REPEAT('é', 251)",
    "BINARY(5)": "0x00FF",
    "VARBINARY(20)": "0xFB00FE",
    "TINYTEXT": "''",
    "TEXT": "'日本語'",
    "MEDIUMTEXT": "REPEAT('y', 70000)",
    "LONGTEXT": "'NULL'",
    "TINYBLOB": "0xFF",
    "BLOB": "REPEAT(0xFE, 251)",
    "LONGBLOB": "REPEAT('z', 65536)",
    "ENUM('a', 'é')": "'é'",
    "SET('a', 'b')": "'b,a'",
    "JSON": """'{"a": [1, null, "é"]}'""",
    "POINT": "ST_GeomFromText('POINT(1 2)')",
}


def test_every_type_of_column_is_read_as_pymysql_reads_it(
    connect: Connect, connect_plain: Connect, admin: Any, database: str
) -> None:
    columns = ", ".join(f"c{number} {kind}" for number, kind in enumerate(COLUMNS))
    values = ", ".join(COLUMNS.values())
    for sql in (
        "SET NAMES utf8mb4, sql_mode = ''",
        f"USE {database}",
        f"CREATE TABLE t (id INT PRIMARY KEY, {columns}) CHARACTER SET utf8mb4",
        f"INSERT INTO t VALUES (1, {values})",
        "INSERT INTO t (id) VALUES (2)",
    ):
        run(admin, sql)
    queries = [f"SELECT * FROM t WHERE id <= {number} ORDER BY id" for number in (0, 1, 2)]
    for overrides in ({}, {"use_unicode": False, "conv": ENCODERS}, {"charset": "latin1"}, {"charset": "gbk"}):
        compare(connect, connect_plain, *queries, **overrides)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1",
        "SELECT NULL, '', 'a', NULL",
        "SELECT 1 FROM DUAL WHERE FALSE",
        "SELECT 1 + 1, 1.5, 1e300, TRUE, 'é', x'FB', CURRENT_USER(), CAST('1' AS SIGNED), NOW() > '2000-01-01'",
        "SELECT " + ", ".join(f"{number} AS c{number}" for number in range(300)),
        "SELECT 1 AS a, 2 AS a, 3 AS b, 4 AS A",
        "SHOW VARIABLES LIKE 'version'",
        "EXPLAIN SELECT 1",
        "SELECT 1/0, CAST('x' AS SIGNED)",
        "DO 1",
        "SET @a = 1",
        "SELECT * FROM nowhere",
        "SELECT 1 FROM",
        "SELECT 'too' 'many",
        "INSERT INTO nowhere VALUES (1)",
    ],
)
def test_a_statement_shows_what_it_shows_in_pymysql(connect: Connect, connect_plain: Connect, sql: str) -> None:
    compare(connect, connect_plain, sql, "SELECT 2")


def test_writes_show_what_they_show_in_pymysql(connect: Connect, connect_plain: Connect) -> None:
    compare(
        connect,
        connect_plain,
        "CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, a TINYINT UNIQUE)",
        "INSERT INTO t (a) VALUES (1), (2), (3)",
        "INSERT INTO t (a) VALUES (1)",
        "INSERT INTO t VALUES (70000, 4)",
        "INSERT INTO t (a) VALUES (5)",
        "INSERT INTO t (a) VALUES (300)",
        "INSERT IGNORE INTO t (a) VALUES (300), (1)",
        "UPDATE t SET a = a + 10",
        "UPDATE t SET a = a",
        "REPLACE INTO t (a) VALUES (11), (99)",
        "INSERT INTO t (a) SELECT a + 100 FROM t ON DUPLICATE KEY UPDATE a = VALUES(a)",
        "DELETE FROM t WHERE id < 3",
        "ALTER TABLE t ADD COLUMN b INT",
        "SHOW WARNINGS",
        "COMMIT",
        "DROP TABLE nowhere",
        "DROP TABLE IF EXISTS nowhere",
        setup=("DROP TABLE IF EXISTS t",),
    )


DIGITS = "(SELECT 0 AS n UNION SELECT 1 UNION SELECT 2 UNION SELECT 3 UNION SELECT 4 UNION SELECT 5)"


def test_counts_and_insert_ids_beyond_one_byte_are_read(connect: Connect, connect_plain: Connect) -> None:
    # The numbers of an OK packet take one, three, four or nine bytes each.
    setup = ("DROP TABLE IF EXISTS t", "CREATE TABLE t (id BIGINT UNSIGNED AUTO_INCREMENT PRIMARY KEY, a INT)")
    script: list[str] = []
    for start in (249, 255, 65534, 16777214, 4294967294, 9223372036854775805):
        script += [f"INSERT INTO t VALUES ({start}, 1)", "INSERT INTO t VALUES (NULL, 2), (NULL, 3), (NULL, 4)"]
    compare(connect, connect_plain, *script, setup=setup)
    many = f"SELECT NULL, 1 FROM {DIGITS} a, {DIGITS} b, {DIGITS} c, {DIGITS} d"
    for count in (250, 251, 300):
        compare(connect, connect_plain, f"INSERT INTO t {many} LIMIT {count}", "DELETE FROM t", setup=setup)


def test_rows_of_any_size_are_cut_from_the_stream_at_the_right_places(connect: Connect, connect_plain: Connect) -> None:
    sizes = [0, 1, 249, 250, 251, 252, 4090, 4096, 8179, 8180, 8187, 8188, 8189, 8190, 8191, 8192, 8193, 65534, 65535]
    union = " UNION ALL ".join(f"SELECT REPEAT('x', {size}), {size}, NULL" for size in [*sizes, 65536, 300_000])
    compare(connect, connect_plain, union)
    # Rows of thirty different sizes, so that every part of a packet falls on the end of a buffer some time.
    many = f"SELECT a.n, REPEAT('y', a.n * 7 + b.n), c.n, d.n FROM {DIGITS} a, {DIGITS} b, {DIGITS} c, {DIGITS} d"
    compare(connect, connect_plain, f"{many}, {DIGITS} e")


@pytest.fixture
def large_packets(admin: Any) -> Iterator[None]:
    """Let the server send values of more than 16 MiB to connections that are opened meanwhile."""
    ((limit,),) = run(admin, "SELECT @@GLOBAL.max_allowed_packet")
    run(admin, f"SET GLOBAL max_allowed_packet = {max(limit, 64 * MIB)}")
    yield
    run(admin, f"SET GLOBAL max_allowed_packet = {limit}")


@pytest.mark.parametrize("cursor_class", [Cursor, SSCursor])
@pytest.mark.parametrize(
    "size",
    [
        (1 << 24) - 5,  # the row fills one packet to the last byte, an empty packet follows
        (1 << 24) - 1,
        1 << 24,  # from here on a row begins with 0xFE, as the end of a result does
        2 * ((1 << 24) - 1) - 9,  # two full packets
    ],
)
def test_a_first_value_of_16_mib_is_no_end_of_the_rows(
    large_packets: None, connect: Connect, cursor_class: type[Cursor], size: int
) -> None:
    with connect(charset="latin1") as connection:
        sql = f"SELECT REPEAT('x', {size}) UNION ALL SELECT 'y'"
        (first,), (second,) = run(connection, sql, cursor_class)
        assert (len(first), first.count("x"), second) == (size, size, "y")
        assert run(connection, "SELECT 7") == ((7,),)


def test_a_row_that_spans_packets_by_several_values_is_read(connect: Connect, large_packets: None) -> None:
    with connect(charset="latin1") as connection:
        for cursor_class in (Cursor, SSCursor):
            ((a, b, c),) = run(connection, f"SELECT 1, REPEAT('x', {9 * MIB}), REPEAT('y', {9 * MIB})", cursor_class)
            assert (a, len(b), len(c)) == (1, 9 * MIB, 9 * MIB)


@pytest.mark.parametrize("size", [100, (1 << 24) - 3, (1 << 24) - 2, (1 << 24) - 1])  # with the command's byte
def test_an_insert_id_is_cleared_before_statements_of_any_length(
    connect: Connect, large_packets: None, admin: Any, database: str, size: int
) -> None:
    run(admin, f"CREATE TABLE {database}.t (id INT AUTO_INCREMENT PRIMARY KEY)")
    with connect(charset="latin1", autocommit=True) as connection:
        run(connection, f"INSERT INTO {database}.t VALUES (NULL)")
    with connect(charset="latin1", autocommit=True) as connection:
        sql = "SELECT LAST_INSERT_ID(), LENGTH('{}')"
        length = size - len(sql) + 2
        assert run(connection, sql.format("x" * length)) == ((0, length),)


# Several results

PROCEDURE = """CREATE PROCEDURE p() BEGIN
    SELECT 1 AS a UNION SELECT 2; INSERT INTO t VALUES (NULL); SELECT id FROM t WHERE FALSE; SELECT 'x', NULL;
    UPDATE t SET id = id; END"""
EMPTY = ("TRUNCATE TABLE t",)
MANY = {"client_flag": CLIENT.MULTI_STATEMENTS}


@pytest.fixture
def procedure(admin: Any, database: str) -> None:
    for sql in (f"USE {database}", "CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY)", PROCEDURE):
        run(admin, sql)


def test_all_results_of_a_procedure_are_as_in_pymysql(
    connect: Connect, connect_plain: Connect, procedure: None
) -> None:
    compare(connect, connect_plain, "CALL p()", "SELECT 1", "CALL nowhere()", "SELECT 2", autocommit=True, setup=EMPTY)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1; SELECT 2, 'x'; SELECT 3 FROM DUAL WHERE FALSE",
        "SET @a = 1; SELECT @a; SET @b = 2",
        "SELECT 1; SELECT * FROM nowhere; SELECT 3",
        "SELECT 1/0; SELECT 1; SELECT 2/0",
        "CALL p(); SELECT 9; CALL p()",
        "DO 1; DO 2; DO 3",
        "SELECT 1;",
    ],
)
def test_all_results_of_several_statements_are_as_in_pymysql(
    connect: Connect, connect_plain: Connect, procedure: None, sql: str
) -> None:
    compare(connect, connect_plain, sql, "SELECT 7", autocommit=True, setup=EMPTY, **MANY)


@pytest.mark.parametrize("cursor_class", CURSORS)
def test_results_that_nobody_fetched_are_out_of_the_way_of_the_next_statement(
    connect: Connect, cursor_class: type[Cursor]
) -> None:
    with connect(**MANY) as connection:
        for fetched in range(3):
            cursor = connection.cursor(cursor_class)
            cursor.execute("SELECT 1 UNION SELECT 2 UNION SELECT 3; SELECT 4; SELECT 5")
            for _ in range(fetched):
                cursor.fetchone()
            cursor.close()
            assert run(connection, "SELECT 6") == ((6,),)


# Unbuffered results

ROWS = "SELECT 1 AS a UNION ALL SELECT 2 UNION ALL SELECT 3"


@pytest.mark.parametrize("end", ["close", "collect", "abandon"])
@pytest.mark.parametrize("fetched", [0, 1, 3, 4])
def test_a_partly_fetched_result_gives_way_to_the_next_statement(connect: Connect, fetched: int, end: str) -> None:
    with connect() as connection:
        cursor = connection.cursor(SSCursor)
        cursor.execute(ROWS)
        assert [cursor.fetchone() for _ in range(fetched)] == [(1,), (2,), (3,), None][:fetched]
        if end == "close":
            cursor.close()
        elif end == "collect":
            del cursor
            gc.collect()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert run(connection, "SELECT 6") == ((6,),)
        expected = ["Previous unbuffered result was left incomplete"] if end == "abandon" and fetched < 4 else []
        assert [str(warning.message) for warning in caught] == expected
        assert run(connection, "SELECT 7", SSCursor) == [(7,)]


def test_the_warning_about_an_unread_result_names_the_line_that_pymysql_names(
    connect: Connect, connect_plain: Connect
) -> None:
    found = []
    for connection in (connect(), connect_plain()):
        with connection:
            cursor = connection.cursor(SSCursor)
            cursor.execute(ROWS)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                connection.query("SELECT 1")
            cursor.close()
            found.append([(warning.category, str(warning.message)) for warning in caught])
    assert found[0] == found[1]


@pytest.mark.parametrize("fetched", [0, 2])
def test_an_unbuffered_result_leaves_no_trace_in_the_next_lease(connect: Connect, fetched: int) -> None:
    connection = connect()
    cursor = connection.cursor(SSCursor)
    cursor.execute(ROWS)
    for _ in range(fetched):
        cursor.fetchone()
    connection.close()
    with connect() as connection:
        assert run(connection, "SELECT 6") == ((6,),)
    with pytest.raises(pymysql.err.Error):
        cursor.execute("SELECT 1")


# Errors in mid-result


@pytest.fixture
def failing(admin: Any, database: str) -> str:
    """Make a function that fails at 3, and give a query that calls it for 1, 2, 3, 4."""
    for sql in (
        f"USE {database}",
        """CREATE FUNCTION f(n INT) RETURNS INT DETERMINISTIC BEGIN
        IF n = 3 THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'three'; END IF; RETURN n; END""",
        "CREATE TABLE n (n INT PRIMARY KEY)",
        "INSERT INTO n VALUES (1), (2), (3), (4)",
    ):
        run(admin, sql)
    return "SELECT f(n) FROM n ORDER BY n"


def test_an_error_after_some_rows_is_as_in_pymysql(connect: Connect, connect_plain: Connect, failing: str) -> None:
    for sql in (failing, f"SELECT 1; {failing}; SELECT 2"):
        compare(connect, connect_plain, sql, "SELECT 1", **MANY)


def test_rows_before_an_error_are_seen_by_an_unbuffered_cursor(connect: Connect, failing: str) -> None:
    with connect() as connection, connection.cursor(SSCursor) as cursor:
        cursor.execute(failing)
        assert [cursor.fetchone(), cursor.fetchone()] == [(1,), (2,)]
        with pytest.raises(pymysql.err.MySQLError, match="three"):
            cursor.fetchone()
        assert run(connection, "SELECT 5") == ((5,),)
    with connect() as connection:
        assert run(connection, "SHOW WARNINGS") == ()


def test_an_error_in_the_unread_rest_is_of_no_concern_to_the_next_lease(connect: Connect, failing: str) -> None:
    connection = connect()
    cursor = connection.cursor(SSCursor)
    cursor.execute(failing)
    assert cursor.fetchone() == (1,)
    connection.close()
    with connect() as connection:
        assert run(connection, "SHOW WARNINGS") == ()
        assert run(connection, "SELECT 5") == ((5,),)


class Refused(Exception):
    """Raised by a converter."""


def refuse(value: str) -> int:
    if value == "3":
        raise Refused(value)
    return int(value)


@pytest.mark.parametrize("cursor_class", [Cursor, SSCursor])
def test_a_converter_that_fails_never_shows_the_rest_to_the_next_statement(
    connect: Connect, cursor_class: type[Cursor]
) -> None:
    conv = {**conversions, FIELD_TYPE.LONG: refuse, FIELD_TYPE.LONGLONG: refuse}
    connection = connect(conv=conv)
    with pytest.raises(Refused):
        run(connection, "SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3 UNION ALL SELECT 4", cursor_class)
    # Out of sync, or read on to the end: any answer but a wrong one.
    try:
        assert run(connection, "SELECT 5") == ((5,),)
    except pymysql.err.OperationalError as error:
        assert error.args[0] == 2014
    connection.close()
    with connect() as connection:
        assert run(connection, "SELECT 3") == ((3,),)


# Warnings and files


def test_warnings_are_shown_as_in_pymysql(connect: Connect, connect_plain: Connect) -> None:
    found = []
    for connection in (connect(), connect_plain()):
        with connection:
            steps: list[Any] = [connection.show_warnings()]
            for sql in ("SELECT 1/0, 2/0", "SELECT 1", "DROP TABLE IF EXISTS nowhere", "SELECT CAST('x' AS SIGNED)"):
                for cursor_class in (Cursor, SSCursor):
                    with connection.cursor(cursor_class) as cursor:
                        cursor.execute(sql)
                        steps += [cursor.fetchall(), cursor.warning_count, connection.show_warnings()]
            found.append([list(step) if isinstance(step, (list, tuple)) else step for step in steps])
    assert found[0] == found[1]
    assert found[0][3]


@pytest.mark.parametrize(
    "script",
    [
        ("DROP TABLE IF EXISTS nowhere", "SHOW WARNINGS"),
        ("DROP TABLE IF EXISTS nowhere", "SHOW COUNT(*) WARNINGS"),
        ("INSERT INTO t VALUES ('x')", "SHOW WARNINGS"),
        ("INSERT INTO t VALUES ('x')", "GET DIAGNOSTICS @n = NUMBER", "SELECT @n"),
        ("INSERT INTO t VALUES ('x')", "SHOW ERRORS"),
        ("INSERT INTO t VALUES (NULL), (NULL)", "SELECT ROW_COUNT()"),
        # What FOUND_ROWS() is then is a known gap: asking for it must not cost the other count.
        ("INSERT INTO t VALUES (NULL), (NULL)", "SELECT ROW_COUNT(), FOUND_ROWS() >= 0"),
        ("INSERT INTO t VALUES (NULL), (NULL)", "-- x\nSELECT ROW_COUNT()"),
        ("INSERT INTO t VALUES (NULL), (NULL)", "SET @n = ROW_COUNT()", "SELECT @n"),
        ("INSERT INTO t VALUES (NULL), (NULL)", "SELECT LAST_INSERT_ID()"),
        ("SELECT 1 UNION SELECT 2", "SELECT FOUND_ROWS()"),
        ("SELECT FOUND_ROWS()",),
        ("SELECT ROW_COUNT()",),
    ],
)
def test_what_a_lease_did_first_is_seen_by_what_asks_for_it(
    server: Server, connect: Connect, connect_plain: Connect, procedure: None, script: tuple[str, ...]
) -> None:
    if server.is_mariadb and script[-1].endswith("FOUND_ROWS()") and not script[0].startswith("SELECT 1"):
        pytest.skip("on MariaDB a new connection's FOUND_ROWS() is what the server's last user of its thread left")
    compare(connect, connect_plain, *script, autocommit=True, setup=EMPTY)


@pytest.fixture
def loaded(tmp_path: Path, admin: Any, database: str) -> Iterator[Path]:
    """Give a file of three rows, one of which is too long, and a table for it."""
    ((allowed,),) = run(admin, "SELECT @@GLOBAL.local_infile")
    run(admin, "SET GLOBAL local_infile = 1")
    run(admin, f"CREATE TABLE {database}.files (a INT, b VARCHAR(3))")
    path = tmp_path / "rows"
    path.write_text("1\tabc\n2\tabcdef\n3\t\n")
    yield path
    run(admin, f"SET GLOBAL local_infile = {allowed}")


def test_loading_a_file_of_the_clients_is_as_in_pymysql(connect: Connect, connect_plain: Connect, loaded: Path) -> None:
    load = f"LOAD DATA LOCAL INFILE '{loaded}' INTO TABLE files"
    missing = f"LOAD DATA LOCAL INFILE '{loaded}.missing' INTO TABLE files"
    empty = ("TRUNCATE TABLE files",)
    script = ["SET sql_mode = ''", load, "SHOW WARNINGS", "SELECT 1", missing, "SELECT 2", "SELECT COUNT(*) FROM files"]
    script += ["DELETE FROM files", f"SELECT 1; {load}; SELECT 2; {load}", "SELECT 3"]
    compare(connect, connect_plain, *script, local_infile=True, autocommit=True, setup=empty, **MANY)
    # Large enough for several packets, and empty.
    loaded.write_text("".join(f"{number}\tx\n" for number in range(20_000)))
    compare(connect, connect_plain, load, "SELECT 4", local_infile=True, setup=empty)
    loaded.write_text("")
    compare(connect, connect_plain, load, "SELECT 4", local_infile=True, setup=empty)


@pytest.mark.parametrize("cursor_class", [Cursor, SSCursor])
def test_a_missing_file_before_another_statement_harms_no_later_lease(
    connect: Connect, loaded: Path, cursor_class: type[Cursor]
) -> None:
    for _ in range(2):
        connection = connect(local_infile=True, **MANY)
        with pytest.raises(pymysql.err.OperationalError, match=r"open file|find file"):
            run(connection, f"LOAD DATA LOCAL INFILE '{loaded}.missing' INTO TABLE files; SELECT 13", cursor_class)
        connection.close()
        with connect(local_infile=True, **MANY) as connection:
            assert run(connection, "SELECT 42") == ((42,),)


def test_files_are_refused_unless_the_program_allows_them(
    connect: Connect, connect_plain: Connect, loaded: Path
) -> None:
    load = f"LOAD DATA LOCAL INFILE '{loaded}' INTO TABLE files"
    (error, *_) = seen(connect_plain(), load)
    assert issubclass(error[0], pymysql.err.Error)
    compare(connect, connect_plain, load, "SELECT COUNT(*) FROM files")


# Converters, encodings, names


@pytest.mark.parametrize("charset", ["utf8mb4", "latin1", "cp1250", "gbk", "ascii"])
@pytest.mark.parametrize("use_unicode", [True, False])
def test_text_is_decoded_as_in_pymysql(
    connect: Connect, connect_plain: Connect, charset: str, use_unicode: bool
) -> None:
    sql = "SELECT 'abc', CONVERT(0xC3A9 USING utf8mb4), x'FF00', CAST(1.5 AS CHAR), 'abc' AS `x y`"
    compare(connect, connect_plain, sql, "SELECT * FROM nowhere", charset=charset, use_unicode=use_unicode)


def test_names_of_columns_and_tables_are_decoded_as_in_pymysql(connect: Connect, connect_plain: Connect) -> None:
    setup = (
        "DROP TABLE IF EXISTS `tä`",
        "CREATE TABLE `tä` (`cé` INT, `d ö` TEXT) CHARACTER SET utf8mb4",
        "INSERT INTO `tä` VALUES (1, 'ß')",
    )
    for charset in ("utf8mb4", "latin1"):
        compare(connect, connect_plain, "SELECT *, `cé` AS `ü` FROM `tä` AS `ñ`", setup=setup, charset=charset)


def test_the_programs_own_converters_are_used(connect: Connect, connect_plain: Connect) -> None:
    tables: list[dict[Any, Any]] = [
        {**conversions, FIELD_TYPE.NEWDECIMAL: float, FIELD_TYPE.VAR_STRING: str.upper},
        {**ENCODERS, FIELD_TYPE.LONG: decimal.Decimal, FIELD_TYPE.LONGLONG: decimal.Decimal},
        {**ENCODERS, FIELD_TYPE.VAR_STRING: lambda text: None},
    ]
    for conv in tables:
        compare(connect, connect_plain, "SELECT 1, 2.5, 'abc', NULL, CURRENT_DATE() > 0", conv=conv)
    with connect() as connection, connect_plain() as plain:
        for one in (connection, plain):
            one.decoders[FIELD_TYPE.LONGLONG] = one.decoders[FIELD_TYPE.LONG] = str
        assert seen(connection, "SELECT 1") == seen(plain, "SELECT 1")
    with connect() as connection:
        assert run(connection, "SELECT 1") == ((1,),)


@pytest.mark.parametrize("cursor_class", [DictCursor, SSDictCursor])
def test_columns_of_one_name_are_told_apart_as_in_pymysql(
    connect: Connect, connect_plain: Connect, cursor_class: type[Cursor]
) -> None:
    sql = "SELECT x.a, y.a, x.a AS b, 1 AS b FROM (SELECT 1 AS a) AS x, (SELECT 2 AS a) AS y"
    with connect() as ours, connect_plain() as plain:
        for _ in range(2):  # the second time the columns are known already
            found = seen(ours, sql, cursor_class)
            assert found == seen(plain, sql, cursor_class)
            assert found[0]["rows"] == [{"a": 1, "y.a": 2, "b": 1, ".b": 1}]


# The status, which PyMySQL takes from OK packets alone


def bits(connection: Any) -> tuple[bool, bool]:
    return bool(connection.server_status & TRANSACTION), bool(connection.server_status & MORE)


@pytest.mark.parametrize("cursor_class", [Cursor, SSCursor])
def test_the_status_after_a_select_tells_of_its_transaction(
    connect: Connect, admin: Any, database: str, cursor_class: type[Cursor]
) -> None:
    run(admin, f"CREATE TABLE {database}.t (a INT) ENGINE=InnoDB")
    with connect(autocommit=False) as connection:
        assert bits(connection) == (False, False)
        run(connection, "SELECT 1", cursor_class)
        assert bits(connection) == (False, False)
        run(connection, "SELECT * FROM t", cursor_class)
        assert bits(connection) == (True, False)
        with pytest.raises(pymysql.err.MySQLError):
            run(connection, "SELECT * FROM nowhere", cursor_class)
        assert bits(connection) == (True, False)
        connection.rollback()
        assert bits(connection) == (False, False)
        connection.begin()
        assert bits(connection) == (True, False)
        connection.commit()
        assert bits(connection) == (False, False)
        run(connection, "SET autocommit = 1")
        assert connection.get_autocommit() is True
        run(connection, "SELECT * FROM t", cursor_class)
        assert bits(connection) == (False, False)


@pytest.mark.parametrize("cursor_class", [Cursor, SSCursor])
def test_the_status_tells_of_further_results(connect: Connect, cursor_class: type[Cursor]) -> None:
    with connect(**MANY) as connection, connection.cursor(cursor_class) as cursor:
        cursor.execute("SELECT 1; SET @a = 1; SELECT 2")
        states = []
        while True:
            cursor.fetchall()
            states.append(bits(connection)[1])
            if not cursor.nextset():
                break
        assert states == [True, True, False]


def test_the_status_tells_how_literals_must_be_escaped(connect: Connect) -> None:
    with connect() as connection:
        for mode, escaped in (("NO_BACKSLASH_ESCAPES", "'it''s \\'"), ("", "'it\\'s \\\\'")):
            run(connection, f"SET sql_mode = '{mode}'")
            run(connection, "SELECT 1")
            assert connection.escape("it's \\") == escaped
            with connection.cursor() as cursor:
                cursor.execute("SELECT %s", ("it's \\",))
                assert cursor.fetchall() == (("it's \\",),)
