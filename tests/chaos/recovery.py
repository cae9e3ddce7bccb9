"""How long until work runs again after each kind of death, measured from outside.

    python -m chaos.recovery [--runs 10] [--kind kernel ...]

Three daemons of two kernels, TTL 2 s, single servers on loopback, nothing else to do. What
counts is the diaries: the time from the death to the next start of the task that was lost,
or of the first task of a job that is submitted right after it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from chaos import diary
from chaos.arena import TTL_S, Arena
from chaos.tasks import Item, Work
from nbsched import Cluster
from support.conditions import until
from support.serverprocess import ServerProcess

WITHIN_S = 60.0
LONG_S = 600.0

Measure = Callable[[Arena, Cluster, str], float]


def _starts(arena: Arena, label: str) -> list[diary.Line]:
    return [
        line for line in diary.read(arena.folder, "task") if line[0] == "start" and line[1] == label
    ]


def _running(arena: Arena, cluster: Cluster, label: str, count: int) -> list[diary.Line]:
    """``count`` long tasks have started."""
    work = Work(label, str(arena.folder))
    cluster.options(max_crashes=20).map(work, [Item(i, "ok", LONG_S) for i in range(count)])
    until(lambda: len(_starts(arena, label)) == count, WITHIN_S, "all tasks run")
    return _starts(arena, label)


def _started_again(arena: Arena, label: str, lost: list[diary.Line], since: float) -> float:
    """Seconds until the last of the lost tasks has started again."""
    indices = {line[2] for line in lost}

    def again() -> list[float]:
        later = [line for line in _starts(arena, label) if line[-2] > since and line[2] in indices]
        return [line[-2] for line in later] if {line[2] for line in later} == indices else []

    return max(until(again, WITHIN_S, "the lost tasks run again")) - since


def _kernel(arena: Arena, cluster: Cluster, label: str) -> float:
    (line,) = _running(arena, cluster, label, 1)
    since = time.monotonic()
    os.kill(line[4], signal.SIGKILL)
    return _started_again(arena, label, [line], since)


def _worker(arena: Arena, cluster: Cluster, label: str) -> float:
    """A daemon that does not lead dies with both of its tasks; two kernels are free."""
    lines = _running(arena, cluster, label, 4)
    leader = until(arena.leader, WITHIN_S)
    victim = next(
        d for d in arena.daemons if d is not leader and any(li[5] == d.pid for li in lines)
    )
    lost = [line for line in lines if line[5] == victim.pid]
    since = time.monotonic()
    victim.kill()
    took_s = _started_again(arena, label, lost, since)
    victim.start()
    return took_s


def _leader(arena: Arena, cluster: Cluster, label: str) -> float:
    """The leader dies; a job that is submitted then has to wait for the next one."""
    _running(arena, cluster, label, 1)
    leader = until(arena.leader, WITHIN_S)
    since = time.monotonic()
    leader.kill()
    took_s = _first_start(arena, cluster, f"{label}-after", since)
    leader.start()
    return took_s


def _first_start(arena: Arena, cluster: Cluster, label: str, since: float) -> float:
    cluster.submit(Work(label, str(arena.folder)), Item(0, "ok", 0.0))
    return float(until(lambda: _starts(arena, label), WITHIN_S, "a new job runs")[0][-2]) - since


def _server(arena: Arena, cluster: Cluster, label: str, server: ServerProcess) -> float:
    """From when the server can be used again; a job is submitted at that moment."""
    _running(arena, cluster, label, 1)
    server.kill()
    time.sleep(1.0)
    server.start()
    since = time.monotonic()
    return _first_start(arena, cluster, f"{label}-after", since)


def _etcd(arena: Arena, cluster: Cluster, label: str) -> float:
    return _server(arena, cluster, label, arena.etcd_members[0])


def _nats(arena: Arena, cluster: Cluster, label: str) -> float:
    return _server(arena, cluster, label, arena.nats_members[0])


KINDS: dict[str, tuple[Measure, float]] = {
    "kernel": (_kernel, 0.5),
    "worker": (_worker, TTL_S + 2),
    "leader": (_leader, TTL_S + 2),
    "etcd": (_etcd, 3.0),
    "nats": (_nats, 3.0),
}
"""How it is measured, and what is promised, in seconds."""


def measure(kind: str, runs: int) -> list[float]:
    arena = Arena(Path(tempfile.mkdtemp(prefix="recovery-")))
    try:
        arena.start()
        found = []
        with Cluster(**arena.settings_for("recovery")) as cluster:
            for number in range(runs):
                found.append(KINDS[kind][0](arena, cluster, f"{kind}-{number}"))
                for job in cluster.jobs():
                    mf = cluster.attach(job.id)
                    mf.cancel()
                    until(lambda mf=mf: mf.done(), WITHIN_S, "the tasks are cancelled")
        return found
    finally:
        arena.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--kind", nargs="*", default=list(KINDS))
    given = parser.parse_args()
    print(f"{'death of':<10} {'median s':>9} {'worst s':>8} {'promised s':>11}   TTL {TTL_S:g} s")
    for kind in given.kind:
        found = measure(kind, given.runs)
        median, worst = statistics.median(found), max(found)
        print(f"{kind:<10} {median:>9.2f} {worst:>8.2f} {KINDS[kind][1]:>11.1f}   ", end="")
        print(json.dumps([round(value, 3) for value in found]), flush=True)


if __name__ == "__main__":
    main()
