"""The bounds on a test run: they hold whatever a test does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import run_limit

# The bounds, and the plugin's module as a plugin of its own, away from the project's conftest and settings.
RUN = """
import sys
import pytest
import run_limit
run_limit.GRACE, run_limit.AGAIN, run_limit.ENDING = {grace}, 0.3, 1.0
sys.exit(pytest.main(["-q", "-p", "run_limit", "-p", "no:cacheprovider", "-o", "timeout={timeout}", *sys.argv[1:]]))
"""

HANG = "import threading, time\ndef hang():\n    while True: time.sleep(0.01)\n"


def run(folder: Path, tests: str, *, limit: float = 30.0, grace: float = 30.0, timeout: float = 0.5) -> tuple[int, str]:
    """Run some tests; return the exit status and what was printed. It must end long before the limits here do."""
    (folder / "test_it.py").write_text(HANG + tests)
    (folder / "pytest.ini").write_text("[pytest]")
    environment = os.environ | {"PYTHONPATH": str(Path(run_limit.__file__).parent), run_limit.VARIABLE: str(limit)}
    environment.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(grace=grace, timeout=timeout), str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=40.0,
        check=False,
        cwd=folder,
        env=environment,
    )
    return done.returncode, done.stdout


def test_good_tests_pass(tmp_path: Path) -> None:
    status, said = run(tmp_path, "def test_1(): pass")
    assert status == 0, said
    assert "1 passed" in said


def test_a_run_that_crawls_stops_and_tells_what_failed(tmp_path: Path) -> None:
    tests = "def test_1(): assert False, 'first'\ndef test_2(): time.sleep(1.2)\ndef test_3(): print('third')"
    status, said = run(tmp_path, tests, limit=1.0, timeout=0)
    assert status == 1, said
    assert "AssertionError: first" in said
    assert "the run takes longer than 1 s" in said
    assert "1 failed, 1 passed" in said


DEAF = "def test_1():\n    while True:\n        try: hang()\n        except BaseException: pass"


@pytest.mark.parametrize("before", ["", "def test_0(): assert False\n"], ids=["alone", "after a failure"])
def test_a_test_that_nothing_interrupts_is_ended_with_all_stacks(before: str, tmp_path: Path) -> None:
    started = time.monotonic()
    status, said = run(tmp_path, before + DEAF, limit=2.0, grace=0.5)
    assert status == 1, said
    assert "most recent call first" in said and "in test_1" in said, said
    assert time.monotonic() - started < 15.0


def test_an_interpreter_that_does_not_end_is_ended(tmp_path: Path) -> None:
    status, said = run(tmp_path, "def test_1(): threading.Thread(target=hang).start()")
    assert status == 1, said
    assert "1 passed" in said
    assert "in hang" in said


def test_a_test_that_hangs_again_while_it_tidies_up_is_interrupted_again(tmp_path: Path) -> None:
    tests = "def test_1():\n    try: hang()\n    finally: hang()\ndef test_2(): pass"
    status, said = run(tmp_path, tests)
    assert status == 1, said
    assert "1 failed, 1 passed" in said


def test_the_teardown_of_a_failed_test_has_a_timeout(tmp_path: Path) -> None:
    tests = (
        "import pytest\n@pytest.fixture\ndef stuck():\n    yield\n    hang()\n"
        "def test_1(stuck): assert False\ndef test_2(): pass"
    )
    status, said = run(tmp_path, tests)
    assert status == 1, said
    assert "1 failed, 1 passed" in said and "1 error in" in said


def test_a_failed_test_keeps_nothing_open(tmp_path: Path) -> None:
    tests = (
        "closed = []\nclass Thing:\n    def __del__(self): closed.append(1)\n"
        "def fail():\n    thing = Thing()\n    try: 1 / 0\n    except ZeroDivisionError: assert False\n"
        "def test_1():\n    mine = Thing()\n    fail()\ndef test_2(): assert closed == [1, 1]"
    )
    status, said = run(tmp_path, tests)
    assert status == 1, said
    assert "1 failed, 1 passed" in said
