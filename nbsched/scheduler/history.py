"""What must be remembered of a task that did not simply run once in its round."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from nbsched.attempts import MOST_PAST, PastAttempt
from nbsched.indexset import IndexSet, Range
from nbsched.messages import Outcome


@dataclass(frozen=True)
class TaskHistory:
    """Attempts and crashes of a task in its round."""

    attempt: int = 1
    crashes: int = 0
    first_started_at: float | None = None
    past: tuple[PastAttempt, ...] = ()
    """How they ended, for people."""

    lost_runs: int = 0
    """Deaths of one of two runs of this attempt, which the other one does not know of."""

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
        """They have ended, or a new round of theirs begins."""
        for index in self.indices(start, stop):
            del self._entries[index]
        self._known.remove(start, stop)

    def note_crash(self, outcome: Outcome) -> None:
        """One of two runs of a task died; the other goes on in the same attempt."""
        index, known = outcome.start, self.of(outcome.start)
        if outcome.crashes > known.crashes:
            past = outcome.past or known.past
            self._entries[index] = replace(known, lost_runs=known.lost_runs + 1, past=past)
            self._known.add(index, index + 1)

    def note_retry(self, outcome: Outcome) -> bool:
        """An attempt ended and another follows; False when that is known already.

        A death of kernel or host counts as a crash and not as an attempt.
        """
        index, known = outcome.start, self.of(outcome.start)
        crash = outcome.crashes > known.crashes
        if outcome.attempt < known.attempt:  # over, whatever else is said of it
            if crash:
                self._entries[index] = replace(known, crashes=outcome.crashes)
            return False
        if not crash and (outcome.crashes < known.crashes or _told_again(outcome, known)):
            return False
        self._entries[index] = TaskHistory(
            attempt=max(known.attempt, outcome.attempt if crash else outcome.attempt + 1),
            crashes=max(known.crashes, outcome.crashes) + known.lost_runs,
            first_started_at=outcome.first_started_at or known.first_started_at,
            past=known.past + outcome.past[-1:] if known.lost_runs else outcome.past or known.past,
        )
        self._known.add(index, index + 1)
        return True


def _told_again(outcome: Outcome, known: TaskHistory) -> bool:
    """Whether this is a death that is known: of a kernel whose worker seemed to be lost, or one
    that stands in the log twice. What happened since would be in the outcome's past."""
    many = len(known.past) >= MOST_PAST  # the oldest have gone, and their number tells nothing
    new = not outcome.past or len(outcome.past) > len(known.past)
    return bool(known.crashes) and not many and not new
