"""A job's status as it is written, with the reason why the job does not move."""

from __future__ import annotations

from nbsched.scheduler import events
from nbsched.scheduler.commands import Command, SaveStatus
from nbsched.scheduler.job import Job
from nbsched.scheduler.state import State


def status_of(job: Job) -> SaveStatus:
    return SaveStatus(
        job=job.record.id,
        state=job.state,
        ok=len(job.ended.ok),
        failed=len(job.ended.failed),
        cancelled=len(job.ended.cancelled),
        # A job that was cancelled before it was sealed has the tasks that it has.
        total=job.uploaded if job.finished and not job.sealed else job.total,
        note=job.note,
    )


def explain_waiting(state: State, event: events.Event) -> list[Command]:
    """Say in the status why jobs wait, when members or jobs change."""
    if state.recovering:
        return []
    match event:
        case events.JobAdded(record=record):
            concerned = [state.jobs.get(record.id)]
        case events.JobRebuilt():
            added = [past for past in event.history if isinstance(past, events.JobAdded)]
            concerned = [state.jobs.get(past.record.id) for past in added]
        case events.WorkerJoined() | events.WorkerLost() | events.RecoveryEnded():
            concerned = list(state.jobs.values())
        case events.ReportRead(report=report):
            if not state.note_trouble(report.worker, report.trouble):
                return []
            concerned = list(state.jobs.values())
        case _:
            return []
    changed: list[Command] = []
    for job in concerned:
        if job is None:
            continue
        note = "" if job.finished else _why_waiting(state, job)
        if note != job.note:
            job.note = note
            changed.append(status_of(job))
    return changed


def _why_waiting(state: State, job: Job) -> str:
    largest = {python: fleet.largest for python, fleet in state.fleets.items() if fleet.largest}
    if not largest:
        return "no worker is there: start one with nbsched-worker"
    if job.record.python not in largest:
        found = ", ".join(sorted(largest))
        return f"needs a worker with Python {job.record.python}; there is Python {found}"
    most = largest[job.record.python]
    if most < job.record.cpus:
        return f"a task needs {job.record.cpus} CPUs; the largest worker has {most}"
    return next(iter(state.troubles.values()), "")
