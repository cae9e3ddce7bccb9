"""A job's tasks: the only place where a task changes state.

Every uploaded task is in exactly one of these states:

    fresh       queued, never ran, no history        (IndexSet)
    ready       queued, with a history               (dict, in order)
    delayed     waits for its retry's time           (dict index -> time)
    assigned    held by a worker                     (IndexSet per worker)
    publishing  the leader's own outcome for it is on its way to the log
    ended       ok, failed or cancelled: final in this round

`stopping` marks tasks that the user wants cancelled and that have no outcome yet;
wherever such a task would be queued again, it is cancelled instead.

A task's history (`TaskHistory`) exists only for tasks that were retried or crashed,
so that a job of ten million ordinary tasks costs a few ranges.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from nbsched.indexset import IndexSet, Range
from nbsched.messages import BlockRef, JobCounts, Outcome, OutcomeState
from nbsched.model import JobRecord, JobState, RequestId, TaskRange, WorkerId
from nbsched.scheduler.ended import Ended

_SPEED_WEIGHT = 0.3
"""Weight of a new measurement in the running mean of seconds per task."""


@dataclass(frozen=True)
class TaskHistory:
    """What must be remembered of a task that did not simply run once."""

    round: int = 0
    attempt: int = 1
    crashes: int = 0
    first_started_at: float | None = None


_NO_HISTORY = TaskHistory()


@dataclass
class Job:
    """State of one job. Methods move tasks and say what the caller must publish."""

    record: JobRecord
    uploaded: int = 0
    total: int | None = None
    blocks: list[BlockRef] = field(default_factory=list)
    early_blocks: dict[int, BlockRef] = field(default_factory=dict)
    """Blocks that came before their predecessors, by first index."""
    fresh: IndexSet = field(default_factory=IndexSet)
    ready: dict[int, None] = field(default_factory=dict)
    delayed: dict[int, float] = field(default_factory=dict)
    assigned: dict[WorkerId, IndexSet] = field(default_factory=dict)
    publishing: IndexSet = field(default_factory=IndexSet)
    ended: Ended = field(default_factory=Ended)
    stopping: IndexSet = field(default_factory=IndexSet)
    history: dict[int, TaskHistory] = field(default_factory=dict)
    wanted_round: dict[int, int] = field(default_factory=dict)
    cancel_all: bool = False
    requests: dict[RequestId, IndexSet | None] = field(default_factory=dict)
    """Open requests and the tasks whose outcome they wait for; None: the whole job."""
    served: set[WorkerId] = field(default_factory=set)
    """Workers that have had a slice of this job."""
    relieved: set[WorkerId] = field(default_factory=set)
    """Workers that hold fewer tasks since this was last looked at."""
    task_s: float | None = None
    """Measured seconds per task."""
    state: JobState = JobState.WAITING
    note: str = ""
    request_follows: bool = False
    """A request for this (ended) job is about to come."""

    # ------------------------------------------------------------ questions

    @property
    def has_work(self) -> bool:
        return bool(self.ready) or bool(self.fresh)

    @property
    def finished(self) -> bool:
        return self.total is not None and len(self.ended) >= self.total

    @property
    def assigned_count(self) -> int:
        return sum(map(len, self.assigned.values()))

    @property
    def queued_count(self) -> int:
        return len(self.fresh) + len(self.ready) + len(self.delayed)

    def history_of(self, index: int) -> TaskHistory:
        return self.history.get(index, _NO_HISTORY)

    def final_state(self) -> JobState:
        if self.ended.failed:
            return JobState.FAILED
        return JobState.CANCELLED if self.ended.cancelled else JobState.SUCCEEDED

    def blocks_of(self, start: int, stop: int) -> tuple[BlockRef, ...]:
        """The blocks that hold the items ``start`` to ``stop``."""
        if not self.blocks:
            return ()
        first = max(0, bisect_right(self.blocks, start, key=lambda block: block.first) - 1)
        last = bisect_right(self.blocks, stop - 1, key=lambda block: block.first)
        return tuple(self.blocks[first:last])

    def counts(self) -> JobCounts:
        return JobCounts(
            job=self.record.id,
            total=self.total,
            ok=len(self.ended.ok),
            failed=len(self.ended.failed),
            cancelled=len(self.ended.cancelled),
            queued=self.queued_count,
            assigned=self.assigned_count,
            note=self.note,
        )

    def with_rounds(self, ranges: Iterable[Range]) -> tuple[TaskRange, ...]:
        """Name tasks with their current rounds."""
        named: list[TaskRange] = []
        for start, stop in ranges:
            if not self.history:
                named.append(TaskRange(start, stop, 0))
                continue
            for index in range(start, stop):
                round_ = self.history_of(index).round
                if named and named[-1].stop == index and named[-1].round == round_:
                    named[-1] = TaskRange(named[-1].start, index + 1, round_)
                else:
                    named.append(TaskRange(index, index + 1, round_))
        return tuple(named)

    # ------------------------------------------------------------ input

    def grow(self, uploaded: int) -> list[Range]:
        """Items up to ``uploaded`` are there; returns what must be cancelled at once."""
        if uploaded <= self.uploaded:
            return []
        start, self.uploaded = self.uploaded, uploaded
        if not self.cancel_all:
            self.fresh.add(start, uploaded)
            return []
        self.stopping.add(start, uploaded)
        self.publishing.add(start, uploaded)
        return [(start, uploaded)]

    def store_block(self, block: BlockRef) -> list[Range]:
        """A block is complete; it counts once all blocks before it are there too."""
        if block.block == 0 or block.first < self.uploaded:
            return []
        self.early_blocks[block.first] = block
        to_cancel: list[Range] = []
        while (follower := self.early_blocks.pop(self.uploaded, None)) is not None:
            self.blocks.append(follower)
            to_cancel += self.grow(follower.first + follower.count)
        return to_cancel

    # ------------------------------------------------------------ handing out

    def take_fresh(self, worker: WorkerId, count: int) -> Range:
        """Assign up to ``count`` fresh tasks, one range, to a worker."""
        taken = self.fresh.take_first(count)
        assert taken is not None, "asked for work where there is none"
        self._hold(worker).add(*taken)
        return taken

    def take_ready(self, worker: WorkerId) -> int:
        """Assign the first task with a history to a worker."""
        index = next(iter(self.ready))
        del self.ready[index]
        self._hold(worker).add(index, index + 1)
        return index

    def adopt(self, worker: WorkerId, start: int, stop: int, round_: int) -> None:
        """A worker already holds these tasks: an earlier leader gave them out."""
        for low, high in self.fresh.intersection(start, stop) if round_ == 0 else []:
            self.fresh.remove(low, high)
            self._hold(worker).add(low, high)
        for index in range(start, stop) if (self.ready or self.delayed) else ():
            if (index in self.ready or index in self.delayed) and (
                self.history_of(index).round == round_
            ):
                self.ready.pop(index, None)
                self.delayed.pop(index, None)
                self._hold(worker).add(index, index + 1)

    def give_back(self, worker: WorkerId, start: int, stop: int) -> list[Range]:
        """Tasks come back from a worker without an outcome; returns what to cancel."""
        held = self.assigned.get(worker)
        if held is None:
            return []
        returned = held.remove(start, stop)
        self._forget_empty(worker)
        to_cancel: list[Range] = []
        for low, high in returned:
            to_cancel += self._queue_again(low, high)
        return to_cancel

    def lose_running(self, worker: WorkerId, index: int) -> TaskHistory | None:
        """A task ran on a host that is lost: its outcome is to be published.

        Returns its history with the crash counted, or None when it is not held there.
        """
        held = self.assigned.get(worker)
        if held is None or not held.remove(index, index + 1):
            return None
        self._forget_empty(worker)
        self.publishing.add(index, index + 1)
        history = self.history_of(index)
        return replace(history, crashes=history.crashes + 1)

    def release_due(self, now: float) -> bool:
        """Delayed tasks whose time has come become ready; says whether there are any."""
        due = [index for index, time in self.delayed.items() if time <= now]
        for index in due:
            del self.delayed[index]
            self.ready[index] = None
        return bool(due)

    # ------------------------------------------------------------ outcomes

    def apply(self, worker: WorkerId, outcome: Outcome, now: float) -> list[Range]:
        """An outcome was read from the log; returns what to cancel instead of queueing."""
        if outcome.state is OutcomeState.OK and outcome.elapsed_s > 0:
            self._measure(outcome.elapsed_s / max(1, outcome.stop - outcome.start))
        if outcome.state is OutcomeState.RETRY:
            return self._apply_retry(outcome, worker, now)
        ordinary = outcome.round == 0 and not self.history and not self.wanted_round
        if ordinary:
            self._finish(outcome.start, outcome.stop, outcome.state, worker)
            return []
        to_cancel: list[Range] = []
        for index in range(outcome.start, outcome.stop):
            to_cancel += self._apply_final(index, outcome, worker)
        return to_cancel

    def _apply_final(self, index: int, outcome: Outcome, worker: WorkerId) -> list[Range]:
        history = self.history_of(index)
        if outcome.round < history.round:
            return []
        if outcome.round > history.round:  # a retry that an earlier leader carried out
            self.ended.leave(index)
            self._unqueue(index)
            self.history[index] = TaskHistory(round=outcome.round)
        self._finish(index, index + 1, outcome.state, worker)
        if self.wanted_round.get(index, 0) > outcome.round:
            return self._start_round(index, self.wanted_round[index])
        return []

    def _apply_retry(self, outcome: Outcome, worker: WorkerId, now: float) -> list[Range]:
        index, history = outcome.start, self.history_of(outcome.start)
        if outcome.round > history.round:
            self.ended.leave(index)
            self._unqueue(index)
            history = TaskHistory(round=outcome.round)
        crash = outcome.crashes > history.crashes
        stale = outcome.round < history.round or index in self.ended
        if stale or not (crash or outcome.attempt >= history.attempt):
            return []
        self.history[index] = TaskHistory(
            round=outcome.round,
            attempt=outcome.attempt if crash else outcome.attempt + 1,
            crashes=max(outcome.crashes, history.crashes),
            first_started_at=outcome.first_started_at or history.first_started_at,
        )
        self._unassign(index, index + 1, worker)
        self._unqueue(index)
        if index in self.stopping or outcome.retry_in_s <= 0:
            return self._queue_again(index, index + 1)
        self.delayed[index] = now + outcome.retry_in_s
        return []

    def _finish(self, start: int, stop: int, state: OutcomeState, worker: WorkerId) -> None:
        """Mark as ended what has not ended yet: the first valid outcome wins."""
        for low, high in self.ended.enter(start, stop, state):
            self.fresh.remove(low, high)
            self.stopping.remove(low, high)
            self._unassign(low, high, worker)
            if self.ready or self.delayed:
                for index in range(low, high):
                    self.ready.pop(index, None)
                    self.delayed.pop(index, None)
            if self.requests:
                self._settle_requests(low, high)

    def _settle_requests(self, start: int, stop: int) -> None:
        """A request waits until the round that it (or a later one) asks for has ended."""
        if not self.wanted_round:
            for pending in self.requests.values():
                if pending is not None:
                    pending.remove(start, stop)
            return
        for index in range(start, stop):
            if self.wanted_round.get(index, 0) <= self.history_of(index).round:
                for pending in self.requests.values():
                    if pending is not None:
                        pending.remove(index, index + 1)

    # ------------------------------------------------------------ requests

    def cancel(self, request: RequestId, ranges: tuple[TaskRange, ...] | None) -> list[Range]:
        """The user wants tasks stopped. Returns those that no worker holds: to publish.

        Those that workers hold are in `stopping` afterwards.
        """
        if request in self.requests:
            return []
        if ranges is None:
            self.cancel_all = True
            self.requests[request] = None
            wanted = self._open_tasks(0, self.uploaded)
        else:
            wanted = [
                part
                for named in ranges
                for part in self._in_round(named)
                for part in self._open_tasks(*part)
            ]
            self.requests[request] = IndexSet(wanted)
        to_publish: list[Range] = []
        for start, stop in wanted:
            self.stopping.add(start, stop)
            for low, high in self.fresh.remove(start, stop):
                to_publish.append((low, high))
            for index in [i for i in (*self.ready, *self.delayed) if start <= i < stop]:
                self._unqueue(index)
                to_publish.append((index, index + 1))
        for low, high in to_publish:
            self.publishing.add(low, high)
        return to_publish

    def retry(self, request: RequestId, ranges: tuple[TaskRange, ...]) -> list[Range]:
        """The user wants tasks to run again, in the rounds that are named."""
        if request in self.requests:
            return []
        pending = IndexSet()
        to_cancel: list[Range] = []
        for named in ranges:
            for index in range(named.start, min(named.stop, self.uploaded)):
                history = self.history_of(index)
                if history.round > named.round or (
                    history.round == named.round and index in self.ended
                ):
                    continue  # already carried out
                pending.add(index, index + 1)
                self.wanted_round[index] = max(named.round, self.wanted_round.get(index, 0))
                if history.round < named.round and index in self.ended:
                    to_cancel += self._start_round(index, named.round)
        self.requests[request] = pending
        return to_cancel

    def settled_requests(self) -> list[RequestId]:
        """Requests whose effect stands in the log; they are forgotten here."""
        done = [
            request
            for request, pending in self.requests.items()
            if (self.finished if pending is None else not pending)
        ]
        for request in done:
            del self.requests[request]
        return done

    def _start_round(self, index: int, round_: int) -> list[Range]:
        self.ended.leave(index)
        self.history[index] = TaskHistory(round=round_)
        self.cancel_all = False
        return self._queue_again(index, index + 1)

    def _open_tasks(self, start: int, stop: int) -> list[Range]:
        """Tasks of a range that have not ended."""
        return self.ended.still_open(start, min(stop, self.uploaded))

    def _in_round(self, named: TaskRange) -> Iterator[Range]:
        """The tasks of a named range that are still in that round."""
        if not self.history:
            if named.round == 0:
                yield named.start, named.stop
            return
        for index in range(named.start, min(named.stop, self.uploaded)):
            if self.history_of(index).round == named.round:
                yield index, index + 1

    # ------------------------------------------------------------ moving tasks

    def _queue_again(self, start: int, stop: int) -> list[Range]:
        """Queue tasks that have no outcome, or return them when they are to be cancelled."""
        to_cancel = self.stopping.intersection(start, stop)
        for low, high in to_cancel:
            self.publishing.add(low, high)
        for low, high in self.stopping.missing(start, stop):
            if not self.history:
                self.fresh.add(low, high)
                continue
            for index in range(low, high):
                if index in self.history:
                    self.ready[index] = None
                else:
                    self.fresh.add(index, index + 1)
        return to_cancel

    def _hold(self, worker: WorkerId) -> IndexSet:
        self.served.add(worker)
        return self.assigned.setdefault(worker, IndexSet())

    def _unassign(self, start: int, stop: int, likely: WorkerId) -> None:
        """Nobody holds these tasks any more; ``likely`` is where they probably were."""
        self.publishing.remove(start, stop)
        left = stop - start
        for worker in (likely, *tuple(self.assigned)):
            held = self.assigned.get(worker)
            removed = held.remove(start, stop) if held is not None else []
            if removed:
                left -= sum(high - low for low, high in removed)
                self.relieved.add(worker)
                self._forget_empty(worker)
            if left == 0:
                return

    def _forget_empty(self, worker: WorkerId) -> None:
        if not self.assigned[worker]:
            del self.assigned[worker]

    def _unqueue(self, index: int) -> None:
        self.fresh.remove(index, index + 1)
        self.ready.pop(index, None)
        self.delayed.pop(index, None)

    def _measure(self, seconds: float) -> None:
        if self.task_s is None:
            self.task_s = seconds
        else:
            self.task_s += _SPEED_WEIGHT * (seconds - self.task_s)
