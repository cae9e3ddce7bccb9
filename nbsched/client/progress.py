"""The pure snapshot of a job's progress, from which every display is drawn.

The display package registers itself here (`set_view_factory`), so that the client
never imports it: without a display, jobs are simply silent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol

import msgspec

from nbsched.settings import ProgressMode


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Where a job is, in tasks and seconds. Counts of tasks never overlap:
    ``ok + failed + cancelled + running + retrying + queued`` is what is known of
    the job so far (``total`` once it is sealed).
    """

    job: str
    name: str
    total: int | None
    """None while items are still being uploaded."""
    uploaded: int
    ok: int = 0
    failed: int = 0
    cancelled: int = 0
    running: int = 0
    retrying: int = 0
    """Failed attempts whose tasks will run again."""
    elapsed_s: float = 0.0
    workers: int = 0
    """Workers that run tasks of this job now."""
    state: str = "running"
    """One of waiting, running, succeeded, failed, cancelled, incomplete."""
    note: str = ""
    """Why it does not move, for people."""

    @property
    def done(self) -> int:
        return self.ok + self.failed + self.cancelled

    @property
    def queued(self) -> int:
        known = self.total if self.total is not None else self.uploaded
        return max(0, known - self.done - self.running - self.retrying)

    @property
    def finished(self) -> bool:
        return self.total is not None and self.done >= self.total

    @property
    def rate(self) -> float:
        """Tasks that ran to their end per second, since the start."""
        return (self.ok + self.failed) / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds left at the rate so far, or None when that cannot be said."""
        if self.total is None or not self.done or self.finished:
            return None
        return (self.total - self.done) / self.rate if self.rate > 0 else None


class TaskRow(msgspec.Struct, frozen=True, kw_only=True):
    """Where one task is."""

    index: int
    state: str
    """One of queued, running, retrying, done, failed, cancelled."""
    item: str = ""
    """The task's item, in short; empty where that is not known."""
    attempt: int = 0
    """Number of the last run; 0 before the first."""
    worker: str = ""
    elapsed_s: float | None = None
    error: str = ""
    """What it failed with, in one line."""
    output: str = ""
    """The last lines that it printed."""

    @property
    def ended(self) -> bool:
        return self.state in ("done", "failed", "cancelled")


class Tasks(Protocol):
    """The tasks of a job, for a display's table."""

    def indices(
        self, kind: Literal["failed", "running", "cancelled"], start: int, count: int | None
    ) -> list[int]: ...

    def row(self, index: int) -> TaskRow: ...

    def traceback(self, index: int) -> str: ...

    def result(self, index: int) -> str: ...

    def cancel(self, indices: Sequence[int]) -> bool: ...

    def retry(self, indices: Sequence[int]) -> int: ...


class Observable(Protocol):
    """A job as a display sees it: `MapFuture`."""

    @property
    def tasks(self) -> Tasks: ...

    @property
    def id(self) -> str: ...

    @property
    def progress(self) -> Progress: ...

    @property
    def progress_mode(self) -> ProgressMode | None:
        """How its cluster was told to show progress; None: as configured."""

    def cancel(self) -> bool: ...

    def retry(self) -> int:
        """Run again what failed or was cancelled; returns how many tasks."""


class TaskSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A single task as its own display sees it."""

    id: str
    """Of the job, and the task's index in it."""
    name: str
    row: TaskRow
    result: str = ""
    """In short, when it is done."""

    @property
    def finished(self) -> bool:
        return self.row.ended


class TaskSubject(Protocol):
    """A future as a display sees it."""

    @property
    def id(self) -> str: ...

    @property
    def progress(self) -> TaskSnapshot: ...

    def traceback(self) -> str: ...

    def cancel(self) -> bool: ...

    def retry(self) -> bool: ...


class ClusterSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A cluster as its display sees it: `WorkerInfo` and `JobInfo`, some of the jobs."""

    namespace: str
    where: str
    members: tuple[Any, ...] = ()
    jobs: tuple[Any, ...] = ()
    running: int = 0
    """Jobs that have not ended."""
    known: int = 0
    closed: bool = False
    trouble: str = ""

    @property
    def finished(self) -> bool:
        return self.closed


class ClusterSubject(Protocol):
    """A cluster as a display sees it."""

    @property
    def id(self) -> str: ...

    @property
    def progress(self) -> ClusterSnapshot: ...

    def cancel(self, job_id: str) -> bool: ...


class ViewFactory(Protocol):
    """What a display package offers."""

    def task_mimebundle(self, task: TaskSubject) -> dict[str, object]: ...

    def display_task(self, task: TaskSubject) -> bool: ...

    def cluster_mimebundle(self, now: ClusterSnapshot) -> dict[str, object]: ...

    def display_cluster(self, cluster: ClusterSubject) -> bool: ...

    def blocking(self, job: Observable) -> AbstractContextManager[None]:
        """Show progress while a call waits for the job."""

    def mimebundle(self, job: Observable) -> dict[str, object]:
        """Representations of the job for a notebook cell's output."""

    def may_pump(self) -> bool:
        """Whether `pump` of this thread could become something."""

    def pump(self) -> Callable[[], None] | None:
        """What a call that blocks this thread should call now and then, if anything."""

    def display(self, job: Observable) -> bool:
        """Show the job live in the running cell; False when that cannot be done here."""


TURN_S = 0.1
"""How often a blocking call lets a display take clicks in, where it has to."""


def has_turns() -> bool:
    """Whether a display may need turns of calls that block this thread."""
    views = view_factory()
    return views is not None and views.may_pump()


def in_turns(wait: Callable[[float | None], bool], timeout: float | None) -> bool:
    """Wait with ``wait(seconds)``, which is interrupted for a display if it needs that.

    Returns what ``wait`` does: whether what is waited for has come in time.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        views = view_factory()
        pump = None if views is None else views.pump()
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        # A display may appear during the wait: it is asked for again in any case here.
        if pump is None and (views is None or not views.may_pump()):
            return wait(left)
        if wait(TURN_S if left is None else min(TURN_S, left)):
            return True
        if left is not None and left <= TURN_S:
            return False
        if pump is not None:
            pump()


_factory: Callable[[], ViewFactory] | None = None


def set_view_factory(factory: Callable[[], ViewFactory]) -> None:
    """Called by a display package when it is imported."""
    global _factory
    _factory = factory


def view_factory() -> ViewFactory | None:
    return _factory() if _factory is not None else None


def shown_while_waiting(job: Observable) -> AbstractContextManager[None]:
    """The context in which a blocking call waits."""
    views = view_factory()
    return nullcontext() if views is None else views.blocking(job)
