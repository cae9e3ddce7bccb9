"""The scheduler's transitions alone: whatever comes in whatever order, every task is in one
state, and when no more goes wrong every job ends.

Hypothesis chooses the events; `support.simulation.World` is the worker's contract in short
and checks the bookkeeping after every step.
"""

from __future__ import annotations

import itertools
import random

import pytest

pytest.importorskip("hypothesis", reason="pip install --group dev")

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nbsched.messages import OutcomeState
from nbsched.model import CancelRequest, JobId, RequestId, RetryRequest, TaskRange
from nbsched.scheduler import events
from support.simulation import SimWorker, World, job_record

_ENDS = st.sampled_from([OutcomeState.OK, OutcomeState.OK, OutcomeState.FAILED])
_numbers = st.integers(0, 2**16)


class SchedulerMachine(RuleBasedStateMachine):
    """One scheduler; jobs, workers and requests come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(random.Random(0))
        self.world.start(1, 2)
        self.ids = itertools.count()
        self.asked: dict[str, int] = {}

    # ------------------------------------------------------------ what may happen

    @rule(total=st.integers(0, 12), priority=st.integers(0, 1))
    def submit(self, total: int, priority: int) -> None:
        name = f"j{next(self.ids)}"
        self.world.feed(events.JobAdded(job_record(name, total=total, priority=priority)))

    @rule(cpus=st.integers(0, 4))
    def join(self, cpus: int) -> None:
        if len(self.world.workers) < 5:
            self.world.join(f"x{next(self.ids)}", cpus)

    @precondition(lambda self: len(self.world.workers) > 1)
    @rule(which=_numbers)
    def lose(self, which: int) -> None:
        self.world.lose(self._one(list(self.world.workers.values()), which))

    @precondition(lambda self: self._busy())
    @rule(which=_numbers, end=_ENDS)
    def finish(self, which: int, end: OutcomeState) -> None:
        self.world.finish_one(self._one(self._busy(), which), end)

    @precondition(lambda self: self._busy())
    @rule(which=_numbers, wait_s=st.sampled_from([0.0, 0.5, 3.0]))
    def retry_later(self, which: int, wait_s: float) -> None:
        worker = self._one(self._busy(), which)
        task = worker.held.pop(worker.running()[0])
        self.world.append(
            task.job,
            task.start,
            OutcomeState.RETRY,
            task.round,
            worker=worker.id,
            attempt=task.attempt,
            retry_in_s=wait_s,
        )

    @precondition(lambda self: self._busy())
    @rule(which=_numbers)
    def crash(self, which: int) -> None:
        worker = self._one(self._busy(), which)
        task = worker.held.pop(worker.running()[0])
        final = task.crashes + 1 >= 3
        self.world.append(
            task.job,
            task.start,
            OutcomeState.FAILED if final else OutcomeState.RETRY,
            task.round,
            worker=worker.id,
            attempt=task.attempt,
            crashes=task.crashes + 1,
        )

    @rule(entries=st.integers(1, 5))
    def read(self, entries: int) -> None:
        self.world.read_log(entries)

    @rule(entries=st.integers(1, 4))
    def read_again(self, entries: int) -> None:
        self.world.read_again(entries)

    @rule(which=_numbers)
    def report(self, which: int) -> None:
        if self.world.workers:
            self.world.report(self._one(list(self.world.workers.values()), which))

    @rule(seconds=st.sampled_from([0.01, 0.5, 4.0]))
    def wait(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @rule()
    def take_over(self) -> None:
        self.world.take_over()

    @precondition(lambda self: self.world.records)
    @rule(which=_numbers, whole=st.booleans(), first=st.integers(0, 11))
    def cancel(self, which: int, whole: bool, first: int) -> None:
        job = self._one(sorted(self.world.records), which)
        ranges = None if whole else self._ranges(job, first, next_round=False)
        if ranges is None or ranges:
            self.world.ask(CancelRequest(id=self._request(), job=job, at=0.0, ranges=ranges))

    @precondition(lambda self: self.world.records)
    @rule(which=_numbers, first=st.integers(0, 11))
    def retry(self, which: int, first: int) -> None:
        job = self._one(sorted(self.world.records), which)
        ranges = self._ranges(job, first, next_round=True)
        if ranges:
            self.world.ask(RetryRequest(id=self._request(), job=job, at=0.0, ranges=ranges))

    # ------------------------------------------------------------ what must hold

    @invariant()
    def bookkeeping_agrees(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        """Nothing more goes wrong: every job ends, with an outcome for each task, and no
        request is left."""
        if not any(worker.cpus for worker in self.world.workers.values()):
            self.world.join(f"x{next(self.ids)}", 2)
        for worker in list(self.world.workers.values()):
            self.world.report(worker)
        self.world.settle()
        for job, record in self.world.records.items():
            outcomes = self.world.final_outcomes(job)
            assert sorted(outcomes) == list(range(record.total or 0)), f"{job} has not ended"
        assert not self.world.requests, "requests are not carried out"

    # ------------------------------------------------------------ choosing

    def _busy(self) -> list[SimWorker]:
        return [worker for worker in self.world.workers.values() if worker.running()]

    def _one(self, things: list, which: int):  # type: ignore[no-untyped-def, type-arg]
        return things[which % len(things)]

    def _request(self) -> RequestId:
        return RequestId(f"r{next(self.ids)}")

    def _ranges(self, job: JobId, first: int, *, next_round: bool) -> tuple[TaskRange, ...]:
        """One task in the round that a client would name: its last, or the one after it if
        it has ended there."""
        total = self.world.records[job].total or 0
        if first >= total:
            return ()
        rounds = [o.round for of, _, o in self.world.log if of == job and o.start == first]
        last = max([*rounds, self.asked.get(f"{job}/{first}", 0)])
        ended = any(
            of == job and o.start <= first < o.stop and o.round == last and o.state.final
            for of, _, o in self.world.log
        )
        if next_round is not ended:
            return ()
        round_ = last + 1 if next_round else last
        self.asked[f"{job}/{first}"] = round_
        return (TaskRange(first, first + 1, round_),)


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
