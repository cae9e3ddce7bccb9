"""One connection to a cluster: runs on the I/O thread, feeds trackers, knows the members.

Everything that comes from a server passes here, and nothing is handed on before its
envelope has been checked and matched to a job of this client.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import time
import weakref
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec

from nbsched import clusterkey, messages
from nbsched.client.iothread import IoThread, io_thread
from nbsched.client.tracker import JobTracker
from nbsched.errors import (
    AuthenticationError,
    ConfigurationError,
    ConnectError,
    NbschedError,
    NoWorkersError,
    VersionMismatchError,
)
from nbsched.messages import OutcomeBatch, OutcomePart
from nbsched.model import (
    Candidate,
    ClientId,
    JobId,
    JobRecord,
    WorkerId,
    WorkerRecord,
)
from nbsched.names import Names, new_client_id
from nbsched.payload.envelope import Envelope, Key, Kind, check_body
from nbsched.settings import Settings
from nbsched.storage import Snapshot, Store, WatchEndedError
from nbsched.storage.etcd import EtcdStore
from nbsched.transport import Bus, LogEntry, Message, RequestFailedError
from nbsched.transport.nats import NatsBus
from nbsched.wire import Wire

log = logging.getLogger(__name__)

T = TypeVar("T")
_RELIST_S = 30.0
_RETRY_S = 0.5
_COUNTS_S = 1.0
"""How long `live_counts` waits for a leader."""


class Session:
    """A client's connections and background tasks."""

    def __init__(self, io: IoThread, settings: Settings, store: Store, bus: Bus, key: Key) -> None:
        self.id: ClientId = new_client_id()
        self.settings = settings
        self.names = Names(settings.namespace)
        self.store = store
        self.bus = bus
        self.wire = Wire(key, self.names)
        self.members: dict[WorkerId, WorkerRecord] = {}
        self.leader: WorkerId | None = None
        self.closed = False
        self._io = io
        self._trackers: weakref.WeakValueDictionary[JobId, JobTracker] = (
            weakref.WeakValueDictionary()
        )
        self._attached: set[JobId] = set()
        self._parts: dict[str, list[bytes]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._members_changed = asyncio.Event()
        self._subscriptions: list[Any] = []

    # ------------------------------------------------------------ life

    @classmethod
    def connect(cls, settings: Settings) -> Session:
        """Connect, from any thread. Raises ConnectError and ConfigurationError."""
        io = io_thread()
        return io.run(cls._connect(io, settings))

    @classmethod
    async def _connect(cls, io: IoThread, settings: Settings) -> Session:
        settings.require_servers()
        store, bus = await asyncio.gather(
            EtcdStore.connect(settings),
            NatsBus.connect(settings, name="nbsched-client"),
            return_exceptions=True,
        )
        if isinstance(store, BaseException):
            if not isinstance(bus, BaseException):
                await bus.close()
            raise store
        if isinstance(bus, BaseException):
            await store.close()
            raise bus
        try:
            names = Names(settings.namespace)
            copies = settings.stream_replicas
            key, *_ = await asyncio.gather(
                clusterkey.obtain(store, names, settings),
                bus.ensure_log(names.inputs_log, names.all_inputs, replicas=copies),
                bus.ensure_log(names.results_log, names.all_results, replicas=copies),
            )
            session = cls(io, settings, store, bus, key)
            await session._begin()
        except BaseException:
            await bus.close()
            await store.close()
            raise
        return session

    async def _begin(self) -> None:
        after = await self.bus.last_sequence(self.names.results_log)
        self._subscriptions.append(await self.bus.subscribe(self.names.reports, self._on_report))
        await self._list_members()
        subject = self.names.client_results(self.id)
        self._supervise(lambda: self._read_results(subject, after))
        self._supervise(self._follow_members)

    def _supervise(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = asyncio.ensure_future(self._restarting(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _restarting(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            try:
                await work()
            except NbschedError as error:
                log.warning("A connection is set up anew: %s", error)
            except Exception:
                log.exception("A background task failed and is started anew")
            await asyncio.sleep(_RETRY_S)

    def close(self) -> None:
        """End all connections. Futures without an outcome fail with a clear error."""
        if not self.closed:
            self.closed = True
            self._io.run(self._close())

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for tracker in list(self._trackers.values()):
            tracker.fail(
                NbschedError(
                    f"The cluster was closed while job {tracker.id} was not done. Connect again:"
                    f" cluster.attach({str(tracker.id)!r}) brings its results back."
                )
            )
        await self.bus.close()
        await self.store.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the I/O thread and wait for it."""
        self._check_open(work)
        return self._io.run(work)

    def start(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run a coroutine on the I/O thread."""
        self._check_open(work)
        return self._io.start(work)

    def _check_open(self, work: Coroutine[Any, Any, T]) -> None:
        if self.closed:
            work.close()
            raise NbschedError("This cluster is closed. Create a new Cluster().")

    # ------------------------------------------------------------ members

    async def _list_members(self) -> int:
        snapshot = await self.store.list(self.names.workers)
        records = (_decode(item.value, WorkerRecord) for item in snapshot.items)
        self.members = {record.id: record for record in records if record is not None}
        for tracker in list(self._trackers.values()):
            tracker.keep_workers(self.members)
        candidates = await self.store.list(self.names.candidates)
        self.leader = _leading(candidates)
        self._members_changed.set()
        return snapshot.revision

    async def _follow_members(self) -> None:
        while True:
            revision = await self._list_members()
            try:
                await asyncio.wait_for(self._member_change(revision), _RELIST_S)
            except (asyncio.TimeoutError, WatchEndedError):
                await asyncio.sleep(0)

    async def _member_change(self, revision: int) -> None:
        waits = [
            asyncio.ensure_future(self._first_change(prefix, revision))
            for prefix in (self.names.workers, self.names.candidates)
        ]
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in done:
                wait.result()
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _first_change(self, prefix: str, revision: int) -> None:
        async with aclosing(self.store.watch(prefix, revision + 1)) as batches:
            async for _ in batches:
                return

    async def refresh_members(self) -> None:
        """Read members and leader now."""
        await self._list_members()

    def require_workers(self, python: str, cpus: int) -> None:
        """Wait, on any thread, for a worker that can run a task; see ``worker_timeout_s``.

        Raises:
            VersionMismatchError: workers are there, but none with this Python.
            ConfigurationError: no worker has so many CPUs, or the keys differ.
            NoWorkersError: none joined in time.
        """
        if not self._working_members():
            self.run(self._await_members())
        self._check_members(self._working_members(), python, cpus)

    def _working_members(self) -> list[WorkerRecord]:
        return [w for w in list(self.members.values()) if w.cpus > 0 and not w.draining]

    async def _await_members(self) -> None:
        deadline = time.monotonic() + self.settings.worker_timeout_s
        while not self._working_members():
            self._members_changed.clear()
            try:
                left = max(0.0, deadline - time.monotonic())
                await asyncio.wait_for(self._members_changed.wait(), left)
            except asyncio.TimeoutError:
                raise NoWorkersError(
                    f"No worker joined {self.names.namespace!r} within"
                    f" {self.settings.worker_timeout_s:g} s. Start one: nbsched-worker"
                    f" --namespace {self.names.namespace}"
                ) from None

    def _check_members(self, workers: list[WorkerRecord], python: str, cpus: int) -> None:
        keys = {worker.key_id for worker in workers}
        if self.wire.key.id not in keys:
            raise ConfigurationError(
                f"The workers of {self.names.namespace!r} sign with key {', '.join(sorted(keys))},"
                f" this client has {self.wire.key.id}. Give both the same key file"
                " (NBSCHED_KEY_FILE, nbsched-worker --key-file)."
            )
        matching = [worker for worker in workers if worker.python == python]
        if not matching:
            versions = ", ".join(sorted({worker.python for worker in workers}))
            raise VersionMismatchError(
                f"This client runs Python {python}, the workers of {self.names.namespace!r} run"
                f" {versions}: pickles do not cross minor versions. Start the notebook with"
                f" Python {versions}, or a worker with Python {python}."
            )
        most = max(worker.cpus for worker in matching)
        if cpus > most:
            raise ConfigurationError(
                f"A task asks for {cpus} CPUs, the largest worker has {most}. Ask for fewer"
                " (options(cpus=...)), or start a larger worker."
            )

    # ------------------------------------------------------------ results

    def track(self, record: JobRecord) -> JobTracker:
        """The tracker of a job of this client."""
        tracker = JobTracker(record)
        self._trackers[record.id] = tracker
        return tracker

    async def attach(self, record: JobRecord) -> JobTracker:
        """The tracker of any job: reads its log from the beginning, and goes on."""
        known = self._trackers.get(record.id)
        if known is not None:
            return known
        tracker = self.track(record)
        self._attached.add(record.id)
        subject = self.names.job_results(record.client, record.id)
        self._supervise(lambda: self._read_results(subject, 0))
        if record.total is None:
            self._supervise(lambda: self._await_seal(tracker))
        return tracker

    async def _await_seal(self, tracker: JobTracker) -> None:
        while tracker.total is None:
            stored = await self.store.get(self.names.job(tracker.id))
            record = None if stored is None else _decode(stored.value, JobRecord)
            if record is not None and record.total is not None:
                tracker.seal(record.total)
            await asyncio.sleep(_RETRY_S)
        await asyncio.get_running_loop().create_future()

    async def _read_results(self, subject: str, after: int) -> None:
        log_name = self.names.results_log
        async with aclosing(self.bus.read(log_name, subject, after=after)) as batches:
            async for batch in batches:
                for entry in batch:
                    self._take_in(entry)

    def _take_in(self, entry: LogEntry) -> None:
        try:
            content = self.wire.read(Kind.OUTCOME, entry.header)
            tracker = self._trackers.get(JobId(content.job))
            if tracker is None:
                return
            if not entry.subject.endswith(f".{tracker.client}.{content.job}"):
                raise AuthenticationError("An outcome stands under another job's subject.")
            self._take_in_content(tracker, content, entry.data)
        except (AuthenticationError, msgspec.DecodeError) as error:
            log.warning("An entry of the results log is ignored: %s", error)

    def _take_in_content(self, tracker: JobTracker, content: Envelope, data: bytes) -> None:
        try:
            batch = msgspec.msgpack.decode(content.meta, type=OutcomeBatch)
        except msgspec.ValidationError:
            part = msgspec.msgpack.decode(content.meta, type=OutcomePart)
            check_body(content, data)
            parts = self._parts.setdefault(part.token, [])
            if part.part == len(parts):
                parts.append(data)
            return
        if batch.parts:
            parts = self._parts.pop(batch.token, [])
            data = b"".join(parts)
        check_body(content, data)
        tracker.take_in(batch.outcomes, data)

    async def _on_report(self, message: Message) -> None:
        try:
            report = self.wire.open(Kind.REPORT, message.data)
        except (AuthenticationError, msgspec.DecodeError) as error:
            log.debug("A report is ignored: %s", error)
            return
        if not isinstance(report, messages.WorkerReport):
            return
        running: dict[JobId, set[int]] = {}
        for held in report.held:
            if held.running_for_s is not None:
                running.setdefault(held.job, set()).update(range(held.start, held.stop))
        for tracker in list(self._trackers.values()):
            tracker.report(report.worker, frozenset(running.get(tracker.id, ())))

    # ------------------------------------------------------------ questions to the leader

    async def live_counts(self, jobs: Sequence[JobId] | None) -> dict[JobId, messages.JobCounts]:
        """Counts of unfinished jobs from the leader; empty when none answers."""
        query = messages.AskCounts(None if jobs is None else tuple(jobs))
        data = self.wire.seal(Kind.QUERY, query)
        try:
            reply = await self.bus.request(self.names.to_leader, data, _COUNTS_S)
            answer = self.wire.open(Kind.ANSWER, reply)
        except (
            RequestFailedError,
            ConnectError,
            AuthenticationError,
            msgspec.DecodeError,
        ) as error:
            log.info("No leader answered: %s", error)
            return {}
        if not isinstance(answer, messages.Counts):
            return {}
        return {counts.job: counts for counts in answer.jobs}


def _leading(candidates: Snapshot) -> WorkerId | None:
    if not candidates.items:
        return None
    first = min(candidates.items, key=lambda item: item.create_revision)
    record = _decode(first.value, Candidate)
    return None if record is None else record.worker


_R = TypeVar("_R", bound=msgspec.Struct)


def _decode(data: bytes, kind: type[_R]) -> _R | None:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        log.warning("A record cannot be read and is ignored: %s", error)
        return None
