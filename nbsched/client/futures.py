"""`Future`: one task. A ``concurrent.futures.Future`` that can cancel running work,
run again, and be awaited."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import queue
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ALL_COMPLETED, CancelledError
from typing import Any, NamedTuple, Protocol, runtime_checkable

from nbsched.client.delivery import callbacks
from nbsched.client.interrupts import (
    OnInterrupt,
    ends_job_on_interrupt,
    ends_jobs_on_interrupt,
)
from nbsched.client.progress import has_turns, in_turns, view_factory
from nbsched.client.results import Segment
from nbsched.client.tasks import TaskOfFuture, TaskTable
from nbsched.client.tracker import JobTracker
from nbsched.model import JobId

_PENDING, _RUNNING = "PENDING", "RUNNING"
_NOTIFIED, _FINISHED = "CANCELLED_AND_NOTIFIED", "FINISHED"

_making = threading.RLock()  # a finalizer that runs meanwhile may ask a future, too
"""Held while a future gets its condition, or ends without one. Nothing else is locked in it."""

if sys.version_info >= (3, 11):
    _LateError = TimeoutError
else:  # there, that of concurrent.futures is another class

    class _LateError(TimeoutError, concurrent.futures.TimeoutError):
        """Not in time, whichever of the two is expected."""


class Future(concurrent.futures.Future):  # type: ignore[type-arg]
    """The result of one task, now or later (PEP 3148, and awaitable).

    Differences: ``cancel()`` also stops a running task, and ``cancelled()`` is true
    once its worker has confirmed it; ``retry()`` puts the same future back to pending.
    """

    def __init__(
        self,
        tracker: JobTracker,
        index: int,
        cancel: Callable[[list[int]], bool],
        retry: Callable[[list[int]], int],
        on_interrupt: OnInterrupt = "cancel",
    ) -> None:
        # Not the base class's: making a condition takes longer than all the rest, and most
        # futures are never waited for. It is made when somebody wants it.
        self._own_condition: threading.Condition | None = None
        self._state: str = _PENDING
        self._result: Any = None
        self._exception: BaseException | None = None
        self._waiters: list[Any] = []
        self._done_callbacks: list[Callable[[Any], object]] = []
        self._tracker = tracker
        self._cancel_tasks = cancel
        self._retry_tasks = retry
        self._on_interrupt = on_interrupt
        self._shown: TaskOfFuture | None = None
        self._settled: Segment | None = None
        """The outcome that this future shows."""
        self.index = index
        """The task's position in its job."""

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        condition = self._own_condition or threading.Condition()
        with _making:
            if self._own_condition is None:
                self._own_condition = condition
            return self._own_condition

    @property
    def job_id(self) -> JobId:
        """For ``cluster.attach(job_id)``."""
        return self._tracker.id

    def __repr__(self) -> str:
        return f"<nbsched.Future {self.job_id}[{self.index}] {self._describe()}>"

    def _subject(self) -> TaskOfFuture:
        if self._shown is None:  # kept: a display holds it weakly once the task has ended
            table = TaskTable(self._tracker, self._cancel_tasks, self._retry_tasks)
            self._shown = TaskOfFuture(self._tracker, self.index, table)
        return self._shown

    def _ipython_display_(self) -> None:
        views = view_factory()
        if views is None or not views.display_task(self._subject()):
            print(repr(self))

    def _repr_mimebundle_(self, **_: object) -> dict[str, object]:
        views = view_factory()
        if views is None:
            return {"text/plain": repr(self)}
        return views.task_mimebundle(self._subject())

    def _describe(self) -> str:
        if self.cancelled():
            return "cancelled"
        if not self.done():
            return "running" if self.running() else "pending"
        error = super().exception()
        return "finished" if error is None else f"failed: {type(error).__name__}"

    # ------------------------------------------------------------ for users

    @property
    def stdout(self) -> str:
        """What the task has printed; of more than 64 Ki characters the first 16 Ki and the
        last 48 Ki. While it runs the newest 16 KiB, at most a second old. After
        ``retry()`` that of the new attempt. What programs and C libraries print comes
        behind what Python does."""
        return self._tracker.output(self.index)[0]

    @property
    def stderr(self) -> str:
        """The same of stderr, where ``logging`` and ``warnings`` write."""
        return self._tracker.output(self.index)[1]

    def done(self) -> bool:
        """Whether the task has ended."""
        self._catch_up()
        return self._over()

    def cancelled(self) -> bool:
        """Whether the task was cancelled, and has stopped."""
        self._catch_up()
        return self._state == _NOTIFIED

    def _catch_up(self) -> None:
        """Who waits for the whole job may be woken before the delivery thread has come to
        this future. Not to be called while its condition is held."""
        if not self._over() and self._tracker.outcome(self.index) is not None:
            self._resolve()

    def _over(self) -> bool:
        return self._state in (_NOTIFIED, _FINISHED)

    def cancel(self) -> bool:
        """Stop the task, queued or running. False when it has already ended.

        The request is durable when this returns; the future is ``cancelled()`` when
        the worker has confirmed that the task has stopped.
        """
        return self._cancel_tasks([self.index])

    def retry(self) -> bool:
        """Run the task again; this same future goes back to pending.

        False, and nothing happens, while the task has not ended, or when the cluster never
        had it: its job was cancelled before it was uploaded. Submit it anew.
        """
        return self._retry_tasks([self.index]) > 0

    def result(self, timeout: float | None = None) -> Any:
        """The task's result; waits up to ``timeout`` seconds.

        Raises:
            TimeoutError: it has not ended in time.
            CancelledError: it was cancelled.
            BaseException: what the task raised, with its remote traceback.
        """
        settled, result = self._settled, self._result
        ended = self._state == _FINISHED and self._exception is None
        silent = self._tracker.printer is None
        if ended and silent and settled is not None and self._settled is settled:
            return result  # no retry has come between these lines
        with ends_job_on_interrupt(self, self._on_interrupt), self._tracker.printing():
            try:
                return super().result(self._sit(timeout))
            except concurrent.futures.TimeoutError as error:
                raise self._explained(error, timeout) from error.__cause__

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the task raised, or None; waits up to ``timeout`` seconds."""
        with ends_job_on_interrupt(self, self._on_interrupt), self._tracker.printing():
            try:
                return super().exception(self._sit(timeout))
            except concurrent.futures.TimeoutError as error:
                raise self._explained(error, timeout) from error.__cause__

    def _sit(self, timeout: float | None) -> float | None:
        """Wait where a display needs turns; returns how long to wait now."""
        if self.done() or not has_turns():
            return timeout

        def ends(seconds: float | None) -> bool:
            with self._condition:
                return self._condition.wait_for(self._over, seconds)

        return timeout if in_turns(ends, timeout) and timeout is None else 0

    def _explained(self, error: BaseException, timeout: float | None) -> BaseException:
        """The error itself if the task raised it, else one that says what to do."""
        if error is self._exception:
            return error
        return _LateError(
            f"Task {self.index} of job {self.job_id} has not ended within {timeout} s. It goes"
            " on; wait again, or cancel() it."
        )

    def __await__(self) -> Generator[Any, None, Any]:
        return asyncio.wrap_future(self).__await__()

    # ------------------------------------------------------------ for the tracker

    def _mark_running(self) -> None:
        with self._condition:
            if self._state == _PENDING:
                self._state = _RUNNING

    def _reopen(self) -> None:
        with self._condition:
            self._state = _PENDING
            self._result = None
            self._exception = None
            self._settled = None

    def _resolve(self) -> None:
        """Take over the task's outcome: unpickles it, wakes waiters, runs callbacks."""
        while (segment := self._tracker.outcome(self.index)) is not None:
            if self._settled is segment:
                return
            error = None if segment.cancelled else segment.exception(self.index)
            value = None if segment.cancelled or error is not None else segment.value(self.index)
            with self._tracker.changed:
                # While it was unpickled, a retry may have made it an old one.
                if not self._tracker.is_outcome(self.index, segment):
                    continue
                self._end(segment, value, error)
            return

    def _fail(self, error: BaseException) -> None:
        if not self._over():
            self._end(None, None, error)

    def _end(self, segment: Segment | None, value: Any, error: BaseException | None) -> None:
        """End like this, whatever an earlier end was; the base class ends only once."""
        cancelled = segment is not None and segment.cancelled
        with _making:
            if self._own_condition is None:  # nobody waits, nobody has set a callback
                self._settle(segment, value, error, cancelled)
                return
        with self._condition:
            if segment is not None and self._settled is segment:
                return  # another thread was quicker
            self._settle(segment, value, error, cancelled)
            for waiter in self._waiters:
                if cancelled:
                    waiter.add_cancelled(self)
                elif error is not None:
                    waiter.add_exception(self)
                else:
                    waiter.add_result(self)
            # Each is called once, and not again after a retry.
            to_call = list(self._done_callbacks)
            self._done_callbacks.clear()
            self._condition.notify_all()
        for callback in to_call:
            callbacks().put(functools.partial(callback, self))

    def _settle(
        self, segment: Segment | None, value: Any, error: BaseException | None, cancelled: bool
    ) -> None:
        self._settled = segment
        self._result, self._exception = value, error
        self._state = _NOTIFIED if cancelled else _FINISHED


