"""One job as its client sees it, safe to touch from any thread.

The session feeds outcomes and reports in on the I/O thread; users wait, ask and
cancel on theirs. The lock is held for bookkeeping only: nothing is unpickled and no
callback runs under it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Protocol, TypeVar, cast

from nbsched.client.delivery import delivery
from nbsched.client.progress import Progress, in_turns
from nbsched.client.results import ResultStore, Segment, TaskState
from nbsched.client.tasklog import TaskLog
from nbsched.client.transcript import Line, Transcript
from nbsched.indexset import Range
from nbsched.messages import Outcome, OutcomeState, PrintedText
from nbsched.model import ClientId, JobId, JobRecord, TaskRange, WorkerId
from nbsched.payload.sharedfolder import SharedFolder

log = logging.getLogger(__name__)


class TaskFuture(Protocol):
    """A future as its tracker sees it: it is told what happens to its task."""

    def _mark_running(self) -> None: ...

    def _resolve(self) -> None:
        """The outcome is there; called on the delivery thread."""

    def _fail(self, error: BaseException) -> None:
        """No outcome will come, unless one is there already."""

    def _reopen(self) -> None:
        """The task runs again."""


class Printer(Protocol):
    """Prints what the job's tasks print."""

    def start(self) -> None:
        """Until the job has ended."""

    def here(self) -> AbstractContextManager[None]:
        """While a call waits: in its cell."""


F = TypeVar("F", bound=TaskFuture)
T = TypeVar("T")


def _resolve_all(futures: Sequence[TaskFuture]) -> None:
    for future in futures:
        try:
            future._resolve()
        except Exception:  # the others must not wait for ever
            log.exception("A future could not be resolved")


