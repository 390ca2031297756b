"""Money is transferred while the network and the server fail by a schedule: nothing is lost, doubled or stuck.

The seed of a failed run is in its output; PYTEST_CHAOS_SEED=number runs that schedule again.
"""

from __future__ import annotations

import collections
import os
import random
import sys
from collections.abc import Iterator

import pytest

from . import bank as banking
from . import schedule
from .bank import Bank
from .schedule import LOCK_TIMEOUT, READ_TIMEOUT, Fault, Scene

# Some workers forget to close their connections.
pytestmark = pytest.mark.filterwarnings("ignore:a connection of pool .* was dropped:ResourceWarning")

SEED = "PYTEST_CHAOS_SEED"
RECOVERY = 1.0  # seconds from a fault's end to a transaction that was begun after it and committed
# A worker may have sent a statement into the fault and wait for its answer, or for another's lock.
FULL_RECOVERY = RECOVERY + READ_TIMEOUT + LOCK_TIMEOUT
PATIENCE = 15.0  # seconds after which a worker is given up
FAULTS, MOST_FAULTS = 200, 2000  # of the long form, which goes on until there were enough transactions
TRANSACTIONS = 10_000


class Run:
    """A schedule, carried out; prints what somebody needs who looks into a failure."""

    def __init__(self, scene: Scene, seed: int) -> None:
        self.scene = scene
        self.seed = seed
        self.bank = Bank(scene, seed)
        self.slow: list[str] = []
        self.recoveries: dict[str, list[tuple[float, float]]] = collections.defaultdict(list)

    def suffer(self, fault: Fault) -> bool:
        """Let a fault happen and wait until everybody is back at work; say whether they all came."""
        over = schedule.run(self.scene, fault)
        first, last = self.bank.recover(over, PATIENCE)
        self.recoveries[fault.kind].append((first, last))
        late = self.bank.lag.between(over, over + first)
        if first > RECOVERY + late or last > FULL_RECOVERY + late:
            self.slow.append(f"after {fault} the first was back after {first:.2f} s, the last after {last:.2f} s")
        return last < PATIENCE

    def check(self) -> None:
        wrong = [*self.bank.wrong, *banking.audit(self.scene, self.bank), *self.slow]
        sys.stdout.write("\n".join(["", *self.report(), ""]))  # shown when the test fails
        assert not wrong, f"seed {self.seed}: {len(wrong)} findings\n" + "\n".join(wrong[:30])
        assert self.bank.auditor.looks > 0
        banking.assert_whole(self.scene, self.bank)

    def report(self) -> Iterator[str]:
        """Tell how the run went, in lines."""
        bank = self.bank
        faults = sum(map(len, self.recoveries.values()))
        yield f"seed {self.seed}: {bank.transactions} transactions, {bank.committed} committed, {faults} faults"
        longest = ", ".join(f"{what} {took:.3f} s" for what, took in bank.slowest.items())
        yield f"longest: {longest}; the machine was late by {bank.lag.worst:.3f} s"
        for kind, times in sorted(self.recoveries.items()):
            first, last = (max(each) for each in zip(*times, strict=True))
            yield f"  {kind:<24}{len(times):>3} times, the first back after {first:.2f} s, the last after {last:.2f} s"
        errors: collections.Counter[str] = sum((worker.errors for worker in bank.workers), collections.Counter())
        yield "errors: " + ", ".join(f"{count} {what}" for what, count in errors.most_common())


def seed(default: int) -> int:
    return int(os.environ.get(SEED, default))


@pytest.mark.thorough
@pytest.mark.timeout(180)
@pytest.mark.parametrize("default", [5, 6])  # a quarter of a minute each, in two of ./run test's environments
def test_transfers_survive_every_kind_of_fault(default: int, scene: Scene) -> None:
    run = Run(scene, seed(default))
    with run.bank:
        all(run.suffer(fault) for fault in schedule.plan(run.seed, sum(schedule.WEIGHTS.values())))
    run.check()


@pytest.mark.chaos_long
@pytest.mark.timeout(3600)
def test_ten_thousand_transfers_survive_two_hundred_faults(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(scene, seed(random.SystemRandom().randrange(1 << 32)))
    with run.bank:
        for number, fault in enumerate(schedule.plan(run.seed, MOST_FAULTS)):
            if (number >= FAULTS and run.bank.committed >= TRANSACTIONS) or not run.suffer(fault):
                break
    with capsys.disabled():
        run.check()
    assert run.bank.committed >= TRANSACTIONS


@pytest.mark.parametrize("number", range(3))
def test_schedule_is_the_seeds_alone(number: int) -> None:
    planned = schedule.plan(number, 300)
    assert planned == schedule.plan(number, 300)
    assert planned != schedule.plan(number + 1, 300)
    assert {fault.kind for fault in planned[: sum(schedule.WEIGHTS.values())]} == set(schedule.HAPPENINGS)
