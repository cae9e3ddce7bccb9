"""What is remembered of the ends of tasks, and what of the messages they came in."""

from __future__ import annotations

from nbsched.client.tasklog import TaskLog
from nbsched.messages import Outcome, OutcomeState
from nbsched.model import WorkerId

W = WorkerId("w")
MANY = 1001


def outcome(state: OutcomeState, attempt: int = 0) -> Outcome:
    return Outcome(3, 4, 0, attempt, state)


def test_what_an_attempt_failed_with_does_not_keep_its_message() -> None:
    log = TaskLog()
    message = bytearray(b"the reason, and the outcomes of many other tasks")

    log.ended(W, outcome(OutcomeState.RETRY), memoryview(message)[:10], MANY)

    message.clear()  # BufferError while anything looks into it
    end = log.end(3)
    assert end is not None
    assert end.raw == b"the reason"


def test_a_task_that_came_to_a_good_end_is_forgotten_where_there_are_many() -> None:
    log = TaskLog()
    log.ended(W, outcome(OutcomeState.RETRY), memoryview(b"the reason"), MANY)

    log.ended(W, outcome(OutcomeState.OK, attempt=1), memoryview(b"42"), MANY)

    assert log.end(3) is None


def test_tasks_that_came_to_a_good_end_together_are_forgotten() -> None:
    for stop in (5, 500):
        log = TaskLog()
        log.ended(W, outcome(OutcomeState.RETRY), memoryview(b"the reason"), MANY)

        log.ended(W, Outcome(3, stop, 0, 1, OutcomeState.OK), memoryview(b""), MANY)

        assert log.end(3) is None


def test_the_worker_of_a_good_end_is_remembered_where_there_are_few() -> None:
    log = TaskLog()

    log.ended(W, outcome(OutcomeState.OK), memoryview(b"42"), MANY - 1)

    end = log.end(3)
    assert end is not None
    assert (end.worker, end.raw) == (W, b"")
