"""What is to happen: who is there, what they ask for, what goes wrong and when.

A story is data, drawn from a seed; it can be cut down piece by piece (`shrink`) and read
aloud (`lines`). How the network orders things in detail is drawn while it is played, from
the same seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from support.sim.kernels import Act

TTL_S = 5.0
STORY_S = 14.0
"""Faults begin within this time."""


@dataclass(frozen=True)
class TaskPlan:
    """What a task does in its attempts, the last entry again and again; ``later`` from
    its second round on."""

    acts: tuple[Act, ...]
    later: tuple[Act, ...] = ()
    once: bool = False
    """It crashes its kernel only the first time that it runs at all."""

    @property
    def poison(self) -> bool:
        return self.acts[-1].how == "crash" and not self.once


@dataclass(frozen=True)
class JobPlan:
    """A job of a client."""

    name: str
    client: int
    at: float
    tasks: tuple[TaskPlan, ...]
    inline: bool = True
    cpus: int = 1
    max_crashes: int = 3
    task_timeout_s: float | None = None
    pause_s: float = 0.0
    """Between the items of an iterator that is uploaded as it comes."""


@dataclass(frozen=True)
class Ask:
    """A user's request: ``cancel`` (a job, or some tasks), ``retry`` (some or all)."""

    at: float
    what: str
    job: str
    tasks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong at a time, for a while."""

    at: float
    what: str
    whom: int = 0
    seconds: float = 0.0
    how: str = ""
    amount: float = 0.0


@dataclass(frozen=True)
class Story:
    seed: int
    workers: tuple[int, ...]
    """CPUs of each daemon; 0 is a candidate that runs no tasks."""
    jobs: tuple[JobPlan, ...]
    asks: tuple[Ask, ...] = ()
    faults: tuple[Fault, ...] = ()
    delay_s: float = 0.001
    skew: bool = False
    """Clocks start anywhere, run up to 2 % fast or slow, and show the wrong time."""

    @property
    def possible(self) -> bool:
        """Whether there is a worker for every job."""
        return all(job.cpus <= max(self.workers) for job in self.jobs)

    def lines(self) -> Iterator[str]:
        """The story in words."""
        cpus = ", ".join(f"w{number} with {count}" for number, count in enumerate(self.workers))
        yield f"daemons and their CPUs: {cpus}{'; clocks are skewed' if self.skew else ''}"
        happens = [(job.at, _job_line(job)) for job in self.jobs]
        happens += [(ask.at, _ask_line(ask)) for ask in self.asks]
        happens += [(fault.at, _fault_line(fault)) for fault in self.faults]
        for at, line in sorted(happens):
            yield f"{at:7.2f} s  {line}"


def _job_line(job: JobPlan) -> str:
    tasks = ", ".join(
        f"{number}: {' then '.join(f'{act.how} after {act.seconds:g} s' for act in task.acts)}"
        + (" (once)" if task.once else "")
        + (" (heeds no SIGINT)" if task.acts[0].stubborn else "")
        for number, task in enumerate(job.tasks)
    )
    kind = "inline" if job.inline else "through the log"
    limit = f", task_timeout {job.task_timeout_s:g} s" if job.task_timeout_s else ""
    wide = f", {job.cpus} CPUs each" if job.cpus > 1 else ""
    most = f", max_crashes {job.max_crashes}"
    return f"c{job.client} submits {job.name}, {kind}{limit}{wide}{most}: {tasks}"


def _ask_line(ask: Ask) -> str:
    tasks = f" tasks {', '.join(map(str, ask.tasks))}" if ask.tasks else ""
    return f"{ask.what}{tasks} of {ask.job}"


def _fault_line(fault: Fault) -> str:
    lasts = f" for {fault.seconds:.2f} s" if fault.seconds else ""
    return f"FAULT {fault.what} {fault.how} whom={fault.whom} amount={fault.amount:g}{lasts}"


# ---------------------------------------------------------------- drawing one

FAULTS = (
    "kill worker",
    "kill leader",
    "stop worker",
    "stop leader",
    "kill kernel",
    "cut",
    "cut leader",
    "etcd down",
    "nats down",
    "nats loses the tail",
    "end watches",
    "revoke lease",
    "bad messages",
    "kill client",
    "drain worker",
    "log full",
)


@dataclass(frozen=True)
class Theme:
    """What stories are about, where one kind of trouble is looked for."""

    faults: tuple[str, ...] = FAULTS
    least_faults: int = 0
    lengths: tuple[float, ...] = (0.001, 0.02, 0.2, 1.0, 3.0)
    """Seconds of a job's tasks."""
    unusual: float = 0.5
    """How many jobs have tasks that fail, crash or are retried."""
    kinds: tuple[float, float] = (0.0, 1.0)
    """Which part of the kinds of tasks, see `_task`."""
    asks: float = 0.25
    workers: tuple[int, ...] = (1, 2, 2, 3, 3)
    delays: tuple[float, ...] = (0.0005, 0.001, 0.005, 0.03)
    """Seconds that a message takes."""


