"""mysql-connector-python's pool, with its C extension."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# First of all: once `ssl` has brought the system's OpenSSL, the extension may not find what it needs in it.
import _mysql_connector  # noqa: F401
from mysql.connector import HAVE_CEXT, connect

from peers.mysqlconnector_pure import ConnectorPool, settings

REQUIREMENTS = ("mysql-connector-python",)
DISTRIBUTIONS = ("mysql-connector-python",)
IMPORTS = "import _mysql_connector, mysql.connector, mysql.connector.pooling"
DRIVER_IMPORTS = "import _mysql_connector, mysql.connector"
VARIANTS = {"mysql-connector pool, C": {}}
MAX_SIZE = 32
NOTE = "another driver, to its own floor; pings and resets by default; does not wait: asked every 1 ms"

if not HAVE_CEXT:
    raise ImportError("its C extension does not load here")


def bare(arguments: Mapping[str, Any], *, autocommit: bool = True, tls: bool = False) -> Any:
    return connect(**settings(arguments, autocommit=autocommit, tls=tls, use_pure=False))


def Pool(  # noqa: N802  the name that every peer has
    options: Mapping[str, Any], arguments: Mapping[str, Any], *, size: int, autocommit: bool, tls: bool
) -> ConnectorPool:
    return ConnectorPool(options, settings(arguments, autocommit=autocommit, tls=tls, use_pure=False), size)
