"""``step``: one event in, the commands that follow from it out.

Routing only. What an event does to a task is in `job`, what is handed out in
`assign`. Unknown jobs and workers in an event are no error: servers deliver late.
"""

from __future__ import annotations

from nbsched._compat import assert_never
from nbsched.indexset import IndexSet, Range
from nbsched.messages import Outcome
from nbsched.model import JobId, JobState, Request, TaskRange, WorkerId
from nbsched.scheduler import events
from nbsched.scheduler.assign import RECALL_AGAIN_S, RECALL_PAUSE_S, hand_out
from nbsched.scheduler.commands import (
    Command,
    DropRequest,
    DropStatus,
    PublishLost,
    RebuildJob,
    ReleaseJob,
    StopOnWorker,
    WakeAt,
)
from nbsched.scheduler.inventory import report_read
from nbsched.scheduler.job import Job
from nbsched.scheduler.speculation import speculate
from nbsched.scheduler.state import State
from nbsched.scheduler.status import explain_waiting, status_of
from nbsched.scheduler.stopping import cancelled, end_runs, stop_alone, stop_runs
from nbsched.scheduler.workers import Worker


def step(state: State, event: events.Event, now: float) -> list[Command]:
    """Apply one event. ``now`` is any clock in seconds that does not jump back."""
    commands = _apply(state, event, now)
    commands += hand_out(state, now)
    commands += speculate(state, now)
    commands += explain_waiting(state, event)
    return commands


def _apply(state: State, event: events.Event, now: float) -> list[Command]:
    match event:
        case events.JobAdded():
            return _job_added(state, event)
        case events.JobRebuilt():
            return [done for past in event.history for done in _apply(state, past, now)]
        case events.JobDeleted():
            return _job_deleted(state, event.job)
        case events.BlockStored():
            return _block_stored(state, event)
        case events.OutcomesRead():
            return _outcomes_read(state, event, now)
        case events.CancelAsked():
            return _cancel_asked(state, event)
        case events.RetryAsked():
            return _retry_asked(state, event)
        case events.WorkerJoined():
            return _worker_joined(state, event)
        case events.WorkerLost():
            return _worker_lost(state, event.worker)
        case events.ReportRead():
            return report_read(state, event.report, now)
        case events.TasksRecalled():
            return _tasks_recalled(state, event, now)
        case events.SliceRefused():
            return _slice_refused(state, event)
        case events.RecoveryEnded():
            return _recovery_ended(state)
        case events.TimePassed():
            return _time_passed(state, now)
        case _:
            assert_never(event)


# ---------------------------------------------------------------- jobs


def _job_added(state: State, event: events.JobAdded) -> list[Command]:
    record = event.record
    state.rebuilding.discard(record.id)
    job = state.jobs.get(record.id)
    if job is None:
        job = state.jobs[record.id] = Job(record, unsure=state.recovering)
    job.record = record
    job.seal(record.total)
    job.request_follows = event.request_follows
    to_cancel: list[Range] = []
    if record.inline and record.total is not None:
        to_cancel = job.grow(record.total)
    stops: list[Command] = []
    for worker, ranges in job.cut().items():
        stops.append(StopOnWorker(worker, record.id, job.with_rounds(ranges)))
        state.sync(job, worker)
    state.refresh_job(job)
    return [*cancelled(job, to_cancel), *stops, *_advance(state, job)]


def _job_deleted(state: State, job_id: JobId) -> list[Command]:
    """Its record is gone, and nothing that is about it must outlive that: it may have been
    removed while it was being opened again, and its status have been written after that."""
    state.rebuilding.discard(job_id)
    job = state.jobs.get(job_id)
    if job is None:
        return []
    drops = [DropRequest(job_id, request) for request in job.requests.ids()]
    return [*drops, DropStatus(job_id), *_release(state, job)]


def _release(state: State, job: Job) -> list[Command]:
    job_id = job.record.id
    del state.jobs[job_id]
    for worker_id in job.served:
        worker = state.workers.get(worker_id)
        if worker is not None:
            worker.forget(job_id)
            state.refresh_worker(worker)
    state.runnable.get(job.record.priority, {}).pop(job_id, None)
    state.starved.pop(job_id, None)
    state.tails.pop(job_id, None)
    return [ReleaseJob(job_id, tuple(job.served))]


def _block_stored(state: State, event: events.BlockStored) -> list[Command]:
    job = state.jobs.get(event.job)
    if job is None:
        return []
    to_cancel = job.store_block(event.block)
    state.refresh_job(job)
    return cancelled(job, to_cancel)


def _advance(state: State, job: Job) -> list[Command]:
    """Follow the job's state: taken on, ended, opened again."""
    ended = job.finished and job.sealed
    commands: list[Command] = [
        DropRequest(job.record.id, request)
        for request in job.requests.take_settled(job_ended=ended)
    ]
    target = job.final_state() if job.finished else JobState.RUNNING
    if target is not job.state:
        job.state = target
        job.note = ""
        commands.append(status_of(job))
    if target.ended and not job.requests and not job.request_follows:
        commands += _release(state, job)
    return commands


# ---------------------------------------------------------------- outcomes and requests


def _outcomes_read(state: State, event: events.OutcomesRead, now: float) -> list[Command]:
    job = state.jobs.get(event.job)
    if job is None:
        return []
    worker = state.workers.get(event.worker)
    if event.sequence and event.sequence <= job.read_to:
        return []
    job.read_to = max(job.read_to, event.sequence)
    commands: list[Command] = []
    for outcome in event.outcomes:
        if worker is not None:
            _measure(worker, event.job, outcome)
            worker.running.pop((event.job, outcome.start, outcome.round), None)
        commands += cancelled(job, job.apply(event.worker, outcome, now))
    wake = state.note_delays(job)
    if wake is not None:
        commands.append(WakeAt(wake))
    commands += _relieve(state, job)
    state.refresh_job(job)
    return commands + _advance(state, job)


