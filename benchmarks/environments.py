"""Where each peer is installed: a folder of its own for each, so that none brings or breaks what another needs."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pymysql
from peers import Facts

_INSTALLING = 240.0  # seconds
_KEPT = 7 * 24 * 3600.0  # seconds after which newer releases are looked for


class Place(NamedTuple):
    """Where a peer is, or why it is not there."""

    path: str | None  # to be put in front of the module path; None: nothing to add
    absent: str | None


def installed(peer: Facts, folder: Path, *, update: bool) -> Place:
    """Have pip install a peer's newest releases below `folder`, unless that was done not long ago.

    What the peer uses of PyMySQL is this process's version, so that all have the same one.
    """
    if not peer.requirements:
        return Place(None, None)
    wanted = [*peer.requirements, f"PyMySQL=={pymysql.VERSION_STRING.removesuffix('.final.1')}"]
    key = hashlib.sha256(repr((wanted, sys.version)).encode()).hexdigest()[:16]
    place, stamp = folder / peer.name, folder / peer.name / f"installed-{key}"
    if not update and stamp.exists() and time.time() - stamp.stat().st_mtime < _KEPT:
        return Place(str(place), None)
    new = folder / f"{peer.name}.new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    line = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    try:
        done = subprocess.run(
            [*line, "--target", str(new), *wanted],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_INSTALLING, check=False,
        )  # fmt: skip
        problem = "" if done.returncode == 0 else _reason(done.stderr)
    except subprocess.TimeoutExpired:
        problem = f"pip did not end within {_INSTALLING:.0f} s"
    if problem:
        shutil.rmtree(new, ignore_errors=True)
        return Place(None, problem)
    shutil.rmtree(place, ignore_errors=True)
    os.rename(new, place)
    stamp.touch()
    return Place(str(place), None)


def _reason(said: str) -> str:
    """Return the line in which pip says why."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return (errors or lines or ["pip failed"])[-1][:200]
