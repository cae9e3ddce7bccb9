"""What a worker holds, whose turn it is, and how much to hand over at a time.

Every task that was accepted is *held* until the results log has acknowledged its
outcome. Held tasks wait in a queue per job until a kernel gets them; jobs of the same
priority take turns, so that one with millions of tasks does not hold up one with a single
task, and those of a higher one go first.

Pure data: nothing here waits, reads a clock or talks to anybody.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

from nbsched.attempts import PastAttempt
from nbsched.indexset import IndexSet
from nbsched.kernel.protocol import Breach
from nbsched.messages import BlockRef, Held, JobBrief, RunSlice
from nbsched.model import JobId, TaskRange
from nbsched.worker.output import LastWords
from nbsched.worker.pace import Pace

_IDLE_JOBS = 1000
"""So many jobs without tasks are remembered with their pace."""


@dataclass(frozen=True)
class Piece:
    """Tasks ``start`` to ``stop`` of a job that have their history in common.

    ``breach`` and ``words`` (what it had printed) are set for a task that was killed for
    breaking a limit: it is not to be run, only its retry policy is to be asked.
    """

    brief: JobBrief
    start: int
    stop: int
    round: int
    attempt: int
    crashes: int = 0
    first_started_at: float | None = None
    blocks: tuple[BlockRef, ...] = ()
    breach: Breach | None = None
    words: LastWords | None = None
    past: tuple[PastAttempt, ...] = ()

    @property
    def job(self) -> JobId:
        return self.brief.job

    @property
    def count(self) -> int:
        return self.stop - self.start

    def part(self, start: int, stop: int) -> Piece:
        return replace(self, start=start, stop=stop)


@dataclass
class JobBacklog:
    """One job's share of the backlog."""

    brief: JobBrief
    pace: Pace
    queue: deque[Piece] = field(default_factory=deque)
    queued: int = 0
    held: dict[tuple[int, int], IndexSet] = field(default_factory=dict)
    """By round and attempt."""

    @property
    def idle(self) -> bool:
        return not self.held and not self.queue

    def held_later(self, round_: int, attempt: int) -> list[IndexSet]:
        """Sets whose tasks are on an attempt at least as late as this one."""
        return [held for key, held in self.held.items() if key >= (round_, attempt)]


