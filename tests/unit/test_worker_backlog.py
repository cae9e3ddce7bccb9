"""What a worker holds, whose turn it is, and how large a hand-over gets."""

from __future__ import annotations

from nbsched.messages import BlockRef, Held, JobBrief, RunSlice
from nbsched.model import ClientId, JobId, TaskRange, Term
from nbsched.worker.backlog import Backlog
from nbsched.worker.pace import Pace


def brief(job: str = "a", **more: int) -> JobBrief:
    return JobBrief(JobId(job), ClientId("c"), "one", True, 1, **more)  # type: ignore[arg-type]


def some(job: str, start: int, stop: int, *, round_: int = 0, attempt: int = 1) -> RunSlice:
    return RunSlice(Term(1), 1, brief(job), start, stop, round_, attempt)


def queue_of(backlog: Backlog, job: str) -> list[tuple[int, int]]:
    found = backlog.job(JobId(job))
    return [(piece.start, piece.stop) for piece in found.queue] if found else []


A, B = JobId("a"), JobId("b")


def test_a_task_held_in_the_same_or_a_later_attempt_is_not_taken_twice() -> None:
    backlog = Backlog()
    assert backlog.add(some("a", 0, 10)) == 10
    assert backlog.add(some("a", 5, 15)) == 5
    assert queue_of(backlog, "a") == [(0, 10), (10, 15)]
    assert backlog.add(some("a", 3, 4, attempt=2)) == 1
    assert backlog.add(some("a", 3, 4, round_=1)) == 1
    assert backlog.add(some("a", 3, 4, attempt=3)) == 0
    assert backlog.add(some("a", 0, 4)) == 0


def test_a_higher_priority_comes_first_and_equals_take_turns() -> None:
    backlog = Backlog()
    for job, priority in (("low", 0), ("a", 5), ("b", 5)):
        told = brief(job, priority=priority)
        backlog.add(RunSlice(Term(1), 1, told, 0, 2))
    order = []
    while backlog.queued:
        job = backlog.turns()[0]
        backlog.take(job, 1)
        order.append(job)
    assert order == ["a", "b", "a", "b", "low", "low"]


def test_jobs_take_turns() -> None:
    backlog = Backlog()
    backlog.add(some("a", 0, 100))
    backlog.add(some("b", 0, 2))
    taken = []
    for _ in range(4):
        piece = backlog.take(backlog.turns()[0], 1)
        taken.append((piece.job, piece.start))
    assert taken == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert backlog.turns() == ["a"]
    assert backlog.queued == 98


def test_a_taken_task_is_held_until_it_is_released() -> None:
    backlog = Backlog()
    backlog.add(some("a", 0, 3))
    backlog.take(A, 2)
    backlog.take(A, 2)
    assert backlog.turns() == []
    assert backlog.held([]) == (Held(A, 0, 3, 0, 1),)
    backlog.release(A, 1, 2, 0, 1)
    assert backlog.held([]) == (Held(A, 0, 1, 0, 1), Held(A, 2, 3, 0, 1))
    backlog.release(A, 0, 3, 0, 1)
    assert not backlog


def test_a_running_task_is_an_entry_of_its_own() -> None:
    backlog = Backlog()
    backlog.add(some("a", 0, 10))
    running = Held(A, 4, 5, 0, 1, 2.5)
    assert backlog.held([running]) == (running, Held(A, 0, 4, 0, 1), Held(A, 5, 10, 0, 1))


def test_what_comes_back_from_a_kernel_is_next() -> None:
    backlog = Backlog()
    backlog.add(some("a", 0, 10))
    piece = backlog.take(A, 4)
    backlog.give_back(piece.part(1, 4))
    assert queue_of(backlog, "a") == [(1, 4), (4, 10)]
    assert backlog.take(A, 10).count == 3


