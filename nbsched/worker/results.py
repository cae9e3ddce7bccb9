"""Outcomes on their way to the results log: at once when idle, together under load.

While a job has more to do here, its outcomes go at most every `GAP_S` seconds: each
message costs this daemon, the server, the leader and the client more than a short task
does. Nobody waits for that: whoever could is waiting for the job's last tasks, or for
work, and those go at once.

An outcome is kept here until the log has acknowledged it, however long that takes.
When the log is full nothing is dropped: the worker takes no new work until there
is room (`full`).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from nbsched import messages
from nbsched.errors import ConnectError
from nbsched.messages import Outcome, OutcomeBatch, OutcomePart
from nbsched.model import ClientId, JobId, Term, WorkerId
from nbsched.names import Names
from nbsched.payload import envelope
from nbsched.payload.envelope import Envelope, Key, Kind
from nbsched.transport import Bus, LogFullError

log = logging.getLogger(__name__)

GAP_S = 0.02
_IN_FLIGHT = 4
"""Messages per job that wait for their acknowledgement; what comes meanwhile gathers."""
_META_BYTES = 32 * 1024
"""Of outcomes in the header of a message: there it is text, a third larger, and JetStream
takes 64 KiB."""
_TRY_AGAIN_S = 1.0


class _Waiting(NamedTuple):
    """An outcome, its bytes, and how many bytes it takes in a message's header."""

    outcome: Outcome
    body: bytes
    meta_bytes: int


@dataclass
class _Outgoing:
    """Outcomes of one job."""

    client: ClientId
    waiting: deque[_Waiting] = field(default_factory=deque)
    waiting_bytes: int = 0
    in_flight: int = 0
    sent_at: float = 0.0
    due: asyncio.TimerHandle | asyncio.Handle | None = None
    """The next time that something will be sent."""
    due_now: bool = False


