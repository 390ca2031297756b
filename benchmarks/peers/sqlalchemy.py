"""SQLAlchemy: an engine's QueuePool over PyMySQL, used by the DB-API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pymysql
from sqlalchemy import create_engine

from peers import PATIENCE, pymysql_arguments
from peers import pymysql_bare as bare

REQUIREMENTS = ("SQLAlchemy",)
DISTRIBUTIONS = ("SQLAlchemy", "PyMySQL")
IMPORTS = "import pymysql, sqlalchemy.dialects.mysql.pymysql, sqlalchemy.pool"
DRIVER_IMPORTS = "import pymysql"
VARIANTS = {"SQLAlchemy QueuePool": {}, "SQLAlchemy QueuePool, pre_ping": {"pool_pre_ping": True}}
NOTE = "raw_connection(): the pool alone, without Core or ORM"

__all__ = ["Pool", "bare"]


class Pool:
    """An engine's pool without overflow."""

    def __init__(
        self, options: Mapping[str, Any], arguments: Mapping[str, Any], *, size: int, autocommit: bool, tls: bool
    ) -> None:
        own = pymysql_arguments(arguments, autocommit=autocommit, tls=tls)
        limits = {"pool_size": size, "max_overflow": 0, "pool_timeout": PATIENCE}
        self._engine = create_engine(
            "mysql+pymysql://", creator=lambda: pymysql.connect(**own), **limits, **options
        )  # fmt: skip

    def acquire(self) -> Any:
        return self._engine.raw_connection()

    def release(self, lease: Any) -> None:
        lease.close()

    def close(self) -> None:
        self._engine.dispose()
