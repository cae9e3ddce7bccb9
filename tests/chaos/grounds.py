"""What an arena stands on, and which faults are possible only there.

A seed draws one. What cannot be made on a machine has a reason, and is skipped.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from chaos import netns, smalldisk
from chaos.arena import Arena

LOST_DATA_GRACE_S = 1.0


def _no_fault(chance: random.Random) -> Sequence[str]:
    return ()


@dataclass(frozen=True)
class Ground:
    """``draw`` gives faults that this ground is there for."""

    name: str
    weight: int
    draw: Callable[[random.Random], Sequence[str]] = _no_fault
    clustered: bool = False
    """Three etcd members, three NATS servers."""
    never: frozenset[str] = frozenset()
    """Faults that are not made here."""
    prepare: Callable[[Arena], None] = lambda arena: None
    """Called before anything is started."""
    missing: Callable[[], str] = lambda: ""
    """Why it cannot be made here; '' when it can."""


def _a_lost_member(chance: random.Random) -> Sequence[str]:
    """At most one of each kind: two disks that are lost are more than three copies survive."""
    kinds = ["empty_etcd_member", "empty_nats_member"]
    return chance.sample(kinds, chance.choice([0, 1, 1]))


def _cuts(chance: random.Random) -> Sequence[str]:
    return chance.choices(["cut_both", "cut_from", "cut_to"], k=chance.randint(1, 3))


def _full_disks(chance: random.Random) -> Sequence[str]:
    kinds = ["fill_etcd", "fill_nats"]
    return chance.sample(kinds, chance.choice([1, 2]))


def _lost_data(chance: random.Random) -> Sequence[str]:
    """Not etcd's: with it goes the cluster's key, and a daemon that starts in that moment makes
    another one. See docs/survives.md, and test_lost_data.py for what is promised."""
    return ["lose_nats"]


def _networks(arena: Arena) -> None:
    arena.give_networks("client", *(daemon.name for daemon in arena.daemons))


def _small_disks(arena: Arena) -> None:
    arena.give_small_disk("etcd")
    arena.give_small_disk("nats")


def _may_forget(arena: Arena) -> None:
    arena.lost_data_grace_s = LOST_DATA_GRACE_S


GROUNDS = (
    Ground("plain", 5),
    Ground("servers in threes", 6, _a_lost_member, clustered=True),
    Ground("networks", 3, _cuts, prepare=_networks, missing=cache(netns.missing)),
    Ground("small disks", 3, _full_disks, prepare=_small_disks, missing=cache(smalldisk.missing)),
    # A client that begins anew cannot tell what it has never had from what is forgotten.
    Ground(
        "servers that forget", 3, _lost_data, never=frozenset({"kill_client"}), prepare=_may_forget
    ),
)
