"""The outcomes of one job as its client knows them. Pure data: no thread, no server.

One byte of state and one reference per task; values are unpickled when somebody asks
for them, a segment (what came in one outcome) at a time. The first valid outcome of
a task in its round wins; an outcome of a later round replaces it.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import CancelledError
from enum import IntEnum
from typing import Any

import msgspec

from nbsched import errors
from nbsched.attempts import attempts_text
from nbsched.errors import RemoteTraceback, ResultNotPicklableError, ResultNotReadableError
from nbsched.indexset import IndexSet, Range
from nbsched.messages import Encoding, ErrorReport, Outcome, OutcomeState
from nbsched.model import TaskRange
from nbsched.payload import pickling
from nbsched.payload.sharedfolder import SharedFolder


class TaskState(IntEnum):
    """A task as its client sees it."""

    PENDING = 0
    OK = 1
    FAILED = 2
    CANCELLED = 3


_LAST_LINES = 10
_LAST_CHARS = 2000
_STATES = tuple(TaskState)
_FINAL = {
    OutcomeState.OK: TaskState.OK,
    OutcomeState.FAILED: TaskState.FAILED,
    OutcomeState.CANCELLED: TaskState.CANCELLED,
}


class Segment:
    """The bytes of one outcome, and their values once somebody has asked for them."""

    __slots__ = ("_folder", "_job", "_outcome", "_output", "_plain", "_raw", "_values")

    def __init__(
        self, outcome: Outcome, raw: memoryview, job: str, folder: SharedFolder | None
    ) -> None:
        self._job = job
        self._folder = folder
        self._outcome = outcome
        printed = sum(outcome.output)
        # A copy: the text must not keep the message it came in.
        self._output = bytes(raw[len(raw) - printed :]) if printed else b""
        self._raw: memoryview | None = raw[: len(raw) - printed] if printed else raw
        self._values: list[Any] | None = None
        self._plain = outcome.encoding is Encoding.SCALARS and not outcome.file
        """None of the values is to be raised."""

    def value(self, index: int) -> Any:
        """The result of a task. Raises its exception, or ResultNotReadableError."""
        value = self._decoded()[index - self._outcome.start]
        if isinstance(value, _Raised):
            # Without the frames of an earlier raise: they would be shown again.
            raise value.error.with_traceback(None)
        return value

    def values(self, start: int) -> list[Any]:
        """The results of the tasks from ``start`` on, up to the first that has none. Raises
        what `value` raises when that is the first of them."""
        at = start - self._outcome.start
        values = self._decoded()[at:]
        if not self._plain:
            raised = next((i for i, value in enumerate(values) if isinstance(value, _Raised)), None)
            if raised == 0:
                return [self.value(start)]
            values = values[:raised]
        return values

    def exception(self, index: int) -> BaseException | None:
        """The exception of a task, which is not raised; None when it has a result."""
        value = self._decoded()[index - self._outcome.start]
        return value.error if isinstance(value, _Raised) else None

    @property
    def cancelled(self) -> bool:
        return self._outcome.state is OutcomeState.CANCELLED

    @property
    def outcome(self) -> Outcome:
        return self._outcome

    @property
    def stdout(self) -> str:
        """What the task has printed; in a long text its middle is left out."""
        out, err, _ = self._outcome.output
        return (self._output[:out] + self._output[out + err :]).decode(errors="replace")

    @property
    def stderr(self) -> str:
        out, err, _ = self._outcome.output
        return self._output[out : out + err].decode(errors="replace")

    @property
    def report(self) -> ErrorReport | None:
        """The failure as text, without unpickling anything; None when it is none."""
        if self._outcome.encoding is not Encoding.ERROR or self._raw is None:
            return None
        return msgspec.msgpack.decode(self._raw, type=ErrorReport)

    def _decoded(self) -> list[Any]:
        raw = self._raw  # before the values: another thread may decode at the same time
        values = self._values
        if values is None:
            assert raw is not None, "the bytes go when the values are there"
            values, lasting = self._decode(raw)
            if lasting:
                self._values = values
                if self._outcome.encoding is not Encoding.ERROR:
                    self._raw = None  # a report is small, and shown without its exception
        return values

    def _decode(self, raw: memoryview) -> tuple[list[Any], bool]:
        """The values, and whether they will be the same the next time."""
        if self._outcome.file:
            try:
                raw = self._map()
            except (FileNotFoundError, ResultNotReadableError) as error:
                return self._all_unreadable(error), True
            except OSError as error:  # too much is open just now, say
                return self._all_unreadable(error), False
        return self._decode_bytes(raw), True

    def _all_unreadable(self, error: Exception) -> list[Any]:
        outcome = self._outcome
        return [_Raised(_unreadable(outcome.start, error))] * (outcome.stop - outcome.start)

    def _decode_bytes(self, raw: memoryview) -> list[Any]:
        outcome = self._outcome
        count = outcome.stop - outcome.start
        if outcome.encoding is Encoding.NOTHING:
            return [_Raised(CancelledError())] * count
        if outcome.encoding is Encoding.ERROR:
            report = msgspec.msgpack.decode(raw, type=ErrorReport)
            return [_Raised(exception_of(report, outcome.start, self._job))] * count
        if outcome.encoding is Encoding.SCALARS:
            return list(pickling.loads(raw))
        values, at = [], 0
        for offset, size in enumerate(outcome.sizes):
            values.append(_load(raw[at : at + size], outcome.start + offset))
            at += size
        return values

    def _map(self) -> memoryview:
        if self._folder is None:
            raise ResultNotReadableError(
                "it lies in the cluster's shared folder, which is not configured here"
                " (NBSCHED_SHARED_FOLDER)"
            )
        if not self._outcome.file.startswith(f"{self._job}/"):
            raise ResultNotReadableError("its outcome names a file of another job")
        return self._folder.map(self._outcome.file, 0, sum(self._outcome.sizes))


def last_lines(stdout: str, stderr: str) -> str:
    """The end of both, for a row of a table."""
    whole = (stdout.rstrip() + "\n" + stderr.rstrip()).strip()
    return "\n".join(whole[-_LAST_CHARS:].splitlines()[-_LAST_LINES:])


class _Raised:
    """Marks a value that is to be raised."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _load(raw: memoryview, index: int) -> Any:
    try:
        return pickling.loads(raw)
    except Exception as error:
        unreadable = ResultNotReadableError(
            f"The result of task {index} cannot be unpickled here"
            f" ({type(error).__name__}: {error}). Install what its class needs in this process.",
            index=index,
        )
        unreadable.__cause__ = error
        return _Raised(unreadable)


