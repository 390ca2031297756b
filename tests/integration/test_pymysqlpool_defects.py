"""What goes wrong with pymysql-pool does not go wrong here: the same programs, with one import changed.

That package is under another licence: it is installed into a folder of its own and only ever run, as another process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pymysql
import pytest
from proxy import Proxy
from servers import Server

pytestmark = pytest.mark.thorough

PATIENCE = 25.0  # seconds for a program
DEFECT = 3  # the exit status of a program that has met what it looks for

MODULES = {"old": "pymysqlpool", "new": "pooled_pymysql.pymysqlpool"}

# No tracebacks: they would show lines of the other package.
PRELUDE = """
import gc, json, os, queue, signal, sys, threading, time, warnings
sys.tracebacklimit = 0
signal.alarm(20)
config, FOLDER = json.loads(sys.argv[1]), sys.argv[2]
if FOLDER:
    sys.path.insert(0, FOLDER)
import pymysql
from {module} import ConnectionPool, GetConnectionFromPoolError, ReturnConnectionToPoolError
assert not FOLDER or all(sys.modules[name].__file__.startswith(FOLDER) for name in ("pymysql", "pymysqlpool"))
warnings.simplefilter("ignore", ResourceWarning)  # leases are dropped on purpose

def make(size=1, maxsize=1, **more):
    return ConnectionPool(size=size, maxsize=maxsize, **{{**config, **more}})

def query(con, statement):
    with con.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()

def expect(truth, *told):
    if not truth:
        print("defect:", *told)
        sys.stdout.flush()
        os._exit({defect})

plain = pymysql.connect(**config, autocommit=True)
TABLE = "CREATE TABLE t (a INT PRIMARY KEY) ENGINE=InnoDB"
"""

LEFT_BEHIND = {
    "user variable": ("SET @a = 5", "SELECT @a"),
    "sql_mode": ("SET sql_mode = 'ANSI_QUOTES'", "SELECT @@sql_mode"),
    "escaping": ("SET sql_mode = 'NO_BACKSLASH_ESCAPES'", "SELECT LENGTH('\\\\\\\\')"),
    "character set": ("SET NAMES latin1", "SELECT @@character_set_client"),
    "time zone": ("SET time_zone = '+03:00'", "SELECT @@time_zone"),
    "isolation level": ("SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE", "SHOW VARIABLES LIKE '%_isolation'"),
    "temporary table": ("CREATE TEMPORARY TABLE tt (a INT)", "SELECT COUNT(*) FROM tt"),
    "database": ("USE information_schema", "SELECT DATABASE()"),
    "prepared statement": ("PREPARE p FROM 'SELECT 5'", "EXECUTE p"),
    "autocommit": ("SET autocommit = 0", "SELECT @@autocommit"),
}

STATE = """
def answer(con):
    try:
        return query(con, ASK)
    except pymysql.err.MySQLError as error:
        return error.args

pool = make()
con = pool.get_connection()
before = answer(con)
con.query(DO)
con.close()
after = answer(pool.get_connection())
expect(after == before, "the next one sees", after, "instead of", before)
"""

PROGRAMS = {
    "lock": """
pool = make()
con = pool.get_connection()
con.query("SELECT GET_LOCK('pooled', 0)")
con.close()
deadline = time.monotonic() + 5
while (freed := query(plain, "SELECT IS_FREE_LOCK('pooled')")) != ((1,),) and time.monotonic() < deadline:
    time.sleep(0.01)
expect(freed == ((1,),), "nobody holds it, and it is taken")
""",
    "locked table": """
plain.query(TABLE)
pool = make()
con = pool.get_connection()
con.query("LOCK TABLES t WRITE")
con.close()
plain.query("SET lock_wait_timeout = 2")
try:
    plain.query("INSERT INTO t VALUES (1)")
except pymysql.err.OperationalError as error:
    expect(False, "locked by nobody:", error)
""",
    "unfinished transaction": """
