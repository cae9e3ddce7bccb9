"""The scheduler among simulated workers and a simulated log: no server, no clock.

`World.deliver` is one step: something random (or chosen) happens, the scheduler is
told, and its commands are carried out. What the workers do is the worker's contract
in short; the invariants are checked after every step.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from nbsched.attempts import PastAttempt
from nbsched.messages import Held, Outcome, OutcomeState, WorkerReport
from nbsched.model import CancelRequest, JobId, JobRecord, Request, TaskRange, Term, WorkerId
from nbsched.scheduler import commands, events
from nbsched.scheduler.core import step
from nbsched.scheduler.state import State


def job_record(job: str = "j", total: int | None = 10, **changes: object) -> JobRecord:
    fields: dict[str, object] = {
        "id": job,
        "client": "c",
        "name": "fn",
        "submitted_at": 0.0,
        "python": "3.11",
        "call": "one",
        "inline": True,
        "total": total,
    }
    return JobRecord(**{**fields, **changes})  # type: ignore[arg-type]


@dataclass
class Slice:
    job: JobId
    start: int
    stop: int
    round: int
    attempt: int
    crashes: int
    since: float = 0.0


@dataclass
class SimWorker:
    id: WorkerId
    cpus: int
    seq: int = 0
    held: dict[tuple[JobId, int], Slice] = field(default_factory=dict)

    def running(self) -> list[tuple[JobId, int]]:
        return list(self.held)[: self.cpus]


@dataclass
class World:
    """One scheduler, its workers, and the results log."""

    rng: random.Random
    task_s: float = 0.05
    state: State = field(default_factory=State)
    now: float = 0.0
    workers: dict[WorkerId, SimWorker] = field(default_factory=dict)
    log: list[tuple[JobId, WorkerId, Outcome]] = field(default_factory=list)
    read: int = 0
    dropped: list[str] = field(default_factory=list)
    statuses: list[commands.SaveStatus] = field(default_factory=list)
    executions: dict[tuple[JobId, int], int] = field(default_factory=dict)
    slices: list[commands.SendSlice] = field(default_factory=list)
    lost: list[commands.PublishLost] = field(default_factory=list)
    timer: float | None = None
    """The leader service has one timer: a new time replaces the old one."""
    records: dict[JobId, JobRecord] = field(default_factory=dict)
    queue: deque[events.Event] = field(default_factory=deque)
    requests: dict[str, Request] = field(default_factory=dict)

    def feed(self, event: events.Event) -> None:
        if isinstance(event, events.JobAdded):
            self.records[event.record.id] = event.record
        self.queue.append(event)
        if len(self.queue) > 1:
            return  # the leader's queue: one event after another
        for _ in range(10_000):
            for command in step(self.state, self.queue[0], self.now):
                self._carry_out(command)
            self.check()
            self.queue.popleft()
            if not self.queue:
                return
        raise AssertionError(f"events without end: {self.queue}")

    def start(self, *cpus: int) -> None:
        for number, count in enumerate(cpus):
            self.join(f"w{number}", count)
        self.feed(events.RecoveryEnded())

    def join(self, worker: str, cpus: int) -> None:
        name = WorkerId(worker)
        self.workers[name] = SimWorker(name, cpus)
        self.feed(events.WorkerJoined(name, cpus, "3.11"))

    # ------------------------------------------------------------ what workers do

    def _carry_out(self, command: commands.Command) -> None:
        match command:
            case commands.SendSlice():
                self.slices.append(command)
                worker = self.workers.get(command.worker)
                if worker is not None:
                    worker.seq = command.seq
                    for index in range(command.start, command.stop):
                        worker.held[command.job, index] = Slice(
                            command.job,
                            index,
                            index + 1,
                            command.round,
                            command.attempt,
                            command.crashes,
                            self.now,
                        )
            case commands.StopOnWorker():
                worker = self.workers.get(command.worker)
                for named in command.ranges:
                    for index in range(named.start, named.stop):
                        task = worker.held.get((command.job, index)) if worker else None
                        if worker is None or task is None or task.round > named.round:
                            continue
                        del worker.held[command.job, index]
                        if not command.silently:
                            self.append(command.job, index, OutcomeState.CANCELLED, task.round)
            case commands.RecallFromWorker():
                self._recall(command)
            case commands.PublishCancelled():
                for named in command.ranges:
                    for index in range(named.start, named.stop):
                        self.append(command.job, index, OutcomeState.CANCELLED, named.round)
            case commands.PublishLost():
                self.lost.append(command)
                state = OutcomeState.FAILED if command.final else OutcomeState.RETRY
                self.append(
                    command.job,
                    command.index,
                    state,
                    command.round,
                    crashes=command.crashes,
                    attempt=command.attempt,
                )
            case commands.SaveStatus():
                self.statuses.append(command)
            case commands.DropRequest():
                self.dropped.append(command.request)
                self.requests.pop(command.request, None)
            case commands.WakeAt():
                self.timer = command.time
            case commands.RebuildJob():
                self.rebuild(command.request)
            case commands.ReleaseJob():
                pass

    def rebuild(self, request: Request) -> None:
        """Read a job that has ended from its record and the log, then ask again."""
        added = events.JobAdded(self.records[request.job], request_follows=True)
        self.feed(events.JobRebuilt((added, *self._past(request.job))))
        self.ask(request)

    def _recall(self, command: commands.RecallFromWorker) -> None:
        worker = self.workers.get(command.worker)
        back = []
        for named in command.ranges if worker else ():
            for index in range(named.start, named.stop):
                key = (command.job, index)
                if worker and key in worker.held and key not in worker.running():
                    del worker.held[key]
                    back.append(TaskRange(index, index + 1, named.round))
        self.feed(events.TasksRecalled(command.worker, command.job, tuple(back)))

    def append(
        self,
        job: JobId,
        index: int,
        state: OutcomeState,
        round_: int = 0,
        *,
        worker: str = "leader",
        attempt: int = 1,
        crashes: int = 0,
        retry_in_s: float = 0.0,
        past: tuple[PastAttempt, ...] = (),
    ) -> None:
        elapsed = self.task_s if state is OutcomeState.OK else 0.0
        outcome = Outcome(
            index,
            index + 1,
            round_,
            attempt,
            state,
            elapsed_s=elapsed,
            crashes=crashes,
            retry_in_s=retry_in_s,
            past=past,
        )
        self.log.append((job, WorkerId(worker), outcome))

    def finish_one(self, worker: SimWorker, state: OutcomeState = OutcomeState.OK) -> None:
        """The worker's first running task ends."""
        key = worker.running()[0]
        task = worker.held.pop(key)
        self.executions[key] = self.executions.get(key, 0) + 1
        crashes = task.crashes
        self.append(
            task.job,
            task.start,
            state,
            task.round,
            worker=worker.id,
            attempt=task.attempt,
            crashes=crashes,
        )

    def read_log(self, most: int = 10**9) -> None:
        while self.read < len(self.log) and most > 0:
            job, worker, outcome = self.log[self.read]
            self.read += 1
            most -= 1
            self.feed(events.OutcomesRead(job, worker, (outcome,), self.read))

    def read_again(self, entries: int) -> None:
        """The log's reader was set up anew and gives its last entries twice."""
        self.read = max(0, self.read - entries)
        self.read_log(entries)

    def take_over(self) -> None:
        """The leader dies; the next one rebuilds everything from log, requests, reports."""
        self.state, self.timer, self.read = State(), None, len(self.log)
        for worker in self.workers.values():
            worker.seq = 0
            self.feed(events.WorkerJoined(worker.id, worker.cpus, "3.11"))
        for job in self.records:
            self.feed(events.JobRebuilt((events.JobAdded(self.records[job]), *self._past(job))))
        for request in list(self.requests.values()):
            self.ask(request)
        for worker in list(self.workers.values()):
            self.report(worker)
        self.feed(events.RecoveryEnded())

    def _past(self, job: JobId) -> tuple[events.OutcomesRead, ...]:
        return tuple(
            events.OutcomesRead(of, worker, (outcome,), number)
            for number, (of, worker, outcome) in enumerate(self.log[: self.read], 1)
            if of == job
        )

    def ask(self, request: Request) -> None:
        """A client writes a request, or a new leader finds it."""
        self.requests[request.id] = request
        asked = events.CancelAsked if isinstance(request, CancelRequest) else events.RetryAsked
        self.feed(asked(request))

    def report(self, worker: SimWorker) -> None:
        """What `ReportRead` promises: the log has been read before."""
        self.read_log()
        running = worker.running()
        held = tuple(
            Held(
                s.job,
                s.start,
                s.stop,
                s.round,
                s.attempt,
                self.now - s.since if key in running else None,
            )
            for key, s in worker.held.items()
        )
        self.feed(
            events.ReportRead(WorkerReport(worker.id, Term(1), worker.seq, self.read, held, 0))
        )

    def lose(self, worker: SimWorker) -> None:
        del self.workers[worker.id]
        self.feed(events.WorkerLost(worker.id))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        if self.timer is not None and self.timer <= self.now:
            self.timer = None
            self.feed(events.TimePassed())

    def settle(self, steps: int = 100_000) -> None:
        """Let everything that can happen without faults happen."""
        for _ in range(steps):
            busy = [worker for worker in self.workers.values() if worker.held]
            if not busy and self.read == len(self.log) and self.timer is None:
                return
            for worker in busy:
                self.finish_one(worker)
            self.pass_time(self.task_s)
            self.read_log()
            if not busy and self.timer is not None:
                self.pass_time(max(0.0, self.timer - self.now))
        raise AssertionError("the world did not settle")

    # ------------------------------------------------------------ what must always hold

    def check(self) -> None:
        for job in self.state.jobs.values():
            ended = job.ended
            homes = [job.fresh, ended.ok, ended.failed, ended.cancelled, job.publishing]
            homes += list(job.assigned.values())
            counted = sum(map(len, homes)) + len(job.ready) + len(job.delayed)
            assert counted == job.uploaded, f"tasks in no state or in two: {job}"
            for worker_id, held in job.assigned.items():
                worker = self.state.workers[worker_id]
                copies = job.copies.count_on(worker_id)
                assert worker.tasks.get(job.record.id) == len(held) + copies
            for index in job.copies.within(0, job.uploaded):
                assert job.holder(index) not in (None, job.copies.where(index))

    def final_outcomes(self, job: str) -> dict[int, OutcomeState]:
        """First final outcome per task of its last round, as a client would see it."""
        found: dict[int, tuple[int, OutcomeState]] = {}
        for of, _, outcome in self.log:
            if of != job or not outcome.state.final:
                continue
            for index in range(outcome.start, outcome.stop):
                if index not in found or found[index][0] < outcome.round:
                    found[index] = (outcome.round, outcome.state)
        return {index: state for index, (_, state) in found.items()}
