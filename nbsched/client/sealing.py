"""Writes how many tasks a job has, which seals it: no more will come.

Runs on the I/O thread. How long anybody waits for it is the caller's business.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from nbsched.client.gonejobs import forgotten
from nbsched.client.incomplete import sealed_without_us
from nbsched.client.members import read_record
from nbsched.client.session import Session
from nbsched.client.tracker import JobTracker
from nbsched.errors import ConnectError, NbschedError, StoreFullError, StoreUnreachableError
from nbsched.model import JobRecord, to_json
from nbsched.storage import ModifiedAt, Put

log = logging.getLogger(__name__)


class Sending(NamedTuple):
    """A block on its way to the log."""

    first: int
    nbytes: int
    stored: concurrent.futures.Future[None]


async def write_sealed(
    session: Session, tracker: JobTracker, record: JobRecord, revision: int
) -> None:
    """Write the record, which has its total now, in the place of what has this revision.

    Raises:
        JobIncompleteError: the leader has sealed the job, while this client was away.
        StoreUnreachableError: whether it was written is not known, or there is no room;
            to be called again.
        JobForgottenError: the record is gone.
        NbschedError: the record was changed by somebody else.
    """
    key = session.names.job(record.id)
    guard, sealed = ModifiedAt(key, revision), Put(key, to_json(record))
    try:
        written = (await session.store.commit([guard], [sealed])).succeeded
    except StoreFullError:
        raise
    except StoreUnreachableError:
        written = False  # or it was, and only the answer is missing
    if written:
        return
    stored = await session.store.get(key)
    found = None if stored is None else read_record(stored.value, JobRecord)
    if found is not None and found.abandoned and found.total is not None:
        tracker.seal(found.total, without_client=True)
        raise sealed_without_us(tracker)
    if stored is not None and stored.mod_revision == revision:
        raise StoreUnreachableError(f"Job {record.id} is not sealed yet: etcd did not answer.")
    if stored is None:
        raise forgotten(record.id)
    if stored.value != to_json(record):
        raise NbschedError(f"The record of job {record.id} was changed.")


async def seal_what_arrives(
    session: Session,
    tracker: JobTracker,
    record: JobRecord,
    revision: int,
    count: int,
    sending: Sequence[Sending],
) -> None:
    """Seal a job of which nobody can ask for more than these ``count`` items.

    What is on its way is waited for. Raises ConnectError: to be called again.
    """
    for block in sending:
        stored = asyncio.wrap_future(block.stored)
        await asyncio.wait([stored])
        if stored.cancelled() or stored.exception() is not None:
            count = min(count, block.first)
    if tracker.total is not None:
        return
    try:
        await write_sealed(session, tracker, msgspec.structs.replace(record, total=count), revision)
    except ConnectError:
        raise
    except NbschedError as error:
        log.warning("job=%s could not be sealed: %s", record.id, error)
    else:
        tracker.seal(count)
