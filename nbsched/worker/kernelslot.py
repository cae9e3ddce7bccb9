"""One kernel's account: what it was given, and what it has not answered for yet.

Every task handed to the kernel has a run number. A run is answered by an outcome,
by the kernel's word that it was void, or by taking it back before it began.
Nothing here decides what becomes of a task; that is the pool's business.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from nbsched.indexset import IndexSet, Range
from nbsched.kernel.protocol import Breach, DropBlock, DropJob, RunTasks, TakeBlock, TakeJob
from nbsched.messages import Held
from nbsched.model import JobId, TaskRange
from nbsched.worker.backlog import Piece
from nbsched.worker.inputs import FileSource, Input, Source
from nbsched.worker.kernelprocess import KernelProcess
from nbsched.worker.output import KernelOutput

_BLOCKS_BYTES = 64 * 1024 * 1024
"""What a kernel may keep of blocks; the last one may be larger."""
_FILE_BYTES = 256 * 1024
"""What a block in a file counts for: its small items are kept, its arrays are not."""


@dataclass
class HandOver:
    """A piece as a kernel was given it."""

    piece: Piece
    first_run: int
    unanswered: IndexSet
    """Run numbers."""

    def part(self, first_run: int, count: int) -> Piece:
        start = self.piece.start + first_run - self.first_run
        return self.piece.part(start, start + count)


class Active(NamedTuple):
    """What runs in a kernel, and for how many seconds (so far 0 while the callable is still
    being unpickled)."""

    run: int
    given: HandOver
    elapsed_s: float

    @property
    def task(self) -> int:
        """Its index."""
        return self.given.piece.start + self.run - self.given.first_run


class Returned(NamedTuple):
    """Tasks that a kernel did not run. ``stopped``: they were to be cancelled, and if
    ``silently``, nothing is to be said of that."""

    first_run: int
    piece: Piece
    stopped: bool = False
    silently: bool = False


def apart(left: Sequence[Returned], run: int) -> tuple[list[Returned], Returned | None]:
    """Take one run out of what a kernel has left: the others, and that one if it is there."""
    others: list[Returned] = []
    found = None
    for given in left:
        first, piece, stopped, silently = given
        if not first <= run < first + piece.count:
            others.append(given)
            continue
        at = piece.start + run - first
        found = Returned(run, piece.part(at, at + 1), stopped, silently)
        if at > piece.start:
            others.append(Returned(first, piece.part(piece.start, at), stopped, silently))
        if at + 1 < piece.stop:
            others.append(Returned(run + 1, piece.part(at + 1, piece.stop), stopped, silently))
    return others, found


class KernelSlot:
    """A kernel process and its account."""

    def __init__(self, process: KernelProcess) -> None:
        self.process = process
        self.output = KernelOutput(process.state)
        self.ready = False
        self.answered = False
        """It has done something for a task."""
        self.hand_overs: list[HandOver] = []
        self.stops: dict[int, float] = {}
        """Runs to be cancelled: the monotonic time at which the kernel is killed."""
        self.silenced: set[int] = set()
        """Those of which nobody wants to hear."""
        self.breaches: dict[int, tuple[Breach, float]] = {}
        """Runs that have broken a limit, likewise."""
        self._next_run = 1
        self._void_below = 0
        self._jobs: set[JobId] = set()
        self._leaving: set[JobId] = set()
        """Those of them to be dropped when the kernel does not work on them any more."""
        self._blocks: OrderedDict[tuple[JobId, int], int] = OrderedDict()

    @property
    def busy(self) -> bool:
        return bool(self.hand_overs)

    # ------------------------------------------------------------ giving

    def give(self, piece: Piece, given: Input) -> None:
        """Hand over the tasks of ``piece``, whose items are in the block of ``given``."""
        first_run = self._next_run
        self._next_run += piece.count
        self._leaving.discard(piece.job)
        if piece.job not in self._jobs:
            self._jobs.add(piece.job)
            self._send_job(piece, given.function)
        if given.data is not None:
            self._send_block(piece.job, given.block, given.data)
        self.process.send(
            RunTasks(
                job=piece.job,
                block=given.block,
                first_run=first_run,
                start=piece.start,
                stop=piece.stop,
                round=piece.round,
                attempt=piece.attempt,
                first_started_at=piece.first_started_at,
                task_timeout_s=piece.brief.task_timeout_s,
                memory_bytes=piece.brief.memory_bytes,
                breach=piece.breach,
                past=piece.past,
            )
        )
        runs = IndexSet([(first_run, self._next_run)])
        self.hand_overs.append(HandOver(piece, first_run, runs))

    def _send_job(self, piece: Piece, function: Source) -> None:
        call = piece.brief.call
        if isinstance(function, FileSource):
            self.process.send(TakeJob(piece.job, call, function.name, function.nbytes))
        else:
            self.process.send(TakeJob(piece.job, call), function)

    def _send_block(self, job: JobId, block: int, data: Source) -> None:
        key = (job, block)
        if key in self._blocks:
            self._blocks.move_to_end(key)
            return
        size = _FILE_BYTES if isinstance(data, FileSource) else len(data)
        while self._blocks and sum(self._blocks.values()) + size > _BLOCKS_BYTES:
            (old_job, old_block), _ = self._blocks.popitem(last=False)
            self.process.send(DropBlock(old_job, old_block))
        self._blocks[key] = size
        if isinstance(data, FileSource):
            self.process.send(TakeBlock(job, block, data.name, data.nbytes))
        else:
            self.process.send(TakeBlock(job, block), data)

    def forget(self, job: JobId) -> None:
        """Drop what the kernel keeps of a job; when it still works on it, after that."""
        if job not in self._jobs:
            return
        if any(given.piece.job == job for given in self.hand_overs):
            self._leaving.add(job)
        else:
            self._jobs.discard(job)
            self._leaving.discard(job)
            for key in [key for key in self._blocks if key[0] == job]:
                del self._blocks[key]
            self.process.send(DropJob(job))

    # ------------------------------------------------------------ answers

    def answer(self, first_run: int, count: int) -> tuple[HandOver, bool] | None:
        """Runs were answered: their hand-over, and whether that is complete now."""
        given = self.find(first_run)
        if given is None or not given.unanswered.remove(first_run, first_run + count):
            return None
        self.answered = True
        self._settle(first_run, first_run + count)
        return given, not given.unanswered

    def void_unstarted(self) -> None:
        """Forbid the kernel to begin what it has not begun."""
        self._void_below = self._next_run
        self.process.state.void_below(self._void_below)

    def take_back(self) -> list[Returned]:
        """After `void_unstarted` and a moment: the tasks that will certainly not run."""
        return self._take(self.process.state.touched + 1, self._void_below)

    def skipped(self, first_run: int, count: int) -> list[Returned]:
        """The kernel found these runs void: those that were not taken back before."""
        return self._take(first_run, first_run + count)

    def take_all(self) -> list[Returned]:
        """Everything that the kernel still owes: it is dead."""
        return self._take(1, self._next_run)

    def _take(self, low: int, high: int) -> list[Returned]:
        returned: list[Returned] = []
        for given in self.hand_overs:
            for first, last in given.unanswered.remove(low, high):
                returned += self._split(given, first, last)
        self._settle(low, high)
        return returned

    def _split(self, given: HandOver, first: int, last: int) -> Iterator[Returned]:
        """Ranges of runs, those that are to be cancelled apart."""
        for how, runs in groupby(range(first, last), key=self._stopped):
            numbers = list(runs)
            yield Returned(numbers[0], given.part(numbers[0], len(numbers)), *how)

    def _stopped(self, run: int) -> tuple[bool, bool]:
        return run in self.stops, run in self.silenced

    def _settle(self, low: int, high: int) -> None:
        """Forget the deadlines of answered runs, and hand-overs that are complete."""
        for run in [run for run in self.stops if low <= run < high]:
            del self.stops[run]
            self.silenced.discard(run)
        for run in [run for run in self.breaches if low <= run < high]:
            del self.breaches[run]
        self.hand_overs = [given for given in self.hand_overs if given.unanswered]
        for job in list(self._leaving):
            self.forget(job)

    # ------------------------------------------------------------ looking

    def find(self, run: int) -> HandOver | None:
        """The hand-over that the run belongs to."""
        for given in self.hand_overs:
            if given.first_run <= run < given.first_run + given.piece.count:
                return given
        return None

    def runs_of(self, job: JobId, named: TaskRange) -> list[int]:
        """Unanswered runs of these tasks, of this round or an earlier one."""
        found = self._unanswered(job, named)
        return [run for _, first, last in found for run in range(first, last)]

    def tasks_of(self, job: JobId, named: TaskRange) -> list[Range]:
        """The tasks of those runs."""
        return [
            (first - shift, last - shift) for shift, first, last in self._unanswered(job, named)
        ]

    def _unanswered(self, job: JobId, named: TaskRange) -> Iterator[tuple[int, int, int]]:
        """Ranges of runs, each behind what is to be taken off a run for its task."""
        for given in self.hand_overs:
            piece = given.piece
            if piece.job == job and piece.round <= named.round:
                shift = given.first_run - piece.start
                low, high = max(piece.start, named.start), min(piece.stop, named.stop)
                for first, last in given.unanswered.intersection(low + shift, high + shift):
                    yield shift, first, last

    def has_unstarted(self) -> bool:
        """Whether the kernel holds tasks behind the one that it is at."""
        touched = self.process.state.touched
        return any(
            given.unanswered.intersection(touched + 1, self._next_run) for given in self.hand_overs
        )

    def active(self) -> Active | None:
        run = self.process.state.active
        started_ns = self.process.state.started_ns
        given = self.find(run) if run else None
        if given is None or run not in given.unanswered:
            return None
        elapsed = (time.monotonic_ns() - started_ns) * 1e-9 if started_ns else 0.0
        return Active(run, given, max(0.0, elapsed))

    def printed(self, data: bytes) -> JobId | None:
        """Text came through the pipe: the job whose task is at work, if one is."""
        run = self.process.state.active or self.process.state.touched
        given = self.find(run)
        if given is None or run not in given.unanswered:
            return None
        self.output.came(run, data)
        return given.piece.job

    def in_long_task(self, seconds: float) -> bool:
        found = self.active()
        return found is not None and found.elapsed_s > seconds

    def running(self) -> Held | None:
        """What runs, as the report names it."""
        if (found := self.active()) is None:
            return None
        piece, index = found.given.piece, found.task
        return Held(piece.job, index, index + 1, piece.round, piece.attempt, found.elapsed_s)
