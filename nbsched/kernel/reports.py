"""What a task's error says when the task has raised none of its own.

Each gives the fact, the cause and the next step.
"""

from __future__ import annotations

import sys

from nbsched.kernel import outcomes
from nbsched.kernel.exceptions import safe_text
from nbsched.kernel.protocol import Hello
from nbsched.kernel.taskrun import TaskRun
from nbsched.messages import ErrorReport


def unreadable(task: TaskRun, reading: str, host: str, error: BaseException) -> ErrorReport:
    """What of the input (``reading``) could not be unpickled on this host."""
    cause = f"{outcomes.type_name(error)}: {safe_text(error)}"
    what = f"The {reading} of job {task.job.job}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        message = (
            f"{what} needs a module that is missing: No module named {error.name!r} on worker"
            f" host {host} ({sys.executable}): install it there."
        )
    else:
        message = (
            f"{what} cannot be unpickled on worker host {host}: {cause}. Check that the same"
            " packages and versions are installed there as where it was sent from."
        )
    return outcomes.report_system(
        "InputNotReadableError", message, error, index=task.index, cause=cause, host=host
    )


def where_missing(module: str, home: Hello) -> str:
    """A line for the task's own exception that an import of its code has raised."""
    return (
        f"{module.partition('.')[0]!r} is missing on worker {home.worker} ({sys.executable}):"
        " install it there."
    )


def left(task: TaskRun, error: BaseException) -> ErrorReport:
    """An exit that is no exception: ``sys.exit``, KeyboardInterrupt, …"""
    text = safe_text(error)
    if isinstance(error, SystemExit):
        cause = f"sys.exit({'' if error.code is None else text})"
    else:
        cause = f"{outcomes.type_name(error)}({text})"
    message = (
        f"Task {task.index} ended with {cause} instead of returning. Return a value, or raise an"
        " exception to let it fail."
    )
    return outcomes.report_system("TaskCrashedError", message, error, index=task.index, cause=cause)


def unsatisfied(task: TaskRun, *, final: bool) -> ErrorReport:
    """The policy judged the result, and did not like it."""
    after = "and has given up" if final else "and lets it run again"
    return outcomes.report_system(
        "RetriesExhaustedError",
        f"The retry policy did not accept the result of task {task.index} on attempt"
        f" {task.batch.attempt} {after}. Relax retry= or its stop=.",
        index=task.index,
        attempts=task.batch.attempt,
    )


def unpicklable(task: TaskRun, value: object, error: BaseException) -> ErrorReport:
    """The result cannot travel."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    cause = f"{outcomes.type_name(error)}: {safe_text(error)}"
    return outcomes.report_system(
        "ResultNotPicklableError",
        f"The result of task {task.index} ({kind}) cannot be sent back: it cannot be pickled"
        f" ({cause}). Return plain data instead of open connections, locks, files or generators.",
        index=task.index,
        cause=cause,
    )


def too_large(task: TaskRun, size: int, limit: int) -> ErrorReport:
    """The result may not travel."""
    return outcomes.report_system(
        "ResultTooLargeError",
        f"The result of task {task.index} has {size:,} bytes; the limit is {limit:,}. Return less,"
        " write it to storage and return its path, or raise NBSCHED_MAX_RESULT_BYTES on the"
        " workers.",
        index=task.index,
        size=size,
        limit=limit,
    )
