"""The bus in memory: the twin of NATS that tests run against.

`MemoryBusServer` is subscriptions and logs, `MemoryBus` one client of it; several
clients, in one event loop or in several threads, see the same. Nothing is kept on disk,
and nothing here looks into a payload.

A server that is taken down behaves like NATS: messages fail at once and are not kept,
appends and readers wait until it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from nbsched.errors import BusUnreachableError, ConfigurationError
from nbsched.transport import (
    Handler,
    LogEntry,
    LogFullError,
    LogLostError,
    Message,
    RequestFailedError,
)

log = logging.getLogger(__name__)

MAX_PAYLOAD = 1024 * 1024
"""The default of nats-server."""
BATCH = 2000
"""Entries that a reader hands over together at most, as on NATS."""

_MAX_HEADER_BYTES = 64 * 1024
"""Of a message in a log: as JetStream."""


class _Waiter:
    """Wakes one coroutine when something changed, from whatever thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._woken = False

    def wake(self) -> None:
        if self._woken:
            return
        self._woken = True
        with contextlib.suppress(RuntimeError):  # its loop has been closed meanwhile
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self) -> None:
        await self._event.wait()
        self._event.clear()
        self._woken = False  # what happens from here on wakes again; then look


@dataclass
class _Log:
    subjects: str
    max_entries: int | None
    entries: list[LogEntry] = field(default_factory=list)
    last_sequence: int = 0

    def add(self, subject: str, header: bytes, data: bytes) -> int:
        if self.max_entries is not None and len(self.entries) >= self.max_entries:
            raise LogFullError(
                f"The log of {subject} takes no more: it has {len(self.entries)} entries, its"
                " limit. Purge some, or raise max_entries.",
                "maximum messages exceeded",
            )
        self.last_sequence += 1
        self.entries.append(LogEntry(subject, self.last_sequence, header, data))
        return self.last_sequence

    def behind(self, sequence: int, subject: str, limit: int) -> list[LogEntry]:
        start = bisect_right(self.entries, sequence, key=lambda entry: entry.sequence)
        found = (entry for entry in self.entries[start:] if matches(subject, entry.subject))
        return list(itertools.islice(found, limit))


class MemoryBusServer:
    """What several `MemoryBus` clients share, and its faults for tests."""

    def __init__(self, max_payload: int = MAX_PAYLOAD) -> None:
        self.max_payload = max_payload
        self.reachable = True
        self._lock = threading.RLock()
        self._subscriptions: list[MemorySubscription] = []
        self._logs: dict[str, _Log] = {}
        self._waiters: set[_Waiter] = set()

    # ------------------------------------------------------------ faults, for tests

    def go_down(self) -> None:
        """Answer nobody until `come_back`. Logs and subscriptions stay."""
        self.reachable = False

    def come_back(self) -> None:
        self.reachable = True
        self.wake()

    # ------------------------------------------------------------ what clients do

    def deliver(self, message: Message) -> bool:
        """Give a message to all who are subscribed; whether there was anybody."""
        with self._lock:
            takers = [taker for taker in self._subscriptions if taker.takes(message.subject)]
            for taker in takers:
                taker.put(message)
            return bool(takers)

    def add(self, subscription: MemorySubscription) -> None:
        with self._lock:
            self._subscriptions.append(subscription)

    def remove(self, subscription: MemorySubscription) -> None:
        with self._lock:
            if subscription in self._subscriptions:
                self._subscriptions.remove(subscription)

    def ensure_log(self, name: str, subjects: str, max_entries: int | None = None) -> None:
        """``max_entries`` is for tests of a full log."""
        with self._lock:
            self._logs.setdefault(name, _Log(subjects, max_entries))
            self.wake()

    def append(self, subject: str, header: bytes, data: bytes) -> int | None:
        """The entry's sequence number; None while no log takes the subject."""
        with self._lock:
            for kept in self._logs.values():
                if matches(kept.subjects, subject):
                    sequence = kept.add(subject, header, data)
                    self.wake()
                    return sequence
            return None

    def entries(self, name: str, subject: str, after: int) -> list[LogEntry]:
        """Entries behind ``after``, some at a time; none while there is no such log."""
        with self._lock:
            kept = self._logs.get(name)
            return [] if kept is None else kept.behind(after, subject, BATCH)

    def check_position(self, name: str, position: int) -> None:
        """Raise LogLostError when a log ends before what was read of it."""
        with self._lock:
            kept = self._logs.get(name)
            if kept is not None and kept.last_sequence < position:
                raise LogLostError(
                    f"The log {name} was read up to {position} and ends at"
                    f" {kept.last_sequence}: its servers have lost the rest."
                )

    def last_of(self, name: str, subject: str) -> LogEntry | None:
        with self._lock:
            entries = reversed(self._log(name).entries)
            return next((entry for entry in entries if entry.subject == subject), None)

    def last_sequence(self, name: str) -> int:
        with self._lock:
            return self._log(name).last_sequence

    def subjects(self, name: str, subject: str) -> set[str]:
        with self._lock:
            found = {entry.subject for entry in self._log(name).entries}
            return {each for each in found if matches(subject, each)}

    def purge(self, name: str, subject: str) -> None:
        with self._lock:
            kept = self._log(name)
            kept.entries = [entry for entry in kept.entries if not matches(subject, entry.subject)]

    def _log(self, name: str) -> _Log:
        kept = self._logs.get(name)
        if kept is None:
            raise BusUnreachableError(
                f"The log {name} does not exist: no worker was started. Call ensure_log first."
            )
        return kept

    def watch(self, waiter: _Waiter) -> None:
        with self._lock:
            self._waiters.add(waiter)

    def unwatch(self, waiter: _Waiter) -> None:
        with self._lock:
            self._waiters.discard(waiter)

    def wake(self) -> None:
        with self._lock:
            for waiter in self._waiters:
                waiter.wake()


