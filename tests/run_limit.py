"""Bounds on a whole test run, beyond pytest-timeout's on each test: no run may hang, and none may crawl.

When the time is over, the run stops between two tests and tells what failed so far. A test that hangs again while it
tidies up after its timeout is interrupted again. A failed test leaves nothing open on which others would wait. Whatever
else hangs (a lock that no exception opens, the end of the interpreter) is ended by a hard exit that shows the stacks of
all threads; the guard of the servers then kills them.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Generator
from typing import Any

import pytest

VARIABLE = "PYTEST_RUN_LIMIT"  # seconds; 0: no limit
LIMIT = 1200.0
GRACE = 180.0  # seconds from the limit to the hard exit: for the test under way, and for telling what failed
AGAIN = 20.0  # seconds between the interruptions of a test that goes on hanging
ENDING = 60.0  # seconds for the end of the interpreter

SETTINGS = pytest.StashKey[Any]()


class RunLimit:
    """A plugin; see the module."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds + GRACE
        self._stream = os.fdopen(os.dup(2), "w")  # pytest's capturing puts something else in the place of 2
        self._arm()

    def _arm(self) -> None:
        faulthandler.dump_traceback_later(max(0.1, self._end - time.monotonic()), exit=True, file=self._stream)

    @pytest.hookimpl(trylast=True)
    def pytest_exception_interact(self, call: pytest.CallInfo[Any]) -> None:
        """Arm again, for pytest disarms faulthandler at each failure."""
        self._arm()
        if call.excinfo:
            empty_frames(call.excinfo.value)

    @pytest.hookimpl(trylast=True)
    def pytest_enter_pdb(self) -> None:
        """Let people think."""
        self._end += 86400.0

    @pytest.hookimpl(wrapper=True, optionalhook=True)
    def pytest_timeout_set_timer(self, item: pytest.Item, settings: Any) -> Generator[None, Any, Any]:
        """Have pytest-timeout's timer go off again and again: its first exception may end in what hangs as well."""
        item.stash[SETTINGS] = settings
        result = yield
        if hasattr(signal, "setitimer") and (delay := signal.getitimer(signal.ITIMER_REAL)[0]):
            signal.setitimer(signal.ITIMER_REAL, delay, AGAIN)
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, None, None]:
        """Give the teardown a timer of its own: pytest-timeout has none any more once a test has failed."""
        if SETTINGS in item.stash:
            item.config.hook.pytest_timeout_cancel_timer(item=item)
            item.config.hook.pytest_timeout_set_timer(item=item, settings=item.stash[SETTINGS])
        try:
            yield
        finally:
            if time.monotonic() > self._end - GRACE:
                item.session.shouldfail = f"the run takes longer than {self.seconds:.0f} s ({VARIABLE})"

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        """From here on only the interpreter has to end; what was printed must not be lost with it."""
        sys.stdout.flush()
        self._end = min(self._end, time.monotonic() + ENDING)
        self._arm()


def pytest_configure(config: pytest.Config) -> None:
    """Start the limit; conftest calls this."""
    seconds = float(os.environ.get(VARIABLE) or LIMIT)
    if seconds and not config.option.usepdb and not config.option.collectonly:
        config.pluginmanager.register(RunLimit(seconds))


def empty_frames(error: BaseException) -> None:
    """Forget the variables of a failed test: the last traceback is kept, and so were its open connections.

    They would hold their locks, and be counted, until another test fails: perhaps because of them, and so on.
    """
    waiting: list[BaseException | None] = [error]
    seen: list[BaseException] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        while waiting:
            current = waiting.pop()
            if current is None or current in seen:
                continue
            seen.append(current)
            for frame, _ in traceback.walk_tb(current.__traceback__):
                with contextlib.suppress(RuntimeError):  # still running
                    frame.clear()
                _ = frame.f_locals  # until Python 3.12 a copy, which asking for it brings up to date
            waiting += [current.__cause__, current.__context__, *getattr(current, "exceptions", ())]
        gc.collect()
