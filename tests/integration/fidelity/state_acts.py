"""Statements that change what the session remembers, holds or is."""

from __future__ import annotations

from functools import partial

from .acts import Act, Stage, statements
from .scene import FORMAT_EVENT


def _variables() -> list[Act]:
    """Make one act for each way of setting a session variable."""
    both = {
        "sort_buffer_size": "SESSION sort_buffer_size = 300000",
        "local_group_concat": "LOCAL group_concat_max_len = 99",
        "at_session": "@@session.net_read_timeout = 77",
        "at_local": "@@local.sql_select_limit = 2",
        "bare_at": "@@max_sort_length = 64",
        "no_backslash_escapes": "sql_mode = 'NO_BACKSLASH_ESCAPES'",
        "ansi_quotes": "sql_mode = 'ANSI_QUOTES'",
        "sql_mode_empty": "sql_mode = ''",
        "time_zone": "time_zone = '+05:00'",
        "foreign_key_checks": "foreign_key_checks = 0, unique_checks = 0",
        "lock_waits": "innodb_lock_wait_timeout = 3, lock_wait_timeout = 4",
        "lc_time_names": "lc_time_names = 'de_DE'",
        "safe_updates": "sql_safe_updates = 1",
        "wait_timeout": "wait_timeout = 600",
        "autocommit_0": "autocommit = 0",
        "autocommit_1": "autocommit = 1",
        "names_gbk": "NAMES gbk",
        "names_latin1_collate": "NAMES latin1 COLLATE latin1_general_ci",
        "character_set": "CHARACTER SET latin1",
        "character_set_results": "character_set_results = NULL",
        "collation_connection": "collation_connection = 'utf8mb4_bin'",
        "isolation_of_session": "SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
        "read_only_session": "SESSION TRANSACTION READ ONLY",
        "read_uncommitted_once": "TRANSACTION ISOLATION LEVEL READ UNCOMMITTED",
        "serializable_once": "TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "read_only_once": "TRANSACTION READ ONLY",
        "timestamp": "timestamp = 1000000000",
        "insert_id": "insert_id = 100000",
        "last_insert_id": "last_insert_id = 55",
        "identity": "identity = 56",
        "rand_seed": "rand_seed1 = 1, rand_seed2 = 2",
        "pseudo_thread_id": "pseudo_thread_id = 5",
        "profiling": "profiling = 1",
        "storage_engine": "default_storage_engine = MyISAM",
        "completion_type": "completion_type = 1",
        "log_bin": "sql_log_bin = 0",
        "track_variables": "session_track_system_variables = ''",
        "track_schema": "session_track_schema = 0",
        "track_transactions": "session_track_transaction_info = 'CHARACTERISTICS'",
    }
    acts = [statements(f"set_{name}", f"SET {text}") for name, text in both.items()]
    mariadb = {
        "tx_isolation_once": "@@tx_isolation = 'READ-UNCOMMITTED'",
        "statement_time": "max_statement_time = 9.5",
        "check_constraints": "check_constraint_checks = 0",
        "sql_mode_oracle": "sql_mode = 'ORACLE'",
    }
    mysql = {
        "isolation_once_by_variable": "@@transaction_isolation = 'READ-UNCOMMITTED'",
        "execution_time": "max_execution_time = 9000",
        "optimizer": "optimizer_switch = 'mrr=off'",
        "secondary": "generated_random_password_length = 10",
    }
    acts += [statements(f"set_{name}", f"SET {text}", family="mariadb") for name, text in mariadb.items()]
    return acts + [statements(f"set_{name}", f"SET {text}", family="mysql") for name, text in mysql.items()]


