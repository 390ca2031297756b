"""SQLModel: models, sessions, relationships."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlmodel import Field, Session, SQLModel, select
from watching import Watch, crowd

import pooled_pymysql


class Team(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True, max_length=40)


class Hero(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(index=True, max_length=40)
    age: int | None = None
    team_id: int | None = Field(default=None, foreign_key="team.id")


def test_models_are_written_and_read(place: Any, ids: Any, few: int) -> None:
    engine = place.engine()
    SQLModel.metadata.create_all(engine)
    with Session(engine) as session:
        team = Team(name="Dichter")
        session.add(team)
        session.commit()
        session.refresh(team)
        session.add(Hero(name="Woyzeck", age=30, team_id=team.id))
        session.commit()
        found = session.exec(select(Hero, Team).where(Hero.team_id == Team.id)).all()
        assert [(hero.name, hero.age, other.name) for hero, other in found] == [("Woyzeck", 30, "Dichter")]
        session.add(Team(name="Dichter"))
        with pytest.raises(sa.exc.IntegrityError) as caught:
            session.commit()
        assert isinstance(caught.value.orig, pooled_pymysql.IntegrityError)
        session.rollback()
        team_id = session.exec(select(Team.id)).one()

    def work(me: int) -> int:
        for number in range(5):
            with Session(engine) as session:
                session.add(Hero(name=f"{me}", age=number, team_id=team_id))
                session.commit()
        with Session(engine) as session:
            return len(session.exec(select(Hero).where(Hero.name == f"{me}")).all())

    with Watch(ids) as watch:
        assert crowd(work) == [5] * 12
    assert 1 <= watch.most <= few
    assert len(watch.seen) <= few
    SQLModel.metadata.drop_all(engine)
    engine.dispose()
