"""Futures on a tracker, without a cluster: states, callbacks, waiting."""

from __future__ import annotations

import asyncio
import concurrent.futures
import pickle
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nbsched import as_completed, wait
from nbsched.client.delivery import delivery
from nbsched.client.futures import Future
from nbsched.client.mapfuture import MapFuture
from nbsched.client.session import Session
from nbsched.client.tracker import JobTracker
from nbsched.errors import JobIncompleteError
from nbsched.messages import Encoding, ErrorReport, Outcome, OutcomeState, encode
from nbsched.model import WorkerId
from nbsched.settings import Settings
from support.conditions import until
from support.simulation import job_record


def _tracker(total: int | None = 3) -> JobTracker:
    return JobTracker(job_record(total=total))


def _retry(tracker: JobTracker, indices: list[int]) -> int:
    ranges = tracker.to_retry(indices)
    tracker.reopen(ranges)
    return len(ranges)


def _future(tracker: JobTracker, index: int) -> Future:
    def make(i: int) -> Future:
        return Future(tracker, i, lambda _: True, lambda indices: _retry(tracker, indices))

    return tracker.future(index, make)


def _ok(tracker: JobTracker, index: int, value: Any, round_: int = 0) -> None:
    data = pickle.dumps([value])
    outcome = Outcome(index, index + 1, round_, 1, OutcomeState.OK, Encoding.SCALARS, (len(data),))
    tracker.take_in([outcome], data)


def _failed(tracker: JobTracker, index: int, error: Exception) -> None:
    data = encode(ErrorReport(type(error).__name__, str(error), pickle=pickle.dumps(error)))
    outcome = Outcome(index, index + 1, 0, 1, OutcomeState.FAILED, Encoding.ERROR, (len(data),))
    tracker.take_in([outcome], data)


def test_the_future_of_a_task_is_one_object_while_somebody_holds_it() -> None:
    tracker = _tracker()
    assert _future(tracker, 0) is not _future(tracker, 1)
    future = _future(tracker, 0)
    assert _future(tracker, 0) is future


def test_a_future_gets_its_result_whether_made_before_or_after_it() -> None:
    tracker = _tracker()
    early = _future(tracker, 0)
    _ok(tracker, 0, "a")
    _ok(tracker, 1, "b")
    assert early.result(60) == "a"
    assert _future(tracker, 1).result(0) == "b"


def test_a_retry_whose_outcome_is_quicker_than_the_call_leaves_no_old_result() -> None:
    tracker = _tracker(1)
    future = _future(tracker, 0)
    _ok(tracker, 0, "old")
    assert future.result(60) == "old"
    ranges = tracker.to_retry([0])
    held = threading.Event()
    delivery().put(lambda: held.wait(60))  # it is busy
    try:
        _ok(tracker, 0, "new", round_=1)
        tracker.reopen(ranges)
        assert future.result(60) == "new"
    finally:
        held.set()


def test_tasks_that_the_cluster_never_had_cannot_run_again() -> None:
    tracker = JobTracker(job_record(total=None))
    tracker.uploaded(5)
    future = _future(tracker, 4)
    _ok(tracker, 0, "a")
    tracker.seal(2)  # cancelled, with the items that had arrived
    until(future.cancelled)
    assert [(named.start, named.stop) for named in tracker.to_retry(range(5))] == [(0, 1)]


def test_the_module_functions_of_the_standard_library_accept_our_futures() -> None:
    tracker = _tracker()
    futures = [_future(tracker, i) for i in range(3)]
    _ok(tracker, 1, 1)
    done, not_done = concurrent.futures.wait(futures, 5, concurrent.futures.FIRST_COMPLETED)
    assert done == {futures[1]}
    assert not_done == {futures[0], futures[2]}
    _ok(tracker, 2, 2)
    _ok(tracker, 0, 0)
    assert {f.result() for f in as_completed(futures, 5)} == {0, 1, 2}
    assert wait(futures, 5).not_done == set()


def test_a_running_future_becomes_cancelled_when_its_worker_confirms() -> None:
    tracker = _tracker()
    future = _future(tracker, 0)
    tracker.report(WorkerId("w"), {0: (1, 0.0)})
    assert future.running()
    assert not future.cancelled()
    tracker.take_in([Outcome(0, 1, 0, 0, OutcomeState.CANCELLED)], b"")
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(60)
    assert future.cancelled()


