"""All that the scheduler remembers, and the bookkeeping that ties jobs to workers."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from nbsched.model import JobId, WorkerId
from nbsched.scheduler.fleet import Fleet
from nbsched.scheduler.job import Job
from nbsched.scheduler.workers import Worker

TARGET_S = 0.5
"""Seconds of work that each slot of a worker should have in hand: deep enough to
hide the leader's round trip and its death for short tasks, shallow enough that
another job's task is not held up and that little has to be recalled."""


NO_TASK = -1
"""In `State.delays`: nothing is due but a look at the job."""


@dataclass
class State:
    """The scheduler's state. ``recovering`` means: nothing is handed out yet."""

    recovering: bool = True
    jobs: dict[JobId, Job] = field(default_factory=dict)
    rebuilding: set[JobId] = field(default_factory=set)
    """Jobs with an open request that are not known yet: `RebuildJob` has been asked for."""
    workers: dict[WorkerId, Worker] = field(default_factory=dict)
    fleets: dict[str, Fleet] = field(default_factory=dict)
    """Usable workers, by their version of Python."""
    runnable: dict[int, dict[JobId, None]] = field(default_factory=dict)
    """Jobs with work to hand out, by priority, in turn."""
    starved: dict[JobId, None] = field(default_factory=dict)
    """Jobs with work of which no task is assigned."""
    last_seq: dict[WorkerId, int] = field(default_factory=dict)
    """Slices sent to workers that were lost: they may come back under the same id."""
    tails: dict[JobId, float] = field(default_factory=dict)
    """Jobs with nothing left to hand out of which slow tasks may get a copy: when to look."""
    delays: list[tuple[float, JobId, int]] = field(default_factory=list)
    """Heap of the times at which delayed tasks are due; entries may be outdated."""
    troubles: dict[WorkerId, str] = field(default_factory=dict)
    """Why workers pause, in their words; those that do not are not here."""
    next_wake: float | None = None
    """The time that was last asked for and has not come: there is one timer."""

    def estimate(self, job: Job, worker: Worker) -> float:
        """Seconds per task, capped: an unknown or long task fills a slot."""
        seconds = worker.task_s.get(job.record.id, job.task_s)
        return TARGET_S if seconds is None else min(max(seconds, 1e-6), TARGET_S)

    def load(self, worker: Worker) -> float:
        """Seconds of work per slot that the worker has in hand, unknown tasks capped."""
        seconds = 0.0
        for job_id, count in worker.tasks.items():
            job = self.jobs.get(job_id)
            if job is not None:
                seconds += count * self.estimate(job, worker) * job.record.cpus
        return seconds / worker.cpus

    def note_trouble(self, worker: WorkerId, trouble: str) -> bool:
        """A worker said why it pauses, '' when it does not. Whether that is news."""
        if worker not in self.workers or self.troubles.get(worker, "") == trouble:
            return False
        if trouble:
            self.troubles[worker] = trouble
        else:
            del self.troubles[worker]
        return True

    def refresh_worker(self, worker: Worker) -> None:
        """Put the worker where it belongs among the loads."""
        fleet = self.fleets.setdefault(worker.python, Fleet())
        if worker.usable and worker.id in self.workers:
            fleet.enter(worker, self.load(worker))
        else:
            fleet.leave(worker.id)

    def refresh_job(self, job: Job) -> None:
        """Put the job where it belongs among those with work, keeping its turn."""
        job_id = job.record.id
        queue = self.runnable.setdefault(job.record.priority, {})
        if job.has_work and job_id in self.jobs:
            queue.setdefault(job_id)
            if job.assigned:
                self.starved.pop(job_id, None)
            else:
                self.starved.setdefault(job_id)
        else:
            queue.pop(job_id, None)
            self.starved.pop(job_id, None)
        if job.record.speculate:
            if job.all_running and job_id in self.jobs:
                self.tails.setdefault(job_id, 0.0)
            else:
                self.tails.pop(job_id, None)

    def sync(self, job: Job, worker_id: WorkerId) -> None:
        """Bring a worker's count of a job's tasks up to what the job says."""
        worker = self.workers.get(worker_id)
        if worker is None:
            return
        held = job.assigned.get(worker_id)
        worker.task_cpus.setdefault(job.record.id, job.record.cpus)
        count = len(held) if held is not None else 0
        worker.set_assigned(job.record.id, count + job.copies.count_on(worker_id))
        self.refresh_worker(worker)

    def note_delays(self, job: Job) -> float | None:
        """Remember the job's newly delayed tasks; returns a time to be woken at, if that
        is sooner than the one asked for before."""
        for time, index in job.newly_delayed:
            heapq.heappush(self.delays, (time, job.record.id, index))
        job.newly_delayed.clear()
        return self._sooner()

    def wake_for(self, job: JobId, time: float) -> float | None:
        """Remember a time at which a job is to be looked at; returns as `note_delays`."""
        heapq.heappush(self.delays, (time, job, NO_TASK))
        return self._sooner()

    def release_due(self, now: float) -> float | None:
        """Make ready what is due; returns the next time to be woken at."""
        self.next_wake = None
        while self.delays and self.delays[0][0] <= now:
            time, job_id, index = heapq.heappop(self.delays)
            job = self.jobs.get(job_id)
            if job is not None and job.release(index, time):
                self.refresh_job(job)
        return self._sooner()

    def _sooner(self) -> float | None:
        earliest = self.delays[0][0] if self.delays else None
        if earliest is None or (self.next_wake is not None and earliest >= self.next_wake):
            return None
        self.next_wake = earliest
        return earliest
