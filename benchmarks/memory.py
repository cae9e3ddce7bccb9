"""What one long map leaves in memory and on the servers: it must not grow with the tasks.

    python -m benchmarks.memory [TASKS]

Two workers, of which one leads; a million short tasks by default, whose results the client
keeps. Prints each process's resident memory when a tenth of the tasks has ended and at the
end, in MiB; and what the results between take as a plain list, made and measured in a
process of its own: the client may grow by that. Then what etcd (its history dropped, as it
does by itself every five minutes) and the logs hold: before the map, after it, and when it
is forgotten.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from typing import Any
from urllib.parse import urlsplit

import nats

from nbsched import LocalCluster
from nbsched.local import etcdserver
from nbsched.local.runtime import Identity
from nbsched.names import Names
from nbsched.settings import Settings

TASKS = 1_000_000
_TASK_S = 20e-6
_LOOK_S = 0.02

_RESULTS = """
import os
def rss():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
before = rss()
kept = list(range({start}, {stop}))
print(rss() - before)
"""


def work(x: int) -> int:
    """Keep a CPU busy for a moment."""
    until = time.perf_counter() + _TASK_S
    while time.perf_counter() < until:
        pass
    return x


def resident_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def results_bytes(count: int) -> int:
    """What a list of so many integers takes."""
    code = _RESULTS.format(start=1_000_000, stop=1_000_000 + count)
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    return int(made.stdout)


def watched(mf: Any, pids: dict[str, int], tasks: int) -> tuple[dict[str, int], int]:
    """Each process's memory once a tenth of the tasks has ended, and how many had then."""
    while (done := mf.progress.done) < tasks // 10:
        time.sleep(_LOOK_S)
    return {name: resident_bytes(pid) for name, pid in pids.items()}, done


def stored(settings: Settings) -> tuple[int, int]:
    """Bytes in use in etcd, without its history, and in both logs."""
    identity = Identity(
        etcd_port=urlsplit(f"//{settings.etcd[0]}").port or 0,
        nats_port=0,
        etcd_password=settings.etcd_password or "",
        nats_password="",
    )
    token = etcdserver.log_in(identity)
    etcdserver.compact(identity, token)
    etcdserver.defragment(identity, token)
    return etcdserver.room(identity, token).used_bytes, asyncio.run(log_bytes(settings))


async def log_bytes(settings: Settings) -> int:
    names = Names(settings.namespace)
    connection = await nats.connect(
        list(settings.nats), user=settings.nats_user, password=settings.nats_password
    )
    try:
        streams = connection.jetstream()
        logs = [await streams.stream_info(name) for name in (names.inputs_log, names.results_log)]
    finally:
        await connection.close()
    return sum(log.state.bytes for log in logs)


def main() -> None:
    tasks = int(sys.argv[1]) if len(sys.argv) > 1 else TASKS
    with LocalCluster(workers=2, cpus=1, progress="off") as cluster:
        first = cluster.map(work, range(1000))
        first.result()
        first.forget()
        held = {"before": stored(cluster.settings)}
        pids = {("leader" if w.leader else "worker"): w.pid for w in cluster.workers()}
        pids["client"] = os.getpid()
        mf = cluster.map(work, range(tasks))
        before, done = watched(mf, pids, tasks)
        mf.wait()
        after = {name: resident_bytes(pid) for name, pid in pids.items()}
        held["after the map"] = stored(cluster.settings)
        mf.forget()
        held["forgotten"] = stored(cluster.settings)
    print("| process | at a tenth, MiB | at the end, MiB | growth |\n|---|---|---|---|")
    for name in ("client", "leader", "worker"):
        first, last = before[name], after[name]
        growth = f"{(last - first) / 2**20:+.1f} MiB, {last / first - 1:+.1%}"
        print(f"| {name} | {first / 2**20:.1f} | {last / 2**20:.1f} | {growth} |")
    kept = results_bytes(tasks - done) / 2**20
    print(f"\nResults of {tasks - done:,} tasks as a list: {kept:.1f} MiB.\n")
    print("| | etcd, KiB | logs, KiB |\n|---|---|---|")
    for when, sizes in held.items():
        print(f"| {when} | {' | '.join(f'{size / 1024:.1f}' for size in sizes)} |")


if __name__ == "__main__":
    main()
