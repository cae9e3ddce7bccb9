"""One term of leadership: feeds the scheduler with events and carries out its commands.

The scheduler's state is touched in one place only (`_schedule`), one event after another,
without waiting for anything. When anything here fails, or the lease is not trusted any
more, the term is over (`LeadershipLostError`) and the next leader rebuilds everything
from the store and the logs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Coroutine
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

import msgspec

from nbsched import messages
from nbsched._compat import assert_never
from nbsched.errors import AuthenticationError, ConnectError
from nbsched.leader import loader, lostjobs
from nbsched.leader.announcer import Announcer
from nbsched.leader.earlyreports import EarlyReports
from nbsched.leader.election import Leadership
from nbsched.leader.ledger import Ledger
from nbsched.leader.orphans import Orphans
from nbsched.leader.outbox import Outbox
from nbsched.leader.patience import answered, ended, within
from nbsched.leader.retention import Retention
from nbsched.leader.shortjobs import Short, ShortJobs
from nbsched.leader.uploads import Uploads
from nbsched.leader.watcher import Watcher
from nbsched.messages import JobBrief
from nbsched.model import JobId, JobRecord, WorkerId
from nbsched.names import Names
from nbsched.payload.envelope import Key, Kind
from nbsched.payload.sharedfolder import SharedFolder
from nbsched.scheduler import commands, events
from nbsched.scheduler.core import step
from nbsched.scheduler.state import State
from nbsched.settings import Settings
from nbsched.storage import Store
from nbsched.transport import Bus, Message, Subscription
from nbsched.wire import Wire

log = logging.getLogger(__name__)

INVENTORY_S = 2.0
"""A new leader waits for a worker's inventory this long beyond its lease: until etcd has
looked, and the watch has told."""
DOUBT_S = 2.0
"""Between two looks whether the log still has what it has acknowledged."""
TRUST_CHECK_S = 0.2


class LeaderService:
    """Runs one term; `run` returns only by raising."""

    def __init__(
        self,
        me: WorkerId,
        leadership: Leadership,
        *,
        store: Store,
        bus: Bus,
        names: Names,
        key: Key,
        settings: Settings,
    ) -> None:
        self._me = me
        self._leadership = leadership
        self._store = store
        self._bus = bus
        self._names = names
        self._settings = settings
        self._wire = Wire(key, names)
        self._decoder = loader.LogDecoder(self._wire)
        self._state = State()
        self._queue: deque[events.Event] = deque()
        self._stepping = False
        self._ready = False
        """Everything has been read: events are acted upon as they come."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._position = 0
        """Sequence number up to which the results log has been fed to the scheduler."""
        self._begun = False
        """Every open job has been fed. A report that came before its job would be spent."""
        self._subscriptions: list[Subscription] = []
        self._early_reports = EarlyReports()
        self._reported: set[WorkerId] = set()
        self._all_reported = asyncio.Event()
        self._outboxes: dict[WorkerId, tuple[Outbox, asyncio.Task[None]]] = {}
        self._announcer = Announcer(me, leadership, bus=bus, wire=self._wire, names=names)
        self._retention = Retention(
            leadership,
            store=store,
            bus=bus,
            names=names,
            retention_s=settings.retention_s,
            folder=SharedFolder.of(settings.shared_folder, names.namespace, key.id),
        )
        self._ledger = Ledger(
            store, names, leadership, self._retention.ended, clock=self._retention.clock
        )
        self._orphans = Orphans(leadership, store=store, bus=bus, names=names)
        self._uploads = Uploads(
            leadership,
            store=store,
            names=names,
            grace_s=settings.upload_grace_s,
            unsealed=self._unsealed,
        )
        self._watcher = Watcher(
            store=store,
            bus=bus,
            names=names,
            decoder=self._decoder,
            feed=self._feed,
            retention=self._retention,
            uploads=self._uploads,
        )
        self._timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------ life

    async def run(self) -> None:
        """Lead until the term ends. Raises LeadershipLostError, or what went wrong."""
        log.info("term=%s: %s leads", self._leadership.term, self._me)
        try:
            self._start(self._keep_trust())
            self._start(self._begin())
            await self._failed
        finally:
            if self._timer is not None:
                self._timer.cancel()
            await ended(self._tasks)
            for subscription in self._subscriptions:
                with suppress(ConnectError):
                    await subscription.close()
            log.info("term=%s: over", self._leadership.term)

    async def _begin(self) -> None:
        """Read everything, then start the loops. A server that is away is waited for."""
        names, bus = self._names, self._bus
        for subject, handler in (
            (names.reports, self._on_report),
            (names.to_leader, self._on_query),
        ):
            self._subscriptions.append(await answered(partial(bus.subscribe, subject, handler)))
        self._position = await answered(partial(bus.last_sequence, names.results_log))
        inputs_position = await answered(partial(bus.last_sequence, names.inputs_log))
        self._start(self._ledger.run())
        self._start(self._announcer.run())
        await self._watcher.begin(self._ledger.remember)
        self._begun = True
        self._feed_ripe_reports()
        self._start(self._watcher.follow())
        self._start(self._read_inputs(inputs_position))
        self._ready = True
        self._schedule()
        self._start(self._read_results(self._position))
        self._start(self._recover())
        self._start(self._retention.run())
        self._start(self._orphans.run())
        self._start(self._doubt_log())
        self._start(self._uploads.run())
        grace_s = self._settings.lost_data_grace_s
        self._start(lostjobs.forget(self._leadership, self._store, self._bus, self._names, grace_s))
        self._start(ShortJobs(self._short_jobs, self._watcher.read_again, grace_s).run())

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_end)
        return task

    def _on_task_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._failed.done():
            self._failed.set_exception(error)

    async def _keep_trust(self) -> None:
        while True:
            self._leadership.check()
            await asyncio.sleep(TRUST_CHECK_S)

    def _feed(self, event: events.Event) -> None:
        """Act upon an event, behind those that are there already. Never raises."""
        self._queue.append(event)
        if self._ready and not self._stepping:
            self._schedule()

    # ------------------------------------------------------------ what comes in

    async def _doubt_log(self) -> None:
        """What the log has acknowledged may be lost with its server. A report that names an
        entry which the log has never had will not be explained better; an outcome of this
        leader's own that is not there is appended again."""
        while True:
            await asyncio.sleep(DOUBT_S)
            unread = self._announcer.unread
            if not (self._early_reports or unread):
                continue
            furthest = self._early_reports.furthest
            last = await answered(partial(self._bus.last_sequence, self._names.results_log))
            if furthest > last:  # not one that came, with its outcome, during the question
                self._early_reports.limit(last)
            self._announcer.repeat(unread, self._position, last)
            self._feed_ripe_reports()

    async def _read_results(self, after: int) -> None:
        reader = self._bus.read(
            self._names.results_log, self._names.all_results, after=after, headers_only=True
        )
        async with aclosing(reader) as batches:
            async for batch in batches:
                for entry in batch:
                    self._announcer.read_back(entry.header)
                    for event in self._decoder.outcomes(entry):
                        self._feed(event)
                    self._position = entry.sequence
                self._feed_ripe_reports()

    async def _read_inputs(self, after: int) -> None:
        reader = self._bus.read(
            self._names.inputs_log, self._names.all_inputs, after=after, headers_only=True
        )
        async with aclosing(reader) as batches:
            async for batch in batches:
                for entry in batch:
                    for event in self._decoder.blocks(entry):
                        self._watcher.feed_block(event)

    async def _on_report(self, message: Message) -> None:
        try:
            report = self._wire.open(Kind.REPORT, message.data)
        except (AuthenticationError, msgspec.DecodeError) as error:
            log.warning("A report is ignored: %s", error)
            return
        if isinstance(report, messages.WorkerReport) and report.term == self._leadership.term:
            self._early_reports.add(report)
            self._feed_ripe_reports()

    def _feed_ripe_reports(self) -> None:
        """Pass on the reports that the results log, as far as it is read, explains."""
        if not self._begun:
            return
        for report in self._early_reports.take_ripe(self._position):
            self._feed(events.ReportRead(report))
            self._reported.add(report.worker)
        if self._reported.issuperset(self._watcher.members):
            self._all_reported.set()

    async def _on_query(self, message: Message) -> None:
        try:
            query = self._wire.open(Kind.QUERY, message.data)
        except (AuthenticationError, msgspec.DecodeError) as error:
            log.warning("A query is ignored: %s", error)
            return
        if not isinstance(query, messages.AskCounts) or not message.reply:
            return
        wanted = self._state.jobs if query.jobs is None else query.jobs
        counts = tuple(self._state.jobs[job].counts() for job in wanted if job in self._state.jobs)
        answer = messages.Counts(self._leadership.term, counts)
        try:
            await self._bus.publish(message.reply, self._wire.seal(Kind.ANSWER, answer))
        except ConnectError as error:  # who asked asks again
            log.warning("an answer was not sent: %s", error)

    async def _recover(self) -> None:
        """Wait for the workers' inventories, then let the scheduler hand out work.

        Who says nothing is waited for until its lease must have ended: what it runs would be
        started again, and a cancel of that confirmed, while it still runs. Beyond that only
        a worker is silent that reaches etcd and not NATS, and nobody can ask that one.
        """
        deadline = time.monotonic() + self._settings.lease_ttl_s + INVENTORY_S
        while missing := self._watcher.members - self._reported:
            self._all_reported.clear()
            left = deadline - time.monotonic()
            if left <= 0:
                log.warning("No inventory from %s", ", ".join(sorted(missing)))
                break
            for worker in missing:
                self._outbox(worker).put(messages.AskReport(self._leadership.term))
            await within(min(left, 0.5), self._all_reported.wait())
        self._feed(events.RecoveryEnded())

    # ------------------------------------------------------------ scheduling

    def _schedule(self) -> None:
        """Empty the queue. What a command feeds meanwhile comes behind the rest."""
        self._stepping = True
        try:
            while self._queue and not self._failed.done():
                event = self._queue.popleft()
                self._leadership.check()
                if isinstance(event, events.WorkerLost):
                    self._close_outbox(event.worker)
                for command in step(self._state, event, time.monotonic()):
                    self._carry_out(command)
        except Exception as error:  # the term is over
            if not self._failed.done():
                self._failed.set_exception(error)
        finally:
            self._stepping = False

    def _carry_out(self, command: commands.Command) -> None:
        match command:
            case commands.SendSlice():
                self._send_slice(command)
            case commands.StopOnWorker():
                stop = messages.StopTasks(
                    self._leadership.term,
                    command.job,
                    command.ranges,
                    self._settings.cancel_grace_s,
                    command.silently,
                )
                self._outbox(command.worker).put(stop)
            case commands.RecallFromWorker():
                recall = messages.RecallTasks(self._leadership.term, command.job, command.ranges)
                self._outbox(command.worker).put(recall)
            case commands.PublishCancelled():
                self._announcer.cancelled(self._record(command.job).client, command)
            case commands.PublishLost():
                self._announcer.lost(self._record(command.job).client, command)
            case commands.SaveStatus():
                self._ledger.save(command)
            case commands.DropRequest():
                self._ledger.drop(command)
            case commands.DropStatus():
                self._ledger.drop_status(command.job)
            case commands.RebuildJob():
                self._start(self._rebuild(command))
            case commands.ReleaseJob():
                self._release(command)
            case commands.ForgetOnWorker():
                forget = messages.ForgetJob(self._leadership.term, command.job)
                self._outbox(command.worker).put(forget)
            case commands.WakeAt():
                self._wake_at(command.time)
            case _:
                assert_never(command)

    def _unsealed(self) -> list[tuple[JobRecord, int]]:
        jobs = self._state.jobs.values()
        return [(job.record, job.uploaded) for job in jobs if job.total is None]

    def _short_jobs(self) -> list[Short]:
        return [
            Short(job.record, job.total, job.uploaded)
            for job in self._state.jobs.values()
            if job.total is not None and job.uploaded < job.total and not job.record.inline
        ]

    def _record(self, job: JobId) -> JobRecord:
        return self._state.jobs[job].record

    def _send_slice(self, command: commands.SendSlice) -> None:
        record = self._record(command.job)
        brief = JobBrief(
            job=record.id,
            client=record.client,
            call=record.call,
            inline=record.inline,
            function_parts=record.function_parts,
            function_file=record.function_file,
            function_bytes=record.function_bytes,
            cpus=record.cpus,
            task_timeout_s=record.task_timeout_s,
            max_crashes=record.max_crashes,
            memory_bytes=record.memory_bytes,
            priority=record.priority,
            chunksize=record.chunksize,
        )
        inline = self._watcher.inline_input(record.id) if command.first_slice else None
        run = messages.RunSlice(
            term=self._leadership.term,
            seq=command.seq,
            brief=brief,
            start=command.start,
            stop=command.stop,
            round=command.round,
            attempt=command.attempt,
            crashes=command.crashes,
            first_started_at=command.first_started_at,
            blocks=command.blocks,
            inline=inline,
            past=command.past,
            joined=command.joined,
        )
        self._outbox(command.worker).put(run)

    async def _rebuild(self, command: commands.RebuildJob) -> None:
        request = command.request
        if not await self._watcher.rebuild(request):
            log.warning("job=%s does not exist; a request for it is dropped", request.job)
            self._ledger.drop(commands.DropRequest(request.job, request.id))
            self._feed(events.JobDeleted(request.job))

    def _release(self, command: commands.ReleaseJob) -> None:
        self._watcher.forget(command.job)
        for worker in command.workers:
            if worker in self._outboxes:
                self._outbox(worker).put(messages.ForgetJob(self._leadership.term, command.job))

    def _wake_at(self, when: float) -> None:
        delay = max(0.0, when - time.monotonic())
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(delay, self._feed, events.TimePassed())

    # ------------------------------------------------------------ outboxes

    def _outbox(self, worker: WorkerId) -> Outbox:
        if worker not in self._outboxes:
            outbox = Outbox(
                worker,
                self._leadership,
                bus=self._bus,
                wire=self._wire,
                names=self._names,
                feed=self._feed,
            )
            self._outboxes[worker] = (outbox, self._start(outbox.run()))
        return self._outboxes[worker][0]

    def _close_outbox(self, worker: WorkerId) -> None:
        entry = self._outboxes.pop(worker, None)
        if entry is not None:
            entry[1].cancel()
