"""The commit of a job: its record, written once, by its client.

Items may lie in the log for long before that, when a server has no room for the rest or for
the record. The leader deletes what belongs to no job, but not while the client's sign of life
is there (`nbsched.client.presence`). So the record is written on condition that the sign has
been there since before the first message, or after a look whether all of them still are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from nbsched.client.room import patiently
from nbsched.client.session import Session
from nbsched.errors import NbschedError, StoreUnreachableError
from nbsched.model import JobRecord, to_json
from nbsched.storage import Absent, Change, Guard, ModifiedAt, Put


@dataclass
class Uploaded:
    """What a job has in the log, and perhaps in the shared folder, before its record."""

    sign_of_life: ModifiedAt
    """Holds as long as the client has been there since before the first message."""
    messages: int = 0
    files: bool = False


async def commit(
    session: Session, record: JobRecord, *, inline: bytes | None = None, had: Uploaded | None = None
) -> int:
    """Write the record, as soon as etcd answers and has room; its revision.

    Raises:
        StoreUnreachableError: the session was closed meanwhile.
        NbschedError: there is such a job, or what was uploaded is not there any more.
    """
    key = session.names.job(record.id)
    changes: list[Change] = [Put(key, to_json(record))]
    if inline is not None:
        changes.append(Put(session.names.inline_input(record.id), inline))
    unknown = False
    while True:
        guards: list[Guard] = [Absent(key)]
        if had is not None:
            guards.append(had.sign_of_life)
        refused = False
        try:
            done = await patiently(session, partial(session.store.commit, guards, changes))
            if done.succeeded:
                return done.revision
            refused = True
        except StoreUnreachableError:
            unknown = True  # from here on it may have been committed
        stored = await patiently(session, partial(session.store.get, key), away=True)
        if stored is not None and unknown and stored.value == to_json(record):
            return stored.mod_revision
        if stored is not None:
            raise NbschedError(f"A job {record.id} exists already. Submit again.")
        if had is not None and refused:
            await _look_again(session, record, had)


async def _look_again(session: Session, record: JobRecord, had: Uploaded) -> None:
    """The client was away meanwhile, maybe for so long that its upload was deleted."""
    announce = partial(session.presence.announce, anew=True)
    had.sign_of_life = await patiently(session, announce, away=True)
    names, folder = session.names, session.shared_folder
    inputs = names.job_inputs(record.client, record.id)
    there = await session.bus.subjects(names.inputs_log, inputs)
    files_gone = had.files and folder is not None and not folder.has(record.id)
    if len(there) < had.messages or files_gone:
        raise NbschedError(
            f"Job {record.id} cannot begin: its client was cut off from etcd, and what it had"
            " uploaded has been deleted meanwhile. Submit it again."
        )
