"""Second copies of stragglers: the last tasks of a job that take far longer than the others.

A task is slow by itself, or because of where it runs: a bad disk, a crowded host, a
connection that hangs. In the second case it is done sooner elsewhere. So, when a job asks
for it (``speculate=True``) and has nothing left to hand out, a copy of such a task runs on
another worker that has nothing to do. The first outcome counts, the other run is stopped.

The idea is MapReduce's: backup executions of the remaining tasks when a job is close to
its end (J. Dean and S. Ghemawat, OSDI 2004, section 3.6). When to start one is Spark's
rule (``spark.speculation``, its quantile and multiplier): three quarters of the tasks have
ended, and this one has run for a multiple of their median time; it is twice here, and some
seconds at least, since a copy costs work. Those that have run longest come first, and slots
of the same host do not count: it is the likely cause (M. Zaharia et al., OSDI 2008).

A poison task whose first run and copy both die may so die once more than ``max_crashes``
says: each of the two workers knows of its own death only. One that has died once is not
copied any more.
"""

from __future__ import annotations

from collections.abc import Iterator

from nbsched.model import JobId, WorkerId
from nbsched.scheduler.assign import slice_of
from nbsched.scheduler.commands import Command, WakeAt
from nbsched.scheduler.job import Job
from nbsched.scheduler.state import State
from nbsched.scheduler.workers import Worker

MULTIPLE = 2.0
LEAST_S = 2.0
QUANTILE = 0.75
LOOK_S = 0.5
_LOOK_TASK_S = 1e-5
"""Per task that runs: looking may take a hundredth of the leader's time, not more."""
_MOST = 64
"""Copies per look and job."""


def speculate(state: State, now: float) -> list[Command]:
    """Start copies where that is due."""
    if state.recovering:
        return []
    commands: list[Command] = []
    for job_id in [job_id for job_id, due in state.tails.items() if due <= now]:
        job = state.jobs[job_id]
        commands += _copy_stragglers(state, job, now)
        state.tails[job_id] = now + max(LOOK_S, _LOOK_TASK_S * job.assigned_count)
        wake = state.wake_for(job_id, state.tails[job_id])
        if wake is not None:
            commands.append(WakeAt(wake))
    return commands


def _copy_stragglers(state: State, job: Job, now: float) -> Iterator[Command]:
    median = job.durations.median()
    fleet = state.fleets.get(job.record.python)
    total = job.total or 0
    if median is None or fleet is None or not fleet.idle:
        return
    if len(job.ended) < max(1, int(QUANTILE * total)):
        return
    begun_before = now - max(MULTIPLE * median, LEAST_S)
    slow = sorted(_running_since(state, job, begun_before))[:_MOST]
    if not slow:
        return
    idle = sorted((state.workers[name] for name in fleet.idle), key=_freest_first)
    for _, index, holder in slow:
        worker = _other(idle, holder, job.record.cpus)
        if worker is None:
            continue
        first_slice = worker.id not in job.served
        job.copy_to(worker.id, index)
        worker.assign(job.record.id, 1, job.record.cpus)
        state.refresh_worker(worker)
        yield slice_of(job, worker, index, index + 1, first_slice)


def _running_since(
    state: State, job: Job, begun_before: float
) -> Iterator[tuple[float, int, WorkerId]]:
    """Tasks without a copy that began before that time, with it and with where they run."""
    job_id: JobId = job.record.id
    for holder, held in job.assigned.items():
        running = state.workers[holder].running
        for index in held.indices():
            since = running.get((job_id, index, job.rounds.get(index)))
            if since is None or since > begun_before:
                continue
            history = job.history.of(index)
            if history.crashes or history.lost_runs:
                continue  # what has taken down a kernel might do so once more
            if index in job.copies or index in job.stopping:
                continue
            yield since, index, holder


def _freest_first(worker: Worker) -> tuple[int, WorkerId]:
    return worker.used_slots - worker.cpus, worker.id


def _other(idle: list[Worker], holder: WorkerId, cpus: int) -> Worker | None:
    """A worker with room for the task that is not its own."""
    for worker in idle:
        if worker.id != holder and worker.cpus - worker.used_slots >= cpus:
            return worker
    return None