plain.query(TABLE)
pool = make()
con = pool.get_connection()
con.begin()
con.query("INSERT INTO t VALUES (1)")
con.close()
con = pool.get_connection()
con.query("SELECT 1")
con.close()
rows = query(plain, "SELECT a FROM t")
expect(rows == (), "committed by nobody:", rows)
""",
    "old reference": """
pool = make()
con = pool.get_connection()
con.close()
other = pool.get_connection()
try:
    con.query("SET @a = 6")
except pymysql.err.InterfaceError:
    pass
rows = query(other, "SELECT @a")
expect(rows == ((None,),), "set by who had given it back:", rows)
""",
    "old cursor": """
pool = make()
con = pool.get_connection()
cursor = con.cursor()
con.close()
other = pool.get_connection()
try:
    cursor.execute("SET @a = 6")
except pymysql.err.InterfaceError:
    pass
rows = query(other, "SELECT @a")
expect(rows == ((None,),), "set by who had given it back:", rows)
""",
    "given back twice": """
pool = make()
con = pool.get_connection()
con.close()
other = pool.get_connection()
try:
    con.close()
except ReturnConnectionToPoolError:
    pass
try:
    rows = query(other, "SELECT 1")
except Exception as error:
    expect(False, "taken away from its user:", error)
expect(rows == ((1,),), rows)
""",
    "handlers of PyMySQL's errors": """
pool = make()
con = pool.get_connection()
try:
    pool.get_connection(retry_num=0)
except Exception as error:
    expect(isinstance(error, pymysql.err.OperationalError), type(error))
con.close()
try:
    con.close()
except Exception as error:
    expect(isinstance(error, pymysql.err.InterfaceError), type(error))
""",
    "dropped lease": """
pool = make()
con = pool.get_connection()
del con
gc.collect()
try:
    pool.get_connection(retry_num=20, retry_interval=0.1).close()
except GetConnectionFromPoolError:
    expect(False, "the only connection is gone for good")
""",
    "block that raised": """
pool = make(size=2, maxsize=2)
for number in range(5):
    try:
        with pool.get_connection(retry_num=10, retry_interval=0.1) as con:
            con.query("SELECT 1")
            raise KeyError(number)
    except KeyError:
        pass
    except GetConnectionFromPoolError:
        expect(False, "exhausted after", number, "blocks")
expect(pool.total_num == pool.available_num, pool.total_num, pool.available_num)
""",
    "fork": """
pool = make(size=2, maxsize=2)
con = pool.get_connection()
mine = query(con, "SELECT CONNECTION_ID()")
con.close()
child = os.fork()
if not child:
    signal.alarm(20)
    status = 4
    try:
        con = pool.get_connection()
        status = 5 if query(con, "SELECT CONNECTION_ID()") == mine else 0
    finally:
        os._exit(status)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
expect(status != 5, "the child works on its parent's connection")
expect(status == 0, "the child got none", status)
""",
    "more connections than its size": """
pool = ConnectionPool(size=8, **config)
start = threading.Barrier(64)
seen = set()
errors = queue.SimpleQueue()

def work():
    start.wait()
    for _ in range(5):
        for _ in range(200):
            try:
                con = pool.get_connection()
                break
            except GetConnectionFromPoolError:
                pass
        try:
            seen.update(query(con, "SELECT CONNECTION_ID(), SLEEP(0.002)"))
        except Exception as error:
            errors.put(error)
        con.close()

