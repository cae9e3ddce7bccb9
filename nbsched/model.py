"""What is stored in etcd, as readable JSON: members, jobs, status, requests.

Who may write what: a worker its own ``WorkerRecord``; a client the ``JobRecord``
of its job and any ``Request``; the leader ``JobStatus``, it deletes requests that have
been carried out, and it seals the ``JobRecord`` of a client that has died. Whoever removes
a job leaves a ``ForgottenJob`` in its place until the leader has removed its data as well
(see `nbsched.forgetting`). Payload bytes never stand in these records. New fields need
defaults, so that versions can mix.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal, NewType

import msgspec

JobId = NewType("JobId", str)
WorkerId = NewType("WorkerId", str)
ClientId = NewType("ClientId", str)
RequestId = NewType("RequestId", str)
Term = NewType("Term", int)
"""One leadership: the etcd create-revision of the leader's key."""

CallShape = Literal["one", "star", "apply"]
"""How a task's item becomes a call: ``fn(item)``, ``fn(*item)``, or
``fn(*item[0], **item[1])``."""


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Base of what lies in etcd."""


class WorkerRecord(Record, frozen=True, kw_only=True):
    """A member of the cluster, kept under its lease."""

    id: WorkerId
    host: str
    address: str
    """IP address that the daemon uses towards the servers."""
    cpus: int
    """CPU slots; 0 is a leader candidate that runs no tasks."""
    pid: int
    python: str
    """Minor version, ``"3.11"``: pickles do not cross it."""
    versions: dict[str, str]
    key_id: str
    """Which cluster key this member signs with."""
    started_at: float
    draining: bool = False


class Candidate(Record, frozen=True, kw_only=True):
    """A daemon's entry in the election; the oldest one leads."""

    worker: WorkerId
    host: str
    pid: int


class JobRecord(Record, frozen=True, kw_only=True):
    """The commit point of a job, written by its client.

    ``total`` is None while blocks are still being uploaded; the client seals the
    job by writing it again with the total.
    """

    id: JobId
    client: ClientId
    name: str
    submitted_at: float
    python: str
    call: CallShape
    inline: bool
    """True: callable and items lie in the key beside this record."""
    total: int | None
    """Number of tasks."""
    function_parts: int = 0
    """Number of messages that the callable takes in the inputs log."""
    function_file: str = ""
    """Its name in the shared folder, if it lies there instead."""
    function_bytes: int = 0
    cpus: int = 1
    """CPU slots that one task takes."""
    retry: str = "none"
    """The retry policy, for people; the policy itself travels with the callable."""
    task_timeout_s: float | None = None
    memory_bytes: int | None = None
    """What a task may occupy, with the processes that it starts."""
    max_crashes: int = 3
    priority: int = 0
    speculate: bool = False
    """Slow last tasks run a second time elsewhere."""
    chunksize: int | None = None
    """Tasks per hand-over to a kernel; None lets the worker choose by measured time."""
    tags: tuple[str, ...] = ()
    host: str = ""
    pid: int = 0
    sent_by: str = ""
    watched: bool = False
    """Its client keeps a `ClientRecord` while it uploads."""
    abandoned: bool = False
    """The leader has sealed it: its client died, or was away for too long."""


class ClientRecord(Record, frozen=True, kw_only=True):
    """A client that uploads, kept under its lease."""

    id: ClientId
    host: str
    pid: int
    at: float


class JobState(str, Enum):
    """Where a job is. The last four are ends; a retry request reopens them."""

    WAITING = "waiting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INCOMPLETE = "incomplete"
    """What its client had uploaded has ended; the client died before it had sent all."""

    @property
    def ended(self) -> bool:
        return self not in (JobState.WAITING, JobState.RUNNING)


class JobStatus(Record, frozen=True, kw_only=True):
    """The leader's account of a job: written when it is taken on and when it ends."""

    job: JobId
    state: JobState
    term: Term
    ok: int = 0
    failed: int = 0
    cancelled: int = 0
    total: int | None = None
    accepted_at: float = 0.0
    ended_at: float | None = None
    note: str = ""
    """Why the job does not move, for people: no worker, no matching Python, …"""


class TaskRange(msgspec.Struct, frozen=True, array_like=True):
    """Tasks ``start`` (included) to ``stop`` (excluded) in their ``round``.

    A round is one life of a task between the user's retries: 0 at first, one more
    with each ``retry()``.
    """

    start: int
    stop: int
    round: int = 0


class CancelRequest(Record, frozen=True, kw_only=True, tag="cancel", tag_field="kind"):
    """Stop these tasks, or with ``ranges`` None the whole job, uploaded or not."""

    id: RequestId
    job: JobId
    at: float
    ranges: tuple[TaskRange, ...] | None = None


class RetryRequest(Record, frozen=True, kw_only=True, tag="retry", tag_field="kind"):
    """Run these tasks again, in the (new) round that each range names."""

    id: RequestId
    job: JobId
    at: float
    ranges: tuple[TaskRange, ...] = ()


Request = CancelRequest | RetryRequest


class ForgottenJob(Record, frozen=True, kw_only=True):
    """A job is gone, and what it has in logs and files is still to be deleted."""

    id: JobId
    client: ClientId
    inline: bool
    at: float


class ClusterKey(Record, frozen=True, kw_only=True):
    """The key that signs every payload of this namespace, unless a key file is set.

    It lies in etcd: whoever may read the namespace there may submit code anyway.
    """

    id: str
    key: str
    """Base64 of 32 random bytes."""
    created_at: float


def to_json(record: Record) -> bytes:
    """Encode a record as JSON, readable with ``etcdctl get``."""
    return msgspec.json.format(msgspec.json.encode(record), indent=0)
