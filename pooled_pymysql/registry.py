"""The only mutable global state: which pool belongs to which way of calling `connect()`; fork; interpreter exit."""

import atexit
import contextlib
import logging
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any, NamedTuple

from . import options as pool_options
from .arguments import Arguments, PoolKey, SharedTLS, deprecated_aliases
from .exceptions import PoolClosed
from .housekeeper import Housekeeper
from .lease import Connection, make_deferred, make_lease
from .observer import Observers, PoolObserver
from .pool import Pool

_logger = logging.getLogger("pooled_pymysql")

_MAX_RECIPES = 4096  # ways of calling connect() that are remembered; a program that passes changing values forgets all
_MAX_POOLS = 256
_UNUSED_TIME = 300.0  # seconds after which a pool that holds nothing may be forgotten
_PLAIN_KINDS = (str, bytes, type(None))
_EXIT_TIMEOUT = 1.0  # seconds for saying goodbye at interpreter exit
_FORK_TIMEOUT = 1.0  # seconds that a fork waits for the housekeeper


class Recipe:
    """One way of calling connect(), read once: its arguments and the pool that they lead to."""

    __slots__ = ("aliases", "arguments", "find_pool", "is_simple", "kinds", "options", "pool")

    aliases: list[tuple[str, str]]
    arguments: Arguments
    find_pool: Callable[[], Pool]
    is_simple: bool
    kinds: list[tuple[str, type[Any]]]
    options: pool_options.PoolOptions

    def __init__(
        self,
        arguments: Arguments,
        options: pool_options.PoolOptions,
        aliases: list[tuple[str, str]],
        kwargs: Mapping[str, Any],
    ) -> None:
        self.arguments = arguments
        self.options = options
        self.aliases = aliases
        self.is_simple = not aliases and not arguments.defer and not arguments.has_option_file
        # 1, 1.0 and True are equal to a dictionary, but not to PyMySQL.
        self.kinds = [(name, type(value)) for name, value in kwargs.items() if not isinstance(value, _PLAIN_KINDS)]
        self.pool: Pool | None = None
        self.find_pool = self.current_pool  # bound once

    def fits(self, kwargs: Mapping[str, Any]) -> bool:
        """Say whether equal arguments are of equal types as well."""
        return all(type(kwargs[name]) is kind for name, kind in self.kinds)

    def current_pool(self) -> Pool:
        """Return the live pool of this recipe, making one if there is none."""
        pool = self.pool
        if pool is None or pool.closed:
            pool = self.pool = _registry.pool(self.arguments, self.options)
        return pool


class _Call(NamedTuple):
    """A call of connect(), with arguments that cannot change by themselves."""

    dsn: str | None
    pool: Any
    kwargs: Mapping[str, Any] | None
    recipe: Recipe | None


_NO_CALL = _Call(None, None, None, None)  # equal to no call


