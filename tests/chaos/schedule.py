"""A seed becomes a schedule: a ground, jobs, faults, times. The same seed, the same schedule.

What the processes make of it depends on the machine's timing, so a replay is the same
story, not the same interleaving.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from chaos.arena import TTL_S
from chaos.client import JobPlan
from chaos.grounds import GROUNDS, Ground

FAULT_FROM_S, FAULT_UNTIL_S = 0.1, 4.5
"""After the first task has started."""
AFTERWARDS_S = 7.0
"""After the client's start: most faults are over then."""
POISON_CRASHES = 3
SHUFFLE = 101_000
"""Chosen so that the first twenty seeds have every kind of fault."""

_ANYWHERE = {
    "kill_leader": 4,
    "kill_worker": 4,
    "kill_kernel": 4,
    "kill_client": 2,
    "freeze_leader": 3,
    "freeze_worker": 3,
    "freeze_kernel": 2,
    "freeze_client": 1,
    "restart_etcd": 3,
    "restart_nats": 3,
    "freeze_etcd": 1,
    "freeze_nats": 1,
    "jump_clock": 1,
}
"""Weights."""


@dataclass(frozen=True)
class Planned:
    """One fault: when it begins, after the first task's start, and how long it lasts."""

    at_s: float
    kind: str
    lasts_s: float
    chance: int
    """Seed of the choices that are made when it happens."""


@dataclass(frozen=True)
class Schedule:
    seed: int
    ground: Ground
    jobs: tuple[JobPlan, ...]
    faults: tuple[Planned, ...]

    @property
    def impossible(self) -> str:
        """Why it cannot be carried out on this machine; '' when it can."""
        missing = self.ground.missing()
        return missing and f"no {self.ground.name}: {missing}"


def make(seed: int) -> Schedule:
    chance = random.Random(SHUFFLE + seed)
    (ground,) = chance.choices(GROUNDS, [each.weight for each in GROUNDS])
    return Schedule(seed, ground, tuple(_jobs(chance)), tuple(_faults(ground, chance)))


def for_bug(
    seed: int, faults: Iterable[tuple[float, str, float]], long: tuple[int, float] = (4, 3.0)
) -> Schedule:
    """A plain story, with these faults (when, what, for how long) to bring a bug to light.

    ``long``: how many long tasks there are, and how long they are.
    """
    jobs = (
        JobPlan("long", ["tick"] * long[0], long[1]),
        JobPlan("many", ["ok"] * 400, 0.02),
        JobPlan("poisoned", ["ok", "poison", "ok", "ok"], 0.1, max_crashes=POISON_CRASHES),
        JobPlan("some-cancelled", ["tick"] * 3, 3.0, cancel_after_s=4.0, cancel=[0, 1]),
        JobPlan("all-cancelled", ["tick"] * 60, 0.3, cancel_after_s=3.0),
    )
    chance = random.Random(seed)
    planned = (Planned(at, kind, lasts, chance.getrandbits(32)) for at, kind, lasts in faults)
    return Schedule(seed, GROUNDS[0], jobs, tuple(planned))


def _jobs(chance: random.Random) -> list[JobPlan]:
    short = chance.choice([0.005, 0.02, 0.05])
    many = int(chance.uniform(10, 16) / short * 0.6)
    flaky = ["ok"] * 8 + ["fail"] * 2 + ["flaky"] * 5
    chance.shuffle(flaky)
    poisoned = ["ok"] * 12
    poisoned[chance.randrange(12)] = "poison"
    ticking = ["tick"] * 6
    return [
        JobPlan("many", ["ok"] * many, short, ballast=chance.choice([0, 4096])),
        JobPlan("flaky", flaky, 0.05, retry=2),
        JobPlan("poisoned", poisoned, 0.1, max_crashes=POISON_CRASHES),
        JobPlan(
            "speculative",
            ["ok"] * 11 + ["slow"],
            0.05,
            speculate=True,
            cancel_after_s=chance.choice([None, chance.uniform(2.5, 5.0)]),
        ),
        JobPlan(
            "some-cancelled",
            ticking,
            chance.uniform(0.5, 2.5),
            cancel_after_s=chance.uniform(0.2, 3.0),
            cancel=sorted(chance.sample(range(6), 3)),
        ),
        JobPlan(
            "all-cancelled",
            ["tick"] * 30,
            chance.uniform(0.3, 1.0),
            cancel_after_s=chance.uniform(0.2, 4.0),
        ),
        # Some small enough to lie in etcd, some not.
        JobPlan("meanwhile", ["ok"] * 20, 0.05, begin_at_s=chance.uniform(0.5, 5.0)),
        JobPlan("after-small", ["ok"] * 4, 0.05, begin_at_s=AFTERWARDS_S),
        JobPlan("after-large", ["ok"] * 20, 0.05, ballast=4096, begin_at_s=AFTERWARDS_S),
    ]


def _faults(ground: Ground, chance: random.Random) -> list[Planned]:
    """First what this ground is there for."""
    kinds = list(ground.draw(chance))
    others = {kind: weight for kind, weight in _ANYWHERE.items() if kind not in ground.never}
    more = max(1, chance.randint(2, 6) - len(kinds))
    kinds += chance.choices(list(others), list(others.values()), k=more)
    planned = []
    for kind in kinds:
        at_s = chance.uniform(FAULT_FROM_S, FAULT_UNTIL_S)
        planned.append(Planned(at_s, kind, _lasting(kind, chance), chance.getrandbits(32)))
    return sorted(planned, key=lambda fault: fault.at_s)


def _lasting(kind: str, chance: random.Random) -> float:
    if kind.startswith("freeze"):
        # Mostly around the TTL, where the races are, and up to five times as long.
        return TTL_S * chance.choice([0.5, 0.7, 1.0, 1.3, chance.uniform(0.5, 5.0)])
    if kind.startswith("cut"):
        # Not as long: TCP takes as long again until it tries once more.
        return TTL_S * chance.choice([0.5, 1.0, 1.3, chance.uniform(0.5, 3.0)])
    if kind.startswith("fill"):
        return chance.uniform(1.0, 4.0)
    return chance.uniform(0.05, 2.0)
