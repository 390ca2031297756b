"""The README's examples run as they stand, with only the address changed."""

import re
from pathlib import Path

import pytest
from servers import Server

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs" / "sizing.md"]
EXAMPLES = [
    pytest.param(text, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, text in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE), 1)
]


def with_address(text: str, server: Server) -> str:
    """Put the test server in the place of the examples' one."""
    text = text.replace("mysql://app:secret@db.example/shop", server.dsn())
    keywords = 'host="db.example", user="app", password="secret", database="shop"'
    return text.replace(keywords, ", ".join(f"{name}={value!r}" for name, value in server.kwargs().items()))


@pytest.mark.parametrize("text", EXAMPLES)
def test_example_runs(text: str, server: Server) -> None:
    changed = with_address(text, server)
    assert changed != text, "an example that names no server shows nothing"
    exec(compile(changed, "README", "exec"), {})


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3
