"""Whether a task that failed is to run again, asked of the user's own policy.

The policy is an int (that many more attempts, on any exception) or a tenacity object.
It is evaluated in the kernel, where the real exception is; nothing here waits. The
leader holds the delay, so waiting occupies no slot.

tenacity is imported only when a policy of its kind is there: it imports asyncio.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

_T = TypeVar("_T")


class BrokenPolicyError(Exception):
    """The policy itself raised; its exception is the cause."""


@dataclass(frozen=True)
class Attempt:
    """One run of a task, as a policy sees it.

    Attributes:
        number: from 1 within the round.
        first_started_at: epoch seconds of the round's first attempt.
    """

    number: int
    first_started_at: float
    fn: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] | None = None


@dataclass(frozen=True)
class Accept:
    """The attempt's result or exception stands."""


@dataclass(frozen=True)
class Again:
    """Run again after ``wait_s``."""

    wait_s: float


@dataclass(frozen=True)
class GiveUp:
    """The policy would retry, but it has stopped."""


@dataclass(frozen=True)
class Replace:
    """The policy has stopped, and its ``retry_error_callback`` gave this result."""

    value: Any


Verdict = Accept | Again | GiveUp | Replace


def before(policy: Any, attempt: Attempt) -> None:
    """Call the policy's ``before`` hook, if it has one."""
    hook = getattr(policy, "before", None)
    if hook is None or getattr(hook, "__name__", "") == "before_nothing":
        return
    _guarded(lambda: hook(_call_state(policy, attempt)))


def after_failure(policy: Any, attempt: Attempt, error: Exception) -> Verdict:
    """What follows an exception. Raises BrokenPolicyError."""
    if policy is None:
        return Accept()
    if isinstance(policy, int):
        return Again(0.0) if attempt.number <= policy else GiveUp()
    return _guarded(lambda: _ask(policy, attempt, error=error))


def after_result(policy: Any, attempt: Attempt, value: object) -> Verdict:
    """What follows a result. Raises BrokenPolicyError."""
    if policy is None or isinstance(policy, int):
        return Accept()
    return _guarded(lambda: _ask(policy, attempt, value=value))


def _guarded(ask: Callable[[], _T]) -> _T:
    try:
        return ask()
    except Exception as error:
        raise BrokenPolicyError(str(type(error).__name__)) from error


def _ask(
    policy: Any, attempt: Attempt, *, error: Exception | None = None, value: object = None
) -> Verdict:
    import tenacity

    state = _call_state(policy, attempt)
    if error is not None:
        state.set_exception((type(error), error, error.__traceback__))
    else:
        state.set_result(value)
    if not (isinstance(error, tenacity.TryAgain) or policy.retry(state)):
        return Accept()
    if policy.after is not None:
        policy.after(state)
    state.upcoming_sleep = float(policy.wait(state)) if policy.wait else 0.0
    if policy.stop is not None and policy.stop(state):
        callback = policy.retry_error_callback
        return Replace(callback(state)) if callback else GiveUp()
    if policy.before_sleep is not None:
        policy.before_sleep(state)
    return Again(max(0.0, state.upcoming_sleep))


def _call_state(policy: Any, attempt: Attempt) -> Any:
    import tenacity

    state = tenacity.RetryCallState(policy, attempt.fn, attempt.args, attempt.kwargs or {})
    state.attempt_number = attempt.number
    # Its clock is monotonic and began in another process, perhaps on another host.
    state.start_time = time.monotonic() - max(0.0, time.time() - attempt.first_started_at)
    return state
