"""All that the scheduler remembers, and the bookkeeping that ties jobs to workers."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from nbsched.model import JobId, WorkerId
from nbsched.scheduler.job import Job
from nbsched.scheduler.loadheap import LoadHeap
from nbsched.scheduler.workers import Worker

TARGET_S = 0.5
"""Seconds of work that each slot of a worker should have in hand: deep enough to
hide the leader's round trip and its death for short tasks, shallow enough that
another job's task is not held up and that little has to be recalled."""


@dataclass
class State:
    """The scheduler's state. ``recovering`` means: nothing is handed out yet."""

    recovering: bool = True
    jobs: dict[JobId, Job] = field(default_factory=dict)
    workers: dict[WorkerId, Worker] = field(default_factory=dict)
    loads: dict[str, LoadHeap] = field(default_factory=dict)
    """Usable workers by load, one heap for each version of Python."""
    runnable: dict[int, dict[JobId, None]] = field(default_factory=dict)
    """Jobs with work to hand out, by priority, in turn."""
    starved: dict[JobId, None] = field(default_factory=dict)
    """Jobs with work of which no task is assigned."""
    last_seq: dict[WorkerId, int] = field(default_factory=dict)
    """Slices sent to workers that were lost: they may come back under the same id."""
    wakes: list[float] = field(default_factory=list)

    def total_slots(self, python: str) -> int:
        return sum(w.cpus for w in self.workers.values() if w.usable and w.python == python)

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

    def refresh_worker(self, worker: Worker) -> None:
        """Put the worker where it belongs among the loads."""
        heap = self.loads.setdefault(worker.python, LoadHeap())
        if worker.usable:
            heap.set(worker.id, self.load(worker))
        else:
            heap.discard(worker.id)

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

    def sync(self, job: Job, worker_id: WorkerId) -> None:
        """Bring a worker's count of a job's tasks up to what the job says."""
        worker = self.workers.get(worker_id)
        if worker is None:
            return
        held = job.assigned.get(worker_id)
        worker.task_cpus.setdefault(job.record.id, job.record.cpus)
        worker.set_assigned(job.record.id, len(held) if held is not None else 0)
        self.refresh_worker(worker)

    def wake_at(self, time: float) -> bool:
        """Note a time to wake at; says whether it is the earliest."""
        earliest = not self.wakes or time < self.wakes[0]
        heapq.heappush(self.wakes, time)
        return earliest
