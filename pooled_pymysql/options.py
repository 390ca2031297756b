"""Validate pool options and keep the defaults of this process."""

import logging
import math
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, Self, cast

__all__ = [
    "ENVIRONMENT_PREFIX",
    "OPTION_NAMES",
    "PoolOptions",
    "Reset",
    "check_at_least",
    "configure",
    "defaults",
    "from_environment",
    "from_mapping",
    "from_text",
    "on_change",
    "parse_flag",
    "parse_integer",
    "parse_number",
    "resolve",
    "suggest",
    "takes",
]

Reset = Literal["auto", "always", "rollback"]

ENVIRONMENT_PREFIX = "POOLED_PYMYSQL_"

_logger = logging.getLogger("pooled_pymysql")

_RESETS = ("auto", "always", "rollback")
_FLAGS = {
    "true": True,
    "1": True,
    "yes": True,
    "on": True,
    "false": False,
    "0": False,
    "no": False,
    "off": False,
}
# int() and float() also take underscores, blanks and the digits of every script, and quote what they refuse.
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})(?:[eE][+-]?[0-9]{1,3})?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def suggest(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the known name nearest to `name`, or nothing."""
    near = nearest(name.lower(), known)
    return f" (did you mean {near!r}?)" if near else ""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name nearest to `name`, or None if none is near."""
    from difflib import get_close_matches

    return next(iter(get_close_matches(name, list(known), n=1)), None)


def parse_flag(text: str) -> bool | None:
    """Return what the words true, yes, on, 1 and false, no, off, 0 mean, or None for any other text."""
    return _FLAGS.get(text.lower())


def parse_integer(text: str) -> int | None:
    """Return the integer that `text` writes in at most 18 decimal digits, or None."""
    return int(text) if _INTEGER.fullmatch(text) else None


def parse_number(text: str) -> int | float | None:
    """Return the finite number that `text` writes (an int when it is written as one), or None."""
    if _INTEGER.fullmatch(text):
        return int(text)
    if not _NUMBER.fullmatch(text):
        return None
    number = float(text)
    return number if math.isfinite(number) else None


def check_at_least(name: str, value: object, least: int) -> int:
    """Return an argument that takes an int from `least` on; TypeError or ValueError, naming it, for anything else."""
    wrong = f"{name} takes an int, at least {least}, not {value!r}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(wrong)
    if value < least:
        raise ValueError(wrong)
    return value


class _Kind(NamedTuple):
    """What one option takes.

    `check` returns the value in its final form, or raises TypeError or ValueError without a text of its own;
    `parse` returns None for text that is no such value.
    """

    takes: str
    check: Callable[[object], object]
    parse: Callable[[str], object]
    optional: bool = False


def _check_integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return int(value)


def _check_count(value: object) -> int:
    if (count := _check_integer(value)) < 0:
        raise ValueError
    return count


def _check_positive(value: object) -> int:
    if (count := _check_integer(value)) < 1:
        raise ValueError
    return count


def _check_seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    if value < 0 or not value <= 1e300:  # NaN, infinity, and integers that float() refuses
        raise ValueError
    return float(value) or 0.0  # -0.0 would show as such


def _check_reset(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    if value not in _RESETS:
        raise ValueError
    return _RESETS[_RESETS.index(value)]


def _check_flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _check_name(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    if not value or _CONTROL.search(value):
        raise ValueError
    return value


def _seconds(takes: str) -> _Kind:
    return _Kind(f"{takes}, or None for no limit", _check_seconds, parse_number, optional=True)


_KINDS: dict[str, _Kind] = {
    "min_size": _Kind("an int, at least 0", _check_count, parse_integer),
    "max_size": _Kind("an int, at least 1", _check_positive, parse_integer),
    "timeout": _seconds("seconds, at least 0 (0: do not wait)"),
    "opening_limit": _Kind("an int, at least 1", _check_positive, parse_integer),
    "max_waiting": _Kind("an int, at least 0, or None for no limit", _check_count, parse_integer, optional=True),
    "idle_timeout": _seconds("seconds, at least 0"),
    "max_lifetime": _seconds("seconds, at least 0"),
    "validate_after": _Kind(
        "seconds, at least 0 (0: at every acquire), or None for never",
        _check_seconds,
        parse_number,
        optional=True,
    ),
    "reset": _Kind("'auto', 'always' or 'rollback'", _check_reset, str),
    "one_write": _Kind("a bool", _check_flag, parse_flag),
    "leak_tracking": _Kind("a bool", _check_flag, parse_flag),
    "leak_threshold": _Kind("seconds, at least 0, or None for never", _check_seconds, parse_number, optional=True),
    "name": _Kind("text that is not empty, without control characters, or None", _check_name, str, optional=True),
}

OPTION_NAMES = tuple(_KINDS)


def takes(name: str) -> str:
    """Return what option `name` takes, in words."""
    return _KINDS[name].takes


def _checked(name: str, value: object) -> object:
    """Return `value` as option `name` keeps it."""
    kind = _KINDS[name]
    if value is None and kind.optional:
        return None
    failure: type[Exception]
    try:
        return kind.check(value)
    except TypeError:
        failure = TypeError
    except ValueError:
        failure = ValueError
    raise failure(f"pool option {name!r} takes {kind.takes}, not {value!r}")


def _require_known(names: Iterable[object]) -> None:
    """Refuse the first name that is no option."""
    for name in names:
        if name not in _KINDS:
            hint = suggest(name, _KINDS) if isinstance(name, str) else ""
            raise TypeError(f"unknown pool option {name!r}{hint}; the options are {', '.join(_KINDS)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions:
    """Say how a pool behaves.

    Immutable, hashable, validated when made: TypeError for a wrong type, ValueError for a wrong value, either
    naming the option. Seconds are floats (ints are taken), None is no limit. What is not given has the
    default shown here, whatever `configure()` and the environment say.
    """

    min_size: int = 0
    max_size: int = 100
    timeout: float | None = 30.0  # seconds to wait for a session; 0: do not wait
    opening_limit: int = 8  # sessions that are opened at the same time
    max_waiting: int | None = None
    idle_timeout: float | None = 600.0
    max_lifetime: float | None = 3600.0
    validate_after: float | None = 30.0  # seconds idle; 0: at every acquire; None: never
    reset: Reset = "auto"
    one_write: bool = True
    leak_tracking: bool = False
    leak_threshold: float | None = None  # seconds after which a lease that is still held is reported, once
    name: str | None = None

    def __new__(cls, *_args: object, **options: object) -> Self:
        """Refuse unknown names with the list of the known ones; `__init__` does all the rest."""
        _require_known(options)
        return object.__new__(cls)

    def __post_init__(self) -> None:
        for name in OPTION_NAMES:
            object.__setattr__(self, name, _checked(name, getattr(self, name)))
        if self.min_size > self.max_size:
            raise ValueError(f"pool option 'min_size' ({self.min_size}) is above 'max_size' ({self.max_size})")


def from_mapping(mapping: Mapping[str, object], base: PoolOptions | None = None) -> PoolOptions:
    """Return `base` (or else the code's own defaults) with the options of `mapping` in it."""
    _require_known(mapping)
    given = {} if base is None else {field.name: getattr(base, field.name) for field in fields(base)}
    given.update(mapping)
    return cast(Callable[..., PoolOptions], PoolOptions)(**given)


def from_text(name: str, text: str, source: str | None = None, *, show: bool = True) -> object:
    """Return the value that `text` writes for option `name`.

    "none" is None for an option that may be None. The ValueError begins with `source`, which says where the
    text was found, and leaves the text out when `show` is false.
    """
    _require_known([name])
    kind = _KINDS[name]
    if kind.optional and text.lower() == "none":
        return None
    value = kind.parse(text)
    if value is not None:
        try:
            return kind.check(value)
        except ValueError:
            pass
    shown = f", not {text!r}" if show else ""
    raise ValueError(f"{source or f'pool option {name!r}'} takes {kind.takes}{shown}")


def _read_environment(environment: Mapping[str, str]) -> dict[str, object]:
    """Return the options that environment variables give; an empty variable gives none."""
    found: dict[str, object] = {}
    unknown = []
    names = {ENVIRONMENT_PREFIX + name.upper(): name for name in OPTION_NAMES}
    for variable, text in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        if variable not in names:
            unknown.append(variable)
        elif text:
            found[names[variable]] = from_text(names[variable], text, f"environment variable {variable}")
    for variable in unknown:
        near = nearest(variable.upper(), names)
        hint = f" (did you mean {near}?)" if near else ""
        _logger.warning("environment variable %s is no pool option and is ignored%s", variable, hint)
    return found


def from_environment(environment: Mapping[str, str]) -> PoolOptions:
    """Return the code's defaults, overridden by environment variables; a wrong value raises ValueError."""
    return from_mapping(_read_environment(environment))


class _Process:
    """Hold this process's defaults: the code's, then the environment's, then those of `configure()`.

    `current` is replaced as a whole under `lock` and read without it.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.current: PoolOptions | None = None  # None: the environment has not been read
        self.callbacks: list[Callable[[], object]] = []

    def defaults(self) -> PoolOptions:
        current = self.current
        if current is None:
            with self.lock:
                current = self.read()
        return current

    def read(self) -> PoolOptions:
        """Return the defaults, reading the environment if that was not done yet; the lock is held."""
        if self.current is None:
            self.current = from_environment(os.environ)
        return self.current

    def configure(self, options: Mapping[str, object]) -> None:
        _require_known(options)
        with self.lock:
            old = self.read()
            new = self.current = from_mapping(options, old)
        if new != old:
            for callback in tuple(self.callbacks):
                callback()

    def after_fork(self) -> None:
        # Another thread of the parent may have held the lock, and nobody is left to release it.
        self.lock = threading.Lock()


_process = _Process()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process.after_fork)


def configure(**options: object) -> None:
    """Set defaults of this process, for pools made afterwards.

    The options are those of `PoolOptions`. All are validated together with those already set, and either all
    are taken or none. Threads may call it at any time.
    """
    _process.configure(options)


def defaults() -> PoolOptions:
    """Return this process's defaults: the code's, overridden by the environment, overridden by `configure()`.

    The environment (`POOLED_PYMYSQL_MAX_SIZE=20` and so on) is read once, at the first call; a value that is
    wrong raises ValueError at every call.
    """
    return _process.defaults()


def on_change(callback: Callable[[], object]) -> None:
    """Have `callback` called after each `configure()` that changed a default, in the same thread."""
    _process.callbacks.append(callback)


def resolve(pool: object, overrides: Mapping[str, object]) -> PoolOptions:
    """Return the options of a pool from the argument `pool=` and the options that a DSN gives (`overrides`).

    A PoolOptions is taken whole; the fields of a mapping go before those of the DSN, and those before
    `defaults()`.
    """
    if isinstance(pool, PoolOptions):
        return pool
    if pool is not None and not isinstance(pool, Mapping):
        # The type alone is shown: what is given here by mistake may be a DSN.
        raise TypeError(f"pool= takes a PoolOptions, a dict of its fields, False or None, not {_describe(pool)}")
    given = dict(overrides)
    given.update(pool or {})
    return from_mapping(given, defaults()) if given else defaults()


def _describe(value: object) -> str:
    return repr(value) if isinstance(value, bool) else f"an object of type {type(value).__name__!r}"
