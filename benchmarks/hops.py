"""Where the time goes: CPU seconds of every process, beside the floor under each hop.

    python benchmarks/hops.py

Prints two Markdown tables, for a million tiny tasks and for 200 arrays of 1 MiB, as they
stand in docs/profile.md. CPU seconds depend on the machine far less than wall time does;
still, run it on a quiet one.
"""

from __future__ import annotations

import gc
import mmap
import os
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nbsched import LocalCluster
from nbsched.payload import blocks, frames, pickling
from nbsched.payload.sharedfolder import SharedFolder

ROUNDS = 5
TASKS = 1_000_000
ARRAYS = 200
MIB = 1 << 20
TOUCHED_BYTES = 3 << 30


def identity(x: object) -> object:
    return x


def double(array: np.ndarray) -> np.ndarray:
    return array * 2


def main() -> None:
    touch_memory(TOUCHED_BYTES)
    items = list(range(TASKS))
    arrays = [np.full(MIB // 8, float(i)) for i in range(ARRAYS)]
    with LocalCluster(workers=1, cpus=2, progress="off") as cluster:
        cluster.submit(abs, 1).result()
        tiny = measure(cluster, lambda: cluster.map(identity, items).result())
        large = measure(cluster, lambda: cluster.map(double, arrays).result())
    print_table("a million tiny tasks", "us per task", tiny, TASKS / 1e6, floors_of_tiny(items))
    print_table("200 arrays of 1 MiB", "ms per array", large, ARRAYS / 1e3, floors_of_large(arrays))


def touch_memory(nbytes: int) -> None:
    """A virtual machine may get its pages at their first touch only; that is not ours."""
    with mmap.mmap(-1, nbytes) as memory:
        for at in range(0, nbytes, mmap.PAGESIZE):
            memory[at] = 1


# ---------------------------------------------------------------- processes


def measure(cluster: LocalCluster, work: Callable[[], object]) -> dict[str, float]:
    """Median seconds: wall time, and CPU by process."""
    rounds = []
    for _ in range(ROUNDS):
        pids = processes(cluster)
        before = {name: cpu_s(pid) for name, pid in pids.items()}
        started = time.perf_counter()
        result = work()
        wall = time.perf_counter() - started
        # Reports and acknowledgements that are still on their way belong to it.
        time.sleep(0.2)
        del result
        gc.collect()
        spent = {name: cpu_s(pid) - before[name] for name, pid in pids.items()}
        spent["kernels"] = spent.pop("kernel 1") + spent.pop("kernel 2")
        rounds.append({"wall time": wall, **spent})
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}


def processes(cluster: LocalCluster) -> dict[str, int]:
    pids = cluster.pids()
    (worker,) = pids["workers"]
    found = {"client": os.getpid(), "worker and leader": worker}
    for number, pid in enumerate(children(worker), start=1):
        found[f"kernel {number}"] = pid
    return {**found, "NATS": pids["nats"][0], "etcd": pids["etcd"][0]}


def children(pid: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cpu_s(pid: int) -> float:
    """User and system time of a process, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ---------------------------------------------------------------- floors


def floors_of_tiny(items: list[int]) -> dict[str, float]:
    """Seconds that the bare operations take for all items, once each."""
    packed = [packed.frame.join() for packed in blocks.pack(items, 256 * 1024)]
    pickles = [bytes(blocks.decode(data).data) for data in packed]
    return {
        "`[fn(x) for x in items]`": timed(lambda: [identity(x) for x in items]),
        "pickle the items": timed(lambda: pickle.dumps(items, protocol=5)),
        "unpickle them": timed(lambda: [pickle.loads(data) for data in pickles]),
        "pack them into blocks (ours)": timed(lambda: list(blocks.pack(items, 256 * 1024))),
    }


def floors_of_large(arrays: list[np.ndarray]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as path:
        folder = SharedFolder.open(path)
        names: list[str] = []

        def write() -> None:
            names[:] = [folder.write("job", "x", pickling.pack(a).chunks) for a in arrays]

        def read() -> None:
            for name in names:
                frames.load(folder.map(name)).sum()

        found = {
            "`array * 2`": timed(lambda: [double(array).nbytes for array in arrays]),
            "copy": timed(lambda: [array.copy().nbytes for array in arrays]),
            "write to a file (ours)": timed(write, after=lambda: folder.remove("job")),
        }
        write()
        found["map it and read every number (ours)"] = timed(read)
        return found


def timed(work: Callable[[], object], after: Callable[[], object] | None = None) -> float:
    """Median seconds of a few rounds."""
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
        if after is not None:
            after()
    return statistics.median(times)


def print_table(
    what: str, unit: str, spent: dict[str, float], scale: float, floors: dict[str, float]
) -> None:
    print(f"\n| {what} | {unit} |\n|---|---|")
    for name, seconds in spent.items():
        label = name if name == "wall time" else f"CPU: {name}"
        print(f"| {label} | {seconds / scale:.3f} |")
    cpu = sum(seconds for name, seconds in spent.items() if name != "wall time")
    print(f"| **CPU: all processes** | **{cpu / scale:.3f}** |")
    for name, seconds in floors.items():
        print(f"| floor: {name} | {seconds / scale:.3f} |")


if __name__ == "__main__":
    main()
