"""One connection to NATS that lasts as long as its bus, and the answers that come over it.

Owns the nats-py client and replaces it when it gives up: nats-py reconnects by
itself after a lost connection, but closes for good when the server sends an error
(revoked credentials, a violated limit). Subscriptions survive both. Nothing here
knows JetStream or what a payload means.

While there is no connection every call fails at once with BusUnreachableError and
nothing is buffered; what must not be lost is kept and sent again by `appender`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

from nats import errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription

from nbsched.errors import BusUnreachableError, ConfigurationError, ConnectError
from nbsched.settings import Settings
from nbsched.transport import RequestFailedError
from nbsched.transport.dialing import Listener, dial, hang_up, without_credentials

log = logging.getLogger(__name__)

MAX_UNSENT_BYTES = 32 * 1024 * 1024
"""Publishing waits while more than this is on its way to the socket. nats-py itself
would let it grow without bound."""
PENDING_MESSAGES = 65_536
PENDING_BYTES = 64 * 1024 * 1024
"""What a slow handler may have waiting. The server cuts off a client that falls 64 MiB
behind, so more would never be used."""
CHECK_S = 10.0
REPLACE_AFTER_S = 60.0
"""A client that has not reconnected for so long is replaced: should nats-py's reconnecting
have died of an error, nothing else would notice."""
REDIAL_S = 1.0

Receive = Callable[[Msg], Awaitable[None]]
OnAnswer = Callable[[Msg], None]


class NobodyListensError(RequestFailedError):
    """The server says that nobody is subscribed to the subject."""


class Subscribed:
    """A subscription that moves to the next client when one is replaced."""

    def __init__(self, connection: Connection, subject: str, receive: Receive) -> None:
        self.subject = subject
        self.receive = receive
        self.active: NatsSubscription | None = None
        self._connection = connection

    async def start(self, client: Client) -> None:
        self.active = await client.subscribe(
            self.subject,
            cb=self.receive,
            pending_msgs_limit=PENDING_MESSAGES,
            pending_bytes_limit=PENDING_BYTES,
        )

    async def close(self) -> None:
        """Stop at once; messages that have not been handled are dropped."""
        self._connection.subscriptions.discard(self)
        active, self.active = self.active, None
        if active is not None:
            try:
                await active.unsubscribe()
            except errors.Error as error:  # the client is closed, and the subscription with it
                log.debug("subject=%s was not unsubscribed: %s", self.subject, error)


class _Life(Listener):
    """What happens to one client, from when it is in use until it is replaced."""

    def __init__(self) -> None:
        self._connection: Connection | None = None

    def begin(self, connection: Connection) -> None:
        self._connection = connection

    def end(self) -> None:
        self._connection = None

    def went_down(self) -> None:
        if self._connection is not None:
            self._connection.went_down("the connection was lost")

    def came_back(self) -> None:
        if self._connection is not None:
            self._connection.came_back()

    def gave_up(self) -> None:
        if self._connection is not None:
            self._connection.gave_up()

    def failed(self, error: Exception) -> None:
        if isinstance(error, errors.SlowConsumerError):
            log.error("subject=%s: a handler is too slow, a message was dropped", error.subject)
        elif self._connection is not None and self._connection.connected:
            log.warning("NATS reports: %s", error)
        else:
            log.debug("NATS is not reached yet: %r", error)


class Connection:
    """See the module. Made by `open`."""

    def __init__(self, settings: Settings, name: str) -> None:
        self.subscriptions: set[Subscribed] = set()
        self.watchers: set[Callable[[bool], None]] = set()
        """Called with True when the connection is there again, with False when it is gone."""
        self._settings = settings
        self._name = name
        self._servers = ", ".join(map(without_credentials, settings.nats))
        self._life = _Life()
        self._client: Client = Client()
        self._up = asyncio.Event()
        self._given_up = asyncio.Event()
        self._down_since = time.monotonic()
        self._closing = asyncio.Event()
        self._inbox = ""
        self._tokens = itertools.count(1)
        self._answers: dict[str, OnAnswer] = {}
        self._asking: set[asyncio.Future[Msg | None]] = set()
        self._draining = asyncio.Lock()
        self._supervisor: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, settings: Settings, name: str) -> Connection:
        """Connect. Raises what `dialing.dial` raises."""
        connection = cls(settings, name)
        await connection._dial()
        connection._supervisor = asyncio.create_task(
            connection._supervise(), name=f"nats connection {name}"
        )
        return connection

    # ------------------------------------------------------------ state

    @property
    def connected(self) -> bool:
        # nats-py counts as connected a little before it says that it is again. Whoever
        # has old messages to repeat must hear of it before anybody sends new ones.
        return self._up.is_set() and self._client.is_connected and not self.closed

    @property
    def closed(self) -> bool:
        return self._closing.is_set()

    @property
    def max_payload(self) -> int:
        return int(self._client.max_payload)

    @property
    def servers(self) -> str:
        """The servers, as messages name them."""
        return self._servers

    async def wait_connected(self) -> None:
        """Return when there is a connection. Raises BusUnreachableError once closed."""
        await self._up.wait()
        if self.closed:
            raise self._unreachable()

    async def pause(self, seconds: float) -> None:
        """Sleep, but not beyond the end of the connection."""
        with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)

    def _unreachable(self) -> BusUnreachableError:
        if self.closed:
            return BusUnreachableError("The connection to NATS is closed. Open a new one.")
        return BusUnreachableError(
            f"NATS at {self._servers} is not reachable at the moment; the connection is tried"
            " again all the time. Check that the server runs."
        )

    # ------------------------------------------------------------ what nats-py reports

    def went_down(self, cause: str) -> None:
        if not self._up.is_set() or self.closed:
            return
        log.warning("NATS at %s: %s", self._servers, cause)
        self._up.clear()
        self._down_since = time.monotonic()
        self._tell(up=False)

    def came_back(self) -> None:
        log.info("NATS at %s is connected again", self._servers)
        self._up.set()
        self._tell(up=True)

    def gave_up(self) -> None:
        self.went_down(f"it closed the connection ({self._client.last_error})")
        self._given_up.set()

    def _tell(self, *, up: bool) -> None:
        if not up:
            for asking in self._asking:
                if not asking.done():
                    asking.set_result(None)
        for watcher in tuple(self.watchers):
            watcher(up)

    # ------------------------------------------------------------ messages

    async def publish(
        self,
        subject: str,
        data: bytes,
        reply: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Hand a message to the connection.

        Raises:
            BusUnreachableError: there is no connection; nothing was sent or kept.
            ConfigurationError: the message is over the server's limit.
        """
        self._check_size(subject, data, headers)
        if self._client.pending_data_size > MAX_UNSENT_BYTES:
            await self._drain()
        await self._publish(subject, data, reply, headers)

    async def _publish(
        self, subject: str, data: bytes, reply: str, headers: Mapping[str, str] | None
    ) -> None:
        if not self.connected:
            raise self._unreachable()
        try:
            await self._client.publish(
                subject, data, reply, headers=None if headers is None else dict(headers)
            )
        except errors.Error as error:
            raise self._unreachable() from error

    def _check_size(self, subject: str, data: bytes, headers: Mapping[str, str] | None) -> None:
        """The server counts headers too, and answers what is too large by hanging up."""
        size = len(data)
        if headers is not None:
            size += 14 + sum(len(name) + len(value) + 4 for name, value in headers.items())
        if size > self.max_payload:
            raise ConfigurationError(
                f"A message of {size} bytes for {subject} is over the limit of NATS at"
                f" {self._servers}, {self.max_payload}. Lower message_bytes, or raise max_payload"
                " of nats-server."
            )

    async def _drain(self) -> None:
        """Wait until the server has taken what was published."""
        async with self._draining:
            while self._client.pending_data_size > MAX_UNSENT_BYTES:
                await self.round_trip()

    async def round_trip(self) -> None:
        """Return when the server has processed everything that was sent so far.

        A message to oneself: nats-py's own flush sends its ping past what is queued.
        """
        try:
            await self._ask("", b"", self._settings.connect_timeout_s, None)
        except RequestFailedError as error:
            raise self._unreachable() from error

    async def ask(
        self,
        subject: str,
        data: bytes,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> Msg:
        """Publish and wait for one answer.

        Raises:
            NobodyListensError: nobody is subscribed.
            RequestFailedError: no answer in time.
            BusUnreachableError: there is no connection, or it was lost meanwhile.
        """
        self._check_size(subject, data, headers)
        if self._client.pending_data_size > MAX_UNSENT_BYTES:
            await self._drain()
        answer = await self._ask(subject, data, timeout_s, headers)
        if is_nobody(answer):
            raise NobodyListensError(f"Nobody is subscribed to {subject}.")
        return answer

    async def _ask(
        self, subject: str, data: bytes, timeout_s: float, headers: Mapping[str, str] | None
    ) -> Msg:
        future: asyncio.Future[Msg | None] = asyncio.get_running_loop().create_future()

        def on_answer(message: Msg) -> None:
            if not future.done():
                future.set_result(message)

        reply = self.expect(on_answer)
        self._asking.add(future)
        try:
            await self._publish(subject or reply, data, reply, headers)
            answer = await asyncio.wait_for(future, timeout_s)
        except (asyncio.TimeoutError, TimeoutError) as error:
            raise RequestFailedError(f"No answer on {subject} within {timeout_s:g} s.") from error
        finally:
            self._asking.discard(future)
            self.forget(reply)
        if answer is None:
            raise self._unreachable()
        return answer

    def expect(self, on_answer: OnAnswer) -> str:
        """A subject for answers, each of which ``on_answer`` gets, until `forget`."""
        reply = f"{self._inbox}.{next(self._tokens)}"
        self._answers[reply] = on_answer
        return reply

    def forget(self, reply: str) -> None:
        self._answers.pop(reply, None)

    async def _receive_answer(self, message: Msg) -> None:
        on_answer = self._answers.get(message.subject)
        if on_answer is not None:
            on_answer(message)

    def new_inbox(self) -> str:
        return self._client.new_inbox()

    async def subscribe(self, subject: str, receive: Receive) -> Subscribed:
        """Have ``receive`` called for each message; it must not raise."""
        if not self.connected:
            raise self._unreachable()
        subscribed = Subscribed(self, subject, receive)
        self.subscriptions.add(subscribed)
        await subscribed.start(self._client)
        return subscribed

    # ------------------------------------------------------------ life and end

    async def _dial(self) -> None:
        life = _Life()
        client = await dial(self._settings, self._name, life)
        life.begin(self)
        self._life, self._client = life, client
        if not self._inbox:
            self._inbox = client.new_inbox()
            self.subscriptions.add(Subscribed(self, f"{self._inbox}.*", self._receive_answer))
        for subscribed in tuple(self.subscriptions):
            await subscribed.start(client)
        self._up.set()

    async def _supervise(self) -> None:
        """Replace a client that has given up."""
        while True:
            try:
                await asyncio.wait_for(self._given_up.wait(), CHECK_S)
            except (asyncio.TimeoutError, TimeoutError):
                down_for = time.monotonic() - self._down_since
                if self._up.is_set() or down_for < REPLACE_AFTER_S:
                    continue
            self._given_up.clear()
            self._life.end()
            await hang_up(self._client)
            await self._redial()

    async def _redial(self) -> None:
        while True:
            try:
                await self._dial()
            except (ConnectError, errors.Error) as error:
                log.warning("%s", error)
                await asyncio.sleep(REDIAL_S)
            else:
                self.came_back()
                return

    async def close(self) -> None:
        """End the connection. What waits for an answer gets BusUnreachableError."""
        if self.closed:
            return
        self._closing.set()
        self._life.end()
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait({self._supervisor})
        self._tell(up=False)
        self._up.set()  # whoever waits for a connection learns that there is none
        self.subscriptions.clear()
        await hang_up(self._client)


def is_nobody(message: Msg) -> bool:
    """Whether this is the server's answer that nobody is subscribed."""
    return not message.data and (message.headers or {}).get("Status") == "503"
