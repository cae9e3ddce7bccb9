"""Writes that wait while a server has no room or is away, and tell the user so.

The job's own display is not there yet while its items are uploaded, so what is waited
for is said on stderr as well, once.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from nbsched.client.notes import HERE, STORE_FULL, Notes
from nbsched.client.session import Session
from nbsched.errors import StoreFullError, StoreUnreachableError
from nbsched.model import JobId
from nbsched.transport import LogFullError

log = logging.getLogger(__name__)

T = TypeVar("T")
_RETRY_S = 1.0
_TELL_S = 0.5


async def patiently(
    session: Session, write: Callable[[], Awaitable[T]], *, away: bool = False
) -> T:
    """Write; as long as the server has no room, write again. For the I/O thread.

    With ``away`` also as long as etcd does not answer, unless the session closes: for what
    may be called again after a StoreUnreachableError.
    """
    notes = session.notes
    waited = False
    try:
        while True:
            try:
                return await write()
            except LogFullError as error:
                log.warning("The upload waits for room: %s", error)
                notes.waits(error.in_short("inputs"))
            except StoreFullError as error:
                log.warning("The job waits for room: %s", error)
                notes.waits(STORE_FULL)
            except StoreUnreachableError as error:
                if not away or session.closed:
                    raise
                log.warning("The job waits for etcd: %s", error)
                notes.waits(notes.away(error))
            waited = True
            await asyncio.sleep(_RETRY_S)
    finally:
        if waited:
            notes.works(HERE)


class Waiting:
    """The thread of a user, waiting for what goes on on the I/O thread."""

    def __init__(self, job: JobId, notes: Notes, meanwhile: Callable[[], None]) -> None:
        """``meanwhile`` is called again and again during long waits."""
        self._job = job
        self._meanwhile = meanwhile
        self._notes = notes
        self._told = ""

    def wait(self, future: concurrent.futures.Future[Any], deadline: float | None) -> bool:
        """Wait until it is done; False at the deadline (monotonic)."""
        while True:
            left_s = _TELL_S if deadline is None else max(0.0, deadline - time.monotonic())
            if concurrent.futures.wait([future], min(_TELL_S, left_s)).done:
                return True
            if not left_s:
                return False
            self._meanwhile()
            line = self._notes.waits_for
            if line and line != self._told:
                self._told = line
                print(f"Job {self._job} waits: {line}", file=sys.stderr, flush=True)
