"""aiosql: queries kept in SQL files, on the connections of a pool."""

from __future__ import annotations

from typing import Any

import aiosql
import pytest
from servers import Server
from watching import Watch, crowd

import pooled_pymysql

QUERIES = """
-- name: create_books()#
CREATE TABLE books (id INT AUTO_INCREMENT PRIMARY KEY, title VARCHAR(40) UNIQUE);

-- name: add_book(title)!
INSERT INTO books (title) VALUES (:title);

-- name: add_book_with_id(title)<!
INSERT INTO books (title) VALUES (:title) RETURNING id;

-- name: add_books(title)*!
INSERT INTO books (title) VALUES (:title);

-- name: titles()
SELECT id, title FROM books ORDER BY id;

-- name: count_books()$
SELECT COUNT(*) FROM books;

-- name: rename_book(new, old)!
UPDATE books SET title = :new WHERE title = :old;
"""


def test_queries_on_pooled_connections(home: Server, ids: Any, few: int) -> None:
    queries: Any = aiosql.from_str(QUERIES, "pymysql")
    arguments = home.kwargs(ssl_disabled=True)
    with pooled_pymysql.connect(**arguments) as connection:
        queries.create_books(connection)
        assert queries.add_book(connection, title="Woyzeck") == 1
        queries.add_books(connection, [{"title": "Lenz"}, {"title": "100%"}])
        connection.commit()
        assert list(queries.titles(connection)) == [(1, "Woyzeck"), (2, "Lenz"), (3, "100%")]
        assert queries.rename_book(connection, old="Lenz", new="Leonce") == 1
        if home.is_mariadb:  # MySQL has no RETURNING
            assert queries.add_book_with_id(connection, title="Marie") == 4
        with pytest.raises(pooled_pymysql.IntegrityError):
            queries.add_book(connection, title="Woyzeck")
    with pooled_pymysql.connect(**arguments) as connection:
        assert queries.count_books(connection) == 3  # the rest was never committed
        assert [title for _, title in queries.titles(connection)] == ["Woyzeck", "Lenz", "100%"]

    def work(me: int) -> int:
        for number in range(5):
            with pooled_pymysql.connect(**arguments) as connection:
                queries.add_book(connection, title=f"{me}-{number}")
                connection.commit()
        with pooled_pymysql.connect(**arguments) as connection:
            return int(queries.count_books(connection))

    with Watch(ids) as watch:
        assert max(crowd(work)) == 63
    assert 1 <= watch.most <= few
    assert len(watch.seen) <= few