def _unreadable(index: int, error: Exception) -> ResultNotReadableError:
    missing = ResultNotReadableError(
        f"The file with the result of task {index} cannot be read here: {error}. Read it where"
        " the cluster runs, or retry() the task; if its job was forgotten, the file went with it.",
        index=index,
    )
    missing.__cause__ = error
    return missing


def exception_of(report: ErrorReport, index: int, job: str) -> BaseException:
    """The exception that a report stands for, with the remote traceback as its cause."""
    if report.system is not None:
        kind = getattr(errors, report.system, errors.TaskError)
        error: BaseException = kind(
            report.message, index=index, details=dict(report.details), history=report.history
        )
    elif report.pickle is None:
        error = ResultNotPicklableError(
            f"Task {index} raised {report.type_name}: {report.message}. The exception itself"
            " cannot be pickled; make it picklable (keep its constructor's arguments in args) to"
            " receive it as it is.",
            index=index,
        )
    else:
        try:
            error = pickling.loads(report.pickle)
        except Exception as reason:
            error = ResultNotReadableError(
                f"Task {index} raised {report.type_name}: {report.message}. The exception itself"
                f" cannot be unpickled here ({type(reason).__name__}: {reason}).",
                index=index,
            )
    if report.traceback:
        error.__cause__ = RemoteTraceback(
            f"Task {index} of job {job}, on its worker:\n{report.traceback}"
            f"{attempts_text(report.history).lstrip()}"
        )
    return error


