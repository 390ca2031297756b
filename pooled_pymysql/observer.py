"""Who is told of what happens in pools, for metrics. The registry says who that is."""

import logging
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from .pool import Pool

_logger = logging.getLogger("pooled_pymysql")

Event = Literal["opened", "acquired", "released", "timed_out", "closed"]


class PoolObserver:
    """Told of what happens in every pool of the process; subclasses override what they want to hear.

    Called from any thread, after the fact and outside of the pool's lock; must not block, may ask `pool.stats()`. What
    it raises is logged the first time and reaches nobody.
    """

    has_failed = False  # it has raised something, which was logged

    def opened(self, pool: "Pool", seconds: float) -> None:
        """A session was opened, in so many seconds."""

    def acquired(self, pool: "Pool", seconds: float) -> None:
        """A session is leased, after so many seconds."""

    def released(self, pool: "Pool", seconds: float) -> None:
        """A session that was leased for so many seconds was given back, or closed."""

    def timed_out(self, pool: "Pool") -> None:
        """A caller has waited in vain."""

    def closed(self, pool: "Pool") -> None:
        """The pool was closed; leases of it may still be out. A ConnectionPool that is collected does not tell.

        The registry may be locked: must not wait for a thread that asks for `pools()`.
        """


class Observers:
    """Those who are told; replaced, never changed."""

    __slots__ = ("each",)

    def __init__(self, each: tuple[PoolObserver, ...]) -> None:
        self.each = each

    def tell(self, event: Event, pool: "Pool", *args: Any) -> None:
        """Call the method of this name of each."""
        for observer in self.each:
            try:
                getattr(observer, event)(pool, *args)
            except Exception:
                if not observer.has_failed:
                    observer.has_failed = True
                    _logger.exception("an observer of pools failed; what else it raises is not logged: %r", observer)
