"""Statements that leave nothing behind, or a transaction at most: their session must be kept."""

from __future__ import annotations

from functools import partial

from .acts import Act, Stage, statements

harmless = partial(statements, keeps=True)


def _with_parameters(stage: Stage) -> None:
    stage.run("SELECT %s, %s, %s", "someone@example.com", "a;b:=c 'GET_LOCK(' \\", b"\xc3\xa9@'")


def _many_rows(stage: Stage) -> None:
    stage.run(f"SELECT a.id, REPEAT('x', 1000) FROM {', '.join(f'{{db}}.t AS {name}' for name in 'abcd')}")


def _insert_many(stage: Stage) -> None:
    with stage.lease.cursor() as cursor:
        cursor.executemany(stage.scene.fill("INSERT INTO {db}.t (v) VALUES (%s)"), [(str(n),) for n in range(20)])


def _update_many(stage: Stage) -> None:
    with stage.lease.cursor() as cursor:
        cursor.executemany(stage.scene.fill("UPDATE {db}.t SET v = %s WHERE id = %s"), [("a", 1), ("b", 2)])


def _long_insert(stage: Stage) -> None:
    stage.run("INSERT INTO {db}.t (v) VALUES " + ", ".join(["('a row of a long statement')"] * 300))


def _long_insert_and_commit(stage: Stage) -> None:
    _long_insert(stage)
    stage.lease.commit()


def _long_select(stage: Stage) -> None:
    stage.run("SELECT LENGTH(%s)", "x" * 100_000)


