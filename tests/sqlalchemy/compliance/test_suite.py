"""The dialect compliance suite, as SQLAlchemy ships it."""

from typing import Any

from pymysql.cursors import SSCursor
from sqlalchemy.testing.suite import *  # noqa: F403
from sqlalchemy.testing.suite import ServerSideCursorsTest as _ServerSideCursorsTest


class ServerSideCursorsTest(_ServerSideCursorsTest):
    """SQLAlchemy's own knows drivers by their names."""

    def _is_server_side(self, cursor: Any) -> bool:
        return isinstance(cursor, SSCursor)
