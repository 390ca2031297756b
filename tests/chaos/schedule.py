"""What goes wrong in a run of the chaos suite, when, for how long, and to whom: all of it drawn from one seed."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pymysql
import servers
from pymysql.connections import Connection
from servers import PrivateServer, Server

from .faults import Cut, FaultyProxy, cut_within, junk, replace

READ_TIMEOUT = 2.0  # seconds, of the workers' connections
LONG_PAUSE = 1.7  # seconds, longer than any caller waits for a connection, or any opening lasts
LOCK_TIMEOUT = 1  # seconds that the server lets a transaction wait for another
FEWEST_CONNECTIONS = 10  # what MariaDB's max_connections may be at least
NOT_MYSQL = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"


@dataclasses.dataclass
class Scene:
    """What faults are done to."""

    private: PrivateServer
    proxy: FaultyProxy
    account: Server  # the workers'
    rest: threading.Event = dataclasses.field(default_factory=threading.Event)  # set: workers finish and start nothing
    _clock: threading.Event = dataclasses.field(default_factory=threading.Event)

    def last(self, seconds: float) -> None:
        """Let so much time pass: the length of a fault is time by its nature."""
        self._clock.wait(seconds)

    @contextlib.contextmanager
    def admin(self) -> Iterator[Any]:
        """Give a cursor of an account that may do everything, past the proxy."""
        with self._admin_connection() as connection, connection.cursor() as cursor:
            yield cursor

    def _admin_connection(self) -> Connection[Any]:
        login = {"user": servers.USER, "password": servers.PASSWORD, "ssl_disabled": True, "autocommit": True}
        return pymysql.connect(unix_socket=self.private.unix_socket, connect_timeout=10, read_timeout=10, **login)

    def sessions(self) -> list[int]:
        """List the ids of the workers' sessions on the server."""
        with self._admin_connection() as connection:
            return sorted(servers.connection_ids(connection, self.account.user))

    def kill(self, ids: list[int], what: str = "CONNECTION") -> None:
        with self.admin() as cursor:
            for number in ids:
                with contextlib.suppress(pymysql.err.OperationalError, pymysql.err.InternalError):  # gone already: 1094
                    cursor.execute(f"KILL {what} {number}")


@dataclasses.dataclass(frozen=True)
class Fault:
    """One thing that goes wrong."""

    kind: str
    seconds: float
    share: float  # of the links or sessions
    seed: int

    def __str__(self) -> str:
        return f"{self.kind} ({self.seconds:.2f} s, share {self.share:.2f}, seed {self.seed})"


Happening = Callable[[Scene, Fault, random.Random], None]  # returns when the fault is over

HAPPENINGS: dict[str, Happening] = {}
WEIGHTS: dict[str, int] = {}


def happening(weight: int) -> Callable[[Happening], Happening]:
    """Note a kind of fault, and how often it comes in a deck."""

    def note(function: Happening) -> Happening:
        HAPPENINGS[function.__name__] = function
        WEIGHTS[function.__name__] = weight
        return function

    return note


def plan(seed: int, count: int) -> list[Fault]:
    """Draw so many faults: every kind comes once in each deck or more often, in an order that the seed gives."""
    chance = random.Random(seed)
    kinds: list[str] = []
    while len(kinds) < count:
        deck = [kind for kind, weight in WEIGHTS.items() for _ in range(weight)]
        chance.shuffle(deck)
        kinds += deck
    return [Fault(kind, chance.uniform(0.05, 0.3), chance.random(), chance.getrandbits(32)) for kind in kinds[:count]]


def run(scene: Scene, fault: Fault) -> float:
    """Let a fault happen; return when it was over."""
    try:
        HAPPENINGS[fault.kind](scene, fault, random.Random(fault.seed))
    finally:
        scene.proxy.heal(end_dead=fault.kind != stuck_openings.__name__)
        over = time.monotonic()
    return over


# On the network


@happening(3)
def cut(scene: Scene, fault: Fault, chance: random.Random) -> None:
    scene.proxy.cut(scene.proxy.sample(chance, fault.share), chance.choice(list(Cut)))


@happening(1)
def cut_all(scene: Scene, fault: Fault, chance: random.Random) -> None:
    scene.proxy.refuse()
    scene.proxy.cut(how=chance.choice(list(Cut)))
    scene.last(fault.seconds)


@happening(3)
def cut_in_packet(scene: Scene, fault: Fault, chance: random.Random) -> None:
    links = scene.proxy.sample(chance, fault.share)
    twist = cut_within(chance.randrange(1, 40), chance.choice(list(Cut)))
    if chance.random() < 0.5:
        scene.proxy.twist(links, up=twist)
    else:
        scene.proxy.twist(links, down=twist)
    scene.last(fault.seconds)


@happening(2)
def reply_lost(scene: Scene, fault: Fault, chance: random.Random) -> None:
    scene.proxy.twist(scene.proxy.sample(chance, fault.share), down=replace(chance.choice(list(Cut))))
    scene.last(fault.seconds)


