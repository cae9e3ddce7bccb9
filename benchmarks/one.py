"""One workload on one system, in the environment of that system: a line of JSON.

python -m benchmarks.one SYSTEM WORKLOAD [--smoke]
"""

from __future__ import annotations

import json
import mmap
import os
import sys
from typing import Any

from benchmarks import accounting, systems, workloads

_TOUCHED_BYTES = 3 << 30


def main(name: str, workload: str, smoke: bool) -> dict[str, Any]:
    sizes = workloads.SMOKE if smoke else workloads.Sizes()
    if workload in workloads.TOUCHES_MEMORY and not smoke:
        _touch_memory()
    system = systems.load(name)
    try:
        return _measured(system, workload, sizes)
    except workloads.UnableError as reason:
        return {"unable": str(reason)}
    finally:
        if vars(system):  # something of it was started
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
        "cpu_s": accounting.cpu_s() - before,
        "peak_mib": accounting.peak_mib(),
    }


def _touch_memory() -> None:
    """A virtual machine may get its memory page by page at the first touch, which takes
    longer than what is measured here. Alike for all systems."""
    with mmap.mmap(-1, _TOUCHED_BYTES) as memory:
        for at in range(0, _TOUCHED_BYTES, mmap.PAGESIZE):
            memory[at] = 1


if __name__ == "__main__":
    answer = main(sys.argv[1], sys.argv[2], "--smoke" in sys.argv)
    sys.stdout.flush()
    # What a system prints goes to the same stream; this line is told by its mark.
    os.write(1, f"\n#result {json.dumps(answer)}\n".encode())