class ResultStore:
    """States and values of all tasks of a job."""

    def __init__(self, job: str, folder: SharedFolder | None = None) -> None:
        self._job = job
        self._folder = folder
        self._states = bytearray()
        self._segments: list[Segment | None] = []
        self._rounds: dict[int, int] = {}
        self._mixed = False
        """Tasks of one outcome may have ended by another that came first."""
        self._retrying: set[int] = set()
        self._counts = [0, 0, 0, 0]

    def __len__(self) -> int:
        """Tasks known so far."""
        return len(self._states)

    def grow(self, size: int) -> None:
        """Know of tasks up to ``size``."""
        more = size - len(self._states)
        if more > 0:
            self._states.extend(bytes(more))
            self._segments.extend([None] * more)
            self._counts[TaskState.PENDING] += more

    def count(self, state: TaskState) -> int:
        return self._counts[state]

    @property
    def retrying(self) -> int:
        """Tasks whose last attempt failed and that will run again."""
        return len(self._retrying)

    def retrying_tasks(self) -> list[int]:
        return sorted(self._retrying)

    def is_retrying(self, index: int) -> bool:
        return index in self._retrying

    def state(self, index: int) -> TaskState:
        return _STATES[self._states[index]]

    def round(self, index: int) -> int:
        return self._rounds.get(index, 0)

    def segment(self, index: int) -> Segment | None:
        """The outcome of a task that has ended; None while it is pending."""
        return self._segments[index]

    def value(self, index: int) -> Any:
        segment = self._segments[index]
        assert segment is not None, "asked for a value before the outcome"
        return segment.value(index)

    def values(self, start: int) -> list[Any]:
        """Results of as many tasks from ``start`` on as came together; at least one.

        Raises the exception of task ``start``.
        """
        segment = self._segments[start]
        assert segment is not None, "asked for values before the outcome"
        if self._rounds or self._mixed:  # single tasks may have another outcome
            return [segment.value(start)]
        return segment.values(start)

    def exception(self, index: int) -> BaseException | None:
        segment = self._segments[index]
        assert segment is not None, "asked for an exception before the outcome"
        return segment.exception(index)

    def indices(self, state: TaskState, start: int = 0) -> Iterator[int]:
        """The tasks in a state, ascending."""
        at = self._states.find(state, start)
        while at >= 0:
            yield at
            at = self._states.find(state, at + 1)

    def apply(self, outcome: Outcome, raw: memoryview) -> list[Range]:
        """Take in an outcome; returns the tasks that have ended by it."""
        self.grow(outcome.stop)
        if outcome.state is OutcomeState.RETRY:
            self._note_retry(outcome)
            return []
        span = slice(outcome.start, outcome.stop)
        count = outcome.stop - outcome.start
        segment = Segment(outcome, raw, self._job, self._folder)
        untouched = not self._rounds and outcome.round == 0
        if untouched and self._states[span] == bytes(count):
            self._enter(span, _FINAL[outcome.state], segment)
            return [(outcome.start, outcome.stop)]
        self._mixed = True
        ended = IndexSet()
        for index in range(outcome.start, outcome.stop):
            if self._accepts(index, outcome.round):
                self._enter(slice(index, index + 1), _FINAL[outcome.state], segment)
                ended.add(index, index + 1)
        return list(ended.ranges())

    def _accepts(self, index: int, round_: int) -> bool:
        """Whether an outcome of this round is the first one; a later round reopens."""
        known = self.round(index)
        if round_ > known:
            self.reopen(index, round_)
        return round_ >= known and self._states[index] == TaskState.PENDING

    def _enter(self, span: slice, state: TaskState, segment: Segment) -> None:
        count = span.stop - span.start
        self._states[span] = bytes([state]) * count
        self._segments[span] = [segment] * count
        self._counts[TaskState.PENDING] -= count
        self._counts[state] += count
        if self._retrying:
            self._retrying.difference_update(range(span.start, span.stop))

    def _note_retry(self, outcome: Outcome) -> None:
        index = outcome.start
        if outcome.round > self.round(index):
            self.reopen(index, outcome.round)
        if outcome.round == self.round(index) and self._states[index] == TaskState.PENDING:
            self._retrying.add(index)

    def started(self, index: int) -> None:
        """The task runs (again)."""
        self._retrying.discard(index)

    def reopen(self, index: int, round_: int) -> None:
        """The task is to run again, in this round."""
        self._counts[self._states[index]] -= 1
        self._states[index] = TaskState.PENDING
        self._counts[TaskState.PENDING] += 1
        self._segments[index] = None
        self._rounds[index] = round_

    def open_ranges(self, indices: Iterator[int] | range) -> tuple[TaskRange, ...]:
        """Name tasks with their rounds, neighbours together."""
        named: list[TaskRange] = []
        for index in indices:
            round_ = self.round(index)
            if named and named[-1].stop == index and named[-1].round == round_:
                named[-1] = TaskRange(named[-1].start, index + 1, round_)
            else:
                named.append(TaskRange(index, index + 1, round_))
        return tuple(named)