def _user_variables() -> list[Act]:
    return [
        statements("user_variable", "SET @a = 1"),
        statements("user_variable_colon", "SET @a := 2, @b = 'two'"),
        statements("user_variable_in_select", "SELECT @a := 2"),
        statements("user_variable_in_where", "SELECT id FROM {db}.t WHERE (@n := IFNULL(@n, 0) + 1) > 2"),
        statements("user_variable_into", "SELECT 1 INTO @c"),
        statements("user_variable_into_from", "SELECT v INTO @c FROM {db}.t WHERE id = 1"),
        statements("user_variable_in_update", "UPDATE {db}.t SET v = (@u := v) WHERE id = 1"),
        statements("user_variable_in_insert", "INSERT INTO {db}.t (v) VALUES (@i := 'x')"),
        statements("user_variable_in_delete", "DELETE FROM {db}.t WHERE (@d := id) = 5"),
        statements("user_variable_quoted", "SELECT @`a b` := 1, @'c d' := 2"),
        statements("user_variable_in_comment_for_servers", "SELECT 1 /*!50000 , @versioned := 3 */"),
        statements("user_variable_in_union", "SELECT 1 UNION SELECT @u := 2"),
        statements("user_variable_in_cte", "WITH n AS (SELECT 1 i) SELECT @w := i FROM n"),
        statements("user_variable_in_show", "SHOW TABLES FROM {db} WHERE (@s := 1) = 1"),
        statements("user_variable_in_analyze", "ANALYZE SELECT @z := 1", family="mariadb"),
        statements(
            "user_variable_set_statement",
            "SET STATEMENT sort_buffer_size = 300000 FOR SELECT @y := 1",
            family="mariadb",
        ),
        statements("diagnostics", "GET DIAGNOSTICS @n = NUMBER, @r = ROW_COUNT"),
        statements("user_variable_of_block", "BEGIN NOT ATOMIC SET @block = 1; SELECT 1; END", family="mariadb"),
        statements("user_variable_of_if", "IF TRUE THEN SET @conditional = 1; END IF", family="mariadb"),
        statements("long_then_variable", f"SELECT '{'x' * 5000}', @long := 1"),
        statements("comment_then_variable", f"/* {'x' * 600} */ SET @commented = 1"),
    ]


def _named_locks() -> list[Act]:
    """Make one act for each way of writing GET_LOCK that a reader of SQL might miss."""
    texts = {
        "plain": "SELECT GET_LOCK('fidelity', 0)",
        "lower": "select get_lock('fidelity', 0)",
        "two": "SELECT GET_LOCK('fidelity', 0), GET_LOCK('fidelity_2', 0)",
        "do": "DO GET_LOCK('fidelity', 0)",
        "set": "SET @g = GET_LOCK('fidelity', 0)",
        "backticks": "SELECT `GET_LOCK`('fidelity', 0)",
        "in_versioned_comment": "SELECT /*!50000 GET_LOCK('fidelity', 0) */",
        "leading_comment": "/* hello */ SELECT GET_LOCK('fidelity', 0)",
        "leading_hash": "# hello\nSELECT GET_LOCK('fidelity', 0)",
        "leading_dashes": "-- hello\nSELECT GET_LOCK('fidelity', 0)",
        "behind_string": "SELECT 'it''s', \"a 'b\", GET_LOCK('fidelity', 0)",
        "behind_backslash": "SELECT 'a\\'', GET_LOCK('fidelity', 0), 'b'",
        "in_where": "SELECT id FROM {db}.t WHERE GET_LOCK('fidelity', 0) LIMIT 1",
        "in_order": "SELECT id FROM {db}.t ORDER BY GET_LOCK('fidelity', 0), id",
        "in_subquery": "SELECT (SELECT GET_LOCK('fidelity', 0))",
        "in_insert": "INSERT INTO {db}.t (v) SELECT GET_LOCK('fidelity', 0)",
        "in_update": "UPDATE {db}.t SET v = GET_LOCK('fidelity', 0) WHERE id = 1",
        "in_delete": "DELETE FROM {db}.t WHERE id = 4 + GET_LOCK('fidelity', 0)",
        "in_show": "SHOW TABLES FROM {db} WHERE GET_LOCK('fidelity', 0)",
        "by_set_statement": "SELECT 1; SELECT GET_LOCK('fidelity', 0)",
        "in_call": "CALL {db}.p_out(@lock); DO GET_LOCK('fidelity', 0)",
        "parenthesis": "(((SELECT GET_LOCK('fidelity', 0))))",
        "long": f"SELECT '{'x' * 5000}', GET_LOCK('fidelity', 0)",
        "released": "SELECT GET_LOCK('fidelity', 0) + RELEASE_LOCK('fidelity')",
    }
    acts = [statements(f"lock_{name}", text) for name, text in texts.items()]
    spaced = {"comment": "GET_LOCK/* here */('fidelity', 0)", "blank": "GET_LOCK ('fidelity', 0)"}
    # A blank between a native function's name and its parenthesis is allowed.
    acts += [statements(f"lock_spaced_{name}", f"SELECT {text}") for name, text in spaced.items()]
    return [
        *acts,
        statements("lock_in_explain_analyze", "EXPLAIN ANALYZE SELECT GET_LOCK('fidelity', 0)", family="mysql"),
        statements("lock_in_mariadb_comment", "SELECT 1 /*M!100100 , GET_LOCK('fidelity', 0) */", family="mariadb"),
    ]


