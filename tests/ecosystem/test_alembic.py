"""alembic: a migration environment as `alembic init` lays it out, upgraded, compared and downgraded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from watching import Watch, crowd

ENV = """
from alembic import context

engine = context.config.attributes["make_engine"]()
try:
    with engine.connect() as connection:
        context.configure(connection=connection)
        with context.begin_transaction():
            context.run_migrations()
finally:
    engine.dispose()  # else its pool stays for as long as the collector lets it
"""

FIRST = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "first", None

def upgrade():
    books = op.create_table("books", sa.Column("id", sa.Integer, primary_key=True), sa.Column("title", sa.String(40)))
    op.bulk_insert(books, [{"id": 1, "title": "Woyzeck"}, {"id": 2, "title": "100%"}])

def downgrade():
    op.drop_table("books")
"""

SECOND = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "second", "first"

def upgrade():
    op.add_column("books", sa.Column("price", sa.Numeric(6, 2), server_default="1.50"))
    op.create_index("by_title", "books", ["title"], unique=True)

def downgrade():
    op.drop_index("by_title", "books")
    op.drop_column("books", "price")
"""

BAD = """
from alembic import op

revision, down_revision = "bad", "second"

def upgrade():
    op.execute("ALTER TABLE nowhere ADD COLUMN x INT")

def downgrade():
    pass
"""


@pytest.fixture
def config(place: Any, tmp_path: Path) -> alembic.config.Config:
    """A configuration with three revisions, of which the last one fails."""
    (tmp_path / "versions").mkdir()
    (tmp_path / "env.py").write_text(ENV)
    for name, text in (("first", FIRST), ("second", SECOND), ("bad", BAD)):
        (tmp_path / "versions" / f"{name}.py").write_text(text)
    config = alembic.config.Config()
    config.set_main_option("script_location", str(tmp_path))
    config.set_main_option("path_separator", "os")
    config.attributes["make_engine"] = place.engine
    return config


def test_migrations_go_up_and_down(config: alembic.config.Config, place: Any, ids: Any, few: int) -> None:
    engine = place.engine()

    def state() -> tuple[str | None, list[str]]:
        with engine.connect() as connection:
            now = MigrationContext.configure(connection).get_current_revision()
            inspector = sa.inspect(connection)
            tables = inspector.get_table_names()
            return now, [each["name"] for each in inspector.get_columns("books")] if "books" in tables else []

    with Watch(ids) as watch:
        alembic.command.upgrade(config, "first")
        assert state() == ("first", ["id", "title"])
        alembic.command.upgrade(config, "second")
        assert state() == ("second", ["id", "title", "price"])
        with engine.connect() as connection:
            rows = connection.execute(sa.text("SELECT title, price FROM books ORDER BY id")).all()
            assert [(title, str(price)) for title, price in rows] == [("Woyzeck", "1.50"), ("100%", "1.50")]
        with pytest.raises(sa.exc.ProgrammingError):
            alembic.command.upgrade(config, "head")
        assert state() == ("second", ["id", "title", "price"])
        alembic.command.downgrade(config, "base")
        assert state() == (None, [])
    assert 1 <= watch.most <= few


def test_operations_of_many_threads(place: Any, ids: Any, few: int) -> None:
    engine = place.engine()
    metadata = sa.MetaData()
    for me in range(12):
        sa.Table(f"t{me}", metadata, sa.Column("id", sa.Integer, primary_key=True))

    def work(me: int) -> None:
        with engine.begin() as connection:
            operations = Operations(MigrationContext.configure(connection))
            operations.create_table(f"t{me}", sa.Column("id", sa.Integer, primary_key=True))
            operations.add_column(f"t{me}", sa.Column("more", sa.Integer))

    with Watch(ids) as watch:
        crowd(work)
    assert 1 <= watch.most <= few
    with engine.connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection), metadata)
    assert sorted((kind, table) for kind, _, table, _ in found) == sorted(("remove_column", f"t{n}") for n in range(12))
