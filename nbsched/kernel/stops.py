"""Errors of tasks that were stopped at a limit of theirs, wherever that is found out.

A kernel makes them when the task could be interrupted, so that its retry policy can judge
them; the daemon makes the same ones when it had to kill the kernel.
"""

from __future__ import annotations

from typing import Any, cast

from nbsched.attempts import (
    PastAttempt,
    attempts_text,
    bytes_text,
    last_lines,
    with_attempt,
)
from nbsched.errors import TaskError, TaskMemoryError, TaskTimeoutError
from nbsched.kernel import outcomes
from nbsched.kernel.exceptions import safe_text
from nbsched.kernel.protocol import Breach
from nbsched.kernel.sharedstate import OVERDRAWN
from nbsched.messages import ErrorReport

TIME_CAUSE = "timeout"
MEMORY_CAUSE = "memory limit"


def timeout_error(
    after_s: float, index: int, worker: str, tail: str, history: tuple[PastAttempt, ...]
) -> TaskTimeoutError:
    """It ran out of time. ``tail`` is the end of what it printed."""
    return TaskTimeoutError(
        f"Task {index} ran longer than its task_timeout of {after_s:g} s on worker {worker} and"
        " was stopped. Give it more time with task_timeout=, or less to do."
        f"{attempts_text(history)}{last_lines(tail)}",
        index=index,
        details={"index": index, "cause": TIME_CAUSE, "worker": worker, "tail": tail},
        history=history,
    )


def memory_error(
    breach: Breach, index: int, worker: str, tail: str, history: tuple[PastAttempt, ...]
) -> TaskMemoryError:
    """It occupied too much memory, or asked for far too much."""
    limit, used = bytes_text(int(breach.limit)), bytes_text(int(breach.amount))
    what = f"It occupied {used}" if breach.amount else "The system refused to give it so much"
    return TaskMemoryError(
        f"Task {index} needed more memory than its limit of {limit} on worker {worker}. {what},"
        " and it was stopped. Give it more with memory=, or less to do at a time."
        f"{attempts_text(history)}{last_lines(tail)}",
        index=index,
        details={
            "index": index,
            "cause": MEMORY_CAUSE,
            "worker": worker,
            "limit_bytes": int(breach.limit),
            "used_bytes": int(breach.amount) or None,
            "tail": tail,
        },
        history=history,
    )


def breach_error(
    breach: Breach, index: int, worker: str, tail: str, past: tuple[PastAttempt, ...]
) -> TaskError:
    """The error of a task with these earlier attempts."""
    if breach.cause == OVERDRAWN:
        history = with_attempt(past, worker, MEMORY_CAUSE)
        return memory_error(breach, index, worker, tail, history)
    history = with_attempt(past, worker, TIME_CAUSE)
    return timeout_error(breach.limit, index, worker, tail, history)


def report(error: TaskError) -> ErrorReport:
    """Such an error on its way to the client."""
    details = cast(dict[str, Any], error.details)
    return outcomes.report_system(
        type(error).__name__, safe_text(error), error, history=error.history, **details
    )