def _objects() -> list[Act]:
    """Make acts that leave something of the session's own behind."""
    drop = ("DROP TABLE IF EXISTS {db}.tmp",)
    return [
        statements("temporary_table", "CREATE TEMPORARY TABLE {db}.tmp (id INT)"),
        statements("temporary_table_filled", "CREATE TEMPORARY TABLE {db}.tmp AS SELECT * FROM {db}.t"),
        statements("temporary_table_shadows", "CREATE TEMPORARY TABLE {db}.t (id INT, v INT)"),
        statements("temporary_table_in_comment", "CREATE /*!32302 TEMPORARY */ TABLE {db}.tmp (id INT)", mend=drop),
        statements("temporary_table_dropped", "CREATE TEMPORARY TABLE {db}.tmp (id INT)", "DROP TABLE {db}.tmp"),
        statements(
            "temporary_table_renamed",
            "CREATE TEMPORARY TABLE {db}.tmp (id INT)",
            "ALTER TABLE {db}.tmp RENAME {db}.tmp_2",
        ),
        statements("temporary_sequence", "CREATE TEMPORARY SEQUENCE {db}.tmp", family="mariadb"),
        statements("prepare", "PREPARE fidelity_a FROM 'SELECT 1'"),
        statements(
            "prepare_execute", "SET @v = 2", "PREPARE fidelity_a FROM 'SELECT ?'", "EXECUTE fidelity_a USING @v"
        ),
        statements("prepare_deallocate", "PREPARE fidelity_a FROM 'SELECT 1'", "DEALLOCATE PREPARE fidelity_a"),
        statements("prepare_lock", "PREPARE fidelity_a FROM 'DO GET_LOCK(''fidelity'', 0)'", "EXECUTE fidelity_a"),
        statements("execute_immediate", "EXECUTE IMMEDIATE 'SET @immediate = 1'", family="mariadb"),
        statements("handler", "HANDLER {db}.t OPEN AS fidelity_handler", "HANDLER fidelity_handler READ FIRST"),
        statements("handler_unread", "HANDLER {db}.plain OPEN AS fidelity_handler", blocks=True),
        statements("lock_tables_read", "LOCK TABLES {db}.t READ", blocks=True),
        statements("lock_tables_write", "LOCK TABLES {db}.t WRITE, {db}.plain WRITE", blocks=True),
        statements(
            "lock_tables_and_insert", "LOCK TABLES {db}.t WRITE", "INSERT INTO {db}.t (v) VALUES ('l')", blocks=True
        ),
        statements("lock_and_unlock_tables", "LOCK TABLES {db}.t READ", "UNLOCK TABLES"),
        statements("flush_one_with_read_lock", "FLUSH TABLES {db}.t WITH READ LOCK", blocks=True),
        statements("flush_with_read_lock", "FLUSH TABLES WITH READ LOCK", blocks=True),
        statements("flush_for_export", "FLUSH TABLES {db}.plain FOR EXPORT", blocks=True),
        statements("backup_stage", "BACKUP STAGE START", "BACKUP STAGE BLOCK_DDL", family="mariadb", blocks=True),
        statements("backup_lock", "BACKUP LOCK {db}.t", family="mariadb", blocks=True),
        statements("backup_instance", "LOCK INSTANCE FOR BACKUP", family="mysql", blocks=True),
        statements("next_value", "SELECT NEXTVAL({db}.seq)", "SELECT LASTVAL({db}.seq)", family="mariadb"),
        statements("next_value_for", "SELECT NEXT VALUE FOR {db}.seq", family="mariadb"),
        statements(
            "next_value_in_insert", "INSERT INTO {db}.plain VALUES (NEXTVAL({db}.seq) + 1000, 1)", family="mariadb"
        ),
        statements(
            "gtid_owned", "SET gtid_next = '01234567-89ab-cdef-0123-456789abcdef:1'", family="mysql", errors=(0, 1781)
        ),
        statements("set_value", "SELECT SETVAL({db}.seq, 50)", family="mariadb"),
        statements("profiled", "SET profiling = 1", "SELECT 1", "SET profiling = 0"),
        statements("profiled_in_comment", "/*!50000 SET profiling = 1 */", "SELECT 1"),
        statements("profiled_behind_semicolon", "SELECT 1; SET profiling = 1", "SELECT 2"),
        statements("profiled_prepared", "PREPARE fidelity_a FROM 'SET profiling = 1'", "EXECUTE fidelity_a"),
        statements("profiled_immediate", "EXECUTE IMMEDIATE 'SET profiling = 1'", family="mariadb"),
        statements("profiled_of_block", "BEGIN NOT ATOMIC SET profiling = 1; END", "SELECT 1", family="mariadb"),
        statements("traced", "SET optimizer_trace = 'enabled=on'", "SELECT * FROM {db}.t"),
        statements("traced_before", *(f"SET optimizer_trace = 'enabled={mode}'" for mode in ("on", "off"))),
        statements("traced_behind_semicolon", "SELECT 1; SET optimizer_trace = 'enabled=on'", "SELECT 2"),
        statements(
            "traced_prepared",
            "PREPARE fidelity_a FROM 'SET optimizer_trace = 1'",
            "EXECUTE fidelity_a",
            "SELECT 1",
            errors=(0, 1295),
        ),
        statements("binlog", f"BINLOG '{FORMAT_EVENT}'"),
        statements("binlog_behind_semicolon", f"SELECT 1; BINLOG '{FORMAT_EVENT}'"),
        statements("insert_id_of_expression", "SELECT LAST_INSERT_ID(77)"),
        statements("insert_id_in_transaction", "BEGIN", "SELECT LAST_INSERT_ID(79)"),
        statements("insert_id_of_update", "UPDATE {db}.t SET v = LAST_INSERT_ID(78) WHERE id = 1"),
        statements(
            "insert_id_of_duplicate",
            "INSERT INTO {db}.t VALUES (1, 'x') ON DUPLICATE KEY UPDATE id = LAST_INSERT_ID(id)",
        ),
        statements("insert_id_of_load", "LOAD DATA LOCAL INFILE '{folder}/rows.txt' INTO TABLE {db}.t (v)"),
        statements(
            "insert_id_of_negative", "INSERT INTO {db}.t VALUES (-3, 'x')", mend=("DELETE FROM {db}.t WHERE id < 0",)
        ),
    ]


