"""What etcd says: members, jobs and requests, as events for the scheduler.

One watch on the whole namespace, and every `RELIST_S` seconds a comparison of all
records with what has been fed, which heals whatever a watch has missed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import msgspec

from nbsched.leader import loader
from nbsched.leader.earlyblocks import EarlyBlocks
from nbsched.leader.election import RELIST_S
from nbsched.leader.patience import answered, in_turns, within
from nbsched.leader.retention import Retention
from nbsched.leader.shortjobs import Short, lost_items
from nbsched.leader.uploads import Uploads
from nbsched.model import (
    CancelRequest,
    ClientId,
    ForgottenJob,
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
from nbsched.storage import Changed, KeyValue, Snapshot, Store, WatchEndedError, WatchEvent
from nbsched.transport import Bus

log = logging.getLogger(__name__)

_INLINE_CACHE_BYTES = 64 * 1024 * 1024
_LOADS_AT_ONCE = 16
_requests: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)


@dataclass
class _Load:
    """A job that is being rebuilt."""

    waiting: list[events.Event] = field(default_factory=list)
    """Events for it that came meanwhile; they are fed after that."""
    over: asyncio.Event = field(default_factory=asyncio.Event)


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
        retention: Retention,
        uploads: Uploads,
    ) -> None:
        self._store = store
        self._bus = bus
        self._names = names
        self._decoder = decoder
        self._feed = feed
        self._retention = retention
        self._uploads = uploads
        self._workers: dict[WorkerId, int] = {}
        """By the revision of its record: one that comes again has a new lease."""
        self._jobs: dict[JobId, JobRecord] = {}
        """Jobs that the scheduler has been told of and has not released."""
        self._loading: dict[JobId, _Load] = {}
        self._fed_at: dict[JobId, int] = {}
        """Revision of the record that was fed last. Kept for a while after the job has been
        released: its put event may still come, and must not start it again."""
        self._jobs_read_at = 0
        self._requests_read_at = 0
        """Revisions of the lists that were compared last: an event is older news up to
        there. The watch begins earlier, where the first of the lists was read."""
        self._inline: dict[JobId, bytes] = {}
        self._inline_bytes = 0
        self._revision = 0
        self._early = EarlyBlocks()

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
        if event.job in self._jobs or event.job in self._loading:
            self._feed_of(event.job, event)
        else:
            self._early.add(event)

    # ------------------------------------------------------------ reading everything

    async def begin(self, remember: Callable[[JobStatus], None]) -> None:
        """Feed everything that is there now: members, open jobs, requests in order."""
        self._revision = await self._compare(remember)

    async def follow(self) -> None:
        """Feed what changes, for ever."""
        while True:
            try:
                await within(RELIST_S, self._watch())
            except WatchEndedError as error:
                log.info("The namespace is watched anew: %s", error)
            self._revision = await self._compare(None)
            self._feed(events.TimePassed())

    async def _compare(self, remember: Callable[[JobStatus], None] | None) -> int:
        """Feed the difference between the records and what has been fed; the revision."""
        members = await self._list(self._names.workers)
        self._compare_members(members.items)
        known = set(self._jobs)
        jobs = await self._list(self._names.jobs)
        async for item in in_turns(jobs.items):
            known.discard(JobId(item.key.removeprefix(self._names.jobs)))
        for job in sorted(known):
            self._delete(job)
        self._jobs_read_at = jobs.revision
        statuses = await self._list(self._names.statuses)
        ended: set[JobId] = set()
        async for item in in_turns(statuses.items):
            status = _decode(item, JobStatus)
            if status is None:
                continue
            if status.state.ended:
                ended.add(status.job)
                if status.ended_at is not None:
                    self._retention.ended(status.job, status.ended_at)
            if remember is not None and not status.state.ended:
                remember(status)
        await self._compare_jobs(jobs, ended, await self._asked_jobs())
        clients = (await self._list(self._names.clients)).items
        self._uploads.listed([self._client_of(item.key) for item in clients])
        async for item in in_turns((await self._list(self._names.forgotten_jobs)).items):
            self._on_forgotten(item)
        requests = await self._list(self._names.requests)
        self._requests_read_at = requests.revision
        for item in sorted(requests.items, key=lambda item: item.create_revision):
            self._on_request(item)
        return members.revision

    async def _asked_jobs(self) -> set[JobId]:
        """Jobs for which there are requests: they are not judged, nor their tasks given out,
        before those are fed. That comes after the jobs, from a newer list: what was carried
        out meanwhile is not in it."""
        requests = await self._list(self._names.requests)
        return {request.job for request in map(_request, requests.items) if request}

    async def _compare_jobs(self, jobs: Snapshot, ended: set[JobId], asked: set[JobId]) -> None:
        """Rebuild open jobs that are not known, and known ones whose record is newer;
        ``asked`` are those for which there are requests."""
        limit = asyncio.Semaphore(_LOADS_AT_ONCE)
        found = []
        async for item in in_turns(jobs.items):
            record = _decode(item, JobRecord)
            if record is None:
                continue
            newer = item.mod_revision > self._fed_at.get(record.id, 0)
            if newer if record.id in self._jobs else record.id not in ended:
                found.append((record, item.mod_revision, record.id in asked))
        await asyncio.gather(*(self._load(*each, limit) for each in found))
        self._fed_at = {
            job: revision
            for job, revision in self._fed_at.items()
            if job in self._jobs or revision > jobs.revision
        }

    async def _list(self, prefix: str) -> Snapshot:
        return await answered(partial(self._store.list, prefix))

    def _compare_members(self, items: Sequence[KeyValue]) -> None:
        there = {record.id for item in items if (record := _decode(item, WorkerRecord))}
        for worker in set(self._workers) - there:
            self._lose(worker)
        for item in items:
            self._on_worker(item)

    async def _load(
        self, record: JobRecord, revision: int, request_follows: bool, limit: asyncio.Semaphore
    ) -> None:
        """Rebuild a job, unless somebody else does so at this moment and has read as much."""
        while (other := self._loading.get(record.id)) is not None:
            await other.over.wait()
            if self._fed_at.get(record.id, 0) >= revision:
                return
        with self._rebuilding(record.id):
            async with limit:
                await self._replay(record, revision, request_follows=request_follows)

    @contextmanager
    def _rebuilding(self, job: JobId) -> Iterator[list[events.Event]]:
        """Hold back the events of a job until the end; one at a time for each job."""
        load = self._loading[job] = _Load()
        try:
            yield load.waiting
        finally:
            del self._loading[job]
            load.over.set()
            for event in load.waiting:
                self._feed(event)

    async def _replay(self, record: JobRecord, revision: int, *, request_follows: bool) -> None:
        history = partial(
            loader.load,
            record,
            bus=self._bus,
            names=self._names,
            decoder=self._decoder,
            request_follows=request_follows,
        )
        rebuilt = await answered(history)
        # Known before it is fed: a complete job is released, and forgotten, while it is fed.
        self._enter(record, revision)
        self._feed(rebuilt)

    def _enter(self, record: JobRecord, revision: int) -> None:
        self._jobs[record.id] = record
        self._fed_at[record.id] = revision

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
            if item.mod_revision > self._jobs_read_at:
                self._keep_inline(
                    JobId(item.key.removeprefix(self._names.inline_inputs)), item.value
                )
        elif item.key.startswith(self._names.workers):
            self._on_worker(item)
        elif item.key.startswith(self._names.jobs):
            await self._on_job(item)
        elif item.key.startswith(self._names.forgotten_jobs):
            self._on_forgotten(item)
        elif item.key.startswith(self._names.clients):
            self._uploads.came(self._client_of(item.key))
        elif (
            item.key.startswith(self._names.requests) and item.mod_revision > self._requests_read_at
        ):
            self._on_request(item)

    def _on_deleted(self, key: str) -> None:
        if key.startswith(self._names.workers):
            self._lose(WorkerId(key.removeprefix(self._names.workers)))
        elif key.startswith(self._names.jobs):
            self._delete(JobId(key.removeprefix(self._names.jobs)))
        elif key.startswith(self._names.clients):
            self._uploads.went(self._client_of(key))

    def _client_of(self, key: str) -> ClientId:
        return ClientId(key.removeprefix(self._names.clients))

    def _delete(self, job: JobId) -> None:
        if self._jobs.pop(job, None) is not None or job in self._loading:
            self._feed_of(job, events.JobDeleted(job))

    def _on_forgotten(self, item: KeyValue) -> None:
        mark = _decode(item, ForgottenJob)
        if mark is not None:
            self._retention.forgotten(mark)

    def _on_worker(self, item: KeyValue) -> None:
        record = _decode(item, WorkerRecord)
        if record is None or self._workers.get(record.id) == item.mod_revision:
            return
        self._workers[record.id] = item.mod_revision
        joined = events.WorkerJoined(
            record.id, record.cpus, record.python, record.draining, item.mod_revision
        )
        self._feed(joined)

    def _lose(self, worker: WorkerId) -> None:
        if self._workers.pop(worker, None) is not None:
            self._feed(events.WorkerLost(worker))

    async def _on_job(self, item: KeyValue) -> None:
        record = _decode(item, JobRecord)
        if record is None:
            return
        revision = item.mod_revision
        if revision <= max(self._jobs_read_at, self._fed_at.get(record.id, 0)):
            return
        early = self._early.take(record.id)
        if record.id not in self._jobs and item.create_revision == revision:
            brand_new = record.inline or early is not None
        else:
            brand_new = False
        if record.id in self._jobs or (brand_new and record.id not in self._loading):
            # Sealed, or nothing to rebuild.
            self._enter(record, revision)
            self._feed(events.JobAdded(record))
            for event in early or ():
                self._feed(event)
        else:
            await self._load(record, revision, False, asyncio.Semaphore())

    def _on_request(self, item: KeyValue) -> None:
        request = _request(item)
        if request is not None:
            self._feed_of(request.job, _asked(request))

    async def rebuild(self, request: Request) -> bool:
        """Rebuild the job of a request, then feed the request; False: no such job."""
        job = request.job
        if job in self._loading:
            self._feed_of(job, _asked(request))
            return True
        with self._rebuilding(job) as waiting:
            stored = await answered(partial(self._store.get, self._names.job(job)))
            record = None if stored is None else _decode(stored, JobRecord)
            if stored is None or record is None:
                return False
            waiting.insert(0, _asked(request))  # before those that came meanwhile
            if job not in self._jobs:
                await self._replay(record, stored.mod_revision, request_follows=True)
        return True

    async def read_again(self, short: Short, give_up: bool) -> None:
        """Feed the blocks of a job that its log has; to give up, also what stands for others."""
        blocks = partial(
            loader.blocks,
            short.record,
            bus=self._bus,
            names=self._names,
            decoder=self._decoder,
        )
        found = await answered(blocks)
        lost = lost_items(short, found) if give_up else []
        if lost:
            count = sum(event.block.count for event in lost)
            log.error("job=%s: JetStream has lost %d of its items", short.record.id, count)
        self._feed_of(short.record.id, events.JobRebuilt((*found, *lost)))

    def _feed_of(self, job: JobId, event: events.Event) -> None:
        """Feed an event of a job, after the job's own if that is being rebuilt."""
        if job in self._loading:
            self._loading[job].waiting.append(event)
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
