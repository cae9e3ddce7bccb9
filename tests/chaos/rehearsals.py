"""Fixed stories: what is promised of each is known beforehand.

python -m chaos.run "a cut of 30 s"
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from chaos import diary
from chaos.arena import TTL_S, Arena
from chaos.client import JobPlan
from chaos.proxy import Proxy
from chaos.schedule import for_bug
from chaos.trial import Story, Trial
from support.conditions import until

KILLS = 10
BETWEEN_KILLS = 250
"""Tasks that end between two kills: the map is not over before the last."""
TASKS, TASK_S = 5000, 0.02
TAKEOVER_WITHIN_S = 40.0


def ended_tasks(arena: Arena) -> int:
    """Tasks that have ended so far, some of them perhaps twice."""
    return sum(path.read_bytes().count(b'["end"') for path in arena.folder.glob("task-*.diary"))


def _ten_leaders(arena: Arena, story: Story) -> None:
    for number in range(KILLS):
        goal = ended_tasks(arena) + BETWEEN_KILLS
        until(lambda goal=goal: ended_tasks(arena) >= goal, TAKEOVER_WITHIN_S, "tasks end again")
        leader = until(arena.leader, TAKEOVER_WITHIN_S, "somebody leads")
        arena.diary.write("killed", "daemon", leader.pid, leader.kernels())
        story.tell("kill_leader", f"{number + 1}: {leader.name}, {ended_tasks(arena)} had ended")
        leader.kill()
        leader.launch()


def _each_server(arena: Arena, story: Story) -> None:
    """Every member of both clusters dies once, and is back before the next one dies."""
    for kind, members in (("etcd", arena.etcd_members), ("nats", arena.nats_members)):
        for member in members:
            goal = ended_tasks(arena) + 40
            arena.diary.write("killed", kind, member.pid)
            member.kill()
            until(lambda goal=goal: ended_tasks(arena) >= goal, 30, f"work without a {kind}")
            member.start()
            story.tell(f"kill_{kind}_member", f"{member.name} died and came back")


def _a_lost_disk(arena: Arena, story: Story) -> None:
    """A member of each cluster comes back empty; the others have everything."""
    assert arena.etcd is not None
    etcd, nats = arena.etcd_members[1], arena.nats_members[1]
    arena.diary.write("killed", "etcd", etcd.pid)
    etcd.kill()
    arena.etcd.replace(etcd)
    etcd.start()
    story.tell("empty_etcd_member", "an etcd member came back without its data")
    arena.diary.write("killed", "nats", nats.pid)
    nats.kill()
    nats.lose_data()
    nats.start()
    story.tell("empty_nats_member", "a NATS server came back without its data")
    # What it holds now it has from the others: they may go.
    first = arena.nats_members[0]
    arena.diary.write("killed", "nats", first.pid)
    first.kill()
    goal = ended_tasks(arena) + 40
    until(lambda: ended_tasks(arena) >= goal, 30, "work with the new member")
    first.start()


def _detour(arena: Arena) -> list[Proxy]:
    """The client reaches the servers through proxies."""
    etcd = [Proxy(member.endpoint) for member in arena.etcd_members]
    nats = [Proxy(member.url.removeprefix("nats://")) for member in arena.nats_members]
    arena.detours["client"] = {
        "etcd": [proxy.address for proxy in etcd],
        "nats": [f"nats://{proxy.address}" for proxy in nats],
    }
    return [*etcd, *nats]


def _cut(seconds: float) -> Trial:
    proxies: list[Proxy] = []

    def act(arena: Arena, story: Story) -> None:
        began = len(diary.read(arena.folder, "client"))
        for proxy in proxies:
            proxy.cut()
        arena.diary.write("cut", "client")
        time.sleep(seconds)
        told = len(diary.read(arena.folder, "client")) - began
        story.tell("cut_client", f"cut for {seconds:g} s; lines that came through: {told}")
        for proxy in proxies:
            proxy.mend()

    jobs = [
        JobPlan("long", ["tick"] * 6, seconds + 2),
        JobPlan("many", ["ok"] * int(40 * seconds), 0.05),
    ]
    name = f"a cut of {seconds:g} s"
    return Trial(name, jobs, act, prepare=lambda arena: proxies.extend(_detour(arena)))


def _partition(way: str, victim: int, seconds: float = 2.5 * TTL_S) -> Trial:
    """A daemon is cut off for longer than its lease lasts; daemon 0 leads then."""

    def prepare(arena: Arena) -> None:
        arena.give_networks(arena.daemons[victim].name)

    def act(arena: Arena, story: Story) -> None:
        time.sleep(0.5)
        name = arena.daemons[victim].name
        network = arena.networks[name]
        leads = arena.leader() is arena.daemons[victim]
        arena.diary.write("cut", name)
        network.cut(way)
        time.sleep(seconds)
        network.mend()
        story.tell(f"cut_{way}", f"{name}{' (leads)' if leads else ''} cut for {seconds:g} s")

    role = "the leader" if victim == 0 else "a worker"
    name = {
        "both": f"{role} is cut off",
        "from": f"nothing comes from {role}",
        "to": f"nothing comes to {role}",
    }[way]
    jobs = for_bug(0, ()).jobs
    return Trial(name, jobs, act, prepare=prepare)


def _full_disk(kind: str) -> Trial:
    """Somebody fills the disk to the last byte, and makes room a while later.

    etcd ends when it cannot write, and NATS takes nothing any more after a failed write:
    both are to be started again when there is room.
    """

    def act(arena: Arena, story: Story) -> None:
        (server,) = arena.etcd_members if kind == "etcd" else arena.nats_members
        arena.diary.write("killed", kind, server.pid)
        arena.disks[kind].fill()
        time.sleep(6)
        story.tell(f"full_{kind}", f"{kind} had no room; it {'ran' if server.running else 'ended'}")
        arena.disks[kind].make_room()
        server.kill()
        server.start()

    name = f"the disk of {kind} is full"
    jobs = for_bug(0, ()).jobs
    return Trial(name, jobs, act, prepare=lambda arena: arena.give_small_disk(kind))


def _many(count: int, seconds: float) -> list[JobPlan]:
    return [JobPlan("many", ["ok"] * count, seconds, ballast=200)]


_LEADERS_AND_SERVERS: list[Callable[[], Trial]] = [
    lambda: Trial("ten leaders", _many(TASKS, TASK_S), _ten_leaders),
    lambda: Trial("each server dies", _many(1500, 0.03), _each_server, clustered=True),
    lambda: Trial("a lost disk", _many(1500, 0.03), _a_lost_disk, clustered=True),
]
_CUTS = [partial(_cut, 6), partial(_cut, 30)]
_FULL_DISKS = [partial(_full_disk, "etcd"), partial(_full_disk, "nats")]
_PARTITIONS = [
    partial(_partition, way, victim) for way in ("both", "from", "to") for victim in (0, 2)
]


def _named(trials: Sequence[Callable[[], Trial]]) -> dict[str, Callable[[], Trial]]:
    return {make().name: make for make in trials}


FULL_DISKS = _named(_FULL_DISKS)
PARTITIONS = _named(_PARTITIONS)
REHEARSALS = _named([*_LEADERS_AND_SERVERS, *_CUTS]) | FULL_DISKS | PARTITIONS
