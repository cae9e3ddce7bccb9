"""A term of leadership on the twins: what it survives, and what it may not do."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

import nbsched.daemon
from nbsched import messages
from nbsched.daemon import Daemon
from nbsched.leader import service as service_module
from nbsched.leader import watcher as watcher_module
from nbsched.leader.announcer import Announcer
from nbsched.leader.election import Leadership, LeadershipLostError
from nbsched.leader.ledger import Ledger
from nbsched.leader.loader import LogDecoder
from nbsched.leader.outbox import Outbox
from nbsched.leader.retention import Retention
from nbsched.leader.service import LeaderService
from nbsched.leader.uploads import Uploads
from nbsched.leader.watcher import Watcher
from nbsched.messages import (
    Accepted,
    AskReport,
    Command,
    Held,
    Outcome,
    OutcomeBatch,
    OutcomeState,
    RunSlice,
    WorkerReport,
)
from nbsched.model import (
    Candidate,
    JobId,
    JobRecord,
    JobState,
    JobStatus,
    Record,
    RequestId,
    RetryRequest,
    TaskRange,
    Term,
    WorkerId,
    WorkerRecord,
    to_json,
)
from nbsched.names import Names
from nbsched.payload.envelope import Envelope, Key, Kind
from nbsched.scheduler import commands, events
from nbsched.settings import Settings
from nbsched.storage import Absent, Changed, Delete, Put, Snapshot
from nbsched.storage.memory import MemoryStore, MemoryStoreServer
from nbsched.transport import LogEntry, Message
from nbsched.transport.memory import MemoryBus, MemoryBusServer
from nbsched.wire import Wire
from nbsched.worker.service import WorkerService
from support.simulation import job_record
from support.workerbench import true

NAMES = Names("t")
J = JobId("j")
W0 = WorkerId("w0")
DEADLINE_S = 60.0


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, DEADLINE_S))


def worker_record(worker: WorkerId, cpus: int = 2) -> WorkerRecord:
    return WorkerRecord(
        id=worker,
        host="h",
        address="a",
        cpus=cpus,
        pid=1,
        python="3.11",
        versions={},
        key_id="k",
        started_at=0.0,
    )


def retry(request: str, index: int) -> RetryRequest:
    return RetryRequest(
        id=RequestId(request), job=J, at=0.0, ranges=(TaskRange(index, index + 1, 1),)
    )


def briefly() -> messages.JobBrief:
    return messages.JobBrief(J, "c", "one", inline=True, function_parts=1)  # type: ignore[arg-type]


class GatedStore(MemoryStore):
    """A store that lets a test stand between a call and its answer."""

    def __init__(self, server: MemoryStoreServer) -> None:
        super().__init__(server)
        self.before_get: Callable[[], Coroutine[Any, Any, None]] | None = None
        self.before_list: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {}
        self.lists: list[str] = []

    async def get(self, key: str) -> Any:
        if self.before_get is not None:
            await self.before_get()
        return await super().get(key)

    async def list(self, prefix: str) -> Snapshot:
        self.lists.append(prefix)
        if prefix in self.before_list:
            await self.before_list.pop(prefix)()
        return await super().list(prefix)


class GatedBus(MemoryBus):
    """A bus whose replays wait until the gate is open."""

    def __init__(self, server: MemoryBusServer) -> None:
        super().__init__(server)
        self.gate = asyncio.Event()
        self.gate.set()
        self.replays = 0

    async def replay(self, log: str, subject: str) -> AsyncGenerator[Sequence[LogEntry], None]:
        self.replays += 1
        await self.gate.wait()
        async for batch in super().replay(log, subject):
            yield batch


@dataclass
class Lease:
    """A lease that a test ends."""

    id: int = 1
    ttl_s: float = 60.0
    alive: bool = True
    trusted_until: float = float("inf")

    async def lost(self) -> None: ...
    async def revoke(self) -> None: ...


@dataclass
class Cluster:
    """Both twins, and what a test puts into them."""

    store_server: MemoryStoreServer = field(default_factory=MemoryStoreServer)
    bus_server: MemoryBusServer = field(default_factory=MemoryBusServer)
    key: Key = field(default_factory=Key.generate)
    fed: list[events.Event] = field(default_factory=list)
    slices: list[RunSlice] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = GatedStore(self.store_server)
        self.bus = GatedBus(self.bus_server)
        self.wire = Wire(self.key, NAMES)
        self.lease = Lease()
        self.leadership = Leadership(Term(7), "leader", self.lease)
        self.bus_server.ensure_log(NAMES.inputs_log, NAMES.all_inputs)
        self.bus_server.ensure_log(NAMES.results_log, NAMES.all_results)

    def put(self, key: str, record: Record) -> None:
        self.store_server.commit([], [Put(key, to_json(record))])

    def put_ended_job(self, job: JobRecord) -> None:
        self.put(NAMES.job(job.id), job)
        status = JobStatus(job=job.id, state=JobState.FAILED, term=Term(1))
        self.put(NAMES.status(job.id), status)
        for index in range(job.total or 0):
            self.write_outcome(job.id, index, OutcomeState.FAILED)

    def write_outcome(self, job: JobId, index: int, state: OutcomeState) -> None:
        meta = messages.encode(OutcomeBatch(W0, (Outcome(index, index + 1, 0, 1, state),)))
        content = Envelope(Kind.OUTCOME, "t", job=job, first=index, count=1, meta=meta)
        header = self.wire.write(content)
        self.bus_server.append(NAMES.job_results("c", job), header, b"")  # type: ignore[arg-type]

    def watcher(self) -> Watcher:
        return Watcher(
            store=self.store,
            bus=self.bus,
            names=NAMES,
            decoder=LogDecoder(self.wire),
            feed=self.fed.append,
            retention=self.retention(),
            uploads=self.uploads(),
        )

    def retention(self) -> Retention:
        """One that keeps everything: nobody runs it."""
        leadership: Any = None
        return Retention(
            leadership, store=self.store, bus=self.bus, names=NAMES, retention_s=math.inf
        )

    def uploads(self) -> Uploads:
        """One that seals nothing: nobody runs it."""
        leadership: Any = None
        return Uploads(leadership, store=self.store, names=NAMES, grace_s=1.0, unsealed=list)

    def fed_of(self, kind: type[events.Event]) -> list[Any]:
        return [event for event in self.fed if isinstance(event, kind)]

    async def elected(self) -> LeaderService:
        """A leader service whose candidate key is there."""
        lease = await self.store.lease(60.0)
        key = NAMES.candidate(lease.id)
        candidate = Candidate(worker=WorkerId("L"), host="h", pid=1)
        commit = await self.store.commit([Absent(key)], [Put(key, to_json(candidate), lease.id)])
        self.leadership = Leadership(Term(commit.revision), key, lease)
        return LeaderService(
            WorkerId("L"),
            self.leadership,
            store=self.store,
            bus=self.bus,
            names=NAMES,
            key=self.key,
            settings=Settings(),
        )

    async def join(self, worker: WorkerId, held: tuple[Held, ...]) -> None:
        """A worker that accepts everything, and holds what it is said to hold."""
        self.put(NAMES.worker(worker), worker_record(worker))

        async def on_message(message: Message) -> None:
            command = self.wire.open(Kind.COMMAND, message.data)
            if isinstance(command, RunSlice):
                self.slices.append(command)
            answer = self.wire.seal(Kind.ANSWER, Accepted(), self.leadership.term)
            await self.bus.publish(message.reply, answer)
            if isinstance(command, AskReport):
                await self.report(worker, held)

        await self.bus.subscribe(NAMES.to_worker(worker), on_message)

    async def report(self, worker: WorkerId, held: tuple[Held, ...]) -> None:
        report = WorkerReport(worker, self.leadership.term, 0, 0, held, 0)
        await self.bus.publish(NAMES.reports, self.wire.seal(Kind.REPORT, report))

    async def counts(self) -> dict[JobId, messages.JobCounts]:
        query = self.wire.seal(Kind.QUERY, messages.AskCounts())
        answer = self.wire.open(
            Kind.ANSWER, await self.bus.request(NAMES.to_leader, query, DEADLINE_S)
        )
        assert isinstance(answer, messages.Counts)
        return {counts.job: counts for counts in answer.jobs}


async def over(task: asyncio.Future[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# ---------------------------------------------------------------- rebuilding jobs


def test_two_requests_for_an_ended_job_rebuild_it_once() -> None:
    async def test() -> None:
        cluster = Cluster()
        cluster.put_ended_job(job_record(total=2))
        asking = 0

        async def over_a_socket() -> None:
            nonlocal asking
            asking += 1
            await asyncio.sleep(0.01)  # the way to a server and back

        cluster.store.before_get = over_a_socket
        watcher = cluster.watcher()
        rebuilt = await asyncio.gather(
            watcher.rebuild(retry("r0", 0)), watcher.rebuild(retry("r1", 1))
        )
        assert rebuilt == [True, True]
        assert asking == 1
        assert len(cluster.fed_of(events.JobRebuilt)) == 1
        asked = cluster.fed_of(events.RetryAsked)
        assert [event.request.id for event in asked] == ["r0", "r1"]
        assert isinstance(cluster.fed[0], events.JobRebuilt)

    run(test())


def test_a_job_that_is_complete_when_it_is_rebuilt_can_be_retried() -> None:
    async def test() -> None:
        cluster = Cluster()
        job = job_record(J, 2)
        cluster.put_ended_job(job)
        leader = await cluster.elected()
        await cluster.join(W0, ())
        term = asyncio.ensure_future(leader.run())
        await true(lambda: W0 in leader._reported)
        cluster.put(NAMES.job(J), job)  # newer than what was read: rebuilt, complete, released
        await true(lambda: cluster.bus.replays == 1)
        cluster.put(NAMES.request(J, RequestId("r")), retry("r", 0))
        await true(lambda: [(run.start, run.stop) for run in cluster.slices] == [(0, 1)])
        assert cluster.bus.replays == 2
        await over(term)

    run(test())


def test_a_request_for_a_job_that_does_not_exist_is_dropped() -> None:
    async def test() -> None:
        cluster = Cluster()
        key = NAMES.request(J, RequestId("r"))
        cluster.put(key, retry("r", 0))
        leader = await cluster.elected()
        term = asyncio.ensure_future(leader.run())

        await true(lambda: cluster.store_server.get(key) is None)

        assert not leader._state.rebuilding  # or its tasks would be left to run for ever
        await over(term)

    run(test())


def test_a_record_that_changes_while_its_job_is_rebuilt_is_fed_afterwards() -> None:
    async def test() -> None:
        cluster = Cluster()
        cluster.put(NAMES.job(J), job_record(total=None, inline=False))
        cluster.bus.gate.clear()
        watcher = cluster.watcher()
        rebuilding = asyncio.ensure_future(watcher.rebuild(retry("r0", 0)))
        await true(lambda: cluster.bus.replays)
        cluster.put(NAMES.job(J), job_record(total=3, inline=False))
        item = cluster.store_server.get(NAMES.job(J))
        assert item is not None
        sealed = asyncio.ensure_future(watcher._on_change(Changed(item)))
        await asyncio.wait({sealed}, timeout=0.02)
        cluster.bus.gate.set()
        await asyncio.gather(rebuilding, sealed)
        totals = [event.history[0].record.total for event in cluster.fed_of(events.JobRebuilt)]
        assert totals == [None, 3]

    run(test())


def test_a_job_that_was_listed_is_not_started_again_by_its_put_event() -> None:
    async def test() -> None:
        cluster = Cluster()

        async def submit_and_run() -> None:
            cluster.put(NAMES.job(J), job_record(total=1))
            cluster.write_outcome(J, 0, OutcomeState.OK)

        # Behind the list of members, from whose revision on changes are watched.
        cluster.store.before_list[NAMES.jobs] = submit_and_run
        watcher = cluster.watcher()
        await watcher.begin(lambda status: None)
        assert len(cluster.fed_of(events.JobRebuilt)) == 1
        watcher.forget(J)
        following = asyncio.ensure_future(watcher.follow())
        cluster.put(NAMES.job(JobId("k")), job_record("k"))
        await true(lambda: cluster.fed_of(events.JobAdded))
        assert [event.record.id for event in cluster.fed_of(events.JobAdded)] == ["k"]
        await over(following)

    run(test())


def test_a_job_that_a_request_brought_back_is_not_started_again_by_its_put_event() -> None:
    async def test() -> None:
        cluster = Cluster()
        watcher = cluster.watcher()
        await watcher.begin(lambda status: None)
        cluster.put(NAMES.job(J), job_record(total=1))
        await watcher.rebuild(retry("r0", 0))
        watcher.forget(J)
        following = asyncio.ensure_future(watcher.follow())
        cluster.put(NAMES.job(JobId("k")), job_record("k"))
        await true(lambda: cluster.fed_of(events.JobAdded))
        assert [event.record.id for event in cluster.fed_of(events.JobAdded)] == ["k"]
        await over(following)

    run(test())


def test_a_comparison_of_very_many_kept_jobs_lets_others_have_their_turn() -> None:
    """Keeping the lease, for example."""

    async def test() -> None:
        jobs = 3000
        cluster = Cluster()
        for number in range(jobs):
            job = JobId(f"j{number}")
            status = JobStatus(job=job, state=JobState.SUCCEEDED, term=Term(1), ok=1)
            cluster.put(NAMES.job(job), job_record(job))
            cluster.put(NAMES.status(job), status)
        turns = 0

        async def take_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        other = asyncio.ensure_future(take_turns())
        await cluster.watcher().begin(lambda status: None)
        assert turns >= 3 * jobs // 1000, "in each look through records or statuses"
        assert not cluster.fed_of(events.JobRebuilt)
        await over(other)

    run(test())


def test_a_comparison_finds_deleted_jobs_and_tells_that_time_has_passed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watcher_module, "RELIST_S", 0.02)

    async def test() -> None:
        cluster = Cluster()
        cluster.put(NAMES.job(J), job_record(total=1))
        watcher = cluster.watcher()
        await watcher.begin(lambda status: None)
        cluster.store_server.commit([], [Delete(NAMES.job(J))])
        watcher._revision = cluster.store_server.list(NAMES.root).revision  # the watch missed it
        following = asyncio.ensure_future(watcher.follow())
        await true(lambda: len(cluster.fed_of(events.TimePassed)) >= 2)
        assert cluster.fed_of(events.JobDeleted) == [events.JobDeleted(J)]
        await over(following)

    run(test())


# ---------------------------------------------------------------- one term


def test_a_report_that_comes_before_its_job_is_read_is_heeded() -> None:
    async def test() -> None:
        cluster = Cluster()
        holds = {
            WorkerId(f"w{w}"): tuple(Held(J, i, i + 1, 0, 1, 3600.0) for i in (2 * w, 2 * w + 1))
            for w in (0, 1)
        }
        for worker, held in holds.items():
            await cluster.join(worker, held)
        cluster.put(NAMES.job(J), job_record(total=4))
        cluster.bus.gate.clear()
        service = await cluster.elected()
        leading = asyncio.ensure_future(service.run())
        await true(lambda: cluster.bus.replays)
        for worker, held in holds.items():
            await cluster.report(worker, held)
        await true(lambda: len(service._early_reports) == 2 or service._reported)
        cluster.bus.gate.set()
        await true(lambda: not service._state.recovering or leading.done())
        counts = (await cluster.counts())[J]
        assert (counts.queued, counts.assigned) == (0, 4)
        assert cluster.slices == []
        await over(leading)

    run(test())


def test_a_worker_that_says_nothing_is_waited_for_as_long_as_its_lease_may_live(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it runs must not be started elsewhere, nor a cancel of it be confirmed."""

    async def test() -> None:
        monkeypatch.setattr(service_module, "INVENTORY_S", 0.0)
        cluster = Cluster()
        await cluster.join(W0, ())
        silent = WorkerId("silent")
        cluster.put(NAMES.worker(silent), worker_record(silent))
        cluster.put(NAMES.job(J), job_record(total=4))
        service = await cluster.elected()
        leading = asyncio.ensure_future(service.run())

        await true(lambda: W0 in service._reported or leading.done())
        assert service._state.recovering
        assert cluster.slices == []

        cluster.store_server.commit([], [Delete(NAMES.worker(silent))])
        await true(lambda: bool(cluster.slices) or leading.done())
        await over(leading)

    run(test())


