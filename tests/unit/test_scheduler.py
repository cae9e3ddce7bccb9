"""The scheduler's decisions, each told as a small story."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
from collections import Counter

import msgspec
import pytest

from nbsched.attempts import PastAttempt
from nbsched.messages import BlockRef, Held, Outcome, OutcomeState, WorkerReport
from nbsched.model import (
    CancelRequest,
    JobId,
    JobState,
    Request,
    RequestId,
    RetryRequest,
    TaskRange,
    Term,
    WorkerId,
)
from nbsched.scheduler import commands, events
from nbsched.scheduler.core import step
from nbsched.scheduler.roundmap import RoundMap
from nbsched.scheduler.state import State
from support.simulation import SimWorker, World, job_record

J = JobId("j")
_NUMBERS = itertools.count()


def _world(*cpus: int, task_s: float = 0.05) -> World:
    world = World(random.Random(1), task_s=task_s)
    world.start(*cpus)
    return world


def _cancel(world: World, *ranges: TaskRange, whole: bool = False, job: JobId = J) -> None:
    request = CancelRequest(
        id=RequestId(f"r{next(_NUMBERS)}"), job=job, at=0.0, ranges=None if whole else ranges
    )
    world.ask(request)


def _retry(world: World, *ranges: TaskRange) -> None:
    request = RetryRequest(id=RequestId(f"t{next(_NUMBERS)}"), job=J, at=0.0, ranges=ranges)
    world.ask(request)


def _worker(world: World, name: str) -> SimWorker:
    return next(worker for worker in world.workers.values() if worker.id == name)


def test_every_task_ends_once() -> None:
    world = _world(2, 3)
    world.feed(events.JobAdded(job_record(total=500)))
    world.settle()
    assert world.final_outcomes("j") == dict.fromkeys(range(500), OutcomeState.OK)
    assert set(world.executions.values()) == {1}
    assert world.statuses[-1].state is JobState.SUCCEEDED
    assert world.statuses[-1].ok == 500


def test_nothing_is_handed_out_before_recovery_has_ended() -> None:
    world = World(random.Random(1))
    world.join("w0", 2)
    world.feed(events.JobAdded(job_record()))
    assert world.slices == []
    world.feed(events.RecoveryEnded())
    assert world.slices != []


def test_the_first_slices_hold_one_task_per_slot() -> None:
    world = _world(2, 3)
    world.feed(events.JobAdded(job_record(total=1000)))
    assert {w.id: len(w.held) for w in world.workers.values()} == {"w0": 2, "w1": 3}


def test_slices_grow_when_tasks_prove_short() -> None:
    world = _world(2, task_s=0.001)
    world.feed(events.JobAdded(job_record(total=100_000)))
    worker = _worker(world, "w0")
    world.finish_one(worker)
    world.read_log()
    assert len(worker.held) > 100


def test_work_is_shared_in_proportion_to_cpus() -> None:
    world = _world(1, 3, task_s=0.02)
    world.feed(events.JobAdded(job_record(total=400)))
    done: Counter[str] = Counter()
    while world.state.jobs:
        for worker in world.workers.values():
            for _ in range(min(worker.cpus, len(worker.held))):
                world.finish_one(worker)
                done[worker.id] += 1
        world.pass_time(0.02)
        world.read_log()
    assert 2.5 <= done["w1"] / done["w0"] <= 3.5


def test_a_worker_without_cpus_gets_nothing() -> None:
    world = _world(0, 1)
    world.feed(events.JobAdded(job_record(total=50)))
    world.settle()
    assert {command.worker for command in world.slices} == {"w1"}


def test_a_short_job_is_not_held_up_by_a_long_one() -> None:
    world = _world(1, task_s=0.4)
    world.feed(events.JobAdded(job_record("long", total=10_000_000)))
    world.feed(events.JobAdded(job_record("short", total=1)))
    assert (JobId("short"), 0) in _worker(world, "w0").held


def test_lost_worker_returns_its_tasks_to_the_queue() -> None:
    world = _world(2, 2)
    world.feed(events.JobAdded(job_record(total=20)))
    world.lose(_worker(world, "w0"))
    world.settle()
    assert world.final_outcomes("j") == dict.fromkeys(range(20), OutcomeState.OK)


def test_a_task_that_takes_hosts_down_fails_and_its_neighbours_do_not() -> None:
    world = _world(1)
    world.feed(events.JobAdded(job_record(total=3)))
    for number in range(3):
        worker = next(iter(world.workers.values()))
        world.report(worker)
        assert (J, 0) in worker.running()
        world.lose(worker)
        world.read_log()
        world.join(f"n{number}", 1)
    world.settle()
    outcomes = world.final_outcomes("j")
    assert outcomes == {0: OutcomeState.FAILED, 1: OutcomeState.OK, 2: OutcomeState.OK}


def test_what_a_task_died_of_travels_with_it_even_past_a_takeover() -> None:
    world = _world(1)
    world.feed(events.JobAdded(job_record(total=1)))
    worker = _worker(world, "w0")
    task = worker.held.pop((J, 0))
    past = (PastAttempt("w0", "signal SIGSEGV", 7.0),)
    died = Outcome(0, 1, 0, task.attempt, OutcomeState.RETRY, crashes=1, past=past)
    world.log.append((J, worker.id, died))
    world.read_log()
    assert world.slices[-1].past == past
    worker.held.clear()  # that slice got lost together with the leader
    world.take_over()
    assert world.slices[-1].past == past
    world.take_over()
    world.lose(worker)
    assert world.lost[-1].past == past


def test_a_slice_that_got_lost_is_noticed_by_the_report() -> None:
    world = _world(1)
    world.feed(events.JobAdded(job_record(total=1)))
    worker = _worker(world, "w0")
    worker.held.clear()  # it never arrived
    world.report(worker)
    assert (J, 0) in worker.held


def test_an_inventory_keeps_running_tasks_where_they_run() -> None:
    world = _world(2, 2)
    world.feed(events.JobAdded(job_record(total=100)))
    successor = World(random.Random(2), workers=world.workers, log=world.log)
    for worker in world.workers.values():
        worker.seq = 0
        successor.feed(events.WorkerJoined(worker.id, worker.cpus, "3.11"))
    successor.feed(events.JobAdded(job_record(total=100)))
    for worker in world.workers.values():
        successor.report(worker)
    successor.feed(events.RecoveryEnded())
    successor.settle()
    assert successor.final_outcomes("j") == dict.fromkeys(range(100), OutcomeState.OK)
    assert set(successor.executions.values()) == {1}


def test_a_new_leader_confirms_no_cancel_before_it_knows_what_workers_run() -> None:
    state = State()
    worker = WorkerId("w0")
    everything = CancelRequest(id=RequestId("c"), job=J, at=0.0, ranges=None)
    told = WorkerReport(worker, Term(2), 0, 0, (Held(J, 0, 1, 0, 1, 0.5), Held(J, 1, 2, 0, 1)), 0)
    given: list[commands.Command] = []
    for event in (
        events.WorkerJoined(worker, 1, "3.11"),
        events.JobAdded(job_record(total=4)),
        events.CancelAsked(everything),
        events.ReportRead(told),
    ):
        given += step(state, event, 0.0)
    stops = [each for each in given if isinstance(each, commands.StopOnWorker)]
    assert [each.ranges for each in stops] == [(TaskRange(0, 2, 0),)]
    assert not [each for each in given if isinstance(each, commands.PublishCancelled)]

    given = step(state, events.RecoveryEnded(), 0.0)
    cancelled = [each for each in given if isinstance(each, commands.PublishCancelled)]
    assert [each.ranges for each in cancelled] == [(TaskRange(2, 4, 0),)]
    assert not [each for each in given if isinstance(each, commands.SendSlice)]


def test_a_new_leader_confirms_no_cancel_of_a_task_whose_retry_it_reads_from_the_log() -> None:
    """The worker has begun the next attempt already."""
    state = State()
    worker = WorkerId("w0")
    only = CancelRequest(id=RequestId("c"), job=J, at=0.0, ranges=(TaskRange(0, 1, 0),))
    again = Outcome(0, 1, 0, 1, OutcomeState.RETRY)
    given: list[commands.Command] = []
    for event in (
        events.WorkerJoined(worker, 1, "3.11"),
        events.JobAdded(job_record(total=1)),
        events.CancelAsked(only),
        events.OutcomesRead(J, worker, (again,), 1),
    ):
        given += step(state, event, 0.0)
    assert not [each for each in given if isinstance(each, commands.PublishCancelled)]
    held = (Held(J, 0, 1, 0, 2, 0.5),)
    given = step(state, events.ReportRead(WorkerReport(worker, Term(2), 0, 1, held, 0)), 0.0)
    assert [each.ranges for each in given if isinstance(each, commands.StopOnWorker)]
    assert not step(state, events.RecoveryEnded(), 0.0)


def test_cancelled_queued_and_running_tasks_have_an_outcome_each() -> None:
    world = _world(1)
    world.feed(events.JobAdded(job_record(total=10)))
    _cancel(world, whole=True)
    world.settle()
    assert world.final_outcomes("j") == dict.fromkeys(range(10), OutcomeState.CANCELLED)
    assert world.executions == {}
    assert world.statuses[-1].state is JobState.CANCELLED
    assert len(world.dropped) == 1


def test_a_cancelled_job_cancels_what_is_uploaded_later() -> None:
    world = _world(1)
    world.feed(events.JobAdded(job_record(total=None, inline=False)))
    _cancel(world, whole=True)
    world.feed(events.BlockStored(J, BlockRef(1, 0, 5, 1, 100)))
    world.feed(events.JobAdded(job_record(total=5, inline=False)))
    world.settle()
    assert world.final_outcomes("j") == dict.fromkeys(range(5), OutcomeState.CANCELLED)


def test_blocks_out_of_order_wait_for_their_predecessors() -> None:
    world = _world(1)
    world.feed(events.JobAdded(job_record(total=None, inline=False)))
    world.feed(events.BlockStored(J, BlockRef(2, 5, 5, 1, 100)))
    assert world.slices == []
    world.feed(events.BlockStored(J, BlockRef(1, 0, 5, 1, 100)))
    assert world.state.jobs[J].uploaded == 10
    assert world.slices[0].blocks == (BlockRef(1, 0, 5, 1, 100),)


def test_a_stopped_task_whose_worker_dies_is_cancelled_not_run_again() -> None:
    world = _world(1)
    world.feed(events.JobAdded(job_record(total=1)))
    worker = _worker(world, "w0")
    world.report(worker)
    held = dict(worker.held)
    worker.held.clear()  # the stop does not arrive
    _cancel(world, TaskRange(0, 1, 0))
    worker.held.update(held)
    world.lose(worker)
    world.join("w1", 1)
    world.settle()
    assert world.final_outcomes("j") == {0: OutcomeState.CANCELLED}
    assert world.executions == {}


def test_a_cancel_waits_for_the_items_of_its_task() -> None:
    world = _world(1)
    world.feed(events.JobAdded(job_record(total=None, inline=False)))
    _cancel(world, TaskRange(1, 2), TaskRange(7, 8))
    assert world.requests
    world.feed(events.BlockStored(J, BlockRef(1, 0, 3, 1, 10)))
    world.read_log()
    assert world.final_outcomes("j") == {1: OutcomeState.CANCELLED}
    assert world.requests, "task 7 may still come"
    world.feed(events.JobAdded(job_record(total=3, inline=False)))
    assert not world.requests
    world.settle()
    assert world.final_outcomes("j")[2] is OutcomeState.OK


def test_a_delayed_retry_occupies_no_slot() -> None:
    world = _world(1)
    world.feed(events.JobAdded(job_record(total=2)))
    worker = _worker(world, "w0")
    worker.held.pop((J, 0))
    world.append(J, 0, OutcomeState.RETRY, worker="w0", retry_in_s=10.0)
    world.read_log()
    assert set(worker.held) == {(J, 1)}
    world.finish_one(worker)
    world.read_log()
    assert worker.held == {}
    world.pass_time(10.0)
    assert worker.held[J, 0].attempt == 2


def test_the_history_of_a_task_goes_with_its_end() -> None:
    world = _world(1)
    world.feed(events.JobAdded(job_record(total=2)))
    world.append(J, 0, OutcomeState.RETRY, worker="w0", past=(PastAttempt("w0", "no", 1.0),))
    world.read_log()
    assert world.state.jobs[J].history.of(0).past
    world.append(J, 0, OutcomeState.OK, worker="w0", attempt=2)
    world.read_log()
    assert world.state.jobs[J].history.indices(0, 2) == []


def test_a_report_from_before_an_outcome_does_not_end_a_retrys_delay() -> None:
    world = _world(1)
    world.feed(events.JobAdded(job_record(total=1)))
    (worker,) = world.workers.values()
    held = (Held(J, 0, 1, 0, 1, 0.1),)
    late = WorkerReport(worker.id, Term(1), worker.seq, 0, held, 0)
    worker.held.clear()
    world.append(J, 0, OutcomeState.RETRY, worker=worker.id, retry_in_s=4.0)
    world.read_log()
    world.feed(events.ReportRead(late))
    world.report(worker)
    assert list(world.state.jobs[J].delayed) == [0]
    assert len(world.slices) == 1
    world.pass_time(4.0)
    assert world.slices[-1].attempt == 2


def test_a_user_retry_runs_the_task_again_in_a_new_round() -> None:
    world = _world(1)
    world.feed(events.JobAdded(job_record(total=2)))
    worker = _worker(world, "w0")
    world.finish_one(worker, OutcomeState.FAILED)
    world.read_log()
    _retry(world, TaskRange(0, 1, 1))
    world.settle()
    assert world.final_outcomes("j") == {0: OutcomeState.OK, 1: OutcomeState.OK}
    assert world.executions[J, 0] == 2
    assert len(world.dropped) == 1


def test_a_retry_that_overtakes_its_outcome_is_remembered() -> None:
    """The client may have read the failure before the leader has."""
    world = _world(1)
    world.feed(events.JobAdded(job_record(total=1)))
    world.finish_one(_worker(world, "w0"), OutcomeState.FAILED)
    _retry(world, TaskRange(0, 1, 1))
    world.settle()
    assert world.final_outcomes("j") == {0: OutcomeState.OK}


def _running_again_under_a_new_leader() -> tuple[World, SimWorker, list[Request]]:
    """A job was retried and runs; a new leader has found the request, and waits for the job."""
    world = _world(1)
    world.feed(events.JobAdded(job_record(total=1)))
    worker = _worker(world, "w0")
    world.finish_one(worker, OutcomeState.FAILED)
    world.read_log()
    _retry(world, TaskRange(0, 1, 1))
    assert worker.held[J, 0].round == 1

    waiting: list[Request] = []
    world.rebuild = waiting.append  # type: ignore[method-assign]
    world.state, worker.seq = State(), 0
    world.feed(events.WorkerJoined(worker.id, worker.cpus, "3.11"))
    world.ask(next(iter(world.requests.values())))
    assert len(waiting) == 1
    return world, worker, waiting


def test_a_task_runs_on_while_a_new_leader_rebuilds_its_retried_job() -> None:
    world, worker, waiting = _running_again_under_a_new_leader()

    for _ in range(3):
        world.report(worker)
    assert worker.running() == [(J, 0)]

    World.rebuild(world, waiting[0])
    world.report(worker)
    world.feed(events.RecoveryEnded())
    world.settle()
    assert world.final_outcomes("j") == {0: OutcomeState.OK}
    assert world.executions[J, 0] == 2  # the failed one, and the one that ran on


def test_a_task_is_stopped_when_the_job_that_was_to_be_rebuilt_is_gone() -> None:
    world, worker, _ = _running_again_under_a_new_leader()

    world.feed(events.JobDeleted(J))
    for _ in range(2):
        world.report(worker)

    assert worker.running() == []


def test_what_a_worker_holds_of_an_ended_job_does_not_run_any_more() -> None:
    """It had seemed to be lost while the slice was on its way, and came back."""
    world = _world(1)
    world.feed(events.JobAdded(job_record(total=2)))
    worker = _worker(world, "w0")
    held = dict(worker.held)
    world.lose(worker)
    _cancel(world, whole=True)
    world.settle()
    assert world.state.jobs == {}
    world.join("w0", 1)
    worker = _worker(world, "w0")
    worker.held.update(held)
    waiting = (Held(J, 0, 1, 0, 1),)
    world.feed(events.ReportRead(WorkerReport(worker.id, Term(1), worker.seq, 0, waiting, 0)))
    assert worker.held == {}


def test_an_ended_job_is_opened_again_by_a_retry() -> None:
    world = _world(1)
    world.feed(events.JobAdded(job_record(total=2)))
    worker = _worker(world, "w0")
    world.finish_one(worker, OutcomeState.FAILED)
    world.read_log()
    world.finish_one(worker)
    world.read_log()
    assert world.state.jobs == {}
    _retry(world, TaskRange(0, 1, 1))
    world.settle()
    assert world.final_outcomes("j") == {0: OutcomeState.OK, 1: OutcomeState.OK}
    assert world.executions == {(J, 0): 2, (J, 1): 1}
    assert world.statuses[-1].state is JobState.SUCCEEDED


def test_the_tail_of_a_backlog_is_recalled_for_an_idle_worker() -> None:
    world = _world(1, task_s=0.01)
    world.feed(events.JobAdded(job_record(total=40)))
    slow = _worker(world, "w0")
    world.finish_one(slow)
    world.read_log()
    assert len(slow.held) > 10
    while world.state.jobs[J].has_work:
        world.finish_one(slow)
        world.read_log()
    before = len(slow.held)
    world.join("w1", 1)
    assert len(_worker(world, "w1").held) >= before // 4


def test_outcomes_that_come_twice_count_once() -> None:
    world = _world(1)
    world.feed(events.JobAdded(job_record(total=3)))
    worker = _worker(world, "w0")
    worker.held.pop((J, 0))
    world.append(J, 0, OutcomeState.RETRY, worker="w0", crashes=1)
    world.read_log()
    world.read_again(1)
    again = worker.held[J, 0]
    assert (again.attempt, again.crashes) == (1, 1)
    world.finish_one(worker)
    world.read_log()
    world.read_again(2)
    assert len(world.state.jobs[J].ended.ok) == 1


def test_two_delayed_retries_are_both_woken_by_one_timer() -> None:
    world = _world(2)
    world.feed(events.JobAdded(job_record(total=2)))
    worker = _worker(world, "w0")
    worker.held.clear()
    for index, delay in ((0, 10.0), (1, 5.0)):
        world.append(J, index, OutcomeState.RETRY, worker="w0", retry_in_s=delay)
        world.read_log()
    world.pass_time(5.0)
    assert set(worker.held) == {(J, 1)}
    world.pass_time(5.0)
    assert set(worker.held) == {(J, 0), (J, 1)}


def test_a_free_slot_is_taken_before_a_short_backlog() -> None:
    """A worker whose tasks were measured as short looked lighter than a free slot, and
    what it was given was recalled and given to it again, without end."""
    world = _world(1, 3)
    world.state.workers[WorkerId("w0")].measure(J, 0.001, 1)
    world.state.workers[WorkerId("w1")].measure(J, 0.4, 1)
    world.feed(events.JobAdded(job_record(total=3)))
    assert {worker.id: len(worker.held) for worker in world.workers.values()} == {"w0": 1, "w1": 2}


def test_a_job_that_cannot_be_placed_does_not_stop_recalls() -> None:
    world = _world(1, task_s=0.01)
    world.feed(events.JobAdded(job_record("odd", python="3.12")))
    world.feed(events.JobAdded(job_record(total=40)))
    slow = _worker(world, "w0")
    while world.state.jobs[J].has_work:
        world.finish_one(slow)
        world.read_log()
    assert len(slow.held) > 5
    world.join("w1", 1)
    assert _worker(world, "w1").held


def test_a_copy_that_another_worker_still_queues_is_taken_back() -> None:
    world = _world(1, task_s=0.01)
    world.feed(events.JobAdded(job_record(total=30)))
    worker = _worker(world, "w0")
    world.finish_one(worker)
    world.read_log()
    assert len(worker.held) > 2
    last = max(index for _, index in worker.held)
    world.append(J, last, OutcomeState.OK, worker="elsewhere")
    world.read_log()
    assert (J, last) not in worker.held


@pytest.mark.parametrize("state", [OutcomeState.OK, OutcomeState.RETRY])
def test_a_run_is_stopped_when_a_frozen_worker_tells_how_its_own_run_of_it_ended(
    state: OutcomeState,
) -> None:
    world = _world(2)
    world.feed(events.JobAdded(job_record(total=1)))
    worker = _worker(world, "w0")
    assert worker.running() == [(J, 0)]
    world.append(J, 0, state, worker="frozen", retry_in_s=5.0)
    world.read_log()
    assert worker.held == {}
    assert len(world.log) == 1, "of a run that does not count nothing is said"
    world.pass_time(5.0)
    assert [task.attempt for task in worker.held.values()] == (
        [2] if state is OutcomeState.RETRY else []
    )


def test_what_a_frozen_worker_tells_of_many_tasks_is_one_command_to_their_holder() -> None:
    world = _world(1, task_s=0.0001)
    world.feed(events.JobAdded(job_record(total=100_000)))
    world.finish_one(_worker(world, "w0"))
    world.read_log()
    held = sorted(index for _, index in _worker(world, "w0").held)[:50]
    assert len(held) > 1
    told = tuple(Outcome(index, index + 1, 0, 1, OutcomeState.FAILED) for index in held)
    todo = step(world.state, events.OutcomesRead(J, WorkerId("frozen"), told, 99), world.now)
    assert sum(isinstance(each, commands.StopOnWorker) for each in todo) == 1


def test_an_earlier_attempt_that_a_lost_worker_still_runs_is_stopped_when_it_is_back() -> None:
    world = _world(1)
    world.feed(events.JobAdded(job_record(total=1)))
    first = _worker(world, "w0")
    old = dict(first.held)
    world.report(first)
    world.lose(first)
    world.join("w1", 1)
    world.read_log()
    assert (J, 0) in _worker(world, "w1").held
    world.append(J, 0, OutcomeState.RETRY, worker="w1", crashes=1, retry_in_s=60.0)
    world.read_log()
    world.join("w0", 1)
    back = _worker(world, "w0")
    back.held.update(old)
    world.report(back)
    world.report(back)
    assert back.held == {}
    assert list(world.state.jobs[J].delayed) == [0]


def test_a_late_word_of_an_attempt_that_is_over_leaves_the_next_one_alone() -> None:
    world = _world(1)
    world.feed(events.JobAdded(job_record(total=1)))
    world.report(_worker(world, "w0"))
    world.join("w1", 1)
    world.append(J, 0, OutcomeState.RETRY, worker="w0")  # the reader lags behind
    world.lose(_worker(world, "w0"))
    (job, author, retried), (_, leader, lost) = world.log
    world.feed(events.OutcomesRead(job, author, (retried,), 1))
    assert _worker(world, "w1").held[J, 0].attempt == 2
    todo = step(world.state, events.OutcomesRead(job, leader, (lost,), 2), world.now)
    assert not [each for each in todo if isinstance(each, commands.StopOnWorker)]
    assert world.state.jobs[J].history.of(0).crashes == 1


def test_a_death_that_is_told_twice_is_one() -> None:
    world = _world(1)
    world.feed(events.JobAdded(job_record(total=1)))
    worker = _worker(world, "w0")
    for _ in range(2):
        worker.held.clear()
        past = (PastAttempt("w0", "killed", 1.0),)
        world.append(J, 0, OutcomeState.RETRY, worker="w0", crashes=1, past=past)
        world.read_log()
    assert world.state.jobs[J].history.of(0).attempt == 1
    past = (*past, PastAttempt("w0", "ValueError", 2.0))
    world.append(J, 0, OutcomeState.RETRY, worker="w0", crashes=1, past=past)
    world.read_log()
    assert world.state.jobs[J].history.of(0).attempt == 2


def test_who_gets_what_does_not_depend_on_the_order_of_a_set() -> None:
    program = (
        "import random; from nbsched.model import JobId; from nbsched.scheduler import events;"
        "from support.simulation import World, job_record; w = World(random.Random(1));"
        "[w.join(f'w{i}', 1) for i in range(8)]; w.feed(events.RecoveryEnded());"
        "w.feed(events.JobAdded(job_record('a', total=1000)));"
        "w.feed(events.JobDeleted(JobId('a'))); w.feed(events.JobAdded(job_record('b', total=4)));"
        "print([(s.start, s.worker) for s in w.slices])"
    )
    path = os.pathsep.join(sys.path)
    told = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(4)
    }
    assert len(told) == 1


def test_nothing_is_left_of_a_job_that_is_removed_while_a_request_for_it_is_open() -> None:
    world = _world(1)
    world.feed(events.JobAdded(job_record(total=1)))
    _cancel(world, whole=True)
    assert world.dropped == []
    (open_request,) = world.requests
    todo = step(world.state, events.JobDeleted(J), world.now)
    assert commands.DropRequest(J, open_request) in todo
    assert commands.DropStatus(J) in todo


def test_a_job_cancelled_before_it_was_sealed_ends_with_what_it_has() -> None:
    world = _world(1)
    world.feed(events.JobAdded(job_record(total=None, inline=False)))
    world.feed(events.BlockStored(J, BlockRef(1, 0, 5, 1, 100)))
    _cancel(world, whole=True)
    world.read_log()
    assert world.statuses[-1].state is JobState.CANCELLED
    assert world.statuses[-1].total == 5
    world.feed(events.BlockStored(J, BlockRef(2, 5, 5, 1, 100)))
    world.feed(events.JobAdded(job_record(total=10, inline=False)))
    world.settle()
    assert world.final_outcomes("j") == dict.fromkeys(range(10), OutcomeState.CANCELLED)
    assert world.state.jobs == {}


def test_cancel_and_retry_of_a_million_tasks_take_few_steps() -> None:
    """Ranges, not tasks, are what a step costs: one task with a history changes nothing."""
    world = _world(2)
    total = 1_000_000
    world.feed(events.JobAdded(job_record(total=total)))
    worker = _worker(world, "w0")
    worker.held.pop((J, 0))
    world.append(J, 0, OutcomeState.RETRY, worker="w0")
    world.read_log()
    job = world.state.jobs[J]
    request = CancelRequest(id=RequestId("all"), job=J, at=0.0)
    step(world.state, events.CancelAsked(request), 0.0)
    outcome = Outcome(0, total, 0, 1, OutcomeState.CANCELLED)
    step(world.state, events.OutcomesRead(J, worker.id, (outcome,)), 0.0)
    assert len(job.ended.cancelled) == total
    past = (
        events.JobAdded(job_record(total=total), request_follows=True),
        events.OutcomesRead(J, worker.id, (outcome,)),
    )
    step(world.state, events.JobRebuilt(past), 0.0)
    again = RetryRequest(id=RequestId("t"), job=J, at=0.0, ranges=(TaskRange(0, total, 1),))
    step(world.state, events.RetryAsked(again), 0.0)
    reopened = world.state.jobs[J]
    assert len(reopened.ended) == 0
    assert len(list(reopened.rounds.runs(0, total))) == 1
    assert len(reopened.history._entries) == 0


def test_rounds_are_kept_as_runs() -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(200):
        subject, model = RoundMap(), [0] * 40
        for _ in range(20):
            start = rng.randrange(40)
            stop = rng.randrange(start, 41)
            round_ = rng.randrange(3)
            subject.set(start, stop, round_)
            model[start:stop] = [round_] * (stop - start)
            runs = list(subject.runs(0, 40))
            assert [r for low, high, r in runs for _ in range(low, high)] == model
            assert all(a[2] != b[2] for a, b in itertools.pairwise(runs))
            assert [subject.get(i) for i in range(40)] == model


def test_a_job_without_a_matching_worker_says_why_it_waits() -> None:
    world = _world(2)
    world.feed(events.JobAdded(job_record(python="3.12")))
    assert "Python 3.12" in world.statuses[-1].note
    world.feed(events.JobAdded(job_record("k", cpus=4)))
    assert "needs 4 CPUs" in world.statuses[-1].note


def test_an_empty_job_has_ended() -> None:
    world = _world(1)
    world.feed(events.JobAdded(job_record(total=0)))
    assert world.statuses[-1].state is JobState.SUCCEEDED
    assert world.state.jobs == {}


@pytest.mark.parametrize("salt", range(20))
def test_nothing_is_lost_under_random_faults(salt: int) -> None:
    seed = random.randrange(10**6) * 100 + salt
    print(f"seed {seed}")
    _random_story(seed)


def _random_story(seed: int) -> None:
    rng = random.Random(seed)
    world = World(rng, task_s=rng.choice([0.001, 0.05, 2.0]))
    world.start(*(rng.randrange(1, 4) for _ in range(rng.randrange(1, 4))))
    total = rng.randrange(1, 120)
    world.feed(
        events.JobAdded(job_record(total=total, max_crashes=1000, speculate=rng.random() < 0.5))
    )
    born = itertools.count()
    for _ in range(rng.randrange(10, 200)):
        workers = [w for w in world.workers.values() if w.held]
        worker = rng.choice(workers) if workers else None
        match rng.randrange(14):
            case 0 if worker:
                world.lose(worker)
            case 1:
                world.join(f"b{next(born)}", rng.randrange(1, 4))
            case 2 if worker:
                world.report(worker)
            case 3 if worker:
                _end_attempt(world, worker, crash=True)
            case 4 if worker:
                _end_attempt(world, worker, crash=False)
            case 5 if rng.random() < 0.3:
                start = rng.randrange(total)
                _cancel(world, TaskRange(start, min(total, start + 5), rng.randrange(2)))
            case 6 if worker:  # a slice gets lost on the way
                worker.held.popitem()
            case 7:
                world.read_log(rng.randrange(5))
            case 8:
                world.read_again(rng.randrange(4))
            case 9 if rng.random() < 0.3:
                world.take_over()
            case 10 if rng.random() < 0.5:
                _retry_some(world, rng)
            case 11:
                world.pass_time(rng.random() * 3)
            case _ if worker:
                world.finish_one(worker, rng.choice([OutcomeState.OK] * 4 + [OutcomeState.FAILED]))
    _let_it_end(world, f"b{next(born)}")
    assert set(world.final_outcomes("j")) == set(range(total))
    assert world.state.jobs == {}
    assert world.requests == {}


def _end_attempt(world: World, worker: SimWorker, *, crash: bool) -> None:
    """The running task's kernel dies, or its policy wants another attempt later."""
    key = worker.running()[0]
    task = worker.held.pop(key)
    world.append(
        J,
        key[1],
        OutcomeState.RETRY,
        task.round,
        worker=worker.id,
        attempt=task.attempt,
        crashes=task.crashes + crash,
        retry_in_s=0.0 if crash else world.rng.random() * 5,
    )


