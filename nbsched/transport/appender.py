"""Appends to the logs: many at once, in the order of the calls, until each is acknowledged.

Owns what has been published and not been acknowledged. After a reconnection it is
published again, oldest first, before anything newer; the message id lets the server
store it once. What waits here is bounded by a window, and whoever appends waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable

import msgspec
from nats.aio.msg import Msg

from nbsched.errors import BusUnreachableError, ConfigurationError, ConnectError
from nbsched.payload.envelope import to_header
from nbsched.transport import NO_SPACE, LogFullError
from nbsched.transport.connection import Connection, is_nobody
from nbsched.transport.jetstream import HEADER, ErrorBody

log = logging.getLogger(__name__)

WINDOW_BYTES = 16 * 1024 * 1024
"""Enough to keep a fast link busy, little beside the server's own limit of 128 MiB."""
WINDOW_COUNT = 1024
"""The server takes 10,000 unprocessed messages per stream, from all clients together."""
ACK_TIMEOUT_S = 5.0
"""An acknowledgement takes a millisecond; a server that compacts its disk, a second."""
REFUSED_WAIT_S = 0.3
"""Until a message is sent again that the server could not take just then."""
RETRY_TICK_S = 0.1
TICK_S = 1.0
COMPLAIN_S = 1.0

_RESOURCES = {10002, 10023, 10028, 10047}
"""Limits of the account, of the server, of its memory and of its disk."""
_STORE_FAILED = 10077
_ROOM_WORDS = ("exceeded", "no space", "insufficient")
_TOO_LARGE = {10054, 10097}


class _Ack(msgspec.Struct):
    seq: int = 0
    error: ErrorBody | None = None


class _Entry:
    """One append on its way."""

    __slots__ = ("data", "headers", "not_before", "reply", "sent_at", "size", "stored", "subject")

    def __init__(self, subject: str, header: bytes, data: bytes) -> None:
        self.subject = subject
        self.data = data
        self.headers = {HEADER: to_header(header), "Nats-Msg-Id": secrets.token_urlsafe(12)}
        self.size = len(data) + len(self.headers[HEADER])
        self.stored: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.reply = ""
        self.sent_at: float | None = None
        """None while it must be published (again)."""
        self.not_before = 0.0


