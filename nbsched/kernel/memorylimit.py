"""The kernel's own half of a task's memory limit: a backstop against sudden allocations.

The limit itself is kept by the daemon, which samples what the kernel and what it has
started really occupy (`nbsched.worker.memory`). Between two samples a task can fill
gigabytes; so the kernel lets the system refuse what would go far beyond the limit. The
task then gets a MemoryError at the very line, and may handle it.

RLIMIT_DATA, and not RLIMIT_AS: the latter counts mapped files, shared memory and address
space that is only reserved, of which numpy's threads and GPU libraries take gigabytes. The
former counts private memory that may be written, used or not: arrays that are never
touched, and for each thread its whole stack (8 MiB as a rule) of which it uses some KiB. So
it is set beyond what the kernel had before the task by twice the limit and by room for the
stacks of two threads for each CPU, 1 GiB at least (128 threads). Who stays within the limit
meets it only with more threads than that, or by reserving more than twice the limit. Linux
4.7 and later; elsewhere it counts less, and refuses nothing.
"""

from __future__ import annotations

import os
import resource
from contextlib import suppress

_FACTOR = 2
_ROOM_BYTES = 1 << 30
_THREADS_PER_CPU = 2
_STACK_BYTES = 8 << 20
"""Where the system sets no limit to it."""


class MemoryBackstop:
    """Set while the code of a task with a limit runs, and at no other time: what the kernel
    does for itself must not be refused memory."""

    def __init__(self) -> None:
        self._before: tuple[int, int] | None = None

    def set(self, limit: int) -> None:
        """Before the task's code runs. A limit beyond what the system can count is none."""
        with suppress(OSError, ValueError, OverflowError):
            before = resource.getrlimit(resource.RLIMIT_DATA)
            most = _data_bytes() + _FACTOR * limit + _stacks_bytes()
            others = [each for each in before if each != resource.RLIM_INFINITY]
            resource.setrlimit(resource.RLIMIT_DATA, (min([most, *others]), before[1]))
            self._before = before

    def lift(self) -> None:
        """After it, as far as the system allows. Children that it has left running keep theirs."""
        if self._before is None:
            return
        before, self._before = self._before, None
        try:
            resource.setrlimit(resource.RLIMIT_DATA, before)
        except (OSError, ValueError):  # the task has lowered the hard limit, and that is final
            with suppress(OSError, ValueError):
                _, hard = resource.getrlimit(resource.RLIMIT_DATA)
                resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def _data_bytes() -> int:
    """What counts against RLIMIT_DATA now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[5]) * resource.getpagesize()


def _stacks_bytes() -> int:
    """Room for what threads reserve for their stacks."""
    stack, _ = resource.getrlimit(resource.RLIMIT_STACK)
    each = _STACK_BYTES if stack == resource.RLIM_INFINITY else stack
    return max(_ROOM_BYTES, _THREADS_PER_CPU * (os.cpu_count() or 1) * each)
