"""The kernel's parts that need no process: frames, shared memory, errors, policies."""

from __future__ import annotations

import os
import pickle
import random
import threading
import traceback
from collections import OrderedDict
from datetime import datetime
from email.message import Message
from typing import Any
from urllib.error import HTTPError

import numpy as np
import pytest
import tenacity

from nbsched.kernel import outcomes, protocol, retrypolicy, sharedstate
from nbsched.kernel.protocol import Finished, Parser, Ready, Skipped
from nbsched.kernel.retrypolicy import Accept, Again, Attempt, BrokenPolicyError, GiveUp, Replace
from nbsched.kernel.sharedstate import SharedState
from nbsched.messages import Outcome, OutcomeState
from nbsched.payload import pickling
from nbsched.worker.deaths import Death


def test_frames_survive_any_cut() -> None:
    outcome = Outcome(0, 2, 0, 1, OutcomeState.OK)
    sent = [
        (Ready(), b""),
        (Finished(((5, outcome),)), b"x" * 5000),
        (Skipped(7, 3), b""),
        (Finished(()), b"yz"),
    ]
    stream = b"".join(protocol.pack(frame, len(data)) + data for frame, data in sent)
    rng = random.Random(4)
    for _ in range(50):
        parser, got, at = Parser(), [], 0
        while at < len(stream):
            step = rng.choice((1, 3, 100, 4000))
            got += parser.feed(stream[at : at + step])
            at += step
        assert got == sent


def test_a_void_run_does_not_begin_and_a_later_one_does() -> None:
    fd = sharedstate.create()
    daemon, kernel = SharedState(fd), SharedState(fd)
    os.close(fd)
    assert kernel.begin(3)
    assert (daemon.touched, daemon.active) == (3, 3)
    daemon.void_below(6)
    kernel.end()
    assert not kernel.begin(4)
    assert (daemon.touched, daemon.active) == (4, 0)
    assert kernel.begin(6)
    for state in (daemon, kernel):
        state.close()


# ---------------------------------------------------------------- results and errors


class Own:
    def __eq__(self, other: object) -> bool:
        return type(other) is type(self)

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, 2.0, (None, b"x")], "b": {3, 4}},
        OrderedDict(a=datetime(2026, 1, 2)),
        np.float64(3.5),
        Own(),
        [Own()],
        len,
        lambda x: x + 1,
    ],
    ids=lambda value: type(value).__name__,
)
def test_results_survive_pickling(value: object) -> None:
    copy = pickle.loads(pickling.dumps(value))
    if callable(value) and not isinstance(value, type(len)):
        assert copy(1) == 2
    else:
        assert copy == value


def test_arrays_of_objects_survive_pickling() -> None:
    copy = pickle.loads(pickling.dumps(np.array([Own(), None], dtype=object)))
    assert list(copy) == [Own(), None]


def test_small_scalars_are_of_exact_types_and_small() -> None:
    class Text(str):
        __slots__ = ()

    assert outcomes.is_small_scalar("x")
    assert not outcomes.is_small_scalar(Text("x"))
    assert not outcomes.is_small_scalar("x" * 10_000)
    assert not outcomes.is_small_scalar([1])


class AwkwardError(Exception):
    def __init__(self, a: int, c: int) -> None:
        super().__init__(f"{a}-{c}")
        self.a = a
        self.lock = threading.Lock()


class AwkwardOSError(OSError):
    def __init__(self, path: str) -> None:
        super().__init__(2, "gone", path)


def _arrived(error: BaseException) -> BaseException:
    data = outcomes.report_exception(error).pickle
    assert data is not None
    copy = pickle.loads(data)
    assert isinstance(copy, BaseException)
    return copy


def test_an_exception_with_a_constructor_of_its_own_arrives_as_itself() -> None:
    class DoubledError(Exception):
        def __init__(self, text: str) -> None:
            super().__init__(f"bad {text}")

    copy = _arrived(DoubledError("x"))
    assert type(copy).__name__ == "DoubledError"
    assert str(copy) == "bad x"
    copy = _arrived(AwkwardOSError("file"))
    assert isinstance(copy, AwkwardOSError)
    assert (copy.errno, copy.filename) == (2, "file")


