"""What a program does to the connection object itself, and results that it leaves unread."""

from __future__ import annotations

import contextlib
import datetime as dt
import warnings
from collections.abc import Callable
from typing import Any

import pymysql
from pymysql.constants import COMMAND, FIELD_TYPE
from pymysql.cursors import DictCursor, SSCursor, SSDictCursor

from .acts import Act, Stage

Step = Callable[[Any, Stage], object]


def act(name: str, step: Step, **options: Any) -> Act:
    """Make an act of what is done to the connection."""
    return Act(name, lambda stage: step(stage.lease, stage), **options)


def assigning(**values: Any) -> Step:
    def step(lease: Any, _stage: Stage) -> None:
        for name, value in values.items():
            setattr(lease, name, value)

    return step


def deleting(*names: str) -> Step:
    def step(lease: Any, _stage: Stage) -> None:
        for name in names:
            delattr(lease, name)

    return step


def _mutate_conversions(lease: Any, _stage: Stage) -> None:
    lease.decoders[FIELD_TYPE.LONG] = float
    lease.encoders[str] = lambda value, mapping=None: "'replaced'"
    del lease.decoders[FIELD_TYPE.DATE]
    lease.encoders.pop(dt.date)


def _clear_conversions(lease: Any, _stage: Stage) -> None:
    lease.encoders.clear()
    lease.decoders.clear()


def _mutate_maps(lease: Any, _stage: Stage) -> None:
    lease._connect_attrs["added"] = "value"
    lease._auth_plugin_map["added"] = object


def _unread(cursorclass: type, *, held: bool, rows: int = 0, big: bool = False) -> Step:
    """Run a SELECT and leave most of its rows unread, the cursor collected or not."""

    def step(lease: Any, stage: Stage) -> None:
        cursor = lease.cursor(cursorclass)
        tables = ", ".join(f"{stage.scene.db}.t AS {name}" for name in ("abcdef" if big else "a"))
        cursor.execute(f"SELECT a.* FROM {tables}")
        for _ in range(rows):
            cursor.fetchone()
        if held:
            stage.held.append(cursor)

    return step


def _unread_and_closed(lease: Any, stage: Stage) -> None:
    cursor = lease.cursor(SSCursor)
    cursor.execute(stage.scene.fill("SELECT * FROM {db}.t"))
    cursor.fetchone()
    cursor.close()


def _unread_then_next_statement(lease: Any, stage: Stage) -> None:
    cursor = lease.cursor(SSCursor)
    cursor.execute(stage.scene.fill("SELECT * FROM {db}.t"))
    cursor.fetchone()
    cursor.close()
    stage.run("INSERT INTO {db}.t (v) VALUES ('after')")


def _unbuffered_to_the_end(lease: Any, stage: Stage) -> None:
    with lease.cursor(SSDictCursor) as cursor:
        cursor.execute(stage.scene.fill("SELECT * FROM {db}.t"))
        cursor.fetchall()


def _unbuffered_function(lease: Any, stage: Stage) -> None:
    """Let the flag come with the packet that ends an unbuffered result."""
    with lease.cursor(SSCursor) as cursor:
        cursor.execute(stage.scene.fill("SELECT {db}.f_set() FROM {db}.t"))
        cursor.fetchall()


def _more_results_unread(lease: Any, stage: Stage) -> None:
    cursor = lease.cursor()
    cursor.callproc("p_results")
    stage.held.append(cursor)


def _statements_unread(lease: Any, stage: Stage) -> None:
    lease.cursor().execute(stage.scene.fill("SELECT 1; SET @unread = 1; INSERT INTO {db}.t (v) VALUES ('u')"))


def _half_sent_command(lease: Any, stage: Stage) -> None:
    lease._execute_command(COMMAND.COM_QUERY, stage.scene.fill("INSERT INTO {db}.t (v) VALUES ('unanswered')"))


def _load_local(lease: Any, stage: Stage) -> None:
    path = stage.scene.folder / "rows.txt"
    stage.run(f"LOAD DATA LOCAL INFILE '{path}' INTO TABLE {{db}}.t (v) SET v = (@loaded := v)")


