"""Errors of every class, at every place: an error packet tells nothing of the session's state."""

from __future__ import annotations

import contextlib

import pymysql
from pymysql.constants import COMMAND, FIELD_TYPE
from pymysql.cursors import SSCursor

from .acts import Act, Stage, statements


def _decoder_fails(stage: Stage) -> None:
    def refuse(_text: str) -> None:
        raise ValueError("no such number")

    stage.lease.decoders[FIELD_TYPE.LONG] = refuse
    stage.run("SELECT id, v FROM {db}.t")


def _decoder_fails_unbuffered(stage: Stage) -> None:
    cursor = stage.lease.cursor(SSCursor)
    stage.held.append(cursor)
    cursor.execute(stage.scene.fill("SELECT id FROM {db}.t"))
    cursor.fetchone()
    stage.lease.decoders[FIELD_TYPE.LONG] = int
    cursor._result.converters = [(None, {}.__getitem__)]
    cursor.fetchall()


def _parameter_fails(stage: Stage) -> None:
    stage.run("SELECT %s", object())


def _too_few_parameters(stage: Stage) -> None:
    stage.run("SELECT %s, %s", 1)


def _executemany_fails_in_the_middle(stage: Stage) -> None:
    with stage.lease.cursor() as cursor:
        rows = [(1, 10), (2, None), (3, 30)]
        cursor.executemany(
            stage.scene.fill("UPDATE {db}.plain SET v = %s + 1 WHERE id = %s"), [(b, a) for a, b in rows]
        )


def _executemany_inserts_a_duplicate(stage: Stage) -> None:
    with stage.lease.cursor() as cursor:
        cursor.executemany(stage.scene.fill("INSERT INTO {db}.plain VALUES (%s, %s)"), [(8, 1), (1, 1), (9, 1)])


def _error_in_mid_result(stage: Stage) -> None:
    with stage.lease.cursor(SSCursor) as cursor:
        cursor.execute(
            stage.scene.fill("SELECT IF(id < 5, id, (SELECT 1 UNION SELECT id + 1)) FROM {db}.t ORDER BY id")
        )
        cursor.fetchall()


def _deadlock(stage: Stage) -> None:
    """Be the victim of a deadlock: the other has changed more."""
    other = stage.scene.other
    stage.run("BEGIN")
    stage.run("UPDATE {db}.plain SET v = 0 WHERE id = 1")
    with other.cursor() as cursor:
        cursor.execute(stage.scene.fill("INSERT INTO {db}.t (v) SELECT a.v FROM {db}.t a, {db}.t b"))
        cursor.execute(stage.scene.fill("UPDATE {db}.plain SET v = 0 WHERE id = 2"))
    other._execute_command(COMMAND.COM_QUERY, stage.scene.fill("UPDATE {db}.plain SET v = 0 WHERE id = 1"))
    try:
        stage.run("UPDATE {db}.plain SET v = 0 WHERE id = 2")
    finally:
        with contextlib.suppress(pymysql.Error):
            stage.lease.rollback()
        with contextlib.suppress(pymysql.Error):
            other._read_query_result()
        other.rollback()


def _row_is_locked(stage: Stage) -> None:
    with stage.scene.other.cursor() as cursor:
        cursor.execute(stage.scene.fill("UPDATE {db}.plain SET v = 0 WHERE id = 1"))
    try:
        stage.run("BEGIN")
        stage.run("UPDATE {db}.plain SET v = 0 WHERE id = 3")
        stage.run("SELECT * FROM {db}.plain WHERE id = 1 FOR UPDATE NOWAIT")
    finally:
        stage.scene.other.rollback()


def _lock_wait_times_out(stage: Stage) -> None:
    with stage.scene.other.cursor() as cursor:
        cursor.execute(stage.scene.fill("UPDATE {db}.plain SET v = 0 WHERE id = 1"))
    try:
        stage.run("SET innodb_lock_wait_timeout = " + ("0" if stage.scene.server.is_mariadb else "1"))
        stage.run("BEGIN")
        stage.run("UPDATE {db}.plain SET v = 0")
    finally:
        stage.scene.other.rollback()


def _killed_by_another(stage: Stage) -> None:
    stage.run("SELECT 1")
    stage.scene.manage(f"KILL {stage.lease.thread_id()}")
    stage.run("SELECT 1")


def _killed_unnoticed(stage: Stage) -> None:
    stage.run("SET @a = 1")
    stage.scene.manage(f"KILL {stage.lease.thread_id()}")


def _packet_is_too_large(stage: Stage) -> None:
    stage.run("SET @big = REPEAT('x', 1000)")
    ((limit,),) = stage.run("SELECT @@max_allowed_packet")
    stage.run(f"SELECT LENGTH(CONCAT(REPEAT('x', {limit}), 'x'))")


def _function_signals(stage: Stage) -> None:
    try:
        stage.run("SELECT {db}.f_signal()")
    except pymysql.MySQLError:
        stage.run("SELECT 1")
        raise


WITHOUT_AUTOCOMMIT = "SET autocommit = 0"
DUPLICATE = "INSERT INTO {db}.plain VALUES (1, 1)"

