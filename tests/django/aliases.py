"""The settings of aliases, and questions to their connections."""

from __future__ import annotations

from typing import Any

from servers import Server

ENGINE = "pooled_pymysql.django"


def database(server: Server, options: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """Give the settings of one alias."""
    place = {name.upper(): getattr(server, name) for name in ("host", "port", "user", "password")}
    given = {"ENGINE": ENGINE, "NAME": server.database, **place, "OPTIONS": {"ssl_disabled": True, **options}}
    return given | settings


def ask(connection: Any, sql: str, args: Any = None) -> Any:
    """Give the one value that a statement returns."""
    with connection.cursor() as cursor:
        cursor.execute(sql, args)
        return cursor.fetchone()[0]


def run(connection: Any, sql: str, args: Any = None) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, args)


def session_id(connection: Any) -> int:
    return int(ask(connection, "SELECT CONNECTION_ID()"))
