"""Flask-SQLAlchemy: an application with a model, asked by many clients at once."""

from __future__ import annotations

from typing import Any

import flask
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from watching import Watch, crowd

import pooled_pymysql


def make_app(place: Any) -> tuple[flask.Flask, SQLAlchemy]:
    class Base(DeclarativeBase):
        pass

    db = SQLAlchemy(model_class=Base)

    class Book(db.Model):  # type: ignore[name-defined,misc]
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str] = mapped_column(sa.String(40), unique=True)

    app = flask.Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = place.url
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = place.options
    db.init_app(app)
    with app.app_context():
        db.create_all()

    @app.post("/books/<title>")
    def add(title: str) -> tuple[dict[str, int], int]:
        book = Book(title=title)
        db.session.add(book)
        try:
            db.session.commit()
        except sa.exc.IntegrityError as error:
            db.session.rollback()
            assert isinstance(error.orig, pooled_pymysql.IntegrityError)
            return {"code": error.orig.args[0]}, 409
        return {"id": book.id}, 201

    @app.get("/books")
    def show() -> dict[str, Any]:
        titles = db.session.scalars(sa.select(Book.title).order_by(Book.title)).all()
        (mine,) = db.session.execute(sa.text("SELECT CONNECTION_ID()")).one()
        return {"titles": list(titles), "connection": mine}

    return app, db


def test_requests_share_few_connections(place: Any, ids: Any, few: int) -> None:
    app, db = make_app(place)
    client = app.test_client()
    assert client.post("/books/Büchner").status_code == 201
    again = client.post("/books/Büchner")
    assert (again.status_code, again.json) == (409, {"code": 1062})

    def visit(me: int) -> set[int]:
        own, used = app.test_client(), set()
        for number in range(5):
            assert own.post(f"/books/{me}-{number}").status_code == 201
            answer = own.get("/books").json
            assert f"{me}-{number}" in answer["titles"]
            used.add(answer["connection"])
        return used

    with Watch(ids) as watch:
        used = set().union(*crowd(visit))
    assert len(client.get("/books").json["titles"]) == 61
    assert used <= watch.seen
    assert 1 <= watch.most <= few
    assert len(watch.seen) <= few
    with app.app_context():
        db.drop_all()
        db.engine.dispose()