ACTS = [
    statements("syntax_error", "SELEC 1", errors=(1064,)),
    statements("syntax_error_behind_verb", "SELECT 1 FROM FROM", errors=(1064,)),
    statements("syntax_error_in_second", "SET @a = 1; SELEC 1", errors=(1064,)),
    statements("error_in_second", "SELECT 1; SELECT * FROM {db}.nothing; SET @a = 1", errors=(1146,)),
    statements("empty_statement", "", errors=(1065,)),
    statements("comment_alone", "/* nothing */", errors=(0, 1065)),
    statements("comment_unfinished", "SELECT 1 /* ", errors=(0, 1064)),
    statements("unknown_table", "SELECT * FROM {db}.nothing", errors=(1146,)),
    statements("unknown_column", "SELECT nothing FROM {db}.t", errors=(1054,)),
    statements("unknown_function", "SELECT {db}.nothing()", errors=(1305,)),
    statements("unknown_database", "USE fidelity_nothing", errors=(1049,)),
    statements("unknown_variable", "SET fidelity_nothing = 1", errors=(1193,)),
    statements("variable_then_unknown_one", "SET @first = 1, fidelity_nothing = 1", errors=(1193,)),
    statements("unknown_role", "SET ROLE fidelity_nothing", errors=(1959, 3530)),
    statements("unknown_prepared", "EXECUTE fidelity_a", errors=(1243,)),
    statements("wrong_value", "SET SESSION sql_mode = 'NOTHING'", errors=(1231,)),
    statements("duplicate_key", DUPLICATE, errors=(1062,)),
    statements("duplicate_key_without_autocommit", WITHOUT_AUTOCOMMIT, DUPLICATE, errors=(1062,)),
    statements(
        "duplicate_key_in_transaction", "BEGIN", "INSERT INTO {db}.plain VALUES (8, 8)", DUPLICATE, errors=(1062,)
    ),
    statements("duplicate_key_after_auto_increment", "INSERT INTO {db}.t VALUES (NULL, 'x'), (1, 'y')", errors=(1062,)),
    statements(
        "duplicate_key_in_myisam",
        "REPLACE INTO {db}.myisam VALUES (1, 'a')",
        "INSERT INTO {db}.myisam VALUES (NULL, 'b'), (1, 'c')",
        errors=(1062,),
    ),
    statements("foreign_key", "INSERT INTO {db}.child VALUES (1, 99999)", errors=(1452,)),
    statements("not_null", "INSERT INTO {db}.plain VALUES (50, NULL)", errors=(1048,)),
    statements("too_long", "INSERT INTO {db}.t (v) VALUES (REPEAT('x', 200))", errors=(0, 1406)),
    statements("too_many_rows_for_variable", "SELECT id INTO @many FROM {db}.t", errors=(1172,)),
    statements("signal", "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'a'", errors=(1644,)),
    statements("signal_warning", "SIGNAL SQLSTATE '01000' SET MESSAGE_TEXT = 'a'"),
    statements("signal_after_variable_in_procedure", "CALL {db}.p_signal()", errors=(1644,)),
    Act("signal_after_variable_in_function", _function_signals, errors=(1644,)),
    statements("division_by_zero_in_insert", "INSERT INTO {db}.plain VALUES (51, 1 / 0)", errors=(0, 1048, 1365)),
    statements("many_warnings", "SELECT CAST(CONCAT('x', id) AS SIGNED) FROM {db}.t"),
    statements("note", "DROP TABLE IF EXISTS {db}.nothing"),
    statements("warning_then_clean_statement", "SELECT CAST('x' AS SIGNED)", "SELECT 1"),
    statements("write_in_read_only_transaction", "START TRANSACTION READ ONLY", "DELETE FROM {db}.t", errors=(1792,)),
    statements(
        "write_within_read_lock", "LOCK TABLES {db}.plain READ", "DELETE FROM {db}.plain", errors=(1099,), blocks=True
    ),
    statements("table_not_locked", "LOCK TABLES {db}.t READ", "SELECT * FROM {db}.plain", errors=(1100,), blocks=True),
    statements("commit_within_xa", "XA START 'fidelity_a'", "COMMIT", errors=(1399,)),
    statements("xa_unknown", "XA END 'fidelity_a'", errors=(1399, 1397)),
    statements("query_stopped", "KILL QUERY CONNECTION_ID()", errors=(0, 1317)),
    statements(
        "query_too_slow",
        "SELECT /*+ MAX_EXECUTION_TIME(1) */ SLEEP(0.05) FROM {db}.t",
        family="mysql",
        errors=(0, 3024),
    ),
    statements(
        "statement_too_slow",
        "SET STATEMENT max_statement_time = 0.01 FOR SELECT SLEEP(1)",
        family="mariadb",
        errors=(1969,),
    ),
    statements("kill_itself", "SET @a = 1", "KILL CONNECTION_ID()", errors=(0, 1317, 1927, 2013)),
    Act("kill_itself_by_method", lambda stage: stage.lease.kill(stage.lease.thread_id()), errors=(0, 1317, 1927, 2013)),
    Act("killed_by_another", _killed_by_another, errors=(1927, 2006, 2013, 4031)),
    Act("killed_unnoticed", _killed_unnoticed),
    Act("deadlock", _deadlock, errors=(1213,)),
    Act("row_is_locked", _row_is_locked, errors=(1205, 3572)),
    Act("lock_wait_times_out", _lock_wait_times_out, errors=(1205,), costly=True),
    Act("packet_is_too_large", _packet_is_too_large, errors=(0, 1301, 1153)),
    Act("error_in_mid_result", _error_in_mid_result, errors=(1242,)),
    Act("executemany_fails_in_the_middle", _executemany_fails_in_the_middle, errors=(0, 1048)),
    Act("executemany_inserts_a_duplicate", _executemany_inserts_a_duplicate, errors=(1062,)),
    Act("decoder_fails", _decoder_fails, errors=("ValueError",)),
    Act("decoder_fails_unbuffered", _decoder_fails_unbuffered, errors=("KeyError",)),
    Act("parameter_fails", _parameter_fails, errors=(0, 1054, "TypeError")),
    Act("too_few_parameters", _too_few_parameters, errors=("TypeError", "ProgrammingError")),
]
