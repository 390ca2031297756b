"""Where the acts happen: an account, its databases, and connections that look on."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import struct
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pymysql
import servers
from pymysql.connections import Connection
from pymysql.constants import CLIENT
from pymysql.cursors import Cursor
from servers import Server

ROWS = 5
LOCKS = ("fidelity", "fidelity_2")  # names for GET_LOCK
XIDS = ("fidelity_a", "fidelity_b")


def _event(kind: int, body: bytes) -> str:
    """Make an event of a binary log, as BINLOG takes it."""
    return base64.b64encode(struct.pack("<IBIIIH", 0, kind, 1, 19 + len(body), 0, 0) + body).decode()


# A session that has read a FORMAT_DESCRIPTION_EVENT (of a 5.1 server, with the lengths of its 27 kinds of events) reads
# others in that format from then on; one that has not refuses a TABLE_MAP_EVENT, even an empty one, for want of it.
_LENGTHS = bytes.fromhex("380d0008001200040404041200005400041a080000000808080200")
FORMAT_EVENT = _event(15, struct.pack("<H50sIB", 4, b"5.1.50", 0, 19) + _LENGTHS)
TABLE_EVENT = _event(19, bytes(8))

TABLES = """
CREATE TABLE {db}.t (id INT PRIMARY KEY AUTO_INCREMENT, v VARCHAR(100)) ENGINE=InnoDB
CREATE TABLE {db}.child (id INT PRIMARY KEY, parent INT, FOREIGN KEY (parent) REFERENCES {db}.t (id)) ENGINE=InnoDB
CREATE TABLE {db}.plain (id INT PRIMARY KEY, v INT NOT NULL) ENGINE=InnoDB
CREATE TABLE {db}.myisam (id INT PRIMARY KEY AUTO_INCREMENT, v VARCHAR(100)) ENGINE=MyISAM
CREATE TABLE {db}.triggered (id INT PRIMARY KEY AUTO_INCREMENT, v INT) ENGINE=InnoDB
CREATE TABLE {db}.locking (id INT PRIMARY KEY AUTO_INCREMENT, v INT) ENGINE=InnoDB
CREATE TABLE {db}.dirty (id INT PRIMARY KEY) ENGINE=InnoDB
INSERT INTO {db}.t (v) VALUES ('one'), ('two'), ('three'), ('four'), ('five')
INSERT INTO {db}.plain VALUES (1, 10), (2, 20), (3, 30)
CREATE VIEW {db}.seen AS SELECT id, v FROM {db}.t
"""

# One a line; functions first, because views and triggers call them.
ROUTINES = """
CREATE FUNCTION {db}.f_plain() RETURNS INT NO SQL RETURN 1
CREATE FUNCTION {db}.f_set() RETURNS INT NO SQL BEGIN SET @from_function = 1; RETURN 1; END
CREATE FUNCTION {db}.f_variable() RETURNS INT NO SQL BEGIN SET SESSION sql_select_limit = 3; RETURN 1; END
CREATE FUNCTION {db}.f_signal() RETURNS INT NO SQL BEGIN SET @signalled = 1; SIGNAL SQLSTATE '45000'; RETURN 1; END
CREATE FUNCTION {db}.f_warn() RETURNS INT NO SQL BEGIN SIGNAL SQLSTATE '01000' SET MESSAGE_TEXT = 'w'; RETURN 1; END
CREATE FUNCTION {db}.f_insert() RETURNS INT DETERMINISTIC MODIFIES SQL DATA \
BEGIN INSERT INTO {db}.t (v) VALUES ('f'); RETURN 1; END
CREATE FUNCTION {db}.f_temporary() RETURNS INT DETERMINISTIC MODIFIES SQL DATA \
BEGIN CREATE TEMPORARY TABLE IF NOT EXISTS {db}.tmp (id INT); RETURN 1; END
CREATE FUNCTION {db}.f_insert_id() RETURNS BIGINT NO SQL RETURN LAST_INSERT_ID(55)
CREATE FUNCTION {db}.f_role() RETURNS INT NO SQL SQL SECURITY INVOKER BEGIN SET ROLE {role}; RETURN 1; END
CREATE FUNCTION {db}.f_lock() RETURNS INT NO SQL RETURN GET_LOCK('fidelity', 0)
CREATE FUNCTION {db}.f_into() RETURNS INT READS SQL DATA BEGIN SELECT 1 INTO @hidden_into; RETURN 1; END
CREATE FUNCTION {db}.f_assign() RETURNS INT NO SQL RETURN (@hidden_assignment := 1)
CREATE PROCEDURE {db}.p_plain() SELECT 1
CREATE PROCEDURE {db}.p_set() SET @from_procedure = 1
CREATE PROCEDURE {db}.p_lock() DO GET_LOCK('fidelity', 0)
CREATE PROCEDURE {db}.p_into() SELECT 1 INTO @from_procedure_into
CREATE PROCEDURE {db}.p_role() SQL SECURITY INVOKER SET ROLE {role}
CREATE PROCEDURE {db}.p_begin() BEGIN START TRANSACTION; INSERT INTO {db}.t (v) VALUES ('open'); END
CREATE PROCEDURE {db}.p_temporary() CREATE TEMPORARY TABLE {db}.tmp (id INT)
CREATE PROCEDURE {db}.p_prepare() BEGIN PREPARE fidelity_a FROM 'SELECT 1'; EXECUTE fidelity_a; END
CREATE PROCEDURE {db}.p_names() SET NAMES latin1
CREATE PROCEDURE {db}.p_insert() INSERT INTO {db}.t (v) VALUES ('p')
CREATE PROCEDURE {db}.p_results() BEGIN SELECT 1; SELECT 2; SELECT id FROM {db}.t; END
CREATE PROCEDURE {db}.p_signal() BEGIN SET @before_signal = 1; SELECT 1; SIGNAL SQLSTATE '45000'; END
CREATE PROCEDURE {db}.p_xa() BEGIN XA START 'fidelity_a'; INSERT INTO {db}.t (v) VALUES ('xa'); END
CREATE PROCEDURE {db}.p_mode() BEGIN SET SESSION sql_mode = 'NO_BACKSLASH_ESCAPES'; END
CREATE PROCEDURE {db}.p_one_shot() SET TRANSACTION ISOLATION LEVEL READ UNCOMMITTED
CREATE PROCEDURE {db}.p_out(OUT x INT) SET x = 7
CREATE TRIGGER {db}.on_triggered BEFORE INSERT ON {db}.triggered FOR EACH ROW SET @from_trigger = NEW.v
CREATE TRIGGER {db}.on_locking BEFORE INSERT ON {db}.locking FOR EACH ROW SET NEW.v = GET_LOCK('fidelity', 0)
CREATE FUNCTION {db}.f_role_signal() RETURNS INT NO SQL SQL SECURITY INVOKER \
BEGIN SET ROLE {role}; SIGNAL SQLSTATE '45000'; RETURN 1; END
CREATE PROCEDURE {db}.p_trace() BEGIN SET optimizer_trace = 'enabled=on'; DO (SELECT COUNT(*) FROM {db}.t); END
CREATE PROCEDURE {db}.p_profile() BEGIN SET profiling = 1; DO 1; SET profiling = 0; END
CREATE VIEW {db}.v_set AS SELECT {db}.f_set() AS x
CREATE VIEW {db}.v_lock AS SELECT {db}.f_lock() AS x
CREATE VIEW {db}.v_native_lock AS SELECT GET_LOCK('fidelity', 0) AS x
CREATE VIEW {db}.v_insert_id AS SELECT LAST_INSERT_ID(88) AS x
CREATE VIEW {db}.v_into AS SELECT {db}.f_into() AS x
"""

MARIADB_ONLY = """
CREATE SEQUENCE {db}.seq
CREATE TABLE {db}.numbered (id BIGINT DEFAULT NEXTVAL({db}.seq), v INT) ENGINE=InnoDB
CREATE PROCEDURE {db}.p_use() EXECUTE IMMEDIATE 'USE {scratch}'
CREATE FUNCTION {db}.f_next() RETURNS BIGINT DETERMINISTIC MODIFIES SQL DATA RETURN NEXTVAL({db}.seq)
CREATE VIEW {db}.v_next AS SELECT NEXTVAL({db}.seq) AS x
CREATE TABLE {db}.numbered_late (id BIGINT, v INT) ENGINE=InnoDB
CREATE TRIGGER {db}.on_numbered_late BEFORE INSERT ON {db}.numbered_late FOR EACH ROW SET NEW.id = NEXTVAL({db}.seq)
SET sql_mode = 'ORACLE'
CREATE PACKAGE {db}.counter AS FUNCTION step RETURN INT; END
CREATE PACKAGE BODY {db}.counter AS n INT := 0; FUNCTION step RETURN INT AS BEGIN n := n + 1; RETURN n; END; END
SET sql_mode = DEFAULT
"""

MYSQL_ONLY = """
CREATE FUNCTION {db}.f_group() RETURNS INT NO SQL BEGIN SET RESOURCE GROUP {resource_group}; RETURN 1; END
"""

# What any act may have done to the tables.
MEND = (
    "DELETE FROM {db}.t WHERE id > 5",
    "REPLACE INTO {db}.t VALUES (1, 'one'), (2, 'two'), (3, 'three'), (4, 'four'), (5, 'five')",
    "REPLACE INTO {db}.plain VALUES (1, 10), (2, 20), (3, 30)",
    "DELETE FROM {db}.plain WHERE id > 3",
)


def answer(connection: Connection[Any], sql: str, *args: Any) -> Any:
    """Return the rows, or the number of the error: what two servers' sessions can be compared by."""
    with connection.cursor(Cursor) as cursor:
        try:
            cursor.execute(sql, args or None)
            return cursor.fetchall()
        except pymysql.Error as error:
            return f"error {error.args[0]}"


