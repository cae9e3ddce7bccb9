"""`TaskTable`: the tasks of a job as rows, a page at a time, with cancel and retry.

``mf.tasks.rows("failed")`` is what the table of the notebook's display shows. Reads
reports, never results: nothing is unpickled here, and rows cost what is asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from nbsched.client.progress import TaskRow, TaskSnapshot
from nbsched.client.results import ResultStore, TaskState, last_lines
from nbsched.client.tasklog import TaskLog
from nbsched.client.tracker import JobTracker
from nbsched.messages import ErrorReport, Outcome
from nbsched.shortrepr import short

Kind = Literal["failed", "running", "cancelled"]

_MOST_ERROR = 300
_MOST_TRACEBACK = 20_000
_NAMES = {
    TaskState.OK: "done",
    TaskState.FAILED: "failed",
    TaskState.CANCELLED: "cancelled",
}


class TaskTable:
    """Rows of one job's tasks. Any thread may ask."""

    def __init__(
        self,
        tracker: JobTracker,
        cancel: Callable[[list[int]], bool],
        retry: Callable[[list[int]], int],
        item_text: Callable[[int], str] | None = None,
    ) -> None:
        self._tracker = tracker
        self._cancel = cancel
        self._retry = retry
        self._item_text = item_text

    # ------------------------------------------------------------ looking

    def indices(self, kind: Kind, start: int = 0, count: int | None = None) -> list[int]:
        """Tasks that are failed, running (or about to run again), or cancelled, ascending."""
        stop = None if count is None else start + count

        def ask(store: ResultStore, log: TaskLog) -> list[int]:
            if kind == "running":
                pending = {i for i in log.running() if store.state(i) is TaskState.PENDING}
                return sorted(pending.union(store.retrying_tasks()))[start:stop]
            state = TaskState.FAILED if kind == "failed" else TaskState.CANCELLED
            return list(itertools.islice(store.indices(state), start, stop))

        return self._tracker.look(ask)

    def rows(self, kind: Kind, start: int = 0, count: int | None = None) -> list[TaskRow]:
        """The rows of `indices`."""
        return [self.row(index) for index in self.indices(kind, start, count)]

    def row(self, index: int) -> TaskRow:
        """Where one task is."""
        printed = last_lines(*self._tracker.output(index))
        row = self._tracker.look(lambda store, log: _row(store, log, index, printed))
        return msgspec.structs.replace(row, item=self._item(index) or row.item)

    def result(self, index: int) -> str:
        """The result of a task that is done, in short."""
        try:
            return short(self._tracker.value(index))
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def traceback(self, index: int) -> str:
        """The remote traceback of a task's last failure; empty when there is none."""
        report = self._tracker.look(lambda store, log: _report(store, log, index))
        if report is None:
            return ""
        text = report.traceback or f"{report.type_name}: {report.message}"
        return text if len(text) <= _MOST_TRACEBACK else "…\n" + text[-_MOST_TRACEBACK:]

    def _item(self, index: int) -> str:
        if self._item_text is None:
            return ""
        try:
            return self._item_text(index)
        except Exception:  # the caller's list may be another by now
            return ""

    # ------------------------------------------------------------ control

    def cancel(self, indices: Sequence[int]) -> bool:
        """Stop these tasks; False when all have ended. See `Future.cancel`."""
        return self._cancel(list(indices))

    def retry(self, indices: Sequence[int]) -> int:
        """Run these tasks again, as far as they have ended; returns how many."""
        return self._retry(list(indices))


class TaskOfFuture:
    """A single future's task, for its display."""

    def __init__(self, tracker: JobTracker, index: int, table: TaskTable) -> None:
        self._tracker = tracker
        self._index = index
        self._table = table
        self.id = f"{tracker.id}[{index}]"

    @property
    def progress(self) -> TaskSnapshot:
        row = self._table.row(self._index)
        result = self._table.result(self._index) if row.state == "done" else ""
        return TaskSnapshot(id=self.id, name=self._tracker.record.name, row=row, result=result)

    def traceback(self) -> str:
        return self._table.traceback(self._index)

    def cancel(self) -> bool:
        return self._table.cancel([self._index])

    def retry(self) -> bool:
        return self._table.retry([self._index]) > 0


def _row(store: ResultStore, log: TaskLog, index: int, printed: str) -> TaskRow:
    state = store.state(index)
    run, end = log.run(index), log.end(index)
    report = _report(store, log, index)
    error = "" if report is None else _one_line(report)
    item = "" if report is None else report.item
    # Attempts are counted anew when a user retries; people count on.
    earlier = store.round(index)
    if state is TaskState.PENDING:
        if run is not None:
            return TaskRow(
                index=index,
                state="running",
                item=item,
                attempt=earlier + run.attempt,
                worker=run.worker,
                elapsed_s=run.elapsed_s,
                error=error,
                output=printed,
            )
        name = "retrying" if store.is_retrying(index) else "queued"
        attempt = earlier
        if end is not None and name == "retrying":
            attempt += end.outcome.attempt
        return TaskRow(index=index, state=name, item=item, attempt=attempt, error=error)
    segment = store.segment(index)
    outcome = None if segment is None else segment.outcome
    alone = outcome is not None and outcome.stop - outcome.start == 1
    return TaskRow(
        index=index,
        state=_NAMES[state],
        item=item,
        attempt=earlier + (outcome.attempt if outcome is not None else 0),
        worker=end.worker if end is not None and _same_run(end.outcome, outcome) else "",
        elapsed_s=outcome.elapsed_s if outcome is not None and alone else None,
        error=error,
        output=printed,
    )


def _same_run(one: Outcome, other: Outcome | None) -> bool:
    """The same outcome may have been read twice, by different readers."""
    return other is not None and (one.round, one.attempt) == (other.round, other.attempt)


def _report(store: ResultStore, log: TaskLog, index: int) -> ErrorReport | None:
    """Of what the task has failed with, or of its last attempt when it runs again."""
    segment = store.segment(index)
    if segment is not None:
        return segment.report
    end = log.end(index)
    if end is None or not len(end.raw):
        return None
    return msgspec.msgpack.decode(end.raw, type=ErrorReport)


def _one_line(report: ErrorReport) -> str:
    text = " ".join(report.message.split())
    if report.system is None:
        text = f"{report.type_name}: {text}" if text else report.type_name
    return text if len(text) <= _MOST_ERROR else text[: _MOST_ERROR - 1] + "…"
