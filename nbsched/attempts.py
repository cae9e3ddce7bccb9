"""How the attempts of a task ended, and how that reads in an error.

Pure data and text; nothing here knows who runs tasks.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

MOST_PAST = 20
_MOST_CAUSE = 200
"""They travel in headers that the leader reads."""
_SHOWN_LINES = 10
"""Of what a task printed; ``details['tail']`` has all that is kept."""


class PastAttempt(NamedTuple):
    """An attempt of a task.

    Attributes:
        worker: where it ran; the id begins with the host's name.
        cause: what it ended in: a signal, an exit code, an exception, …
        ended_at: epoch seconds.
    """

    worker: str
    cause: str
    ended_at: float


def with_attempt(
    past: Sequence[PastAttempt], worker: str, cause: str, ended_at: float | None = None
) -> tuple[PastAttempt, ...]:
    """``past`` and one more attempt; of very many the last ones are kept."""
    at = time.time() if ended_at is None else ended_at
    return (*past, PastAttempt(worker, cause[:_MOST_CAUSE], at))[-MOST_PAST:]


def attempts_text(past: Sequence[PastAttempt]) -> str:
    """Lines for the end of a message; empty when there was one attempt alone."""
    if len(past) < 2:
        return ""
    lines = [
        f"\n  {time.strftime('%H:%M:%S', time.localtime(attempt.ended_at))}"
        f" on {attempt.worker}: {attempt.cause.splitlines()[0] if attempt.cause else '?'}"
        for attempt in past
    ]
    return f"\nIts attempts:{''.join(lines)}"


def last_lines(tail: str) -> str:
    """For the end of a message: the last of what a task printed."""
    lines = tail.strip().splitlines()[-_SHOWN_LINES:]
    if not lines:
        return "\nIt had printed nothing."
    return "\nThe end of its output:\n" + "\n".join(f"  {line}" for line in lines)


def bytes_text(nbytes: int) -> str:
    """A size as people say it."""
    if nbytes < 1 << 20:
        return f"{nbytes / 1024:.0f} KiB"
    return f"{nbytes / 2**20:.0f} MiB" if nbytes < 1 << 30 else f"{nbytes / 2**30:.1f} GiB"
