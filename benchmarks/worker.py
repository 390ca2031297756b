"""The process in which one peer runs: takes orders on stdin and answers on stdout, a line of JSON each.

    python worker.py PEER LABEL

An order is [name, arguments]; the answer is {"result": ...} or {"error": ...}. It ends when stdin does, or its parent.
"""

# The peer comes first: some bring libraries that must be there before others. So nothing here imports `ssl` before.
from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import traceback
from typing import Any

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies, also while it hangs."""
    if sys.platform != "linux":
        return
    import ctypes

    parent = os.getppid()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def told(error: BaseException) -> str:
    """Name an error in a line, without a traceback."""
    return " ".join(traceback.format_exception_only(error)[-1].split())[:300]


def main() -> None:
    peer, label = sys.argv[1:]
    die_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a peer prints is no answer
    try:
        adapter = importlib.import_module(f"peers.{peer}")
        tasks: Any = importlib.import_module("tasks").Tasks(adapter, label)
    except Exception as error:  # noqa: BLE001  its absence is a result
        print(json.dumps({"error": told(error)}), file=answers, flush=True)
        return
    print(json.dumps({"result": tasks.versions()}), file=answers, flush=True)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = {"result": getattr(tasks, name)(**arguments)}
        except Exception as error:  # noqa: BLE001  the orderer decides what it means
            answer = {"error": told(error)}
        print(json.dumps(answer), file=answers, flush=True)
    # What a peer left running or half open is not waited for.
    os._exit(0)


if __name__ == "__main__":
    main()
