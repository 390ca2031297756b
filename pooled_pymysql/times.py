"""Re-export `pymysql.times`: the same objects."""

import sys as _sys
import typing as _typing
from functools import partial as _partial

from pymysql.times import *  # noqa: F403 - every public name

if not _typing.TYPE_CHECKING:  # checkers see the typed names only
    # For private names, and for what is added to PyMySQL's module later.
    __getattr__ = _partial(getattr, _sys.modules["pymysql.times"])
