"""Memory of client, leader and worker over one long map: it must not grow with the tasks.

    python -m benchmarks.memory [TASKS]

Two workers, of which one leads; a million short tasks by default, whose results the client
keeps. Prints each process's resident memory when a tenth of the tasks has ended and at the
end, in MiB; and what the results between take as a plain list, made and measured in a
process of its own: the client may grow by that.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

from nbsched import LocalCluster

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


def main() -> None:
    tasks = int(sys.argv[1]) if len(sys.argv) > 1 else TASKS
    with LocalCluster(workers=2, cpus=1, progress="off") as cluster:
        cluster.map(work, range(1000)).result()
        pids = {("leader" if w.leader else "worker"): w.pid for w in cluster.workers()}
        pids["client"] = os.getpid()
        mf = cluster.map(work, range(tasks))
        before, done = watched(mf, pids, tasks)
        mf.wait()
        after = {name: resident_bytes(pid) for name, pid in pids.items()}
    print("| process | at a tenth, MiB | at the end, MiB | growth |\n|---|---|---|---|")
    for name in ("client", "leader", "worker"):
        first, last = before[name], after[name]
        growth = f"{(last - first) / 2**20:+.1f} MiB, {last / first - 1:+.1%}"
        print(f"| {name} | {first / 2**20:.1f} | {last / 2**20:.1f} | {growth} |")
    kept = results_bytes(tasks - done) / 2**20
    print(f"\nResults of {tasks - done:,} tasks as a list: {kept:.1f} MiB.")


if __name__ == "__main__":
    main()