def _load_local_of_nothing(lease: Any, stage: Stage) -> None:
    stage.run("LOAD DATA LOCAL INFILE '{folder}/nothing.txt' INTO TABLE {db}.t (v)")


def _prepare_binary(lease: Any, stage: Stage) -> None:
    lease._execute_command(COMMAND.COM_STMT_PREPARE, "SELECT 1")
    header = lease._read_packet().get_all_data()
    for _ in range(int.from_bytes(header[5:7], "little")):
        lease._read_packet()
    if not lease._has_tracking:
        lease._read_packet()


def _switch_multi_statements(lease: Any, stage: Stage) -> None:
    lease._execute_command(COMMAND.COM_SET_OPTION, b"\x01\x00")
    with contextlib.suppress(pymysql.MySQLError):
        lease._read_packet()


def _subclass_cursor(lease: Any, stage: Stage) -> None:
    lease.cursorclass = DictCursor
    stage.run("SELECT 1 AS a")


def _reconnect_after_kill(lease: Any, stage: Stage) -> None:
    stage.scene.manage(f"KILL {lease.thread_id()}")
    with warnings.catch_warnings():  # PyMySQL 1.2 deprecates the argument
        warnings.simplefilter("ignore", DeprecationWarning)
        lease.ping(reconnect=True)
    stage.run("SET @after_reconnect = 1")


def _connect_again(lease: Any, stage: Stage) -> None:
    stage.run("SET @before = 1")
    lease.connect()
    stage.run("SET @after = 1")


def _close_early(lease: Any, stage: Stage) -> None:
    stage.run("SET @a = 1")
    lease.close()


def _commit_methods(lease: Any, stage: Stage) -> None:
    lease.begin()
    stage.run("INSERT INTO {db}.t (v) VALUES ('begun')")
    lease.commit()
    lease.rollback()


def _begin_and_insert(lease: Any, stage: Stage) -> None:
    lease.begin()
    stage.run("INSERT INTO {db}.t (v) VALUES ('begun')")


def _autocommit_off_and_insert(lease: Any, stage: Stage) -> None:
    lease.autocommit(False)
    stage.run("INSERT INTO {db}.t (v) VALUES ('open')")


def _autocommit_off_and_back(lease: Any, stage: Stage) -> None:
    """Do as Django does for a transaction."""
    lease.autocommit(False)
    stage.run("INSERT INTO {db}.t (v) VALUES ('in a transaction')")
    lease.commit()
    lease.autocommit(True)
    stage.run("SELECT v FROM {db}.t")


def _autocommit_off_and_back_in_a_transaction(lease: Any, stage: Stage) -> None:
    lease.autocommit(False)
    stage.run("SELECT v FROM {db}.t")
    stage.run("SAVEPOINT fidelity")
    lease.autocommit(True)


def _autocommit_on_and_back(lease: Any, stage: Stage) -> None:
    lease.autocommit(True)
    stage.run("SELECT v FROM {db}.t")
    lease.begin()
    stage.run("INSERT INTO {db}.t (v) VALUES ('begun')")
    lease.autocommit(False)
    stage.run("SELECT v FROM {db}.t")
    stage.run("SAVEPOINT fidelity")


def _autocommit_and_a_variable(lease: Any, stage: Stage) -> None:
    lease.autocommit(False)
    stage.run("SET @a = 1")
    lease.autocommit(True)


def _many_cursors(lease: Any, stage: Stage) -> None:
    for _ in range(3):
        stage.held.append(lease.cursor())
    stage.held[-1].execute("SELECT 1")
    stage.held[-1].fetchall()


