"""Faults that are possible on some grounds only: cuts, full disks, lost data.

Begun and ended like those in `faults`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

from chaos.arena import Arena
from chaos.faults import Begin, End
from support.conditions import stopped
from support.nats import NatsServer
from support.serverprocess import ServerProcess


def _cut(way: str, arena: Arena, chance: random.Random) -> End:
    """One process is out of reach: half the time it is the leader."""
    leader = arena.leader()
    name = leader.name if leader and chance.random() < 0.5 else chance.choice([*arena.networks])
    arena.diary.write("cut", name, way)
    arena.networks[name].cut(way)
    return arena.networks[name].mend


def _server(arena: Arena, kind: str) -> ServerProcess:
    """The only one, where there is one of each."""
    (server,) = arena.etcd_members if kind == "etcd" else arena.nats_members
    return server


def _fill(kind: str, arena: Arena, chance: random.Random) -> End:
    """etcd ends when it cannot write, and NATS takes nothing any more after a failed write:
    whoever makes room starts them again."""
    server, disk = _server(arena, kind), arena.disks[kind]
    arena.diary.write("full", kind)
    disk.fill()

    def make_room() -> None:
        disk.make_room()
        server.kill()
        server.launch()

    return make_room


def _all_answer(members: Sequence[ServerProcess]) -> bool:
    return all(member.running and not stopped(member.pid) for member in members)


def lose_nats(arena: Arena, chance: random.Random) -> End | None:
    """The only server comes back empty."""
    server = _server(arena, "nats")
    assert isinstance(server, NatsServer)
    if not _all_answer([server]):
        return None
    arena.diary.write("lost", "nats", server.pid)
    server.kill()
    server.lose_data()
    return _again_unless(server)


def _again_unless(server: ServerProcess) -> End:
    """Something else may have started it meanwhile."""

    def start() -> None:
        if not server.running:
            server.kill()
            server.launch()

    return start


def empty_etcd_member(arena: Arena, chance: random.Random) -> End | None:
    """One of three comes back empty, as a new member; the others have everything."""
    if arena.etcd is None or not _all_answer(arena.etcd_members):
        return None
    cluster, member = arena.etcd, chance.choice(arena.etcd_members)
    arena.diary.write("killed", "etcd", member.pid)
    member.kill()

    def replace() -> None:
        cluster.replace(member)
        member.start()

    return replace


def empty_nats_member(arena: Arena, chance: random.Random) -> End | None:
    if not _all_answer(arena.nats_members):
        return None
    member = chance.choice(arena.nats_members)
    arena.diary.write("killed", "nats", member.pid)
    member.kill()
    member.lose_data()
    return member.start


def _named(prefix: str, begin: Callable[..., End | None], *what: str) -> dict[str, Begin]:
    return {f"{prefix}_{each}": partial(begin, each) for each in what}


GROUND_FAULTS: dict[str, Begin] = {
    **_named("cut", _cut, "both", "from", "to"),
    **_named("fill", _fill, "etcd", "nats"),
    "lose_nats": lose_nats,
    "empty_etcd_member": empty_etcd_member,
    "empty_nats_member": empty_nats_member,
}