def test_retry_puts_the_same_future_back_to_pending() -> None:
    tracker = _tracker()
    future = _future(tracker, 0)
    _failed(tracker, 0, ValueError("no"))
    assert isinstance(future.exception(5), ValueError)
    assert future.retry()
    assert not future.done()
    _ok(tracker, 0, "again", round_=1)
    assert future.result(60) == "again"


class SlowToUnpickleError(Exception):
    begun, go_on = threading.Event(), threading.Event()

    def __reduce__(self) -> tuple[Any, ...]:
        return (SlowToUnpickleError.made, ())

    @staticmethod
    def made() -> SlowToUnpickleError:
        SlowToUnpickleError.begun.set()
        assert SlowToUnpickleError.go_on.wait(60)
        return SlowToUnpickleError("the old one")


def test_a_retry_while_the_old_outcome_is_unpickled_leaves_no_trace_of_it() -> None:
    tracker = _tracker(1)
    future = _future(tracker, 0)
    ended = threading.Event()
    future.add_done_callback(lambda _: ended.set())
    _failed(tracker, 0, SlowToUnpickleError())
    assert SlowToUnpickleError.begun.wait(60)
    _retry(tracker, [0])
    SlowToUnpickleError.go_on.set()
    delivered = threading.Event()
    delivery().put(delivered.set)
    assert delivered.wait(60)
    assert not future.done()
    assert not ended.is_set()
    _ok(tracker, 0, "new", round_=1)
    assert future.result(60) == "new"
    assert ended.wait(60)


def test_an_outcome_of_the_new_round_that_comes_before_the_retry_returns_counts() -> None:
    tracker = _tracker(1)
    future = _future(tracker, 0)
    _failed(tracker, 0, ValueError("no"))
    assert isinstance(future.exception(10), ValueError)
    ranges = tracker.to_retry([0])
    _ok(tracker, 0, "quick", round_=1)
    tracker.reopen(ranges)
    until(lambda: future.exception(10) is None)
    assert future.result(60) == "quick"
    assert tracker.finished


def test_a_callback_is_called_once_however_often_the_task_runs() -> None:
    tracker = _tracker(1)
    future = _future(tracker, 0)
    seen: list[int] = []
    future.add_done_callback(lambda _: seen.append(1))
    _failed(tracker, 0, ValueError("no"))
    until(lambda: seen)
    future.retry()
    again = threading.Event()
    future.add_done_callback(lambda _: again.set())
    _ok(tracker, 0, 1, round_=1)
    assert again.wait(60)
    assert seen == [1]


def test_a_listener_that_fails_is_dropped_and_holds_up_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tracker = _tracker(2)
    heard: list[int] = []

    def fails() -> None:
        raise RuntimeError("Event loop is closed")

    tracker.listen(fails)
    tracker.listen(lambda: heard.append(1))
    _ok(tracker, 0, 1)
    _ok(tracker, 1, 1)
    assert heard == [1, 1]
    assert caplog.text.count("a listener failed") == 1
    tracker.unlisten(fails)


def test_a_future_has_ended_when_its_job_has_however_busy_the_delivery_thread_is() -> None:
    tracker = _tracker(2)
    done, cancelled = _future(tracker, 0), _future(tracker, 1)
    go_on = threading.Event()
    delivery().put(go_on.wait)
    try:
        _ok(tracker, 0, "a")
        tracker.take_in([Outcome(1, 2, 0, 1, OutcomeState.CANCELLED)], b"")
        assert tracker.finished
        assert done.done()
        assert done.result(0) == "a"
        assert cancelled.cancelled()
    finally:
        go_on.set()


def test_a_map_that_the_leader_sealed_says_so_behind_its_last_item() -> None:
    tracker = _tracker(None)
    tracker.uploaded(4)
    for index in range(2):
        _ok(tracker, index, index)
    silent = cast(Session, SimpleNamespace(settings=Settings(progress="off")))
    mf = MapFuture(silent, tracker)
    results = iter(mf)
    assert [next(results), next(results)] == [0, 1]

    tracker.seal(2, without_client=True)

    with pytest.raises(JobIncompleteError, match="only the first 2 items"):
        next(results)


