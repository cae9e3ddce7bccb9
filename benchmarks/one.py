"""One workload on one system, in the environment of that system: a line of JSON.

python -m benchmarks.one SYSTEM WORKLOAD [--smoke]
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
from typing import Any

from benchmarks import accounting, systems, workloads

_TOUCHED_BYTES = 3 << 30
_STOP_S = 15
"""For a system to end by itself; it has answered by then, and the harness ends the rest."""


def main(name: str, workload: str, smoke: bool) -> None:
    sizes = workloads.SMOKE if smoke else workloads.Sizes()
    if workload in workloads.TOUCHES_MEMORY and not smoke:
        _touch_memory()
    system = systems.load(name)
    if not hasattr(system, workloads.NEEDS.get(workload, "start")):
        _say({"unable": "none"})
        return
    try:
        _say(_measured(system, workload, sizes))
    except workloads.UnableError as reason:
        _say({"unable": str(reason)})
    finally:
        signal.alarm(_STOP_S // 3 if smoke else _STOP_S)
        system.stop()


def _measured(system: Any, workload: str, sizes: workloads.Sizes) -> dict[str, Any]:
    if workload in workloads.STARTING:
        return {"figures": workloads.STARTING[workload](system, sizes)}
    system.start()
    assert system.map_default(workloads.negate, [-1, -2]) == [1, 2]
    before = accounting.cpu_s()
    figures = workloads.RUNNING[workload](system, sizes)
    return {
        "figures": figures,
        "tasks": getattr(sizes, workloads.TASKS.get(workload, ""), None),
        "cpu_s": accounting.cpu_s() - before,
        "peak_mib": accounting.peak_mib(),
    }


def _touch_memory() -> None:
    """A virtual machine may get its memory page by page at the first touch, which takes
    longer than what is measured here. Alike for all systems."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    size = min(_TOUCHED_BYTES, free // 2)
    with mmap.mmap(-1, size) as memory:
        for at in range(0, size, mmap.PAGESIZE):
            memory[at] = 1


def _say(answer: dict[str, Any]) -> None:
    """What a system prints goes to the same stream; this line is told by its mark."""
    sys.stdout.flush()
    os.write(1, f"\n#result {json.dumps(answer)}\n".encode())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], "--smoke" in sys.argv)
    os._exit(0)  # threads that still wait for a system do not hold up the rest
