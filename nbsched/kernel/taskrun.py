"""One run of a task: what names it, when it started, and its outcome's outer form."""

from __future__ import annotations

import time

from nbsched.attempts import PastAttempt
from nbsched.kernel.jobs import LoadedJob
from nbsched.kernel.protocol import RunTasks
from nbsched.kernel.retrypolicy import Attempt
from nbsched.messages import Encoding, Outcome, OutcomeState


class TaskRun:
    """Made right before the task's code runs."""

    __slots__ = ("batch", "index", "job", "run", "started_ns")

    def __init__(self, job: LoadedJob, batch: RunTasks, run: int) -> None:
        self.job = job
        self.batch = batch
        self.run = run
        self.index = batch.start + run - batch.first_run
        self.started_ns = time.monotonic_ns()

    def elapsed_s(self) -> float:
        return (time.monotonic_ns() - self.started_ns) * 1e-9

    def first_started_at(self) -> float:
        known = self.batch.first_started_at
        return time.time() - self.elapsed_s() if known is None else known

    def item_text(self) -> str:
        """Its item in short. Read anew: the task may have changed the one that it got."""
        try:
            return self.job.item_text(self.batch.block, self.index)
        except Exception:
            return ""

    def attempt(self) -> Attempt:
        return Attempt(self.batch.attempt, self.first_started_at(), self.job.function())

    def outcome(
        self,
        state: OutcomeState,
        report: bytes = b"",
        retry_in_s: float = 0.0,
        past: tuple[PastAttempt, ...] = (),
    ) -> Outcome:
        return Outcome(
            start=self.index,
            stop=self.index + 1,
            round=self.batch.round,
            attempt=self.batch.attempt,
            state=state,
            encoding=Encoding.ERROR if report else Encoding.NOTHING,
            sizes=(len(report),) if report else (),
            elapsed_s=self.elapsed_s(),
            retry_in_s=retry_in_s,
            first_started_at=self.first_started_at() if state is OutcomeState.RETRY else None,
            past=past,
        )
