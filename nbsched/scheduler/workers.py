"""What the scheduler knows of one worker: its slots and what it has been given."""

from __future__ import annotations

from dataclasses import dataclass, field

from nbsched.model import JobId, WorkerId
from nbsched.scheduler.pace import learn


@dataclass
class Worker:
    """State of one member that runs tasks."""

    id: WorkerId
    cpus: int
    python: str
    draining: bool = False
    joined: int = 0
    """The store's revision of its record."""
    seq: int = 0
    """Slices sent in this term."""
    tasks: dict[JobId, int] = field(default_factory=dict)
    """Tasks assigned, by job."""
    task_cpus: dict[JobId, int] = field(default_factory=dict)
    task_s: dict[JobId, float] = field(default_factory=dict)
    """Measured seconds per task here: a slow host shows in it."""
    running: dict[tuple[JobId, int, int], float] = field(default_factory=dict)
    """What ran at the last report, by job, index and round, and since when: the suspects when
    the host is lost."""
    recalling: bool = False
    """It has been asked for tasks, and has not answered."""
    resting: bool = False
    """It has answered, and is not asked again so soon."""

    @property
    def usable(self) -> bool:
        return self.cpus > 0 and not self.draining

    @property
    def used_slots(self) -> int:
        """Slots that the assigned tasks would take if all ran at once."""
        return sum(count * self.task_cpus[job] for job, count in self.tasks.items())

    def assign(self, job: JobId, count: int, cpus: int) -> None:
        self.tasks[job] = self.tasks.get(job, 0) + count
        self.task_cpus[job] = cpus

    def set_assigned(self, job: JobId, count: int) -> None:
        """Take over the job's own count; a job that holds nothing is forgotten."""
        if count:
            self.tasks[job] = count
        else:
            self.tasks.pop(job, None)
            self.task_cpus.pop(job, None)

    def measure(self, job: JobId, seconds: float, tasks: int) -> None:
        self.task_s[job] = learn(self.task_s.get(job), seconds, tasks)

    def forget(self, job: JobId) -> None:
        self.set_assigned(job, 0)
        self.task_s.pop(job, None)
