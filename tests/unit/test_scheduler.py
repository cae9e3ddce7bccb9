"""The scheduler's decisions, each told as a small story."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from nbsched.messages import BlockRef, Outcome, OutcomeState
from nbsched.model import (
    CancelRequest,
    JobId,
    JobState,
    RequestId,
    RetryRequest,
    TaskRange,
    WorkerId,
)
from nbsched.scheduler import events
from nbsched.scheduler.core import step
from nbsched.scheduler.roundmap import RoundMap
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
    world.feed(events.JobAdded(job_record(total=total, max_crashes=1000)))
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
