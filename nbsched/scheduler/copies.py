"""Second copies of slow tasks: which task has one, and where it runs.

A task's first run is in `Job.assigned`, as every other's; its copy is here besides. When
one of the two is gone without an outcome, the other is the only one, and in `assigned`.
"""

from __future__ import annotations

from collections import Counter

from nbsched.model import WorkerId


class Copies:
    """At most one for each task of a job, and few at any time."""

    def __init__(self) -> None:
        self._where: dict[int, WorkerId] = {}
        self._counts: Counter[WorkerId] = Counter()

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, index: int) -> bool:
        return index in self._where

    def add(self, index: int, worker: WorkerId) -> None:
        assert index not in self._where, "a task has one copy"
        self._where[index] = worker
        self._counts[worker] += 1

    def where(self, index: int) -> WorkerId | None:
        """The worker that has the copy of this task, if there is one."""
        return self._where.get(index)

    def drop(self, index: int) -> WorkerId:
        """There is no copy any more; returns where it was."""
        worker = self._where.pop(index)
        self._counts[worker] -= 1
        if not self._counts[worker]:
            del self._counts[worker]
        return worker

    def count_on(self, worker: WorkerId) -> int:
        return self._counts[worker]

    def on(self, worker: WorkerId) -> list[int]:
        """The tasks of which this worker has the copy."""
        if not self._counts[worker]:
            return []
        return [index for index, where in self._where.items() if where == worker]

    def within(self, start: int, stop: int) -> list[int]:
        """The tasks of a range that have a copy."""
        return [index for index in self._where if start <= index < stop]
