"""The tasks of a job that have ended in their round, by what they ended in."""

from __future__ import annotations

from dataclasses import dataclass, field

from nbsched.indexset import IndexSet, Range
from nbsched.messages import OutcomeState


@dataclass
class Ended:
    """Three disjoint sets; the first valid outcome of a task decides which it is in."""

    ok: IndexSet = field(default_factory=IndexSet)
    failed: IndexSet = field(default_factory=IndexSet)
    cancelled: IndexSet = field(default_factory=IndexSet)

    def __len__(self) -> int:
        return len(self.ok) + len(self.failed) + len(self.cancelled)

    def __contains__(self, index: int) -> bool:
        return index in self.ok or index in self.failed or index in self.cancelled

    def still_open(self, start: int, stop: int) -> list[Range]:
        """The parts of ``[start, stop)`` that have not ended."""
        parts = [(start, stop)]
        for ended in (self.ok, self.failed, self.cancelled):
            parts = [gap for low, high in parts for gap in ended.missing(low, high)]
        return parts

    def enter(self, start: int, stop: int, state: OutcomeState) -> list[Range]:
        """Tasks ended; returns those that had not ended before."""
        target = {
            OutcomeState.OK: self.ok,
            OutcomeState.FAILED: self.failed,
            OutcomeState.CANCELLED: self.cancelled,
        }[state]
        parts = self.still_open(start, stop)
        for low, high in parts:
            target.add(low, high)
        return parts

    def closed(self, start: int, stop: int) -> list[Range]:
        """The parts of ``[start, stop)`` that have ended."""
        sets = (self.ok, self.failed, self.cancelled)
        return [part for ended in sets for part in ended.intersection(start, stop)]

    def leave(self, start: int, stop: int) -> None:
        """Tasks are to run again."""
        for ended in (self.ok, self.failed, self.cancelled):
            ended.remove(start, stop)
