"""Reads a log for ever: in order, without a gap, with little delay and bounded memory.

Theory of operation. A reader has one ephemeral pull consumer on the server and keeps one
pull request open there, limited in messages and bytes. Entries arrive one by one as they
are appended, and are handed over together with whatever else has arrived. When the
request is used up (or has expired) the next is made as soon as the entries were taken, so
at most one request's worth waits here while the last one is being worked on. Two open
requests would be served in turn, and nobody could tell how much of which is left.

The consumer numbers what it delivers. Any doubt (a number is missing, the consumer is
gone, its heartbeats stay away, the connection was lost) has one answer: a new consumer
that starts behind the last entry received. So nothing here repairs anything.

nats-py's own readers are not used: ``fetch(n)`` waits for the whole batch, and an ordered
push consumer can skip an entry after a slow-consumer drop without noticing.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator
from typing import NamedTuple

from nats.aio.msg import Msg

from nbsched.errors import BusUnreachableError
from nbsched.transport import LogEntry, LogLostError
from nbsched.transport.connection import Subscribed
from nbsched.transport.jetstream import JetStream, envelope_of

log = logging.getLogger(__name__)

BATCH = 2000
MAX_BYTES = 8 * 1024 * 1024
"""Of one request. As much again may be in the hands of whoever reads. The server cuts
off a client that has 64 MiB unread, over all its readers."""
ENVELOPE_BYTES = 64 * 1024
"""Room for subject and headers, beside the largest payload, in a request's limit."""
EXPIRES_S = 30.0
HEARTBEAT_S = 3.0
"""Silence of more than twice this is taken for a dead consumer."""
INACTIVE_S = 60.0
"""The server removes the consumer of a reader that vanished without a word."""
RETRY_S = 1.0


class Delivery(NamedTuple):
    """What the reply subject of a delivered entry says."""

    stream_sequence: int
    consumer_sequence: int
    pending: int


class _BrokenError(Exception):
    """This consumer cannot be trusted to deliver the next entry."""


class LogReader:
    """Entries of a log whose subject matches, behind sequence ``after``.

    With ``until`` it ends when it has seen all that match up to that sequence.
    """

    def __init__(
        self,
        jetstream: JetStream,
        stream: str,
        subject: str,
        *,
        after: int = 0,
        headers_only: bool = False,
        until: int | None = None,
    ) -> None:
        self._jetstream = jetstream
        self._connection = jetstream.connection
        self._stream = stream
        self._subject = subject
        self._position = after
        self._headers_only = headers_only
        self._until = until
        self._identity = ""

    async def batches(self) -> AsyncGenerator[list[LogEntry], None]:
        """Hand over what has arrived, for ever; closing it removes the consumer.

        Raises:
            BusUnreachableError: the bus was closed.
            LogLostError: the log was lost and made anew, or has lost its end.
        """
        fruitless = 0
        while True:
            consumer = await self._consumer()
            try:
                while not self._finished(consumer):
                    entries = await consumer.take()
                    if entries:
                        self._position = entries[-1].sequence
                        yield entries
                return
            except (_BrokenError, BusUnreachableError) as error:
                log.info(
                    "log=%s: reading goes on behind %d: %s", self._stream, self._position, error
                )
                fruitless = fruitless + 1 if consumer.delivered == 0 else 0
            finally:
                await consumer.close()
            # A consumer that breaks every time must not be made in a tight loop.
            if fruitless > 1 and self._connection.connected:
                await self._connection.pause(RETRY_S)

    def _finished(self, consumer: _Consumer) -> bool:
        if self._until is None:
            return False
        return self._position >= self._until or (consumer.caught_up and not consumer.ready)

    async def _consumer(self) -> _Consumer:
        """A consumer that starts behind our position, however long that takes."""
        while True:
            await self._connection.wait_connected()
            consumer = _Consumer(self._jetstream, self._stream, self._headers_only)
            try:
                if self._until is None:
                    await self._check_identity()
                await consumer.start(self._subject, self._position + 1)
                return consumer
            except BusUnreachableError as error:
                await consumer.close()
                if not self._connection.closed:
                    log.warning("log=%s cannot be read at the moment: %s", self._stream, error)
                await self._connection.pause(RETRY_S)
            except BaseException:
                await consumer.close()
                raise

    async def _check_identity(self) -> None:
        """A position in another log means nothing, and one behind the end was in another: a
        host that lost power comes back without what its NATS had not yet synced."""
        identity, last = await self._jetstream.identity(self._stream)
        if last < self._position:
            raise LogLostError(
                f"The log {self._stream} was read up to {self._position} and ends at {last}: its"
                " servers have lost the rest."
            )
        if self._identity not in ("", identity):
            raise LogLostError(
                f"The log {self._stream} was lost by its servers and made anew ({identity})."
            )
        self._identity = identity