def _of_the_account() -> list[Act]:
    """Make acts after which the account's new connections are not what they were."""
    act = partial(statements, alters_account=True)
    rights = ("GRANT ALL ON *.* TO {user}@'%' WITH GRANT OPTION",)
    no_role = ("ALTER USER {user}@'%' DEFAULT ROLE NONE",)
    of_mariadb = ("SET DEFAULT ROLE NONE FOR {user}@'%'",)
    return [
        act("revoke", "REVOKE PROCESS ON *.* FROM {user}@'%'", mend=rights),
        act("revoke_own", "/* x */ REVOKE PROCESS ON *.* FROM CURRENT_USER", mend=rights),
        act("default_role_of_mariadb", "SET DEFAULT ROLE {role}", family="mariadb", mend=of_mariadb),
        act("default_role", "SET DEFAULT ROLE {role} TO {user}@'%'", family="mysql", mend=no_role),
        act("default_role_by_alter", "ALTER USER {user}@'%' DEFAULT ROLE {role}", family="mysql", mend=no_role),
    ]


def _who_and_where() -> list[Act]:
    again = ("CREATE DATABASE IF NOT EXISTS {scratch}",)
    return [
        statements("role", "SET ROLE {role}"),
        statements("role_quoted", "SET /* a */ ROLE `{role}`"),
        statements("role_in_comment", "SET /*!50000 ROLE {role} */"),
        statements("role_none", "SET ROLE NONE"),
        statements("role_all", "SET ROLE ALL", family="mysql"),
        statements("role_prepared", "PREPARE fidelity_a FROM 'SET ROLE {role}'", "EXECUTE fidelity_a"),
        statements("role_immediate", "EXECUTE IMMEDIATE 'SET ROLE {role}'", family="mariadb"),
        statements("role_behind_semicolon", "SELECT 1; SET ROLE {role}"),
        statements("role_behind_set", "SET @a = 1; SET ROLE {role}"),
        statements("role_of_block", "BEGIN NOT ATOMIC SET ROLE {role}; END", family="mariadb"),
        statements(
            "role_of_set_statement",
            "SET STATEMENT sort_buffer_size = 300000 FOR SET ROLE {role}",
            family="mariadb",
            errors=(0, 1064),
        ),
        statements("resource_group", "SET RESOURCE GROUP {resource_group}", family="mysql"),
        statements("resource_group_hint", "SELECT /*+ RESOURCE_GROUP({resource_group}) */ 1", family="mysql"),
        statements(
            "resource_group_prepared",
            "PREPARE fidelity_a FROM 'SET RESOURCE GROUP {resource_group}'",
            "EXECUTE fidelity_a",
            family="mysql",
            errors=(0, 1295),
        ),
        statements("use", "USE {scratch}"),
        statements("use_and_back", "USE {scratch}", "USE {db}"),
        statements("use_behind_semicolon", "SELECT 1; USE {scratch}"),
        statements("use_behind_comment", "/* x */ USE {scratch}"),
        statements("use_immediate", "EXECUTE IMMEDIATE 'USE {scratch}'", family="mariadb"),
        statements("use_by_call", "CALL {db}.p_use()", family="mariadb"),
        statements(
            "collation_of_database",
            "ALTER DATABASE {db} COLLATE utf8mb4_general_ci",
            mend=("ALTER DATABASE {db} COLLATE utf8mb4_bin",),
        ),
        statements("drop_current_database", "USE {scratch}", "DROP DATABASE {scratch}", mend=again),
        statements("drop_other_database", "DROP SCHEMA {scratch}", mend=again),
        statements("drop_database_behind_semicolon", "USE {scratch}; DROP DATABASE {scratch}", mend=again),
    ]


