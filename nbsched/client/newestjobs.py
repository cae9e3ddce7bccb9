"""The newest jobs of a namespace, for a display that looks again and again.

A namespace may hold thousands of jobs that have ended. They are listed once a minute;
in between a watch tells what has changed. Runs on the I/O thread.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Iterable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NamedTuple

from nbsched.client import records
from nbsched.client.members import read_record
from nbsched.model import JobId, JobRecord, JobStatus
from nbsched.names import Names
from nbsched.storage import Changed, Snapshot, Store, WatchEvent

if TYPE_CHECKING:
    from nbsched.client.session import Session

log = logging.getLogger(__name__)

_LIST_EVERY_S = 60.0


class Newest(NamedTuple):
    """Some jobs, those first that have not ended; how many have not, and how many there are."""

    jobs: list[records.JobInfo]
    running: int
    known: int


class NewestJobs:
    """What is known of the jobs of one namespace."""

    def __init__(self) -> None:
        self._records: dict[JobId, JobRecord] = {}
        self._statuses: dict[JobId, JobStatus] = {}
        self._following: asyncio.Task[None] | None = None

    async def look(self, session: Session, count: int) -> Newest:
        """The newest ``count``. Raises StoreUnreachableError."""
        if self._following is None or self._following.done():
            await self._list(session)
        unfinished = [r for r in self._records.values() if not self._has_ended(r.id)]
        chosen = _newest(unfinished, count)
        if len(chosen) < count:
            ended = [r for r in self._records.values() if self._has_ended(r.id)]
            chosen += _newest(ended, count - len(chosen))
        live = await session.live_counts(None) if unfinished else {}
        infos = [records.job_info(r, self._statuses.get(r.id), live.get(r.id)) for r in chosen]
        return Newest(infos, len(unfinished), len(self._records))

    def _has_ended(self, job: JobId) -> bool:
        status = self._statuses.get(job)
        return status is not None and status.state.ended

    async def _list(self, session: Session) -> None:
        store, names = session.store, session.names
        jobs, statuses = await store.list(names.jobs), await store.list(names.statuses)
        self._records, self._statuses = {}, {}
        self._take([Changed(item) for item in (*jobs.items, *statuses.items)], names)
        self._following = asyncio.ensure_future(
            self._follow(store, names, {names.jobs: jobs, names.statuses: statuses})
        )

    async def _follow(self, store: Store, names: Names, listed: dict[str, Snapshot]) -> None:
        """Take in what changes, until it is time to list again or a watch has ended."""
        follows = [
            asyncio.ensure_future(self._follow_one(store, names, prefix, snapshot.revision))
            for prefix, snapshot in listed.items()
        ]
        try:
            await asyncio.wait(follows, timeout=_LIST_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for follow in follows:
                follow.cancel()
            ended = await asyncio.gather(*follows, return_exceptions=True)
        log.debug("Jobs are listed anew; the watches have ended with %s", ended)

    async def _follow_one(self, store: Store, names: Names, prefix: str, revision: int) -> None:
        async with aclosing(store.watch(prefix, revision + 1)) as batches:
            async for events in batches:
                self._take(events, names)

    def _take(self, events: Iterable[WatchEvent], names: Names) -> None:
        for event in events:
            key = event.item.key if isinstance(event, Changed) else event.key
            job = JobId(key.rpartition("/")[2])
            known: dict[JobId, Any] = self._statuses
            kind: type[JobRecord | JobStatus] = JobStatus
            if key.startswith(names.jobs):
                known, kind = self._records, JobRecord
            if not isinstance(event, Changed):
                known.pop(job, None)
            elif (record := read_record(event.item.value, kind)) is not None:
                known[job] = record


def _newest(jobs: Iterable[JobRecord], count: int) -> list[JobRecord]:
    return heapq.nlargest(count, jobs, key=lambda record: record.submitted_at)
