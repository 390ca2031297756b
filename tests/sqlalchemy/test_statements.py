"""What statements do through the dialect: row counts, streaming, isolation levels, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pymysql
import pytest
from proxy import Proxy
from pymysql.cursors import SSCursor
from sqlalchemy import Integer, String, column, exc, select, text
from sqlalchemy import table as table_of
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

QUERY = 3
RESET = 0x1F
MakeEngine = Callable[..., Any]


@pytest.fixture
def level(server: Any) -> Any:
    """The statement that asks for the isolation level."""
    return text("SELECT @@tx_isolation" if server.is_mariadb else "SELECT @@transaction_isolation")


def queries(proxy: Proxy) -> list[str]:
    return [payload.decode() for code, payload in proxy.commands if code == QUERY]


def test_rows_that_an_update_found_are_counted(make_engine: MakeEngine, table: str) -> None:
    with make_engine().begin() as connection:
        same = text(f"UPDATE {table} SET size = 10 WHERE id IN (1, 2)")
        assert connection.execute(same).rowcount == 2  # of which it changed none


def test_streaming_reads_row_by_row(make_engine: MakeEngine, table: str) -> None:
    engine = make_engine()
    things = table_of(table.partition(".")[2], column("id"), schema=table.partition(".")[0])
    with engine.connect() as connection:
        result = connection.execution_options(stream_results=True, max_row_buffer=1).execute(
            select(things).order_by("id")
        )
        assert isinstance(result.cursor, SSCursor)
        assert result.fetchone() == (1,)
        result.close()
        assert connection.execute(select(things).order_by("id")).all() == [(1,), (2,), (3,)]
    # One that is left in the middle is told of as PyMySQL does, and leaves nothing to the next checkout.
    connection = engine.connect()
    result = connection.execution_options(yield_per=1).execute(select(things).order_by("id"))
    assert next(iter(result)) == (1,)
    with pytest.warns(UserWarning, match="left incomplete"):
        connection.close()
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT 7")) == 7


@pytest.mark.parametrize("name", ["READ COMMITTED", "read_uncommitted", "SERIALIZABLE", "REPEATABLE READ"])
def test_an_engines_isolation_level_is_the_sessions(
    make_engine: MakeEngine, proxy: Proxy, level: Any, name: str
) -> None:
    engine = make_engine(port=proxy.port, isolation_level=name)
    expected = name.upper().replace("_", "-").replace(" ", "-")
    for _ in range(2):
        with engine.connect() as connection:
            assert connection.scalar(level) == expected
            assert connection.default_isolation_level == expected.replace("-", " ")
            connection.execute(text("SET @touched = 1"))
    engine.connect().close()  # once what restored the session has passed
    proxy.clear()
    with engine.connect() as connection:
        assert connection.scalar(level) == expected
    assert queries(proxy) == [level.text, "ROLLBACK"]  # the level is not set again


def test_an_engine_may_autocommit(make_engine: MakeEngine, proxy: Proxy, table: str) -> None:
    engine = make_engine(port=proxy.port, isolation_level="AUTOCOMMIT")
    for _ in range(2):
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT @@autocommit")) == 1
            connection.execute(text("SET @touched = 1"))
    engine.connect().close()  # once what restored the session has passed
    proxy.clear()
    with engine.connect() as connection:
        connection.execute(text(f"UPDATE {table} SET size = 0"))
    assert queries(proxy) == [f"UPDATE {table} SET size = 0", "ROLLBACK"]
    with engine.connect() as connection:
        assert connection.scalar(text(f"SELECT MAX(size) FROM {table}")) == 0


def test_an_init_command_does_not_cost_the_isolation_level(make_engine: MakeEngine, level: Any) -> None:
    engine = make_engine(isolation_level="READ COMMITTED", connect_args={"init_command": "SET @mine = 1"})
    for _ in range(2):
        with engine.connect() as connection:
            assert connection.scalar(level) == "READ-COMMITTED"
            assert connection.scalar(text("SELECT @mine")) == 1


def test_a_wrong_isolation_level_is_told(make_engine: MakeEngine) -> None:
    with pytest.raises(exc.ArgumentError, match="Invalid value 'SNAPSHOT' for isolation_level"):
        make_engine(isolation_level="SNAPSHOT").connect()


@pytest.mark.parametrize("reset", ["auto", "always", "rollback"])
def test_a_connections_isolation_level_ends_with_its_checkout(
    make_engine: MakeEngine, level: Any, table: str, reset: str
) -> None:
    engine = make_engine(f"?pool_reset={reset}")
    with engine.connect() as connection:
        assert connection.scalar(level) == "REPEATABLE-READ"
    for wanted in ("SERIALIZABLE", "AUTOCOMMIT", "READ COMMITTED"):
        with engine.connect().execution_options(isolation_level=wanted) as connection:
            if wanted == "AUTOCOMMIT":
                assert connection.scalar(text("SELECT @@autocommit")) == 1
                connection.execute(text(f"UPDATE {table} SET size = size + 1 WHERE id = 1"))
            else:
                assert connection.scalar(level) == wanted.replace(" ", "-")
            assert connection.get_isolation_level() == (wanted if wanted != "AUTOCOMMIT" else "REPEATABLE READ")
        with engine.connect() as connection:
            assert connection.scalar(level) == "REPEATABLE-READ"
            assert connection.scalar(text("SELECT @@autocommit")) == 0
            assert connection.scalar(text(f"SELECT size FROM {table} WHERE id = 1")) in (10, 11)
    assert engine.pool.pools()[0].stats().opened == 1


def test_undoing_an_isolation_level_waits_for_nothing(make_engine: MakeEngine, proxy: Proxy) -> None:
    engine = make_engine(port=proxy.port)
    engine.connect().close()
    proxy.clear()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.scalar(text("SELECT 1"))
    said = queries(proxy)
    assert said[:3] == ["SET AUTOCOMMIT = 1", "SELECT 1", "ROLLBACK"]
    assert not any("ISOLATION" in words for words in said)
    engine.connect().close()
    assert [code for code, _ in proxy.commands].count(RESET) == 1


def test_an_engine_for_autocommit_beside_the_one_for_transactions(make_engine: MakeEngine, table: str) -> None:
    engine = make_engine()
    direct = engine.execution_options(isolation_level="AUTOCOMMIT")
    assert direct.pool is engine.pool
    with direct.connect() as connection:
        connection.execute(text(f"UPDATE {table} SET size = 1 WHERE id = 1"))
    with engine.connect() as connection:
        connection.execute(text(f"UPDATE {table} SET size = 2 WHERE id = 1"))
    with direct.connect() as connection:
        assert connection.scalar(text(f"SELECT size FROM {table} WHERE id = 1")) == 1


def test_the_servers_errors_are_sqlalchemys(make_engine: MakeEngine, table: str) -> None:
    engine = make_engine()
    for statement, kind, code in (
        (f"INSERT INTO {table} VALUES (1, 1)", exc.IntegrityError, 1062),
        ("SELECT * FROM no_such_table", exc.ProgrammingError, 1146),
        (f"INSERT INTO {table} VALUES (9, NULL)", exc.IntegrityError, 1048),
        ("SELECT 1 FROM", exc.ProgrammingError, 1064),
    ):
        with engine.connect() as connection, pytest.raises(kind) as told:
            connection.execute(text(statement))
        assert isinstance(told.value.orig, pymysql.err.MySQLError)
        assert told.value.orig.args[0] == code
        assert not told.value.connection_invalidated
    assert engine.pool.pools()[0].stats().opened == 1


class Base(DeclarativeBase):
    """The models of this module."""


class Person(Base):
    """A row with a generated key."""

    __tablename__ = "people"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(String(50), unique=True)


def test_the_orm(make_engine: MakeEngine, database: str) -> None:
    engine = make_engine().execution_options(schema_translate_map={None: database})
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add_all([Person(name=name) for name in ("ada", "grace", "barbara")])
    with Session(engine) as session:
        people = session.scalars(select(Person).order_by(Person.name)).all()
        assert [person.name for person in people] == ["ada", "barbara", "grace"]
        assert len({person.id for person in people}) == 3
        people[0].name = "augusta"
        session.rollback()
    with Session(engine) as session:
        session.add(Person(name="ada"))
        with pytest.raises(exc.IntegrityError):
            session.commit()
    with Session(engine) as session, session.begin():
        session.delete(session.scalars(select(Person).where(Person.name == "grace")).one())
    with Session(engine) as session:
        assert session.scalars(select(Person.name).order_by(Person.name)).all() == ["ada", "barbara"]


def test_two_phase_transactions(make_engine: MakeEngine, table: str) -> None:
    engine = make_engine()
    with engine.connect() as connection:
        transaction = connection.begin_twophase()
        connection.execute(text(f"UPDATE {table} SET size = 5 WHERE id = 1"))
        transaction.prepare()
        transaction.commit()
    with engine.connect() as connection:
        assert connection.scalar(text(f"SELECT size FROM {table} WHERE id = 1")) == 5