class ResultPublisher:
    """Appends outcomes to the results log.

    ``on_acknowledged`` gets the outcomes that are in the log now; ``on_room`` is
    called when the log is found to be full, and when it takes outcomes again;
    ``more_follows`` says whether more outcomes of a job will come without anything new
    from the leader.
    """

    def __init__(
        self,
        worker: WorkerId,
        names: Names,
        key: Key,
        bus: Bus,
        message_bytes: int,
        term: Callable[[], Term],
        on_acknowledged: Callable[[JobId, tuple[Outcome, ...]], None],
        on_room: Callable[[], None],
        more_follows: Callable[[JobId], bool],
    ) -> None:
        self._worker = worker
        self._names = names
        self._key = key
        self._bus = bus
        self._message_bytes = message_bytes
        self._term = term
        self._on_acknowledged = on_acknowledged
        self._on_room = on_room
        self._more_follows = more_follows
        self._jobs: dict[JobId, _Outgoing] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._refused = 0
        self.trouble = ""
        """Why outcomes wait, for people; empty when they do not."""
        self.last_sequence = 0
        """Highest sequence number that one of our outcomes got."""
        self.pending_bytes = 0
        """Bytes of outcomes that are not acknowledged yet."""

    @property
    def full(self) -> bool:
        """Whether the log refuses outcomes for lack of room."""
        return self._refused > 0

    def add(self, job: JobId, client: ClientId, outcome: Outcome, body: bytes) -> None:
        """Publish an outcome with its bytes."""
        outgoing = self._jobs.setdefault(job, _Outgoing(client))
        # Counted, not guessed: the server refuses a message with a larger header for ever.
        outgoing.waiting.append(_Waiting(outcome, body, len(messages.encode(outcome))))
        outgoing.waiting_bytes += len(body)
        self.pending_bytes += len(body)
        self._plan(job, outgoing)

    def _plan(self, job: JobId, outgoing: _Outgoing) -> None:
        """Decide when to send; never this instant: what the same callback adds goes into
        the same message."""
        if outgoing.due_now or outgoing.in_flight == _IN_FLIGHT or not outgoing.waiting:
            return
        loop = asyncio.get_running_loop()
        wait_s = outgoing.sent_at + GAP_S - loop.time()
        if wait_s <= 0 or outgoing.waiting_bytes >= self._limit or not self._more_follows(job):
            if outgoing.due is not None:
                outgoing.due.cancel()
            outgoing.due_now = True
            outgoing.due = loop.call_soon(self._send, job, outgoing)
        elif outgoing.due is None:
            outgoing.due = loop.call_later(wait_s, self._send, job, outgoing)

    @property
    def _limit(self) -> int:
        """Bytes of a body in one message; the header needs room beside it."""
        return max(1024, min(self._message_bytes, self._bus.max_payload - 2 * _META_BYTES))

    def forget(self, job: JobId) -> None:
        """The job has ended: nothing more of it will come."""
        outgoing = self._jobs.get(job)
        if outgoing is not None and not outgoing.waiting and not outgoing.in_flight:
            del self._jobs[job]

    async def close(self) -> None:
        """Give up on what is not acknowledged: the leader runs it again."""
        for outgoing in self._jobs.values():
            if outgoing.due is not None:
                outgoing.due.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _send(self, job: JobId, outgoing: _Outgoing) -> None:
        outgoing.due, outgoing.due_now = None, False
        outgoing.sent_at = asyncio.get_running_loop().time()
        while outgoing.waiting and outgoing.in_flight < _IN_FLIGHT:
            batch = self._gather(outgoing)
            outgoing.in_flight += 1
            task = asyncio.create_task(self._publish(job, outgoing, batch), name=f"results-{job}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _gather(self, outgoing: _Outgoing) -> list[tuple[Outcome, bytes]]:
        """The next outcomes that fit into one message; a large one is alone."""
        batch: list[tuple[Outcome, bytes]] = []
        body_bytes = meta_bytes = 0
        while outgoing.waiting:
            outcome, body, nbytes = outgoing.waiting[0]
            body_bytes += len(body)
            meta_bytes += nbytes
            if batch and (body_bytes > self._limit or meta_bytes > _META_BYTES):
                break
            outgoing.waiting.popleft()
            batch.append((outcome, body))
            outgoing.waiting_bytes -= len(body)
        return batch

    async def _publish(
        self, job: JobId, outgoing: _Outgoing, batch: list[tuple[Outcome, bytes]]
    ) -> None:
        outcomes = tuple(outcome for outcome, _ in batch)
        body = b"".join(body for _, body in batch)
        subject = self._names.job_results(outgoing.client, job)
        sequence = await self._append(job, subject, outcomes, body)
        self.last_sequence = max(self.last_sequence, sequence)
        self.pending_bytes -= len(body)
        outgoing.in_flight -= 1
        if outgoing.waiting:
            self._plan(job, outgoing)
        elif not outgoing.in_flight and not self._more_follows(job):
            self._jobs.pop(job, None)
        self._on_acknowledged(job, outcomes)

    async def _append(
        self, job: JobId, subject: str, outcomes: tuple[Outcome, ...], body: bytes
    ) -> int:
        parts, token = 0, ""
        if len(body) > self._limit:
            token = secrets.token_hex(8)
            parts = await self._append_parts(job, subject, token, body)
        meta = messages.encode(OutcomeBatch(self._worker, outcomes, parts, token))
        content = Envelope(
            Kind.OUTCOME,
            self._names.namespace,
            job,
            first=min(outcome.start for outcome in outcomes),
            count=sum(outcome.stop - outcome.start for outcome in outcomes),
            attempt=outcomes[0].attempt,
            term=self._term(),
            meta=meta,
        )
        # Signed for the whole body, also when its bytes have gone ahead in parts.
        header = envelope.write(self._key, content, body)
        return await self._insist(subject, header, b"" if parts else body)

    async def _append_parts(self, job: JobId, subject: str, token: str, body: bytes) -> int:
        view = memoryview(body)
        limit = self._limit
        starts = range(0, len(body), limit)
        for part, start in enumerate(starts):
            piece = bytes(view[start : start + limit])
            meta = messages.encode(OutcomePart(token, part))
            content = Envelope(Kind.OUTCOME, self._names.namespace, job, meta=meta)
            await self._insist(subject, envelope.write(self._key, content, piece), piece)
        return len(starts)

    async def _insist(self, subject: str, header: bytes, data: bytes) -> int:
        """Append, however long it takes."""
        refused = False
        try:
            while True:
                try:
                    return await self._bus.append(subject, header, data)
                except LogFullError as error:
                    log.error("the results log is full, work pauses: %s", error)
                    self.trouble = error.in_short("results")
                    if not refused:
                        refused = True
                        self._refused += 1
                        self._on_room()
                except ConnectError as error:
                    log.warning("outcomes cannot be published, trying again: %s", error)
                except Exception:  # whatever it is, an outcome is not to be lost by it
                    log.exception("outcomes cannot be published, trying again")
                await asyncio.sleep(_TRY_AGAIN_S)
        finally:
            if refused:
                self._refused -= 1
                if not self._refused:
                    self.trouble = ""
                    self._on_room()
