"""What must hold whatever goes wrong, judged from a diary of plain events.

The diary is written by bystanders: tasks say when they begin and leave, users what they
see, stores what is written. Nothing here knows the product, so a simulation and a run of
real processes can be judged alike. Every judgement is a sentence; none is good.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Event:
    """Something that has happened.

    Attributes:
        at: seconds, on one clock for the whole diary.
        what: see `KINDS`.
        who: the worker, user or job's client that it happened to.
        count: tasks of a job, crashes of a task, writes.
        term: leadership that a command or a record names.
        text: outcome, cause, or what was wrong.
    """

    at: float
    what: str
    job: str = ""
    index: int = -1
    round: int = 0
    attempt: int = 0
    who: str = ""
    count: int = 0
    term: int = 0
    text: str = ""

    def line(self) -> str:
        """For people: only what is said."""
        told = {k: v for k, v in asdict(self).items() if k not in ("at", "what")}
        blank = {"job": "", "index": -1, "round": 0, "attempt": 0, "who": "", "count": 0}
        blank |= {"term": 0, "text": ""}
        words = " ".join(f"{k}={v}" for k, v in told.items() if v != blank[k])
        return f"{self.at:9.4f}  {self.what:10} {words}"


KINDS = {
    "submitted": "a user's submit has returned: job, who, count of tasks (-1: not known yet)",
    "script": "what is known of a task: job, index, count=max_crashes, text: poison or harmless",
    "started": "user code of a task begins: job, index, round, attempt, who (worker)",
    "left": "user code has ended: the same, text: ok, failed, retry, cancelled, or the death",
    "seen": "a user sees an outcome: job, index, round, who, text: ok, failed, cancelled;"
    " attempt: 1 when the value is the right one",
    "reopened": "a user has asked for another round: job, index, round, who",
    "crashed": "a user reads that a task was stopped for its deaths: job, index, count",
    "logged": "an outcome is in the log: job, index, round, attempt, who, text: ok, failed,"
    " cancelled or retry; count: milliseconds that a retry is to wait, crashes: term",
    "unlogged": "the log has lost an entry that it had acknowledged: job, text: outcome (index,"
    " round) or items (of the job)",
    "gave up": "a user is told that no outcomes of a job will come any more: job, who, text",
    "unreadable": "a user reads that a task's items are lost: job, index, who",
    "asked": "a user's cancel or retry has returned, and has made a request: job",
    "dropped": "a request was deleted: job, count=its tasks that have no outcome in the log",
    "accepted": "a worker obeys a command: who, term",
    "leads": "the store's leader is now this term: term, who",
    "status": "a job's state was written: job, term, text, count=term of the store's leader",
    "written": "something of a job was written to the store: job, text: record, status, request",
    "fault": "something was done to the system: text, who",
    "lost": "a worker's lease has ended, or it was killed: who",
    "calm": "from here on nothing is done to the system any more",
    "stuck": "waiting was given up: text says for what",
    "error": "an exception that nobody expected: text",
}


UNHEARD = ("stop", "cut", "bad messages", "nats", "log full", "drain")
"""Faults by which a host that is there is not heard in time."""
LATELY_S = 0.5
"""What was on its way when an outcome came is not held against anybody."""


def judge(diary: Iterable[Event]) -> list[str]:
    """All that is wrong with a diary, as sentences."""
    events = list(diary)
    unknown = {event.what for event in events} - KINDS.keys()
    assert not unknown, f"events that nobody judges: {unknown}"
    judges = (
        _one_outcome,
        _right_values,
        _only_what_was_lost_is_missed,
        _no_start_after_cancel,
        _nothing_runs_at_a_confirmed_cancel,
        _no_worker_runs_a_task_twice_at_once,
        _nothing_runs_twice,
        _delays_are_kept,
        _requests_are_durable,
        _no_older_term,
        _poison_is_stopped,
        _harmless_are_not_blamed,
        _writes_are_few,
        _everything_ends,
    )
    return [sentence for each in judges for sentence in each(events)]


def of_kind(events: Iterable[Event], *kinds: str) -> list[Event]:
    return [event for event in events if event.what in kinds]


def _one_outcome(events: list[Event]) -> Iterator[str]:
    """Promise 1: one outcome per task and round for each user, the same for all."""
    seen: Counter[tuple[str, str, int, int]] = Counter()
    texts: dict[tuple[str, int, int], set[str]] = defaultdict(set)
    rounds: dict[tuple[str, str, int], int] = defaultdict(int)
    for event in of_kind(events, "seen", "reopened"):
        if event.what == "reopened":
            task = (event.who, event.job, event.index)
            rounds[task] = max(rounds[task], event.round)
            continue
        seen[event.who, event.job, event.index, event.round] += 1
        texts[event.job, event.index, event.round].add(event.text)
    for (who, job, index, round_), times in seen.items():
        if times > 1:
            yield f"{who} saw {times} outcomes of task {index} of {job} in round {round_}"
    lost = lost_outcomes(events)
    for (job, index, round_), found in texts.items():
        if len(found) > 1 and (job, index, round_) not in lost:
            yield f"users saw different outcomes of task {index} of {job}: {sorted(found)}"
    yield from _none_lost(events, seen, rounds)


def _none_lost(
    events: list[Event],
    seen: Counter[tuple[str, str, int, int]],
    rounds: dict[tuple[str, str, int], int],
) -> Iterator[str]:
    if of_kind(events, "stuck"):
        return  # said there
    gone = {event.who for event in of_kind(events, "lost")}
    told = {(event.who, event.job) for event in of_kind(events, "gave up")}
    for event in of_kind(events, "submitted"):
        if event.who in gone or (event.who, event.job) in told:
            continue
        for index in range(event.count):
            round_ = rounds[event.who, event.job, index]
            if not any(seen[event.who, event.job, index, r] for r in range(round_, round_ + 9)):
                yield f"{event.who} never saw an outcome of task {index} of {event.job}"


def _right_values(events: list[Event]) -> Iterator[str]:
    for event in of_kind(events, "seen"):
        if event.text == "ok" and event.attempt != 1:
            yield f"{event.who} saw a wrong result of task {event.index} of {event.job}"


def lost_outcomes(events: Iterable[Event]) -> Counter[tuple[str, int, int]]:
    """Outcomes that a log has had and lost, by job, task and round. Their tasks run again."""
    return Counter(
        (event.job, event.index, event.round)
        for event in of_kind(events, "unlogged")
        if event.text == "outcome"
    )


def _only_what_was_lost_is_missed(events: list[Event]) -> Iterator[str]:
    """A job is given up, and a task fails for want of its items, only where a log has lost
    something of it."""
    outcomes = {event.job for event in of_kind(events, "unlogged") if event.text == "outcome"}
    items = {event.job for event in of_kind(events, "unlogged") if event.text == "items"}
    for event in of_kind(events, "gave up"):
        if event.job not in outcomes | items:
            yield f"{event.who} gave {event.job} up ({event.text}), and nothing of it was lost"
    for event in of_kind(events, "unreadable"):
        if event.job not in items:
            yield f"the items of task {event.index} of {event.job} are missing, and were not lost"


def _no_start_after_cancel(events: list[Event]) -> Iterator[str]:
    """Promise 4: what is confirmed as cancelled does not start, nor run, any more."""
    lost = lost_outcomes(events)
    confirmed: dict[tuple[str, int, int], float] = {}
    for event in of_kind(events, "seen"):
        if event.text == "cancelled":
            task = (event.job, event.index, event.round)
            confirmed[task] = min(event.at, confirmed.get(task, event.at))
    for event in of_kind(events, "started"):
        for round_ in range(event.round, event.round + 9):
            at = confirmed.get((event.job, event.index, round_))
            if (event.job, event.index, round_) in lost:
                continue  # nobody but the user knows of it any more
            if at is not None and event.at > at:
                yield (
                    f"task {event.index} of {event.job} started on {event.who} at"
                    f" {event.at:.3f}, its cancel was confirmed at {at:.3f}"
                )
                break


def _nothing_runs_at_a_confirmed_cancel(events: list[Event]) -> Iterator[str]:
    """Promise 4: a cancel is confirmed when the task has stopped, wherever it can be stopped."""
    running: dict[tuple[str, int], set[tuple[str, int]]] = defaultdict(set)
    outcomes = lost_outcomes(events)
    lost: set[str] = set()
    for event in of_kind(events, "started", "left", "lost", "seen"):
        task = (event.job, event.index)
        if event.what == "lost":
            lost.add(event.who)
        elif event.what == "started":
            running[task].add((event.who, event.round))
        elif event.what == "left":
            running[task].discard((event.who, event.round))
        elif event.text == "cancelled" and (*task, event.round) not in outcomes:
            for worker, round_ in running[task]:
                if worker not in lost and round_ <= event.round:
                    yield (
                        f"task {event.index} of {event.job} ran on {worker} at"
                        f" {event.at:.3f}, when its cancel was confirmed"
                    )


def _no_worker_runs_a_task_twice_at_once(events: list[Event]) -> Iterator[str]:
    """A worker knows what it runs, whatever it is told how often."""
    running: set[tuple[str, str, int, int]] = set()
    for event in of_kind(events, "started", "left"):
        task = (event.who, event.job, event.index, event.round)
        if event.what == "left":
            running.discard(task)
        elif task in running:
            yield f"{event.who} runs task {event.index} of {event.job} twice at once"
        else:
            running.add(task)


def _nothing_runs_twice(events: list[Event]) -> Iterator[str]:
    """Execution is at least once, but not needlessly: nothing runs again while every host
    is known to be there and its messages arrive."""
    if any(event.text.startswith(UNHEARD) for event in of_kind(events, "fault")):
        return
    ended: dict[tuple[str, int, int], float] = {}
    running: dict[tuple[str, int, int], str] = {}
    # Whose lease was taken away learns it with its next keepalive, and goes on until then.
    lost = {event.who for event in of_kind(events, "lost")}
    for event in events:
        task = (event.job, event.index, event.round)
        if event.what == "started" and event.who in lost:
            continue
        if event.what == "logged" and event.text in ("ok", "failed"):
            ended.setdefault(task, event.at)
        elif event.what == "left":
            running.pop(task, None)
        elif event.what == "lost":
            running = {task: who for task, who in running.items() if who != event.who}
        elif event.what == "started":
            if task in running:
                yield (
                    f"task {event.index} of {event.job} runs on {running[task]}, and was"
                    f" started on {event.who}"
                )
            if task in ended and event.at > ended[task] + LATELY_S:
                yield (
                    f"task {event.index} of {event.job} started on {event.who} after its"
                    " outcome was in the log"
                )
            running[task] = event.who


def _delays_are_kept(events: list[Event]) -> Iterator[str]:
    """An attempt that is to wait does not begin earlier, whoever leads by then."""
    due: dict[tuple[str, int, int, int], float] = {}
    for event in of_kind(events, "logged", "started"):
        if event.what == "logged" and event.text == "retry" and event.count:
            # Clocks that run fast are forgiven.
            at = event.at + event.count / 1000 * 0.95
            due.setdefault((event.job, event.index, event.round, event.attempt + 1), at)
        elif event.what == "started":
            at = due.get((event.job, event.index, event.round, event.attempt), 0.0)
            if event.at < at:
                yield (
                    f"attempt {event.attempt} of task {event.index} of {event.job} began"
                    f" {at - event.at:.2f} s too early"
                )


def _requests_are_durable(events: list[Event]) -> Iterator[str]:
    """Promise 4: a request is durable before the call returns, until it is carried out."""
    written: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for event in of_kind(events, "written", "asked"):
        if event.what == "asked":
            asked[event.job] += 1
            if asked[event.job] > written[event.job]:
                yield f"a cancel or retry of {event.job} returned before it was in the store"
        elif event.text == "request":
            written[event.job] += 1
    for event in of_kind(events, "dropped"):
        if event.count:
            yield (
                f"a request for {event.job} was deleted while {event.count} of its tasks had"
                " no outcome"
            )


def _no_older_term(events: list[Event]) -> Iterator[str]:
    """Promise 3: a deposed leader can do no harm."""
    obeyed: dict[str, int] = {}
    written = 0
    for event in of_kind(events, "accepted", "status"):
        if event.what == "accepted":
            if event.term < obeyed.get(event.who, 0):
                yield f"{event.who} obeyed term {event.term} after {obeyed[event.who]}"
            obeyed[event.who] = max(event.term, obeyed.get(event.who, 0))
        else:
            if event.term != event.count:
                yield f"term {event.term} wrote a status while term {event.count} led"
            if event.term < written:
                yield f"term {event.term} wrote a status after term {written} had"
            written = max(written, event.term)


def _poison_is_stopped(events: list[Event]) -> Iterator[str]:
    """Promise 5: after ``max_crashes`` deaths of its own a task fails, not the cluster."""
    most = {
        (event.job, event.index): event.count
        for event in of_kind(events, "script")
        if event.text == "poison"
    }
    faults = len(of_kind(events, "fault"))
    lost = lost_outcomes(events)
    starts: Counter[tuple[str, int, int]] = Counter()
    for event in of_kind(events, "started"):
        starts[event.job, event.index, event.round] += 1
    for (job, index, round_), times in starts.items():
        allowed = most.get((job, index))
        again = 2 * faults + lost[job, index, round_]
        if allowed is not None and round_ == 0 and times > allowed + again:
            yield f"poison task {index} of {job} started {times} times (max_crashes {allowed})"
    for event in of_kind(events, "seen"):
        if (event.job, event.index) in most and event.round == 0 and event.text == "ok":
            yield f"poison task {event.index} of {event.job} was seen as ok"


def _harmless_are_not_blamed(events: list[Event]) -> Iterator[str]:
    """Who is stopped for deaths has had as many: its kernel's while it ran, its host's."""
    died: Counter[tuple[str, int, int]] = Counter()
    ran: dict[str, set[tuple[str, int, int]]] = defaultdict(set)
    for event in of_kind(events, "started", "left", "lost"):
        task = (event.job, event.index, event.round)
        if event.what == "started":
            ran[event.who].add(task)
        elif event.what == "lost":
            died.update(ran[event.who])
        elif event.text not in ("ok", "failed", "retry", "cancelled"):
            died[task] += 1
    for event in of_kind(events, "crashed"):
        times = died[event.job, event.index, event.round]
        if times < event.count:
            yield (
                f"task {event.index} of {event.job} was stopped for {event.count} deaths, and"
                f" had {times}"
            )


def _writes_are_few(events: list[Event]) -> Iterator[str]:
    """Writes to the store are O(1) for a job and O(1) for each request, never per task."""
    terms = len({event.term for event in of_kind(events, "leads")})
    writes: dict[str, Counter[str]] = defaultdict(Counter)
    for event in of_kind(events, "written"):
        writes[event.job][event.text] += 1
    changes = len(of_kind(events, "lost", "fault"))
    for job, counts in writes.items():
        requests = counts["request"]
        # Taken on and ended once for each term, and anew after each request; each coming
        # and going of workers may change the reason why it waits.
        allowed = 6 + 2 * terms + 2 * requests + 2 * changes
        if counts["status"] > allowed:
            yield f"the status of {job} was written {counts['status']} times (at most {allowed})"
        if counts["record"] > 2:
            yield f"the record of {job} was written {counts['record']} times"


def _everything_ends(events: list[Event]) -> Iterator[str]:
    """Liveness: once calm, all ends in bounded time; and nothing unexpected is raised."""
    for event in of_kind(events, "stuck"):
        yield f"not over in time: {event.text}"
    for event in of_kind(events, "error"):
        yield f"unexpected: {event.text}"
