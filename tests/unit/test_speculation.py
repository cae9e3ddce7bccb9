"""Second copies of slow tasks, told as small stories of the scheduler alone."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest

from nbsched.attempts import PastAttempt
from nbsched.messages import BlockRef, Held, Outcome, OutcomeState, WorkerReport
from nbsched.model import (
    CancelRequest,
    JobId,
    JobState,
    RequestId,
    RetryRequest,
    TaskRange,
    Term,
)
from nbsched.scheduler import commands, events
from nbsched.scheduler.durations import Durations
from support.simulation import SimWorker, World, job_record

J = JobId("j")
SLOW = (J, 7)
_NUMBERS = itertools.count()


def _worker(world: World, name: str) -> SimWorker:
    return next(worker for worker in world.workers.values() if worker.id == name)


def _runs(world: World) -> list[str]:
    """Who holds the slow task."""
    return [worker.id for worker in world.workers.values() if SLOW in worker.held]


def _report_all(world: World) -> None:
    for worker in list(world.workers.values()):
        world.report(worker)


def _tail(*cpus: int, **options: object) -> World:
    """All tasks of a job but one have ended after a second each, that one runs on w0."""
    world = World(random.Random(1), task_s=1.0)
    world.start(*(cpus or (4, 4)))
    world.feed(events.JobAdded(job_record(total=8, **{"speculate": True, **options})))
    while len(world.final_outcomes("j")) < 7:
        for worker in world.workers.values():
            for key in [key for key in worker.running() if key != SLOW]:
                task = worker.held.pop(key)
                world.append(J, task.start, OutcomeState.OK, worker=worker.id)
                world.executions[key] = 1
        world.pass_time(1.0)
        world.read_log()
    _report_all(world)
    return world


def _with_copy(*cpus: int, **options: object) -> World:
    """Five seconds later it has a copy."""
    world = _tail(*cpus, **options)
    assert len(_runs(world)) == 1
    world.pass_time(5.0)
    assert len(_runs(world)) == 2
    return world


def _finish(world: World, name: str, state: OutcomeState = OutcomeState.OK) -> None:
    task = _worker(world, name).held.pop(SLOW)
    world.append(J, 7, state, task.round, worker=name, attempt=task.attempt)
    world.read_log()


def _die(world: World, name: str) -> None:
    """The task takes down its kernel there."""
    task = _worker(world, name).held.pop(SLOW)
    past = (PastAttempt(name, "signal SIGSEGV", 1.0),)
    died = Outcome(7, 8, 0, task.attempt, OutcomeState.RETRY, crashes=task.crashes + 1, past=past)
    world.log.append((J, _worker(world, name).id, died))
    world.read_log()


def _first_and_copy(world: World) -> tuple[str, str]:
    first = world.state.jobs[J].holder(7)
    copy = world.state.jobs[J].copies.where(7)
    assert first is not None
    assert copy is not None
    return first, copy


def _ended_well(world: World) -> None:
    assert world.final_outcomes("j") == dict.fromkeys(range(8), OutcomeState.OK)
    assert world.statuses[-1].state is JobState.SUCCEEDED
    assert world.state.jobs == {}
    assert _runs(world) == []


@pytest.mark.parametrize("winner", [0, 1])
def test_the_first_outcome_counts_and_the_other_run_is_stopped_silently(winner: int) -> None:
    world = _with_copy()
    outcomes = len(world.log)
    _finish(world, _first_and_copy(world)[winner])
    _ended_well(world)
    assert len(world.log) == outcomes + 1, "nothing is said of the loser"


def test_a_copy_waits_for_twice_the_median_time() -> None:
    world = _tail()
    since = next(task.since for w in world.workers.values() for task in w.held.values())
    while len(_runs(world)) < 2:
        world.pass_time(0.25)
    assert 2.0 <= world.now - since <= 2.0 + 1.5  # two seconds, and the time between looks


def test_a_task_that_is_as_slow_as_its_siblings_has_no_copy() -> None:
    world = World(random.Random(1), task_s=60.0)
    world.start(4, 4)
    world.feed(events.JobAdded(job_record(total=8, speculate=True)))
    for worker in world.workers.values():
        for key in [key for key in worker.running() if key != SLOW]:
            task = worker.held.pop(key)
            world.append(J, task.start, OutcomeState.OK, worker=worker.id)
    world.pass_time(60.0)
    world.read_log()
    _report_all(world)
    world.pass_time(50.0)
    assert len(_runs(world)) == 1
    world.pass_time(20.0)
    assert len(_runs(world)) == 2


@pytest.mark.parametrize(
    ("cpus", "options"),
    [
        ((4, 4), {"speculate": False}),
        ((8,), {}),
        ((4, 0), {}),
    ],
    ids=["not asked for", "no other worker", "no slots there"],
)
def test_without_wish_or_room_there_is_no_copy(
    cpus: tuple[int, ...], options: dict[str, object]
) -> None:
    world = _tail(*cpus, **options)
    world.pass_time(100.0)
    assert len(_runs(world)) == 1


def test_other_work_comes_before_a_copy() -> None:
    world = _tail()
    world.feed(events.JobAdded(job_record("k", total=500)))
    _report_all(world)
    world.pass_time(5.0)
    assert len(_runs(world)) == 1
    world.feed(events.JobDeleted(JobId("k")))
    for worker in world.workers.values():
        for key in [key for key in worker.held if key[0] == "k"]:
            del worker.held[key]
    world.pass_time(5.0)
    assert len(_runs(world)) == 2


def test_a_wide_task_needs_its_room() -> None:
    world = _tail(4, 4, cpus=4)
    world.pass_time(5.0)
    assert len(_runs(world)) == 2
    narrow = _tail(4, 3, cpus=4)
    narrow.pass_time(5.0)
    assert len(_runs(narrow)) == 1


def test_no_task_has_two_copies() -> None:
    world = _with_copy(4, 4, 4)
    for _ in range(10):
        _report_all(world)
        world.pass_time(5.0)
    assert len(_runs(world)) == 2


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_of_the_hosts_is_lost_the_other_run_goes_on(victim: int) -> None:
    world = _with_copy()
    _report_all(world)
    runs = _first_and_copy(world)
    sent = len(world.slices)
    world.lose(_worker(world, runs[victim]))
    world.read_log()
    assert _runs(world) == [runs[1 - victim]]
    assert len(world.slices) == sent, "it is not started once more"
    _finish(world, runs[1 - victim])
    _ended_well(world)


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_run_dies_the_other_goes_on_and_the_death_counts(victim: int) -> None:
    world = _with_copy()
    runs = _first_and_copy(world)
    sent = len(world.slices)
    _die(world, runs[victim])
    assert _runs(world) == [runs[1 - victim]]
    assert len(world.slices) == sent
    history = world.state.jobs[J].history.of(7)
    assert (history.lost_runs, history.attempt) == (1, 1)
    assert len(history.past) == 1
    _finish(world, runs[1 - victim])
    _ended_well(world)


def test_when_both_runs_die_the_task_runs_again_with_its_history() -> None:
    world = _with_copy()
    for name in _first_and_copy(world):
        _die(world, name)
    assert len(_runs(world)) == 1
    assert (world.slices[-1].crashes, world.slices[-1].attempt) == (2, 1)
    assert len(world.slices[-1].past) == 2
    _finish(world, _runs(world)[0])
    _ended_well(world)


def test_a_copy_that_got_lost_on_its_way_is_noticed() -> None:
    world = _with_copy()
    first, copy = _first_and_copy(world)
    del _worker(world, copy).held[SLOW]
    world.report(_worker(world, copy))
    assert world.state.jobs[J].copies.where(7) != copy or SLOW in _worker(world, copy).held
    _finish(world, first)
    _ended_well(world)


def test_a_refused_copy_is_forgotten() -> None:
    world = _with_copy()
    first, copy = _first_and_copy(world)
    del _worker(world, copy).held[SLOW]
    world.feed(events.SliceRefused(_worker(world, copy).id, J, 7, 8))
    assert world.state.jobs[J].holder(7) == first
    assert len(world.state.jobs[J].copies) == 0
    _finish(world, first)
    _ended_well(world)


def _cancel(world: World) -> None:
    request = CancelRequest(id=RequestId(f"r{next(_NUMBERS)}"), job=J, at=0.0)
    world.ask(request)


def test_a_cancel_is_confirmed_when_neither_run_is_left() -> None:
    world = _with_copy()
    first, copy = _first_and_copy(world)
    _cancel(world)
    assert _runs(world) == [first]
    assert 7 not in world.final_outcomes("j"), "one of them is still there"
    world.report(_worker(world, copy))
    assert _runs(world) == []
    world.read_log()
    assert world.final_outcomes("j")[7] is OutcomeState.CANCELLED
    assert world.state.jobs == {}


def test_a_cancel_outlives_the_copys_host() -> None:
    world = _with_copy()
    _, copy = _first_and_copy(world)
    _cancel(world)
    world.lose(_worker(world, copy))
    world.read_log()
    assert world.final_outcomes("j")[7] is OutcomeState.CANCELLED
    assert _runs(world) == []


@pytest.mark.parametrize("winner", [0, 1])
def test_a_new_leader_finds_both_runs_and_starts_no_third(winner: int) -> None:
    world = _with_copy(4, 4, 4)
    runs = _first_and_copy(world)
    sent = len(world.slices)
    world.take_over()
    assert sorted(_first_and_copy(world)) == sorted(runs)
    for _ in range(5):
        world.pass_time(5.0)
        _report_all(world)
    assert len(world.slices) == sent
    _finish(world, runs[winner])
    _ended_well(world)


def test_a_new_leader_stops_the_run_that_lost_while_nobody_led() -> None:
    world = _with_copy()
    first, copy = _first_and_copy(world)
    _worker(world, copy).held.pop(SLOW)
    world.append(J, 7, OutcomeState.OK, worker=copy)
    world.take_over()
    assert world.state.jobs == {}, "every task has ended"
    world.report(_worker(world, first))
    world.report(_worker(world, first))
    assert _runs(world) == []


def test_a_retry_after_the_end_is_not_hit_by_the_losers_stop() -> None:
    world = _with_copy()
    first, _ = _first_and_copy(world)
    _finish(world, first, OutcomeState.FAILED)
    again = RetryRequest(id=RequestId("t"), job=J, at=0.0, ranges=(TaskRange(7, 8, 1),))
    world.ask(again)
    assert len(_runs(world)) == 1
    _report_all(world)
    _report_all(world)
    assert len(_runs(world)) == 1
    _finish(world, _runs(world)[0])
    assert world.final_outcomes("j")[7] is OutcomeState.OK
    assert world.state.jobs == {}


def _retry_later(world: World, name: str) -> None:
    task = _worker(world, name).held.pop(SLOW)
    world.append(J, 7, OutcomeState.RETRY, worker=name, attempt=task.attempt, retry_in_s=30.0)
    world.read_log()


def test_a_run_whose_policy_wants_another_attempt_leaves_that_to_the_other_run() -> None:
    world = _with_copy()
    first, copy = _first_and_copy(world)
    _retry_later(world, first)
    assert _runs(world) == [copy]
    assert world.state.jobs[J].delayed == {}
    _retry_later(world, copy)
    assert list(world.state.jobs[J].delayed) == [7]
    world.pass_time(31.0)
    assert world.slices[-1].attempt == 2
    _finish(world, _runs(world)[0])
    _ended_well(world)


def test_a_retry_keeps_its_delay_when_the_other_run_has_died_before() -> None:
    world = _with_copy()
    first, copy = _first_and_copy(world)
    _die(world, first)
    _retry_later(world, copy)
    assert list(world.state.jobs[J].delayed) == [7]
    world.pass_time(31.0)
    assert (world.slices[-1].crashes, world.slices[-1].attempt) == (1, 2)
    _finish(world, _runs(world)[0])
    _ended_well(world)


def test_looks_are_asked_for_by_time_and_end_with_the_job() -> None:
    world = _tail()
    assert world.timer is not None
    _finish(world, _runs(world)[0])
    world.pass_time(1.0)
    assert world.timer is None


@pytest.mark.parametrize(
    ("lengths", "median"),
    [([1.0], 1.0), ([1.0, 1.0, 9.0], 1.0), ([5.0, 0.1, 3.0, 4.0, 6.0], 4.0), ([0.0], 1e-6)],
)
def test_the_median_is_right_within_five_percent(lengths: list[float], median: float) -> None:
    durations = Durations()
    assert durations.median() is None
    for length in lengths:
        durations.add(length, 1)
    found = durations.median()
    assert found is not None
    assert abs(found / median - 1) < 0.05


def _spied(world: World) -> list[commands.StopOnWorker]:
    """The stops that are sent from now on."""
    seen: list[commands.StopOnWorker] = []
    carry_out: Callable[[commands.Command], None] = world._carry_out

    def spy(command: commands.Command) -> None:
        if isinstance(command, commands.StopOnWorker):
            seen.append(command)
        carry_out(command)

    world._carry_out = spy  # type: ignore[method-assign]
    return seen


def test_the_losers_stop_names_its_round_so_that_a_later_one_is_not_hit() -> None:
    world = _with_copy()
    first, copy = _first_and_copy(world)
    stops = _spied(world)
    _finish(world, first)
    (stop,) = stops
    assert (stop.worker, stop.silently) == (copy, True)
    assert stop.ranges == (TaskRange(7, 8, 0),)


def test_a_short_tasks_report_that_comes_behind_its_outcome_stops_nothing() -> None:
    world = World(random.Random(1), task_s=0.001)
    world.start(1)
    world.feed(events.JobAdded(job_record(total=1)))
    worker = _worker(world, "w0")
    held = (Held(J, 0, 1, 0, 1, 0.0005),)
    late = WorkerReport(worker.id, Term(1), worker.seq, 0, held, 0)
    world.finish_one(worker)
    world.read_log()
    stops = _spied(world)
    world.feed(events.ReportRead(late))
    assert stops == []


def test_a_task_of_many_that_still_run_has_no_copy() -> None:
    world = World(random.Random(1), task_s=1.0)
    world.start(4, 4, 4)
    world.feed(events.JobAdded(job_record(total=8, speculate=True)))
    for _ in range(3):
        world.finish_one(next(worker for worker in world.workers.values() if worker.held))
    world.pass_time(1.0)
    world.read_log()
    _report_all(world)
    sent = len(world.slices)
    world.pass_time(60.0)
    assert len(world.slices) == sent, "three of eight are too few to know what is slow"


def test_a_job_that_still_grows_has_no_copies() -> None:
    world = World(random.Random(1), task_s=1.0)
    world.start(4, 4)
    world.feed(events.JobAdded(job_record(total=None, inline=False, speculate=True)))
    world.feed(events.BlockStored(J, BlockRef(1, 0, 8, 1, 100)))
    while len(world.final_outcomes("j")) < 7:
        busy = next(w for w in world.workers.values() if set(w.held) - {SLOW})
        task = busy.held.pop(next(key for key in busy.held if key != SLOW))
        world.append(J, task.start, OutcomeState.OK, worker=busy.id)
    world.read_log()
    _report_all(world)
    world.pass_time(60.0)
    assert len(_runs(world)) == 1
    world.feed(events.JobAdded(job_record(total=8, inline=False, speculate=True)))
    assert len(_runs(world)) == 2