def test_recall_gives_up_queued_tasks_of_exactly_that_round() -> None:
    backlog = Backlog()
    backlog.add(some("a", 0, 10))
    backlog.add(some("a", 20, 30, round_=1))
    backlog.take(A, 2)
    assert backlog.recall(A, [TaskRange(0, 5), TaskRange(20, 30)]) == (TaskRange(2, 5, 0),)
    assert queue_of(backlog, "a") == [(5, 10), (20, 30)]
    assert Held(A, 2, 5, 0, 1) not in backlog.held([])
    assert backlog.recall(B, [TaskRange(0, 5)]) == ()


def test_stopped_tasks_stay_held_until_their_outcome_is_published() -> None:
    backlog = Backlog()
    backlog.add(some("a", 0, 10))
    (piece,) = backlog.stop(A, [TaskRange(3, 6)])
    assert (piece.start, piece.stop) == (3, 6)
    assert queue_of(backlog, "a") == [(0, 3), (6, 10)]
    assert backlog.held([]) == (Held(A, 0, 10, 0, 1),)


def test_a_stop_of_an_older_round_does_not_touch_a_newer_one() -> None:
    backlog = Backlog()
    backlog.add(some("a", 0, 3, round_=1))
    assert backlog.stop(A, [TaskRange(0, 3, 0)]) == []
    assert len(backlog.stop(A, [TaskRange(0, 3, 1)])) == 1
    assert backlog.turns() == []


def test_tasks_of_a_block_that_is_lost_are_withdrawn() -> None:
    backlog = Backlog()
    backlog.add(some("a", 0, 10))
    lost = backlog.withdraw_block(backlog.head(A), BlockRef(2, 4, 3, 1, 10))
    assert [(piece.start, piece.stop) for piece in lost] == [(4, 7)]
    assert [p.count for p in backlog.withdraw_block(lost[0], None)] == [4, 3]


def test_a_drained_backlog_holds_only_what_kernels_have() -> None:
    backlog = Backlog()
    backlog.add(some("a", 0, 10))
    backlog.add(some("b", 0, 10))
    backlog.take(A, 2)
    backlog.drop_queued()
    assert backlog.held([]) == (Held(A, 0, 2, 0, 1),)
    assert backlog.queued == 0


# ---------------------------------------------------------------- pace


def completed(pace: Pace, task_s: float) -> int:
    count = pace.chunk(10**6, 2)
    pace.measure(count, count * task_s)
    pace.completed()
    return count


def test_hand_overs_begin_with_one_task_and_grow_in_steps() -> None:
    pace = Pace()
    assert [completed(pace, 0.0001) for _ in range(4)] == [1, 8, 50, 50]
    pace = Pace()
    assert [completed(pace, 0.0000001) for _ in range(4)] == [1, 8, 64, 512]


def test_long_tasks_travel_alone() -> None:
    pace = Pace()
    assert [completed(pace, 0.1) for _ in range(4)] == [1, 1, 1, 1]
    assert not pace.keeps_spare(1000, 2)


def test_a_spare_hand_over_is_kept_for_short_tasks_and_for_longer_ones_in_a_long_queue() -> None:
    pace = Pace()
    assert not pace.keeps_spare(1000, 2)
    pace.measure(1, 0.001)
    assert pace.keeps_spare(1, 2)
    pace = Pace()
    pace.measure(1, 0.05)
    assert pace.keeps_spare(5, 2)
    assert not pace.keeps_spare(4, 2)


def test_hand_overs_shrink_when_tasks_become_long() -> None:
    pace = Pace()
    for _ in range(8):
        completed(pace, 0.0001)
    for _ in range(12):
        completed(pace, 0.01)
    assert pace.chunk(10**6, 2) == 1


def test_a_chunksize_of_the_user_is_kept() -> None:
    pace = Pace(7)
    assert [completed(pace, 0.1) for _ in range(3)] == [7, 7, 7]


def test_the_last_tasks_are_spread_over_all_kernels() -> None:
    pace = Pace()
    for _ in range(8):
        completed(pace, 0.0001)
    assert pace.chunk(12, 4) == 3
    assert pace.chunk(1, 4) == 1
