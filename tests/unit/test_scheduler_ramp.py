"""How many slices and rounds it takes until a worker is kept deep in work.

A round is a slice out, its outcomes back: some milliseconds on the wire.
"""

from __future__ import annotations

from collections import deque

import pytest

from nbsched.messages import Outcome, OutcomeState
from nbsched.model import JobId, WorkerId
from nbsched.scheduler import commands, events
from nbsched.scheduler.core import step
from nbsched.scheduler.pace import learn
from nbsched.scheduler.state import State
from support.simulation import job_record

J = JobId("j")
TINY_S = 1e-6
MESSAGE_TASKS = 40_000
"""Tiny tasks that two kernels do in the 20 ms between two messages of a busy worker."""


class _Ramp:
    """One job on one worker of two slots, which answers slice by slice, in ranges."""

    def __init__(self, tasks: int, first_s: float = TINY_S) -> None:
        self.state = State()
        self.first_s = first_s
        self.sent: deque[commands.SendSlice] = deque()
        self.sizes: list[int] = []
        self.messages = 0
        self.rounds = 0
        self._feed(events.WorkerJoined(WorkerId("w"), 2, "3.11", False))
        self._feed(events.RecoveryEnded())
        self._feed(events.JobAdded(job_record(total=tasks)))

    def run(self) -> _Ramp:
        while self.sent:
            self.rounds += 1
            for slice_ in [self.sent.popleft() for _ in range(len(self.sent))]:
                self._answer(slice_)
        assert self.state.jobs == {}
        return self

    def _answer(self, slice_: commands.SendSlice) -> None:
        """In as many messages as a worker would send."""
        for start in range(slice_.start, slice_.stop, MESSAGE_TASKS):
            stop = min(slice_.stop, start + MESSAGE_TASKS)
            elapsed_s = (stop - start) * (self.first_s if start < 2 else TINY_S)
            self.messages += 1
            outcome = Outcome(start, stop, 0, 1, OutcomeState.OK, elapsed_s=elapsed_s)
            self._feed(events.OutcomesRead(J, slice_.worker, (outcome,), self.messages))

    def _feed(self, event: events.Event) -> None:
        for command in step(self.state, event, 0.0):
            if isinstance(command, commands.SendSlice):
                self.sent.append(command)
                self.sizes.append(command.stop - command.start)


def test_a_hundred_thousand_tiny_tasks_are_two_slices() -> None:
    ramp = _Ramp(100_000).run()
    assert ramp.sizes == [2, 99_998]
    assert ramp.rounds == 2


def test_a_million_tiny_tasks_are_a_few_dozen_messages() -> None:
    ramp = _Ramp(1_000_000).run()
    assert len(ramp.sizes) <= 10
    assert ramp.rounds <= 3
    assert len(ramp.sizes) + ramp.messages <= 48


@pytest.mark.parametrize("first_s", [0.001, 0.02, 0.1])
def test_a_slow_first_task_is_forgotten_with_the_next_slices(first_s: float) -> None:
    ramp = _Ramp(1_000_000, first_s).run()
    assert len(ramp.sizes) <= 16
    assert ramp.rounds <= 6


def test_no_slice_of_one_task_fills_the_rest_of_a_worker() -> None:
    ramp = _Ramp(1_000_000, first_s=0.0007).run()
    assert min(ramp.sizes) > 1


def test_one_odd_task_does_not_decide_the_pace_and_some_do() -> None:
    pace = learn(learn(None, 1.0, 1000), 1.0, 1)
    assert 0.1 < pace < 0.5
    for _ in range(8):
        pace = learn(pace, 1.0, 1)
    assert pace > 0.9


def test_many_tasks_of_one_message_count_as_many() -> None:
    assert learn(0.1, 1000 * TINY_S, 1000) == pytest.approx(TINY_S)
