"""Messages and logs: what the bus must be able to do, whoever does it.

`Bus` is a small Protocol with two implementations that pass the same contract
tests: `nbsched.transport.nats` and `nbsched.transport.memory`. Messages may be
lost; logs are kept, in order, until they are purged. Nothing here looks into a
payload.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias


@dataclass(frozen=True)
class Message:
    """A message that is not kept. ``reply`` is the subject an answer goes to, or ''."""

    subject: str
    data: bytes
    reply: str = ""


@dataclass(frozen=True)
class LogEntry:
    """A message of a log; ``sequence`` counts the whole log's messages from 1.

    ``header`` is the envelope; ``data`` is empty for a reader of headers only.
    """

    subject: str
    sequence: int
    header: bytes
    data: bytes


Handler: TypeAlias = Callable[[Message], Awaitable[None]]


class RequestFailedError(Exception):
    """Nobody answered: no subscriber, or not in time. The message may have arrived."""


NO_SPACE = "no space left on device"
"""How servers call a full disk."""


class LogFullError(Exception):
    """The log takes no more: its limit or its disk is full. Nothing was stored.

    ``cause`` is the server's word for what is full.
    """

    def __init__(self, message: str, cause: str = "") -> None:
        super().__init__(message)
        self.cause = cause

    def in_short(self, what: str) -> str:
        """One line for a display; ``what`` names the log."""
        cause = f" ({self.cause})" if self.cause else ""
        # A log on a full disk cannot even delete.
        remedy = "free its disk" if NO_SPACE in self.cause else "nbsched jobs --prune makes some"
        return f"the {what} log in NATS is full{cause}: work goes on when there is room; {remedy}"


class LogLostError(Exception):
    """The log is another one than before, or shorter: its servers have lost data. What was
    read of it may be gone; it can be read again from its beginning."""


class Subscription(Protocol):
    async def close(self) -> None: ...


class Bus(Protocol):
    """Publish, request, and durable logs.

    Calls raise ``BusUnreachableError`` while no server can be reached.
    """

    @property
    def max_payload(self) -> int:
        """Bytes that one message may have."""

    async def publish(self, subject: str, data: bytes, reply: str = "") -> None: ...

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        """Publish and wait for one answer. Raises RequestFailedError."""

    async def subscribe(self, subject: str, handler: Handler) -> Subscription:
        """Call ``handler`` for each message, one after another, in order."""

    async def ensure_log(self, log: str, subjects: str, *, replicas: int = 1) -> None:
        """Create the log that keeps ``subjects`` (a wildcard), in so many copies, unless
        it exists."""

    async def append(self, subject: str, header: bytes, data: bytes) -> int:
        """Store a message in the log of its subject; returns its sequence number when
        the log has acknowledged it. Retries while the bus is down, for ever; raises
        LogFullError when it is refused for lack of room."""

    def read(
        self, log: str, subject: str, *, after: int = 0, headers_only: bool = False
    ) -> AsyncGenerator[Sequence[LogEntry], None]:
        """Entries of a log whose subject matches, those behind sequence ``after``.

        Goes on for ever, in order, without a gap: it reconnects and resumes by itself.
        What is ready is handed over together, at once. Raises LogLostError when the log was
        lost meanwhile and made anew, or ends before ``after``: it has lost its end.
        """

    def replay(self, log: str, subject: str) -> AsyncGenerator[Sequence[LogEntry], None]:
        """The headers of what the log holds for ``subject`` now, then an end."""

    async def last_of(self, log: str, subject: str) -> LogEntry | None:
        """The last entry with exactly this subject."""

    async def last_sequence(self, log: str) -> int:
        """Sequence number of the newest entry; 0 for an empty log."""

    async def subjects(self, log: str, subject: str) -> set[str]:
        """The subjects that match and have entries."""

    async def purge(self, log: str, subject: str) -> None:
        """Delete the entries whose subject matches."""

    async def close(self) -> None: ...
