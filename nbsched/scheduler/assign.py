"""Who gets which tasks, how many at once, and what is taken back.

Every worker is kept `TARGET_S` seconds of work per slot deep. Jobs take turns, one
slice each; a job of which nothing is assigned gets one task in even when all workers
are full, so that a long job cannot hold up a short one. Slices shrink towards the end
of a job (guided self-scheduling: C. Polychronopoulos and D. Kuck, IEEE Trans.
Computers 36(12), 1987), and what is still queued on one worker is recalled when
another has nothing to do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

from nbsched.indexset import IndexSet
from nbsched.messages import BlockRef
from nbsched.model import JobId
from nbsched.scheduler.commands import Command, RecallFromWorker, SendSlice
from nbsched.scheduler.fleet import Fleet
from nbsched.scheduler.job import Job
from nbsched.scheduler.state import TARGET_S, State
from nbsched.scheduler.workers import Worker

LEAST_SLICE_S = 0.05
"""Not worth a message of its own: shrinking slices stop here, in seconds per slot."""
RECALL_PAUSE_S = 0.05
"""Before a worker that had nothing to give back is asked again."""
_REFUSALS = 8
"""So many workers are looked at in vain before the search ends until the next step."""
RECALL_AGAIN_S = 0.005
"""Before one that had is: whatever goes wrong, tasks cannot go to and fro without end."""


def hand_out(state: State, now: float) -> list[Command]:
    """Assign whatever can be assigned."""
    if state.recovering:
        return []
    commands: list[Command] = []
    for priority in sorted(state.runnable, reverse=True):
        commands += _serve_in_turn(state, state.runnable[priority])
        if not state.runnable[priority]:
            del state.runnable[priority]
    commands += _serve_starved(state)
    return commands + _recall(state, now)


def _serve_in_turn(state: State, queue: dict[JobId, None]) -> Iterator[Command]:
    """One slice for each job in turn, until workers are full or work is out."""
    unplaced = 0
    while queue and unplaced < len(queue):
        if all(_full(load) for load in _least_loads(state)):
            return
        job_id = next(iter(queue))
        job = state.jobs[job_id]
        worker = _worker_for(state, job, full_is_fine=False)
        del queue[job_id]
        queue[job_id] = None
        if worker is None:
            unplaced += 1
            continue
        unplaced = 0
        yield _place(state, job, worker, _slice_size(state, job, worker))


def _serve_starved(state: State) -> Iterator[Command]:
    for job_id in list(state.starved):
        job = state.jobs[job_id]
        worker = _worker_for(state, job, full_is_fine=True)
        if worker is not None:
            yield _place(state, job, worker, 1)


def _least_loads(state: State) -> Iterator[float]:
    for fleet in state.fleets.values():
        top = fleet.lightest()
        if top is not None:
            yield top[0][1]


def _full(load: float) -> bool:
    """Whether a worker with this load takes no more (floats: within rounding)."""
    return load >= TARGET_S * (1 - 1e-9)


def _worker_for(state: State, job: Job, *, full_is_fine: bool) -> Worker | None:
    """The least loaded worker that can run the job."""
    fleet = state.fleets.get(job.record.python)
    top = None if fleet is None else fleet.lightest(job.record.cpus)
    if top is None:
        return None
    (_, load), worker_id = top
    return None if _full(load) and not full_is_fine else state.workers[worker_id]


def _slice_size(state: State, job: Job, worker: Worker) -> int:
    """Tasks that the worker should get now."""
    seconds = state.estimate(job, worker) * job.record.cpus
    room = (TARGET_S - state.load(worker)) * worker.cpus / seconds
    slots = max(1, worker.cpus // job.record.cpus)
    least = max(1, math.ceil(LEAST_SLICE_S * worker.cpus / seconds)) if job.task_s else slots
    slots_there = state.fleets[worker.python].slots
    share = math.ceil(len(job.fresh) * worker.cpus / (2 * max(1, slots_there)))
    # Rounded up, or the rest would make a slice of one task.
    return max(1, min(math.ceil(room - 1e-6), max(least, share)))


def _place(state: State, job: Job, worker: Worker, count: int) -> SendSlice:
    first_slice = worker.id not in job.served
    if job.ready:
        start = job.take_ready(worker.id)
        stop = start + 1
    else:
        start, stop = job.take_fresh(worker.id, count)
    worker.assign(job.record.id, stop - start, job.record.cpus)
    state.refresh_worker(worker)
    state.refresh_job(job)
    return slice_of(job, worker, start, stop, first_slice)


def slice_of(job: Job, worker: Worker, start: int, stop: int, first_slice: bool) -> SendSlice:
    """The command that gives a worker tasks which it is assigned."""
    history = job.history.of(start)
    worker.seq += 1
    return SendSlice(
        worker=worker.id,
        seq=worker.seq,
        job=job.record.id,
        start=start,
        stop=stop,
        round=job.rounds.get(start),
        attempt=history.attempt,
        crashes=history.crashes,
        first_started_at=history.first_started_at,
        blocks=_blocks(job, start, stop),
        first_slice=first_slice,
        past=history.past,
        joined=worker.joined,
    )


def _blocks(job: Job, start: int, stop: int) -> tuple[BlockRef, ...]:
    return () if job.record.inline else job.blocks.of(start, stop)


def _recall(state: State, now: float) -> list[Command]:
    """When workers have free slots and nothing is queued, take back the fullest ones' tails,
    one for each that is free."""
    return [
        command
        for fleet in state.fleets.values()
        if fleet.idle
        for command in _recall_in(state, fleet, now)
    ]


def _recall_in(state: State, fleet: Fleet, now: float) -> Iterator[Command]:
    for worker_id in fleet.rested(now):
        if (rested := state.workers.get(worker_id)) is not None:
            rested.resting = False
            state.refresh_worker(rested)
    refusals = 0
    while len(fleet.recalling) < len(fleet.idle) and refusals < _REFUSALS:
        top = fleet.fullest.peek()
        if top is None:
            return
        worker = state.workers[top[1]]
        command = _recall_from(state, fleet, worker)
        if command is None:
            refusals += 1
            fleet.rest(worker, now + RECALL_PAUSE_S)
        else:
            worker.recalling = True
            yield command
        state.refresh_worker(worker)


def _recall_from(state: State, fleet: Fleet, worker: Worker) -> Command | None:
    """Half of what waits there of its largest job, if it could run on a free worker."""
    job_id = max(worker.tasks, key=lambda job: worker.tasks[job])
    job = state.jobs[job_id]
    if job.record.cpus > 1 and not _fits_somewhere(state, fleet, job):
        return None
    surplus = worker.used_slots - worker.cpus
    count = max(1, min(surplus, worker.tasks[job_id] - 1) // 2)
    ranges = job.assigned.get(worker.id, IndexSet()).tail(count)
    return RecallFromWorker(worker.id, job_id, job.with_rounds(ranges)) if ranges else None


def _fits_somewhere(state: State, fleet: Fleet, job: Job) -> bool:
    free = (state.workers[worker] for worker in islice(fleet.idle, _REFUSALS))
    return any(worker.cpus - worker.used_slots >= job.record.cpus for worker in free)
