"""Judges what a schedule has left behind. Knows nothing of nbsched, imports nothing of it.

It is given what tasks, workers, clients and the harness have written, and etcd's history.
A violation is a sentence.

What is excused, and why. A worker whose lease ended while it lived (it was frozen, cut off,
or starved) may be counted as lost while its kernels still run: nobody can reach them to
stop them. So a tick or a start after a confirmed cancel is excused there. When a single NATS
has lost its data, nobody but the client knows what had been cancelled before: what begins
afterwards is excused as well. Nothing else is.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Line = list[Any]
Task = tuple[str, int]

LATE_S = 0.05
"""A line is written a little after what it tells of."""


@dataclass(frozen=True)
class Job:
    """What the plan says of a job."""

    kinds: Sequence[str]
    max_crashes: int
    cancelled: frozenset[int]
    """Tasks that may end cancelled."""
    speculative: bool = False
    """A slow task may run twice at a time."""


@dataclass(frozen=True)
class StoreChange:
    """One change in etcd, in order: see `evidence.Change`."""

    revision: int
    key: str
    value: Any
    created: int


@dataclass
class Findings:
    """Everything there is to judge."""

    jobs: dict[str, Job]
    tasks: Sequence[Line] = ()
    client: Sequence[Line] = ()
    workers: Sequence[Line] = ()
    harness: Sequence[Line] = ()
    stores: Sequence[Sequence[StoreChange]] = ()
    """More than one when etcd has lost its data: each begins with an empty one."""
    finished: bool = True
    """The client has ended in order."""
    orphans: Sequence[int] = ()
    faults: int = 0


def judge(findings: Findings) -> list[str]:
    """All violations, worst first."""
    checks = (
        _client_ends,
        _one_outcome_each,
        _outcomes_stay,
        _outcomes_are_real,
        _nothing_is_forgotten,
        _crashes_are_own,
        _cancel_is_final,
        _running_tasks_go_on,
        _older_terms_are_refused,
        _writes_are_fenced,
        _writes_are_few,
        _nothing_is_left,
    )
    return [violation for check in checks for violation in check(findings)]


# ------------------------------------------------------------ what the user sees


def _client_ends(found: Findings) -> Iterator[str]:
    if not found.finished:
        done = {line[1] for line in found.client if line[0] == "done"}
        missing = ", ".join(sorted(set(found.jobs) - done)) or "none"
        yield f"the client never ended; jobs that are not done: {missing}"


def _incarnations(found: Findings) -> list[list[Line]]:
    """The client's lines, split where it was started again."""
    lives: list[list[Line]] = []
    for line in found.client:
        if line[0] == "begin":
            lives.append([])
        if lives:
            lives[-1].append(line)
    return lives


def _abandoned(found: Findings) -> set[str]:
    return {line[1] for line in found.client if line[0] == "abandoned"}


def _one_outcome_each(found: Findings) -> Iterator[str]:
    told: dict[Task, tuple[str, str]] = {}
    for life in _incarnations(found):
        seen: Counter[Task] = Counter()
        for line in life:
            if line[0] != "outcome":
                continue
            task, outcome = (line[1], line[2]), (line[3], line[4])
            seen[task] += 1
            if seen[task] > 1:
                yield f"task {task} had {seen[task]} outcomes in one client"
            if told.setdefault(task, outcome) != outcome:
                yield f"task {task} ended in {told[task]}, and after attaching in {outcome}"
    if not found.finished:
        return
    for label, job in found.jobs.items():
        if label in _abandoned(found):
            continue
        lost = [index for index in range(len(job.kinds)) if (label, index) not in told]
        if lost:
            yield f"job {label} has ended without an outcome for {len(lost)} tasks: {lost[:10]}"


def _outcomes(found: Findings) -> dict[Task, tuple[str, str, float]]:
    """The first that a client was told: state, text, when."""
    told: dict[Task, tuple[str, str, float]] = {}
    for line in found.client:
        if line[0] == "outcome":
            told.setdefault((line[1], line[2]), (line[3], line[4], float(line[-2])))
    return told


def _outcomes_stay(found: Findings) -> Iterator[str]:
    told = _outcomes(found)
    for line in found.client:
        if line[0] == "final" and (line[1], line[2]) in told:
            before, now = told[line[1], line[2]][:2], (line[3], line[4])
            if now != before:
                yield f"the outcome of task {line[1], line[2]} changed afterwards: {before}, {now}"


_EXPECTED = {
    "ok": {"ok"},
    "tick": {"ok"},
    "slow": {"ok"},
    "flaky": {"ok"},
    "fail": {"failed"},
    "poison": {"crashed"},
}