def _blind(*texts: str) -> tuple[str, ...]:
    return ("SET session_track_state_change = 0", *texts)


def _unseen_by_server() -> list[Act]:
    """Make acts that blind the server's witness first."""
    return [
        statements("untracked_variable", *_blind("SET @a = 1")),
        statements("untracked_function", *_blind("SELECT {db}.f_set()")),
        statements("untracked_call", *_blind("CALL {db}.p_set()")),
        statements("untracked_use", *_blind("USE {scratch}")),
        statements("untracked_mode", *_blind("SET sql_mode = 'NO_BACKSLASH_ESCAPES'")),
        statements("untracked_trigger", *_blind("INSERT INTO {db}.triggered (v) VALUES (2)")),
        statements("untracked_transaction", *_blind("BEGIN", "INSERT INTO {db}.t (v) VALUES ('x')")),
    ]


def _xa() -> list[Act]:
    start = ("XA START 'fidelity_a'", "INSERT INTO {db}.t (v) VALUES ('xa')")
    end = "XA END 'fidelity_a'"
    return [
        statements("xa_start", "XA START 'fidelity_a'"),
        statements("xa_begin_insert", "XA BEGIN 'fidelity_a'", "INSERT INTO {db}.t (v) VALUES ('xa')"),
        statements("xa_end", *start, end),
        statements("xa_prepare", *start, end, "XA PREPARE 'fidelity_a'"),
        statements("xa_rollback", *start, end, "XA ROLLBACK 'fidelity_a'"),
        statements("xa_commit_one_phase", *start, end, "XA COMMIT 'fidelity_a' ONE PHASE"),
        statements(
            "xa_prepared_by_statement",
            "PREPARE fidelity_a FROM 'XA START ''fidelity_a'''",
            "EXECUTE fidelity_a",
            "INSERT INTO {db}.t (v) VALUES ('xa')",
            "XA END 'fidelity_a'",
            family="mariadb",
        ),
        statements("xa_behind_semicolon", "SELECT 1; XA START 'fidelity_a'"),
        statements("xa_by_procedure", "CALL {db}.p_xa()"),
        statements("xa_recover", "XA RECOVER"),
    ]


def _open_without_autocommit(stage: Stage) -> None:
    stage.run("SET autocommit = 0")
    stage.run("INSERT INTO {db}.t (v) VALUES ('open')")


ACTS = [
    *_variables(),
    *_user_variables(),
    *_named_locks(),
    *_objects(),
    *_of_the_account(),
    *_who_and_where(),
    *_unseen_by_server(),
    *_xa(),
    Act("insert_without_autocommit", _open_without_autocommit),
    statements(
        "several_statements", "SET @a = 1; SET NAMES latin1; SELECT 1; BEGIN; INSERT INTO {db}.t (v) VALUES ('m')"
    ),
]