def _retry_some(world: World, rng: random.Random) -> None:
    """A user retries what the log says has failed or was cancelled."""
    rounds = {
        index: outcome.round
        for of, _, outcome in world.log
        for index in range(outcome.start, outcome.stop)
    }
    ended = world.final_outcomes("j")
    bad = [i for i, state in ended.items() if state is not OutcomeState.OK]
    chosen = [i for i in bad if rng.random() < 0.7]
    if chosen:
        _retry(world, *(TaskRange(i, i + 1, rounds[i] + 1) for i in sorted(chosen)))


def _let_it_end(world: World, newcomer: str) -> None:
    world.join(newcomer, 2)
    for _ in range(2000):
        world.read_log()
        for worker in list(world.workers.values()):
            world.report(worker)
            if worker.held:
                world.finish_one(worker)
        world.pass_time(1.0)
        if not world.state.jobs and not world.requests:
            return


def test_what_comes_after_a_job_was_sealed_without_its_client_is_not_run() -> None:
    world = _world(2)
    world.feed(events.JobAdded(job_record(total=None, inline=False)))
    for number in range(3):
        world.feed(events.BlockStored(J, BlockRef(number + 1, 10 * number, 10, 1, 100)))
    # Sealed with 20 when 30 had arrived, and a fourth block comes.
    world.feed(events.JobAdded(job_record(total=20, inline=False, abandoned=True)))
    world.feed(events.BlockStored(J, BlockRef(4, 30, 10, 1, 100)))
    world.settle()
    final = world.final_outcomes("j")
    assert {i: final[i] for i in range(20)} == dict.fromkeys(range(20), OutcomeState.OK)
    assert max(index for _, index in world.executions) < 22  # two were running then
    assert world.statuses[-1].state is JobState.INCOMPLETE
    assert (world.statuses[-1].ok, world.statuses[-1].total) == (20, 20)
    assert J not in world.state.jobs