ACTS = [
    harmless("select_1", "SELECT 1"),
    harmless("select_rows", "SELECT * FROM {db}.t"),
    harmless("select_join_order_limit", "SELECT a.id FROM {db}.t a JOIN {db}.t b USING (id) ORDER BY 1 DESC LIMIT 2"),
    harmless("select_union", "(SELECT 1) UNION (SELECT 2) ORDER BY 1"),
    harmless("select_nothing", "SELECT id FROM {db}.t WHERE FALSE"),
    harmless("select_with_cte", "WITH n AS (SELECT 1 AS i UNION ALL SELECT 2) SELECT * FROM n"),
    Act("select_parameters_like_code", _with_parameters, keeps=True),
    Act("select_many_rows", _many_rows, keeps=True),
    Act("select_long_text", _long_select, keeps=True),
    Act("insert_long_text", _long_insert),
    Act("insert_long_text_and_commit", _long_insert_and_commit, keeps=True),
    Act("insert_many", _insert_many, keeps=True),
    Act("update_many", _update_many, keeps=True),
    harmless("select_system_variables", "SELECT @@version, @@session.sql_mode, @@global.max_connections"),
    harmless("select_view", "SELECT * FROM {db}.seen"),
    harmless("select_pure_function", "SELECT {db}.f_plain()"),
    harmless("select_for_update", "SELECT id FROM {db}.plain WHERE id = 1 FOR UPDATE"),
    harmless("select_from_myisam", "SELECT * FROM {db}.myisam"),
    harmless("select_with_comments", "/* a comment */ SELECT /* within */ 1 /* behind */"),
    harmless("select_with_line_comment", "SELECT 1 -- behind\n + 1 # and at the end"),
    harmless("select_with_semicolon", "SELECT 1;"),
    harmless("select_hint_comment", "SELECT /*+ NO_MERGE() */ id FROM {db}.t LIMIT 1"),
    harmless("select_insert_id", "SELECT LAST_INSERT_ID()"),
    harmless("select_found_rows", "SELECT id FROM {db}.t LIMIT 3", "SELECT FOUND_ROWS()"),
    harmless("select_row_count", "UPDATE {db}.t SET v = 'x' WHERE id = 1", "SELECT ROW_COUNT()"),
    harmless("select_json_and_binary", "SELECT JSON_OBJECT('a', 1), X'FF00', NULL, NOW()"),
    harmless("values", "VALUES (1, 2), (3, 4)", family="mariadb"),
    harmless("values_rows", "VALUES ROW(1, 2), ROW(3, 4)", family="mysql"),
    harmless("table", "TABLE {db}.t", family="mysql"),
    harmless("show", "SHOW TABLES FROM {db}", "SHOW VARIABLES LIKE 'a%'", "SHOW STATUS LIKE 'Com_select'"),
    harmless("show_create", "SHOW CREATE TABLE {db}.t", "SHOW COLUMNS FROM {db}.t", "SHOW INDEX FROM {db}.t"),
    harmless("show_processlist", "SHOW PROCESSLIST"),
    harmless("explain", "EXPLAIN SELECT * FROM {db}.plain WHERE id = 1", errors=(0,)),
    harmless("describe", "DESCRIBE {db}.t", "DESC {db}.t"),
    harmless("help", "HELP 'no such topic'"),
    harmless("insert_auto_increment", "INSERT INTO {db}.t (v) VALUES ('new')"),
    harmless("insert_given_key", "REPLACE INTO {db}.plain VALUES (7, 70)"),
    harmless("insert_into_myisam", "INSERT INTO {db}.myisam (v) VALUES ('new')"),
    harmless("insert_select", "INSERT INTO {db}.t (v) SELECT v FROM {db}.t WHERE id <= 3"),
    harmless("insert_through_view", "INSERT INTO {db}.seen (v) VALUES ('through')"),
    harmless("insert_on_duplicate", "INSERT INTO {db}.t VALUES (1, 'x') ON DUPLICATE KEY UPDATE v = CONCAT(v, '!')"),
    harmless("insert_set", "INSERT INTO {db}.t SET v = 'set'"),
    harmless("update", "UPDATE {db}.t SET v = CONCAT(v, '+') WHERE id <= 2"),
    harmless("update_nothing", "UPDATE {db}.t SET v = 'x' WHERE FALSE"),
    harmless("delete", "DELETE FROM {db}.t WHERE id = 5"),
    harmless("replace", "REPLACE INTO {db}.t VALUES (2, 'replaced')"),
    harmless("begin_commit", "BEGIN", "INSERT INTO {db}.t (v) VALUES ('kept')", "COMMIT"),
    harmless("begin_rollback", "START TRANSACTION", "INSERT INTO {db}.t (v) VALUES ('lost')", "ROLLBACK"),
    harmless("begin_only", "BEGIN"),
    harmless("begin_select", "BEGIN", "SELECT * FROM {db}.t"),
    harmless("begin_insert", "BEGIN", "INSERT INTO {db}.t (v) VALUES ('open')"),
    harmless("begin_update_all", "BEGIN", "UPDATE {db}.plain SET v = v + 1"),
    harmless("begin_lock_rows", "BEGIN", "SELECT * FROM {db}.plain WHERE id > 1 FOR UPDATE"),
    harmless("begin_share_rows", "BEGIN", "SELECT * FROM {db}.plain LOCK IN SHARE MODE"),
    harmless("begin_read_only", "START TRANSACTION READ ONLY", "SELECT * FROM {db}.t"),
    harmless("begin_snapshot", "START TRANSACTION WITH CONSISTENT SNAPSHOT"),
    harmless("savepoints", "BEGIN", "SAVEPOINT fidelity", "DELETE FROM {db}.t", "ROLLBACK TO SAVEPOINT fidelity"),
    harmless("savepoint_left", "BEGIN", "INSERT INTO {db}.plain VALUES (9, 9)", "SAVEPOINT fidelity"),
    harmless("savepoint_alone", "SAVEPOINT fidelity"),
    harmless("savepoint_behind_commit", "SELECT id FROM {db}.t", "COMMIT", "SAVEPOINT fidelity"),
    harmless("savepoint_released", "BEGIN", "SAVEPOINT fidelity", "RELEASE SAVEPOINT fidelity", "COMMIT"),
    statements("commit_and_chain", "BEGIN", "DELETE FROM {db}.t WHERE id = 1", "COMMIT AND CHAIN"),
    statements("rollback_and_chain", "BEGIN", "ROLLBACK AND CHAIN"),
    statements("commit_release", "BEGIN", "COMMIT RELEASE"),
    statements("delete_returning", "DELETE FROM {db}.t WHERE id = 1 RETURNING v", family="mariadb"),
    statements("insert_returning", "INSERT INTO {db}.t (v) VALUES ('r') RETURNING id", family="mariadb"),
    statements("insert_ignore_with_warning", "INSERT IGNORE INTO {db}.t VALUES (1, 'x')"),
    statements("select_with_warning", "SELECT 1 / 0, CAST('x' AS SIGNED)"),
    statements("calc_found_rows", "SELECT SQL_CALC_FOUND_ROWS id FROM {db}.t LIMIT 1"),
    statements("do", "DO 1"),
    statements("analyze", "ANALYZE TABLE {db}.t", "CHECK TABLE {db}.t", "CHECKSUM TABLE {db}.t"),
    statements("flush", "FLUSH LOCAL TABLES {db}.plain"),
    statements("kill_nobody", "KILL 4294967295", errors=(1094,)),
    statements("ddl", "CREATE TABLE {db}.made (id INT)", mend=("DROP TABLE IF EXISTS {db}.made",)),
    statements(
        "ddl_ends_transaction",
        "BEGIN",
        "INSERT INTO {db}.t (v) VALUES ('kept')",
        "CREATE TABLE {db}.made (id INT)",
        mend=("DROP TABLE IF EXISTS {db}.made",),
    ),
    statements("truncate", "TRUNCATE TABLE {db}.myisam"),
    statements("view", "CREATE OR REPLACE VIEW {db}.made_view AS SELECT 1", "DROP VIEW {db}.made_view"),
    statements(
        "event",
        "CREATE EVENT {db}.made_event ON SCHEDULE AT CURRENT_TIMESTAMP DO SET @from_event = GET_LOCK('fidelity', 0)",
        "DROP EVENT IF EXISTS {db}.made_event",
        mend=("DROP EVENT IF EXISTS {db}.made_event",),
    ),
    statements("grant", "GRANT SELECT ON {db}.* TO {role}", "REVOKE INSERT ON {db}.* FROM {role}", errors=(0, 1141)),
]