@pytest.mark.parametrize("lost", [False, True])
def test_a_report_is_only_doubted_when_the_log_has_lost_its_entry(
    lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not be acted upon before its outcome, which may come during the question."""

    def report(results_seq: int) -> WorkerReport:
        return WorkerReport(W0, Term(1), 0, results_seq, (), 1)

    async def test() -> None:
        cluster = Cluster()
        service = await cluster.elected()
        service._early_reports.add(report(6 if lost else 5))
        answers, asked = 0, asyncio.Event()

        async def last_sequence(log: str) -> int:
            nonlocal answers
            answers += 1
            if answers == 1:
                service._early_reports.add(report(7))
            return 5

        monkeypatch.setattr(cluster.bus, "last_sequence", last_sequence)
        monkeypatch.setattr(service_module, "DOUBT_S", 0.0)
        monkeypatch.setattr(service, "_feed_ripe_reports", asked.set)
        doubting = asyncio.ensure_future(service._doubt_log())
        await asked.wait()
        ripe = service._early_reports.take_ripe(5)
        assert [each.results_seq for each in ripe] == [5]
        assert len(service._early_reports) == (0 if lost else 1)
        await over(doubting)

    run(test())


def test_an_answer_that_cannot_be_sent_is_no_error() -> None:
    async def test() -> None:
        cluster = Cluster()
        service = await cluster.elected()
        query = cluster.wire.seal(Kind.QUERY, messages.AskCounts())
        cluster.bus_server.go_down()
        await service._on_query(Message(NAMES.to_leader, query, "asker"))

    run(test())


def test_a_term_outlives_servers_that_are_away_for_a_moment() -> None:
    async def test() -> None:
        cluster = Cluster()
        cluster.put(NAMES.job(J), job_record(total=4))
        service = await cluster.elected()
        cluster.bus_server.go_down()
        leading = asyncio.ensure_future(service.run())
        await asyncio.wait({leading}, timeout=0.05)
        cluster.store_server.go_down()
        cluster.bus_server.come_back()
        await true(lambda: cluster.store.lists or leading.done())
        cluster.store_server.come_back()
        await true(lambda: not service._state.recovering or leading.done())
        assert (await cluster.counts())[J].queued == 4
        assert not leading.done()
        await over(leading)

    run(test())


def test_a_term_that_is_still_being_set_up_ends_with_its_lease() -> None:
    async def test() -> None:
        cluster = Cluster()
        service = await cluster.elected()
        cluster.store_server.go_down()
        leading = asyncio.ensure_future(service.run())
        await true(lambda: cluster.store.lists)
        cluster.leadership.lease.end()  # type: ignore[attr-defined]
        with pytest.raises(LeadershipLostError):
            await asyncio.wait_for(leading, 5)

    run(test())


def test_a_clock_that_is_set_back_during_a_term_ends_no_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        cluster = Cluster()
        service = await cluster.elected()
        day_s = 24 * 3600.0
        before = time.time()
        monkeypatch.setattr(time, "time", lambda: before - 2 * day_s)
        writing = asyncio.ensure_future(service._ledger.run())
        service._ledger.save(commands.SaveStatus(J, JobState.SUCCEEDED, 1, 0, 0, 1, ""))
        await true(lambda: service._retention._due)
        writing.cancel()
        await over(writing)
        item = await cluster.store.get(NAMES.status(J))
        assert item is not None
        ended_at = msgspec.json.decode(item.value, type=JobStatus).ended_at
        assert ended_at is not None
        assert abs(ended_at - before) < day_s / 2

    run(test())


# ---------------------------------------------------------------- what may not happen


@pytest.mark.parametrize("ticks", range(6))
def test_a_cancelled_ledger_ends_even_when_something_urgent_comes_at_that_moment(
    ticks: int,
) -> None:
    async def test() -> None:
        cluster = Cluster()
        await cluster.elected()
        ledger = Ledger(
            cluster.store, NAMES, cluster.leadership, lambda job, ended_at: None, clock=time.time
        )
        writing = asyncio.ensure_future(ledger.run())
        ledger.drop(commands.DropRequest(J, RequestId("r")))
        for _ in range(5):  # it gathers now
            await asyncio.sleep(0)
        ledger._urgent.set()
        for _ in range(ticks):
            await asyncio.sleep(0)
        writing.cancel()
        done, _ = await asyncio.wait({writing}, timeout=1.0)
        assert done
        await over(writing)

    run(test())


def test_a_deposed_leader_appends_no_outcome() -> None:
    async def test() -> None:
        cluster = Cluster()
        announcer = Announcer(
            W0, cluster.leadership, bus=cluster.bus, wire=cluster.wire, names=NAMES
        )
        announcer.cancelled("c", commands.PublishCancelled(J, (TaskRange(0, 1, 0),)))  # type: ignore[arg-type]
        cluster.lease.alive = False
        with pytest.raises(LeadershipLostError):
            await asyncio.wait_for(announcer.run(), 5)
        assert cluster.bus_server.last_sequence(NAMES.results_log) == 0

    run(test())


def test_a_deposed_leader_sends_no_slice_again() -> None:
    async def test() -> None:
        cluster = Cluster()
        outbox = Outbox(
            W0,
            cluster.leadership,
            bus=cluster.bus,
            wire=cluster.wire,
            names=NAMES,
            feed=cluster.fed.append,
        )
        received = 0

        async def on_message(message: Message) -> None:
            nonlocal received
            received += 1
            cluster.lease.alive = False
            await cluster.bus.publish(message.reply, b"this is no answer")

        await cluster.bus.subscribe(NAMES.to_worker(W0), on_message)
        outbox.put(RunSlice(Term(7), 1, briefly(), 0, 1))
        with pytest.raises(LeadershipLostError):
            await asyncio.wait_for(outbox.run(), 5)
        assert received == 1

    run(test())


@pytest.mark.parametrize("meta", [b"", b"\xc1", b"\x93"])
def test_an_outcome_that_is_no_message_is_ignored(meta: bytes) -> None:
    async def test() -> None:
        cluster = Cluster()
        content = Envelope(Kind.OUTCOME, "t", job=J, first=0, count=1, meta=meta)
        entry = LogEntry("s", 1, cluster.wire.write(content), b"")
        assert list(LogDecoder(cluster.wire).outcomes(entry)) == []

    run(test())


def test_outcomes_say_which_entry_of_the_log_they_stand_in() -> None:
    async def test() -> None:
        cluster = Cluster()
        cluster.put(NAMES.job(J), job_record(total=2))
        cluster.write_outcome(J, 0, OutcomeState.OK)
        cluster.write_outcome(J, 1, OutcomeState.FAILED)
        await cluster.watcher().begin(lambda status: None)
        (rebuilt,) = cluster.fed_of(events.JobRebuilt)
        read = [event for event in rebuilt.history if isinstance(event, events.OutcomesRead)]
        assert [event.sequence for event in read] == [1, 2]

    run(test())


# ---------------------------------------------------------------- the daemon around it


class _Follower:
    """As much of a worker as the election needs."""

    term = Term(0)

    def observe_term(self, term: Term) -> None: ...
    def serve_under(self, lease: object) -> None: ...
    def registered(self, revision: int) -> None: ...
    def disowned(self) -> None: ...


def test_after_a_term_that_failed_the_daemon_stands_again_and_stays_a_member(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terms: list[Term] = []

    class FailsAtFirst:
        def __init__(self, me: WorkerId, leadership: Leadership, **_: object) -> None:
            terms.append(leadership.term)

        async def run(self) -> None:
            if len(terms) == 1:
                raise RuntimeError("a bug, say")
            await asyncio.Event().wait()

    monkeypatch.setattr(nbsched.daemon, "LeaderService", FailsAtFirst)

    async def test() -> None:
        cluster = Cluster()
        record = worker_record(W0)
        daemon = Daemon(
            record,
            Settings(),
            NAMES,
            cluster.key,
            cluster.store,
            cluster.bus,
            _Follower(),  # type: ignore[arg-type]
        )
        member = asyncio.ensure_future(daemon._stay_member(asyncio.Event()))
        await true(lambda: terms)
        before = cluster.store_server.get(NAMES.worker(W0))
        await true(lambda: len(terms) == 2)
        assert before is not None
        assert cluster.store_server.get(NAMES.worker(W0)) == before
        assert terms[1] > terms[0]
        await over(member)

    run(test())


def test_a_refused_slice_counts_as_received() -> None:
    async def test() -> None:
        cluster = Cluster()
        worker = WorkerService(
            record=worker_record(W0, 0),
            names=NAMES,
            key=cluster.key,
            bus=cluster.bus,
            store=cluster.store,
            settings=Settings(),
            cpus=0,
        )
        await worker.start()
        command: Command = RunSlice(Term(7), 1, briefly(), 0, 1)
        data = cluster.wire.seal(Kind.COMMAND, command)
        reply = await cluster.bus.request(NAMES.to_worker(W0), data, DEADLINE_S)
        answer = cluster.wire.open(Kind.ANSWER, reply)
        report = worker._report()
        await worker.stop()
        assert isinstance(answer, messages.Refused)
        assert (report.seq, report.held) == (1, ())

    run(test())