@runtime_checkable
class HasFutures(Protocol):
    """A `MapFuture`: many tasks."""

    def futures(self) -> list[Future]: ...


AnyFuture = Future | HasFutures


class DoneAndNotDone(NamedTuple):
    """What `wait` returns."""

    done: set[Future]
    not_done: set[Future]


def _flat(futures: AnyFuture | Iterable[AnyFuture]) -> list[Future]:
    """Single futures, whatever mixture of futures and maps was given."""
    if isinstance(futures, Future):
        return [futures]
    if isinstance(futures, HasFutures):  # before Iterable: a map iterates over results
        return futures.futures()
    flat: list[Future] = []
    for item in futures:
        flat += [item] if isinstance(item, Future) else item.futures()
    return flat


def as_completed(
    futures: AnyFuture | Iterable[AnyFuture], timeout: float | None = None
) -> Iterator[Future]:
    """The futures in the order in which they end. Maps count as all their tasks.

    Raises:
        TimeoutError: not all have ended ``timeout`` seconds after the call.
    """
    flat: Any = _flat(futures)  # typing does not know that a condition may be a property
    with ends_jobs_on_interrupt(flat):
        ended: Iterator[Any] = _ended(flat, timeout)
        while (future := next(ended, None)) is not None:
            yield future


def _ended(flat: Any, timeout: float | None) -> Iterator[Any]:
    """As ``concurrent.futures.as_completed``, in turns where a display needs them."""
    if not has_turns():
        yield from concurrent.futures.as_completed(flat, timeout)
        return
    deadline = None if timeout is None else time.monotonic() + timeout
    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
    waited_for = dict.fromkeys(flat)
    for future in waited_for:
        future.add_done_callback(ended.put)
    for number in range(len(waited_for)):
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        got: list[Any] = []

        def ends(seconds: float | None, got: list[Any] = got) -> bool:
            with contextlib.suppress(queue.Empty):
                got.append(ended.get(timeout=seconds))
            return bool(got)

        if not in_turns(ends, left):
            raise _LateError(f"{len(waited_for) - number} (of {len(flat)}) futures unfinished")
        yield got[0]


def _wait(flat: Any, timeout: float | None, return_when: str) -> Any:
    ended: Any = None

    def ends(seconds: float | None) -> bool:
        nonlocal ended
        ended = concurrent.futures.wait(flat, seconds, return_when)
        return not ended.not_done or (
            return_when != ALL_COMPLETED and _is_enough(ended.done, return_when)
        )

    in_turns(ends, timeout)
    return ended


def _is_enough(done: Any, return_when: str) -> bool:
    if return_when == concurrent.futures.FIRST_COMPLETED:
        return bool(done)
    return any(not f.cancelled() and f.exception() is not None for f in done)


def wait(
    futures: AnyFuture | Iterable[AnyFuture],
    timeout: float | None = None,
    return_when: str = ALL_COMPLETED,
) -> DoneAndNotDone:
    """Wait as ``concurrent.futures.wait`` does; maps count as all their tasks."""
    flat = _flat(futures)
    with ends_jobs_on_interrupt(flat):
        ended = _wait(flat, timeout, return_when)
    return DoneAndNotDone(set(ended.done), set(ended.not_done))


__all__ = ["CancelledError", "Future", "as_completed", "wait"]
