"""Jobs whose data the servers have lost: forgotten, so that nobody waits for them.

A job that lies in the inputs log has its callable there before its record is written, and
one that has ended has its outcomes in the results log before its status says so. A record
without that is all that is left: what an upload that was under way goes on to store is of
no use without its beginning. Small jobs lie in etcd whole; what has no outcome of them runs
again.

NATS may only have been started with another disk, and what is forgotten is purged from the
right one as soon as that is back. So the loss is told first, and jobs are forgotten at a
second look. There is one such pair of looks in a term: a leader whose logs are lost, or come
back, ends its term.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import msgspec

from nbsched.leader.election import Leadership
from nbsched.leader.patience import answered, in_turns
from nbsched.model import ForgottenJob, JobId, JobRecord, JobStatus, Record, to_json
from nbsched.names import Names
from nbsched.storage import Change, Delete, Guard, KeyValue, ModifiedAt, Put, Store
from nbsched.transport import Bus

log = logging.getLogger(__name__)

_MOST_NAMED = 10
_R = TypeVar("_R", bound=Record)


async def forget(
    leadership: Leadership,
    store: Store,
    bus: Bus,
    names: Names,
    grace_s: float,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Compare records and logs, and if jobs are lost, once more after the grace."""
    lost = await _lost(store, bus, names)
    if not lost:
        return
    log.error(
        "JetStream has lost the data of %d jobs (%s%s). If NATS was started with a wrong disk,"
        " start it with the right one before %s (%.0f s from now, lost_data_grace_s): then these"
        " jobs are forgotten, and what another disk has of them is deleted when it comes",
        len(lost),
        ", ".join(sorted(lost)[:_MOST_NAMED]),
        ", …" if len(lost) > _MOST_NAMED else "",
        time.strftime("%H:%M:%S UTC", time.gmtime(time.time() + grace_s)),
        grace_s,
    )
    await sleep(grace_s)
    for job, (record, revision) in (await _lost(store, bus, names)).items():
        if job in lost:
            await _forget(leadership, store, names, record, revision)


async def _lost(store: Store, bus: Bus, names: Names) -> dict[JobId, tuple[JobRecord, int]]:
    """Records whose messages are gone, with their revisions."""
    # The records first: what they promise is in the logs already.
    jobs = await answered(partial(store.list, names.jobs))
    stored = await answered(partial(store.list, names.statuses))
    statuses = {
        status.job: status
        async for item in in_turns(stored.items)
        if (status := _read(item, JobStatus)) is not None
    }
    inputs = await answered(partial(bus.subjects, names.inputs_log, names.all_inputs))
    outcomes = await answered(partial(bus.subjects, names.results_log, names.all_results))
    owners = [names.owner_of(subject) async for subject in in_turns(list(outcomes))]
    results = {owner[1] for owner in owners if owner is not None}
    found: dict[JobId, tuple[JobRecord, int]] = {}
    async for item in in_turns(jobs.items):
        record = _read(item, JobRecord)
        if record is None:
            continue
        status = statuses.get(record.id)
        if status is not None and status.state.ended:
            lost = status.ok + status.failed + status.cancelled > 0 and record.id not in results
            log_name, subject = names.results_log, names.job_results(record.client, record.id)
        else:
            log_name, subject = names.inputs_log, names.input_part(record.client, record.id, 0, 0)
            lost = not record.inline and subject not in inputs
        # Asked once more for this job alone: of very many subjects, read in pages while others
        # are purged, some may have been missed.
        if lost and not await answered(partial(bus.subjects, log_name, subject)):
            found[record.id] = record, item.mod_revision
    return found


async def _forget(
    leadership: Leadership, store: Store, names: Names, record: JobRecord, revision: int
) -> None:
    log.error("job=%s: JetStream has lost its data; it is forgotten", record.id)
    mark = ForgottenJob(id=record.id, client=record.client, inline=record.inline, at=time.time())
    guards: list[Guard] = [leadership.guard, ModifiedAt(names.job(record.id), revision)]
    changes: list[Change] = [
        Delete(names.job(record.id)),
        Delete(names.status(record.id)),
        Delete(names.inline_input(record.id)),
        Put(names.forgotten_job(record.id), to_json(mark)),
    ]
    leadership.check()
    commit = await answered(partial(store.commit, guards, changes))
    if not commit.succeeded:  # it has changed meanwhile: the next look will tell
        log.warning("job=%s has changed and is not forgotten", record.id)


def _read(item: KeyValue, kind: type[_R]) -> _R | None:
    try:
        return msgspec.json.decode(item.value, type=kind)
    except msgspec.DecodeError:
        return None  # the watcher says so
