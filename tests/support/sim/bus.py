"""NATS on a wire: the logs are the twin's, messages travel through the network.

Appends keep their order and are repeated until they are acknowledged, as `Appender` does,
and the server stores each once. A server that restarts may have lost the last entries of
a log although it had acknowledged them (JetStream's default fsync); it numbers the next ones
as it had numbered those. Clients come back to it one after another.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

from nbsched.errors import BusUnreachableError
from nbsched.transport import Handler, LogEntry, LogFullError, Message, RequestFailedError
from nbsched.transport.memory import MemoryBusServer, matches
from support.sim.bell import Bell
from support.sim.clock import Host, VirtualLoop
from support.sim.network import BACK, OUT, Network

log = logging.getLogger("nbsched.sim")
SERVER = "nats"
RECONNECT_S = 0.5
"""Within this a client is connected again to a server that is back."""


class SimBusServer(MemoryBusServer):
    """Logs, and who is subscribed to what."""

    def __init__(
        self,
        network: Network,
        loop: VirtualLoop,
        on_append: Callable[[str, bytes], None],
        on_loss: Callable[[str, bytes], None],
    ) -> None:
        super().__init__()
        self._on_append = on_append
        self._on_loss = on_loss
        self.network = network
        self.loop = loop
        self.full = False
        self.restarts = 0
        self._readers: dict[Bell, None] = {}
        self._subscribed: list[SimSubscription] = []
        self._inboxes: dict[str, tuple[Host, asyncio.Future[bytes]]] = {}
        self._inbox_numbers = itertools.count(1)

    def lose_tail(self, name: str, count: int) -> None:
        """A log loses its last entries; the next one gets the first lost one's number."""
        kept = self._logs[name]
        lost = kept.entries[-count:]
        if lost:
            del kept.entries[-count:]
            kept.last_sequence = lost[0].sequence - 1
        for entry in lost:
            self._on_loss(entry.subject, entry.header)

    def restart(self) -> None:
        self.restarts += 1
        self.come_back()

    def append(self, subject: str, header: bytes, data: bytes) -> int | None:
        if self.full:
            raise LogFullError("The disk under the log is full.")
        self._on_append(subject, header)
        return super().append(subject, header, data)

    def wake(self) -> None:
        for reader in self._readers:
            reader.wake()

    def send(self, sender: Host, message: Message) -> bool:
        """Deliver to all who are subscribed; whether there was anybody."""
        inbox = self._inboxes.get(message.subject)
        if inbox is not None:
            self._carry(inbox[0], lambda: _answer(inbox[1], message.data))
            return True
        takers = [taker for taker in self._subscribed if matches(taker.subject, message.subject)]
        for taker in takers:
            self._carry(taker.host, lambda taker=taker: taker.put(message))  # type: ignore[misc]
        return bool(takers)

    def _carry(self, host: Host, arrive: object) -> None:
        for extra in self.network.fates():
            delay = self.network.delay(host, SERVER, BACK) + extra
            self.loop.call_later(
                delay * host.rate, self._arrive, host, arrive, context=host.context
            )

    def _arrive(self, host: Host, arrive: object) -> None:
        if host.alive and self.reachable and not self.network.is_cut(host, SERVER, BACK):
            arrive()  # type: ignore[operator]

    def drop_host(self, host: Host) -> None:
        """Its connection is closed."""
        self._subscribed = [taker for taker in self._subscribed if taker.host is not host]


def _answer(waiting: asyncio.Future[bytes], data: bytes) -> None:
    if not waiting.done():
        waiting.set_result(data)


class SimSubscription:
    """Calls one handler for the messages of a subject, in the order of their arrival."""

    def __init__(self, server: SimBusServer, host: Host, subject: str, handler: Handler) -> None:
        self.subject = subject
        self.host = host
        self._server = server
        self._handler = handler
        self._messages: deque[Message] = deque()
        self._working: asyncio.Task[None] | None = None
        self._closed = False
        server._subscribed.append(self)

    def put(self, message: Message) -> None:
        if self._closed:
            return
        self._messages.append(message)
        if self._working is None:
            self._working = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        try:
            while self._messages and not self._closed:
                try:
                    await self._handler(self._messages.popleft())
                except Exception:
                    log.exception("subject=%s: a handler failed", self.subject)
        finally:
            self._working = None

    async def close(self) -> None:
        self._closed = True
        if self in self._server._subscribed:
            self._server._subscribed.remove(self)
        if self._working is not None and self._working is not asyncio.current_task():
            self._working.cancel()
            await asyncio.wait({self._working})


