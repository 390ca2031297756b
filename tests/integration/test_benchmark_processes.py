"""The processes in which the benchmarks run other pools: one that is absent, crashes or hangs harms nobody else."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from servers import wait_until

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from processes import PeerError, PeerGone, Worker

pytestmark = pytest.mark.once

BENCHMARKS = sys.path[-1]
PLAIN = "PyMySQL, new connection"


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # One that nobody has waited for is dead all the same.
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return not Path("/proc/self").exists()
    return state != "Z"


def test_a_peer_that_is_not_there_says_so() -> None:
    with Worker("nobody", "nothing", None) as worker:
        with pytest.raises(PeerError, match=r"No module named 'peers\.nobody'"):
            worker.start()
        assert worker.pid is None


def test_what_a_peer_raises_is_its_answer_and_ends_nothing() -> None:
    with Worker("plain", PLAIN, None) as worker:
        versions = worker.start()
        assert set(versions) == {"PyMySQL"}
        pid = worker.pid
        with pytest.raises(PeerError, match="AssertionError"):
            worker.ask("round", 30.0)
        assert worker.ask("versions", 30.0) == versions
        assert worker.pid == pid


@pytest.mark.parametrize("how", ["hangs", "crashes"])
def test_a_peer_that_hangs_or_crashes_is_ended_and_started_again(how: str) -> None:
    with Worker("plain", PLAIN, None) as worker:
        worker.start()
        pid = worker.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP if how == "hangs" else signal.SIGKILL)
        with pytest.raises(PeerGone, match="no answer within" if how == "hangs" else "ended"):
            worker.ask("versions", 0.2 if how == "hangs" else 30.0)
        assert not alive(pid)
        assert "PyMySQL" in worker.ask("versions", 30.0)
        pid = worker.pid
        assert pid is not None
    assert not alive(pid)


PARENT = """
import os, signal, sys
sys.path.append(sys.argv[1])
from processes import Worker
worker = Worker("plain", sys.argv[2], None)
worker.start()
os.kill(worker.pid, signal.SIGSTOP)  # so that it sees no end of its stdin
print(worker.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)  # so that it tidies nothing up
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent is gone")
def test_a_peer_ends_with_its_parent() -> None:
    line = [sys.executable, "-c", PARENT, BENCHMARKS, PLAIN]
    done = subprocess.run(line, capture_output=True, text=True, timeout=40.0, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid = int(done.stdout)
    try:
        wait_until(lambda: not alive(pid), timeout=10.0, what="the end of the peer's process")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
