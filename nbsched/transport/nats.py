"""The bus on NATS: messages over core NATS, logs in JetStream.

Only puts the parts together: `connection` (the client and answers), `jetstream` (the
API), `appender` and `logreader` (the two ends of a log). An entry's envelope travels in
the header ``Nbsched``, its data is the message; messages that are not kept carry no header.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from nats.aio.msg import Msg

from nbsched._compat import Self
from nbsched.settings import Settings
from nbsched.transport import Handler, LogEntry, Message
from nbsched.transport.appender import Appender
from nbsched.transport.connection import Connection, Subscribed
from nbsched.transport.jetstream import JetStream
from nbsched.transport.logreader import LogReader

log = logging.getLogger(__name__)


class NatsSubscription:
    """Calls one handler for the messages of a subject, in order."""

    def __init__(self, handler: Handler, siblings: set[NatsSubscription]) -> None:
        self._handler = handler
        self._siblings = siblings
        self._subscribed: Subscribed | None = None
        self._closed = False

    async def start(self, connection: Connection, subject: str) -> None:
        self._siblings.add(self)
        self._subscribed = await connection.subscribe(subject, self._receive)
        try:
            # A request that another client sends from now on must find us.
            await connection.round_trip()
        except BaseException:
            await self.close()
            raise

    async def _receive(self, received: Msg) -> None:
        if self._closed:
            return
        try:
            await self._handler(Message(received.subject, received.data, received.reply))
        except asyncio.CancelledError:
            # nats-py cancels this task when the subscription or the connection ends. Else
            # the handler let out the cancellation of something that it awaited, and
            # nats-py would take it for the end of the subscription.
            if self._closed:
                raise
            log.exception("subject=%s: a handler was cancelled from inside", received.subject)
        except Exception:
            log.exception("subject=%s: a handler failed", received.subject)

    async def close(self) -> None:
        self._closed = True
        self._siblings.discard(self)
        if self._subscribed is not None:
            await self._subscribed.close()


class NatsBus:
    """Implements `nbsched.transport.Bus`. Made by `connect`, ended by `close`.

    While no server is reachable, `publish`, `request` and `subscribe` raise
    BusUnreachableError at once and keep nothing; `append` and `read` wait.
    """

    def __init__(self, connection: Connection, timeout_s: float) -> None:
        self._connection = connection
        self._jetstream = JetStream(connection, timeout_s)
        self._appender = Appender(connection, self._write_error)
        self._logs: dict[str, str] = {}
        """Logs by the beginning of their subjects."""
        self._subscriptions: set[NatsSubscription] = set()

    @classmethod
    async def connect(cls, settings: Settings, *, name: str) -> Self:
        """Connect to one of ``settings.nats``; ``name`` is what NATS shows for us.

        Raises:
            BusUnreachableError: no server answers within ``connect_timeout_s``.
            JetStreamMissingError: it runs without JetStream.
            ConnectError: it refuses our credentials.
            ConfigurationError: credentials or certificates cannot be read.
        """
        connection = await Connection.open(settings, name)
        bus = cls(connection, settings.connect_timeout_s)
        try:
            await bus._jetstream.check()
        except BaseException:
            await bus.close()
            raise
        return bus

    @property
    def max_payload(self) -> int:
        return self._connection.max_payload

    async def publish(self, subject: str, data: bytes, reply: str = "") -> None:
        await self._connection.publish(subject, data, reply)

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        answer = await self._connection.ask(subject, data, timeout_s)
        return answer.data

    async def subscribe(self, subject: str, handler: Handler) -> NatsSubscription:
        subscription = NatsSubscription(handler, self._subscriptions)
        await subscription.start(self._connection, subject)
        return subscription

    async def ensure_log(self, log: str, subjects: str, *, replicas: int = 1) -> None:
        """Create the log unless it exists; two processes may do it at once.

        Raises:
            ConnectError: JetStream refuses it.
        """
        await self._jetstream.ensure_stream(log, subjects, replicas)
        self._logs[subjects.rstrip(">*")] = log

    async def _write_error(self, subject: str) -> tuple[str, str]:
        """The beginning of the subjects of a log, and why that takes nothing, if known."""
        for start, log in self._logs.items():
            if subject.startswith(start):
                return start, await self._jetstream.write_error(log, f"{start}_none")
        return subject, ""

    async def append(self, subject: str, header: bytes, data: bytes) -> int:
        return await self._appender.append(subject, header, data)

    def read(
        self, log: str, subject: str, *, after: int = 0, headers_only: bool = False
    ) -> AsyncGenerator[Sequence[LogEntry], None]:
        reader = LogReader(self._jetstream, log, subject, after=after, headers_only=headers_only)
        return reader.batches()

    async def replay(self, log: str, subject: str) -> AsyncGenerator[Sequence[LogEntry], None]:
        until = await self._jetstream.last_sequence(log)
        reader = LogReader(self._jetstream, log, subject, headers_only=True, until=until)
        async with aclosing(reader.batches()) as batches:
            async for entries in batches:
                yield entries

    async def last_of(self, log: str, subject: str) -> LogEntry | None:
        return await self._jetstream.last_of(log, subject)

    async def last_sequence(self, log: str) -> int:
        return await self._jetstream.last_sequence(log)

    async def subjects(self, log: str, subject: str) -> set[str]:
        return await self._jetstream.subjects(log, subject)

    async def purge(self, log: str, subject: str) -> None:
        await self._jetstream.purge(log, subject)

    async def close(self) -> None:
        """End everything at once. Waiting calls and readers raise BusUnreachableError."""
        for subscription in tuple(self._subscriptions):
            await subscription.close()
        await self._connection.close()
        await self._appender.close()
