"""Ask a socket whether anything arrived, for the price of one poll(2)."""

import select
import socket
import sys
from collections.abc import Callable
from typing import Any


def readable(sock: socket.socket) -> Callable[[int], object]:
    """Return a function that takes a time in ms and returns something true once `sock` can be read or is closed.

    gevent and eventlet replace poll by one that yields to their hub, which costs milliseconds beside a busy greenlet:
    the original is used. Where there is no poll (Windows), select answers.
    """
    factory = _unpatched("poll")
    if factory is not None:
        poller = factory()
        poller.register(sock, _POLLIN | _POLLPRI | _POLLRDHUP)
        poll: Callable[[int], object] = poller.poll
        return poll
    chosen = _unpatched("select")
    return lambda timeout: chosen([sock], [], [], timeout / 1000)[0]


def is_only_data(found: Any) -> bool:
    """Say of what such a function returned whether bytes have come, and the other side has not hung up behind them.

    Only Linux tells; elsewhere the answer is no.
    """
    return _POLLRDHUP != 0 and type(found[0]) is tuple and found[0][1] == _POLLIN


_POLLIN, _POLLPRI = 1, 2  # poll(2); eventlet's patched module lacks the names
_POLLRDHUP = getattr(select, "POLLRDHUP", 0)


def _unpatched(name: str) -> Any:
    """Return `select.<name>` as it was before gevent or eventlet patched it, or None where there is none."""
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None and gevent.is_module_patched("select"):
        try:
            return gevent.get_original("select", name)
        except AttributeError:
            return None
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None and eventlet.is_monkey_patched("select"):
        return getattr(eventlet.original("select"), name, None)
    return getattr(select, name, None)


def wait_readable(sock: socket.socket, timeout: float | None) -> bool:
    """Wait until `sock` can be read or is closed, for up to `timeout` s; say whether. Greenlets go on meanwhile."""
    factory = getattr(select, "poll", None)
    if factory is None:
        return bool(select.select([sock], [], [], timeout)[0])
    poller = factory()
    poller.register(sock, _POLLIN | _POLLPRI)
    return bool(poller.poll(None if timeout is None else timeout * 1000))