def _outcomes_are_real(found: Findings) -> Iterator[str]:
    ends = {(line[1], line[2], line[3]) for line in found.tasks if line[0] == "end"}
    raises = {(line[1], line[2], line[3]) for line in found.tasks if line[0] == "raise"}
    for (label, index), (state, text, _) in _outcomes(found).items():
        job = found.jobs[label]
        kind = job.kinds[index]
        if state == "cancelled":
            if index not in job.cancelled:
                yield f"task {label, index} was cancelled, and nobody asked for that"
            continue
        if state == "forgotten" or (state == "crashed" and kind != "poison"):
            continue  # see _nothing_is_forgotten, _crashes_are_own
        if state not in _EXPECTED[kind]:
            yield f"task {label, index} ({kind}) ended {state}: {text[:300]}"
        elif state == "ok":
            named, _, token = text.partition(":")
            if int(named) != index or (label, index, token) not in ends:
                yield f"task {label, index} has a result that no attempt gave: {text}"
        elif state == "failed" and (label, index, text) not in raises:
            yield f"task {label, index} has a failure that no attempt raised: {text}"


def _lost_at(found: Findings) -> dict[str, float]:
    """By kind: since when a server is without its data."""
    return {line[1]: float(line[-2]) for line in found.harness if line[0] == "lost"}


def _nothing_is_forgotten(found: Findings) -> Iterator[str]:
    """Unless a server has lost it: etcd all jobs, NATS the items of large ones and the outcomes
    of those that had ended. What is submitted afterwards is not forgotten."""
    lost_at = _lost_at(found)
    told = {line[1]: float(line[-2]) for line in found.client if line[0] == "forgotten"}
    for (label, _), (state, _, at) in _outcomes(found).items():
        if state == "forgotten":
            told.setdefault(label, at)
    for label, at in told.items():
        begun = max(line[-2] for line in found.client if line[:2] == ["submitting", label])
        lost = {kind for kind, since in lost_at.items() if begun < since < at}
        if "etcd" in lost or ("nats" in lost and _lay_in_nats(found, label)):
            continue
        yield f"job {label} was forgotten, and no server had lost it"


def _lay_in_nats(found: Findings, label: str) -> bool:
    """Whether items of the job, or all its outcomes, were in JetStream and nowhere else."""
    jobs = {line[2] for line in found.client if line[:2] == ["job", label]}
    for store in found.stores:
        for change in store:
            folder, _, job = change.key.partition("/")
            if job not in jobs or change.value is None:
                continue
            if folder == "jobs" and not change.value["inline"]:
                return True
            if folder == "status" and change.value["state"] not in ("waiting", "running"):
                return True
    return False


def _crashes_are_own(found: Findings) -> Iterator[str]:
    starts, whole = Counter[Task](), Counter[Task]()
    for line in found.tasks:
        if line[0] == "start":
            starts[line[1], line[2]] += 1
        elif line[0] in ("end", "raise"):
            whole[line[1], line[2]] += 1
    lives = 1 + len(_lost_at(found))  # who lost the crashes counts anew
    for (label, index), count in starts.items():
        most = found.jobs[label].max_crashes
        allowed = lives * most + found.faults
        if found.jobs[label].kinds[index] == "poison" and count > allowed:
            yield f"poison task {label, index} ran {count} times, max_crashes is {most}"
    for task, (state, text, _) in _outcomes(found).items():
        most = found.jobs[task[0]].max_crashes
        died = starts[task] - whole[task]
        if state == "crashed" and died < most:
            yield f"task {task} is blamed for {most} deaths and had {died}: {text[:200]}"


# ------------------------------------------------------------ cancel


def _lapsed(found: Findings) -> set[int]:
    """Daemons that lived on after their lease had ended."""
    pid_of: dict[str, int] = {}
    lapsed = set()
    for change in itertools.chain(*found.stores):
        if not change.key.startswith("workers/"):
            continue
        if change.value is not None:
            pid_of[change.key] = change.value["pid"]
        elif change.key in pid_of:
            lapsed.add(pid_of[change.key])
    return lapsed


