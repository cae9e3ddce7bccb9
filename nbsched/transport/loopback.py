"""A short way for requests that stay within the process.

The daemon that leads is a worker as well, and commands itself: through the server that
would cost two messages and half a millisecond for every slice. Handlers see the same
bytes, signed and checked as ever, one message after another; all else goes to the bus.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, Sequence

from nbsched.transport import Bus, Handler, LogEntry, Message, RequestFailedError, Subscription

log = logging.getLogger(__name__)

_REPLY = "_nbsched_loopback."


class LoopbackBus:
    """A `Bus` over another one. Only a subject with a handler in this process, and no
    wildcard, takes the short way."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._handlers: dict[str, _Local] = {}
        self._answers: dict[str, asyncio.Future[bytes]] = {}
        self._handling: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(1)

    @property
    def max_payload(self) -> int:
        return self._bus.max_payload

    async def publish(self, subject: str, data: bytes, reply: str = "") -> None:
        if subject.startswith(_REPLY):
            answer = self._answers.get(subject)
            if answer is not None and not answer.done():
                answer.set_result(data)
            return
        await self._bus.publish(subject, data, reply)

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        local = self._handlers.get(subject)
        if local is None:
            return await self._bus.request(subject, data, timeout_s)
        reply = f"{_REPLY}{next(self._numbers)}"
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._answers[reply] = answer
        # A task of its own: the handler is done with the message also when nobody waits for
        # the answer any more.
        handling = asyncio.ensure_future(local.handle(Message(subject, data, reply)))
        self._handling.add(handling)
        handling.add_done_callback(self._handling.discard)
        try:
            await asyncio.wait({answer}, timeout=timeout_s)
            if not answer.done():
                raise RequestFailedError(f"No answer on {subject} within {timeout_s:g} s.")
            return answer.result()
        finally:
            del self._answers[reply]

    async def subscribe(self, subject: str, handler: Handler) -> Subscription:
        """As on the bus; requests of this process find the handler at once."""
        local = _Local(handler)
        subscription = await self._bus.subscribe(subject, local.handle)
        if "*" not in subject and ">" not in subject:
            self._handlers[subject] = local
        return _Subscription(self._handlers, subject, local, subscription)

    # ------------------------------------------------------------ passed on

    async def ensure_log(self, log: str, subjects: str, *, replicas: int = 1) -> None:
        await self._bus.ensure_log(log, subjects, replicas=replicas)

    async def append(self, subject: str, header: bytes, data: bytes) -> int:
        return await self._bus.append(subject, header, data)

    def read(
        self, log: str, subject: str, *, after: int = 0, headers_only: bool = False
    ) -> AsyncGenerator[Sequence[LogEntry], None]:
        return self._bus.read(log, subject, after=after, headers_only=headers_only)

    def replay(self, log: str, subject: str) -> AsyncGenerator[Sequence[LogEntry], None]:
        return self._bus.replay(log, subject)

    async def last_of(self, log: str, subject: str) -> LogEntry | None:
        return await self._bus.last_of(log, subject)

    async def last_sequence(self, log: str) -> int:
        return await self._bus.last_sequence(log)

    async def subjects(self, log: str, subject: str) -> set[str]:
        return await self._bus.subjects(log, subject)

    async def purge(self, log: str, subject: str) -> None:
        await self._bus.purge(log, subject)

    async def close(self) -> None:
        self._handlers.clear()
        for handling in tuple(self._handling):
            handling.cancel()
        await asyncio.gather(*self._handling, return_exceptions=True)
        await self._bus.close()


class _Local:
    """A handler that two ways lead to: still one message after another."""

    def __init__(self, handler: Handler) -> None:
        self.closed = False
        self._handler = handler
        self._turn = asyncio.Lock()

    async def handle(self, message: Message) -> None:
        async with self._turn:
            if self.closed:
                return
            try:
                await self._handler(message)
            except Exception:
                log.exception("subject=%s: a handler failed", message.subject)


class _Subscription:
    def __init__(
        self, handlers: dict[str, _Local], subject: str, local: _Local, inner: Subscription
    ) -> None:
        self._handlers = handlers
        self._subject = subject
        self._local = local
        self._inner = inner

    async def close(self) -> None:
        self._local.closed = True
        if self._handlers.get(self._subject) is self._local:
            del self._handlers[self._subject]
        await self._inner.close()
