"""What ``cluster.workers()`` and ``cluster.jobs()`` return."""

from __future__ import annotations

from datetime import datetime, timezone

import msgspec

from nbsched.messages import JobCounts
from nbsched.model import JobId, JobRecord, JobState, JobStatus, WorkerId, WorkerRecord


class WorkerInfo(msgspec.Struct, frozen=True):
    """A member of the cluster. ``python`` is its minor version, ``leader`` whether it leads."""

    id: WorkerId
    host: str
    address: str
    cpus: int
    pid: int
    python: str
    versions: dict[str, str]
    leader: bool
    draining: bool


class JobInfo(msgspec.Struct, frozen=True):
    """A job and its counts, in tasks. ``total`` is None while items are being uploaded."""

    id: JobId
    name: str
    state: str
    submitted: datetime
    total: int | None
    ok: int
    failed: int
    cancelled: int
    queued: int
    assigned: int
    tags: tuple[str, ...]
    host: str
    note: str


def worker_info(record: WorkerRecord, leader: WorkerId | None) -> WorkerInfo:
    return WorkerInfo(
        id=record.id,
        host=record.host,
        address=record.address,
        cpus=record.cpus,
        pid=record.pid,
        python=record.python,
        versions=record.versions,
        leader=record.id == leader,
        draining=record.draining,
    )


def job_info(record: JobRecord, status: JobStatus | None, live: JobCounts | None) -> JobInfo:
    """What is stored, and the leader's live counts where there are any."""
    state = JobState.WAITING if status is None else status.state
    ok, failed, cancelled = (
        (status.ok, status.failed, status.cancelled) if status is not None else (0, 0, 0)
    )
    queued = assigned = 0
    note = status.note if status is not None else ""
    if live is not None:
        ok, failed, cancelled = live.ok, live.failed, live.cancelled
        queued, assigned, note = live.queued, live.assigned, live.note
    return JobInfo(
        id=record.id,
        name=record.name,
        state=state.value,
        submitted=datetime.fromtimestamp(record.submitted_at, timezone.utc),
        total=record.total,
        ok=ok,
        failed=failed,
        cancelled=cancelled,
        queued=queued,
        assigned=assigned,
        tags=record.tags,
        host=record.host,
        note=note,
    )