class _Registry:
    """PoolKey → pool, and call → recipe."""

    last_call: _Call  # the one before is most often the same: comparing costs less than hashing

    def __init__(self) -> None:
        self.last_call = _NO_CALL
        self.lock = threading.RLock()  # a signal handler may connect while this very thread holds it
        self.housekeeper = Housekeeper()
        self.pools: dict[PoolKey, Pool] = {}
        self.all_pools: weakref.WeakSet[Pool] = weakref.WeakSet()  # closed ones too: they may have leases
        self.by_hand: weakref.WeakSet[Pool] = weakref.WeakSet()
        self.recipes: dict[Any, Recipe] = {}
        self.observers: Observers | None = None
        self.has_warned = False

    def pool(self, arguments: Arguments, options: pool_options.PoolOptions) -> Pool:
        """Return the live pool with this key, making one if there is none."""
        with self.lock:
            pool = self.pools.get(arguments.key)
            if pool is None or pool.closed:
                self.forget_unused()
                pool = self.pools[arguments.key] = Pool(arguments, options, self.housekeeper)
                self._enter(pool)
            return pool

    def forget_unused(self) -> None:
        """Make room for another pool: those that hold nothing go, and beyond _MAX_POOLS those not in use as well."""
        long_ago = time.monotonic() - _UNUSED_TIME
        unused = []
        for key, pool in list(self.pools.items()):
            last_used = pool.last_used()
            if pool.closed or (pool.holds_nothing() and last_used is not None and last_used < long_ago):
                self._forget(key, pool)
            elif last_used is not None:
                unused.append((last_used, key, pool))
        if len(self.pools) < _MAX_POOLS:
            return
        if not self.has_warned:
            self.has_warned = True
            _logger.warning(
                "there are %d pools: the unused ones are closed as others come; is an argument of connect() different"
                " at each call, for example a callable password?",
                len(self.pools),
            )
        unused.sort(key=itemgetter(0))
        for _, key, pool in unused[: len(self.pools) - _MAX_POOLS + 1]:
            self._forget(key, pool)

    def _forget(self, key: PoolKey, pool: Pool) -> None:
        if pool.closed or pool.forget():
            self._drop({key})

    def _drop(self, keys: set[PoolKey]) -> None:
        """Let go of pools that are closed, and of the ways of calling connect() that lead to them."""
        for key in keys:
            self.pools.pop(key, None)
        for call in [call for call, recipe in self.recipes.items() if recipe.arguments.key in keys]:
            del self.recipes[call]
        self.last_call = _NO_CALL

    def adopt(self, pool: Pool) -> None:
        """Show a pool that was made by hand among `pools()`; see to it at exit and after a fork."""
        with self.lock:
            self.by_hand.add(pool)
            self._enter(pool)

    def _enter(self, pool: Pool) -> None:
        pool.observers = self.observers
        self.all_pools.add(pool)

    def observe(self, observer: PoolObserver, *, is_told: bool) -> None:
        """Tell an observer of what happens in all pools, or no more."""
        with self.lock:
            each = [other for other in (self.observers.each if self.observers else ()) if other is not observer]
            if is_told:
                each.append(observer)
            self.observers = Observers(tuple(each)) if each else None
            for pool in list(self.all_pools):
                pool.observers = self.observers

    def recall(self, dsn: str | None, pool: Any, kwargs: Mapping[str, Any]) -> Recipe | None:
        """Return the recipe of an equal call, or None; see `Recipe.fits()`."""
        call = (dsn, pool if type(pool) is not dict else _options_key(pool), *kwargs.items())
        try:
            recipe = self.recipes.get(call)
        except TypeError:  # not hashable: what may change inside is to be looked at each time
            return self.recipes.get(_call_key(dsn, pool, kwargs))
        if recipe is not None and type(pool) is not dict:
            with self.lock:
                if self.recipes.get(call) is recipe:  # it was not forgotten meanwhile
                    self.last_call = _Call(dsn, pool, dict(kwargs), recipe)
        return recipe

    def remember(self, call: Any, recipe: Recipe) -> None:
        with self.lock:
            if len(self.recipes) >= _MAX_RECIPES:
                self.recipes.clear()
            self.recipes[call] = recipe

    def forget_recipes(self) -> None:
        with self.lock:
            self.recipes.clear()
            self.last_call = _NO_CALL

    def live_pools(self) -> list[Pool]:
        with self.lock:
            if closed := {key for key, pool in self.pools.items() if pool.closed}:
                self._drop(closed)
            return [*self.pools.values(), *(pool for pool in self.by_hand if not pool.closed)]


_registry = _Registry()


def connect(dsn: str | None = None, /, *, pool: Any = None, conv: Any = None, **kwargs: Any) -> Connection[Any]:
    """Lease a connection from the pool that belongs to these arguments (PEP 249, "Constructors").

    Takes PyMySQL's keyword arguments, and a DSN in front of them if you like: `mysql://user:pass@host:3306/db?...`;
    keyword arguments override it. `pool` is a PoolOptions, a dict of its fields, or False for a connection without a
    pool. `password` may be a callable that is asked at each physical connection.

    Blocks up to the pool's `timeout` seconds for a session, and up to `connect_timeout` when one must be opened.
    May be called from any thread.

    Raises PoolTimeout, PoolFull, PoolClosed; what PyMySQL raises when connecting fails; TypeError or ValueError for
    arguments that make no sense.
    """
    last = _registry.last_call
    recipe: Recipe | None
    if last.pool is pool and last.kwargs == kwargs and last.dsn == dsn:
        recipe = last.recipe
    else:
        recipe = _registry.recall(dsn, pool, kwargs)
    if recipe is not None:
        for name, kind in recipe.kinds:
            if type(kwargs[name]) is not kind:
                recipe = None
                break
    if recipe is None or not recipe.is_simple:  # not seen yet, or to be looked at each time
        if pool is False:
            return _connect_without_pool(dsn, kwargs, conv)
        recipe = _find_recipe(dsn, pool, kwargs)
        if recipe.aliases:
            _warn(recipe.aliases)
        if recipe.arguments.defer:
            return _defer(recipe, conv)
    home = recipe.pool
    if home is None or home.closed:
        home = recipe.current_pool()
    arguments = recipe.arguments
    conversions = arguments.conversions(conv)  # first: what can fail must not cost a session
    try:
        session = home.acquire_session(arguments)
    except PoolClosed:
        if not home.was_forgotten:
            raise
        home = recipe.current_pool()
        session = home.acquire_session(arguments)
    return make_lease(session, home, recipe.find_pool, arguments, conversions)


def pools() -> list[Pool]:
    """Return the live pools: those that `connect()` has made, and every ConnectionPool."""
    return _registry.live_pools()


def pool_for(dsn: str | None = None, /, *, pool: Any = None, **kwargs: Any) -> Pool | None:
    """Return the pool that `connect()` would use with these arguments, or None when there is none yet."""
    kwargs.pop("conv", None)
    if pool is False:
        return None
    recipe = _find_recipe(dsn, pool, kwargs)
    found = _registry.pools.get(recipe.arguments.key)
    return None if found is None or found.closed else found