@dataclasses.dataclass
class Scene:
    """An account of its own with two databases, one onlooker, and one who competes for locks."""

    server: Server  # its account is used by leases and by what they are compared with, and by nobody else
    admin: Connection[Any]
    other: Connection[Any]
    db: str
    scratch: str
    role: str
    resource_group: str | None
    folder: Path

    @property
    def family(self) -> str:
        return "mariadb" if self.server.is_mariadb else "mysql"

    @property
    def user(self) -> str:
        return self.server.user

    def fill(self, text: str) -> str:
        """Put this scene's names into a statement."""
        for name in ("db", "scratch", "role", "resource_group", "folder", "user"):
            text = text.replace(f"{{{name}}}", str(getattr(self, name)))
        return text

    def kwargs(self, **overrides: Any) -> dict[str, Any]:
        """Return connect arguments with which every act can be performed."""
        own: dict[str, Any] = {
            "database": self.db,
            "client_flag": CLIENT.MULTI_STATEMENTS,
            "local_infile": True,
            "read_timeout": 15,
            "write_timeout": 15,
            "ssl_disabled": True,
        }
        return self.server.kwargs(**own | overrides)

    def manage(self, *statements: str) -> None:
        """Run statements as the administrator."""
        with self.admin.cursor() as cursor:
            for statement in statements:
                cursor.execute(self.fill(statement))

    def connection_ids(self) -> set[int]:
        """List the account's connections on the server."""
        return servers.connection_ids(self.admin, self.server.user)

    def wait_for(self, ids: set[int]) -> None:
        """Wait until the account's connections are exactly these: a closed one holds its locks until it is gone."""
        servers.wait_until(lambda: self.connection_ids() == ids, 10.0, f"connections {ids} alone")

    def mend(self, *statements: str) -> None:
        """Undo what acts have done for good."""
        self.other.rollback()
        self._end_xa()
        self.manage(*statements, *MEND)

    def _end_xa(self) -> None:
        """Roll back what acts have prepared; MariaDB lets nobody do so until the session is gone."""
        for row in answer(self.admin, "XA RECOVER"):
            xid = row[3].decode() if isinstance(row[3], bytes) else row[3]
            if xid in XIDS:
                rollback = partial(answer, self.admin, f"XA ROLLBACK '{xid}'")
                servers.wait_until(lambda rollback=rollback: not rollback(), 10.0, "XA ROLLBACK")


