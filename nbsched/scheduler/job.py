"""A job's tasks: the only place where a task changes state.

Every uploaded task is in exactly one of these states:

    fresh       queued, at the first attempt of its round   (IndexSet)
    ready       queued, with a history                      (dict, in order)
    delayed     waits for its retry's time                  (dict index -> time)
    assigned    held by a worker                            (IndexSet per worker);
                a slow one may run on a second worker, too  (`copies`)
    publishing  the leader's own outcome for it is on its way to the log
    ended       ok, failed or cancelled: final in its round

`stopping` marks tasks that the user wants cancelled and that have no outcome yet;
wherever such a task would be queued again, it is cancelled instead. Not while it is
`unsure` whether a worker has it: then it waits in its queue for that.

Everything is kept and moved as ranges, so that a step of a job of ten million tasks
costs what it changes; only a task that was retried or crashed by itself has an entry
of its own (`history`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from nbsched.indexset import IndexSet, Range
from nbsched.messages import BlockRef, Held, JobCounts, Outcome, OutcomeState
from nbsched.model import JobRecord, JobState, RequestId, TaskRange, WorkerId
from nbsched.scheduler.blocks import Blocks
from nbsched.scheduler.copies import Copies
from nbsched.scheduler.durations import Durations
from nbsched.scheduler.ended import Ended
from nbsched.scheduler.history import Histories, TaskHistory
from nbsched.scheduler.openrequests import OpenRequests
from nbsched.scheduler.pace import learn
from nbsched.scheduler.roundmap import RoundMap

Named: TypeAlias = dict[int, IndexSet]
"""Tasks by their round."""

_NO_TASK = 2**62
"""Beyond every index."""


@dataclass
class Job:
    """State of one job. Methods move tasks and return those that the caller must
    publish as cancelled instead of queueing them."""

    record: JobRecord
    uploaded: int = 0
    total: int | None = None
    blocks: Blocks = field(default_factory=Blocks)
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
    unwanted: IndexSet = field(default_factory=IndexSet)
    """Tasks that were cancelled in such a round before they have got there."""
    history: Histories = field(default_factory=Histories)
    cancel_all: bool = False
    requests: OpenRequests = field(default_factory=OpenRequests)
    served: dict[WorkerId, None] = field(default_factory=dict)
    """Workers that have had a slice of this job, in order."""
    relieved: dict[WorkerId, None] = field(default_factory=dict)
    """Workers that have less to do since this was last looked at, in order."""
    newly_delayed: list[tuple[float, int]] = field(default_factory=list)
    """Times and tasks delayed since this was last looked at."""
    task_s: float | None = None
    """Measured seconds per task."""
    durations: Durations = field(default_factory=Durations)
    """Kept for a job that speculates, only."""
    copies: Copies = field(default_factory=Copies)
    losers: dict[WorkerId, Named] = field(default_factory=dict)
    """Runs of tasks of which another run counts, since this was last looked at."""
    state: JobState = JobState.WAITING
    note: str = ""
    request_follows: bool = False
    """A request for this (ended) job is about to come."""
    unsure: bool = False
    """The leader is new: workers may hold, and run, what is queued here."""

    # ------------------------------------------------------------ questions

    @property
    def has_work(self) -> bool:
        return not self.request_follows and (bool(self.ready) or bool(self.fresh))

    @property
    def all_running(self) -> bool:
        """Nothing is left to hand out, nor will be by itself, and something is assigned."""
        return bool(self.assigned) and self.sealed and not (self.has_work or self.delayed)

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

    def holder(self, index: int) -> WorkerId | None:
        """Where a task is assigned, its copy apart."""
        return next((worker for worker, held in self.assigned.items() if index in held), None)

    def over(self, held: Held) -> IndexSet:
        """Of which tasks a run is of no use any more: it is of an earlier round or attempt, or
        the task has ended. What waits may be of an earlier attempt that is over already."""
        known = self.rounds.get(held.start), self.history.of(held.start).attempt
        if held.running_for_s is not None and (held.round, held.attempt) < known:
            return IndexSet([(held.start, held.stop)])
        over = IndexSet()
        for low, high, round_ in self.rounds.runs(held.start, held.stop):
            if held.round <= round_:
                earlier = held.round < round_
                for part in [(low, high)] if earlier else self.ended.closed(low, high):
                    over.add(*part)
        return over

    def final_state(self) -> JobState:
        if self.record.abandoned and not self.cancel_all:
            return JobState.INCOMPLETE
        if self.ended.failed:
            return JobState.FAILED
        cancelled = self.ended.cancelled or not self.sealed
        return JobState.CANCELLED if cancelled else JobState.SUCCEEDED

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
        # Of a log that came back without its end, outcomes may be known before items are.
        still_open = self.ended.still_open(start, uploaded)
        return [part for low, high in still_open for part in self._queue_again(low, high)]

    def store_block(self, block: BlockRef) -> list[Range]:
        """A block is complete; it counts once all blocks before it are there too."""
        if block.block == 0 or block.first < self.uploaded or block.first >= self.limit:
            return []
        return self.grow(self.blocks.store(block, self.uploaded))

    @property
    def limit(self) -> float:
        """No task of the job lies behind it."""
        return math.inf if self.total is None else self.total

    def cut(self) -> dict[WorkerId, list[Range]]:
        """Drop what was uploaded behind the total: its client came back after its job had
        been sealed without it. Returns what workers hold of that."""
        if self.uploaded <= self.limit:
            return {}
        start, stop = int(self.limit), self.uploaded
        self._end_copies(start, stop, WorkerId(""))
        held = {w: found for w in tuple(self.assigned) if (found := self._withdraw(w, start, stop))}
        self._open_round(start, stop, 0)
        self.stopping.remove(start, stop)
        self.publishing.remove(start, stop)
        self.requests.ended(start, stop)
        self.blocks.cut(start)
        self.uploaded = start
        return held

    def _withdraw(self, worker: WorkerId, start: int, stop: int) -> list[Range]:
        found = self.assigned[worker].remove(start, stop)
        self._forget_empty(worker)
        return found

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

    def copy_to(self, worker: WorkerId, index: int) -> None:
        """A second copy of a task that runs elsewhere is given to a worker."""
        self.copies.add(index, worker)
        self.served[worker] = None

    def adopt(self, worker: WorkerId, held: Held) -> None:
        """A worker already holds these tasks: an earlier leader gave them out.

        Not those whose attempt is known to be over: the report was on its way when their
        outcome was, and a retry's delay would be lost by it.
        """
        for start, stop, round_ in self.rounds.runs(held.start, held.stop):
            if round_ != held.round:
                continue
            for low, high in self._attempted_at_most(held.attempt, start, stop):
                for part in self._unqueue(low, high):
                    self._hold(worker).add(*part)
                if held.running_for_s is not None and self.record.speculate:
                    self._adopt_copy(worker, low)

    def _attempted_at_most(self, attempt: int, start: int, stop: int) -> list[Range]:
        """The tasks of a range that are on this attempt or an earlier one."""
        indices = self.history.indices(start, stop)
        known = [(i, i + 1) for i in indices if self.history.of(i).attempt <= attempt]
        return self.history.without(start, stop) + known

    def _adopt_copy(self, worker: WorkerId, index: int) -> None:
        """If the task is known to run elsewhere, this is the copy."""
        if index in self.copies or index in self.assigned.get(worker, ()):
            return
        if self.holder(index) is not None:
            self.copy_to(worker, index)

    def give_back(self, worker: WorkerId, start: int, stop: int) -> list[Range]:
        """Tasks come back from a worker without an outcome. One that has another run, its
        copy or what it is a copy of, is not queued: that one counts from now on."""
        for index in self.copies.within(start, stop) if self.copies else ():
            self._one_run_less(index, worker)
        held = self.assigned.get(worker)
        if held is None:
            return []
        returned = held.remove(start, stop)
        self._forget_empty(worker)
        return [part for low, high in returned for part in self._queue_again(low, high)]

    def lose_running(self, worker: WorkerId, index: int) -> TaskHistory | None:
        """A task ran on a host that is lost: its outcome is to be published.

        Returns its history with the crash counted, or None when it is not held there, or
        also runs elsewhere.
        """
        if index in self.copies and self._one_run_less(index, worker):
            return None
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
        if outcome.start >= self.limit:
            return []
        if outcome.state is OutcomeState.OK and outcome.elapsed_s > 0:
            tasks = max(1, outcome.stop - outcome.start)
            self.task_s = learn(self.task_s, outcome.elapsed_s, tasks)
            if self.record.speculate:
                self.durations.add(outcome.elapsed_s, tasks)
        if outcome.state is OutcomeState.RETRY:
            return self._apply_retry(outcome, worker, now)
        to_cancel: list[Range] = []
        stop = int(min(outcome.stop, self.limit))
        for low, high, round_ in self.rounds.runs(outcome.start, stop):
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
        if index in self.copies and self._one_run_less(index, worker):
            self.history.note_crash(outcome)
            return []  # the other one goes on
        if not self.history.note_retry(outcome):
            return []  # an attempt that is known already
        self._end_copies(index, index + 1, worker)
        self._unassign(index, index + 1, worker)
        self._unqueue(index, index + 1)
        if index in self.stopping or outcome.retry_in_s <= 0 or index >= self.uploaded:
            return self._queue_again(index, index + 1)
        self.delayed[index] = now + outcome.retry_in_s
        self.newly_delayed.append((self.delayed[index], index))
        return []

    def _finish(self, start: int, stop: int, state: OutcomeState, worker: WorkerId) -> None:
        for low, high in self.ended.enter(start, stop, state):
            self._unqueue(low, high)
            self._end_copies(low, high, worker)
            self.stopping.remove(low, high)
            self._unassign(low, high, worker)
            for run_start, run_stop, wanted in self.wanted_rounds.runs(low, high):
                for part_start, part_stop, round_ in self.rounds.runs(run_start, run_stop):
                    if wanted <= round_:
                        self.requests.ended(part_start, part_stop)
            self.history.drop(low, high)  # last, as the queues are found by it

    # ------------------------------------------------------------ requests

    def cancel(self, request: RequestId, ranges: tuple[TaskRange, ...] | None) -> list[Range]:
        """The user wants tasks stopped. Those that workers hold are in `stopping` then."""
        if request in self.requests:
            return []
        if ranges is None:
            self.cancel_all = True
            self.requests.add_whole(request)
            wanted = self.ended.still_open(0, self.uploaded)
            later = self._not_begun(0, _NO_TASK)
        else:
            wanted = [part for named in ranges for part in self._open_in_round(named)]
            to_come = [part for named in ranges for part in self._to_come(named)]
            later = [part for n in ranges for part in self._not_begun(n.start, n.stop, n.round)]
            self.requests.add(request, IndexSet([*wanted, *to_come, *later]))
            for start, stop in to_come:
                self.stopping.add(start, stop)
        for start, stop in later:
            self.unwanted.add(start, stop)
        for start, stop in wanted:
            self.stopping.add(start, stop)
        return [] if self.unsure else self._publish_queued(wanted)

    def workers_told(self) -> list[Range]:
        """Workers have told what they hold: what is queued here nobody has."""
        self.unsure = False
        return self._publish_queued(list(self.stopping.ranges()))

    def _publish_queued(self, ranges: Iterable[Range]) -> list[Range]:
        to_publish = [part for start, stop in ranges for part in self._unqueue(start, stop)]
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
            stop = int(min(named.stop, self.limit))
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
                self.unwanted.remove(low, high)

    def _start_wanted(self, start: int, stop: int) -> list[Range]:
        """Begin the rounds that requests ask for, where tasks are not there yet."""
        to_cancel: list[Range] = []
        for low, high, wanted in self.wanted_rounds.runs(start, stop):
            for run_start, run_stop, round_ in self.rounds.runs(low, high):
                if round_ < wanted:
                    self._open_round(run_start, run_stop, wanted)
                    to_cancel += self._queue_again(run_start, run_stop)
        return to_cancel

    def seal(self, total: int | None) -> None:
        """The number of tasks, once it is known: nothing beyond it will come."""
        self.total = total
        if total is not None:
            end = max(total, self.uploaded)
            self.stopping.remove(end, _NO_TASK)
            self.requests.ended(end, _NO_TASK)

    def _to_come(self, named: TaskRange) -> list[Range]:
        """The tasks of a named range whose items are still on their way."""
        stop = named.stop if self.total is None else min(named.stop, self.total)
        start = max(named.start, self.uploaded)
        return self.ended.still_open(start, stop) if start < stop and named.round == 0 else []

    def _open_in_round(self, named: TaskRange) -> list[Range]:
        """The tasks of a named range that are in that round and have not ended."""
        stop = min(named.stop, self.uploaded)
        return [
            part
            for low, high, round_ in self.rounds.runs(named.start, stop)
            if round_ == named.round
            for part in self.ended.still_open(low, high)
        ]

    def _not_begun(self, start: int, stop: int, at_most: float = math.inf) -> list[Range]:
        """The tasks that are to get to a later round, up to this one."""
        stop = int(min(stop, self.limit))
        return [
            part
            for low, high, wanted in self.wanted_rounds.runs(start, stop)
            for part_start, part_stop, round_ in self.rounds.runs(low, high)
            if round_ < wanted <= at_most
            for part in self.ended.still_open(part_start, part_stop)
        ]

    # ------------------------------------------------------------ moving tasks

    def _open_round(self, start: int, stop: int, round_: int) -> None:
        """Tasks leave their state for a later round; the caller gives them a new one."""
        self.ended.leave(start, stop)
        self._unqueue(start, stop)
        self.history.drop(start, stop)
        self.rounds.set(start, stop, round_)
        for part in self.unwanted.remove(start, stop):
            self.stopping.add(*part)

    def _queue_again(self, start: int, stop: int) -> list[Range]:
        """Queue tasks that have no outcome; those to be cancelled are returned instead.
        Those whose items are not known are queued when they are (`grow`)."""
        stop = min(stop, self.uploaded)
        if start >= stop:
            return []
        to_cancel = [] if self.unsure else self.stopping.intersection(start, stop)
        for low, high in to_cancel:
            self.publishing.add(low, high)
        to_queue = [(start, stop)] if self.unsure else self.stopping.missing(start, stop)
        for low, high in to_queue:
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

    def _one_run_less(self, index: int, worker: WorkerId) -> bool:
        """A worker has nothing of a copied task any more; False when it never had."""
        copy, first = self.copies.where(index), self.holder(index)
        if copy is None or worker not in (copy, first):
            return False
        self.copies.drop(index)
        self.relieved[copy] = None
        if worker == first:  # so the copy is what there is
            self.assigned[first].remove(index, index + 1)
            self.relieved[first] = None
            self._forget_empty(first)
            self._hold(copy).add(index, index + 1)
        return True

    def _end_copies(self, start: int, stop: int, author: WorkerId) -> None:
        """Tasks have an outcome of this worker: their other runs have lost."""
        for index in self.copies.within(start, stop) if self.copies else ():
            runs = (self.copies.drop(index), self.holder(index))
            for run in runs:
                if run is not None:
                    self.relieved[run] = None
                    if run != author:
                        self._lose(run, index, index + 1)

    def _hold(self, worker: WorkerId) -> IndexSet:
        self.served[worker] = None
        return self.assigned.setdefault(worker, IndexSet())

    def _unassign(self, start: int, stop: int, likely: WorkerId) -> None:
        """Nobody needs to run these tasks any more; ``likely`` is where they were."""
        self.publishing.remove(start, stop)
        left = stop - start - _size(self._take_from(likely, start, stop))
        for worker in tuple(self.assigned) if left else ():
            found = self._take_from(worker, start, stop)
            for part in found:
                self._lose(worker, *part)
            left -= _size(found)
            if not left:
                return

    def _lose(self, worker: WorkerId, start: int, stop: int) -> None:
        """This worker's runs of these tasks do not count."""
        rounds = self.losers.setdefault(worker, {})
        for low, high, round_ in self.rounds.runs(start, stop):
            rounds.setdefault(round_, IndexSet()).add(low, high)

    def _take_from(self, worker: WorkerId, start: int, stop: int) -> list[Range]:
        """Which of these tasks the worker held."""
        held = self.assigned.get(worker)
        removed = held.remove(start, stop) if held is not None else []
        if removed:
            self.relieved[worker] = None
            self._forget_empty(worker)
        return removed

    def _forget_empty(self, worker: WorkerId) -> None:
        if not self.assigned[worker]:
            del self.assigned[worker]


def _size(ranges: Iterable[Range]) -> int:
    return sum(stop - start for start, stop in ranges)
