"""Work in a forked child."""

from __future__ import annotations

import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable

PATIENCE = 20.0  # seconds that a child has


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a forked child; return its exit code: 0 when it raised nothing, -9 when it did not end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the test may have threads
        child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    deadline = time.monotonic() + PATIENCE
    ended, status = os.waitpid(child, os.WNOHANG)
    while not ended:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            break
        time.sleep(0.005)
        ended, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status)
