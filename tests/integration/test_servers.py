"""The servers that tests run against: what other tests take for granted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pymysql
import pytest
from pymysql.connections import Connection
from servers import PrivateServer, Server, connection_ids, wait_until


def test_account_may_do_everything(server: Server, admin: Connection[Any]) -> None:
    with admin.cursor() as cursor:
        cursor.execute("SHOW GRANTS")
        assert any("WITH GRANT OPTION" in row[0] for row in cursor.fetchall())
        cursor.execute("SELECT VERSION(), DATABASE()")
        version, database = cursor.fetchone()
    assert version.removeprefix("5.5.5-").startswith(".".join(map(str, server.version)))
    assert ("mariadb" in version.lower()) is server.is_mariadb
    assert database == server.database
    assert "password" not in repr(server)


def test_own_server_has_room_and_a_socket(server: Server, admin: Connection[Any]) -> None:
    if server.unix_socket is None:
        pytest.skip("a server that somebody else runs")
    with admin.cursor() as cursor:
        cursor.execute("SELECT @@max_connections, @@local_infile, @@bind_address")
        assert cursor.fetchone() == (1000, 1, "127.0.0.1")
    login = {"user": server.user, "password": server.password}
    with pymysql.connect(unix_socket=server.unix_socket, **login):
        pass


def test_new_database_is_empty(database: str, admin: Connection[Any]) -> None:
    admin.select_db(database)
    with admin.cursor() as cursor:
        assert cursor.execute("SHOW TABLES") == 0


def test_account_sees_its_own_connections_only(account: Server, connection_ids: Callable[..., set[int]]) -> None:
    assert connection_ids(account.user) == set()
    with pymysql.connect(**account.kwargs()) as connection:
        assert connection_ids(account.user) == {connection.thread_id()}
    wait_until(lambda: not connection_ids(account.user), what="the end of the connection")


def test_private_server_survives_kill_and_pause(tmp_path: Path) -> None:
    with PrivateServer(tmp_path / "server", "--max-connections=11") as private:
        connection = private.server.connect(read_timeout=1)
        with private.paused(), pytest.raises(pymysql.err.OperationalError, match="timed out"):
            connection.ping(reconnect=False)
        private.kill()
        with pytest.raises(pymysql.err.OperationalError):
            private.server.connect()
        private.start()
        private.restart("--max-connections=12")
        with private.server.connect() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT @@max_connections")
            assert cursor.fetchone() == (12,)
            assert connection_ids(connection) == set()
    assert not private.folder.exists()