class SimBus:
    """One host's client; implements `nbsched.transport.Bus`."""

    def __init__(self, server: SimBusServer, host: Host) -> None:
        self.server = server
        self._network = server.network
        self._host = host
        self._loop = server.loop
        self._closed = False
        self._changed = Bell(self._loop)

    @property
    def max_payload(self) -> int:
        return self.server.max_payload

    async def publish(self, subject: str, data: bytes, reply: str = "") -> None:
        self._check()
        if self._network.is_cut(self._host, SERVER, OUT):
            return  # written to a socket that nobody reads
        for extra in self._network.fates():
            delay = self._network.delay(self._host, SERVER, OUT) + extra
            self._loop.call_later(delay * self._host.rate, self._deliver, subject, data, reply)

    def _deliver(self, subject: str, data: bytes, reply: str) -> bool:
        if not self.server.reachable or not self._host.alive:
            return True
        found = self.server.send(self._host, Message(subject, bytes(data), reply))
        if not found and reply in self.server._inboxes:
            waiting = self.server._inboxes[reply][1]
            if not waiting.done():
                waiting.set_exception(RequestFailedError(f"Nobody is subscribed to {subject}."))
        return found

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        answer: asyncio.Future[bytes] = self._loop.create_future()
        inbox = f"_INBOX.{next(self.server._inbox_numbers)}"
        self.server._inboxes[inbox] = (self._host, answer)
        try:
            await self.publish(subject, data, inbox)
            await asyncio.wait({answer}, timeout=timeout_s)
            if not answer.done():
                raise RequestFailedError(f"No answer on {subject} within {timeout_s:g} s.")
            return answer.result()
        finally:
            del self.server._inboxes[inbox]
            if answer.done() and not answer.cancelled():
                answer.exception()

    async def subscribe(self, subject: str, handler: Handler) -> SimSubscription:
        await self._ask()
        return SimSubscription(self.server, self._host, subject, handler)

    async def ensure_log(self, log: str, subjects: str, *, replicas: int = 1) -> None:
        await self._ask()
        self.server.ensure_log(log, subjects)

    async def append(self, subject: str, header: bytes, data: bytes) -> int:
        while True:
            await self._arrive()
            sequence = self.server.append(subject, bytes(header), bytes(data))
            assert sequence is not None, "the logs are there from the start"
            restarts = self.server.restarts
            await self._network.travel(self._host, SERVER, BACK)
            await self._until_up()
            if restarts == self.server.restarts or self._stored(subject, sequence, header):
                return sequence

    def _stored(self, subject: str, sequence: int, header: bytes) -> bool:
        """Whether a restarted server still has it: else it is published again."""
        for kept in self.server._logs.values():
            if matches(kept.subjects, subject):
                found = [e for e in kept.entries[-200:] if e.sequence == sequence]
                return bool(found) and found[0].header == header
        return False

    async def read(
        self, log: str, subject: str, *, after: int = 0, headers_only: bool = False
    ) -> AsyncGenerator[Sequence[LogEntry], None]:
        reader = Bell(self._loop)
        self.server._readers[reader] = None
        restarts = -1
        try:
            while True:
                await self._until_up()
                if restarts != self.server.restarts:
                    if restarts >= 0:
                        await self._reconnect()
                    restarts = self.server.restarts
                    self.server.check_position(log, after)
                entries = self.server.entries(log, subject, after)
                if not entries:
                    await reader.wait()
                    continue
                await self._network.travel(self._host, SERVER, BACK)
                if restarts != self.server.restarts:
                    continue  # the connection was lost with them on it
                after = entries[-1].sequence
                yield [replace(entry, data=b"") for entry in entries] if headers_only else entries
        finally:
            self.server._readers.pop(reader, None)

    async def replay(self, log: str, subject: str) -> AsyncGenerator[Sequence[LogEntry], None]:
        await self._ask()
        position, until = 0, self.server.last_sequence(log)
        while position < until and self.server.entries(log, subject, position):
            async with aclosing(self.read(log, subject, after=position, headers_only=True)) as more:
                entries = await anext(more)
            position = entries[-1].sequence
            yield entries

    async def last_of(self, log: str, subject: str) -> LogEntry | None:
        await self._ask()
        return self.server.last_of(log, subject)

    async def subjects(self, log: str, subject: str) -> set[str]:
        await self._ask()
        return self.server.subjects(log, subject)

    async def last_sequence(self, log: str) -> int:
        await self._ask()
        return self.server.last_sequence(log)

    async def purge(self, log: str, subject: str) -> None:
        await self._ask()
        self.server.purge(log, subject)

    async def close(self) -> None:
        self._closed = True
        self.server.drop_host(self._host)
        self.server.wake()

    # ------------------------------------------------------------ the wire

    def _check(self) -> None:
        if self._closed or not self._host.alive:
            raise BusUnreachableError("The bus is closed. Open a new one.")
        if not self.server.reachable:
            raise BusUnreachableError("NATS is down.")

    async def _ask(self) -> None:
        """A call that is answered, or fails within two seconds."""
        for way in (OUT, BACK):
            self._check()
            delay = self._network.delay(self._host, SERVER, way)
            await asyncio.sleep(delay * self._host.rate)
            if self._network.is_cut(self._host, SERVER, way):
                await asyncio.sleep(2.0)
                raise BusUnreachableError("NATS did not answer in time: the wire is cut.")
        self._check()

    async def _reconnect(self) -> None:
        """Come back to a server that was down: others may have written to it by then."""
        await self._network.pause(self._host, RECONNECT_S)
        await self._arrive()

    async def _arrive(self) -> None:
        await self._network.travel(self._host, SERVER, OUT)
        await self._until_up()

    async def _until_up(self) -> None:
        """Calls that wait for the server, however long."""
        reader: Bell | None = None
        try:
            while True:
                if self._closed or not self._host.alive:
                    raise BusUnreachableError("The bus is closed. Open a new one.")
                if self.server.reachable:
                    return
                if reader is None:
                    reader = Bell(self._loop)
                    self.server._readers[reader] = None
                await reader.wait()
        finally:
            if reader is not None:
                self.server._readers.pop(reader, None)
