"""What Ctrl-C (or the notebook's interrupt button) does to a call that waits."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal, Protocol

from nbsched.errors import NbschedError

OnInterrupt = Literal["cancel", "detach"]


class _Cancellable(Protocol):
    @property
    def job_id(self) -> str: ...

    def cancel(self) -> bool: ...


@contextmanager
def ends_job_on_interrupt(job: _Cancellable, on_interrupt: OnInterrupt) -> Iterator[None]:
    """Cancel the job when the wait is interrupted, say so, and pass the interrupt on."""
    try:
        yield
    except KeyboardInterrupt:
        if on_interrupt == "detach":
            _say(f"Job {job.job_id} goes on; cluster.attach({job.job_id!r}) brings it back.")
            raise
        try:
            job.cancel()
        except NbschedError as error:
            _say(f"Interrupted, but job {job.job_id} could not be cancelled: {error}")
        else:
            _say(f"Interrupted: job {job.job_id} is cancelled.")
        raise


class _Task(_Cancellable, Protocol):
    index: int
    _on_interrupt: OnInterrupt

    def done(self) -> bool: ...

    def _cancel_tasks(self, indices: list[int]) -> bool: ...


@contextmanager
def ends_jobs_on_interrupt(futures: Iterable[_Task]) -> Iterator[None]:
    """The same for a wait for single tasks, of any jobs: what has not ended is cancelled."""
    try:
        yield
    except KeyboardInterrupt:
        jobs: dict[str, list[_Task]] = {}
        for future in futures:
            if not future.done():
                jobs.setdefault(future.job_id, []).append(future)
        for job_id, tasks in jobs.items():
            with (
                suppress(KeyboardInterrupt),
                ends_job_on_interrupt(_Some(job_id, tasks), tasks[0]._on_interrupt),
            ):
                raise
        raise


class _Some:
    """Some tasks of one job."""

    def __init__(self, job_id: str, tasks: list[_Task]) -> None:
        self.job_id = job_id
        self._tasks = tasks

    def cancel(self) -> bool:
        return self._tasks[0]._cancel_tasks([task.index for task in self._tasks])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
