"""Outcomes that the leader itself decides, on their way to the results log.

Queued tasks that were cancelled, and tasks that were lost with their host. The
scheduler counts them only when it reads them back, so what the log has acknowledged and
then lost, as JetStream may when its host loses power, is appended once more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import NamedTuple

from nbsched import messages
from nbsched.attempts import PastAttempt, attempts_text, with_attempt
from nbsched.leader.election import Leadership
from nbsched.messages import Encoding, ErrorReport, Outcome, OutcomeBatch, OutcomeState
from nbsched.model import ClientId, JobId, WorkerId
from nbsched.names import Names
from nbsched.payload.envelope import Envelope, Kind
from nbsched.scheduler.commands import PublishCancelled, PublishLost
from nbsched.transport import Bus, LogFullError
from nbsched.wire import Wire

log = logging.getLogger(__name__)

_FULL_RETRY_S = 1.0
_MOST_OUTCOMES = 500
"""Per message, so that a header stays below some 16 KiB."""


class _Entry(NamedTuple):
    subject: str
    header: bytes
    body: bytes


class Appended(NamedTuple):
    """An entry that the log has acknowledged, under this number."""

    entry: _Entry
    sequence: int


class Announcer:
    """The queue of outcomes, and the task that appends them in order."""

    def __init__(
        self, me: WorkerId, leadership: Leadership, *, bus: Bus, wire: Wire, names: Names
    ) -> None:
        self._me = me
        self._leadership = leadership
        self._bus = bus
        self._wire = wire
        self._names = names
        self._queue: asyncio.Queue[_Entry] = asyncio.Queue()
        self._appending: _Entry | None = None
        """None again when it is read back before its acknowledgement comes."""
        self._unread: dict[bytes, Appended] = {}
        """By header: those with the same say the same."""

    @property
    def unread(self) -> Sequence[Appended]:
        """What the log has acknowledged, and nobody has read back."""
        return tuple(self._unread.values())

    def read_back(self, header: bytes) -> None:
        """An entry of the log was read, whosever it is."""
        self._unread.pop(header, None)
        if self._appending is not None and self._appending.header == header:
            self._appending = None

    def repeat(self, unread: Sequence[Appended], position: int, last: int) -> None:
        """Append again those that the log, which was read up to ``position`` and ends with
        ``last``, does not have."""
        for entry, sequence in unread:
            lost = sequence <= position or sequence > last
            if lost and self._unread.pop(entry.header, None) is not None:
                log.warning("%s: the log has lost an outcome; it is repeated", entry.subject)
                self._queue.put_nowait(entry)

    def cancelled(self, client: ClientId, command: PublishCancelled) -> None:
        outcomes = [
            Outcome(named.start, named.stop, named.round, 0, OutcomeState.CANCELLED)
            for named in command.ranges
        ]
        for at in range(0, len(outcomes), _MOST_OUTCOMES):
            self._put(client, command.job, outcomes[at : at + _MOST_OUTCOMES], b"")

    def lost(self, client: ClientId, command: PublishLost) -> None:
        past = with_attempt(command.past, command.worker, "host lost")
        report = messages.encode(_lost_report(command, past))
        outcome = Outcome(
            command.index,
            command.index + 1,
            command.round,
            command.attempt,
            OutcomeState.FAILED if command.final else OutcomeState.RETRY,
            Encoding.ERROR,
            (len(report),),
            crashes=command.crashes,
            past=() if command.final else past,
        )
        self._put(client, command.job, [outcome], report)

    def _put(self, client: ClientId, job: JobId, outcomes: list[Outcome], body: bytes) -> None:
        content = Envelope(
            Kind.OUTCOME,
            self._names.namespace,
            job=job,
            first=min(outcome.start for outcome in outcomes),
            count=sum(outcome.stop - outcome.start for outcome in outcomes),
            term=self._leadership.term,
            meta=messages.encode(OutcomeBatch(self._me, tuple(outcomes))),
        )
        header = self._wire.write(content, body)
        self._queue.put_nowait(_Entry(self._names.job_results(client, job), header, body))

    async def run(self) -> None:
        """Append what is queued, for ever. Raises LeadershipLostError."""
        while True:
            entry = self._appending = await self._queue.get()
            sequence = await self._append(entry)
            if self._appending is not None:
                self._unread[entry.header] = Appended(entry, sequence)

    async def _append(self, entry: _Entry) -> int:
        while True:
            self._leadership.check()
            try:
                return await self._bus.append(*entry)
            except LogFullError as error:
                log.warning("The results log is full; waiting for room: %s", error)
                await asyncio.sleep(_FULL_RETRY_S)


def _lost_report(command: PublishLost, past: tuple[PastAttempt, ...]) -> ErrorReport:
    fate = (
        f"It has now taken down {command.crashes} kernels or hosts and is not run again."
        if command.final
        else "It is run again."
    )
    return ErrorReport(
        type_name="TaskCrashedError",
        message=(
            f"Task {command.index} was running on worker {command.worker} when that worker"
            f" vanished (its host died, or its lease ended). {fate}{attempts_text(past)}"
        ),
        system="TaskCrashedError",
        details={
            "index": command.index,
            "cause": "host lost",
            "worker": command.worker,
            "crashes": command.crashes,
            "attempt": command.attempt,
        },
        history=past,
    )