ACTS = [
    act("nothing", lambda lease, stage: None, keeps=True),
    act("many_cursors", _many_cursors, keeps=True),
    act("autocommit_on", lambda lease, stage: lease.autocommit(True)),
    act("autocommit_off", lambda lease, stage: lease.autocommit(False)),
    act("autocommit_off_and_insert", _autocommit_off_and_insert),
    act("autocommit_off_and_back", _autocommit_off_and_back),
    act("autocommit_off_and_back_in_a_transaction", _autocommit_off_and_back_in_a_transaction),
    act("autocommit_on_and_back", _autocommit_on_and_back),
    act("autocommit_and_a_variable", _autocommit_and_a_variable),
    act("set_charset_gbk", lambda lease, stage: lease.set_character_set("gbk")),
    act("set_charset_latin1", lambda lease, stage: lease.set_character_set("latin1", "latin1_german2_ci")),
    act(
        "set_charset_unknown", lambda lease, stage: lease.set_character_set("nothing"), errors=(1115, "AttributeError")
    ),
    act("select_db", lambda lease, stage: lease.select_db(stage.scene.scratch)),
    act("select_db_unknown", lambda lease, stage: lease.select_db("fidelity_nothing"), errors=(1049,)),
    act("begin", lambda lease, stage: lease.begin(), keeps=True),
    act("begin_and_insert_by_method", _begin_and_insert, keeps=True),
    act("commit_by_method", _commit_methods, keeps=True),
    act("ping", lambda lease, stage: lease.ping(), keeps=True),
    act("reconnect_after_kill", _reconnect_after_kill),
    act("connect_again", _connect_again),
    act("close_early", _close_early),
    act("show_warnings", lambda lease, stage: lease.show_warnings(), keeps=True),
    act("query_method", lambda lease, stage: lease.query("SET @a = 1")),
    act("query_unbuffered", lambda lease, stage: lease.query("SELECT 1 UNION SELECT 2", unbuffered=True)),
    act("escape", lambda lease, stage: (lease.escape("a'b"), lease.escape([1, "x"]), lease.escape(b"y")), keeps=True),
    act("cursorclass", _subclass_cursor, keeps=True),
    act("assign_server_facts", assigning(server_version="1.0", host_info="nowhere", protocol_version=9, salt=b"")),
    act("assign_address", assigning(host="127.0.0.9", port=1, user="nobody", password=b"wrong", db="nothing")),
    act("assign_charset", assigning(charset="latin1", encoding="cp1252", collation="latin1_swedish_ci")),
    act("assign_status", assigning(server_status=0x0200)),
    act("assign_autocommit_mode", assigning(autocommit_mode=True)),
    act("assign_client_flag", assigning(client_flag=0, server_capabilities=0, _local_infile=False)),
    act("assign_timeouts", assigning(_read_timeout=0.75, _write_timeout=0.75, connect_timeout=1)),
    act("assign_decoding", assigning(use_unicode=False, max_allowed_packet=1024, _binary_prefix=True)),
    act("assign_init", assigning(init_command="SET @init = 1", sql_mode="ANSI")),
    act("assign_conversions", assigning(encoders={}, decoders={})),
    act("add_attributes", assigning(tenant="somebody", _private=[1])),
    act("delete_attributes", deleting("host", "sql_mode", "init_command", "salt")),
    act("socket_timeout", lambda lease, stage: lease._sock.settimeout(0.75)),
    act("mutate_conversions", _mutate_conversions),
    act("clear_conversions", _clear_conversions),
    act("mutate_maps", _mutate_maps),
    act("unread_rows_held", _unread(SSCursor, held=True)),
    act("unread_rows_collected", _unread(SSCursor, held=False, rows=1)),
    act("unread_rows_of_big_result", _unread(SSDictCursor, held=True, rows=2, big=True)),
    act("unread_rows_of_big_result_collected", _unread(SSCursor, held=False, rows=2, big=True)),
    act("unread_but_closed", _unread_and_closed),
    act("unread_then_next_statement", _unread_then_next_statement),
    act("unfetched_buffered_rows", _unread(DictCursor, held=True), keeps=True),
    act("unbuffered_to_the_end", _unbuffered_to_the_end, keeps=True),
    act("unbuffered_function_sets_variable", _unbuffered_function),
    act("more_results_unread", _more_results_unread),
    act("statements_unread", _statements_unread),
    act("half_sent_command", _half_sent_command),
    act("load_local", _load_local),
    act("load_local_of_nothing", _load_local_of_nothing, errors=(1017, 2, "FileNotFoundError")),
    act("prepare_binary", _prepare_binary),
    act("switch_multi_statements", _switch_multi_statements),
]
