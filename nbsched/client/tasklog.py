"""Where single tasks run and how they ended, as far as anybody may want to look at them.

Kept beside the outcomes, which know nothing of workers: what every worker said it runs,
and for tasks that failed (or that their job has few of) which worker that was. Pure
bookkeeping; the tracker calls it while it holds its lock.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import NamedTuple

from nbsched.messages import Outcome, OutcomeState
from nbsched.model import WorkerId

_FEW_TASKS = 1000
"""Jobs up to this size remember the worker of every task."""


class Run(NamedTuple):
    """A task that runs now."""

    worker: WorkerId
    attempt: int
    began: float
    """On this process's monotonic clock."""

    @property
    def elapsed_s(self) -> float:
        return max(0.0, time.monotonic() - self.began)


class End(NamedTuple):
    """What the last attempt of a task ended in."""

    worker: WorkerId
    outcome: Outcome
    raw: bytes
    """What an attempt that is made again has failed with."""


class TaskLog:
    """Runs and ends of one job's tasks."""

    def __init__(self) -> None:
        self._runs: dict[WorkerId, dict[int, Run]] = {}
        self._ends: dict[int, End] = {}

    def runs_on(self, worker: WorkerId, running: Mapping[int, tuple[int, float]]) -> None:
        """A worker said what it runs: attempt and seconds so far, by index."""
        now = time.monotonic()
        known = self._runs.get(worker, {})
        runs = {}
        for index, (attempt, seconds) in running.items():
            old = known.get(index)
            # The first report of a run says best when it began: later ones would shake.
            runs[index] = (
                old if old and old.attempt == attempt else Run(worker, attempt, now - seconds)
            )
        if runs:
            self._runs[worker] = runs
        else:
            self._runs.pop(worker, None)

    def ended(self, worker: WorkerId, outcome: Outcome, raw: memoryview, tasks: int) -> None:
        """An outcome came, of a job with so many tasks."""
        if outcome.state is OutcomeState.OK and (tasks > _FEW_TASKS or not _alone(outcome)):
            self._forget(outcome.start, outcome.stop)
        elif outcome.state is not OutcomeState.CANCELLED and _alone(outcome):
            # A copy: a view would keep the whole message that it came in.
            kept = bytes(raw) if outcome.state is OutcomeState.RETRY else b""
            self._ends[outcome.start] = End(worker, outcome, kept)

    def _forget(self, start: int, stop: int) -> None:
        few = stop - start <= len(self._ends)
        for index in range(start, stop) if few else list(self._ends):
            if start <= index < stop:
                self._ends.pop(index, None)

    def keep_workers(self, members: Collection[WorkerId]) -> None:
        for worker in set(self._runs) - set(members):
            del self._runs[worker]

    def clear_runs(self) -> None:
        self._runs.clear()

    def run(self, index: int) -> Run | None:
        for runs in self._runs.values():
            if index in runs:
                return runs[index]
        return None

    def end(self, index: int) -> End | None:
        return self._ends.get(index)

    def running(self) -> list[int]:
        return sorted({index for runs in self._runs.values() for index in runs})


def _alone(outcome: Outcome) -> bool:
    return outcome.stop - outcome.start == 1
