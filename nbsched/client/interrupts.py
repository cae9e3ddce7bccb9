"""What Ctrl-C (or the notebook's interrupt button) does to a call that waits."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

from nbsched.errors import NbschedError

OnInterrupt = Literal["cancel", "detach"]


class _Cancellable(Protocol):
    @property
    def job_id(self) -> str: ...

    def cancel(self) -> bool: ...


@contextmanager
def ends_job_on_interrupt(job: _Cancellable, on_interrupt: OnInterrupt) -> Iterator[None]:
    """Cancel the job when the wait is interrupted, say so, and pass the interrupt on."""
    try:
        yield
    except KeyboardInterrupt:
        if on_interrupt == "detach":
            _say(f"Job {job.job_id} goes on; cluster.attach({job.job_id!r}) brings it back.")
            raise
        try:
            job.cancel()
        except NbschedError as error:
            _say(f"Interrupted, but job {job.job_id} could not be cancelled: {error}")
        else:
            _say(f"Interrupted: job {job.job_id} is cancelled.")
        raise


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
