"""What is compared: everything by which a program could tell a lease from a new connection."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pymysql
from pymysql.connections import Connection
from pymysql.constants import SERVER_STATUS

from .scene import LOCKS, TABLE_EVENT, Scene, answer

Probe = Callable[[Any, Scene], Any]

# Attributes that no two connections share: of these, only the type is compared.
OF_ITS_OWN = frozenset({"_result", "ctx", "salt", "server_thread_id"})

# What the next command sets before it uses it: how far was read, and the time limit that the socket has just now.
PASSING = frozenset({"_current_timeout", "_next_seq_id"})

# Session variables in which two connections differ, or may differ unseen.
NOT_COMPARED = frozenset(
    {
        "session_track_state_change",  # the pool's witness: documented
        "pseudo_thread_id",  # the connection's own id
        "timestamp",  # the time of day; the probe `clock` shows whether it stands still
        "rand_seed1",  # random; always shown as 0
        "rand_seed2",
        "statement_id",  # MySQL's running number of statements
        "gtid_executed",  # the server's, and anybody's commit moves them
        "gtid_binlog_pos",
        "gtid_binlog_state",
        "gtid_current_pos",
    }
)


def attributes(connection: Connection[Any]) -> dict[str, Any]:
    """Describe every Python attribute, before the connection is used."""
    found: dict[str, Any] = {}
    for name, value in vars(connection).items():
        if name in PASSING:
            continue
        found[name] = type(value) if name in OF_ITS_OWN else value
        if name == "_rfile":  # what reads the socket is the package's own
            found[name] = value is None
        elif name == "_sock":
            found[name] = (type(value), value.family)
            found["knows_time_limit"] = (
                getattr(connection, "_current_timeout", value.gettimeout()) == value.gettimeout()
            )
        elif isinstance(value, dict):
            found[name] = dict(value)
    found["open"] = connection.open
    found["insert_id"] = connection.insert_id()
    found["affected_rows"] = connection.affected_rows()
    found["autocommit"] = connection.get_autocommit()
    found["charset_name"] = connection.character_set_name()
    found["escaped"] = [connection.escape(value) for value in ("a'b\\c\x00\u00e9", 1, 1.5, None, b"\xff'", [1, "a"])]
    found["thread_id"] = connection.thread_id() == connection.server_thread_id[0]
    return found


# What the connection itself can ask


def _asking(sql: str) -> Probe:
    return lambda connection, scene: answer(connection, scene.fill(sql))


def _asking_all(*statements: str) -> Probe:
    return lambda connection, scene: [answer(connection, scene.fill(sql)) for sql in statements]


def session_variables(connection: Connection[Any], scene: Scene) -> Any:
    rows = answer(connection, "SHOW SESSION VARIABLES")
    return {name: value for name, value in rows if name not in NOT_COMPARED}


def user_variables(connection: Connection[Any], scene: Scene) -> Any:
    if scene.server.is_mariadb:
        return answer(connection, "SELECT * FROM information_schema.user_variables ORDER BY 1")
    mine = "performance_schema.user_variables_by_thread WHERE THREAD_ID = PS_CURRENT_THREAD_ID()"
    return answer(connection, f"SELECT VARIABLE_NAME, VARIABLE_VALUE FROM {mine} ORDER BY 1")


def warnings_of_client(connection: Connection[Any], scene: Scene) -> Any:
    return connection.show_warnings()


def clock(connection: Connection[Any], scene: Scene) -> Any:
    """Tell whether the session's time is the server's."""
    ((now,),) = answer(scene.admin, "SELECT UNIX_TIMESTAMP()")
    return answer(connection, "SELECT ABS(UNIX_TIMESTAMP() - %s) < 60", now)


def sees_uncommitted(connection: Connection[Any], scene: Scene) -> Any:
    """Tell whether the next transaction is READ UNCOMMITTED."""
    written = answer(scene.other, scene.fill("INSERT INTO {db}.dirty VALUES (1)"))
    try:
        return written, answer(connection, scene.fill("SELECT COUNT(*) FROM {db}.dirty"))
    finally:
        scene.other.rollback()


def refuses_writes(connection: Connection[Any], scene: Scene) -> Any:
    """Tell whether the next transaction is READ ONLY."""
    return answer(connection, scene.fill("UPDATE {db}.plain SET v = v WHERE FALSE"))


def locks_what_it_reads(connection: Connection[Any], scene: Scene) -> Any:
    """Tell whether the next transaction is SERIALIZABLE."""
    try:
        begun = answer(connection, "BEGIN"), answer(connection, scene.fill("SELECT v FROM {db}.plain WHERE id = 3"))
        return begun, answer(scene.other, scene.fill("SELECT v FROM {db}.plain WHERE id = 3 FOR UPDATE NOWAIT"))
    finally:
        answer(connection, "ROLLBACK")
        scene.other.rollback()


def text_comes_back(connection: Connection[Any], scene: Scene) -> Any:
    """Tell whether client and server agree on the character set and on escaping."""
    value = "\u00e9' \\ \" %"
    return answer(connection, "SELECT %s, %s, HEX(%s), LENGTH(%s)", value, value.encode(), value, value)


def sees_what_is_committed(connection: Connection[Any], scene: Scene) -> Any:
    """Tell whether it sees the tables as others do."""
    query = scene.fill("SELECT id, v FROM {db}.t UNION ALL SELECT id, v FROM {db}.plain")
    return answer(connection, query) == answer(scene.admin, query)


def row_count_by_diagnostics(connection: Connection[Any], scene: Scene) -> Any:
    return answer(connection, "GET DIAGNOSTICS @probe = ROW_COUNT"), answer(connection, "SELECT @probe")


# Those that the first statement of a lease alone can answer.
FIRST: dict[str, Probe] = {
    "found_rows": _asking("SELECT FOUND_ROWS()"),
    "row_count": _asking("SELECT ROW_COUNT()"),
    "last_insert_id": _asking("SELECT LAST_INSERT_ID(), @@session.last_insert_id, @@session.identity"),
    "warnings": _asking("SHOW WARNINGS"),
    "warnings_of_client": warnings_of_client,
    "counts": _asking("SELECT @@warning_count, @@error_count"),
    "found_rows_set": _asking_all("SET @probe = FOUND_ROWS()", "SELECT @probe"),
    "row_count_set": _asking_all("SET @probe = ROW_COUNT()", "SELECT @probe"),
    "row_count_by_diagnostics": row_count_by_diagnostics,
    "sees_uncommitted": sees_uncommitted,
    "refuses_writes": refuses_writes,
    "locks_what_it_reads": locks_what_it_reads,
}

LATER: dict[str, Probe] = {
    "identity": _asking("SELECT DATABASE(), USER(), CURRENT_USER(), CURRENT_ROLE()"),
    "in_transaction": _asking("SELECT @@in_transaction"),  # MariaDB's
    "session_variables": session_variables,
    "user_variables": user_variables,
    "clock": clock,
    "text_comes_back": text_comes_back,
    "rows": sees_what_is_committed,
    "profiles": _asking("SHOW PROFILES"),
    "traces": _asking("SELECT QUERY FROM information_schema.OPTIMIZER_TRACE"),
    "rights": _asking("SELECT 0 * COUNT(*) FROM information_schema.INNODB_TRX"),  # an error for who lacks PROCESS
    "reads_binlog": _asking(f"BINLOG '{TABLE_EVENT}'"),
    "temporary_tables": _asking_all("SELECT * FROM {db}.tmp", "SELECT * FROM {db}.tmp_2"),
    "prepared": _asking("EXECUTE fidelity_a"),
    "handlers": _asking("HANDLER fidelity_handler READ FIRST"),
    "savepoint": _asking("ROLLBACK TO SAVEPOINT fidelity"),
    "package": _asking("SELECT {db}.counter.step()"),  # MariaDB's
    "sequence": _asking("SELECT PREVIOUS VALUE FOR {db}.seq"),  # MariaDB's
}

PROBES = FIRST | LATER


# What others see of it


def seen_by_others(connection: Connection[Any], scene: Scene) -> dict[str, Any]:
    """Return what the server and a third connection tell of a connection that is between two statements."""
    thread = connection.thread_id()
    ask = partial(answer, scene.admin)
    seen: dict[str, Any] = {
        "named_locks": ask(f"SELECT {', '.join(f'IS_USED_LOCK({name!r})' for name in LOCKS)}"),
        "locked_rows": locked_rows(scene),
        "write": ask(scene.fill("UPDATE {db}.t SET v = v WHERE FALSE")),
    }
    if scene.server.is_mariadb:
        seen["in_transaction"] = is_in_transaction(scene, thread)
        # Nothing lists metadata locks: these statements need an exclusive one, and do not wait.
        locks = ("LOCK TABLES {db}.t WRITE, {db}.plain WRITE, {db}.myisam WRITE", "UNLOCK TABLES")
        seen["metadata_locks"] = [ask(scene.fill(sql)) for sql in (*locks, "ALTER FUNCTION {db}.f_plain COMMENT ''")]
    else:
        seen |= _instruments(scene, thread)
    return seen


def transaction(connection: Connection[Any], scene: Scene) -> dict[str, Any]:
    """Return what is known of a connection's transaction without running a statement in it."""
    seen = seen_by_others(connection, scene)
    known = {name: seen.get(name) for name in ("in_transaction", "transaction", "data_locks", "locked_rows")}
    return known | {"status": connection.server_status & SERVER_STATUS.SERVER_STATUS_IN_TRANS}


