"""The checker finds each kind of violation in forged diaries, and none in good ones."""

from __future__ import annotations

from typing import Any

import pytest

from chaos.checker import Findings, Job, Line, StoreChange, judge

DAEMON = 100


def _start(index: int, token: str, at: float) -> Line:
    return ["start", "j", index, token, 7, DAEMON, at, at]


def _end(index: int, token: str, at: float) -> Line:
    return ["end", "j", index, token, at, at]


def _outcome(index: int, state: str, text: str, at: float) -> Line:
    return ["outcome", "j", index, state, text, at, at]


_STORE = [
    StoreChange(4, "workers/w", {"pid": DAEMON}, 4),
    StoreChange(5, "leader/a", {}, 5),
    StoreChange(6, "jobs/id", {"inline": True}, 6),
    StoreChange(7, "status/id", {"term": 5, "state": "running"}, 7),
]


def _good() -> Findings:
    """Two tasks: one has a result, one was cancelled while it ran."""
    return Findings(
        jobs={"j": Job(["ok", "tick"], 3, frozenset({1}))},
        tasks=[
            _start(0, "a", 1.0),
            _end(0, "a", 1.1),
            _start(1, "b", 1.0),
            ["tick", "j", 1, "b", 1.2, 1.2],
        ],
        client=[
            ["begin", 0.5, 0.5],
            _outcome(0, "ok", "0:a", 1.2),
            _outcome(1, "cancelled", "", 1.5),
            ["done", "j", 1.6, 1.6],
        ],
        workers=[["command", "w", "RunSlice", 5, 5, "Accepted", 1.0, 1.0]],
        stores=[_STORE],
    )


def test_a_good_story_has_no_violation() -> None:
    assert judge(_good()) == []


def _replace(findings: Findings, **changes: Any) -> Findings:
    return Findings(**{**findings.__dict__, **changes})


_G = _good()
_LAPSE = [*_STORE, StoreChange(8, "workers/w", None, 0)]


def _forgotten(store: list[StoreChange], *harness: Line) -> Findings:
    """The job was submitted at 0.7 and forgotten at 1.2."""
    client = [
        ["begin", 0.5, 0.5],
        ["submitting", "j", 0.7, 0.7],
        ["job", "j", "id", 2, True, 0.8, 0.8],
        _outcome(0, "forgotten", "", 1.2),
        _G.client[2],
    ]
    return _replace(_G, client=client, stores=[store], harness=list(harness))


