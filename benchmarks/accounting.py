"""CPU seconds and peak memory of all processes of a run, wherever they have gone.

A run marks its environment, which children inherit; so servers that have left the process
tree count as well. A process that gives up its environment is found by its parent.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

MARK = "NBBENCH_RUN"


def processes(run: str) -> list[int]:
    """All living processes of a run, in no order."""
    wanted = f"{MARK}={run}".encode()
    found: set[int] = set()
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):  # it has ended meanwhile, or is another user's
                pid = int(folder.name)
                children.setdefault(int(_stat(pid)[1]), []).append(pid)
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.add(pid)
    waiting = list(found)
    while waiting:
        new = set(children.get(waiting.pop(), ())) - found
        found |= new
        waiting += new
    return list(found)


def _stat(pid: int) -> list[str]:
    """What follows the name in a process's status: its state, its parent, …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def cpu_s() -> float:
    """User and system time so far, with that of children that have been waited for."""
    ticks = 0
    for pid in processes(os.environ[MARK]):
        with suppress(OSError):
            ticks += sum(map(int, _stat(pid)[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def peak_mib() -> dict[str, float]:
    """Peak resident memory: of this process, of the largest other one, and of all."""
    peaks = {}
    for pid in processes(os.environ[MARK]):
        with suppress(OSError, StopIteration):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            line = next(line for line in lines if line.startswith("VmHWM"))
            peaks[pid] = int(line.split()[1]) / 1024
    mine = peaks.pop(os.getpid(), 0.0)
    return {
        "client": mine,
        "largest other": max(peaks.values(), default=0.0),
        "all": mine + sum(peaks.values()),
    }
