"""What the scheduler wants done. Imperative; the leader service carries it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from nbsched.attempts import PastAttempt
from nbsched.messages import BlockRef
from nbsched.model import JobId, JobState, Request, RequestId, TaskRange, WorkerId


@dataclass(frozen=True)
class SendSlice:
    """Give tasks to a worker: the fields of `messages.RunSlice` that the scheduler knows."""

    worker: WorkerId
    seq: int
    job: JobId
    start: int
    stop: int
    round: int
    attempt: int
    crashes: int
    first_started_at: float | None
    blocks: tuple[BlockRef, ...]
    first_slice: bool
    """The worker has had nothing of this job yet: it needs the inline input."""
    past: tuple[PastAttempt, ...] = ()
    joined: int = 0


@dataclass(frozen=True)
class StopOnWorker:
    """``silently``: these runs have no outcome, another one counts."""

    worker: WorkerId
    job: JobId
    ranges: tuple[TaskRange, ...]
    silently: bool = False


@dataclass(frozen=True)
class RecallFromWorker:
    """Ends in `events.TasksRecalled`, whatever comes of it."""

    worker: WorkerId
    job: JobId
    ranges: tuple[TaskRange, ...]


@dataclass(frozen=True)
class PublishCancelled:
    """Append CANCELLED outcomes for tasks that no worker holds."""

    job: JobId
    ranges: tuple[TaskRange, ...]


@dataclass(frozen=True)
class PublishLost:
    """Append the outcome of a task that ran on a lost host.

    ``final`` is set when it has taken down ``max_crashes`` kernels or hosts.
    """

    job: JobId
    index: int
    round: int
    attempt: int
    crashes: int
    final: bool
    worker: WorkerId
    past: tuple[PastAttempt, ...] = ()
    """Its attempts before this one."""


@dataclass(frozen=True)
class SaveStatus:
    """Write the job's status, guarded by the leader's key."""

    job: JobId
    state: JobState
    ok: int
    failed: int
    cancelled: int
    total: int | None
    note: str


@dataclass(frozen=True)
class DropRequest:
    """The request's effect stands in the results log: delete it."""

    job: JobId
    request: RequestId


@dataclass(frozen=True)
class DropStatus:
    """The job is gone: so is its status, whoever wrote it last."""

    job: JobId


@dataclass(frozen=True)
class RebuildJob:
    """A request is for a job that is not in memory: it ended, or was never there.

    Ends in `events.JobRebuilt` and then the request again, if there is such a job.
    """

    request: Request


@dataclass(frozen=True)
class ReleaseJob:
    """The job has ended: these workers may forget it."""

    job: JobId
    workers: tuple[WorkerId, ...]


@dataclass(frozen=True)
class ForgetOnWorker:
    """The worker holds something of a job that the leader does not know any more."""

    worker: WorkerId
    job: JobId


@dataclass(frozen=True)
class WakeAt:
    """Send `events.TimePassed` at this time (the clock that `step` is given)."""

    time: float


Command: TypeAlias = (
    SendSlice
    | StopOnWorker
    | RecallFromWorker
    | PublishCancelled
    | PublishLost
    | SaveStatus
    | DropRequest
    | DropStatus
    | RebuildJob
    | ReleaseJob
    | ForgetOnWorker
    | WakeAt
)
