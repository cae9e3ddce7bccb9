"""One trial: an arena is started, things are done to it, and what is left is judged."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chaos import checker, diary, evidence
from chaos.arena import Arena
from chaos.checker import Findings, StoreChange
from chaos.client import JobPlan
from chaos.faults import FAULTS
from chaos.groundfaults import GROUND_FAULTS
from chaos.schedule import Planned
from support.conditions import until

FINISH_WITHIN_S = 60.0
"""After everything runs again. What takes longer is a hang."""
BEGIN_WITHIN_S = 60.0


class Story:
    """What was done to an arena."""

    def __init__(self) -> None:
        self.faults: Counter[str] = Counter()
        self.lines: list[str] = []

    def tell(self, kind: str, line: str) -> None:
        self.faults[kind] += 1
        self.lines.append(line)


Act = Callable[[Arena, Story], None]


@dataclass(frozen=True)
class Trial:
    """What is to be done. ``act`` begins when the first task has started."""

    name: str
    jobs: Sequence[JobPlan]
    act: Act
    clustered: bool = False
    plant: str = ""
    finish_within_s: float = FINISH_WITHIN_S
    prepare: Callable[[Arena], None] = lambda arena: None
    """Called before anything is started."""
    enough: Callable[[Path], bool] = lambda folder: False
    """By the diaries there: whether the client need not be waited for any longer."""


@dataclass
class Report:
    """What came of a trial."""

    name: str
    violations: list[str]
    faults: dict[str, int] = field(default_factory=dict)
    story: list[str] = field(default_factory=list)
    took_s: float = 0.0
    finish_s: float = 0.0
    """From when everything ran again until the client had all outcomes."""
    tasks: int = 0
    repeats: int = 0
    complaints: list[str] = field(default_factory=list)
    """The tracebacks that daemons and client have logged."""
    folder: str = ""


def run(trial: Trial) -> Report:
    """Carry it out and judge it. Where there are violations its folder is kept."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    began = time.monotonic()
    arena = Arena(folder, clustered=trial.clustered, plant=trial.plant)
    try:
        trial.prepare(arena)
        arena.start()
        report = _play(arena, trial)
    finally:
        arena.close()
    report.took_s = time.monotonic() - began
    if report.violations:
        report.folder = str(folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return report


def _play(arena: Arena, trial: Trial) -> Report:
    story = Story()
    arena.client(trial.jobs)
    until(lambda: any(arena.folder.glob("task-*.diary")), BEGIN_WITHIN_S, "a task starts")
    trial.act(arena, story)
    arena.heal()
    healed_at = time.monotonic()
    finished = _client_finishes(arena, trial)
    finish_s = time.monotonic() - healed_at
    # Before the daemons end: they take their leases with them.
    changes = evidence.history(arena.etcd_members[0].endpoint, arena.root)
    orphans = arena.end_daemons() + arena.leftovers()
    found = Findings(
        jobs={job.label: _expected(job) for job in trial.jobs},
        tasks=diary.read(arena.folder, "task"),
        client=diary.read(arena.folder, "client"),
        workers=diary.read(arena.folder, "worker"),
        harness=diary.read(arena.folder, "harness"),
        stores=[[StoreChange(c.revision, c.key, c.value, c.created) for c in changes]],
        finished=finished,
        orphans=orphans,
        faults=sum(story.faults.values()),
    )
    return Report(
        trial.name,
        checker.judge(found),
        dict(story.faults),
        story.lines,
        finish_s=finish_s,
        tasks=sum(len(job.kinds) for job in trial.jobs),
        repeats=checker.repeats(found.tasks),
        complaints=_complaints(arena),
    )


def _expected(job: JobPlan) -> checker.Job:
    if job.cancel_after_s is None:
        cancelled: Sequence[int] = ()
    else:
        cancelled = range(len(job.kinds)) if job.cancel is None else job.cancel
    return checker.Job(job.kinds, job.max_crashes, frozenset(cancelled), job.speculate)


def _client_finishes(arena: Arena, trial: Trial) -> bool:
    deadline = time.monotonic() + trial.finish_within_s
    client = arena.clients[0]
    while client.running and time.monotonic() < deadline and not trial.enough(arena.folder):
        arena.start_again()
        time.sleep(0.05)
    return client.status == 0


def _complaints(arena: Arena) -> list[str]:
    """The tracebacks that were logged, without those that are cut off by a process's end."""
    found = []
    for log in [*(d.log for d in arena.daemons), *(c.log for c in arena.clients)]:
        text = log.read_text(errors="replace") if log.exists() else ""
        for part in text.split("Traceback (most recent call last):\n")[1:]:
            # The process's own stderr: other lines of the log, which begin with a date, may
            # come in between.
            lines = [line for line in part.splitlines() if line and not line.startswith("20")]
            last = next((n for n, line in enumerate(lines) if not line.startswith(" ")), None)
            if last is not None:
                found.append("\n".join(lines[: last + 1]))
    return found


def at_times(faults: Sequence[Planned]) -> Act:
    """Begin and end each fault at its time."""

    def act(arena: Arena, story: Story) -> None:
        began = time.monotonic()
        todo: list[tuple[float, int, Callable[[], object]]] = []
        for number, fault in enumerate(faults):

            def begin(number: int = number, fault: Planned = fault) -> None:
                end = (FAULTS | GROUND_FAULTS)[fault.kind](arena, random.Random(fault.chance))
                if end is not None:
                    line = f"{fault.at_s:.2f} s {fault.kind} for {fault.lasts_s:.2f} s"
                    story.tell(fault.kind, line)
                    todo.append((fault.at_s + fault.lasts_s, number, end))

            todo.append((fault.at_s, number, begin))
        while todo:
            todo.sort(key=lambda entry: entry[:2])
            at_s, _, do = todo.pop(0)
            time.sleep(max(0.0, began + at_s - time.monotonic()))
            do()

    return act
