"""Pool options: what they take, where they come from, and which source goes before which."""

import copy
import dataclasses
import logging
import math
import pickle
import threading
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pooled_pymysql import options
from pooled_pymysql.options import OPTION_NAMES, PoolOptions, from_mapping, from_text, resolve

few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SECONDS = ("timeout", "idle_timeout", "max_lifetime", "validate_after")
OPTIONAL = (*SECONDS, "max_waiting", "name")


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a process that has read no environment and was configured by nobody."""
    for name in OPTION_NAMES:
        monkeypatch.delenv(options.ENVIRONMENT_PREFIX + name.upper(), raising=False)
    monkeypatch.setattr(options, "_process", options._Process())


def test_defaults_are_the_documented_ones() -> None:
    assert dataclasses.asdict(PoolOptions()) == {
        "min_size": 0,
        "max_size": 100,
        "timeout": 30.0,
        "opening_limit": 8,
        "max_waiting": None,
        "idle_timeout": 600.0,
        "max_lifetime": 3600.0,
        "validate_after": 30.0,
        "reset": "auto",
        "one_write": True,
        "leak_tracking": False,
        "leak_threshold": None,
        "name": None,
    }
    assert tuple(field.name for field in dataclasses.fields(PoolOptions)) == OPTION_NAMES


def test_equal_options_are_equal_keys_whatever_number_type_was_given() -> None:
    one = PoolOptions(timeout=5, idle_timeout=-0.0)
    other = PoolOptions(timeout=5.0, idle_timeout=0)
    assert one == other
    assert hash(one) == hash(other)
    assert repr(one) == repr(other)
    assert isinstance(one.timeout, float)


def test_options_are_immutable_and_have_no_other_attributes() -> None:
    made: Any = PoolOptions()
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.max_size = 3
    assert not hasattr(made, "__dict__")


def test_copies_and_pickles_are_equal() -> None:
    made = PoolOptions(max_size=3, name="reports")
    for again in (copy.copy(made), copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert again == made
    assert dataclasses.replace(made, max_size=4) == PoolOptions(max_size=4, name="reports")


def test_options_are_keyword_only() -> None:
    with pytest.raises(TypeError, match="positional"):
        PoolOptions(5)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_size", True),
        ("min_size", 1.0),
        ("max_size", "10"),
        ("max_size", None),
        ("max_waiting", False),
        ("timeout", True),
        ("timeout", "30"),
        ("idle_timeout", b"1"),
        ("reset", None),
        ("reset", 1),
        ("one_write", 1),
        ("one_write", None),
        ("name", b"x"),
        ("name", 5),
    ],
)
def test_wrong_type_is_a_type_error_that_names_option_and_value(name: str, value: object) -> None:
    with pytest.raises(TypeError) as caught:
        from_mapping({name: value})
    assert f"pool option {name!r} takes " in str(caught.value)
    assert str(caught.value).endswith(f", not {value!r}")
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_size", -1),
        ("max_size", 0),
        ("max_size", -5),
        ("max_waiting", -1),
        *((name, value) for name in SECONDS for value in (-1, -0.5, math.nan, math.inf, -math.inf, 10**400)),
        ("reset", "sometimes"),
        ("reset", "AUTO"),
        ("name", ""),
        ("name", "two\nlines"),
        ("name", "nul\0"),
    ],
)
def test_wrong_value_is_a_value_error_that_names_option_and_value(name: str, value: object) -> None:
    with pytest.raises(ValueError) as caught:
        from_mapping({name: value})
    assert f"pool option {name!r} takes " in str(caught.value)
    assert str(caught.value).endswith(f", not {value!r}")
    assert caught.value.__context__ is None


@pytest.mark.parametrize("name", OPTIONAL)
def test_none_is_taken_where_it_means_no_limit(name: str) -> None:
    assert getattr(from_mapping({name: None}), name) is None


@pytest.mark.parametrize("name", SECONDS)
def test_zero_seconds_are_taken(name: str) -> None:
    assert getattr(from_mapping({name: 0}), name) == 0.0


def test_more_ready_than_allowed_names_both_options() -> None:
    with pytest.raises(ValueError, match=r"'min_size' \(5\) is above 'max_size' \(2\)"):
        PoolOptions(min_size=5, max_size=2)
    assert PoolOptions(min_size=2, max_size=2).min_size == 2


@pytest.mark.parametrize(
    "refuse",
    [
        lambda: PoolOptions(max_sise=5),  # type: ignore[call-arg]
        lambda: from_mapping({"max_sise": 5}),
        lambda: from_text("max_sise", "5"),
        lambda: resolve({"max_sise": 5}, {}),
        lambda: resolve(None, {"max_sise": 5}),
        lambda: options.configure(max_sise=5),
    ],
)
def test_unknown_option_is_named_with_its_neighbour_and_the_known_ones(refuse: Any) -> None:
    with pytest.raises(TypeError) as caught:
        refuse()
    text = str(caught.value)
    assert "unknown pool option 'max_sise' (did you mean 'max_size'?)" in text
    assert all(name in text for name in OPTION_NAMES)


def test_option_name_that_is_no_text_is_unknown() -> None:
    with pytest.raises(TypeError, match="unknown pool option 5;"):
        resolve({5: 5}, {})


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("max_size", "20", 20),
        ("min_size", "+1", 1),
        ("max_waiting", "0", 0),
        ("max_waiting", "none", None),
        ("timeout", "1.5", 1.5),
        ("timeout", ".5", 0.5),
        ("timeout", "2e-3", 0.002),
        ("timeout", "0", 0.0),
        ("timeout", "None", None),
        ("validate_after", "NONE", None),
        ("reset", "always", "always"),
        ("name", "reports", "reports"),
        ("name", "none", None),
        *(("one_write", text, True) for text in ("true", "True", "1", "yes", "ON")),
        *(("one_write", text, False) for text in ("false", "FALSE", "0", "no", "off")),
    ],
)
def test_text_becomes_the_type_of_its_option(name: str, text: str, value: object) -> None:
    found = from_text(name, text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("max_size", ""),
        ("max_size", "0"),
        ("max_size", "none"),
        ("max_size", "1_000"),
        ("max_size", " 5"),
        ("max_size", "५"),
        ("max_size", "1" * 5000),
        ("max_size", "2.0"),
        ("timeout", "inf"),
        ("timeout", "nan"),
        ("timeout", "1e999"),
        ("timeout", "-1"),
        ("timeout", "."),
        ("timeout", "30s"),
        ("reset", "None"),
        ("one_write", "2"),
        ("one_write", "none"),
        ("name", ""),
    ],
)
def test_bad_text_is_a_value_error_that_says_where_it_stood(name: str, text: str) -> None:
    with pytest.raises(ValueError) as caught:
        from_text(name, text, "environment variable X")
    assert str(caught.value).startswith("environment variable X takes ")
    assert str(caught.value).endswith(f", not {text!r}")
    assert caught.value.__context__ is None
    with pytest.raises(ValueError) as hidden:
        from_text(name, text, "environment variable X", show=False)
    assert "not '" not in str(hidden.value)


@few
@given(name=st.sampled_from(OPTION_NAMES), text=st.text(max_size=30))
def test_any_text_is_a_valid_value_or_a_value_error(name: str, text: str) -> None:
    try:
        value = from_text(name, text)
    except ValueError as error:
        assert error.__context__ is None
    else:
        assert getattr(from_mapping({"max_size": 10**18, name: value}), name) == value


@few
@given(
    value=st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()),
    name=st.sampled_from(OPTION_NAMES),
)
def test_any_value_is_taken_or_refused_by_name(name: str, value: object) -> None:
    try:
        made = from_mapping({"max_size": 2**70, name: value})
    except (TypeError, ValueError) as error:
        assert repr(name) in str(error)
    else:
        assert hash(made) == hash(copy.copy(made))


def test_environment_goes_before_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POOLED_PYMYSQL_MAX_SIZE", "20")
    monkeypatch.setenv("POOLED_PYMYSQL_TIMEOUT", "none")
    monkeypatch.setenv("POOLED_PYMYSQL_RESET", "")
    assert options.defaults() == PoolOptions(max_size=20, timeout=None)


def test_environment_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POOLED_PYMYSQL_MAX_SIZE", "20")
    first = options.defaults()
    monkeypatch.setenv("POOLED_PYMYSQL_MAX_SIZE", "30")
    assert options.defaults() is first


def test_bad_environment_raises_at_every_need_and_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POOLED_PYMYSQL_MAX_SIZE", "many")
    for _ in range(2):
        with pytest.raises(ValueError, match="environment variable POOLED_PYMYSQL_MAX_SIZE takes an int"):
            options.defaults()
    monkeypatch.setenv("POOLED_PYMYSQL_MAX_SIZE", "3")
    assert options.defaults().max_size == 3


def test_unknown_environment_variable_warns_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("POOLED_PYMYSQL_MAXSIZE", "20")
    with caplog.at_level(logging.WARNING, logger="pooled_pymysql"):
        assert options.defaults() == PoolOptions()
        options.defaults()
    [record] = caplog.records
    assert record.name == "pooled_pymysql"
    assert "POOLED_PYMYSQL_MAXSIZE is no pool option" in record.getMessage()
    assert "did you mean POOLED_PYMYSQL_MAX_SIZE?" in record.getMessage()
    assert "20" not in record.getMessage()


def test_configure_goes_before_the_environment_and_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POOLED_PYMYSQL_MAX_SIZE", "20")
    monkeypatch.setenv("POOLED_PYMYSQL_MIN_SIZE", "2")
    options.configure(max_size=10)
    options.configure(timeout=1)
    assert options.defaults() == PoolOptions(min_size=2, max_size=10, timeout=1.0)


def test_configure_takes_all_or_nothing() -> None:
    options.configure(min_size=5)
    with pytest.raises(ValueError, match="max_size"):
        options.configure(timeout=1, max_size=0)
    with pytest.raises(ValueError, match=r"'min_size' \(5\) is above 'max_size' \(2\)"):
        options.configure(timeout=1, max_size=2)
    assert options.defaults() == PoolOptions(min_size=5)
    options.configure(min_size=1, max_size=2)
    assert options.defaults() == PoolOptions(min_size=1, max_size=2)


def test_change_is_told_and_only_change() -> None:
    told: list[int] = []
    options.on_change(lambda: told.append(options.defaults().max_size))
    options.configure()
    options.configure(max_size=100)
    assert told == []
    options.configure(max_size=7)
    assert told == [7]


def test_configure_from_many_threads_loses_nothing() -> None:
    changes = {"min_size": 3, "max_size": 50, "timeout": 1.0, "max_waiting": 9, "name": "shared"}
    start = threading.Barrier(len(changes))

    def change(name: str, value: object) -> None:
        start.wait(5)
        options.configure(**{name: value})

    threads = [threading.Thread(target=change, args=item) for item in changes.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert options.defaults() == from_mapping(changes)


def test_lock_held_by_another_thread_at_fork_does_not_stop_the_child() -> None:
    process = options._process
    process.lock.acquire()
    process.after_fork()
    options.configure(max_size=7)
    assert options.defaults().max_size == 7


def test_argument_goes_before_dsn_and_dsn_before_defaults() -> None:
    options.configure(max_size=10, timeout=1, min_size=1)
    given = {"max_size": 20, "timeout": 2.0}
    assert resolve(None, {}) is options.defaults()
    assert resolve({}, {}) is options.defaults()
    assert resolve(None, given) == PoolOptions(max_size=20, timeout=2, min_size=1)
    assert resolve({"timeout": 3}, given) == PoolOptions(max_size=20, timeout=3, min_size=1)
    assert given == {"max_size": 20, "timeout": 2.0}


def test_options_object_is_taken_whole() -> None:
    options.configure(max_size=10)
    whole = PoolOptions(timeout=1)
    assert resolve(whole, {"max_size": 20}) is whole


def test_options_of_two_sources_are_validated_together() -> None:
    options.configure(min_size=5)
    with pytest.raises(ValueError, match=r"'min_size' \(5\) is above 'max_size' \(2\)"):
        resolve({"max_size": 2}, {})


@pytest.mark.parametrize("pool", [True, 5, 2.5, "max_size=5", [("max_size", 5)], object()])
def test_pool_argument_of_another_type_says_what_it_takes(pool: object) -> None:
    with pytest.raises(TypeError, match="pool= takes a PoolOptions, a dict of its fields, False or None"):
        resolve(pool, {})


def test_dsn_given_as_pool_is_not_shown() -> None:
    with pytest.raises(TypeError) as caught:
        resolve("mysql://app:S3cr3t@db/shop", {})
    assert "S3cr3t" not in str(caught.value)
