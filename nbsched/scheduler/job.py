"""A job's tasks: the only place where a task changes state.

Every uploaded task is in exactly one of these states:

    fresh       queued, at the first attempt of its round   (IndexSet)
    ready       queued, with a history                      (dict, in order)
    delayed     waits for its retry's time                  (dict index -> time)
    assigned    held by a worker                            (IndexSet per worker)
    publishing  the leader's own outcome for it is on its way to the log
    ended       ok, failed or cancelled: final in its round

`stopping` marks tasks that the user wants cancelled and that have no outcome yet;
wherever such a task would be queued again, it is cancelled instead.

Everything is kept and moved as ranges, so that a step of a job of ten million tasks
costs what it changes; only a task that was retried or crashed by itself has an entry
of its own (`history`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field

from nbsched.indexset import IndexSet, Range
from nbsched.messages import BlockRef, JobCounts, Outcome, OutcomeState
from nbsched.model import JobRecord, JobState, RequestId, TaskRange, WorkerId
from nbsched.scheduler.ended import Ended
from nbsched.scheduler.history import Histories, TaskHistory
from nbsched.scheduler.openrequests import OpenRequests
from nbsched.scheduler.pace import learn
from nbsched.scheduler.roundmap import RoundMap


@dataclass
class Job:
    """State of one job. Methods move tasks and return those that the caller must
    publish as cancelled instead of queueing them."""

    record: JobRecord
    uploaded: int = 0
    total: int | None = None
    blocks: list[BlockRef] = field(default_factory=list)
    early_blocks: dict[int, BlockRef] = field(default_factory=dict)
    """Blocks that came before their predecessors, by first index."""
    read_to: int = 0
    """Outcomes up to this sequence number of the results log have been applied."""
    fresh: IndexSet = field(default_factory=IndexSet)
    ready: dict[int, None] = field(default_factory=dict)
    delayed: dict[int, float] = field(default_factory=dict)
    assigned: dict[WorkerId, IndexSet] = field(default_factory=dict)
    publishing: IndexSet = field(default_factory=IndexSet)
    ended: Ended = field(default_factory=Ended)
    stopping: IndexSet = field(default_factory=IndexSet)
    rounds: RoundMap = field(default_factory=RoundMap)
    wanted_rounds: RoundMap = field(default_factory=RoundMap)
    """Rounds that requests ask for; a task that has not ended yet gets there later."""
    history: Histories = field(default_factory=Histories)
    cancel_all: bool = False
    requests: OpenRequests = field(default_factory=OpenRequests)
    served: set[WorkerId] = field(default_factory=set)
    """Workers that have had a slice of this job."""
    relieved: dict[WorkerId, list[Range]] = field(default_factory=dict)
    """What workers no longer have to do since this was last looked at."""
    newly_delayed: list[tuple[float, int]] = field(default_factory=list)
    """Times and tasks delayed since this was last looked at."""
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
    def sealed(self) -> bool:
        return self.total is not None

    @property
    def finished(self) -> bool:
        """Every task has ended, and no more will come: sealed, or cancelled as a whole."""
        if self.total is None:
            return self.cancel_all and len(self.ended) >= self.uploaded
        return len(self.ended) >= self.total

    @property
    def assigned_count(self) -> int:
        return sum(map(len, self.assigned.values()))

    @property
    def queued_count(self) -> int:
        return len(self.fresh) + len(self.ready) + len(self.delayed)

    def final_state(self) -> JobState:
        if self.ended.failed:
            return JobState.FAILED
        cancelled = self.ended.cancelled or not self.sealed
        return JobState.CANCELLED if cancelled else JobState.SUCCEEDED

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
        return tuple(TaskRange(*run) for part in ranges for run in self.rounds.runs(*part))

    # ------------------------------------------------------------ input

    def grow(self, uploaded: int) -> list[Range]:
        """Items up to ``uploaded`` are there."""
        if uploaded <= self.uploaded:
            return []
        start, self.uploaded = self.uploaded, uploaded
        if self.cancel_all:
            self.stopping.add(start, uploaded)
        return self._queue_again(start, uploaded)

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
        """Assign up to ``count`` fresh tasks, one range in one round, to a worker."""
        first = self.fresh.first()
        assert first is not None, "asked for work where there is none"
        taken = self.fresh.take_first(self.rounds.run_stop(first, first + count) - first)
        assert taken is not None, "a run is never empty"
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
        for run_start, run_stop, has_round in self.rounds.runs(start, stop):
            if has_round != round_:
                continue
            for part in self._unqueue(run_start, run_stop):
                self._hold(worker).add(*part)

    def give_back(self, worker: WorkerId, start: int, stop: int) -> list[Range]:
        """Tasks come back from a worker without an outcome."""
        held = self.assigned.get(worker)
        if held is None:
            return []
        returned = held.remove(start, stop)
        self._forget_empty(worker)
        return [part for low, high in returned for part in self._queue_again(low, high)]

    def lose_running(self, worker: WorkerId, index: int) -> TaskHistory | None:
        """A task ran on a host that is lost: its outcome is to be published.

        Returns its history with the crash counted, or None when it is not held there.
        """
        held = self.assigned.get(worker)
        if held is None or not held.remove(index, index + 1):
            return None
        self._forget_empty(worker)
        self.publishing.add(index, index + 1)
        return self.history.of(index).crashed()

    def release(self, index: int, time: float) -> bool:
        """A delayed task's time has come; False when it is not delayed until then."""
        if self.delayed.get(index) != time:
            return False
        del self.delayed[index]
        self.ready[index] = None
        return True

    # ------------------------------------------------------------ outcomes

    def apply(self, worker: WorkerId, outcome: Outcome, now: float) -> list[Range]:
        """An outcome was read from the log: the first valid one of a round counts."""
        if outcome.state is OutcomeState.OK and outcome.elapsed_s > 0:
            tasks = max(1, outcome.stop - outcome.start)
            self.task_s = learn(self.task_s, outcome.elapsed_s, tasks)
        if outcome.state is OutcomeState.RETRY:
            return self._apply_retry(outcome, worker, now)
        to_cancel: list[Range] = []
        for low, high, round_ in self.rounds.runs(outcome.start, outcome.stop):
            if outcome.round < round_:
                continue
            if outcome.round > round_:  # a retry that an earlier leader carried out
                self._open_round(low, high, outcome.round)
            self._finish(low, high, outcome.state, worker)
            to_cancel += self._start_wanted(low, high)
        return to_cancel

    def _apply_retry(self, outcome: Outcome, worker: WorkerId, now: float) -> list[Range]:
        index = outcome.start
        if outcome.round > self.rounds.get(index):
            self._open_round(index, index + 1, outcome.round)
        if outcome.round < self.rounds.get(index) or index in self.ended:
            return []
        if not self.history.note_retry(outcome):
            return []  # an attempt that is known already
        self._unassign(index, index + 1, worker)
        self._unqueue(index, index + 1)
        if index in self.stopping or outcome.retry_in_s <= 0:
            return self._queue_again(index, index + 1)
        self.delayed[index] = now + outcome.retry_in_s
        self.newly_delayed.append((self.delayed[index], index))
        return []

    def _finish(self, start: int, stop: int, state: OutcomeState, worker: WorkerId) -> None:
        for low, high in self.ended.enter(start, stop, state):
            self._unqueue(low, high)
            self.stopping.remove(low, high)
            self._unassign(low, high, worker)
            for run_start, run_stop, wanted in self.wanted_rounds.runs(low, high):
                for part_start, part_stop, round_ in self.rounds.runs(run_start, run_stop):
                    if wanted <= round_:
                        self.requests.ended(part_start, part_stop)

    # ------------------------------------------------------------ requests

    def cancel(self, request: RequestId, ranges: tuple[TaskRange, ...] | None) -> list[Range]:
        """The user wants tasks stopped. Those that workers hold are in `stopping` then."""
        if request in self.requests:
            return []
        if ranges is None:
            self.cancel_all = True
            self.requests.add_whole(request)
            wanted = self.ended.still_open(0, self.uploaded)
        else:
            wanted = [part for named in ranges for part in self._open_in_round(named)]
            self.requests.add(request, IndexSet(wanted))
        to_publish: list[Range] = []
        for start, stop in wanted:
            self.stopping.add(start, stop)
            to_publish += self._unqueue(start, stop)
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
            stop = min(named.stop, self.uploaded)
            for low, high, round_ in self.rounds.runs(named.start, stop):
                if round_ > named.round:
                    continue  # carried out, and another one after it
                if round_ == named.round:
                    for part in self.ended.still_open(low, high):
                        pending.add(*part)
                    continue
                pending.add(low, high)
                self._want(low, high, named.round)
                for part in self.ended.closed(low, high):
                    to_cancel += self._start_wanted(*part)
        self.requests.add(request, pending)
        return to_cancel

    def _want(self, start: int, stop: int, round_: int) -> None:
        for low, high, wanted in self.wanted_rounds.runs(start, stop):
            if wanted < round_:
                self.wanted_rounds.set(low, high, round_)

    def _start_wanted(self, start: int, stop: int) -> list[Range]:
        """Begin the rounds that requests ask for, where tasks are not there yet."""
        to_cancel: list[Range] = []
        for low, high, wanted in self.wanted_rounds.runs(start, stop):
            for run_start, run_stop, round_ in self.rounds.runs(low, high):
                if round_ < wanted:
                    self._open_round(run_start, run_stop, wanted)
                    to_cancel += self._queue_again(run_start, run_stop)
        return to_cancel

    def _open_in_round(self, named: TaskRange) -> list[Range]:
        """The tasks of a named range that are in that round and have not ended."""
        stop = min(named.stop, self.uploaded)
        return [
            part
            for low, high, round_ in self.rounds.runs(named.start, stop)
            if round_ == named.round
            for part in self.ended.still_open(low, high)
        ]

    # ------------------------------------------------------------ moving tasks

    def _open_round(self, start: int, stop: int, round_: int) -> None:
        """Tasks leave their state for a later round; the caller gives them a new one."""
        self.ended.leave(start, stop)
        self._unqueue(start, stop)
        self.history.drop(start, stop)
        self.rounds.set(start, stop, round_)

    def _queue_again(self, start: int, stop: int) -> list[Range]:
        """Queue tasks that have no outcome; those to be cancelled are returned instead."""
        to_cancel = self.stopping.intersection(start, stop)
        for low, high in to_cancel:
            self.publishing.add(low, high)
        for low, high in self.stopping.missing(start, stop):
            for part in self.history.without(low, high):
                self.fresh.add(*part)
            for index in self.history.indices(low, high):
                self.ready[index] = None
        return to_cancel

    def _unqueue(self, start: int, stop: int) -> list[Range]:
        """Take tasks out of the queues; returns those that were in one."""
        found = self.fresh.remove(start, stop)
        for index in self.history.indices(start, stop) if self.ready or self.delayed else ():
            if index in self.ready or index in self.delayed:
                self.ready.pop(index, None)
                self.delayed.pop(index, None)
                found.append((index, index + 1))
        return found

    def _hold(self, worker: WorkerId) -> IndexSet:
        self.served.add(worker)
        return self.assigned.setdefault(worker, IndexSet())

    def _unassign(self, start: int, stop: int, likely: WorkerId) -> None:
        """Nobody needs to run these tasks any more; ``likely`` is where they were."""
        self.publishing.remove(start, stop)
        left = stop - start - self._take_from(likely, start, stop)
        if left:
            for worker in tuple(self.assigned):
                left -= self._take_from(worker, start, stop)
                if not left:
                    return

    def _take_from(self, worker: WorkerId, start: int, stop: int) -> int:
        """How many of these tasks the worker held."""
        held = self.assigned.get(worker)
        removed = held.remove(start, stop) if held is not None else []
        if removed:
            self.relieved.setdefault(worker, []).extend(removed)
            self._forget_empty(worker)
        return sum(high - low for low, high in removed)

    def _forget_empty(self, worker: WorkerId) -> None:
        if not self.assigned[worker]:
            del self.assigned[worker]