class MemorySubscription:
    """Calls one handler for the messages of a subject, in order."""

    def __init__(self, server: MemoryBusServer, subject: str, handler: Handler) -> None:
        self.subject = subject
        self._server = server
        self._handler = handler
        self._closed = False
        self._messages: deque[Message] = deque()
        self._waiter = _Waiter()
        self._task = asyncio.create_task(self._run(), name=f"subscription {subject}")
        server.add(self)

    def takes(self, subject: str) -> bool:
        return matches(self.subject, subject)

    def put(self, message: Message) -> None:
        self._messages.append(message)
        self._waiter.wake()

    async def _run(self) -> None:
        while not self._closed:
            await self._waiter.wait()
            while self._messages and not self._closed:
                await self._handle(self._messages.popleft())

    async def _handle(self, message: Message) -> None:
        try:
            await self._handler(message)
        except asyncio.CancelledError:
            if self._closed:
                raise
            # Not ours: the handler let out the cancellation of something it awaited.
            log.exception("subject=%s: a handler was cancelled from inside", message.subject)
        except Exception:
            log.exception("subject=%s: a handler failed", message.subject)

    async def close(self) -> None:
        """Stop at once; messages that have not been handled are dropped."""
        self._closed = True
        self._server.remove(self)
        if self._task is not asyncio.current_task():
            self._task.cancel()
            await asyncio.wait({self._task})


