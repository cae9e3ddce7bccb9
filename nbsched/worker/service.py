"""The worker: obeys the leader of the highest term, and says what it holds.

Commands come one after another and never wait for a task. Everything that a command
sets going ends in an outcome in the results log or in a later report, so a command
or an answer that gets lost is found out and repeated by the leader.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextlib import suppress

import msgspec

from nbsched._compat import assert_never
from nbsched.errors import AuthenticationError, ConnectError
from nbsched.indexset import IndexSet
from nbsched.kernel.protocol import Hello
from nbsched.messages import (
    Accepted,
    Answer,
    AskReport,
    BlockRef,
    Command,
    ForgetJob,
    Held,
    Outcome,
    Recalled,
    RecallTasks,
    Refused,
    RunSlice,
    StopTasks,
    WorkerReport,
)
from nbsched.model import JobId, Term, WorkerRecord
from nbsched.names import Names
from nbsched.payload.envelope import Key, Kind
from nbsched.payload.sharedfolder import SharedFolder
from nbsched.settings import Settings
from nbsched.storage import Lease, Store
from nbsched.transport import Bus, Message, Subscription
from nbsched.wire import Wire
from nbsched.worker import endings
from nbsched.worker.backlog import Backlog, Piece
from nbsched.worker.hostmemory import host_memory
from nbsched.worker.inputs import InputCache
from nbsched.worker.kernelpool import KernelPool
from nbsched.worker.liveoutput import LiveOutput
from nbsched.worker.reporter import Reporter
from nbsched.worker.results import ResultPublisher
from nbsched.worker.trust import Trust

log = logging.getLogger(__name__)

_PENDING_BYTES = 256 * 1024 * 1024
"""So many bytes of outcomes may wait for the log before no new task starts."""


class WorkerService:
    """One worker daemon's tasks. ``cpus`` 0: it runs none, and refuses slices."""

    def __init__(
        self,
        *,
        record: WorkerRecord,
        names: Names,
        key: Key,
        bus: Bus,
        store: Store,
        settings: Settings,
        cpus: int,
    ) -> None:
        self._id = record.id
        self._host = record.host
        self._names = names
        self._bus = bus
        self._cpus = cpus
        self._wire = Wire(key, names)
        self._term = Term(0)
        self._seen = IndexSet()
        self._registered = 0
        self._draining = False
        self._progress = asyncio.Event()
        self._subscription: Subscription | None = None
        self._backlog = Backlog()
        self._trust = Trust(self._feed)
        self._reporter = Reporter(names, self._wire, bus, self._report, self._running)
        self._inputs = InputCache(names, key, bus, store, self._feed, self._input_missing)
        self._results = ResultPublisher(
            record.id,
            names,
            key,
            bus,
            settings.message_bytes,
            lambda: self._term,
            self._acknowledged,
            self._room_changed,
            self._more_follows,
        )
        folder = SharedFolder.of(settings.shared_folder, names.namespace, key.id)
        self._live_output = LiveOutput(record.id, names, self._wire, bus)
        self._pool = KernelPool(
            Hello(
                record.id,
                record.host,
                settings.max_result_bytes,
                None if folder is None else folder.path,
            ),
            cpus,
            settings.cancel_grace_s,
            self._backlog,
            self._inputs,
            self._publish,
            self._live_output.tell,
            self._changed,
            self._paused,
        )

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        """Listen for commands, start the kernels, begin to report."""
        subject = self._names.to_worker(self._id)
        self._subscription = await self._bus.subscribe(subject, self._on_message)
        self._pool.start()
        self._reporter.start()

    def serve_under(self, lease: Lease) -> None:
        """Hand over tasks from now on only while this lease is trusted. To be called before the
        leader can know of it: what waits here is of an earlier one, and given to others."""
        self._backlog.drop_queued()
        self._trust.rest_on(lease)
        self._feed()

    def registered(self, revision: int) -> None:
        """Its record is in the store since then: a leader that knows an older one gave its
        tasks to a worker that is lost."""
        self._registered = revision

    def disowned(self) -> None:
        """The lease is gone: what has not begun is not this worker's any more."""
        self._trust.lose()
        self._backlog.drop_queued()
        self._pool.revoke_all()
        self._changed(False)

    async def drain(self, timeout_s: float | None) -> None:
        """Take no new work, finish what runs, hand back the rest. Returns when nothing
        runs and every outcome is in the log, or after ``timeout_s``."""
        self._draining = True
        self._pool.revoke_all()
        self._feed()
        await self._reporter.report()
        deadline = time.monotonic() + (math.inf if timeout_s is None else timeout_s)
        while self._backlog and (left := deadline - time.monotonic()) > 0:
            self._progress.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._progress.wait(), min(left, 60.0))
            self._feed()
        await self._reporter.report()

    async def stop(self) -> None:
        """End at once: kernels are killed, and nothing is left behind."""
        if self._subscription is not None:
            with suppress(ConnectError):
                await self._subscription.close()
            self._subscription = None
        self._trust.close()
        await self._pool.stop()
        await self._live_output.close()
        await self._inputs.close()
        await self._results.close()
        await self._reporter.close()

    @property
    def busy(self) -> bool:
        """Whether it holds tasks whose outcome is not in the log yet."""
        return bool(self._backlog)

    def kernel_pids(self) -> list[int]:
        """Process ids of the kernels, for people and tests."""
        return self._pool.pids()

    @property
    def term(self) -> Term:
        """The highest term that it knows."""
        return self._term

    def forget_terms(self) -> None:
        """The store that counts terms has lost its data, and counts from the beginning."""
        self._term = Term(0)
        self._seen = IndexSet()

    def observe_term(self, term: Term) -> None:
        """There is a leader of this term: older ones are not obeyed any more."""
        if term > self._term:
            log.info("obeying term=%d (before: %d)", term, self._term)
            self._term = term
            self._seen = IndexSet()
            self._reporter.changed()

    # ------------------------------------------------------------ commands

    async def _on_message(self, message: Message) -> None:
        try:
            command = self._wire.open(Kind.COMMAND, message.data)
        except (AuthenticationError, msgspec.DecodeError) as error:
            log.warning("a message on %s is ignored: %s", message.subject, error)
            return
        if not isinstance(command, Command):
            log.warning("a %s is no command; it is ignored", type(command).__name__)
            return
        answer = self._obey(command)
        if message.reply:
            await self._answer(message.reply, answer)
        if isinstance(command, AskReport):
            await self._reporter.report()

    async def _answer(self, subject: str, answer: Answer) -> None:
        try:
            await self._bus.publish(subject, self._wire.seal(Kind.ANSWER, answer, self._term))
        except ConnectError as error:
            log.warning("an answer was not sent: %s", error)

    def _obey(self, command: Command) -> Answer:
        if command.term < self._term:
            log.warning("refused a command of term=%d, term is %d", command.term, self._term)
            return Refused("there is a newer leader", self._term)
        self.observe_term(command.term)
        match command:
            case RunSlice():
                return self._run_slice(command)
            case RecallTasks(job=job, ranges=ranges):
                recalled = Recalled(job, self._backlog.recall(job, ranges))
                self._changed(False)
                return recalled
            case StopTasks():
                self._stop_tasks(command)
            case ForgetJob(job=job):
                self._inputs.forget(job)
                self._pool.forget(job)
                self._results.forget(job)
            case AskReport():
                pass  # the report follows the answer
            case _:
                assert_never(command)
        return Accepted()

    def _run_slice(self, command: RunSlice) -> Answer:
        if command.seq in self._seen:
            return Accepted(command.seq)
        # A refused slice counts as received too. Else the sequence number of the reports
        # stays behind, and the leader never takes back what is no longer held here.
        self._seen.add(command.seq, command.seq + 1)
        if command.joined < self._registered:
            log.info("a slice of job=%s is for an earlier registration", command.brief.job)
            self._reporter.changed()  # the leader hears that it is not held, should it care
            return Accepted(command.seq)
        if self._cpus == 0 or self._draining:
            reason = "it is draining" if self._draining else "it runs no tasks (cpus=0)"
            return Refused(f"worker {self._id} takes no tasks: {reason}", self._term)
        if command.inline is not None:
            self._take_inline(command, command.inline)
        self._backlog.add(command)
        # After the answer is on its way, so that fetching and feeding do not delay it.
        asyncio.get_running_loop().call_soon(self._feed)
        self._reporter.changed()
        return Accepted(command.seq)

    def _take_inline(self, command: RunSlice, sealed: bytes) -> None:
        """What came with the slice; if it is not authentic, the store is asked later."""
        try:
            self._inputs.take_inline(command.brief, sealed)
        except (AuthenticationError, msgspec.DecodeError) as error:
            log.warning("inline input of job=%s is ignored: %s", command.brief.job, error)

    def _stop_tasks(self, command: StopTasks) -> None:
        silently = command.silently
        for piece in self._backlog.stop(command.job, command.ranges):
            self._pool.cancel(piece, silently=silently)
        self._pool.stop_tasks(command.job, command.ranges, command.grace_s, silently=silently)

    # ------------------------------------------------------------ between the parts

    def _feed(self) -> None:
        if self._draining:
            self._backlog.drop_queued()
        self._pool.feed()

    def _room_changed(self) -> None:
        """The results log is full, or is so no more."""
        self._changed(False)
        self._feed()

    def _more_follows(self, job: JobId) -> bool:
        return self._backlog.has_queued(job) or self._pool.works_on(job)

    def _paused(self) -> bool:
        crowded = self._results.full or self._results.pending_bytes > _PENDING_BYTES
        return self._draining or crowded or not self._trust.holds()

    def _publish(self, piece: Piece, outcome: Outcome, body: bytes) -> None:
        self._results.add(piece.job, piece.brief.client, outcome, body)

    def _acknowledged(self, job: JobId, outcomes: tuple[Outcome, ...]) -> None:
        for outcome in outcomes:
            self._backlog.release(job, outcome.start, outcome.stop, outcome.round, outcome.attempt)
        self._changed(False)
        self._feed()

    def _changed(self, urgent: bool) -> None:
        self._reporter.changed(urgent)
        self._progress.set()

    def _input_missing(self, piece: Piece, ref: BlockRef | None, reason: str) -> None:
        """Fail what waits for input that will not come."""
        for lost in self._backlog.withdraw_block(piece, ref):
            for index in range(lost.start, lost.stop):
                task = lost.part(index, index + 1)
                self._publish(task, *endings.unreadable(task, self._id, self._host, reason))

    def _running(self) -> list[Held]:
        return self._backlog.still_held(self._pool.running())

    def _report(self) -> WorkerReport:
        seen = list(self._seen.ranges())
        memory_used_bytes, memory_bytes = host_memory()
        return WorkerReport(
            worker=self._id,
            term=self._term,
            seq=seen[-1][1] - 1 if seen else 0,
            results_seq=self._results.last_sequence,
            held=self._backlog.held(self._pool.running()),
            free_slots=0 if self._draining else self._pool.free_slots,
            draining=self._draining,
            memory_used_bytes=memory_used_bytes,
            memory_bytes=memory_bytes,
            trouble=self._results.trouble,
        )
