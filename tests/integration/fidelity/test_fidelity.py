"""A lease can't be told from a new connection, whatever the lease before it has done.

One lease performs acts and ends; the next one, on the same session if that was kept, is compared with a new connection
of plain PyMySQL made with the same arguments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pymysql
import pytest
import servers
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from proxy import Proxy
from pymysql.cursors import DictCursor
from servers import Server

from . import acts, client_acts, error_acts, snapshot, sql_acts
from .acts import Act
from .scene import Scene, a_scene, answer
from .trial import ENDINGS, Trial, close

pytestmark = [
    pytest.mark.filterwarnings("ignore:Previous unbuffered result was left incomplete"),
    pytest.mark.filterwarnings("ignore:a connection of pool .* was dropped:ResourceWarning"),
]

COVERED = acts.catalogue()
ALL = [*COVERED, *acts.hidden()]

# What the examples are drawn from for other connect arguments: what a difference in them could matter to.
VARIANTS: dict[str, dict[str, Any]] = {
    "autocommit": {"autocommit": True},
    "autocommit_of_server": {"autocommit": None},
    "no_database": {"database": None},
    "init_command": {"init_command": "SET @from_init = 1, time_zone = '+03:00'"},
    "init_use": {"init_command": "USE information_schema"},
    "init_query": {"init_command": "SELECT 1 UNION SELECT 2", "autocommit": True},
    "sql_mode": {"sql_mode": "ANSI_QUOTES,NO_BACKSLASH_ESCAPES"},
    "latin1": {"charset": "latin1"},
    "gbk": {"charset": "gbk"},
    "plain": {"client_flag": 0, "local_infile": False, "read_timeout": None, "write_timeout": None},
    "dictionaries": {"cursorclass": DictCursor, "use_unicode": True, "collation": "utf8mb4_bin"},
    "tls": {"ssl_disabled": False, "ssl": servers.unverified()},
}


@pytest.fixture(scope="module")
def scene(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with a_scene(server, tmp_path_factory.mktemp("fidelity")) as built:
        yield built


@pytest.fixture(scope="module")
def tls_scene(tls_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with a_scene(tls_server, tmp_path_factory.mktemp("fidelity")) as built:
        yield built


@pytest.fixture
def scene_of(variant: str, request: pytest.FixtureRequest) -> Scene:
    """The scene for other connect arguments."""
    scene: Scene = request.getfixturevalue("tls_scene" if variant == "tls" else "scene")
    return scene


def of_scene(scene: Scene, choice: Sequence[Act], *, costly: bool = False) -> list[Act]:
    """Return those acts that the scene's server knows, the costly ones only if asked for."""
    return [act for act in choice if act.is_of(scene) and (costly or not act.costly)]


# Every act alone


@pytest.mark.parametrize("act", COVERED, ids=str)
def test_an_act_alone_leaves_nothing_behind(scene: Scene, act: Act) -> None:
    leaves_nothing(scene, act, "auto")


@pytest.mark.parametrize("act", acts.hidden(), ids=str)
def test_a_hidden_act_leaves_nothing_behind_when_sessions_are_always_reset(scene: Scene, act: Act) -> None:
    leaves_nothing(scene, act, "always")


@pytest.mark.slow
@pytest.mark.parametrize("act", COVERED, ids=str)
def test_an_act_leaves_nothing_behind_when_sessions_are_always_reset(scene: Scene, act: Act) -> None:
    leaves_nothing(scene, act, "always")


def leaves_nothing(scene: Scene, act: Act, reset: str) -> None:
    """Assert that an act ends as it should and is not seen by the next lease."""
    if not act.is_of(scene):
        pytest.skip(f"of {act.family} alone")
    outcome = Trial(scene, reset).run([act], "close", ["last_insert_id", *snapshot.LATER])
    if outcome.differences:
        pytest.fail(str(outcome), pytrace=False)
    assert set(outcome.errors) <= set(act.errors) - {0}
    assert outcome.errors or not act.errors or 0 in act.errors
    assert outcome.kept or not act.keeps


