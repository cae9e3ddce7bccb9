"""Removing a job: its records in one transaction, its data by the leader afterwards.

The transaction deletes the record, the status and the inline input, and leaves a
`ForgottenJob` in their place. From then on the job is gone for everybody. The leader
purges its messages, deletes its files, and then that last key: two writes in all, and
nothing stays behind whoever dies in between. Only jobs that have ended are removed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from nbsched.errors import StoreFullError, StoreUnreachableError
from nbsched.model import ForgottenJob, JobId, JobRecord, JobStatus, to_json
from nbsched.names import Names
from nbsched.storage import Absent, Change, Delete, Guard, ModifiedAt, Put, Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredJob:
    """A job's records, each with the revision at which it was read."""

    record: JobRecord
    record_revision: int
    status: JobStatus | None
    status_revision: int

    @property
    def ended(self) -> bool:
        return self.status is not None and self.status.state.ended


async def read(store: Store, names: Names, job: JobId) -> StoredJob | None:
    """A job as it is stored now; None when there is none, or none that can be read."""
    found = await store.get(names.job(job))
    if found is None:
        return None
    status = await store.get(names.status(job))
    try:
        return StoredJob(
            msgspec.json.decode(found.value, type=JobRecord),
            found.mod_revision,
            None if status is None else msgspec.json.decode(status.value, type=JobStatus),
            0 if status is None else status.mod_revision,
        )
    except msgspec.DecodeError as error:
        log.warning("job=%s cannot be read and stays as it is: %s", job, error)
        return None


async def remove(
    store: Store, names: Names, stored: StoredJob, guards: Sequence[Guard] = ()
) -> bool:
    """Remove an ended job as it was read; False when it has changed, or a guard fails.

    Raises:
        StoreFullError: etcd is full, and there are guards: they need a transaction.
        StoreUnreachableError: nobody answers, and the job is still there.
    """
    assert stored.ended, "only ended jobs are removed"
    job = stored.record.id
    all_guards = [
        *guards,
        ModifiedAt(names.job(job), stored.record_revision),
        ModifiedAt(names.status(job), stored.status_revision),
    ]
    changes: list[Change] = [Delete(names.job(job)), Delete(names.status(job))]
    if stored.record.inline:
        changes.append(Delete(names.inline_input(job)))
    mark = ForgottenJob(
        id=job, client=stored.record.client, inline=stored.record.inline, at=time.time()
    )
    marked = [*changes, Put(names.forgotten_job(job), to_json(mark))]
    try:
        try:
            return (await store.commit(all_guards, marked)).succeeded
        except StoreFullError:
            if guards:
                raise
            # What a full etcd still does is to delete without a condition, and that makes
            # room. The messages go with the next look for what belongs to no job.
            return (await store.commit([], changes)).succeeded
    except StoreUnreachableError:
        # The connection broke: whether the job was removed can only be read.
        if await store.get(names.job(job)) is not None:
            raise
        return True


async def drop_status(store: Store, names: Names, job: JobId, guards: Sequence[Guard]) -> None:
    """Delete the status of a job that has no record any more."""
    await store.commit([*guards, Absent(names.job(job))], [Delete(names.status(job))])