threads = [threading.Thread(target=work) for _ in range(64)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
expect(errors.empty())
expect(len({row[0] for row in seen}) <= 8, len(seen), "connections")
""",
    "polling": """
pool = make()
held = pool.get_connection()
waited = []

def wait():
    con = pool.get_connection(retry_num=20, retry_interval=0.5)
    waited.append(time.monotonic())
    con.close()

worst = 0
for pause in (0.05, 0.1, 0.2):
    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(pause)
    released = time.monotonic()
    held.close()
    thread.join()
    worst = max(worst, waited.pop() - released)
    held = pool.get_connection()
expect(worst < 0.15, "woken after", worst, "s")
""",
}


@pytest.fixture(scope="session")
def old_package(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder that pymysql-pool is installed in, with a PyMySQL of its own."""
    folder = tmp_path_factory.mktemp("pymysql-pool")
    command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-input"]
    wanted = [
        "--target",
        str(folder),
        "pymysql-pool==0.5.0",
        f"PyMySQL=={pymysql.VERSION_STRING.removesuffix('.final.1')}",
    ]
    done = subprocess.run([*command, *wanted], capture_output=True, text=True, timeout=50.0, check=False)
    if done.returncode:
        pytest.skip(f"pymysql-pool cannot be installed here: {done.stderr.strip().splitlines()[-1:]}")
    return str(folder)


@pytest.fixture
def config(account: Server, database: str) -> dict[str, Any]:
    return account.kwargs(database=database, ssl_disabled=True)


# Older releases count the threads when those that were stopped have been started again (gh-137109).
FLAGS = ["-W", "ignore:This process:DeprecationWarning"] if (3, 13) <= sys.version_info < (3, 15) else []


def run(program: str, which: str, config: dict[str, Any], folder: str = "") -> tuple[int, str]:
    """Run a program with one of the two packages; return its exit status and what it said."""
    text = PRELUDE.format(module=MODULES[which], defect=DEFECT) + program
    done = subprocess.run(
        [sys.executable, *FLAGS, "-c", text, json.dumps(config), folder],
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def state_program(name: str) -> str:
    do, ask = LEFT_BEHIND[name]
    return f"DO, ASK = {do!r}, {ask!r}\n{STATE}"


ALL = {f"{name} left behind": state_program(name) for name in LEFT_BEHIND} | PROGRAMS
# What 0.5.0 does right: it must hold here as well.
HARMLESS_THERE = {"autocommit left behind", "given back twice"}


@pytest.mark.parametrize("program", ALL.values(), ids=ALL)
def test_it_does_not_happen_here(program: str, config: dict[str, Any]) -> None:
    assert run(program, "new", config) == (0, "")


@pytest.mark.once
@pytest.mark.parametrize("program", [ALL[name] for name in ALL if name not in HARMLESS_THERE],
                         ids=[name for name in ALL if name not in HARMLESS_THERE])  # fmt: skip
def test_it_happens_there(program: str, config: dict[str, Any], old_package: str) -> None:
    status, said = run(program, "old", config, old_package)
    assert (status, said.partition(":")[0]) == (DEFECT, "defect"), said


# A link that dies in silence

DEAD_LINK = """
pool = make(validate_after=0) if not FOLDER else make()
con = pool.get_connection()
con.query("SELECT 1")
con.close()
print("idle", flush=True)
sys.stdin.readline()
started = time.monotonic()

def use():
    try:
        con = pool.get_connection(retry_num=0, pre_ping=True)
        con.query("SELECT 1")
    except pymysql.err.OperationalError:
        pass

thread = threading.Thread(target=use, daemon=True)
thread.start()
thread.join(6)
expect(not thread.is_alive(), "still waiting after 6 s")
print("ended", flush=True)
os._exit(0)
"""


def use_dead_link(which: str, account: Server, config: dict[str, Any], folder: str) -> str:
    """Run the program through a proxy that falls silent while its connection is idle; return its last words."""
    with Proxy(account.host, account.port) as proxy:
        text = PRELUDE.format(module=MODULES[which], defect=DEFECT) + DEAD_LINK
        arguments = json.dumps(config | {"port": proxy.port})
        with subprocess.Popen(
            [sys.executable, *FLAGS, "-c", text, arguments, folder],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as program:  # fmt: skip
            assert program.stdin and program.stdout
            assert program.stdout.readline() == "idle\n"
            proxy.stall()
            said, errors = program.communicate("go\n", timeout=PATIENCE)
            assert errors == ""
            return said


def test_dead_link_is_bounded_here(account: Server, config: dict[str, Any]) -> None:
    assert use_dead_link("new", account, config, "") == "ended\n"


@pytest.mark.once
def test_dead_link_hangs_there(account: Server, config: dict[str, Any], old_package: str) -> None:
    assert use_dead_link("old", account, config, old_package).startswith("defect: still waiting")