def _relieve(state: State, job: Job) -> list[Command]:
    """Bring counts up to date, and end the runs of which another one counts."""
    # A changed measurement changes every holder's load a little; those that hold
    # fewer tasks now need their new place at once.
    for holder in job.relieved:
        state.sync(job, holder)
    job.relieved.clear()
    commands = [
        stop
        for worker, named in job.losers.items()
        if worker in state.workers
        for stop in end_runs(worker, job.record.id, named)
    ]
    job.losers.clear()
    return commands


def _measure(worker: Worker, job: JobId, outcome: Outcome) -> None:
    if outcome.elapsed_s > 0:
        worker.measure(job, outcome.elapsed_s, max(1, outcome.stop - outcome.start))


def _rebuild(state: State, request: Request) -> list[Command]:
    state.rebuilding.add(request.job)
    return [RebuildJob(request)]


def _cancel_asked(state: State, event: events.CancelAsked) -> list[Command]:
    request = event.request
    job = state.jobs.get(request.job)
    if job is None:
        return _rebuild(state, request)
    job.request_follows = False
    to_publish = job.cancel(request.id, request.ranges)
    state.refresh_job(job)
    stops = [stop for worker, held in job.assigned.items() for stop in stop_runs(job, worker, held)]
    return [*cancelled(job, to_publish), *stops, *_advance(state, job)]


def _retry_asked(state: State, event: events.RetryAsked) -> list[Command]:
    request = event.request
    job = state.jobs.get(request.job)
    if job is None:
        return _rebuild(state, request)
    job.request_follows = False
    to_cancel = job.retry(request.id, request.ranges)
    state.refresh_job(job)
    return cancelled(job, to_cancel) + _advance(state, job)


# ---------------------------------------------------------------- workers


def _worker_joined(state: State, event: events.WorkerJoined) -> list[Command]:
    worker = state.workers.get(event.worker)
    if worker is None:
        worker = Worker(event.worker, event.cpus, event.python)
        worker.seq = state.last_seq.pop(event.worker, 0)
        state.workers[event.worker] = worker
    worker.cpus, worker.draining, worker.joined = event.cpus, event.draining, event.revision
    state.refresh_worker(worker)
    return []


def _worker_lost(state: State, worker_id: WorkerId) -> list[Command]:
    worker = state.workers.pop(worker_id, None)
    if worker is None:
        return []
    state.troubles.pop(worker_id, None)
    state.refresh_worker(worker)
    state.last_seq[worker_id] = worker.seq
    commands: list[Command] = []
    for job in list(state.jobs.values()):
        job.served.pop(worker_id, None)
        copied = job.copies.on(worker_id)
        held = job.assigned.get(worker_id, IndexSet())
        if not held and not copied:
            continue
        for of, index, round_ in list(worker.running):
            if of == job.record.id and round_ == job.rounds.get(index):  # else it is queued there
                commands += _lost_running(job, worker_id, index)
        to_cancel: list[Range] = []
        for start, stop in [*held.ranges(), *((i, i + 1) for i in copied)]:
            to_cancel += job.give_back(worker_id, start, stop)
        commands += cancelled(job, to_cancel)
        commands += stop_alone(job, copied)
        state.refresh_job(job)
    return commands


def _lost_running(job: Job, worker: WorkerId, index: int) -> list[Command]:
    history = job.lose_running(worker, index)
    if history is None:
        return []
    if index in job.stopping:
        return cancelled(job, [(index, index + 1)])
    return [
        PublishLost(
            job=job.record.id,
            index=index,
            round=job.rounds.get(index),
            attempt=history.attempt,
            crashes=history.crashes,
            final=history.crashes >= job.record.max_crashes,
            worker=worker,
            past=history.past,
        )
    ]


def _tasks_recalled(state: State, event: events.TasksRecalled, now: float) -> list[Command]:
    worker = state.workers.get(event.worker)
    if worker is not None:
        worker.recalling = False
        pause = RECALL_AGAIN_S if event.ranges else RECALL_PAUSE_S
        state.fleets[worker.python].rest(worker, now + pause)
        state.refresh_worker(worker)
    job = state.jobs.get(event.job)
    if job is None:
        return []
    to_cancel = _returned(job, event.worker, event.ranges)
    state.sync(job, event.worker)
    state.refresh_job(job)
    return cancelled(job, to_cancel)


def _returned(job: Job, worker: WorkerId, ranges: tuple[TaskRange, ...]) -> list[Range]:
    to_cancel: list[Range] = []
    for named in ranges:
        to_cancel += job.give_back(worker, named.start, named.stop)
    return to_cancel


def _slice_refused(state: State, event: events.SliceRefused) -> list[Command]:
    worker = state.workers.get(event.worker)
    if worker is not None:
        worker.draining = True  # until its record says otherwise
        state.refresh_worker(worker)
    job = state.jobs.get(event.job)
    if job is None:
        return []
    to_cancel = job.give_back(event.worker, event.start, event.stop)
    state.sync(job, event.worker)
    state.refresh_job(job)
    return cancelled(job, to_cancel)


def _recovery_ended(state: State) -> list[Command]:
    state.recovering = False
    commands: list[Command] = []
    for job in state.jobs.values():
        commands += cancelled(job, job.workers_told())
        state.refresh_job(job)
    return commands


def _time_passed(state: State, now: float) -> list[Command]:
    wake = state.release_due(now)
    return [] if wake is None else [WakeAt(wake)]
