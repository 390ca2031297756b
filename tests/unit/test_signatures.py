"""What type checkers are told of `connect()` beside what PyMySQL takes."""

import inspect

import pymysql
from pymysql.connections import Connection

import pooled_pymysql
from pooled_pymysql.signatures import Connect, ConnectArguments


def test_arguments_are_those_of_pymysql() -> None:
    told = set(ConnectArguments.__annotations__) | {"cursorclass", "conv"}
    real = set(inspect.signature(Connection.__init__).parameters) - {"self"}
    assert real <= told
    if pymysql.VERSION >= (1, 2):
        assert told <= real


def test_our_own_arguments_are_told_too() -> None:
    told = inspect.signature(Connect.__call__).parameters
    real = inspect.signature(pooled_pymysql.connect).parameters
    assert set(real) - set(told) == {"kwargs"}


def test_connection_can_be_subscripted_as_in_the_stubs() -> None:
    assert pooled_pymysql.Connection[pooled_pymysql.cursors.DictCursor] is pooled_pymysql.Connection
