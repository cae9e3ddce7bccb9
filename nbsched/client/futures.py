"""`Future`: one task. A ``concurrent.futures.Future`` that can cancel running work,
run again, and be awaited."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ALL_COMPLETED, CancelledError
from typing import Any, NamedTuple, Protocol, runtime_checkable

from nbsched.client.interrupts import OnInterrupt, ends_job_on_interrupt
from nbsched.client.results import TaskState
from nbsched.client.tracker import JobTracker
from nbsched.model import JobId

_PENDING, _RUNNING = "PENDING", "RUNNING"
_CANCELLED, _NOTIFIED, _FINISHED = "CANCELLED", "CANCELLED_AND_NOTIFIED", "FINISHED"


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
        super().__init__()
        self._tracker = tracker
        self._cancel_tasks = cancel
        self._retry_tasks = retry
        self._on_interrupt = on_interrupt
        self.index = index
        """The task's position in its job."""

    @property
    def job_id(self) -> JobId:
        """For ``cluster.attach(job_id)``."""
        return self._tracker.id

    def __repr__(self) -> str:
        return f"<nbsched.Future {self.job_id}[{self.index}] {self._describe()}>"

    def _describe(self) -> str:
        if self.cancelled():
            return "cancelled"
        if not self.done():
            return "running" if self.running() else "pending"
        error = super().exception()
        return "finished" if error is None else f"failed: {type(error).__name__}"

    # ------------------------------------------------------------ for users

    def cancel(self) -> bool:
        """Stop the task, queued or running. False when it has already ended.

        The request is durable when this returns; the future is ``cancelled()`` when
        the worker has confirmed that the task has stopped.
        """
        return self._cancel_tasks([self.index])

    def retry(self) -> bool:
        """Run the task again; this same future goes back to pending.

        False, and nothing happens, while the task has not ended.
        """
        return self._retry_tasks([self.index]) > 0

    def result(self, timeout: float | None = None) -> Any:
        """The task's result; waits up to ``timeout`` seconds.

        Raises:
            TimeoutError: it has not ended in time.
            CancelledError: it was cancelled.
            BaseException: what the task raised, with its remote traceback.
        """
        with ends_job_on_interrupt(self, self._on_interrupt):
            return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the task raised, or None; waits up to ``timeout`` seconds."""
        with ends_job_on_interrupt(self, self._on_interrupt):
            return super().exception(timeout)

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

    def _resolve(self) -> None:
        """Take over the task's outcome: unpickles it, wakes waiters, runs callbacks."""
        state = self._tracker.state(self.index)
        if state is TaskState.PENDING or self.done():
            return
        if state is TaskState.CANCELLED:
            self._end_cancelled()
            return
        try:
            error = self._tracker.exception(self.index)
            if error is None:
                self.set_result(self._tracker.value(self.index))
            else:
                self.set_exception(error)
        except concurrent.futures.InvalidStateError:
            return  # another thread was quicker

    def _fail(self, error: BaseException) -> None:
        if not self.done():
            self.set_exception(error)

    def _end_cancelled(self) -> None:
        with self._condition:
            if self._state not in (_PENDING, _RUNNING):
                return
            self._state = _PENDING  # the base class cancels nothing that runs
        super().cancel()
        self.set_running_or_notify_cancel()


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
    ended: Iterator[Any] = concurrent.futures.as_completed(_flat(futures), timeout)
    yield from ended


def wait(
    futures: AnyFuture | Iterable[AnyFuture],
    timeout: float | None = None,
    return_when: str = ALL_COMPLETED,
) -> DoneAndNotDone:
    """Wait as ``concurrent.futures.wait`` does; maps count as all their tasks."""
    ended: Any = concurrent.futures.wait(_flat(futures), timeout, return_when)
    return DoneAndNotDone(set(ended.done), set(ended.not_done))


__all__ = ["CancelledError", "Future", "as_completed", "wait"]