def test_tasks_behind_the_total_that_run_when_a_job_is_sealed_do_not_count() -> None:
    world = _world(2)
    world.feed(events.JobAdded(job_record(total=None, inline=False)))
    world.feed(events.BlockStored(J, BlockRef(1, 0, 1, 1, 100)))
    world.feed(events.BlockStored(J, BlockRef(2, 1, 1, 1, 100)))
    assert sum(len(worker.held) for worker in world.workers.values()) == 2
    world.feed(events.JobAdded(job_record(total=1, inline=False, abandoned=True)))
    world.settle()
    assert world.statuses[-1].state is JobState.INCOMPLETE
    assert (world.statuses[-1].ok, world.statuses[-1].cancelled) == (1, 0)


def test_a_job_sealed_without_its_client_is_rebuilt_with_its_total() -> None:
    world = _world(2)
    blocks = [events.BlockStored(J, BlockRef(n + 1, 10 * n, 10, 1, 100)) for n in range(3)]
    record = job_record(total=20, inline=False, abandoned=True)
    world.feed(events.JobRebuilt((events.JobAdded(record), *blocks)))
    world.settle()
    assert set(world.final_outcomes("j")) == set(range(20))
    assert world.statuses[-1].state is JobState.INCOMPLETE


def test_jobs_say_why_their_workers_pause() -> None:
    world = _world(2)
    world.feed(events.JobAdded(job_record(total=100)))
    held = tuple(Held(J, index, index + 1, 0, 1, 0.1) for index in range(2))
    report = WorkerReport(WorkerId("w0"), Term(1), 0, 0, held, 0, trouble="the log is full")
    world.feed(events.ReportRead(report))
    assert world.statuses[-1].note == "the log is full"
    count = len(world.statuses)
    world.feed(events.ReportRead(report))
    assert len(world.statuses) == count
    world.feed(events.ReportRead(msgspec.structs.replace(report, trouble="")))
    assert world.statuses[-1].note == ""
    world.feed(events.ReportRead(report))
    world.lose(_worker(world, "w0"))
    assert "no worker" in world.statuses[-1].note


def test_outcomes_behind_the_total_of_a_sealed_job_are_ignored() -> None:
    world = _world(2)
    world.feed(events.JobAdded(job_record(total=None, inline=False)))
    world.feed(events.BlockStored(J, BlockRef(1, 0, 2, 1, 100)))
    world.feed(events.JobAdded(job_record(total=2, inline=False, abandoned=True)))
    again = Outcome(3, 4, 0, 1, OutcomeState.RETRY, retry_in_s=9.0)
    world.feed(events.OutcomesRead(J, WorkerId("w0"), (again,)))
    assert world.state.jobs[J].queued_count == 0
    across = Outcome(0, 4, 0, 1, OutcomeState.OK)
    world.feed(events.OutcomesRead(J, WorkerId("w0"), (across,)))
    assert world.statuses[-1].state is JobState.INCOMPLETE
    assert world.statuses[-1].ok == 2