class MemoryBus:
    """One client of a `MemoryBusServer`; implements `nbsched.transport.Bus`."""

    _inboxes = itertools.count(1)

    def __init__(self, server: MemoryBusServer) -> None:
        self.server = server
        self._closed = False
        self._subscriptions: list[MemorySubscription] = []
        self._waiters: set[_Waiter] = set()

    @property
    def max_payload(self) -> int:
        return self.server.max_payload

    async def publish(self, subject: str, data: bytes, reply: str = "") -> None:
        await self._answer()
        self._check_size(subject, data)
        self.server.deliver(Message(subject, bytes(data), reply))

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        await self._answer()
        self._check_size(subject, data)
        answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def receive(message: Message) -> None:
            if not answered.done():
                answered.set_result(message.data)

        inbox = MemorySubscription(self.server, f"_INBOX.{next(self._inboxes)}", receive)
        try:
            if not self.server.deliver(Message(subject, bytes(data), inbox.subject)):
                raise RequestFailedError(f"Nobody is subscribed to {subject}.")
            return await asyncio.wait_for(answered, timeout_s)
        except (asyncio.TimeoutError, TimeoutError) as error:
            raise RequestFailedError(f"No answer on {subject} within {timeout_s:g} s.") from error
        finally:
            await inbox.close()

    async def subscribe(self, subject: str, handler: Handler) -> MemorySubscription:
        await self._answer()
        subscription = MemorySubscription(self.server, subject, handler)
        self._subscriptions.append(subscription)
        return subscription

    async def ensure_log(self, log: str, subjects: str, *, replicas: int = 1) -> None:
        await self._answer()
        self.server.ensure_log(log, subjects)

    async def append(self, subject: str, header: bytes, data: bytes) -> int:
        self._check_size(subject, data, header)
        await asyncio.sleep(0)
        sequence = self._try_append(subject, header, data)
        if sequence is not None:
            return sequence
        waiter = self._watch()
        try:
            while (sequence := self._try_append(subject, header, data)) is None:
                await waiter.wait()
            return sequence
        finally:
            self._unwatch(waiter)

    def _try_append(self, subject: str, header: bytes, data: bytes) -> int | None:
        """Its sequence number; None while that is not possible."""
        if self._closed:
            raise BusUnreachableError("The bus is closed. Open a new one.")
        if not self.server.reachable:
            return None
        return self.server.append(subject, bytes(header), bytes(data))

    async def read(
        self, log: str, subject: str, *, after: int = 0, headers_only: bool = False
    ) -> AsyncGenerator[Sequence[LogEntry], None]:
        waiter = self._watch()
        try:
            while True:
                await self._answer(wait_on=waiter)
                self.server.check_position(log, after)
                entries = self.server.entries(log, subject, after)
                if not entries:
                    await waiter.wait()
                    continue
                after = entries[-1].sequence
                yield [replace(entry, data=b"") for entry in entries] if headers_only else entries
        finally:
            self._unwatch(waiter)

    async def replay(self, log: str, subject: str) -> AsyncGenerator[Sequence[LogEntry], None]:
        await self._answer()
        position, until = 0, self.server.last_sequence(log)
        while position < until and self.server.entries(log, subject, position):
            async with aclosing(self.read(log, subject, after=position, headers_only=True)) as more:
                entries = await anext(more)
            position = entries[-1].sequence
            yield entries

    async def last_of(self, log: str, subject: str) -> LogEntry | None:
        await self._answer()
        return self.server.last_of(log, subject)

    async def last_sequence(self, log: str) -> int:
        await self._answer()
        return self.server.last_sequence(log)

    async def subjects(self, log: str, subject: str) -> set[str]:
        await self._answer()
        return self.server.subjects(log, subject)

    async def purge(self, log: str, subject: str) -> None:
        await self._answer()
        self.server.purge(log, subject)

    async def close(self) -> None:
        """End everything at once. Waiting calls and readers raise BusUnreachableError."""
        self._closed = True
        for subscription in self._subscriptions:
            await subscription.close()
        self._subscriptions.clear()
        for waiter in self._waiters:
            waiter.wake()

    async def _answer(self, wait_on: _Waiter | None = None) -> None:
        """Let others run, as waiting for a server would, then see whether it is there."""
        await asyncio.sleep(0)
        while True:
            if self._closed:
                raise BusUnreachableError("The bus is closed. Open a new one.")
            if self.server.reachable:
                return
            if wait_on is None:
                raise BusUnreachableError(
                    "The bus in memory is not reachable: it was taken down. Call come_back()."
                )
            await wait_on.wait()

    def _check_size(self, subject: str, data: bytes, header: bytes = b"") -> None:
        size = len(data) + len(header)
        if size > self.server.max_payload:
            raise ConfigurationError(
                f"A message of {size} bytes for {subject} is over the limit of the bus,"
                f" {self.server.max_payload}. Lower message_bytes."
            )
        if len(header) * 4 // 3 > _MAX_HEADER_BYTES:  # as text, which NATS makes of it
            raise ConfigurationError(f"A message for {subject} has a header over 64 KiB.")

    def _watch(self) -> _Waiter:
        waiter = _Waiter()
        self._waiters.add(waiter)
        self.server.watch(waiter)
        return waiter

    def _unwatch(self, waiter: _Waiter) -> None:
        self._waiters.discard(waiter)
        self.server.unwatch(waiter)


def matches(pattern: str, subject: str) -> bool:
    """Whether a subject matches a pattern: ``*`` is one token, ``>`` the rest of them."""
    if pattern == subject:
        return True
    wanted, tokens = pattern.split("."), subject.split(".")
    for at, token in enumerate(wanted):
        if token == ">":
            return len(tokens) > at
        if at >= len(tokens) or token not in ("*", tokens[at]):
            return False
    return len(tokens) == len(wanted)
