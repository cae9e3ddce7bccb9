"""The commands by which tasks are cancelled, wherever they are."""

from __future__ import annotations

from nbsched.indexset import IndexSet, Range
from nbsched.model import JobId, TaskRange, WorkerId
from nbsched.scheduler.commands import Command, PublishCancelled, StopOnWorker
from nbsched.scheduler.job import Job, Named

_MOST_RANGES = 1000
"""In one command: a message has its limit, and a worker looks at each."""


def cancelled(job: Job, ranges: list[Range]) -> list[Command]:
    return [PublishCancelled(job.record.id, job.with_rounds(ranges))] if ranges else []


def stop_runs(job: Job, worker: WorkerId, held: IndexSet) -> list[Command]:
    """Cancel what of these is to be stopped. Of a task that runs twice the copy goes first,
    and silently: a cancel is confirmed when nothing of the task runs any more."""
    alone = IndexSet(both(job.stopping, held))
    copied = [i for low, high in alone.ranges() for i in job.copies.within(low, high)]
    commands: list[Command] = []
    for index in copied:
        alone.remove(index, index + 1)
        copy, named = job.copies.where(index), job.with_rounds([(index, index + 1)])
        assert copy is not None, "it is copied"
        commands.append(StopOnWorker(copy, job.record.id, named, silently=True))
    if alone:
        commands.append(StopOnWorker(worker, job.record.id, job.with_rounds(alone.ranges())))
    return commands


def end_runs(worker: WorkerId, job: JobId, named: Named) -> list[Command]:
    """Stop runs of which another one counts, or nobody wants one."""
    ranges = [TaskRange(*part, round_) for round_, of in named.items() for part in of.ranges()]
    return [
        StopOnWorker(worker, job, tuple(ranges[at : at + _MOST_RANGES]), silently=True)
        for at in range(0, len(ranges), _MOST_RANGES)
    ]


def stop_alone(job: Job, indices: list[int]) -> list[Command]:
    """Copies are gone, and their tasks may have waited for that to be cancelled."""
    return [
        command
        for index in indices
        if (worker := job.holder(index)) is not None
        for command in stop_runs(job, worker, IndexSet([(index, index + 1)]))
    ]


def both(left: IndexSet, right: IndexSet) -> list[Range]:
    return [part for start, stop in left.ranges() for part in right.intersection(start, stop)]
