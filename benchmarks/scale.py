"""What a decision of the scheduler costs, against workers, jobs and tasks. No server.

    python -m benchmarks.scale [--quick]

Simulated workers of 64 CPUs take slices and answer with outcomes, as real ones do: 20 ms
of work in a message. Every step of the pure core is timed, from the first slice on. The
table goes to scale-results.md beside this file.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import time
import tracemalloc
from collections import deque
from pathlib import Path
from typing import NamedTuple

from benchmarks import report
from nbsched.messages import Outcome, OutcomeState
from nbsched.model import JobId, JobRecord, WorkerId
from nbsched.scheduler import commands, events
from nbsched.scheduler.core import step
from nbsched.scheduler.state import State

CPUS = 64
TASK_S = 0.1
MESSAGE_S = 0.02
STEPS = 4000
PYTHON = "3.11"


class Case(NamedTuple):
    workers: int
    jobs: int
    tasks: int
    """Of all jobs together."""


CASES = [
    *(Case(workers, 1, 10_000_000) for workers in (10, 100, 1000, 10_000)),
    *(Case(1000, 1, tasks) for tasks in (100_000, 1_000_000)),
    *(Case(1000, jobs, 10_000_000) for jobs in (10, 100, 1000, 10_000)),
    Case(10_000, 10_000, 10_000_000),
]
QUICK = [Case(10, 1, 100_000), Case(100, 1, 100_000), Case(100, 100, 100_000)]


class Cost(NamedTuple):
    case: Case
    start_s: float
    """To hand out the first work to all workers."""
    median_us: float
    p99_us: float
    per_s: float
    tasks_per_s: float
    memory_mib: float


class Cluster:
    """The core, and workers that hold ranges of tasks."""

    def __init__(self, case: Case) -> None:
        self.state = State()
        self.now = 0.0
        self.sequence = 0
        self.held: dict[WorkerId, deque[tuple[JobId, int, int]]] = {}
        for number in range(case.workers):
            worker = WorkerId(f"w{number}")
            self.held[worker] = deque()
            self.feed(events.WorkerJoined(worker, CPUS, PYTHON, False))
        each = case.tasks // case.jobs
        for number in range(case.jobs):
            self.feed(events.JobAdded(_record(JobId(f"j{number}"), each)))

    def feed(self, event: events.Event) -> float:
        """One step; its seconds."""
        started = time.perf_counter()
        todo = step(self.state, event, self.now)
        seconds = time.perf_counter() - started
        for command in todo:
            if isinstance(command, commands.SendSlice):
                self.held[command.worker].append((command.job, command.start, command.stop))
            elif isinstance(command, commands.RecallFromWorker):
                self.give_back(command)
        return seconds

    def give_back(self, command: commands.RecallFromWorker) -> None:
        """The worker has begun all that it holds, as far as the scheduler learns."""
        self.feed(events.TasksRecalled(command.worker, command.job, ()))

    def answer(self, worker: WorkerId) -> tuple[float, int]:
        """The outcomes of some milliseconds of one worker: seconds of the step, tasks."""
        job, start, stop = self.held[worker].popleft()
        end = min(stop, start + round(CPUS * MESSAGE_S / TASK_S))
        if end < stop:
            self.held[worker].appendleft((job, end, stop))
        outcome = Outcome(start, end, 0, 1, OutcomeState.OK, elapsed_s=TASK_S * (end - start))
        self.sequence += 1
        self.now += MESSAGE_S / len(self.held)
        event = events.OutcomesRead(job, worker, (outcome,), self.sequence)
        return self.feed(event), end - start


def _record(job: JobId, total: int) -> JobRecord:
    return JobRecord(
        id=job,
        client="c",  # type: ignore[arg-type]
        name="fn",
        submitted_at=0.0,
        python=PYTHON,
        call="one",
        inline=True,
        total=total,
    )


def cost(case: Case, steps: int) -> Cost:
    tracemalloc.start()
    cluster = Cluster(case)
    started = time.perf_counter()
    cluster.feed(events.RecoveryEnded())
    start_s = time.perf_counter() - started
    memory = tracemalloc.get_traced_memory()[0] / 2**20
    tracemalloc.stop()
    gc.collect()
    rng = random.Random(1)
    workers = list(cluster.held)
    times, tasks = [], 0
    # The first answers tell how long tasks take, and slices grow; then it is steady.
    for number in range(3 * len(workers) + steps):
        worker = rng.choice(workers)
        if not cluster.held[worker]:
            continue
        seconds, done = cluster.answer(worker)
        if number >= 3 * len(workers):
            times.append(seconds)
            tasks += done
    return Cost(
        case,
        start_s,
        statistics.median(times) * 1e6,
        statistics.quantiles(times, n=100)[98] * 1e6,
        len(times) / sum(times),
        tasks / sum(times),
        memory,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    titles = (
        "workers",
        "jobs",
        "tasks",
        "a decision, us",
        "99 %",
        "decisions per s",
        "tasks per s",
        "first hand-out, s",
        "memory, MiB",
    )
    lines = [f"| {' | '.join(titles)} |", "|--:" * len(titles) + "|"]
    for case in QUICK if quick else CASES:
        it = cost(case, 500 if quick else STEPS)
        lines.append(
            f"| {case.workers:,} | {case.jobs:,} | {case.tasks:,} | {it.median_us:.0f}"
            f" | {it.p99_us:.0f} | {it.per_s:,.0f} | {it.tasks_per_s:,.0f} | {it.start_s:.2f}"
            f" | {it.memory_mib:.1f} |"
        )
        print(lines[-1], flush=True)
    if not quick:
        page = f"Workers of {CPUS} CPUs, tasks of {TASK_S} s. {report.machine()}.\n\n"
        path = Path(__file__).with_name("scale-results.md")
        path.write_text(page + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
