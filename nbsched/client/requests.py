"""Cancel and retry: durable requests in etcd, which work with no leader up."""

from __future__ import annotations

import time
from collections.abc import Sequence

from nbsched.client.gonejobs import forgotten
from nbsched.client.session import Session
from nbsched.client.tracker import JobTracker
from nbsched.model import CancelRequest, JobId, Request, RetryRequest, TaskRange, to_json
from nbsched.names import new_request_id
from nbsched.storage import Put

_MOST_RANGES = 10_000
"""Per request, so that its record stays far below etcd's limit of 1.5 MiB."""


def cancel_job(session: Session, tracker: JobTracker) -> None:
    """Ask for the whole job to be stopped, what is not uploaded yet included."""
    request = CancelRequest(id=new_request_id(), job=tracker.id, at=time.time())
    session.run(_put(session, request))
    if tracker.total is None:
        # Its upload may never end; the leader then says how many tasks there were.
        session.run(session.await_seal(tracker))


def cancel_by_id(session: Session, job: str) -> None:
    """Ask for a job to be stopped that nobody here may have a future of."""
    request = CancelRequest(id=new_request_id(), job=JobId(job), at=time.time())
    session.run(_put(session, request))


def cancel_tasks(session: Session, tracker: JobTracker, indices: Sequence[int]) -> bool:
    """Ask for tasks to be stopped; False when all of them have ended already."""
    ranges = tracker.to_cancel(indices)
    for some in _portions(ranges):
        request = CancelRequest(id=new_request_id(), job=tracker.id, at=time.time(), ranges=some)
        session.run(_put(session, request))
    return bool(ranges)


def retry_tasks(session: Session, tracker: JobTracker, indices: Sequence[int]) -> int:
    """Ask for ended tasks to run again; returns how many. Raises JobForgottenError."""
    ranges = tracker.to_retry(indices)
    if ranges and session.run(session.store.get(session.names.job(tracker.id))) is None:
        raise forgotten(tracker.id)  # the request would be dropped, and the tasks wait for ever
    for some in _portions(ranges):
        request = RetryRequest(id=new_request_id(), job=tracker.id, at=time.time(), ranges=some)
        session.run(_put(session, request))
        # Not before it is durable: a task whose request failed would never end again.
        tracker.reopen(some)
    return sum(named.stop - named.start for named in ranges)


def _portions(ranges: tuple[TaskRange, ...]) -> list[tuple[TaskRange, ...]]:
    return [ranges[at : at + _MOST_RANGES] for at in range(0, len(ranges), _MOST_RANGES)]


async def _put(session: Session, request: Request) -> None:
    key = session.names.request(request.job, request.id)
    await session.store.commit([], [Put(key, to_json(request))])