@pytest.mark.parametrize("act", [act for act in COVERED if not act.costly], ids=str)
def test_the_first_statement_of_the_next_lease_sees_nothing_of_an_act(scene: Scene, act: Act) -> None:
    """What only a first statement can ask is asked first, once each."""
    if not act.is_of(scene):
        pytest.skip(f"of {act.family} alone")
    trial = Trial(scene, arguments={"autocommit": True})
    found = {}
    try:
        for name, probe in snapshot.FIRST.items():
            trial.perform([act])
            second = trial.lease()
            asked = probe(second, scene)
            second.close()
            expected = trial.of_new_connection([name])[name]
            if asked != expected:
                found[name] = (asked, expected)
    finally:
        trial.mend([act])
    assert not found, found


LEAVING_DEBTS = [
    act
    for act in COVERED
    if act.name
    in {
        "begin_only",
        "begin_select",
        "begin_insert",
        "insert_id_of_expression",
        "insert_id_in_transaction",
        "user_variable",
    }
]


@pytest.mark.parametrize("act", LEAVING_DEBTS, ids=str)
def test_the_first_statement_sees_nothing_of_an_act_when_replies_are_still_under_way(scene: Scene, act: Act) -> None:
    """On a slow link it is sent behind what restores the session, whose replies nobody has read yet."""
    found = {}
    with Proxy(scene.server.host, scene.server.port) as proxy:
        slow = {"autocommit": False, "host": proxy.host, "port": proxy.port}
        trial, direct = Trial(scene, arguments=slow), Trial(scene, arguments={"autocommit": False})
        try:
            for name, probe in snapshot.FIRST.items():
                proxy.delay(0)
                trial.perform([act])
                proxy.delay(0.003)
                trial.perform([act])
                second = trial.lease()
                asked = probe(second, scene)
                second.close()
                expected = direct.of_new_connection([name])[name]
                if asked != expected:
                    found[name] = (asked, expected)
        finally:
            proxy.delay(0)
            trial.mend([act])
    assert not found, found


# Sequences


def questions(first: str) -> list[str]:
    """Return all questions, this one first."""
    return [first, *snapshot.LATER, *(name for name in snapshot.FIRST if name != first)]


def examples(count: int, *, fixed: bool = True) -> settings:
    """Return settings for `count` examples; `fixed`: the same ones in every run, and not simplified when they fail."""
    return settings(
        max_examples=count,
        derandomize=fixed,
        phases=[Phase.generate] if fixed else [Phase.generate, Phase.shrink],
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def tell_apart(trial: Trial, choice: Sequence[Act], chosen: settings) -> Counter[str]:
    """Try sequences of acts, each way of ending, each first question; return how often the session was kept."""
    counts: Counter[str] = Counter()

    @chosen
    @given(
        performed=st.lists(st.sampled_from(choice), min_size=1, max_size=5),
        ending=st.sampled_from(ENDINGS),
        first=st.sampled_from(list(snapshot.FIRST)),
    )
    def example(performed: list[Act], ending: str, first: str) -> None:
        outcome = trial.run(performed, ending, questions(first))
        if outcome.differences:
            pytest.fail(f"{performed}, {ending}, {first}: {outcome}", pytrace=False)
        counts["kept" if outcome.kept else "closed"] += 1

    example()
    return counts


@pytest.mark.parametrize(("reset", "covered"), [("auto", COVERED), ("always", ALL)], ids=["auto", "always"])
def test_no_sequence_of_acts_is_seen_by_the_next_lease(scene: Scene, reset: str, covered: list[Act]) -> None:
    counts = tell_apart(Trial(scene, reset), of_scene(scene, covered), examples(40))
    assert counts["kept"] >= counts.total() // 5, counts


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("reset", "covered"), [("auto", COVERED), ("always", ALL)], ids=["auto", "always"])
def test_no_sequence_among_many_is_seen_by_the_next_lease(scene: Scene, reset: str, covered: list[Act]) -> None:
    counts = tell_apart(Trial(scene, reset), of_scene(scene, covered, costly=True), examples(2000, fixed=False))
    assert counts["kept"] >= counts.total() // 5, counts


