"""The usable workers of one version of Python, indexed.

So that no decision goes through all of them: the lightest and the fullest worker come
from heaps, the number of slots from a count of sizes, of which there are few.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator

from nbsched.model import WorkerId
from nbsched.scheduler.loadheap import Load, LoadHeap
from nbsched.scheduler.workers import Worker


class Fleet:
    """Entered and left by `State.refresh_worker` alone."""

    def __init__(self) -> None:
        self._lightest: dict[int, LoadHeap] = {}
        """By size, since a wide task fits only on large workers."""
        self.fullest = LoadHeap()
        """By negative load: workers that have more than fills their slots, and that are
        not being asked to give some of it back."""
        self.idle: dict[WorkerId, None] = {}
        """Workers with free slots."""
        self.recalling: set[WorkerId] = set()
        self.sizes: Counter[int] = Counter()
        """Workers by their number of slots."""
        self._cpus: dict[WorkerId, int] = {}
        self._resting: list[tuple[float, WorkerId]] = []
        """Heap of the times at which workers may be asked again."""

    @property
    def slots(self) -> int:
        return sum(cpus * count for cpus, count in self.sizes.items())

    @property
    def largest(self) -> int:
        """Slots of the largest worker; 0 when there is none."""
        return max(self.sizes, default=0)

    def lightest(self, cpus: int = 1) -> tuple[Load, WorkerId] | None:
        """The worker of at least this size with the least to do, and its load."""
        tops = [heap.peek() for size, heap in self._lightest.items() if size >= cpus]
        return min((top for top in tops if top is not None), default=None)

    def enter(self, worker: Worker, load: float) -> None:
        """Put a worker where it belongs now. ``load`` is in seconds per slot."""
        if self._cpus.get(worker.id) != worker.cpus:
            self._count_out(worker.id)
            self._cpus[worker.id] = worker.cpus
            self.sizes[worker.cpus] += 1
        used = worker.used_slots
        heap = self._lightest.setdefault(worker.cpus, LoadHeap())
        heap.set(worker.id, (used >= worker.cpus, load))
        if used < worker.cpus:
            self.idle[worker.id] = None
        else:
            self.idle.pop(worker.id, None)
        if worker.recalling:
            self.recalling.add(worker.id)
        else:
            self.recalling.discard(worker.id)
        if used > worker.cpus and not (worker.recalling or worker.resting):
            self.fullest.set(worker.id, (False, -load))
        else:
            self.fullest.discard(worker.id)

    def rest(self, worker: Worker, until: float) -> None:
        """Ask it for nothing before that time."""
        worker.resting = True
        heapq.heappush(self._resting, (until, worker.id))

    def rested(self, now: float) -> Iterator[WorkerId]:
        """Those whose time has come."""
        while self._resting and self._resting[0][0] <= now:
            yield heapq.heappop(self._resting)[1]

    def leave(self, worker: WorkerId) -> None:
        """It is lost, or drains."""
        self._count_out(worker)
        self.fullest.discard(worker)
        self.idle.pop(worker, None)
        self.recalling.discard(worker)

    def _count_out(self, worker: WorkerId) -> None:
        cpus = self._cpus.pop(worker, None)
        if cpus is not None:
            self._lightest[cpus].discard(worker)
            self.sizes[cpus] -= 1
            if not self.sizes[cpus]:
                del self.sizes[cpus], self._lightest[cpus]
