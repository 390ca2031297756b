"""Stored routines, triggers and views that touch the session's state when something else is asked for."""

from __future__ import annotations

from .acts import Act, Stage, statements


def _call(name: str) -> Act:
    def perform(stage: Stage) -> None:
        with stage.lease.cursor() as cursor:
            cursor.callproc(name)
            while cursor.nextset():
                pass

    return Act(f"call_{name}", perform)


def _callproc_with_parameters(stage: Stage) -> None:
    with stage.lease.cursor() as cursor:
        cursor.callproc("p_out", ("in",))


ACTS = [
    *(
        _call(name)
        for name in (
            "p_plain",
            "p_set",
            "p_lock",
            "p_into",
            "p_role",
            "p_begin",
            "p_temporary",
            "p_prepare",
            "p_names",
            "p_insert",
            "p_results",
            "p_mode",
            "p_one_shot",
            "p_profile",
            "p_trace",
        )
    ),
    Act("callproc_with_parameters", _callproc_with_parameters),
    statements("call_with_out_variable", "CALL {db}.p_out(@out)"),
    statements("call_behind_comment", "/* x */ CALL {db}.p_lock()"),
    statements("function_sets_variable", "SELECT {db}.f_set()"),
    statements("function_sets_session_variable", "SELECT {db}.f_variable()"),
    statements("function_inserts", "SELECT {db}.f_insert()"),
    statements("function_makes_temporary_table", "SELECT {db}.f_temporary()", errors=(0, 1422)),
    statements("function_warns", "SELECT {db}.f_warn()"),
    statements("function_sets_insert_id", "SELECT {db}.f_insert_id()"),
    statements("function_sets_variable_in_insert", "INSERT INTO {db}.t (v) VALUES ({db}.f_set())"),
    statements("function_sets_variable_in_update", "UPDATE {db}.t SET v = {db}.f_set() WHERE id = 1"),
    statements("function_sets_variable_in_delete", "DELETE FROM {db}.t WHERE id = 3 + {db}.f_set()"),
    statements("function_sets_variable_in_show", "SHOW TABLES FROM {db} WHERE {db}.f_set()"),
    statements("function_sets_variable_in_do", "DO {db}.f_set()"),
    statements("function_sets_variable_then_select", "SELECT {db}.f_set()", "SELECT 1"),
    statements("function_sets_variable_then_commit", "BEGIN", "SELECT {db}.f_set()", "COMMIT"),
    statements("function_sets_role", "SELECT {db}.f_role()", family="mariadb"),
    statements("function_sets_role_in_do", "DO {db}.f_role()"),
    statements("function_sets_role_in_set", "SET @a = {db}.f_role()"),
    statements("function_sets_role_in_create", "CREATE TEMPORARY TABLE {db}.tmp AS SELECT {db}.f_role()"),
    statements("function_sets_role_in_analyze", "ANALYZE SELECT {db}.f_role()", family="mariadb"),
    statements(
        "function_sets_role_in_explain", "EXPLAIN ANALYZE SELECT {db}.f_role() FROM {db}.t", "DO 1", family="mysql"
    ),
    statements("function_sets_role_then_touch", "SELECT {db}.f_role()", "SET @a = 1"),
    statements("function_sets_role_and_fails", "SELECT {db}.f_role_signal()", errors=(1644,)),
    statements("function_takes_next_value", "SELECT {db}.f_next()", family="mariadb"),
    statements("trigger_sets_variable", "INSERT INTO {db}.triggered (v) VALUES (5)"),
    statements("trigger_in_transaction", "BEGIN", "INSERT INTO {db}.triggered (v) VALUES (6)", "ROLLBACK"),
    statements("view_sets_variable", "SELECT * FROM {db}.v_set"),
]

# Neither the text nor the server's replies show these.
HIDDEN = [
    statements("next_value_by_default", "INSERT INTO {db}.numbered (v) VALUES (1)", family="mariadb"),
    statements("next_value_in_view", "SELECT * FROM {db}.v_next", family="mariadb"),
    statements("next_value_in_trigger", "INSERT INTO {db}.numbered_late (v) VALUES (1)", family="mariadb"),
    statements("package_variable", "SELECT {db}.counter.step()", family="mariadb"),
    statements("hidden_native_lock_in_view", "SELECT * FROM {db}.v_native_lock"),
    statements("hidden_insert_id_in_view", "SELECT * FROM {db}.v_insert_id"),
    statements("hidden_resource_group_in_function", "SELECT {db}.f_group()", family="mysql"),
    statements("hidden_lock_in_function", "SELECT {db}.f_lock()"),
    statements("hidden_lock_in_view", "SELECT * FROM {db}.v_lock"),
    statements("hidden_lock_in_trigger", "INSERT INTO {db}.locking (v) VALUES (1)"),
    statements("hidden_into_in_function", "SELECT {db}.f_into()"),
    statements("hidden_into_in_view", "SELECT * FROM {db}.v_into"),
    statements("hidden_assignment_in_function", "SELECT {db}.f_assign()"),
    statements("hidden_assignment_in_insert", "INSERT INTO {db}.t (v) VALUES ({db}.f_assign())"),
    statements("hidden_role_in_function", "SELECT {db}.f_role()", family="mysql"),
]
