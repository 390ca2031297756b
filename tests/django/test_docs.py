"""The examples of docs/django.md run as they stand, with only the address changed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from servers import Server

import pooled_pymysql

from .aliases import ask
from .programs import run_program

PAGE = Path(__file__).parents[2] / "docs" / "django.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
SETTINGS = [text for text in EXAMPLES if '"pooled_pymysql.django"' in text]
(CODE,) = [text for text in EXAMPLES if "from django.db import connection" in text]
(INSTALLING,) = [text for text in EXAMPLES if "install_as_MySQLdb" in text]


def settings_of(text: str, server: Server) -> dict[str, Any]:
    """Run an example of settings, and give its alias with the server's address."""
    found: dict[str, Any] = {}
    exec(compile(with_address(text, server), "docs/django.md", "exec"), found)
    alias = found["DATABASES"]["default"]
    return {**alias, "PORT": server.port, "OPTIONS": {**alias["OPTIONS"], "ssl_disabled": True}}


def with_address(text: str, server: Server) -> str:
    own = {"db.example": server.host, "app": server.user, "secret": server.password, "shop": server.database}
    for example, value in own.items():
        assert f'"{example}"' in text
        text = text.replace(f'"{example}"', repr(value))
    return text


def test_every_example_is_run() -> None:
    assert len(EXAMPLES) == len(SETTINGS) + 2 == 4


@pytest.mark.parametrize("text", SETTINGS, ids=["first", "options"])
def test_settings(use: Any, account: Server, text: str) -> None:
    alias = settings_of(text, account)
    connection = use(account, **alias)
    assert ask(connection, "SELECT DATABASE()") == account.database
    assert connection.pool.name == "django:default"
    if "20" in text:
        assert connection.pool.options.max_size == 20
        assert ask(connection, "SELECT @@sql_mode") == "STRICT_ALL_TABLES"


def test_asking_and_closing(use: Any, account: Server) -> None:
    use(options={"pool": True})
    exec(compile(CODE, "docs/django.md", "exec"), {})
    assert pooled_pymysql.pools() == []


def test_installing(account: Server) -> None:
    run_program(
        f"""
{with_address(INSTALLING, account)}
alias = DATABASES["default"]
alias.update(PORT={account.port}, OPTIONS={{**alias["OPTIONS"], "ssl_disabled": True}})
settings.configure(DATABASES=DATABASES)
django.setup()
from django.db import connection
own = ask(connection)
assert type(connection.connection) is pooled_pymysql.Connection
connection.close()
assert ask(connection) == own
assert pooled_pymysql.pools()[0].options.max_size == 20
connection.close()
""",
        account,
    )


def test_a_plain_request_sends_five_statements_after_a_login(use: Any, account: Server) -> None:
    """The page says so."""
    from proxy import Proxy

    text = PAGE.read_text()
    assert "sends its one statement" in text and "it sends five, after a login" in text
    with Proxy(account.host, account.port) as proxy:
        run_program(
            f"""
import pymysql
pymysql.version_info = (2, 2, 8, "final", 1)
pymysql.install_as_MySQLdb()
set_up(default={{**DJANGOS, "PORT": {proxy.port}}})
from django.db import connection
for answer in ("1", "2"):
    assert ask(connection, "SELECT " + answer) == int(answer)
    connection.close()
""",
            account,
        )
        second = proxy.statements()[proxy.statements().index("SELECT 1") + 1 :]
        assert len(second) == 5 and second[-1] == "SELECT 2"
