"""pandas, through SQLAlchemy and on a DB-API connection."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pandas as pd
import pytest
import sqlalchemy
from servers import Server
from watching import Watch, crowd

import pooled_pymysql

FRAME = pd.DataFrame(
    {
        "id": [1, 2, 3],
        "name": ["Büchner", "北京", "100%"],
        "price": [7.5, 1.25, None],
        "day": pd.to_datetime(["2024-02-29", "2024-03-01", "2024-03-02"]),
    }
)


def test_frames_go_to_the_server_and_back(place: Any, ids: Any, few: int) -> None:
    engine = place.engine()
    assert FRAME.to_sql("books", engine, index=False) == 3
    found = pd.read_sql("SELECT * FROM books ORDER BY id", engine)
    pd.testing.assert_frame_equal(found, FRAME, check_dtype=False)
    assert found["day"].dt.date.tolist()[0] == dt.date(2024, 2, 29)

    named = pd.read_sql(sqlalchemy.text("SELECT name FROM books WHERE id > :id"), engine, params={"id": 1})
    assert named["name"].tolist() == ["北京", "100%"]
    with pytest.raises(ValueError, match="already exists"):
        FRAME.to_sql("books", engine, index=False)
    assert pd.read_sql_table("books", engine).shape == (3, 4)
    with pytest.raises(pd.errors.DatabaseError, match="nowhere") as caught:
        pd.read_sql("SELECT * FROM nowhere", engine)
    assert isinstance(caught.value.__cause__, sqlalchemy.exc.ProgrammingError)
    assert isinstance(caught.value.__cause__.orig, pooled_pymysql.ProgrammingError)

    def work(me: int) -> int:
        FRAME.assign(id=FRAME["id"] + 10 * me).to_sql(f"books_{me}", engine, index=False)
        total = 0
        with engine.connect().execution_options(stream_results=True) as connection:
            for part in pd.read_sql(f"SELECT id FROM books_{me}", connection, chunksize=2):
                total += int(part["id"].sum())
        return total

    with Watch(ids) as watch:
        assert crowd(work) == [6 + 30 * me for me in range(12)]
    assert 1 <= watch.most <= few
    assert len(watch.seen) <= few
    engine.dispose()


@pytest.mark.filterwarnings("ignore:pandas only supports SQLAlchemy connectable:UserWarning")
def test_frames_from_a_dbapi_connection(home: Server, ids: Any, few: int) -> None:
    arguments = home.kwargs(ssl_disabled=True)
    with pooled_pymysql.connect(**arguments) as connection:
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE books (id INT PRIMARY KEY, name VARCHAR(20), price DOUBLE)")
            rows = FRAME[["id", "name", "price"]].astype(object).where(FRAME.notna(), None)
            cursor.executemany("INSERT INTO books VALUES (%s, %s, %s)", rows.values.tolist())
        connection.commit()
        found = pd.read_sql("SELECT id, name, price FROM books WHERE id <> %s ORDER BY id", connection, params=(9,))
        pd.testing.assert_frame_equal(found, FRAME[["id", "name", "price"]], check_dtype=False)
        with pytest.raises(pooled_pymysql.ProgrammingError, match="nowhere"):  # pandas wraps sqlite3's errors alone
            pd.read_sql("SELECT * FROM nowhere", connection)

    def work(me: int) -> int:
        with pooled_pymysql.connect(**arguments) as connection:
            found = pd.read_sql("SELECT id + %s AS n FROM books", connection, params=(me,))
            return int(found["n"].sum())

    with Watch(ids) as watch:
        assert crowd(work) == [6 + 3 * me for me in range(12)]
    assert 1 <= watch.most <= few
    (pool,) = pooled_pymysql.pools()
    assert (pool.stats().leases, pool.stats().in_use) == (13, 0)
