"""`MapFuture`: all tasks of one ``map`` call, without an object per task."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import CancelledError
from typing import Any, Literal, overload

from nbsched.client import printing
from nbsched.client.forgetting import forget
from nbsched.client.futures import Future
from nbsched.client.incomplete import sealed_without_us, warn_if_incomplete
from nbsched.client.interrupts import OnInterrupt, ends_job_on_interrupt
from nbsched.client.printing import Lines
from nbsched.client.progress import Progress, shown_while_waiting, view_factory
from nbsched.client.requests import cancel_job, cancel_tasks, retry_tasks
from nbsched.client.results import TaskState
from nbsched.client.session import Session
from nbsched.client.tasks import TaskTable
from nbsched.client.tracker import JobTracker
from nbsched.client.upload import Upload
from nbsched.errors import NbschedError
from nbsched.indexset import IndexSet
from nbsched.model import JobId
from nbsched.settings import ProgressMode

_TURN_S = 0.5

log = logging.getLogger(__name__)


class MapFuture:
    """The tasks of a job: iterate for results, index for futures, ask for progress.

    ``for r in mf`` gives results in input order as they arrive; ``mf[i]`` the `Future`
    of item ``i``; ``mf.result()`` and ``await mf`` the list of all results.
    """

    def __init__(
        self,
        session: Session,
        tracker: JobTracker,
        *,
        return_exceptions: bool = False,
        on_interrupt: OnInterrupt = "cancel",
        upload: Upload | None = None,
        progress: ProgressMode | None = None,
        item_text: Callable[[int], str] | None = None,
    ) -> None:
        self._session = session
        self._tracker = tracker
        self._return_exceptions = return_exceptions
        self._on_interrupt: OnInterrupt = on_interrupt
        self._progress_mode = progress
        self._upload = upload
        """Where more items come from, until it is at its end."""
        self._item_text = item_text

    # ------------------------------------------------------------ what it is

    @property
    def id(self) -> JobId:
        """The job's id, for ``cluster.attach``."""
        return self._tracker.id

    @property
    def job_id(self) -> JobId:
        """The same as ``id``, as on a `Future`."""
        return self._tracker.id

    @property
    def progress(self) -> Progress:
        """A snapshot of where the job is."""
        return self._tracker.progress()

    @property
    def tasks(self) -> TaskTable:
        """The tasks as rows: which failed and why, which run where and how long."""
        return TaskTable(self._tracker, self._cancel, self._retry, self._item_text)

    @property
    def progress_mode(self) -> ProgressMode:
        """How waiting for the job shows its progress: its own option, or the cluster's
        ``progress`` setting, which can also silence all."""
        general = self._session.settings.progress
        return general if general == "off" or self._progress_mode is None else self._progress_mode

    def __len__(self) -> int:
        """The number of tasks. Raises TypeError while items are still being uploaded."""
        if self._tracker.total is None:
            raise TypeError(f"Job {self.id} is still being uploaded: its length is not known yet.")
        return self._tracker.total

    def __repr__(self) -> str:
        now = self.progress
        known = now.total if now.total is not None else f"{now.uploaded}+"
        return f"<nbsched.MapFuture {self.id} {now.name!r} {now.state} {now.done}/{known}>"

    def _ipython_display_(self) -> None:
        views = view_factory()
        if views is None or not views.display(self):
            print(repr(self))

    def _repr_mimebundle_(self, **_: object) -> dict[str, object]:
        views = view_factory()
        return {"text/plain": repr(self)} if views is None else views.mimebundle(self)

    # ------------------------------------------------------------ single tasks

    @overload
    def __getitem__(self, index: int) -> Future: ...
    @overload
    def __getitem__(self, index: slice) -> list[Future]: ...
    def __getitem__(self, index: int | slice) -> Future | list[Future]:
        """The future(s) of one item or of a slice of items."""
        known = self._tracker.known
        if isinstance(index, slice):
            return [self._future(i) for i in range(*index.indices(known))]
        position = index + known if index < 0 else index
        if not 0 <= position < known:
            raise IndexError(f"Job {self.id} has {known} tasks; there is no task {index}.")
        return self._future(position)

    def _future(self, index: int) -> Future:
        return self._tracker.future(index, self._make_future)

    def _make_future(self, index: int) -> Future:
        return Future(self._tracker, index, self._cancel, self._retry, self._on_interrupt)

    def futures(self) -> list[Future]:
        """All futures, in input order. One object per task: prefer ``mf[i]``."""
        with ends_job_on_interrupt(self, self._on_interrupt):
            self._drain()
        return self[:]

    def failures(self) -> list[Future]:
        """The futures of the tasks that have failed so far."""
        return [self._future(index) for index in self._tracker.all_in(TaskState.FAILED)]

    # ------------------------------------------------------------ what tasks print

    @overload
    def tail(self, lines: int = 10) -> Lines: ...
    @overload
    def tail(self, lines: int = 10, *, follow: Literal[True]) -> None: ...
    def tail(self, lines: int = 10, *, follow: bool = False) -> Lines | None:
        """The last lines that tasks have printed, each with its task's index: ``[3] text``.

        With ``follow=True`` they are printed as they come, until the job has ended;
        Ctrl-C ends the following, not the job; but a map with a ``buffersize`` is uploaded
        meanwhile, and then ends with the items that it has. A flood is cut to 200 lines a
        second and 5,000 in all. `Future.stdout` has the text of one task. Who attaches while a
        task runs has what it prints from then on, and all of it when it has ended.
        """
        if not follow:
            return Lines("\n".join(map(str, self._tracker.last_lines(lines))))
        printing.follow(self._tracker, lines, self._drain)
        return None

    # ------------------------------------------------------------ results

    def __iter__(self) -> Iterator[Any]:
        """Results in input order, each as soon as it and those before it are there.

        Raises a task's exception at its place, unless ``return_exceptions`` is set.
        """
        index = 0
        with self._waiting():
            while self._exists(index):
                self._wait_for(index)
                values = self._outcomes(index)
                yield from values
                index += len(values)

    def as_completed(self, timeout: float | None = None) -> Iterator[Future]:
        """Futures in the order in which their tasks end, each once.

        Raises TimeoutError when not all have ended ``timeout`` seconds after the start.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        seen, given = 0, IndexSet()
        with self._waiting():
            self._drain(deadline)
            while self._tracker.total is None or len(given) < self._tracker.total:
                arrived = self._tracker.arrivals(seen)
                seen += len(arrived)
                for start, stop in arrived:
                    for low, high in given.missing(start, stop):
                        given.add(low, high)
                        yield from (self._future(index) for index in range(low, high))
                if not arrived and not self._wait_for_arrival(seen, deadline):
                    raise TimeoutError(f"Only {len(given)} tasks of job {self.id} ended in time.")

    def _wait_for_arrival(self, seen: int, deadline: float | None) -> bool:
        return self._tracker.wait(
            lambda: bool(self._tracker.arrivals(seen)) or self._tracker.finished, _left(deadline)
        )

    def result(self, timeout: float | None = None) -> list[Any]:
        """The list of all results, in input order.

        Raises as soon as a task has failed for good (the others go on; see
        ``failures()``), unless ``return_exceptions`` is set.

        Raises:
            TimeoutError: not all have ended within ``timeout`` seconds.
            CancelledError: a task was cancelled.
            BaseException: what a task raised, with its remote traceback.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._waiting():
            self._drain(deadline)
            if not self._tracker.wait(self._decided, _left(deadline)):
                now = self.progress
                raise TimeoutError(
                    f"Job {self.id} has not ended within {timeout} s: {now.done} of"
                    f" {now.total} tasks have. It goes on; wait again, or cancel() it."
                )
        return self._results()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until every task has ended; False when the time is over first."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._waiting():
            self._drain(deadline)
            return self._tracker.wait(lambda: self._tracker.finished, _left(deadline))

    def __await__(self) -> Generator[Any, None, list[Any]]:
        return self._async_result().__await__()

    async def _async_result(self) -> list[Any]:
        while self._upload is not None:  # in turns, so that a cancelled wait leaves no thread
            await asyncio.to_thread(self._drain, time.monotonic() + _TURN_S)
        with shown_while_waiting(self), self._tracker.printing():
            await self._until(self._decided)
        return self._results()

    async def _until(self, holds: Callable[[], bool]) -> None:
        """Wait on the event loop. Raises the tracker's failure."""
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(changed.set)

        self._tracker.listen(wake)
        try:
            while not holds():
                if self._tracker.failure is not None:
                    raise self._tracker.failure
                await changed.wait()
                changed.clear()
        finally:
            self._tracker.unlisten(wake)

    async def __aiter__(self) -> AsyncIterator[Any]:
        """Results in input order, as ``for``, while the event loop goes on."""
        index = 0
        with self._waiting():
            while await self._turns(self._exists, index):
                await self._until(lambda index=index: self._ended(index))  # type: ignore[misc]
                values = self._outcomes(index)
                for value in values:
                    yield value
                index += len(values)

    async def _turns(self, ask: Callable[[int], bool], index: int) -> bool:
        """Ask on another thread, which may upload items, unless the answer is known here."""
        if index < self._tracker.known:
            return True
        if self._upload is None and self._tracker.total is not None:
            return False
        return await asyncio.to_thread(ask, index)

    def _decided(self) -> bool:
        """Whether `result` can return or raise."""
        if self._tracker.finished:
            return True
        return not self._return_exceptions and self._tracker.count(TaskState.FAILED) > 0

    def _results(self) -> list[Any]:
        warn_if_incomplete(self._tracker)
        if not self._return_exceptions:
            failed = self._tracker.first(TaskState.FAILED)
            if failed is not None:
                return [self._tracker.value(failed)]  # raises
            if self._tracker.count(TaskState.CANCELLED):
                raise CancelledError()
        results: list[Any] = []
        while len(results) < self._tracker.known:
            results += self._outcomes(len(results))
        return results

    def _outcomes(self, start: int) -> list[Any]:
        """What the tasks from ``start`` on have ended with, as far as it came together.

        Raises JobIncompleteError behind what had arrived when the leader sealed the job.
        """
        sealed_at = self._tracker.sealed_at
        if sealed_at is not None and start >= sealed_at:
            raise sealed_without_us(self._tracker)
        if self._return_exceptions:
            error = self._tracker.exception(start)
            if error is not None:
                return [error]
        return self._tracker.values(start)

    def _wait_for(self, index: int) -> None:
        self._tracker.wait(lambda: self._ended(index), None)

    def _ended(self, index: int) -> bool:
        return self._tracker.state(index) is not TaskState.PENDING

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        """Around a call that waits: Ctrl-C counts from before the display is drawn."""
        with (
            ends_job_on_interrupt(self, self._on_interrupt),
            shown_while_waiting(self),
            self._tracker.printing(),
        ):
            yield

    # ------------------------------------------------------------ state and control

    def done(self) -> bool:
        """Whether every task has ended."""
        return self._tracker.finished

    def cancelled(self) -> bool:
        """Whether the job has ended and some of its tasks were cancelled."""
        return self.done() and self._tracker.count(TaskState.CANCELLED) > 0

    def cancel(self) -> bool:
        """Stop every task that has not ended, queued or running. False when all have.

        The request is durable when this returns; ``wait()`` waits for its effect.
        """
        if self.done():
            return False
        try:
            if self._upload is not None:
                self._upload.stop()  # first: a job that has its total ends with it
        except NbschedError as error:
            log.warning("job=%s its upload could not be ended: %s", self.id, error)
        cancel_job(self._session, self._tracker)
        return True

    def retry(self) -> int:
        """Run again what failed or was cancelled; returns how many tasks that are.

        Not among them: tasks whose items had not been uploaded when the job was cancelled.
        """
        return self._retry(self._tracker.all_in(TaskState.FAILED, TaskState.CANCELLED))

    def forget(self) -> None:
        """Delete the job for good: its record, its inputs and results.

        The job must have ended: ``cancel()`` and ``wait()`` come first if it has not.
        This object keeps the results that it has loaded; ``attach`` does not find the
        job any more, and nothing of it can be retried.

        Raises:
            JobNotEndedError: it is still waiting or running.
            JobNotFoundError: it is gone already.
        """
        self._session.run(forget(self._session, self.id))

    def _cancel(self, indices: list[int]) -> bool:
        return cancel_tasks(self._session, self._tracker, indices)

    def _retry(self, indices: list[int]) -> int:
        return retry_tasks(self._session, self._tracker, indices)

    # ------------------------------------------------------------ uploading on demand

    def _exists(self, index: int) -> bool:
        """Whether there is a task ``index``; uploads or waits to find out."""
        if self._upload is not None and not self._upload.advance(index):
            self._upload = None
        self._tracker.wait(
            lambda: index < self._tracker.known or self._tracker.total is not None, None
        )
        return index < self._tracker.known

    def _drain(self, deadline: float | None = None) -> None:
        """Upload all that is left, as somebody wants everything; at most until then."""
        if self._upload is not None and not self._upload.advance(-1, deadline):
            self._upload = None


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())
