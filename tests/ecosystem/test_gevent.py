"""gevent under `run`: patched before this package is loaded, by the program or by gevent's own command."""

from __future__ import annotations

from typing import Any

import pytest
from servers import Server
from watching import Watch

PROGRAM = """
import sys, time
import gevent
import pymysql, sqlalchemy
import threading
assert pymysql.__name__ == "pooled_pymysql"
assert threading.Lock.__module__.startswith("gevent"), threading.Lock
assert pymysql.stock.SimpleQueue.__module__.startswith("gevent"), pymysql.stock.SimpleQueue

engine = sqlalchemy.create_engine(sys.argv[1], poolclass=sqlalchemy.NullPool, connect_args={"ssl_disabled": True})
text = sqlalchemy.text
with engine.begin() as connection:
    connection.execute(text("CREATE TABLE books (id INT AUTO_INCREMENT PRIMARY KEY, title VARCHAR(40) UNIQUE)"))
    connection.execute(text("INSERT INTO books (title) VALUES ('Woyzeck')"))
try:
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO books (title) VALUES ('Woyzeck')"))
except sqlalchemy.exc.IntegrityError as error:
    assert isinstance(error.orig, pymysql.IntegrityError)

turns = []
def tick():
    while True:
        turns.append(time.monotonic())
        gevent.sleep(0.005)
ticking = gevent.spawn(tick)

def work(me):
    for number in range(3):
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO books (title) VALUES (:title)"), {"title": f"{me}-{number}"})
            connection.execute(text("SELECT SLEEP(0.02)")).all()

tasks = [gevent.spawn(work, me) for me in range(20)]
gevent.joinall(tasks, timeout=40, raise_error=True)
assert all(task.successful() for task in tasks)
ticking.kill()
with engine.connect() as connection:
    print(connection.execute(text("SELECT COUNT(*) FROM books")).scalar(), len(turns) > 20)
"""


@pytest.mark.parametrize("through", [(), ("-m", "gevent.monkey")], ids=["program", "command"])
def test_greenlets_of_an_unedited_program_share_few_connections(
    through: tuple[str, ...], home: Server, ids: Any, run: Any
) -> None:
    text = PROGRAM if through else "from gevent import monkey; monkey.patch_all()\n" + PROGRAM
    address = f"mysql+pymysql://{home.user}:{home.password}@{home.host}:{home.port}/{home.database}"
    with Watch(ids) as watch:
        assert run(text, address, through=through).split() == ["61", "True"]
    assert 1 <= watch.most <= 3
    assert len(watch.seen) <= 3
