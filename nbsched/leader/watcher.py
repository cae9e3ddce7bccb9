"""What etcd says: members, jobs and requests, as events for the scheduler.

One watch on the whole namespace, and every `RELIST_S` seconds a comparison of all
records with what has been fed, which heals whatever a watch has missed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import TypeVar

import msgspec

from nbsched.leader import loader
from nbsched.leader.election import RELIST_S
from nbsched.model import (
    CancelRequest,
    JobId,
    JobRecord,
    JobStatus,
    Record,
    Request,
    WorkerId,
    WorkerRecord,
)
from nbsched.names import Names
from nbsched.scheduler import events
from nbsched.storage import Changed, KeyValue, Store, WatchEndedError, WatchEvent
from nbsched.transport import Bus

log = logging.getLogger(__name__)

_INLINE_CACHE_BYTES = 64 * 1024 * 1024
_LOADS_AT_ONCE = 16
_requests: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)


class Watcher:
    """Follows the store on behalf of one leadership."""

    def __init__(
        self,
        *,
        store: Store,
        bus: Bus,
        names: Names,
        decoder: loader.LogDecoder,
        feed: Callable[[events.Event], None],
    ) -> None:
        self._store = store
        self._bus = bus
        self._names = names
        self._decoder = decoder
        self._feed = feed
        self._workers: dict[WorkerId, WorkerRecord] = {}
        self._jobs: dict[JobId, JobRecord] = {}
        """Jobs that the scheduler has been told of and has not released."""
        self._loading: dict[JobId, list[events.Event]] = {}
        """Events for jobs that are being rebuilt; they are fed after that."""
        self._inline: dict[JobId, bytes] = {}
        self._inline_bytes = 0
        self._revision = 0

    @property
    def members(self) -> set[WorkerId]:
        """Workers that are there now."""
        return set(self._workers)

    def inline_input(self, job: JobId) -> bytes | None:
        """The sealed inline input, if it came by; a worker can read it from etcd itself."""
        return self._inline.get(job)

    def forget(self, job: JobId) -> None:
        """The scheduler has released the job."""
        self._jobs.pop(job, None)
        self._inline_bytes -= len(self._inline.pop(job, b""))

    def feed_block(self, event: events.BlockStored) -> None:
        self._feed_of(event.job, event)

    # ------------------------------------------------------------ reading everything

    async def begin(self, remember: Callable[[JobStatus], None]) -> None:
        """Feed everything that is there now: members, open jobs, requests in order."""
        self._revision = await self._compare(remember)

    async def follow(self) -> None:
        """Feed what changes, for ever."""
        while True:
            try:
                await asyncio.wait_for(self._watch(), RELIST_S)
            except asyncio.TimeoutError:
                pass
            except WatchEndedError as error:
                log.info("The namespace is watched anew: %s", error)
            self._revision = await self._compare(None)

    async def _compare(self, remember: Callable[[JobStatus], None] | None) -> int:
        """Feed the difference between the records and what has been fed; the revision."""
        members = await self._store.list(self._names.workers)
        self._compare_members(members.items)
        jobs = await self._store.list(self._names.jobs)
        statuses = await self._store.list(self._names.statuses)
        requests = await self._store.list(self._names.requests)
        ended: set[JobId] = set()
        for item in statuses.items:
            status = _decode(item, JobStatus)
            if status is None:
                continue
            if status.state.ended:
                ended.add(status.job)
            if remember is not None and not status.state.ended:
                remember(status)
        records = [record for item in jobs.items if (record := _decode(item, JobRecord))]
        open_jobs = [record for record in records if record.id not in ended]
        limit = asyncio.Semaphore(_LOADS_AT_ONCE)
        await asyncio.gather(
            *(self._load(record, limit) for record in open_jobs if record.id not in self._jobs)
        )
        for record in records:
            known = self._jobs.get(record.id)
            if known is not None and known != record:
                await self._load(record, limit)
        for item in sorted(requests.items, key=lambda item: item.create_revision):
            self._on_request(item)
        return members.revision

    def _compare_members(self, items: Sequence[KeyValue]) -> None:
        there = {record.id for item in items if (record := _decode(item, WorkerRecord))}
        for worker in set(self._workers) - there:
            self._lose(worker)
        for item in items:
            self._on_worker(item)

    async def _load(
        self,
        record: JobRecord,
        limit: asyncio.Semaphore | None = None,
        *,
        request: Request | None = None,
    ) -> None:
        """Rebuild a job. The request, and what arrives meanwhile, is fed afterwards."""
        waiting = self._loading.setdefault(record.id, [])
        if request is not None:
            waiting.append(_asked(request))
        try:
            async with limit or asyncio.Semaphore():
                rebuilt = await loader.load(
                    record,
                    bus=self._bus,
                    names=self._names,
                    decoder=self._decoder,
                    request_follows=request is not None,
                )
            self._feed(rebuilt)
            self._jobs[record.id] = record
        finally:
            for event in self._loading.pop(record.id):
                self._feed(event)

    # ------------------------------------------------------------ following changes

    async def _watch(self) -> None:
        async with aclosing(self._store.watch(self._names.root, self._revision + 1)) as batches:
            async for batch in batches:
                # Inline input first: it comes in the transaction of its record.
                for event in sorted(batch, key=lambda e: not self._is_inline(e)):
                    await self._on_change(event)

    def _is_inline(self, event: WatchEvent) -> bool:
        key = event.item.key if isinstance(event, Changed) else event.key
        return key.startswith(self._names.inline_inputs)

    async def _on_change(self, event: WatchEvent) -> None:
        if not isinstance(event, Changed):
            self._on_deleted(event.key)
            return
        item = event.item
        self._revision = max(self._revision, item.mod_revision)
        if self._is_inline(event):
            self._keep_inline(JobId(item.key.removeprefix(self._names.inline_inputs)), item.value)
        elif item.key.startswith(self._names.workers):
            self._on_worker(item)
        elif item.key.startswith(self._names.jobs):
            await self._on_job(item)
        elif item.key.startswith(self._names.requests):
            self._on_request(item)

    def _on_deleted(self, key: str) -> None:
        if key.startswith(self._names.workers):
            self._lose(WorkerId(key.removeprefix(self._names.workers)))
        elif key.startswith(self._names.jobs):
            job = JobId(key.removeprefix(self._names.jobs))
            if self._jobs.pop(job, None) is not None:
                self._feed(events.JobDeleted(job))

    def _on_worker(self, item: KeyValue) -> None:
        record = _decode(item, WorkerRecord)
        if record is None or self._workers.get(record.id) == record:
            return
        self._workers[record.id] = record
        self._feed(events.WorkerJoined(record.id, record.cpus, record.python, record.draining))

    def _lose(self, worker: WorkerId) -> None:
        if self._workers.pop(worker, None) is not None:
            self._feed(events.WorkerLost(worker))

    async def _on_job(self, item: KeyValue) -> None:
        record = _decode(item, JobRecord)
        if record is None or self._jobs.get(record.id) == record:
            return
        if record.id in self._jobs:  # sealed
            self._jobs[record.id] = record
            self._feed(events.JobAdded(record))
        elif record.inline and item.create_revision == item.mod_revision:
            self._jobs[record.id] = record  # brand new: there is nothing to rebuild
            self._feed(events.JobAdded(record))
        else:
            await self._load(record)

    def _on_request(self, item: KeyValue) -> None:
        request = _request(item)
        if request is not None:
            self._feed_of(request.job, _asked(request))

    async def rebuild(self, request: Request) -> bool:
        """Rebuild the job of a request, then feed the request; False: no such job."""
        if request.job in self._loading:
            self._feed_of(request.job, _asked(request))
            return True
        stored = await self._store.get(self._names.job(request.job))
        record = None if stored is None else _decode(stored, JobRecord)
        if record is None:
            return False
        await self._load(record, request=request)
        return True

    def _feed_of(self, job: JobId, event: events.Event) -> None:
        """Feed an event of a job, after the job's own if that is being rebuilt."""
        if job in self._loading:
            self._loading[job].append(event)
        else:
            self._feed(event)

    def _keep_inline(self, job: JobId, data: bytes) -> None:
        if self._inline_bytes + len(data) <= _INLINE_CACHE_BYTES:
            self._inline_bytes += len(data) - len(self._inline.get(job, b""))
            self._inline[job] = data


_R = TypeVar("_R", bound=Record)


def _decode(item: KeyValue, kind: type[_R]) -> _R | None:
    """A record, or None with a line in the log when it cannot be read."""
    try:
        return msgspec.json.decode(item.value, type=kind)
    except msgspec.DecodeError as error:
        log.warning("The record %s cannot be read and is ignored: %s", item.key, error)
        return None


def _asked(request: Request) -> events.CancelAsked | events.RetryAsked:
    if isinstance(request, CancelRequest):
        return events.CancelAsked(request)
    return events.RetryAsked(request)


def _request(item: KeyValue) -> Request | None:
    try:
        return _requests.decode(item.value)
    except msgspec.DecodeError as error:
        log.warning("The request %s cannot be read and is ignored: %s", item.key, error)
        return None