def _cancel_is_final(found: Findings) -> Iterator[str]:
    confirmed = {
        task: at for task, (state, _, at) in _outcomes(found).items() if state == "cancelled"
    }
    lapsed = _lapsed(found)
    lost_at = _lost_at(found).get("nats", -math.inf)
    daemon_of = {line[3]: line[5] for line in found.tasks if line[0] == "start"}
    began_at = {line[3]: float(line[-2]) for line in found.tasks if line[0] == "start"}
    blamed: set[tuple[str, Task]] = set()
    for line in found.tasks:
        if line[0] not in ("start", "tick"):
            continue
        task = (line[1], line[2])
        at = confirmed.get(task)
        if at is None or line[-2] <= at + LATE_S or daemon_of[line[3]] in lapsed:
            continue
        if at - LATE_S < lost_at < began_at[line[3]]:
            continue
        if (line[0], task) not in blamed:
            blamed.add((line[0], task))
            late = line[-2] - at
            yield f"task {task}: a {line[0]} {late:.3f} s after its cancel was confirmed"


# ------------------------------------------------------------ takeover

_OUT_OF_REACH = {"frozen", "cut", "full", "lost", "etcd", "nats"}


def _running_tasks_go_on(found: Findings) -> Iterator[str]:
    """A new leader asks the workers what they have, and starts none of that again.

    Judged where all of them can be asked: where nothing but daemons, kernels and clients
    was killed, and no lease ended otherwise.
    """
    reached = {line[0] if line[0] != "killed" else line[1] for line in found.harness}
    if reached & _OUT_OF_REACH or _lapsed(found) - _killed(found):
        return
    killed = _killed(found) | _poisoned(found)
    started: dict[Task, Line] = {}
    for line in found.tasks:
        task = (line[1], line[2])
        if found.jobs[line[1]].speculative:
            continue
        if line[0] == "start":
            before = started.get(task)
            if before is not None and not killed & set(before[4:6]):
                yield f"task {task} was started again, though nothing had happened to its daemon"
            started[task] = line
        elif line[0] == "raise":
            started.pop(task, None)


def _poisoned(found: Findings) -> set[int]:
    """Kernels that were killed by a task, perhaps with outcomes of its neighbours."""
    return {
        line[4]
        for line in found.tasks
        if line[0] == "start" and found.jobs[line[1]].kinds[line[2]] == "poison"
    }


def _killed(found: Findings) -> set[int]:
    """Processes that were killed."""
    return {line[2] for line in found.harness if line[0] == "killed"}


# ------------------------------------------------------------ terms


def _older_terms_are_refused(found: Findings) -> Iterator[str]:
    for line in found.workers:
        if line[0] == "command":
            _, worker, kind, term, known, answer = line[:6]
            if term < known and answer != "Refused":
                yield f"{worker} obeyed a {kind} of term {term}, and knew of {known}"


def _writes_are_fenced(found: Findings) -> Iterator[str]:
    """A status is written while its term's candidate key is there, and is the oldest."""
    for store in found.stores:
        standing: dict[str, int] = {}
        for change in store:
            if change.key.startswith("leader/"):
                if change.value is None:
                    standing.pop(change.key, None)
                else:
                    standing[change.key] = change.created
            elif change.key.startswith("status/") and change.value is not None:
                term = change.value["term"]
                leads = min(standing.values(), default=None)
                if term != leads:
                    yield (
                        f"revision {change.revision}: {change.key} was written by term {term}"
                        f" while {leads} led"
                    )


def _writes_are_few(found: Findings) -> Iterator[str]:
    """Per job: its record, its input, its seal; a status per leader and end; its requests."""
    changes = list(itertools.chain(*found.stores))
    terms = len({(c.key, c.created) for c in changes if c.key.startswith("leader/") and c.created})
    writes: Counter[str] = Counter()
    requests: Counter[str] = Counter()
    for change in changes:
        folder, _, rest = change.key.partition("/")
        if folder in ("jobs", "inputs", "status"):
            writes[rest] += 1
        elif folder == "requests":
            requests[rest.partition("/")[0]] += 1
    for job, count in writes.items():
        allowed = 5 + 2 * terms + 2 * requests[job]
        if count > allowed:
            yield f"job {job} cost {count} writes to etcd, with {terms} terms: over {allowed}"


# ------------------------------------------------------------ processes


def _nothing_is_left(found: Findings) -> Iterator[str]:
    if found.orphans:
        yield f"processes outlived their daemons: {list(found.orphans)}"
    for line in found.harness:
        if line[0] == "ended":
            yield f"{line[1]} ended by itself"
        if line[0] == "outlived":
            yield from (f"kernel {pid} outlived its killed daemon" for pid in line[1])


def repeats(tasks: Iterable[Line]) -> int:
    """How many attempts there were beyond the first of each task."""
    starts: dict[Task, int] = defaultdict(int)
    for line in tasks:
        if line[0] == "start":
            starts[line[1], line[2]] += 1
    return sum(starts.values()) - len(starts)
