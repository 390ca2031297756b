"""Celery's database backend: results, states and groups in tables."""

from __future__ import annotations

from typing import Any

import celery
import sqlalchemy as sa
from celery import states
from celery.backends.database import DatabaseBackend
from watching import Watch, crowd


def test_results_of_many_threads(place: Any, ids: Any, few: int) -> None:
    app = celery.Celery("tools", broker="memory://", backend=f"db+{place.url}", set_as_current=False)
    app.conf.database_engine_options = place.options
    backend = app.backend
    assert isinstance(backend, DatabaseBackend)
    backend.store_result("one", {"sum": 5, "text": "Büchner"}, states.SUCCESS)
    assert app.AsyncResult("one").get(timeout=20) == {"sum": 5, "text": "Büchner"}
    assert backend.get_state("none") == states.PENDING

    backend.store_result("bad", ValueError("told"), states.FAILURE, traceback="here")
    failed = app.AsyncResult("bad")
    assert (failed.state, failed.traceback) == (states.FAILURE, "here")
    assert repr(failed.result) == "ValueError('told')"

    backend.save_group("group", app.GroupResult("group", [app.AsyncResult("one")]))
    assert [each.id for each in backend.restore_group("group").results] == ["one"]
    backend.delete_group("group")
    assert backend.restore_group("group") is None

    def work(me: int) -> int:
        total = 0
        for number in range(5):
            backend.store_result(f"{me}-{number}", me + number, states.SUCCESS)
            total += app.AsyncResult(f"{me}-{number}").get(timeout=20)
        return total

    with Watch(ids) as watch:
        assert crowd(work) == [5 * me + 10 for me in range(12)]
    assert 1 <= watch.most <= few
    assert len(watch.seen) <= few
    with place.engine().connect() as connection:
        assert connection.execute(sa.text("SELECT COUNT(*) FROM celery_taskmeta")).scalar() == 62