class _Consumer:
    """One consumer on the server, from its creation to its first irregularity."""

    def __init__(self, jetstream: JetStream, stream: str, headers_only: bool) -> None:
        self.ready: list[LogEntry] = []
        self.delivered = 0
        """Entries so far, which is also the last one's number by this consumer."""
        self.caught_up = False
        """Nothing more is there at the moment."""
        self._jetstream = jetstream
        self._connection = jetstream.connection
        self._stream = stream
        self._headers_only = headers_only
        self._name = f"nbsched-{secrets.token_hex(8)}"
        self._inbox = self._connection.new_inbox()
        self._subscribed: Subscribed | None = None
        self._requests = 0
        self._open = False
        self._left = 0
        self._limit_bytes = max(MAX_BYTES, self._connection.max_payload + ENVELOPE_BYTES)
        self._broken: str | None = None
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._heard_at = self._loop.time()
        self._watch: asyncio.TimerHandle | None = None

    async def start(self, subject: str, first: int) -> None:
        self._connection.watchers.add(self._on_connection)
        self._subscribed = await self._connection.subscribe(f"{self._inbox}.*", self._receive)
        info = await self._jetstream.create_consumer(
            self._stream,
            self._name,
            subject,
            first,
            headers_only=self._headers_only,
            idle_s=INACTIVE_S,
        )
        self.caught_up = info.num_pending == 0
        self._watch_over()

    async def take(self) -> list[LogEntry]:
        """Entries that have arrived; waits for one, or for anything else that matters."""
        if not self.ready:
            if self._broken is not None:
                raise _BrokenError(self._broken)
            await self._pull()
            await self._changed.wait()
        self._changed.clear()
        taken, self.ready = self.ready, []
        if taken:
            await self._pull()
        return taken

    async def _pull(self) -> None:
        """Keep one request open at the server."""
        if self._open or self._broken is not None:
            return
        self._requests += 1
        self._open, self._left = True, BATCH
        self._heard_at = self._loop.time()
        await self._jetstream.pull(
            self._stream,
            self._name,
            f"{self._inbox}.{self._requests}",
            batch=BATCH,
            max_bytes=self._limit_bytes,
            expires_s=EXPIRES_S,
            heartbeat_s=HEARTBEAT_S,
        )

    # ------------------------------------------------------------ what arrives

    async def _receive(self, message: Msg) -> None:
        self._heard_at = self._loop.time()
        if self._broken is not None:
            return
        delivery = parse_delivery(message.reply)
        if delivery is None:
            self._on_status(message)
        else:
            self._on_entry(message, delivery)
        self._changed.set()

    def _on_entry(self, message: Msg, delivery: Delivery) -> None:
        if delivery.consumer_sequence != self.delivered + 1:
            self._broken = f"entry {self.delivered + 1} of the consumer is missing"
            return
        self.delivered += 1
        self._left -= 1
        if self._left == 0:
            self._open = False
        self.caught_up = delivery.pending == 0
        self.ready.append(
            LogEntry(message.subject, delivery.stream_sequence, envelope_of(message), message.data)
        )

    def _on_status(self, message: Msg) -> None:
        headers = message.headers or {}
        status, text = headers.get("Status", ""), headers.get("Description", "")
        if status == "100":  # a heartbeat: the server has nothing to send
            self.caught_up = True
        elif message.subject != f"{self._inbox}.{self._requests}":
            return
        elif status in ("404", "408") or _used_up(text):
            if self._left == BATCH and _used_up(text):
                self._limit_bytes *= 2  # or an entry over the limit would never come
            self._open = False
        else:
            self._broken = f"the consumer is gone ({status} {text})"

    def _on_connection(self, up: bool) -> None:
        if not up:
            self._break("the connection was lost")

    def _break(self, cause: str) -> None:
        self._broken = self._broken or cause
        self._changed.set()

    def _watch_over(self) -> None:
        """Look for heartbeats. Without an open request there are none."""
        if self._open and self._loop.time() - self._heard_at > 2.5 * HEARTBEAT_S:
            self._break("its heartbeats stay away")
        self._watch = self._loop.call_later(HEARTBEAT_S, self._watch_over)

    async def close(self) -> None:
        """Remove the consumer, here and on the server. Never raises."""
        self._connection.watchers.discard(self._on_connection)
        if self._watch is not None:
            self._watch.cancel()
        if self._subscribed is None:
            return
        await self._subscribed.close()
        try:
            await self._jetstream.delete_consumer(self._stream, self._name)
        except BusUnreachableError:
            log.debug("consumer=%s is left to the server to remove", self._name)


def _used_up(text: str) -> bool:
    """Whether a 409 only ends the request; its other reasons concern the consumer."""
    text = text.lower()
    return "maxbytes" in text or "batch completed" in text


def parse_delivery(reply: str) -> Delivery | None:
    """Read ``$JS.ACK.…``, the reply subject of every delivered entry; None for another.

    It has 9 parts, or from NATS 2.11 on, and with a domain, two more in front.
    """
    parts = reply.split(".")
    if len(parts) < 9 or parts[0] != "$JS" or parts[1] != "ACK":
        return None
    at = 5 if len(parts) == 9 else 7
    return Delivery(int(parts[at]), int(parts[at + 1]), int(parts[at + 3]))
