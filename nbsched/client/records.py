"""The records in ``cluster.workers()`` and ``cluster.jobs()``."""

from __future__ import annotations

import platform
from datetime import datetime, timezone
from importlib import metadata

import msgspec

from nbsched.messages import JobCounts
from nbsched.model import JobId, JobRecord, JobState, JobStatus, WorkerId, WorkerRecord


class WorkerInfo(msgspec.Struct, frozen=True):
    """A member of the cluster.

    Attributes:
        python: its minor version.
        versions: of what matters to tasks and to the cluster, by name.
        leader: whether it leads.
        draining: it takes no more work, and ends when it has done what it has.
        in_use: CPU slots that have work; None when it has not said so yet.
        differs: its version and this process's, by name, where they are not the same.
    """

    id: WorkerId
    host: str
    address: str
    cpus: int
    pid: int
    python: str
    versions: dict[str, str]
    leader: bool
    draining: bool
    in_use: int | None = None
    differs: dict[str, tuple[str, str]] = {}
    memory_bytes: int = 0
    memory_used_bytes: int = 0
    """Of its host, as it last said; 0 when it has not."""


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
    ended: datetime | None = None

    @property
    def done(self) -> int:
        """Tasks that have ended, however."""
        return self.ok + self.failed + self.cancelled


def worker_info(
    record: WorkerRecord,
    leader: WorkerId | None,
    free_slots: int | None,
    memory: tuple[int, int] | None = None,
) -> WorkerInfo:
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
        in_use=None if free_slots is None else max(0, record.cpus - free_slots),
        differs=_differences(record.versions),
        memory_used_bytes=0 if memory is None else memory[0],
        memory_bytes=0 if memory is None else memory[1],
    )


def _differences(versions: dict[str, str]) -> dict[str, tuple[str, str]]:
    """A worker's versions that are not this process's. What is not here differs, too."""
    pairs = {name: (theirs, _version_here(name)) for name, theirs in versions.items()}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _version_here(name: str) -> str:
    if name == "python":
        return platform.python_version()
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"


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
        submitted=_utc(record.submitted_at),
        total=record.total,
        ok=ok,
        failed=failed,
        cancelled=cancelled,
        queued=queued,
        assigned=assigned,
        tags=record.tags,
        host=record.host,
        note=note,
        ended=None if status is None or status.ended_at is None else _utc(status.ended_at),
    )


def _utc(epoch_s: float) -> datetime:
    return datetime.fromtimestamp(epoch_s, timezone.utc)