def test_what_is_uploaded_beyond_the_end_of_a_cancelled_job_is_cancelled() -> None:
    tracker = JobTracker(job_record(total=None))
    tracker.uploaded(5)
    _ok(tracker, 0, 1)
    _ok(tracker, 1, 1)
    late = _future(tracker, 4)
    tracker.seal(2)
    assert tracker.finished
    assert tracker.progress().cancelled == 3
    with pytest.raises(concurrent.futures.CancelledError):
        late.result(60)


def test_what_is_uploaded_after_the_end_of_a_cancelled_job_is_cancelled() -> None:
    tracker = _tracker(None)
    tracker.uploaded(2)
    _ok(tracker, 0, "a")
    tracker.seal(1)

    tracker.uploaded(3)  # it was on its way

    assert tracker.finished
    assert _future(tracker, 2).cancelled()
    assert tracker.to_retry([1, 2]) == (), "the cluster never had them"


def test_a_task_that_has_not_ended_is_not_retried() -> None:
    assert _future(_tracker(), 0).retry() is False


def test_callbacks_run_on_neither_the_io_nor_the_calling_thread() -> None:
    tracker = _tracker()
    future = _future(tracker, 0)
    names: list[str] = []
    called = threading.Event()

    def note(_: object) -> None:
        names.append(threading.current_thread().name)
        called.set()

    future.add_done_callback(note)
    _ok(tracker, 0, 1)
    assert called.wait(60)
    assert names == ["nbsched-callbacks"]


def test_a_callback_may_wait_for_another_future() -> None:
    tracker = _tracker()
    first, second = _future(tracker, 0), _future(tracker, 1)
    seen: list[Any] = []
    waits = threading.Event()

    def wait_for_second(_: object) -> None:
        waits.set()
        seen.append(second.result(60))

    first.add_done_callback(wait_for_second)
    _ok(tracker, 0, "a")
    assert waits.wait(60)
    _ok(tracker, 1, "b")
    until(lambda: seen == ["b"])


def test_a_future_that_is_late_says_so_and_what_to_do() -> None:
    future = _future(_tracker(), 1)
    for ask in (future.result, future.exception):
        with pytest.raises(TimeoutError, match=r"Task 1 of job j .* 0\.01 s.*cancel\(\)"):
            ask(0.01)


def test_a_timeout_error_of_the_task_itself_is_raised_as_it_is() -> None:
    tracker = _tracker()
    _failed(tracker, 0, TimeoutError("the server of the task"))
    with pytest.raises(TimeoutError, match=r"^the server of the task$"):
        _future(tracker, 0).result(60)


def test_a_future_can_be_awaited() -> None:
    tracker = _tracker()

    async def awaited() -> Any:
        future = _future(tracker, 0)
        asyncio.get_running_loop().call_later(0.01, _ok, tracker, 0, "x")
        return await asyncio.wait_for(future, 5)

    assert asyncio.run(awaited()) == "x"


def test_progress_counts_never_overlap() -> None:
    tracker = _tracker(5)
    tracker.report(WorkerId("w"), {0: (1, 0.0), 1: (1, 0.0)})
    _ok(tracker, 0, 1)
    _failed(tracker, 2, ValueError())
    tracker.take_in([Outcome(3, 4, 0, 1, OutcomeState.RETRY)], b"")
    now = tracker.progress()
    counts = (now.ok, now.failed, now.cancelled, now.running, now.retrying, now.queued)
    assert counts == (1, 1, 0, 2, 1, 0)  # the slot of task 0 has gone on to another one
    assert sum(counts) == 5


def test_waiting_ends_with_the_reason_when_nothing_more_will_come() -> None:
    tracker = _tracker()
    future = _future(tracker, 0)
    tracker.fail(RuntimeError("closed"))
    with pytest.raises(RuntimeError, match="closed"):
        tracker.wait(lambda: False, 5)
    with pytest.raises(RuntimeError, match="closed"):
        future.result(60)


def test_a_future_has_all_fields_of_the_base_class() -> None:
    """It does not call the base class's constructor."""
    mine = _future(_tracker(), 0)
    fields = set(vars(concurrent.futures.Future())) - {"_condition"}
    assert fields <= set(vars(mine))
    assert mine._condition is mine._condition