ANYTHING = Theme()


def theme_of(seed: int) -> Theme:
    """What the story of a seed is about: anything, and every fifth about much of one kind of
    trouble, with cancels and retries. Those find what is hidden in a mixture."""
    if seed % 5 != 4:
        return ANYTHING
    return Theme(faults=(FAULTS[seed // 5 % len(FAULTS)],), least_faults=4, asks=1.0)


def draw(seed: int, theme: Theme = ANYTHING) -> Story:
    """The story of a seed."""
    rng = random.Random(seed)
    workers = [rng.choice((1, 1, 2, 2, 4)) for _ in range(rng.choice(theme.workers))]
    if len(workers) > 1 and rng.random() < 0.15:
        workers[0] = 0
    clients = rng.choice((1, 1, 1, 2))
    count = rng.choice((1, 1, 1, 2, 2, 3))
    jobs = tuple(_job(rng, number, clients, max(workers), theme) for number in range(count))
    return Story(
        seed,
        tuple(workers),
        jobs,
        tuple(_asks(rng, jobs, theme.asks)),
        tuple(
            _fault(rng, len(workers), theme)
            for _ in range(max(theme.least_faults, rng.choice((0, 1, 1, 2, 2, 3, 4))))
        ),
        delay_s=rng.choice(theme.delays),
        skew=rng.random() < 0.3,
    )


def _job(rng: random.Random, number: int, clients: int, most_cpus: int, theme: Theme) -> JobPlan:
    length = rng.choice(theme.lengths)
    count = rng.choice((1, 2, 3, 5, 8)) if length > 0.1 else rng.choice((1, 3, 8, 20, 40))
    ordinary = rng.random() >= theme.unusual
    return JobPlan(
        f"job{number}",
        rng.randrange(clients),
        round(rng.uniform(0.3, 6.0), 2),
        tuple(_task(rng, length, ordinary, theme) for _ in range(count)),
        inline=rng.random() < 0.6,
        cpus=2 if most_cpus > 1 and rng.random() < 0.1 else 1,
        max_crashes=rng.choice((1, 2, 3, 3)),
        task_timeout_s=rng.choice((0.5, 2.0)) if rng.random() < 0.08 else None,
        pause_s=rng.choice((0.0, 0.0, 0.0, 0.1, 0.5)),
    )


def _task(rng: random.Random, length: float, ordinary: bool, theme: Theme) -> TaskPlan:
    seconds = round(length * rng.uniform(0.5, 1.5), 4)
    stubborn = rng.random() < 0.05
    ok = Act("ok", seconds, stubborn=stubborn)
    kind = 0.0 if ordinary else rng.uniform(*theme.kinds)
    if kind < 0.75:
        return TaskPlan((ok,))
    if kind < 0.85:
        retries = rng.randrange(1, 3)
        retry = Act("retry", seconds, rng.choice((0.0, 0.0, 0.3, 4.0)), stubborn)
        return TaskPlan((*[retry] * retries, ok if rng.random() < 0.7 else Act("fail", seconds)))
    if kind < 0.92:
        return TaskPlan((Act("fail", seconds),), (ok,))
    crash = Act("crash", seconds)
    return TaskPlan((crash,), (ok,), once=rng.random() < 0.5)


def _asks(rng: random.Random, jobs: tuple[JobPlan, ...], often: float) -> Iterator[Ask]:
    for job in jobs:
        if rng.random() < often:
            whole = rng.random() < 0.4
            some = tuple(sorted(rng.sample(range(len(job.tasks)), min(2, len(job.tasks)))))
            yield Ask(
                round(job.at + rng.uniform(0, 8), 2), "cancel", job.name, () if whole else some
            )
        if rng.random() < often:
            for _ in range(rng.choice((1, 1, 2))):
                yield Ask(round(job.at + rng.uniform(1, 10), 2), "retry", job.name)


def _fault(rng: random.Random, workers: int, theme: Theme) -> Fault:
    what = rng.choice(theme.faults)
    at = round(rng.uniform(0.3, STORY_S * rng.random() + 0.5), 2)
    whom = rng.randrange(workers)
    lasting = round(
        rng.choice((0.2, 1.0, TTL_S * 0.5, TTL_S, TTL_S * 2)) * rng.uniform(0.8, 1.3), 2
    )
    if what == "bad messages":
        how, amount = rng.choice((("loss", 0.3), ("twice", 0.5), ("late", 2.5), ("all", 0.2)))
        return Fault(at, what, 0, lasting, how, amount)
    if what == "nats loses the tail":
        how, amount = rng.choice(("results", "inputs", "both")), rng.choice((1, 3, 10, 1000))
        return Fault(at, what, 0, lasting, how, amount)
    if what in ("cut", "cut leader"):
        how = rng.choice(("both", "etcd", "nats")) + " " + rng.choice(("both ways", "out", "back"))
        return Fault(at, what, whom, lasting, how)
    if what in ("kill worker", "kill leader"):
        return Fault(at, what, whom, round(rng.uniform(0.5, 8.0), 2))
    if what in ("kill kernel", "end watches", "revoke lease", "kill client", "drain worker"):
        return Fault(at, what, whom)
    return Fault(at, what, whom, lasting)


# ---------------------------------------------------------------- cutting one down


def smaller(story: Story) -> Iterator[Story]:
    """Stories with one thing less, the boldest cuts first."""
    return (candidate for candidate in _smaller(story) if candidate.possible)


def _smaller(story: Story) -> Iterator[Story]:
    for faults in _without_some(story.faults):
        yield replace(story, faults=faults)
    for jobs in _without_some(story.jobs):
        if jobs:
            names = {job.name for job in jobs}
            yield replace(story, jobs=jobs, asks=tuple(a for a in story.asks if a.job in names))
    for asks in _without_some(story.asks):
        yield replace(story, asks=asks)
    if len(story.workers) > 1:
        yield replace(story, workers=story.workers[:-1])
        yield replace(story, workers=story.workers[1:])
    for number, job in enumerate(story.jobs):
        for tasks in _without_some(job.tasks):
            if tasks:
                yield _with_job(story, number, replace(job, tasks=tasks))
        for plain in _plainer(job):
            yield _with_job(story, number, plain)
    for number, count in enumerate(story.workers):
        if count > 1:
            fewer = (*story.workers[:number], 1, *story.workers[number + 1 :])
            yield replace(story, workers=fewer)
    if story.skew:
        yield replace(story, skew=False)
    for number, fault in enumerate(story.faults):
        if fault.seconds > 0.5:
            short = replace(fault, seconds=round(fault.seconds / 2, 2))
            yield replace(
                story, faults=(*story.faults[:number], short, *story.faults[number + 1 :])
            )


def _plainer(job: JobPlan) -> Iterator[JobPlan]:
    if not job.inline:
        yield replace(job, inline=True, pause_s=0.0)
    if job.cpus > 1:
        yield replace(job, cpus=1)
    if job.task_timeout_s:
        yield replace(job, task_timeout_s=None)
    for number, task in enumerate(job.tasks):
        plain = TaskPlan((replace(task.acts[-1], how="ok", stubborn=False),))
        if task != plain:
            yield replace(job, tasks=(*job.tasks[:number], plain, *job.tasks[number + 1 :]))


def _with_job(story: Story, number: int, job: JobPlan) -> Story:
    count = len(job.tasks)
    asks = tuple(
        replace(ask, tasks=kept)
        for ask in story.asks
        for kept in [tuple(t for t in ask.tasks if t < count)]
        if ask.job != job.name or not ask.tasks or kept
    )
    return replace(story, jobs=(*story.jobs[:number], job, *story.jobs[number + 1 :]), asks=asks)


def _without_some(things: tuple) -> Iterator[tuple]:  # type: ignore[type-arg]
    """Halves, then quarters, then all but one (delta debugging's order)."""
    size = len(things) // 2
    while size >= 1:
        for start in range(0, len(things), size):
            yield things[:start] + things[start + size :]
        size //= 2
    if len(things) == 1:
        yield ()
