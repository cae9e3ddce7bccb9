"""What a worker says it holds, against what the scheduler believes: differences are mended.

Everything that the results log held when the worker said it has been read before.
"""

from __future__ import annotations

from nbsched.indexset import IndexSet, Range
from nbsched.messages import WorkerReport
from nbsched.model import JobId
from nbsched.scheduler.commands import Command, ForgetOnWorker
from nbsched.scheduler.job import Job, Named
from nbsched.scheduler.state import State
from nbsched.scheduler.stopping import cancelled, end_runs, stop_alone, stop_runs
from nbsched.scheduler.workers import Worker


def report_read(state: State, report: WorkerReport, now: float) -> list[Command]:
    worker = state.workers.get(report.worker)
    if worker is None:
        return []
    if report.draining and not worker.draining:
        worker.draining = True
        state.refresh_worker(worker)
    commands = _superfluous(state, report, worker)
    worker.running = {
        (held.job, held.start, held.round): now - held.running_for_s
        for held in report.held
        if held.running_for_s is not None
    }
    held_by_job: dict[JobId, IndexSet] = {}
    touched: dict[JobId, None] = {}
    """In order: the same report has the same effect everywhere."""
    for held in report.held:
        held_by_job.setdefault(held.job, IndexSet()).add(held.start, held.stop)
        job = state.jobs.get(held.job)
        if job is not None:
            job.adopt(report.worker, held)
            touched[held.job] = None
    if report.seq == worker.seq:  # it has had every slice: what it does not hold is lost
        for job_id in [j for j in worker.tasks if j in state.jobs]:
            commands += _missing(state.jobs[job_id], report, held_by_job.get(job_id, IndexSet()))
            touched[job_id] = None
    for job_id in touched:
        job = state.jobs[job_id]
        commands += _stop_again(job, report, held_by_job.get(job_id, IndexSet()))
        state.sync(job, report.worker)
        state.refresh_job(job)
    return commands


def _superfluous(state: State, report: WorkerReport, worker: Worker) -> list[Command]:
    """End what has its outcome from another run: a copy, or what was run again elsewhere when
    this worker seemed to be lost. The leader that should have ended it may be gone, and so may
    the job: a leader is told of reports only when it knows all jobs that have not ended, and
    which have ended but are to run again. Of those that are being rebuilt nothing can be said.

    Of what runs, only what ran at the last report too: a report may be older than the outcome.
    """
    named: dict[JobId, Named] = {}
    for held in report.held:
        begun = held.running_for_s is not None
        run = (held.job, held.start, held.round)
        if held.job in state.rebuilding or (begun and run not in worker.running):
            continue
        job = state.jobs.get(held.job)
        over = IndexSet([(held.start, held.stop)]) if job is None else job.over(held)
        for part in over.ranges():
            named.setdefault(held.job, {}).setdefault(held.round, IndexSet()).add(*part)
    commands: list[Command] = []
    for job_id, rounds in named.items():
        commands += end_runs(report.worker, job_id, rounds)
        if job_id not in state.jobs:
            commands.append(ForgetOnWorker(report.worker, job_id))
    return commands


def _missing(job: Job, report: WorkerReport, held: IndexSet) -> list[Command]:
    """Assigned, not held, and without an outcome: the task got lost on the way."""
    assigned = job.assigned.get(report.worker, IndexSet())
    copied = [index for index in job.copies.on(report.worker) if index not in held]
    to_cancel: list[Range] = []
    for start, stop in [*assigned.ranges(), *((i, i + 1) for i in copied)]:
        for low, high in held.missing(start, stop):
            to_cancel += job.give_back(report.worker, low, high)
    return cancelled(job, to_cancel) + stop_alone(job, copied)


def _stop_again(job: Job, report: WorkerReport, held: IndexSet) -> list[Command]:
    """A stop that got lost is sent again with every report; workers ignore repetitions."""
    return stop_runs(job, report.worker, held)
