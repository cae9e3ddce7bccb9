"""What must be remembered of a task that did not simply run once in its round."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from nbsched.indexset import IndexSet, Range
from nbsched.messages import Outcome


@dataclass(frozen=True)
class TaskHistory:
    """Attempts and crashes of a task in its round."""

    attempt: int = 1
    crashes: int = 0
    first_started_at: float | None = None

    def crashed(self) -> TaskHistory:
        return replace(self, crashes=self.crashes + 1)


_NO_HISTORY = TaskHistory()


@dataclass
class Histories:
    """The histories of one job: an entry for each task that has one."""

    _entries: dict[int, TaskHistory] = field(default_factory=dict)
    _known: IndexSet = field(default_factory=IndexSet)

    def of(self, index: int) -> TaskHistory:
        return self._entries.get(index, _NO_HISTORY)

    def indices(self, start: int, stop: int) -> list[int]:
        """The tasks of a range that have a history."""
        parts = self._known.intersection(start, stop) if self._entries else ()
        return [index for low, high in parts for index in range(low, high)]

    def without(self, start: int, stop: int) -> list[Range]:
        """The parts of a range that have none."""
        return self._known.missing(start, stop)

    def drop(self, start: int, stop: int) -> None:
        """A new round begins."""
        for index in self.indices(start, stop):
            del self._entries[index]
        self._known.remove(start, stop)

    def note_retry(self, outcome: Outcome) -> bool:
        """An attempt ended and another follows; False when that is known already.

        A death of kernel or host counts as a crash and not as an attempt.
        """
        index, known = outcome.start, self.of(outcome.start)
        crash = outcome.crashes > known.crashes
        if not crash and (outcome.attempt < known.attempt or outcome.crashes < known.crashes):
            return False
        self._entries[index] = TaskHistory(
            attempt=max(known.attempt, outcome.attempt if crash else outcome.attempt + 1),
            crashes=max(known.crashes, outcome.crashes),
            first_started_at=outcome.first_started_at or known.first_started_at,
        )
        self._known.add(index, index + 1)
        return True
