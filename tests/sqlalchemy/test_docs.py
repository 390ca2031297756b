"""The examples of docs/sqlalchemy.md run as they stand, with only the address changed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from servers import Server

PAGE = Path(__file__).parents[2] / "docs" / "sqlalchemy.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example_runs(number: int, account: Server) -> None:
    where = f"@{account.host}:{account.port}/{account.database}"
    changed = EXAMPLES[number].replace("@db.example/shop", where)
    assert changed != EXAMPLES[number], "an example that names no server shows nothing"
    changed = changed.replace("app:secret@", f"{account.user}:{account.password}@")
    changed = changed.replace("://app@", f"://{account.user}@").replace('"secret"', repr(account.password))
    exec(compile(changed, str(PAGE), "exec"), {})


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 4