def close_pools() -> None:
    """Close all pools, every ConnectionPool as well; a later `connect()` makes new ones.

    Blocks for less than a second a session that is idle; leased ones are closed when they are given back.
    """
    with _registry.lock:
        closing = _registry.live_pools()
        _registry.pools.clear()
        _registry.forget_recipes()
    for pool in closing:
        pool.close()


def add_observer(observer: PoolObserver) -> None:
    """Tell `observer` of what happens in all pools, those that are yet to be made as well. A second call does nothing.

    Costs a test for None at acquiring and at giving back where there is no observer. Stays in force in forked children.
    """
    if not isinstance(observer, PoolObserver):
        raise TypeError(f"add_observer() takes a PoolObserver, not an object of type {type(observer).__name__!r}")
    _registry.observe(observer, is_told=True)


def remove_observer(observer: PoolObserver) -> None:
    """Tell `observer` nothing any more; what is under way in other threads may still reach it."""
    _registry.observe(observer, is_told=False)


def _find_recipe(dsn: str | None, pool: Any, kwargs: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a call, reading its arguments if they are new or their option file has changed."""
    call = _call_key(dsn, pool, kwargs)
    recipe = _registry.recipes.get(call) if call is not None else None
    if recipe is None or not recipe.fits(kwargs) or not recipe.arguments.is_current():
        recipe = _read_call(dsn, pool, kwargs)
        if call is not None:
            _registry.remember(call, recipe)
    return recipe


def _read_call(dsn: str | None, pool: Any, kwargs: Mapping[str, Any]) -> Recipe:
    given, from_dsn = _merge(dsn, kwargs)
    options = pool_options.resolve(pool, from_dsn)
    return Recipe(Arguments(given, options), options, deprecated_aliases(given), kwargs)


def _merge(dsn: str | None, kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], Mapping[str, object]]:
    """Return connect arguments, the keywords overriding the DSN, and the DSN's pool options."""
    if dsn is None:
        return dict(kwargs), {}
    from .dsn import parse_dsn

    connect_arguments, from_dsn = parse_dsn(dsn)
    for old, new in (("db", "database"), ("passwd", "password")):
        if old in kwargs:
            connect_arguments.pop(new, None)
    return {**connect_arguments, **kwargs}, from_dsn


def _call_key(dsn: str | None, pool: Any, kwargs: Mapping[str, Any]) -> Any:
    """Return something hashable that stands for a call, or None where there is nothing of the kind.

    Dictionaries (ssl, auth_plugin_map, pool) are taken by content, and by type too: in TLS options True is not 1.
    """
    call = (dsn, pool if type(pool) is not dict else _options_key(pool), *kwargs.items())
    try:
        hash(call)
    except TypeError:
        try:
            call = _frozen(call)
            hash(call)
        except TypeError:
            return None
    return call


def _options_key(options: dict[str, Any]) -> tuple[Any, ...]:
    """Return what stands for pool options given as a dict, where they are hashable; True is not 1 here either."""
    return (dict, *options.items(), *map(type, options.values()))


def _frozen(value: Any) -> Any:
    kind = type(value)
    if kind is tuple:
        return tuple([_frozen(item) for item in value])
    if kind is dict:
        return ("dict", *((name, type(item), _frozen(item)) for name, item in value.items()))
    if kind is bytearray or kind is memoryview:
        return ("bytes", bytes(value))
    return value


def _connect_without_pool(dsn: str | None, kwargs: Mapping[str, Any], conv: Any) -> Connection:
    given, _ = _merge(dsn, kwargs)
    if callable(given.get("password")):
        given["password"] = given["password"]()
    return Connection(conv=conv, **given)


def _defer(recipe: Recipe, conv: Any) -> Connection:
    arguments = recipe.arguments
    context = SharedTLS(arguments.tls).context(arguments.template)
    return make_deferred(recipe.find_pool, arguments, conv, context)


def _warn(aliases: list[tuple[str, str]]) -> None:
    for old, new in aliases:
        warnings.warn(f"'{old}' is deprecated, use '{new}'", DeprecationWarning, stacklevel=3)


# Processes


def _before_fork() -> None:
    # A running thread makes os.fork() warn from Python 3.12 on.
    _registry.housekeeper.stop(_FORK_TIMEOUT)


def _after_fork_in_parent() -> None:
    _registry.housekeeper.resume()


def _after_fork_in_child() -> None:
    """Start with empty pools, new locks and no thread; the parent's sessions are dropped without a byte."""
    _registry.lock = threading.RLock()
    _registry.housekeeper.start_empty()
    for pool in list(_registry.all_pools):
        pool.forget_parent()


def _at_exit() -> None:
    """Say goodbye to the servers, for a bounded time."""
    deadline = time.monotonic() + _EXIT_TIMEOUT
    _registry.housekeeper.stop(_EXIT_TIMEOUT, for_good=True)
    for pool in pools():
        with contextlib.suppress(Exception):
            if time.monotonic() < deadline:
                pool.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
pool_options.on_change(_registry.forget_recipes)
