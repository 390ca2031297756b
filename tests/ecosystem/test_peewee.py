"""peewee and its playhouse, in programs that nobody edited: peewee imports `pymysql` by itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from servers import Server
from watching import Watch

MAX_SIZE = 3
THREADS = 12
PAGE = Path(__file__).parents[2] / "docs" / "tools.md"

MODELS = """
import sys, threading
import peewee, pymysql
from peewee import AutoField, CharField, IntegrityError, Model, fn
from playhouse.db_url import connect

if sys.argv[2:]:
    exec(sys.argv[2])  # brings WaitingDatabase
    from playhouse.db_url import schemes
    schemes["mysql"] = WaitingDatabase
db = connect(sys.argv[1], ssl_disabled=True)

class Book(Model):
    title = CharField(max_length=40, unique=True)
    pages = peewee.IntegerField(null=True)

    class Meta:
        database = db

def crowd(work):
    failed, start = [], threading.Barrier(12)
    def run(me):
        try:
            start.wait(30)
            work(me)
        except BaseException as error:
            failed.append(repr(error))
    threads = [threading.Thread(target=run, args=(me,)) for me in range(12)]
    for thread in threads: thread.start()
    for thread in threads: thread.join(30)
    assert not failed, failed

assert peewee.mysql.__name__ == pymysql.__name__ == "pooled_pymysql"
"""

PROGRAM = (
    MODELS
    + """
with db.connection_context():
    db.create_tables([Book])
    Book.insert_many([{"title": "Woyzeck", "pages": 50}, {"title": "100%"}]).execute()
    assert [(b.title, b.pages) for b in Book.select().order_by(Book.id)] == [("Woyzeck", 50), ("100%", None)]
    try:
        Book.create(title="Woyzeck")
    except IntegrityError as error:
        assert error.args[0] == 1062, error.args
    else:
        raise AssertionError
    try:
        with db.atomic():
            Book.create(title="undone")
            raise KeyError
    except KeyError:
        pass
    assert Book.select().where(Book.title == "undone").count() == 0

def work(me):
    for number in range(5):
        with db.connection_context():
            with db.atomic():
                Book.create(title=f"{me}-{number}", pages=number)
                with db.atomic() as inner:
                    Book.create(title=f"undone {me}-{number}")
                    inner.rollback()
            assert Book.get(Book.title == f"{me}-{number}").pages == number

crowd(work)
with db.connection_context():
    assert Book.select(fn.COUNT(Book.id), fn.SUM(Book.pages)).scalar(as_tuple=True) == (62, 170)
    db.drop_tables([Book])
print(type(db).__name__)
"""
)

FULL = (
    MODELS
    + """
where = dict(db.connect_params, database=db.database, autocommit=True)
held = [pymysql.connect(**where) for _ in range(3)]
try:
    db.connect()
except peewee.OperationalError as error:
    print(error)
assert not db.is_connection_usable()
for each in held: each.close()
with db:
    print(db.execute_sql("SELECT 42").fetchone())
"""
)

DATASET = """
import sys, pymysql
from playhouse.dataset import DataSet

data = DataSet(sys.argv[1] + "?ssl_disabled=true")
table = data["people"]
table.insert(name="Lenz", age=27)
table.insert(name="Marie", age=None)
table.update(name="Marie", age=25, columns=["name"])
with data.transaction():
    table.insert(name="Woyzeck", age=30)
assert sorted((row["name"], row["age"]) for row in table.find()) == [("Lenz", 27), ("Marie", 25), ("Woyzeck", 30)]
assert table.find_one(name="Lenz")["age"] == 27
assert table.delete(name="Lenz") == 1
try:
    data.query("SELECT * FROM nowhere")
except Exception as error:
    assert error.args[0] == 1146, error
data.close()
print(pymysql.pools()[0].stats().in_use)
"""


def url(home: Server, scheme: str = "mysql") -> str:
    return f"{scheme}://{home.user}:{home.password}@{home.host}:{home.port}/{home.database}"


# A plain MySQLDatabase holds a lock while it waits for a connection, and whoever would give one back needs that lock.
WAYS = {
    "MySQLDatabase": ("mysql", "", THREADS),
    "PooledMySQLDatabase": ("mysql+pool", f"?max_connections={MAX_SIZE}&timeout=30", MAX_SIZE),
    "WaitingDatabase": ("mysql", "", MAX_SIZE),
}


@pytest.mark.parametrize("way", WAYS)
def test_models_written_by_many_threads(way: str, home: Server, ids: Any, run: Any) -> None:
    scheme, query, size = WAYS[way]
    words = []
    if way == "WaitingDatabase":
        (recipe,) = re.findall(
            r"^```python\n(.*?WaitingDatabase.*?)^database = ", PAGE.read_text(), re.DOTALL | re.MULTILINE
        )
        words = [recipe]
    with Watch(ids) as watch:
        said = run(PROGRAM, url(home, scheme) + query, *words, through=("--max-size", str(size)))
    assert said.strip() == way
    assert 1 <= watch.most <= size
    assert len(watch.seen) <= size  # for more than 60 times that a thread connected


def test_pool_without_room_is_an_operational_error(home: Server, run: Any, few: int) -> None:
    said = run("import os; os.environ['POOLED_PYMYSQL_TIMEOUT'] = '0.1'\n" + FULL, url(home)).splitlines()
    assert f"no connection within 0.1 s (in_use={few} " in said[0]
    assert said[1:] == ["(42,)"]


def test_dataset_of_the_playhouse(home: Server, ids: Any, run: Any, few: int) -> None:
    with Watch(ids) as watch:
        assert run(DATASET, url(home)).strip() == "0"
    assert 1 <= watch.most <= few
