"""Forgetting a job for good, at the user's wish."""

from __future__ import annotations

import asyncio
import time

from nbsched import forgetting
from nbsched.client.gonejobs import forgotten
from nbsched.client.session import Session
from nbsched.errors import JobNotEndedError, JobNotFoundError
from nbsched.forgetting import StoredJob
from nbsched.model import JobId, JobState

_STATUS_S = 5.0
_LOOK_AGAIN_S = 0.02


async def forget(session: Session, job: JobId) -> None:
    """Remove a job that has ended. Durable, and true for everybody, when this returns.

    Raises:
        JobNotFoundError: there is no such job (any more).
        JobNotEndedError: it has not ended.
    """
    # The outcomes may all be here already, and the leader is about to write the end.
    tracker = session.tracker(job)
    all_known = tracker is not None and tracker.finished
    deadline = time.monotonic() + (_STATUS_S if all_known else 0.0)
    while True:
        stored = await forgetting.read(session.store, session.names, job)
        if stored is None:
            raise not_found(session, job)
        if stored.ended and await forgetting.remove(session.store, session.names, stored):
            break
        if not stored.ended and time.monotonic() >= deadline:
            raise _not_ended(stored, all_known)
        await asyncio.sleep(_LOOK_AGAIN_S)
    if tracker is not None:
        tracker.fail(forgotten(job))


def not_found(session: Session, job: JobId) -> JobNotFoundError:
    return JobNotFoundError(
        f"There is no job {job!r} in namespace {session.names.namespace!r}: it was never there,"
        " or it was forgotten (forget(), nbsched jobs --prune, or retention_s after its end)."
        " cluster.jobs() lists those that there are."
    )


def _not_ended(stored: StoredJob, all_known: bool) -> JobNotEndedError:
    job = stored.record.id
    if all_known:
        return JobNotEndedError(
            f"Job {job} cannot be forgotten yet: its tasks have ended, and no leader has recorded"
            " that. Try again when a worker is there."
        )
    state = JobState.WAITING if stored.status is None else stored.status.state
    return JobNotEndedError(
        f"Job {job} is {state.value}, and only jobs that have ended can be forgotten. cancel() it"
        " first and wait() for that, or wait until it is done."
    )