class Backlog:
    """All tasks that this worker holds."""

    def __init__(self) -> None:
        self._jobs: dict[JobId, JobBacklog] = {}
        self._turns: OrderedDict[JobId, None] = OrderedDict()
        """Jobs with queued tasks, the next one first."""

    def __bool__(self) -> bool:
        return any(job.held for job in self._jobs.values())

    def job(self, job: JobId) -> JobBacklog | None:
        return self._jobs.get(job)

    @property
    def queued(self) -> int:
        return sum(self._jobs[job].queued for job in self._turns)

    def has_queued(self, job: JobId) -> bool:
        return job in self._turns

    def turns(self) -> list[JobId]:
        """Jobs that have something queued: those of the highest priority first, and among
        equals the one whose turn it is."""
        if len(self._turns) == 1:
            return list(self._turns)
        return sorted(self._turns, key=lambda job: -self._jobs[job].brief.priority)

    # ------------------------------------------------------------ in

    def add(self, command: RunSlice) -> int:
        """Take a slice; returns how many tasks were new. A task held in the same
        attempt or a later one is not taken twice."""
        job = self._jobs.get(command.brief.job)
        if job is None:
            self._forget_idle()
            job = JobBacklog(command.brief, Pace(command.brief.chunksize))
            self._jobs[command.brief.job] = job
        job.brief = command.brief
        fresh = IndexSet([(command.start, command.stop)])
        for held in job.held_later(command.round, command.attempt):
            for start, stop in held.intersection(command.start, command.stop):
                fresh.remove(start, stop)
        for start, stop in fresh.ranges():
            self._append(job, _piece(command, start, stop))
        return len(fresh)

    def _append(self, job: JobBacklog, piece: Piece) -> None:
        job.held.setdefault((piece.round, piece.attempt), IndexSet()).add(piece.start, piece.stop)
        job.queue.append(piece)
        job.queued += piece.count
        self._turns.setdefault(piece.job)

    def give_back(self, piece: Piece) -> None:
        """Tasks that a kernel was given and did not run: they come next."""
        job = self._jobs[piece.job]
        job.queue.appendleft(piece)
        job.queued += piece.count
        self._turns.setdefault(piece.job)

    # ------------------------------------------------------------ to kernels

    def head(self, job: JobId) -> Piece:
        """The piece that comes next in this job."""
        return self._jobs[job].queue[0]

    def holds_earlier(self, piece: Piece) -> bool:
        """Whether tasks of the piece are held in an earlier attempt or round."""
        return any(
            held.intersection(piece.start, piece.stop)
            for key, held in self._jobs[piece.job].held.items()
            if key < (piece.round, piece.attempt)
        )

    def cut_head(self, job: JobId, at: int) -> None:
        """Make two pieces of the one that comes next; the second begins with this task."""
        queue = self._jobs[job].queue
        piece = queue.popleft()
        queue.appendleft(piece.part(at, piece.stop))
        queue.appendleft(piece.part(piece.start, at))

    def pass_over(self, job: JobId) -> None:
        """The piece that comes next comes last."""
        self._jobs[job].queue.rotate(-1)

    def take(self, job_id: JobId, count: int) -> Piece:
        """Take up to ``count`` tasks of the job's first piece; its turn is over."""
        job = self._jobs[job_id]
        piece = job.queue.popleft()
        if piece.count > count:
            job.queue.appendleft(piece.part(piece.start + count, piece.stop))
            piece = piece.part(piece.start, piece.start + count)
        job.queued -= piece.count
        self._turns.move_to_end(job_id)
        if not job.queue:
            del self._turns[job_id]
        return piece

    def upcoming(self, job: JobId, count: int) -> Iterator[Piece]:
        """The next pieces of the job, to fetch their inputs ahead."""
        for piece, _ in zip(self._jobs[job].queue, range(count), strict=False):
            yield piece

    # ------------------------------------------------------------ out

    def recall(self, job_id: JobId, ranges: Iterable[TaskRange]) -> tuple[TaskRange, ...]:
        """Give up queued tasks of exactly these rounds; returns which ones."""
        taken = self._withdraw(job_id, ranges, lambda piece, named: piece.round == named.round)
        for piece in taken:
            self.release(piece.job, piece.start, piece.stop, piece.round, piece.attempt)
        return tuple(TaskRange(piece.start, piece.stop, piece.round) for piece in taken)

    def stop(self, job_id: JobId, ranges: Iterable[TaskRange]) -> list[Piece]:
        """Take queued tasks of these rounds or earlier ones out of the queue. They are
        held until their outcome is published."""
        return self._withdraw(job_id, ranges, lambda piece, named: piece.round <= named.round)

    def withdraw_block(self, piece: Piece, ref: BlockRef | None) -> list[Piece]:
        """Take queued tasks out whose input cannot be had: those of a block, or all."""
        low, high = (0, 2**62) if ref is None else (ref.first, ref.first + ref.count)
        return self._withdraw(piece.job, [TaskRange(low, high, 2**62)], lambda _p, _n: True)

    def drop_queued(self) -> None:
        """Hand back everything that no kernel was given: it is no longer held."""
        for job_id in list(self._turns):
            job = self._jobs[job_id]
            for piece in job.queue:
                self.release(job_id, piece.start, piece.stop, piece.round, piece.attempt)
            job.queue.clear()
            job.queued = 0
        self._turns.clear()

    def release(self, job_id: JobId, start: int, stop: int, round_: int, attempt: int) -> None:
        """These tasks are not held any more."""
        job = self._jobs.get(job_id)
        held = job.held.get((round_, attempt)) if job is not None else None
        if job is None or held is None:
            return
        held.remove(start, stop)
        if not held:
            del job.held[round_, attempt]

    def _withdraw(
        self, job_id: JobId, ranges: Iterable[TaskRange], matches: _Matches
    ) -> list[Piece]:
        job = self._jobs.get(job_id)
        if job is None or not job.queue:
            return []
        taken: list[Piece] = []
        for named in ranges:
            kept: deque[Piece] = deque()
            for piece in job.queue:
                low, high = max(piece.start, named.start), min(piece.stop, named.stop)
                if low >= high or not matches(piece, named):
                    kept.append(piece)
                    continue
                taken.append(piece.part(low, high))
                if piece.start < low:
                    kept.append(piece.part(piece.start, low))
                if high < piece.stop:
                    kept.append(piece.part(high, piece.stop))
            job.queue = kept
        job.queued -= sum(piece.count for piece in taken)
        if not job.queue:
            del self._turns[job_id]
        return taken

    def _forget_idle(self) -> None:
        if len(self._jobs) > _IDLE_JOBS:
            self._jobs = {name: job for name, job in self._jobs.items() if not job.idle}

    # ------------------------------------------------------------ told

    def still_held(self, running: Iterable[Held]) -> list[Held]:
        """Those of the running tasks whose outcome is not acknowledged already."""
        entries = []
        for entry in running:
            job = self._jobs.get(entry.job)
            held = job.held.get((entry.round, entry.attempt)) if job is not None else None
            if held is not None and entry.start in held:
                entries.append(entry)
        return entries

    def held(self, running: Iterable[Held]) -> tuple[Held, ...]:
        """Everything that is held; a running task is an entry of its own."""
        entries = self.still_held(running)
        apart: dict[tuple[JobId, int, int], IndexSet] = {}
        for entry in entries:
            key = (entry.job, entry.round, entry.attempt)
            apart.setdefault(key, IndexSet()).add(entry.start, entry.stop)
        for job_id, job in self._jobs.items():
            for (round_, attempt), indices in job.held.items():
                waiting = indices
                for start, stop in apart.get((job_id, round_, attempt), IndexSet()).ranges():
                    waiting = waiting.copy() if waiting is indices else waiting
                    waiting.remove(start, stop)
                entries += [
                    Held(job_id, start, stop, round_, attempt) for start, stop in waiting.ranges()
                ]
        return tuple(entries)


class _Matches(Protocol):
    def __call__(self, piece: Piece, named: TaskRange, /) -> bool: ...


def _piece(command: RunSlice, start: int, stop: int) -> Piece:
    return Piece(
        command.brief,
        start,
        stop,
        command.round,
        command.attempt,
        command.crashes,
        command.first_started_at,
        command.blocks,
        past=command.past,
    )