def locked_rows(scene: Scene) -> Any:
    """List the committed rows that somebody has locked: which rows there are is no matter of the connection's."""
    rows = answer(scene.admin, scene.fill("SELECT id FROM {db}.plain"))
    unlocked = answer(scene.admin, scene.fill("SELECT id FROM {db}.plain FOR UPDATE SKIP LOCKED"))
    if isinstance(rows, str) or isinstance(unlocked, str):
        return rows, unlocked
    return [row for row in rows if row not in unlocked]


def is_in_transaction(scene: Scene, thread: int) -> bool:
    """Tell whether InnoDB holds a transaction open for a thread; by its monitor: innodb_trx is a cache of 100 ms."""
    ((*_, text),) = answer(scene.admin, "SHOW ENGINE INNODB STATUS")
    for part in text.split("---TRANSACTION ")[1:]:
        if re.search(rf"(?:MySQL|MariaDB) thread id {thread},", part):
            return " ACTIVE" in part.splitlines()[0]
    return False


INSTRUMENTS = {
    "metadata_locks": "SELECT OBJECT_TYPE, OBJECT_SCHEMA, OBJECT_NAME, LOCK_TYPE, LOCK_DURATION"
    " FROM performance_schema.metadata_locks WHERE OWNER_THREAD_ID = %s ORDER BY 1, 2, 3, 4",
    # MySQL parts a prepared one from its session: one that is shown is of a thread that had this place before.
    "transaction": "SELECT STATE, ACCESS_MODE, ISOLATION_LEVEL, AUTOCOMMIT, XA_STATE"
    " FROM performance_schema.events_transactions_current"
    " WHERE THREAD_ID = %s AND STATE = 'ACTIVE' AND COALESCE(XA_STATE, '') <> 'PREPARED'",
    "data_locks": "SELECT OBJECT_NAME, LOCK_TYPE, LOCK_MODE FROM performance_schema.data_locks WHERE THREAD_ID = %s",
    "prepared_statements": "SELECT STATEMENT_NAME FROM performance_schema.prepared_statements_instances"
    " WHERE OWNER_THREAD_ID = %s",
}


