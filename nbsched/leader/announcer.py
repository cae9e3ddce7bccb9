"""Outcomes that the leader itself decides, on their way to the results log.

Queued tasks that were cancelled, and tasks that were lost with their host. The
scheduler counts them only when it reads them back.
"""

from __future__ import annotations

import asyncio
import logging

from nbsched import messages
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
        self._queue: asyncio.Queue[tuple[ClientId, JobId, list[Outcome], bytes]] = asyncio.Queue()

    def cancelled(self, client: ClientId, command: PublishCancelled) -> None:
        outcomes = [
            Outcome(named.start, named.stop, named.round, 0, OutcomeState.CANCELLED)
            for named in command.ranges
        ]
        for at in range(0, len(outcomes), _MOST_OUTCOMES):
            self._queue.put_nowait((client, command.job, outcomes[at : at + _MOST_OUTCOMES], b""))

    def lost(self, client: ClientId, command: PublishLost) -> None:
        report = messages.encode(_lost_report(command))
        outcome = Outcome(
            command.index,
            command.index + 1,
            command.round,
            command.attempt,
            OutcomeState.FAILED if command.final else OutcomeState.RETRY,
            Encoding.ERROR,
            (len(report),),
            crashes=command.crashes,
        )
        self._queue.put_nowait((client, command.job, [outcome], report))

    async def run(self) -> None:
        """Append what is queued, for ever. Raises LeadershipLostError."""
        while True:
            client, job, outcomes, body = await self._queue.get()
            meta = messages.encode(OutcomeBatch(self._me, tuple(outcomes)))
            first = min(outcome.start for outcome in outcomes)
            count = sum(outcome.stop - outcome.start for outcome in outcomes)
            content = Envelope(
                Kind.OUTCOME,
                self._names.namespace,
                job=job,
                first=first,
                count=count,
                term=self._leadership.term,
                meta=meta,
            )
            header = self._wire.write(content, body)
            await self._append(self._names.job_results(client, job), header, body)

    async def _append(self, subject: str, header: bytes, body: bytes) -> None:
        while True:
            self._leadership.check()
            try:
                await self._bus.append(subject, header, body)
                return
            except LogFullError as error:
                log.warning("The results log is full; waiting for room: %s", error)
                await asyncio.sleep(_FULL_RETRY_S)


def _lost_report(command: PublishLost) -> ErrorReport:
    fate = (
        f"It has now taken down {command.crashes} kernels or hosts and is not run again."
        if command.final
        else "It is run again."
    )
    return ErrorReport(
        type_name="TaskCrashedError",
        message=(
            f"Task {command.index} was running on worker {command.worker} when that worker"
            f" vanished (its host died, or its lease ended). {fate}"
        ),
        system="TaskCrashedError",
        details={
            "cause": "host lost",
            "worker": command.worker,
            "crashes": command.crashes,
            "attempt": command.attempt,
        },
    )