class Appender:
    """See the module. Needs `close`."""

    def __init__(
        self,
        connection: Connection,
        write_error: Callable[[str], Awaitable[tuple[str, str]]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``write_error`` says of a subject why its log takes nothing, and of which
        subjects (their beginning) that is true."""
        self._connection = connection
        self._write_error = write_error
        self._asking: asyncio.Task[None] | None = None
        self._clock = clock
        self._waiting: deque[_Entry] = deque()
        """Entries for which the window has no room yet, oldest first."""
        self._unacknowledged: dict[str, _Entry] = {}
        self._behind = False
        """Old entries must be sent first: new ones queue up behind them."""
        self._unsent = False
        """Some entries must be sent again, at once or after a while."""
        self._used_bytes = 0
        self._work = asyncio.Event()
        self._complained_at = 0.0
        connection.watchers.add(self._on_connection)
        self._tending = asyncio.create_task(self._tend(), name="nats appends")

    async def append(self, subject: str, header: bytes, data: bytes) -> int:
        """See `Bus.append`.

        Raises:
            LogFullError: refused for lack of room.
            ConfigurationError: too large for the server.
            BusUnreachableError: the bus was closed before the acknowledgement came.
        """
        if self._connection.closed:
            raise BusUnreachableError("The connection to NATS is closed. Open a new one.")
        entry = _Entry(subject, header, data)
        entry.reply = self._connection.expect(lambda answer: self._on_answer(entry, answer))
        try:
            if self._waiting or not self._has_room(entry):
                self._waiting.append(entry)
            elif self._behind:
                self._admit(entry)
                self._again(entry)
            else:
                self._admit(entry)
                await self._send(entry)
            return await entry.stored
        finally:
            self._drop(entry)

    def _has_room(self, entry: _Entry) -> bool:
        if not self._unacknowledged:
            return True  # one that is larger than the window goes alone
        fits = self._used_bytes + entry.size <= WINDOW_BYTES
        return fits and len(self._unacknowledged) < WINDOW_COUNT

    def _admit(self, entry: _Entry) -> None:
        self._unacknowledged[entry.reply] = entry
        self._used_bytes += entry.size

    def _drop(self, entry: _Entry) -> None:
        """Forget an entry that is stored or refused, or that nobody waits for any more."""
        self._connection.forget(entry.reply)
        if self._unacknowledged.pop(entry.reply, None) is not None:
            self._used_bytes -= entry.size
        if self._waiting:
            self._work.set()
        if not entry.stored.cancel() and not entry.stored.cancelled():
            entry.stored.exception()  # seen, should the caller have been cancelled meanwhile

    async def _send(self, entry: _Entry) -> None:
        """Publish; whatever stays unpublished is left to `_tend`."""
        entry.sent_at = self._clock()
        try:
            await self._connection.publish(entry.subject, entry.data, entry.reply, entry.headers)
        except ConfigurationError as error:
            self._fail(entry, error)
        except BusUnreachableError:
            self._again(entry)

    def _again(self, entry: _Entry, wait_s: float = 0.0) -> None:
        entry.sent_at = None
        entry.not_before = self._clock() + wait_s
        self._unsent = True
        # What the server refused may wait; it must not hold up the entries of other logs.
        self._behind = self._behind or wait_s == 0
        self._work.set()

    def _fail(self, entry: _Entry, error: Exception) -> None:
        if not entry.stored.done():
            entry.stored.set_exception(error)

    # ------------------------------------------------------------ what comes back

    def _on_answer(self, entry: _Entry, answer: Msg) -> None:
        if entry.stored.done():
            return
        if is_nobody(answer):
            self._complain(f"no log takes {entry.subject}; JetStream may still be starting")
            self._again(entry, REFUSED_WAIT_S)
            return
        try:
            ack = msgspec.json.decode(answer.data, type=_Ack)
        except msgspec.DecodeError as error:
            ack = _Ack(error=ErrorBody(description=f"unusable acknowledgement: {error}"))
        if ack.error is None:
            entry.stored.set_result(ack.seq)
        else:
            self._on_refusal(entry, ack.error)

    def _on_refusal(self, entry: _Entry, error: ErrorBody) -> None:
        text = f"{error.description} (error {error.err_code})"
        if _is_full(error):
            self._fail(
                entry,
                LogFullError(
                    f"The log of {entry.subject} takes no more: {text}. Raise the limits of its"
                    " stream or of JetStream (max_file_store), or free disk space.",
                    error.description,
                ),
            )
        elif error.err_code in _TOO_LARGE:
            self._fail(
                entry,
                ConfigurationError(
                    f"A message of {entry.size} bytes for {entry.subject} is too large for its"
                    f" log: {text}. Lower message_bytes."
                ),
            )
        else:
            self._complain(f"{entry.subject} was refused and is sent again: {text}")
            self._again(entry, REFUSED_WAIT_S)

    def _complain(self, text: str) -> None:
        now = self._clock()
        if now - self._complained_at >= COMPLAIN_S:
            self._complained_at = now
            log.warning("%s", text)

    # ------------------------------------------------------------ what must be sent again

    def _on_connection(self, up: bool) -> None:
        """What was on its way when the connection was lost may have arrived or not."""
        if self._connection.closed:
            closed = BusUnreachableError(
                "The connection to NATS was closed before the log acknowledged an entry; it may"
                " have been stored."
            )
            for entry in (*self._unacknowledged.values(), *self._waiting):
                self._fail(entry, closed)
            self._waiting.clear()
        elif up:
            for entry in self._unacknowledged.values():
                self._again(entry)

    async def _tend(self) -> None:
        """Send again what was lost, refused or never acknowledged; then what waited."""
        while True:
            try:
                tick_s = RETRY_TICK_S if self._unsent else TICK_S
                await asyncio.wait_for(self._work.wait(), tick_s)
            except (asyncio.TimeoutError, TimeoutError):
                self._mark_overdue()
            self._work.clear()
            if not self._connection.connected:
                continue
            try:
                if self._unsent:
                    await self._send_unsent()
                await self._send_waiting()
            except Exception:  # a defect; without this task every append would wait for ever
                log.exception("Sending appends failed and goes on")

    def _mark_overdue(self) -> None:
        now = self._clock()
        for entry in self._unacknowledged.values():
            if entry.sent_at is not None and now - entry.sent_at > ACK_TIMEOUT_S:
                self._complain(f"{entry.subject} was not acknowledged and is sent again")
                self._again(entry)
                if self._asking is None or self._asking.done():
                    self._asking = asyncio.create_task(self._ask_why(entry.subject))

    async def _ask_why(self, subject: str) -> None:
        """A log whose disk is full acknowledges nothing, and says why when it is asked."""
        try:
            start, cause = await self._write_error(subject)
        except ConnectError as error:
            log.info("Why %s was not acknowledged is not known: %s", subject, error)
            return
        if not cause:
            return
        full = LogFullError(
            f"The log of {subject} takes no more: {cause} Make room on the disk of NATS, and"
            " start nats-server again (a local cluster does that by itself).",
            NO_SPACE if NO_SPACE in cause else "it cannot be written to",
        )
        for entry in tuple(self._unacknowledged.values()):
            if entry.subject.startswith(start):
                self._fail(entry, full)

    async def _send_unsent(self) -> None:
        """Send what must be sent by now, oldest first."""
        now = self._clock()
        for entry in tuple(self._unacknowledged.values()):
            due = entry.sent_at is None and entry.not_before <= now
            if due and not entry.stored.done():
                await self._send(entry)
        unsent = [entry for entry in self._unacknowledged.values() if entry.sent_at is None]
        self._unsent = bool(unsent)
        self._behind = any(entry.not_before <= now for entry in unsent)
        if self._behind:
            self._work.set()

    async def _send_waiting(self) -> None:
        """Send what the window has room for, in one go."""
        while self._waiting and not self._behind and self._has_room(self._waiting[0]):
            entry = self._waiting.popleft()
            if not entry.stored.done():
                self._admit(entry)
                await self._send(entry)

    async def close(self) -> None:
        self._connection.watchers.discard(self._on_connection)
        tasks = {self._tending} if self._asking is None else {self._tending, self._asking}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _is_full(error: ErrorBody) -> bool:
    if error.err_code in _RESOURCES:
        return True
    words = error.description.lower()
    return error.err_code == _STORE_FAILED and any(word in words for word in _ROOM_WORDS)