def _instruments(scene: Scene, thread: int) -> dict[str, Any]:
    """Return what MySQL's performance schema tells of a thread."""
    query = "SELECT THREAD_ID, RESOURCE_GROUP FROM performance_schema.threads WHERE PROCESSLIST_ID = %s"
    ((number, group),) = answer(scene.admin, query, thread)
    return {"resource_group": group} | {name: answer(scene.admin, query, number) for name, query in INSTRUMENTS.items()}


# All of it


def like_new(connection: Connection[Any], scene: Scene) -> None:
    """Give a new connection the FOUND_ROWS() of a new thread.

    MariaDB keeps threads for the next connection, and does not reset this: the new one sees a stranger's count.
    """
    if scene.server.is_mariadb and connection.init_command is None:
        answer(connection, "SELECT 1")
        answer(connection, "SET @@session.autocommit = @@session.autocommit")  # makes ROW_COUNT() 0 again


def take(connection: Connection[Any], scene: Scene, names: Iterable[str], *, new: bool = False) -> dict[str, Any]:
    """Return everything, asking the probes in this order; others look after the first, when nothing is owed."""
    seen: dict[str, Any] = {"attributes": attributes(connection)}
    if new:
        like_new(connection, scene)
    # On MySQL whoever is the first to open a table after FLUSH TABLES keeps a lock of its schema for the transaction.
    answer(scene.admin, scene.fill("SELECT 1 FROM {db}.t, {db}.plain, {db}.dirty LIMIT 0"))
    for number, name in enumerate(names):
        try:
            seen[name] = PROBES[name](connection, scene)
        except pymysql.Error as error:
            seen[name] = f"error {error.args[0]}"
        if number == 0:
            seen["others"] = seen_by_others(connection, scene)
    return seen


def differences(lease: dict[str, Any], new: dict[str, Any], path: str = "") -> list[str]:
    """Return the values that differ, each by its path."""
    found = []
    for name in sorted({*lease, *new}, key=str):
        here = f"{path}{name}"
        left, right = lease.get(name, "nothing"), new.get(name, "nothing")
        if isinstance(left, dict) and isinstance(right, dict):
            found += differences(left, right, f"{here}.")
        elif left != right:
            found.append(f"{here}: {left!r} on the lease, {right!r} on a new connection")
    return found
