"""Which worker has the least work: a heap whose entries may be outdated.

An entry is dropped when it comes to the top and its version is not the newest, so a
change costs O(log n) and nothing is ever searched for.
"""

from __future__ import annotations

import heapq

from nbsched.model import WorkerId

Load = tuple[bool, float]
"""Whether all slots are taken, and the seconds of work in hand per slot. A free slot
comes first: behind a task of unknown length even a short backlog may be long."""


class LoadHeap:
    """Workers ordered by load, lightest first."""

    def __init__(self) -> None:
        self._heap: list[tuple[Load, int, WorkerId]] = []
        self._newest: dict[WorkerId, tuple[Load, int]] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._newest)

    def set(self, worker: WorkerId, load: Load) -> None:
        """Enter a worker, or change its load."""
        known = self._newest.get(worker)
        if known is not None and known[0] == load:
            return
        self._count += 1
        self._newest[worker] = (load, self._count)
        heapq.heappush(self._heap, (load, self._count, worker))
        if len(self._heap) > 4 * len(self._newest) + 64:
            self._heap = [(load, n, worker) for worker, (load, n) in self._newest.items()]
            heapq.heapify(self._heap)

    def discard(self, worker: WorkerId) -> None:
        self._newest.pop(worker, None)

    def peek(self) -> tuple[Load, WorkerId] | None:
        """The lightest worker and its load."""
        while self._heap:
            load, number, worker = self._heap[0]
            newest = self._newest.get(worker)
            if newest is not None and newest[1] == number:
                return load, worker
            heapq.heappop(self._heap)
        return None