def test_attributes_that_cannot_be_pickled_are_left_out_and_named() -> None:
    copy = _arrived(AwkwardError(1, 2))
    assert isinstance(copy, AwkwardError)
    assert (str(copy), copy.a, copy.lock) == ("1-2", 1, None)
    assert "lock" in copy.__notes__[0]  # type: ignore[attr-defined]


def test_an_http_error_arrives_and_can_be_printed() -> None:
    body = open(os.devnull, "rb")  # noqa: SIM115 - it is closed with the error
    with HTTPError("http://host/x", 404, "Not Found", Message(), body) as error:
        copy = _arrived(error)
    assert isinstance(copy, HTTPError)
    assert copy.code == 404
    assert "404" in "".join(traceback.format_exception(copy))


def test_an_exception_whose_arguments_cannot_be_pickled_is_told_about() -> None:
    report = outcomes.report_exception(ValueError("see", threading.Lock()))
    assert report.pickle is None
    assert report.message.startswith("('see', <unlocked")


def test_causes_arrive_or_are_left_out() -> None:
    error = ValueError("outer")
    error.__cause__ = AwkwardError(1, 2)
    cause = _arrived(error).__cause__
    assert isinstance(cause, AwkwardError)
    error.__cause__ = RuntimeError(threading.Lock())
    copy = _arrived(error)
    assert copy.args == ("outer",)
    assert copy.__cause__ is None


# ---------------------------------------------------------------- retry policies


FIRST = Attempt(1, 0.0)


def test_an_int_is_so_many_more_attempts() -> None:
    error = ValueError()
    assert retrypolicy.after_failure(2, Attempt(2, 0.0), error) == Again(0.0)
    assert retrypolicy.after_failure(2, Attempt(3, 0.0), error) == GiveUp()
    assert retrypolicy.after_failure(0, FIRST, error) == GiveUp()
    assert retrypolicy.after_result(2, FIRST, None) == Accept()
    assert retrypolicy.after_failure(None, FIRST, error) == Accept()


def test_hooks_are_called_in_tenacitys_order() -> None:
    calls: list[str] = []
    policy = tenacity.Retrying(
        before=lambda state: calls.append(f"before {state.attempt_number}"),
        after=lambda state: calls.append(f"after {state.outcome.exception()}"),
        before_sleep=lambda state: calls.append(f"sleep {state.upcoming_sleep}"),
        wait=tenacity.wait_fixed(3),
        stop=tenacity.stop_after_attempt(2),
    )
    retrypolicy.before(policy, FIRST)
    assert retrypolicy.after_failure(policy, FIRST, ValueError("x")) == Again(3.0)
    assert retrypolicy.after_failure(policy, Attempt(2, 0.0), ValueError("y")) == GiveUp()
    assert calls == ["before 1", "after x", "sleep 3.0", "after y"]


def test_try_again_is_always_a_wish_to_retry() -> None:
    policy = tenacity.Retrying(retry=tenacity.retry_if_exception_type(OSError))
    assert retrypolicy.after_failure(policy, FIRST, tenacity.TryAgain()) == Again(0.0)


def test_a_retry_error_callback_gives_the_result() -> None:
    policy = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(1), retry_error_callback=lambda state: "fallback"
    )
    assert retrypolicy.after_failure(policy, FIRST, ValueError()) == Replace("fallback")


@pytest.mark.parametrize("policy", ["three", tenacity.Retrying(wait=lambda state: 1 / 0)])
def test_a_policy_that_raises_is_broken(policy: Any) -> None:
    with pytest.raises(BrokenPolicyError):
        retrypolicy.after_failure(policy, FIRST, ValueError())


# ---------------------------------------------------------------- deaths


def test_a_death_is_named_by_signal_exit_code_or_memory() -> None:
    assert Death(-9, "").cause == "signal SIGKILL"
    assert Death(3, "").cause == "exit code 3"
    assert Death(-9, "", out_of_memory=True).cause.startswith("out of memory")
    assert Death(-11, "", out_of_memory=True).cause == "signal SIGSEGV"


def test_the_report_of_a_death_ends_with_the_last_lines_of_output() -> None:
    tail = "".join(f"line {number}\n" for number in range(50))
    message = Death(3, tail).report(0, "w", 1, 3).message
    assert message.endswith("  line 48\n  line 49")
    assert "line 39" not in message
    assert "printed nothing" in Death(3, "").report(0, "w", 1, 3).message