@happening(2)
def garbage(scene: Scene, fault: Fault, chance: random.Random) -> None:
    for link in scene.proxy.sample(chance, fault.share):
        end = [Cut.FIN] if chance.random() < 0.5 else []
        scene.proxy.twist([link], down=replace(junk(chance), *end))
    scene.last(fault.seconds)


@happening(2)
def stall(scene: Scene, fault: Fault, chance: random.Random) -> None:
    scene.proxy.stall()
    scene.last(fault.seconds)


@happening(1)
def long_stall(scene: Scene, fault: Fault, chance: random.Random) -> None:
    scene.proxy.stall()
    scene.last(LONG_PAUSE)


@happening(2)
def delay(scene: Scene, fault: Fault, chance: random.Random) -> None:
    scene.proxy.delay(chance.uniform(0.002, 0.05))
    scene.last(2 * fault.seconds)


@happening(2)
def slow_drip(scene: Scene, fault: Fault, chance: random.Random) -> None:
    scene.proxy.drip(chance.uniform(0.0005, 0.003))
    scene.last(2 * fault.seconds)


@happening(1)
def half_open(scene: Scene, fault: Fault, chance: random.Random) -> None:
    scene.proxy.half_open(scene.proxy.sample(chance, fault.share), tell_server=chance.random() < 0.5)
    # Nobody can know before that: it is over when the last statement that was sent into the void was given up.
    scene.last(READ_TIMEOUT)


@happening(1)
def refuse(scene: Scene, fault: Fault, chance: random.Random) -> None:
    scene.proxy.refuse()
    scene.proxy.cut(scene.proxy.sample(chance, fault.share))
    scene.last(fault.seconds)


@happening(1)
def not_a_server(scene: Scene, fault: Fault, chance: random.Random) -> None:
    scene.proxy.answer(NOT_MYSQL)
    scene.proxy.cut(scene.proxy.sample(chance, fault.share))
    scene.last(fault.seconds)


@happening(1)
def silent_server(scene: Scene, fault: Fault, chance: random.Random) -> None:
    scene.proxy.answer(b"")
    scene.proxy.cut(scene.proxy.sample(chance, fault.share))
    scene.last(fault.seconds)


@happening(1)
def stuck_openings(scene: Scene, fault: Fault, chance: random.Random) -> None:
    """Leave links without an answer for good, while those opened afterwards work."""
    scene.proxy.answer(b"")
    scene.proxy.cut(scene.proxy.sample(chance, fault.share / 2))
    scene.last(fault.seconds)


@happening(1)
def kills_on_a_slow_network(scene: Scene, fault: Fault, chance: random.Random) -> None:
    scene.proxy.delay(chance.uniform(0.01, 0.05))
    for _ in range(3):
        kill_sessions(scene, fault, chance)
        scene.last(fault.seconds / 3)


# At the server


@happening(3)
def kill_sessions(scene: Scene, fault: Fault, chance: random.Random) -> None:
    ids = scene.sessions()
    scene.kill(chance.sample(ids, round(fault.share * len(ids))))


@happening(2)
def kill_queries(scene: Scene, fault: Fault, chance: random.Random) -> None:
    ids = scene.sessions()
    scene.kill(chance.sample(ids, round(fault.share * len(ids))), "QUERY")


@happening(1)
def restart(scene: Scene, fault: Fault, chance: random.Random) -> None:
    scene.private.restart()


@happening(1)
def crash(scene: Scene, fault: Fault, chance: random.Random) -> None:
    scene.private.kill()
    scene.private.start()


@happening(2)
def pause(scene: Scene, fault: Fault, chance: random.Random) -> None:
    with scene.private.paused():
        scene.last(fault.seconds)


@happening(1)
def long_pause(scene: Scene, fault: Fault, chance: random.Random) -> None:
    with scene.private.paused():
        scene.last(LONG_PAUSE)


@happening(1)
def no_connections_left(scene: Scene, fault: Fault, chance: random.Random) -> None:
    with scene.admin() as cursor, contextlib.ExitStack() as others:
        cursor.execute("SET GLOBAL max_connections = %s", (FEWEST_CONNECTIONS,))
        try:
            scene.kill(scene.sessions())
            with contextlib.suppress(pymysql.err.OperationalError):  # 1040
                for _ in range(FEWEST_CONNECTIONS):
                    others.enter_context(scene.account.connect(connect_timeout=5, read_timeout=5, database=None))
            scene.last(fault.seconds)
        finally:
            cursor.execute("SET GLOBAL max_connections = 1000")


@happening(1)
def wait_timeout(scene: Scene, fault: Fault, chance: random.Random) -> None:
    """Have every session die while it is idle in the pool."""
    with scene.admin() as cursor:
        cursor.execute("SET GLOBAL wait_timeout = 1")
        try:
            scene.kill(scene.sessions())
            scene.last(fault.seconds)  # in which new ones are opened
            scene.rest.set()
            scene.last(1.2)
        finally:
            scene.rest.clear()
            cursor.execute("SET GLOBAL wait_timeout = 28800")