class JobTracker:
    """Everything a client knows of one job."""

    def __init__(
        self, record: JobRecord, interest: object = None, folder: SharedFolder | None = None
    ) -> None:
        """``interest`` is held, not used: it keeps the connection open for futures."""
        self.id: JobId = record.id
        self.client: ClientId = record.client
        self.record = record
        self._interest = interest
        self.changed = threading.Condition()
        self.failure: BaseException | None = None
        """Why nothing more will come: the cluster was closed, the upload failed."""
        self.committed = False
        """Its record has been written: if it is not there, the job is gone."""
        self.retried = False
        """Tasks were to run again: an end that is recorded may be an earlier one."""
        self._store = ResultStore(self.id, folder)
        self.tasks = TaskLog()
        """Where tasks run; to be looked at while ``changed`` is held."""
        self._transcript = Transcript()
        self.sealed_at: int | None = record.total if record.abandoned else None
        """The leader has sealed it with so many tasks while its client was away: there may
        be items that are not in it."""
        self._total: int | None = record.total
        self._uploaded = record.total or 0
        self._taken_on: int | None = None
        """The first task that the cluster never had, if there is one: it cannot run again."""
        self._arrivals: list[Range] = []
        """Tasks in the order in which they ended."""
        self._running: dict[WorkerId, frozenset[int]] = {}
        self._futures: weakref.WeakValueDictionary[int, TaskFuture] = weakref.WeakValueDictionary()
        self._listeners: list[Callable[[], None]] = []
        self._started = time.monotonic() - max(0.0, time.time() - record.submitted_at)
        self._ended: float | None = None
        self._note = ""
        self.printer: Printer | None = None
        """Prints what its tasks print, where that is wanted (``stream_output``)."""
        if record.total is not None:
            self._store.grow(record.total)
            self._check_end()

    # ------------------------------------------------------------ fed by the session

    def uploaded(self, count: int) -> None:
        """So many items are on their way. If the job has its total already, it was sealed or
        cancelled meanwhile, and nobody takes on the rest."""
        with self.changed:
            self._uploaded = max(self._uploaded, count)
            self._store.grow(self._uploaded)
            total = self._total
            self.changed.notify_all()
        if total is not None:
            self.seal(total, without_client=self.sealed_at is not None)

    def seal(self, total: int, *, without_client: bool = False) -> None:
        """The number of tasks is known now.

        What was uploaded beyond it nobody took on: the job was cancelled before, or
        sealed by the leader while its client was away (``without_client``).
        """
        self.sealed_at = total if without_client else None
        if total < self._uploaded:
            beyond = Outcome(total, self._uploaded, 0, 0, OutcomeState.CANCELLED)
            self.take_in([beyond], b"")
            if self._taken_on is None:  # later ones come on top of those
                self._taken_on = total
        with self.changed:
            self._total = self._uploaded = max(self._uploaded, total)
            self._store.grow(self._total)
            self._check_end()
            self.changed.notify_all()
            listeners = list(self._listeners)
        self._tell(listeners)

    def take_in(
        self, outcomes: Sequence[Outcome], body: bytes, worker: WorkerId | None = None
    ) -> None:
        """Outcomes came, with their bytes one after another in ``body``."""
        view = memoryview(body)
        at = 0
        with self.changed:
            resolved: list[TaskFuture] = []
            for outcome in outcomes:
                size = outcome.body_bytes
                ended = self._store.apply(outcome, view[at : at + size])
                for start, stop in ended:
                    self._arrivals.append((start, stop))
                    resolved += self._live_futures(start, stop)
                own = view[at : at + size - sum(outcome.output)]
                if worker is not None:
                    self.tasks.ended(worker, outcome, own, len(self._store))
                if any(outcome.output) and (ended or outcome.state is OutcomeState.RETRY):
                    self._transcript.ended(worker, outcome, bytes(view[at + len(own) : at + size]))
                for start, stop in ended:
                    self._transcript.ended_silently(start, stop)
                at += size
            self._check_end()
            self.changed.notify_all()
            listeners = list(self._listeners)
        if resolved:
            delivery().put(partial(_resolve_all, resolved))
        self._tell(listeners)

    def told(self, worker: WorkerId, printed: Sequence[PrintedText]) -> None:
        """Running tasks have printed this."""
        with self.changed:
            self._transcript.told(worker, [p for p in printed if self._runs(p)])
            listeners = list(self._listeners)
        self._tell(listeners)

    def _runs(self, part: PrintedText) -> bool:
        """Whether this is news of a task that has no outcome yet."""
        index = part.index
        known = index < len(self._store)
        return not known or (self._pending(index) and self._store.round(index) <= part.round)

    def report(self, worker: WorkerId, runs: Mapping[int, tuple[int, float]]) -> None:
        """A worker said which tasks of this job it runs: attempt and seconds, by index."""
        running = frozenset(runs)
        with self.changed:
            self.tasks.runs_on(worker, runs)
            started = running - self._running.get(worker, frozenset())
            if running:
                self._running[worker] = running
            else:
                self._running.pop(worker, None)
            for index in started:
                self._store.started(index)
                future = self._futures.get(index)
                if future is not None and self._pending(index):
                    future._mark_running()

    def keep_workers(self, members: Collection[WorkerId]) -> None:
        """Workers that are not there any more run nothing."""
        with self.changed:
            for worker in set(self._running) - set(members):
                del self._running[worker]
            self.tasks.keep_workers(members)

    def set_note(self, note: str) -> None:
        """Why the job does not move, for people; empty when it does."""
        with self.changed:
            self._note = note

    def fail(self, error: BaseException) -> None:
        """Nothing more will come. Waiting calls raise ``error``."""
        with self.changed:
            if self.finished:
                return
            self.failure = error
            futures = [f for f in list(self._futures.values()) if f is not None]
            self.changed.notify_all()
            listeners = list(self._listeners)
        for future in futures:
            delivery().put(lambda future=future: future._fail(error))  # type: ignore[misc]
        self._tell(listeners)

    def _check_end(self) -> None:
        if self.finished:
            if self._ended is None:
                self._ended = time.monotonic()
            self._running.clear()
            self.tasks.clear_runs()
        else:
            self._ended = None

    def _live_futures(self, start: int, stop: int) -> list[TaskFuture]:
        if not self._futures:
            return []
        if stop - start > len(self._futures):
            pairs = list(self._futures.items())
            return [future for index, future in pairs if start <= index < stop]
        found = (self._futures.get(index) for index in range(start, stop))
        return [future for future in found if future is not None]

    def _tell(self, listeners: list[Callable[[], None]]) -> None:
        for listener in listeners:
            try:
                listener()
            except Exception:
                log.exception("job=%s a listener failed and is dropped", self.id)
                self.unlisten(listener)

    # ------------------------------------------------------------ asked by users

    @property
    def total(self) -> int | None:
        return self._total

    @property
    def known(self) -> int:
        """Tasks uploaded so far."""
        return self._uploaded

    @property
    def finished(self) -> bool:
        """Every task of the sealed job has ended."""
        pending = self._store.count(TaskState.PENDING)
        return self._total is not None and not pending and len(self._store) >= self._total

    def outcome(self, index: int) -> Segment | None:
        """What a task has ended with, not unpickled yet; None: it has not ended."""
        with self.changed:
            return self._store.segment(index)

    def is_outcome(self, index: int, segment: Segment) -> bool:
        """Whether a task's outcome is (still) this one; ask while ``changed`` is held."""
        return self._store.segment(index) is segment

    def state(self, index: int) -> TaskState:
        with self.changed:
            return self._store.state(index)

    def _pending(self, index: int) -> bool:
        return self._store.state(index) is TaskState.PENDING

    def look(self, ask: Callable[[ResultStore, TaskLog], T]) -> T:
        """What ``ask`` finds in outcomes and runs, which stand still meanwhile."""
        with self.changed:
            return ask(self._store, self.tasks)

    def output(self, index: int) -> tuple[str, str]:
        """What a task has printed to stdout and stderr; so far, while it runs."""
        with self.changed:
            segment = self._store.segment(index)
            if segment is None:
                return self._running_output(index)
        return segment.stdout, segment.stderr

    def _running_output(self, index: int) -> tuple[str, str]:
        text = partial(self._transcript.running_text, index)
        return text(0) + text(2), text(1)

    def print_with(self, printer: Printer) -> None:
        """Have printed what its tasks print, from now on."""
        self.printer = printer
        printer.start()

    def printing(self) -> AbstractContextManager[None]:
        """Around a call that waits for the job."""
        return nullcontext() if self.printer is None else self.printer.here()

    def lines_since(self, count: int) -> tuple[list[Line], int]:
        """The lines that tasks have printed behind the first ``count``, as far as they are
        kept, and how many there have been in all."""
        with self.changed:
            return self._transcript.since(count), self._transcript.count

    def last_lines(self, count: int) -> list[Line]:
        with self.changed:
            return self._transcript.last(count)

    def is_running(self, index: int) -> bool:
        with self.changed:
            return self._pending(index) and any(
                index in running for running in self._running.values()
            )

    def value(self, index: int) -> Any:
        return self._store.value(index)

    def values(self, start: int) -> list[Any]:
        """The results from ``start`` on that can be had at once: see `ResultStore.values`."""
        return self._store.values(start)

    def exception(self, index: int) -> BaseException | None:
        return self._store.exception(index)

    def first(self, state: TaskState) -> int | None:
        """The first task in a state."""
        with self.changed:
            return next(self._store.indices(state), None)

    def all_in(self, *states: TaskState) -> list[int]:
        with self.changed:
            return sorted(index for state in states for index in self._store.indices(state))

    def count(self, state: TaskState) -> int:
        return self._store.count(state)

    def arrivals(self, since: int) -> list[Range]:
        """Tasks that ended, in that order, from the ``since``-th entry on."""
        with self.changed:
            return self._arrivals[since:]

    def wait(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until the condition holds; False when the time is over first.

        Raises ``failure`` when nothing more will come.
        """
        with self.changed:
            if condition():
                return True

        def ends(seconds: float | None) -> bool:
            with self.changed:
                return self.changed.wait_for(
                    lambda: condition() or self.failure is not None, seconds
                )

        held = in_turns(ends, timeout)
        with self.changed:
            if condition():
                return True
            if self.failure is not None:
                raise self.failure
            return held

    def listen(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` (on any thread, quickly) whenever something has changed."""
        with self.changed:
            self._listeners.append(listener)

    def unlisten(self, listener: Callable[[], None]) -> None:
        with self.changed, contextlib.suppress(ValueError):  # dropped, as it had failed
            self._listeners.remove(listener)

    def future(self, index: int, make: Callable[[int], F]) -> F:
        """The future of a task: the same object as long as somebody holds it."""
        with self.changed:
            found = self._futures.get(index)
            if found is not None:
                return cast(F, found)  # the one that an earlier call made
            made = make(index)
            self._futures[index] = made
            ended = not self._pending(index)
            if not ended and self._running and self.is_running(index):
                made._mark_running()
        if ended:
            made._resolve()
        elif self.failure is not None:
            made._fail(self.failure)
        return made

    # ------------------------------------------------------------ cancel and retry

    def to_cancel(self, indices: Sequence[int]) -> tuple[TaskRange, ...]:
        """Those of the tasks that have not ended, with their rounds."""
        with self.changed:
            return self._store.open_ranges(i for i in indices if self._pending(i))

    def to_retry(self, indices: Sequence[int]) -> tuple[TaskRange, ...]:
        """Those of the tasks that have ended, with the rounds that would come next."""
        with self.changed:
            ended = self._store.open_ranges(
                i
                for i in indices
                if not self._pending(i) and (self._taken_on is None or i < self._taken_on)
            )
        return tuple(TaskRange(named.start, named.stop, named.round + 1) for named in ended)

    def reopen(self, ranges: Sequence[TaskRange]) -> None:
        """Put tasks back to pending, in the rounds that are named.

        A task that is in its round already stays as it is: its outcome was quicker. Its future
        must show that when this returns, however busy the delivery thread is.
        """
        quick: list[TaskFuture] = []
        with self.changed:
            self.retried = True
            for named in ranges:
                for index in range(named.start, named.stop):
                    future = self._futures.get(index)
                    if self._store.round(index) < named.round:
                        self._store.reopen(index, named.round)
                    elif future is not None and not self._pending(index):
                        quick.append(future)
                        continue
                    if future is not None:
                        future._reopen()
            self._check_end()
            self.changed.notify_all()
        _resolve_all(quick)
        if self.printer is not None:
            self.printer.start()

    # ------------------------------------------------------------ progress

    def progress(self) -> Progress:
        with self.changed:
            # By count, not by index: a report is up to 0.2 s old, and short tasks that
            # it names have made room for others since.
            pending = self._store.count(TaskState.PENDING) - self._store.retrying
            running = min(pending, sum(map(len, self._running.values())))
            ended = self._ended if self._ended is not None else time.monotonic()
            return Progress(
                job=self.id,
                name=self.record.name,
                total=self._total,
                uploaded=self._uploaded,
                ok=self._store.count(TaskState.OK),
                failed=self._store.count(TaskState.FAILED),
                cancelled=self._store.count(TaskState.CANCELLED),
                running=running,
                retrying=self._store.retrying,
                elapsed_s=max(0.0, ended - self._started),
                workers=len(self._running),
                state=self._state_name(running > 0),
                note="" if self.finished else self._note,
            )

    def _state_name(self, running: bool) -> str:
        if not self.finished:
            started = running or bool(self._arrivals)
            return "running" if started else "waiting"
        if self.sealed_at is not None:
            return "incomplete"
        if self._store.count(TaskState.FAILED):
            return "failed"
        return "cancelled" if self._store.count(TaskState.CANCELLED) else "succeeded"
