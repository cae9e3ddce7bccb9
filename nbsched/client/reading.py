"""Reads outcomes from the results log into trackers.

Nothing is handed on before its envelope has been checked and matched to a job that
somebody here waits for; one bad entry never stops the reading.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import aclosing

import msgspec

from nbsched.client.tracker import JobTracker
from nbsched.errors import AuthenticationError
from nbsched.messages import OutcomeBatch, OutcomePart
from nbsched.model import JobId
from nbsched.names import Names
from nbsched.payload.envelope import Envelope, Kind, check_body
from nbsched.transport import Bus, LogEntry, LogLostError
from nbsched.wire import Wire

log = logging.getLogger(__name__)

TrackerOf = Callable[[JobId], "JobTracker | None"]


class OutcomeReader:
    """A position in the results log, under one subject; `run` goes on from there."""

    def __init__(
        self, bus: Bus, wire: Wire, names: Names, subject: str, after: int, tracker_of: TrackerOf
    ) -> None:
        self._bus = bus
        self._wire = wire
        self._log = names.results_log
        self._subject = subject
        self.position = after
        """Up to there the log has been taken in."""
        self._tracker_of = tracker_of
        self._parts: dict[JobId, dict[str, list[bytes]]] = {}
        """Large bodies that have not come completely, by token. A worker that dies on
        the way leaves some behind; they go when their job has ended or nobody waits."""

    async def run(self) -> None:
        """Take in entry after entry, for ever; called again after a failure."""
        while True:
            try:
                await self._read()
            except LogLostError as error:
                # Jobs whose data are gone with it are forgotten by the leader.
                log.error("%s It is read from its beginning.", error)
                self.position = 0

    async def read_to(self, sequence: int) -> None:
        """Take in the entries up to this one, which is there."""
        while self.position < sequence:
            await self._read(sequence)

    async def _read(self, until: float = math.inf) -> None:
        async with aclosing(
            self._bus.read(self._log, self._subject, after=self.position)
        ) as batches:
            async for batch in batches:
                for entry in batch:
                    self._take_in(entry)
                    self.position = entry.sequence
                if self.position >= until:
                    return

    def _take_in(self, entry: LogEntry) -> None:
        try:
            self._check_and_take_in(entry)
        except (AuthenticationError, msgspec.DecodeError) as error:
            log.warning("An entry of the results log is ignored: %s", error)
        except Exception:
            log.exception("Entry %d of the results log cannot be taken in", entry.sequence)

    def _check_and_take_in(self, entry: LogEntry) -> None:
        content = self._wire.read(Kind.OUTCOME, entry.header)
        job = JobId(content.job)
        tracker = self._tracker_of(job)
        if tracker is None:
            self._parts.pop(job, None)
            return
        if not entry.subject.endswith(f".{tracker.client}.{job}"):
            raise AuthenticationError("An outcome stands under another job's subject.")
        try:
            batch = msgspec.msgpack.decode(content.meta, type=OutcomeBatch)
        except msgspec.ValidationError:
            self._keep_part(content, entry.data)
            return
        data = entry.data
        if batch.parts:
            data = b"".join(self._parts.get(job, {}).pop(batch.token, []))
        check_body(content, data)
        tracker.take_in(batch.outcomes, data, batch.worker)
        if tracker.finished:
            self._parts.pop(job, None)

    def _keep_part(self, content: Envelope, data: bytes) -> None:
        part = msgspec.msgpack.decode(content.meta, type=OutcomePart)
        check_body(content, data)
        job = JobId(content.job)
        if job not in self._parts:
            for other in [kept for kept in self._parts if self._tracker_of(kept) is None]:
                del self._parts[other]
        parts = self._parts.setdefault(job, {}).setdefault(part.token, [])
        if part.part == len(parts):
            parts.append(data)
