"""How much memory a kernel and the processes that its task has started occupy.

Counted is what they have allocated: anonymous and shared memory, swapped out or not. Mapped
files are not, since the system drops those pages when it needs the room. Of memory that
several of these processes share (after a fork, say) each counts its part.

Whoever asks does so many times a second, on the event loop. So a question costs one small
file, however many threads the kernel has, and the kernel's descendants are looked for twice
a second at most, for all kernels at once, and with a twentieth of the time at most.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

_STATUS = re.compile(rb"^(?:RssAnon|RssShmem|VmSwap):\s+(\d+) kB$", re.MULTILINE)
_SHARES = re.compile(rb"^(?:Pss_Anon|Pss_Shmem|SwapPss):\s+(\d+) kB$", re.MULTILINE)

_LOOK_S = 0.5
_LEAST_PAUSE = 20
"""The pause between two looks, in units of what the last one took: a busy host has many
thousands of processes."""


class MemoryWatch:
    """What the kernels of one worker occupy. 0 where the system does not say (not Linux)."""

    def __init__(
        self, proc: Path = Path("/proc"), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._proc = str(proc)
        self._clock = clock
        self._next_look = 0.0
        self._took_s = 0.0
        self._children: dict[int, list[int]] = {}
        """Of each process, at the last look."""
        self._measured: set[int] = set()
        """The kernels whose descendants have been counted since."""

    def used_bytes(self, kernel: int, limit: int) -> int:
        """What the kernel occupies, and at each new look with its descendants; exact where
        it matters, beyond ``limit``. 0 when it is gone."""
        own = self._sum_kib(kernel, "status", _STATUS) * 1024
        if own > limit:
            return own
        began = self._clock()
        if began >= self._next_look:
            self._children = self._look()
            self._measured.clear()
            self._took_s = 0.0
        elif kernel in self._measured:
            return own
        self._measured.add(kernel)
        others = self._descendants(kernel)
        used = self._together(kernel, own, others, limit) if others else own
        self._took_s += self._clock() - began
        self._next_look = max(self._next_look, began + self._took_s * _LEAST_PAUSE)
        return used

    def _together(self, kernel: int, own: int, others: list[int], limit: int) -> int:
        at_most = own + sum(self._sum_kib(each, "status", _STATUS) for each in others) * 1024
        if at_most <= limit:
            return at_most
        # Forked processes share pages, and the sum counts them twice. To look at every page
        # takes milliseconds per GiB, so it is done only now.
        return sum(map(self._share_kib, [kernel, *others])) * 1024

    def _share_kib(self, pid: int) -> int:
        shares = self._sum_kib(pid, "smaps_rollup", _SHARES)
        return shares or self._sum_kib(pid, "status", _STATUS)

    def _sum_kib(self, pid: int, file: str, pattern: re.Pattern[bytes]) -> int:
        return sum(map(int, pattern.findall(_read(f"{self._proc}/{pid}/{file}"))))

    def _look(self) -> dict[int, list[int]]:
        """All processes, by their parent."""
        self._next_look = self._clock() + _LOOK_S
        children: dict[int, list[int]] = {}
        for pid in _pids(self._proc):
            # The name in the second field may hold anything, even blanks and brackets.
            fields = _read(f"{self._proc}/{pid}/stat").rpartition(b")")[2].split(None, 2)
            if len(fields) > 1:
                children.setdefault(int(fields[1]), []).append(pid)
        return children

    def _descendants(self, pid: int) -> list[int]:
        found = list(self._children.get(pid, ()))
        for each in found:  # it grows meanwhile
            found += self._children.get(each, ())
        return found


def _pids(proc: str) -> list[int]:
    try:
        return [int(name) for name in os.listdir(proc) if name.isdigit()]
    except OSError:
        return []


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:  # it has just ended
        return b""
