"""What can happen to the scheduler. Past tense; no event carries a payload."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from nbsched.messages import BlockRef, Outcome, WorkerReport
from nbsched.model import CancelRequest, JobId, JobRecord, RetryRequest, TaskRange, WorkerId


@dataclass(frozen=True)
class JobAdded:
    """A job record appeared, or changed: it may have been sealed since.

    ``request_follows``: the job had ended and is read again for the request that is
    the next event of it; until then it is not released.
    """

    record: JobRecord
    request_follows: bool = False


@dataclass(frozen=True)
class JobDeleted:
    job: JobId


@dataclass(frozen=True)
class BlockStored:
    """A block of items is complete in the inputs log."""

    job: JobId
    block: BlockRef


@dataclass(frozen=True)
class OutcomesRead:
    """The results log says how tasks ended, in the entry with this sequence number.

    May come twice: a job ignores what it has read already. 0 is always applied.
    """

    job: JobId
    worker: WorkerId
    outcomes: tuple[Outcome, ...]
    sequence: int = 0


@dataclass(frozen=True)
class JobRebuilt:
    """A job was read from the store and the logs: these events bring it up to date.

    Nothing is handed out in between, or tasks that have ended would run again.
    """

    history: tuple[JobAdded | BlockStored | OutcomesRead, ...]


@dataclass(frozen=True)
class CancelAsked:
    request: CancelRequest


@dataclass(frozen=True)
class RetryAsked:
    request: RetryRequest


@dataclass(frozen=True)
class WorkerJoined:
    """A member registered, or changed its record: the store's revision of that."""

    worker: WorkerId
    cpus: int
    python: str
    draining: bool = False
    revision: int = 0


@dataclass(frozen=True)
class WorkerLost:
    """A member's lease ended."""

    worker: WorkerId


@dataclass(frozen=True)
class ReportRead:
    """A worker said what it holds. Everything that the results log held when it did
    has been read before."""

    report: WorkerReport


@dataclass(frozen=True)
class TasksRecalled:
    """The answer to a recall; ``ranges`` are back, unstarted. Empty when it failed."""

    worker: WorkerId
    job: JobId
    ranges: tuple[TaskRange, ...]


@dataclass(frozen=True)
class SliceRefused:
    """A worker will not run a slice that it was sent."""

    worker: WorkerId
    job: JobId
    start: int
    stop: int


@dataclass(frozen=True)
class RecoveryEnded:
    """Log, requests and inventories have been read: work may be handed out."""


@dataclass(frozen=True)
class TimePassed:
    """A time that a `WakeAt` asked for has come, or reconciliation is due."""


Event: TypeAlias = (
    JobAdded
    | JobDeleted
    | JobRebuilt
    | BlockStored
    | OutcomesRead
    | CancelAsked
    | RetryAsked
    | WorkerJoined
    | WorkerLost
    | ReportRead
    | TasksRecalled
    | SliceRefused
    | RecoveryEnded
    | TimePassed
)