_CASES: dict[str, tuple[Findings, str]] = {
    "a hang": (_replace(_G, finished=False), "never ended"),
    "a lost task": (_replace(_G, client=[_G.client[0], *_G.client[2:]]), "without an outcome"),
    "an outcome twice": (_replace(_G, client=[*_G.client, _G.client[1]]), "2 outcomes"),
    "another outcome after attaching": (
        _replace(_G, client=[*_G.client, ["begin", 2, 2], _outcome(0, "ok", "0:c", 2.1)]),
        "after attaching",
    ),
    "a result from nowhere": (_replace(_G, tasks=_G.tasks[2:]), "no attempt gave"),
    "another task's result": (
        _replace(_G, client=[_G.client[0], _outcome(0, "ok", "1:a", 1.2), *_G.client[2:]]),
        "no attempt gave",
    ),
    "a failure of a good task": (
        _replace(_G, client=[_G.client[0], _outcome(0, "failed", "a", 1.2), *_G.client[2:]]),
        "(ok) ended failed",
    ),
    "a job forgotten without a reason": (_forgotten(_STORE), "no server had lost it"),
    "a small job forgotten as NATS lost its data": (
        _forgotten(_STORE, ["lost", "nats", 1.0, 1.0]),
        "no server had lost it",
    ),
    "a job forgotten that was submitted afterwards": (
        _forgotten(_STORE, ["lost", "etcd", 0.5, 0.5]),
        "no server had lost it",
    ),
    "a cancel that nobody asked for": (
        _replace(_G, jobs={"j": Job(["ok", "tick"], 3, frozenset())}),
        "nobody asked",
    ),
    "a neighbour blamed for a crash": (
        _replace(_G, client=[_G.client[0], _outcome(0, "crashed", "", 1.2), *_G.client[2:]]),
        "is blamed for 3 deaths and had 0",
    ),
    "poison that is not stopped": (
        _replace(
            _G,
            jobs={"j": Job(["poison"], 3, frozenset())},
            tasks=[_start(0, f"{n}", n) for n in range(9)],
            client=[["begin", 0, 0], _outcome(0, "crashed", "", 9.5)],
            faults=2,
        ),
        "ran 9 times",
    ),
    "a tick after the cancel": (
        _replace(_G, tasks=[*_G.tasks, ["tick", "j", 1, "b", 1.9, 1.9]]),
        "a tick 0.400 s after",
    ),
    "a start after the cancel": (
        _replace(_G, tasks=[*_G.tasks, _start(1, "c", 2.0)]),
        "a start 0.500 s after",
    ),
    "a tick after the cancel of what had begun before NATS lost its data": (
        _replace(
            _G,
            tasks=[*_G.tasks, ["tick", "j", 1, "b", 1.9, 1.9]],
            harness=[["lost", "nats", 1.7, 1.7]],
        ),
        "a tick 0.400 s after",
    ),
    "a start after a cancel that was confirmed after NATS had lost its data": (
        _replace(_G, tasks=[*_G.tasks, _start(1, "c", 2.0)], harness=[["lost", "nats", 1.1, 1.1]]),
        "a start 0.500 s after",
    ),
    "an old leader obeyed": (
        _replace(_G, workers=[["command", "w", "RunSlice", 4, 5, "Accepted", 1.0, 1.0]]),
        "obeyed a RunSlice of term 4",
    ),
    "an old leader's write": (
        _replace(_G, stores=[[*_STORE, StoreChange(8, "status/id", {"term": 3}, 7)]]),
        "written by term 3",
    ),
    "a write for each task": (
        _replace(_G, stores=[[*_STORE, *([StoreChange(9, "status/id", {"term": 5}, 7)] * 9)]]),
        "writes to etcd",
    ),
    "an orphan": (_replace(_G, orphans=[7]), "outlived their daemons"),
    "a kernel without its daemon": (
        _replace(_G, harness=[["outlived", [8], 1.0, 1.0]]),
        "outlived its killed daemon",
    ),
    "a daemon that crashed": (
        _replace(_G, harness=[["ended", "daemon-1", 1.0, 1.0]]),
        "daemon-1 ended by itself",
    ),
    "a running task started again": (
        _replace(
            _G, tasks=[_start(0, "x", 0.9), *_G.tasks], harness=[["killed", "daemon", 9, [], 1, 1]]
        ),
        "was started again",
    ),
    "an outcome that changes": (
        _replace(_G, client=[*_G.client, ["final", "j", 0, "ok", "0:c", 2.0, 2.0]]),
        "changed afterwards",
    ),
}


@pytest.mark.parametrize("name", _CASES)
def test_the_checker_finds(name: str) -> None:
    findings, sentence = _CASES[name]
    assert any(sentence in violation for violation in judge(findings)), judge(findings)


def test_ticks_of_a_worker_that_nobody_could_reach_are_excused() -> None:
    findings = _replace(_G, tasks=[*_G.tasks, ["tick", "j", 1, "b", 1.9, 1.9]], stores=[_LAPSE])
    assert judge(findings) == []


def test_what_begins_after_nats_has_lost_the_cancel_is_excused() -> None:
    later = [*_G.tasks, _start(1, "c", 2.0), ["tick", "j", 1, "c", 2.1, 2.1]]
    assert judge(_replace(_G, tasks=later, harness=[["lost", "nats", 1.7, 1.7]])) == []


def test_who_asks_a_newer_leader_is_not_blamed_for_refusing_the_old_one() -> None:
    findings = _replace(
        _G, workers=[["command", "w", "RunSlice", 4, 5, "Refused", 1.0, 1.0], *_G.workers]
    )
    assert judge(findings) == []


def test_a_job_may_be_forgotten_when_the_server_that_had_it_has_lost_its_data() -> None:
    etcd, nats = (["lost", kind, 1.0, 1.0] for kind in ("etcd", "nats"))
    in_nats = StoreChange(8, "jobs/id", {"inline": False}, 6)
    ended = StoreChange(8, "status/id", {"term": 5, "state": "succeeded"}, 7)
    assert judge(_forgotten(_STORE, etcd)) == []
    assert judge(_forgotten([*_STORE, in_nats], nats)) == []
    assert judge(_forgotten([*_STORE, ended], nats)) == []


def test_terms_begin_anew_with_an_etcd_that_is_empty() -> None:
    later = [StoreChange(2, "leader/b", {}, 2), StoreChange(3, "status/k", {"term": 2}, 3)]
    assert judge(_replace(_G, stores=[_STORE, later])) == []