@pytest.mark.parametrize("variant", VARIANTS)
def test_connect_arguments_make_no_difference(scene_of: Scene, variant: str) -> None:
    see_no_difference(scene_of, variant, examples(8))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("variant", VARIANTS)
def test_connect_arguments_make_no_difference_in_many_examples(scene_of: Scene, variant: str) -> None:
    see_no_difference(scene_of, variant, examples(300, fixed=False))


def see_no_difference(scene: Scene, variant: str, chosen: settings) -> None:
    """Try sequences with other connect arguments."""
    counts = tell_apart(Trial(scene, arguments=VARIANTS[variant]), of_scene(scene, COVERED), chosen)
    assert counts["kept"], counts


def test_harmless_acts_keep_the_session(scene: Scene) -> None:
    """Else the other tests would compare new sessions with new connections."""
    harmless = [act for act in of_scene(scene, COVERED) if act.keeps]
    trial = Trial(scene)
    try:
        trial.perform([])
        kept = scene.connection_ids()
        assert len(kept) == 1
        for act in harmless:
            assert trial.perform([act]) == []
            assert scene.connection_ids() == kept, act
    finally:
        trial.mend(harmless)


# What reset="rollback" promises: the transaction and the client's side

ROLLED_BACK = [act for act in (*sql_acts.ACTS, *client_acts.ACTS, *error_acts.ACTS) if not act.blocks]


def test_a_rollback_ends_the_transaction_and_what_was_done_to_the_object(scene: Scene) -> None:
    trial = Trial(scene, "rollback")
    counts: Counter[str] = Counter()

    @examples(40)
    @given(
        performed=st.lists(st.sampled_from(of_scene(scene, ROLLED_BACK)), min_size=1, max_size=5),
        ending=st.sampled_from(ENDINGS),
    )
    def example(performed: list[Act], ending: str) -> None:
        try:
            trial.perform(performed, ending)
            second, kept = trial.next_lease()
            found = snapshot.differences(what_a_rollback_restores(second, scene), of_new)
        finally:
            trial.mend(performed)
        if found:
            pytest.fail("\n".join([f"{performed}, {ending}:", *found]), pytrace=False)
        counts["kept" if kept else "closed"] += 1

    of_new = what_a_rollback_restores(trial.connect(), scene)
    example()
    assert counts["kept"] >= counts.total() // 5, counts


def what_a_rollback_restores(connection: Any, scene: Scene) -> dict[str, Any]:
    """Describe the client's side and the transaction of a connection, and close it."""
    attributes = snapshot.attributes(connection)
    connection.ping()
    described = {"attributes": attributes, "transaction": snapshot.transaction(connection, scene)}
    close(connection)
    return described


@pytest.mark.parametrize("again", [(), ("CREATE DATABASE {scratch}",)], ids=["gone", "made again"])
def test_the_pools_own_database_is_gone_when_it_was_dropped(scene: Scene, again: tuple[str, ...]) -> None:
    trial = Trial(scene, arguments={"database": scene.scratch})
    try:
        with trial.lease() as first:
            answer(first, scene.fill("DROP DATABASE {scratch}"))
        scene.manage(*again)
        assert database_of(trial.lease) == database_of(trial.connect)
    finally:
        trial.mend()
        scene.manage("CREATE DATABASE IF NOT EXISTS {scratch}")


def database_of(connect: Callable[[], Any]) -> Any:
    """Connect and return the current database, or the number of the error."""
    try:
        with connect() as connection:
            return answer(connection, "SELECT DATABASE()")
    except pymysql.Error as error:
        return error.args[0]
