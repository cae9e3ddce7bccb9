"""One connection to a cluster: its servers, its trackers and its background tasks.

All of it runs on the I/O thread. It stays open as long as somebody has use for it: who
does, holds its `Interest`. What comes in is checked and handed on by `reading`
(outcomes) and `members`; `notes` tells jobs why they do not move.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import weakref
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec

from nbsched import messages
from nbsched.client.gonejobs import GoneJobs
from nbsched.client.iothread import IoThread, io_thread
from nbsched.client.members import Members, read_record
from nbsched.client.notes import Notes
from nbsched.client.presence import Presence
from nbsched.client.reading import OutcomeReader
from nbsched.client.tracker import JobTracker
from nbsched.errors import AuthenticationError, ConnectError, NbschedError
from nbsched.model import ClientId, JobId, JobRecord, JobStatus
from nbsched.names import Names, new_client_id
from nbsched.payload.envelope import Key, Kind
from nbsched.payload.sharedfolder import SharedFolder
from nbsched.servers import Servers
from nbsched.settings import Settings
from nbsched.storage import Store
from nbsched.transport import Bus, Message, RequestFailedError
from nbsched.wire import Wire

log = logging.getLogger(__name__)

T = TypeVar("T")
_RETRY_S = 0.5
_LOOK_S = 2.0
_COUNTS_S = 1.0
"""How long `live_counts` waits for a leader."""


class Interest:
    """What keeps a session open. Clusters hold it, and so do their jobs' trackers.

    The session itself is always reachable from its background tasks, so that its own
    death would never come. ``keeps`` is what else has to live as long.
    """

    def __init__(self) -> None:
        self.keeps: list[object] = []


class Session:
    """A client's connections and background tasks."""

    def __init__(self, io: IoThread, settings: Settings, store: Store, bus: Bus, key: Key) -> None:
        self.id: ClientId = new_client_id()
        self.settings = settings
        self.names = Names(settings.namespace)
        self.store = store
        self.bus = bus
        self.wire = Wire(key, self.names)
        self.shared_folder = SharedFolder.of(settings.shared_folder, settings.namespace, key.id)
        self.members = Members(store, self.names, settings, self._members_listed)
        self.notes = Notes(settings, self._living_trackers)
        self.presence = Presence(
            self.id,
            store,
            self.names,
            settings.lease_ttl_s,
            self._supervise,
            self._look_at_uploads,
        )
        self._gone_jobs = GoneJobs(store, bus, self.wire, self.names, self._living_trackers)
        self.closed = False
        self._io = io
        self._trackers: weakref.WeakValueDictionary[JobId, JobTracker] = (
            weakref.WeakValueDictionary()
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscriptions: list[Any] = []
        self._interest: weakref.ref[Interest] | None = None
        self._forgotten: weakref.finalize[..., Interest] | None = None
        self._closing: asyncio.Task[None] | None = None

    # ------------------------------------------------------------ life

    @classmethod
    def connect(cls, settings: Settings) -> Session:
        """Connect, from any thread. Raises ConnectError and ConfigurationError."""
        io = io_thread()
        return io.run(cls._connect(io, settings))

    @classmethod
    async def _connect(cls, io: IoThread, settings: Settings) -> Session:
        servers = await Servers.connect(settings, name="nbsched-client")
        session = cls(io, settings, servers.store, servers.bus, servers.key)
        try:
            await session._begin()
        except BaseException:
            await servers.close()
            raise
        return session

    async def _begin(self) -> None:
        after = await self.bus.last_sequence(self.names.results_log)
        for subject, take in (
            (self.names.reports, self._on_report),
            (self.names.client_output(self.id), self._on_output),
        ):
            self._subscriptions.append(await self.bus.subscribe(subject, take))
        await self.members.list()
        self._supervise(self._reader(self.names.client_results(self.id), after))
        self._supervise(self.members.follow)
        self._supervise(self._look_at_bus)
        self._supervise(self._gone_jobs.follow)

    def _supervise(
        self, work: Callable[[], Coroutine[Any, Any, None]], *, endless: bool = True
    ) -> asyncio.Task[None]:
        task = asyncio.ensure_future(self._restarting(work, endless))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _restarting(
        self, work: Callable[[], Coroutine[Any, Any, None]], endless: bool
    ) -> None:
        while True:
            try:
                await work()
                if not endless:
                    return
            except NbschedError as error:
                log.warning("A connection is set up anew: %s", error)
                if isinstance(error, ConnectError):
                    self.notes.server_failed(error)
            except Exception:
                log.exception("A background task failed and is started anew")
            await asyncio.sleep(_RETRY_S)

    def interest(self) -> Interest:
        """Keeps the session open as long as it is held; with the last one it closes."""
        held = None if self._interest is None else self._interest()
        if held is None:
            held = Interest()
            self._interest = weakref.ref(held)
            self._forgotten = weakref.finalize(held, _forget, self._io, self)
            self._forgotten.atexit = False
        return held

    def _nobody_is_interested(self) -> None:
        if not self.closed:
            self.closed = True
            log.info("The connections of %s end: nobody uses them any more", self.id)
            self._closing = asyncio.ensure_future(self._close())

    def close(self) -> None:
        """End all connections. Futures without an outcome fail with a clear error."""
        if not self.closed:
            self.closed = True
            if self._forgotten is not None:
                self._forgotten.detach()
            self._io.run(self._close())

    async def _close(self) -> None:
        while self._tasks:
            # Again and again: a library below may swallow a cancellation that comes at
            # the moment when what it waits for does, as asyncio.wait_for did.
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks, timeout=_RETRY_S)
        for tracker in self._living_trackers():
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

    def soon(self, call: Callable[[], object]) -> None:
        """Call on the I/O thread, soon, if that is there; a finalizer may ask for it."""
        if self._io.usable:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                self._io.loop.call_soon_threadsafe(call)

    def complete(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Work on the I/O thread until it succeeds, or the session closes."""
        if not self.closed:
            self._supervise(work, endless=False)

    def _check_open(self, work: Coroutine[Any, Any, T]) -> None:
        if self.closed:
            work.close()
            raise NbschedError("This cluster is closed. Create a new Cluster().")

    # ------------------------------------------------------------ members

    def _members_listed(self) -> None:
        self.notes.works("etcd")
        self.notes.keep_workers(self.members.records)
        if self.members.working():
            self.notes.works("workers")
        else:
            self.notes.no_worker()
        for tracker in self._living_trackers():
            tracker.keep_workers(self.members.records)

    def require_workers(self, python: str, cpus: int) -> None:
        """Wait, on any thread, for a worker that can run a task; see ``worker_timeout_s``.

        Raises:
            VersionMismatchError: workers are there, but none with this Python.
            ConfigurationError: no worker has so many CPUs, or the keys differ.
            NoWorkersError: none joined in time.
        """
        if not self.members.working():
            self.run(self.members.wait_for_one())
        self.members.check(self.wire.key, python, cpus)

    async def _look_at_bus(self) -> None:
        """The log's reader waits in silence while NATS is away: ask, while a job waits."""
        while True:
            if any(not tracker.finished for tracker in self._living_trackers()):
                await self.bus.last_sequence(self.names.results_log)
                self.notes.works("nats")
            await asyncio.sleep(_LOOK_S)

    # ------------------------------------------------------------ results

    def track(self, record: JobRecord) -> JobTracker:
        """The tracker of a job of this client."""
        tracker = JobTracker(record, self.interest(), self.shared_folder)
        tracker.set_note(self.notes.line)
        self._trackers[record.id] = tracker
        return tracker

    def tracker(self, job: JobId) -> JobTracker | None:
        """The tracker of a job that somebody here has a future of."""
        return self._trackers.get(job)

    async def attach(self, record: JobRecord) -> JobTracker:
        """The tracker of any job: reads its log from the beginning, and goes on."""
        known = self._trackers.get(record.id)
        if known is not None:
            return known
        tracker = self.track(record)
        tracker.committed = True
        results = self.names.job_results(record.client, record.id)
        output = self.names.job_output(record.client, record.id)
        loop = self._io.loop  # not this one's thread: any may drop the last reference
        for work in (self._reader(results, 0), lambda: self._listen(output)):
            task = self._supervise(work)
            end = partial(loop.call_soon_threadsafe, task.cancel)
            weakref.finalize(tracker, end).atexit = False
        if record.total is None:
            await self.await_seal(tracker)
        return tracker

    async def await_seal(self, tracker: JobTracker) -> None:
        """Look for the job's total in the background, as long as somebody waits for it."""
        waiting = weakref.ref(tracker)
        self._supervise(lambda: self._seal_when_known(waiting), endless=False)

    async def _seal_when_known(self, waiting: weakref.ref[JobTracker]) -> None:
        while (tracker := waiting()) is not None and tracker.total is None:
            await self._seal_if_known(tracker)
            del tracker  # or it would live until the next look
            await asyncio.sleep(_RETRY_S)

    async def _seal_if_known(self, tracker: JobTracker) -> None:
        """With the total that the client or the leader has sealed the job with, or that
        the leader has ended it with."""
        # In this order: the record says who has sealed a job before its status says the end.
        total = await self._ended_total(tracker.id)
        stored = await self.store.get(self.names.job(tracker.id))
        record = None if stored is None else read_record(stored.value, JobRecord)
        if record is not None and record.total is not None:
            total = record.total
        if total is not None and tracker.total is None:
            tracker.seal(total, without_client=record is not None and record.abandoned)

    async def _look_at_uploads(self) -> None:
        """This client was away, maybe for so long that its jobs were sealed without it."""
        self.notes.works("etcd")
        for tracker in self._living_trackers():
            if tracker.client == self.id and tracker.committed and tracker.total is None:
                await self._seal_if_known(tracker)

    async def _ended_total(self, job: JobId) -> int | None:
        stored = await self.store.get(self.names.status(job))
        status = None if stored is None else read_record(stored.value, JobStatus)
        if status is None or not status.state.ended or status.total is None or status.total < 0:
            return None
        return status.total

    def _reader(self, subject: str, after: int) -> Callable[[], Coroutine[Any, Any, None]]:
        tracker_of = self._trackers.get
        return OutcomeReader(self.bus, self.wire, self.names, subject, after, tracker_of).run

    def _living_trackers(self) -> list[JobTracker]:
        return list(self._trackers.values())

    async def _listen(self, subject: str) -> None:
        """Take in what the tasks of somebody else's job print, until cancelled."""
        subscription = await self.bus.subscribe(subject, self._on_output)
        try:
            await asyncio.Event().wait()
        finally:
            with contextlib.suppress(ConnectError):
                await subscription.close()

    async def _on_output(self, message: Message) -> None:
        told = self._opened(message)
        if not isinstance(told, messages.TaskOutput):
            return
        tracker = self._trackers.get(told.job)
        if tracker is not None:
            tracker.told(told.worker, told.printed)

    def _opened(self, message: Message) -> messages.AnyMessage | None:
        try:
            return self.wire.open(Kind.REPORT, message.data)
        except (AuthenticationError, msgspec.DecodeError) as error:
            log.debug("A message on %s is ignored: %s", message.subject, error)
            return None

    async def _on_report(self, message: Message) -> None:
        report = self._opened(message)
        if not isinstance(report, messages.WorkerReport):
            return
        memory = (report.memory_used_bytes, report.memory_bytes)
        self.members.reported(report.worker, report.free_slots, memory)
        self.notes.pauses(report.worker, report.trouble)
        running: dict[JobId, dict[int, tuple[int, float]]] = {}
        for held in report.held:
            if held.running_for_s is not None:
                run = (held.attempt, held.running_for_s)
                running.setdefault(held.job, {}).update(
                    dict.fromkeys(range(held.start, held.stop), run)
                )
        for tracker in list(self._trackers.values()):
            tracker.report(report.worker, running.get(tracker.id, {}))

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


def _forget(io: IoThread, session: Session) -> None:
    """Close without waiting: this runs wherever the last reference went, maybe on the
    I/O thread itself, or in the middle of anything."""
    if io.usable:
        with contextlib.suppress(RuntimeError):  # the loop is closed: so are its connections
            io.loop.call_soon_threadsafe(session._nobody_is_interested)
