"""A decision looks at the workers that it concerns, however many there are."""

from __future__ import annotations

from typing import Any

import pytest

from nbsched.messages import Held, Outcome, OutcomeState, WorkerReport
from nbsched.model import JobId, Term, WorkerId
from nbsched.scheduler import commands, events
from nbsched.scheduler.core import step
from nbsched.scheduler.state import State
from nbsched.scheduler.workers import Worker
from support.simulation import job_record

J = JobId("j")


class _Unsearchable(dict[WorkerId, Worker]):
    """Workers that can be looked up, and not gone through."""

    def _refuse(self, *_: Any) -> Any:
        raise AssertionError("a decision went through all workers")

    __iter__ = keys = values = items = _refuse


class _Counted:
    """A scheduler whose work on single workers is counted."""

    def __init__(self, workers: int, tasks: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state = State()
        self.touched = 0
        self.sequence = 0
        self.slices: list[commands.SendSlice] = []
        for number in range(workers):
            self.feed(events.WorkerJoined(WorkerId(f"w{number}"), 4, "3.11", False))
        self.feed(events.RecoveryEnded())
        self.state.workers = _Unsearchable(self.state.workers)
        refresh = State.refresh_worker

        def counting(state: State, worker: Worker) -> None:
            self.touched += 1
            refresh(state, worker)

        monkeypatch.setattr(State, "refresh_worker", counting)
        self.feed(events.JobAdded(job_record("j", total=tasks)))

    def feed(self, event: events.Event) -> list[commands.Command]:
        self.touched = 0
        todo = step(self.state, event, 0.0)
        self.slices += [each for each in todo if isinstance(each, commands.SendSlice)]
        return todo

    def answer(self) -> int:
        """One outcome of the oldest slice: workers touched."""
        oldest = self.slices.pop(0)
        self.sequence += 1
        outcome = Outcome(oldest.start, oldest.stop, 0, 1, OutcomeState.OK, elapsed_s=1.0)
        self.feed(events.OutcomesRead(J, oldest.worker, (outcome,), self.sequence))
        return self.touched


@pytest.mark.parametrize(("workers", "tasks"), [(10, 10**5), (2000, 10**5), (2000, 10**7)])
def test_an_outcome_touches_the_workers_it_concerns_and_no_others(
    workers: int, tasks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = _Counted(workers, tasks, monkeypatch)
    assert max(cluster.answer() for _ in range(50)) <= 4


def test_reports_recalls_and_new_jobs_touch_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = _Counted(500, 10**5, monkeypatch)
    first = cluster.slices[0]
    held = Held(J, first.start, first.stop, 0, 1)
    cluster.feed(events.ReportRead(WorkerReport(first.worker, Term(0), 1, 0, (held,), 0)))
    assert cluster.touched <= 4
    cluster.feed(events.TasksRecalled(first.worker, J, ()))
    assert cluster.touched <= 4
    cluster.feed(events.JobAdded(job_record("other", total=1)))
    assert cluster.touched <= 4


def test_when_one_is_idle_one_of_the_others_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = _Counted(200, 20_000, monkeypatch)
    while not cluster.state.fleets["3.11"].idle:
        cluster.answer()
    asked: list[commands.Command] = []
    for _ in range(20):
        oldest = cluster.slices.pop(0)
        cluster.sequence += 1
        outcome = Outcome(oldest.start, oldest.stop, 0, 1, OutcomeState.OK, elapsed_s=1.0)
        event = events.OutcomesRead(J, oldest.worker, (outcome,), cluster.sequence)
        todo = cluster.feed(event)
        asked += [each for each in todo if isinstance(each, commands.RecallFromWorker)]
        fleet = cluster.state.fleets["3.11"]
        assert len(fleet.recalling) <= max(1, len(fleet.idle))
        assert cluster.touched <= 4 + 2 * len(asked)


def test_a_free_worker_that_nothing_fits_on_costs_no_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = _Counted(300, 0, monkeypatch)
    cluster.feed(events.WorkerJoined(WorkerId("small"), 1, "3.11", False))
    cluster.feed(events.JobAdded(job_record("wide", total=10**5, cpus=4)))
    assert {each.worker for each in cluster.slices} == {WorkerId(f"w{n}") for n in range(300)}
    cluster.feed(events.TimePassed())
    assert cluster.touched <= 20
