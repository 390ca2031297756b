"""Our backend beside Django's own, with and without a MySQLdb: neither disturbs the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from servers import Server

from .programs import run_program

# Another driver by that name, which is not ours.
MYSQLCLIENT = """
import pymysql
pymysql.version_info = (2, 2, 8, "final", 1)
pymysql.install_as_MySQLdb()
"""


def test_without_any_mysqldb_ours_works_and_leaves_nothing_behind(server: Server) -> None:
    run_program(
        """
set_up(default=OURS, other=DJANGOS)
from django.db import connections
assert ask(connections["default"], "SELECT 7") == 7
left = [name for name in sys.modules if name.startswith("MySQLdb") or name == "django.db.backends.mysql.base"]
assert left == [], left
for _ in range(2):
    try:
        ask(connections["other"])
    except ImproperlyConfigured as error:
        assert "mysqlclient" in str(error)
    else:
        raise AssertionError("a driver that is not there was found")
    assert ask(connections["default"], "SELECT 8") == 8
import pymysql
assert ask.__module__ == "__main__" and sys.modules["pymysql"] is pymysql and pymysql.__name__ == "pymysql"
""",
        server,
    )


@pytest.mark.parametrize("order", ["('ours', 'djangos')", "('djangos', 'ours')"])
def test_two_aliases_each_use_their_own_driver(server: Server, order: str) -> None:
    run_program(
        f"""{MYSQLCLIENT}
import MySQLdb, pooled_pymysql
set_up(default=OURS, ours=OURS, djangos=DJANGOS)
from django.db import IntegrityError, connections
kinds = {{"ours": pooled_pymysql.Connection, "djangos": pymysql.connections.Connection}}
for alias in {order}:
    connection = connections[alias]
    own = ask(connection)
    assert type(connection.connection) is kinds[alias]
    assert connection.is_usable()
    connection.close()
    assert (ask(connection) == own) is (alias == "ours")  # one pools, the other does not
    with connection.cursor() as cursor:
        try:
            cursor.execute("SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = 4025, MESSAGE_TEXT = 'no'")
        except IntegrityError:
            pass
        else:
            raise AssertionError("no error")
assert sys.modules["MySQLdb"] is MySQLdb is pymysql
assert connections["djangos"].Database is pymysql and connections["ours"].Database is pooled_pymysql
assert isinstance(connections["ours"], type(connections["djangos"]))
connections.close_all()
""",
        server,
    )


def test_a_mysqldb_that_django_refuses_does_not_matter_to_ours(server: Server) -> None:
    run_program(
        f"""{MYSQLCLIENT}
pymysql.version_info = (1, 3, 0, "final", 0)
set_up(default=OURS, other=DJANGOS)
from django.db import connections
assert ask(connections["default"], "SELECT 7") == 7
assert sys.modules["MySQLdb"] is pymysql
try:
    connections["other"]
except ImproperlyConfigured as error:
    assert "or newer is required" in str(error)
else:
    raise AssertionError("an old driver was accepted")
connections.close_all()
""",
        server,
    )


def test_another_drivers_conversions_are_not_ours(server: Server) -> None:
    run_program(
        f"""{MYSQLCLIENT}
from types import ModuleType
sys.modules["MySQLdb.converters"] = ModuleType("MySQLdb.converters")
sys.modules["MySQLdb.converters"].conversions = {{}}
set_up(default=OURS)
import datetime
from django.db import connection
assert ask(connection, "SELECT CAST('2020-02-03' AS DATE)") == datetime.date(2020, 2, 3)
assert ask(connection, "SELECT CAST('10:20:30' AS TIME)") == datetime.time(10, 20, 30)
connection.close()
""",
        server,
    )


def test_installed_as_mysqldb_we_serve_django_s_own_backend(server: Server) -> None:
    run_program(
        """
import pooled_pymysql
pooled_pymysql.install_as_MySQLdb()
set_up(default={**DJANGOS, "OPTIONS": {**ALIASES["default"]["OPTIONS"], "pool": {"max_size": 2, "name": "mine"}}},
       ours=OURS)
from django.db import connections
connection = connections["default"]
own = ask(connection)
assert type(connection.connection) is pooled_pymysql.Connection
connection.close()
assert ask(connection) == own
assert ask(connections["ours"]) != own
assert sorted(pool.name for pool in pooled_pymysql.pools()) == ["django:ours", "mine"]
assert isinstance(connections["ours"], type(connection))
connections.close_all()
""",
        server,
    )


def test_we_know_which_modules_of_django_import_the_driver() -> None:
    from django.db.backends import mysql

    folder = Path(mysql.__path__[0])
    imports = re.compile(r"^\s*(import|from) MySQLdb", re.MULTILINE)
    found = [path.stem for path in folder.glob("*.py") if imports.search(path.read_text())]
    from pooled_pymysql.django.mysql import _IMPORT_THE_DRIVER

    assert sorted(found) == sorted(_IMPORT_THE_DRIVER)


def test_nothing_of_ours_imports_django_unasked(server: Server) -> None:
    run_program(
        """
for name in [name for name in sys.modules if name.partition(".")[0] == "django"]:
    del sys.modules[name]
import pooled_pymysql
import pooled_pymysql.django
assert not [name for name in sys.modules if name.partition(".")[0] == "django"]
""",
        server,
    )
