"""What a client makes of outcomes: first valid one wins, per task and round."""

from __future__ import annotations

import pickle
import traceback
from concurrent.futures import CancelledError
from typing import Any

import pytest

from nbsched import errors, messages
from nbsched.client.results import ResultStore, TaskState
from nbsched.messages import Encoding, ErrorReport, Outcome, OutcomeState


def _scalars(store: ResultStore, start: int, values: list[Any], round_: int = 0) -> Any:
    data = pickle.dumps(values)
    stop = start + len(values)
    outcome = Outcome(start, stop, round_, 1, OutcomeState.OK, Encoding.SCALARS, (len(data),))
    return store.apply(outcome, memoryview(data))


def _error(store: ResultStore, index: int, report: ErrorReport, round_: int = 0) -> Any:
    data = messages.encode(report)
    outcome = Outcome(
        index, index + 1, round_, 1, OutcomeState.FAILED, Encoding.ERROR, (len(data),)
    )
    return store.apply(outcome, memoryview(data))


def test_results_come_back_in_their_places() -> None:
    store = ResultStore("j")
    store.grow(5)
    assert _scalars(store, 2, ["c", "d"]) == [(2, 4)]
    assert store.state(2) is TaskState.OK
    assert store.state(0) is TaskState.PENDING
    assert [store.value(2), store.value(3)] == ["c", "d"]
    assert store.count(TaskState.PENDING) == 3


def test_the_first_outcome_of_a_task_wins() -> None:
    store = ResultStore("j")
    _scalars(store, 0, [1, 2])
    assert _scalars(store, 0, [9, 9, 3]) == [(2, 3)]
    assert [store.value(i) for i in range(3)] == [1, 2, 3]


def test_values_in_a_row_leave_out_those_that_came_too_late() -> None:
    store = ResultStore("j")
    store.grow(6)
    cancelled = Outcome(2, 4, 0, 1, OutcomeState.CANCELLED)
    store.apply(cancelled, memoryview(b""))
    _scalars(store, 0, [0, 1, 2, 3, 4, 5])
    found: list[Any] = []
    while len(found) < 2:
        found += store.values(len(found))
    assert found == [0, 1]
    with pytest.raises(CancelledError):
        store.values(2)
    assert store.values(4)[0] == 4


def test_a_later_round_replaces_an_outcome_and_an_earlier_one_does_not() -> None:
    store = ResultStore("j")
    _scalars(store, 0, [1])
    assert _scalars(store, 0, [2], round_=1) == [(0, 1)]
    assert _scalars(store, 0, [3], round_=0) == []
    assert store.value(0) == 2
    assert store.count(TaskState.OK) == 1


def test_a_retried_task_is_pending_until_its_new_outcome() -> None:
    store = ResultStore("j")
    _error(store, 0, ErrorReport("ValueError", "no", pickle=pickle.dumps(ValueError("no"))))
    store.reopen(0, 1)
    assert store.state(0) is TaskState.PENDING
    assert _scalars(store, 0, ["stale"], round_=0) == []
    assert _scalars(store, 0, ["new"], round_=1) == [(0, 1)]
    assert store.value(0) == "new"


def test_an_exception_comes_back_as_itself_with_its_remote_traceback() -> None:
    store = ResultStore("j")
    report = ErrorReport("ValueError", "no", "Traceback: here", pickle.dumps(ValueError("no")))
    _error(store, 0, report)
    with pytest.raises(ValueError, match="no") as caught:
        store.value(0)
    assert str(caught.value.__cause__) == "\nTask 0 of job j, on its worker:\nTraceback: here"


def test_an_exception_that_is_raised_twice_shows_its_frames_once() -> None:
    store = ResultStore("j")
    _error(store, 0, ErrorReport("ValueError", "no", pickle=pickle.dumps(ValueError("no"))))
    depths = []
    for _ in range(2):
        with pytest.raises(ValueError, match="no") as caught:
            store.value(0)
        depths.append(len(traceback.extract_tb(caught.value.__traceback__)))
    assert depths[0] == depths[1]


def test_an_exception_that_cannot_be_unpickled_is_described() -> None:
    store = ResultStore("j")
    _error(store, 0, ErrorReport("pkg.Odd", "lost", pickle=b"not a pickle"))
    error = store.exception(0)
    assert isinstance(error, errors.ResultNotReadableError)
    assert "pkg.Odd: lost" in str(error)


def test_a_failure_of_the_system_has_the_class_that_it_names() -> None:
    store = ResultStore("j")
    _error(
        store,
        7,
        ErrorReport("TaskCrashedError", "gone", system="TaskCrashedError", details={"signal": 9}),
    )
    error = store.exception(7)
    assert isinstance(error, errors.TaskCrashedError)
    assert (error.index, error.details) == (7, {"signal": 9})


def test_a_cancelled_task_raises_cancelled_error() -> None:
    store = ResultStore("j")
    store.apply(Outcome(0, 3, 0, 0, OutcomeState.CANCELLED), memoryview(b""))
    with pytest.raises(CancelledError):
        store.value(1)
    assert store.count(TaskState.CANCELLED) == 3


def test_one_unreadable_result_does_not_spoil_its_neighbours() -> None:
    store = ResultStore("j")
    parts = [pickle.dumps([1]), b"garbage", pickle.dumps([3])]
    outcome = Outcome(0, 3, 0, 1, OutcomeState.OK, Encoding.PICKLES, tuple(map(len, parts)))
    store.apply(outcome, memoryview(b"".join(parts)))
    assert store.value(0) == [1]
    assert store.value(2) == [3]
    with pytest.raises(errors.ResultNotReadableError, match="task 1"):
        store.value(1)


def test_a_failed_attempt_that_is_retried_counts_as_retrying() -> None:
    store = ResultStore("j")
    store.grow(1)
    store.apply(Outcome(0, 1, 0, 1, OutcomeState.RETRY), memoryview(b""))
    assert (store.retrying, store.count(TaskState.PENDING)) == (1, 1)
    _scalars(store, 0, [1])
    assert store.retrying == 0
