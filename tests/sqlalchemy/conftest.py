"""Tests of the dialect, for `tox -e sqlalchemy`: other environments have no SQLAlchemy, and collect nothing here."""

from __future__ import annotations

from importlib.util import find_spec

# Not by importing it: without SQLAlchemy that would find this very folder.
spec = find_spec("sqlalchemy")
if spec is None or spec.origin is None:
    collect_ignore_glob = ["*"]
else:
    collect_ignore = ["compliance"]  # a project of its own, which test_compliance.py runs