@contextlib.contextmanager
def a_scene(server: Server, folder: Path) -> Iterator[Scene]:
    """Set up a scene, and clear it away."""
    tag = uuid.uuid4().hex[:10]
    names = {"db": f"fid_{tag}", "scratch": f"fid_s_{tag}", "role": f"fid_r_{tag}"}
    group = None if server.is_mariadb else f"fid_g_{tag}"
    user = f"fid_u_{tag}"
    own = dataclasses.replace(server, user=user, password=user, database=names["db"])
    impatient = "SET innodb_lock_wait_timeout = 1, lock_wait_timeout = " + ("0" if server.is_mariadb else "1")
    limits = {"read_timeout": 15, "write_timeout": 15}
    with (
        server.connect(autocommit=True, init_command=impatient, **limits) as admin,
        server.connect(autocommit=False, init_command=impatient, **limits) as other,
    ):
        scene = Scene(own, admin, other, resource_group=group, folder=folder, **names)
        try:
            _build(scene)
            yield scene
        finally:
            _clear(scene)


def _build(scene: Scene) -> None:
    # No server has this collation by default: a session shows the one of its database.
    scene.manage("CREATE DATABASE {db} CHARACTER SET utf8mb4 COLLATE utf8mb4_bin")
    scene.manage("CREATE DATABASE {scratch}", "CREATE ROLE {role}")
    if scene.resource_group:
        scene.manage("CREATE RESOURCE GROUP {resource_group} TYPE = USER")
    servers.create_account(scene.admin, scene.server.user, scene.server.password)
    scene.manage("GRANT SELECT ON {db}.* TO {role}", f"GRANT {{role}} TO {scene.server.user}@'%'")
    for text in (TABLES, ROUTINES, MARIADB_ONLY if scene.server.is_mariadb else MYSQL_ONLY):
        scene.manage(*text.strip().splitlines())
    (scene.folder / "rows.txt").write_text("a\nb\nc\n")
    scene.server.connect().close()  # MySQL remembers an account's first login, after which it needs no TLS


def _clear(scene: Scene) -> None:
    scene.other.rollback()
    for database in (scene.db, scene.scratch):
        scene.manage(f"DROP DATABASE IF EXISTS {database}")
    scene.manage("DROP ROLE IF EXISTS {role}", f"DROP USER IF EXISTS {scene.server.user}@'%'")
    if scene.resource_group:
        scene.manage("DROP RESOURCE GROUP {resource_group} FORCE")
