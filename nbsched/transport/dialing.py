"""Opens and closes one nats-py client; knows credentials, TLS and their error messages.

Nothing here lasts: what happens to a client after it was opened is the business of
`connection`. nats-py is told to log through our logger and never to give up.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from nats.aio.client import Client

from nbsched.errors import BusUnreachableError, ConfigurationError, ConnectError
from nbsched.settings import Settings

log = logging.getLogger(__name__)

RECONNECT_WAIT_S = 0.2
"""A restarted server is back within a second; nats-py's 2 s would be most of the outage."""
PING_INTERVAL_S = 5
"""A connection that died without a word is noticed after three of these. nats-py's 120 s
would let a lost host look like an idle one for minutes."""
CLOSE_S = 2.0
"""A server that takes nothing more must not hold up the end of a process."""
_LEAST_ATTEMPT_S = 1.0


class Listener(Protocol):
    """Is told what happens to a client. Called in the loop's thread, must not block."""

    def went_down(self) -> None: ...

    def came_back(self) -> None: ...

    def gave_up(self) -> None:
        """The client is closed for good, though nobody asked for it."""

    def failed(self, error: Exception) -> None:
        """Something went wrong; the client goes on by itself."""


async def dial(settings: Settings, name: str, listener: Listener) -> Client:
    """Open a client to one of the servers.

    Raises:
        BusUnreachableError: none of them answered within ``connect_timeout_s``.
        ConnectError: they refuse these credentials, or offer no TLS.
        ConfigurationError: the credentials or certificates cannot be read.
    """
    options = _options(settings, name)
    client = Client()
    attempts = _Attempts(len(settings.nats))
    connecting = asyncio.ensure_future(_connect(client, options, listener, attempts))
    try:
        await asyncio.wait(
            {connecting, attempts.refused},
            timeout=settings.connect_timeout_s,
            return_when=asyncio.FIRST_COMPLETED,
        )
        _check_connected(connecting, attempts, settings)
        _check_tls(client, settings)
    except BaseException:
        connecting.cancel()
        await asyncio.wait({connecting})
        await hang_up(client)
        raise
    finally:
        attempts.refused.cancel()
    return client


async def hang_up(client: Client) -> None:
    """Close a client without waiting for a server that takes nothing more."""
    try:
        await asyncio.wait_for(client.close(), CLOSE_S)
    except Exception as error:  # it is on its way out, whatever happens
        log.debug("A connection to NATS did not close properly: %r", error)
        _abort(client)


class _Attempts:
    """What went wrong while connecting, and whether it is hopeless."""

    def __init__(self, servers: int) -> None:
        self.refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.last: Exception | None = None
        self._refusals_left = servers

    def note(self, error: Exception) -> None:
        self.last = error
        if not _is_refusal(error):
            return
        # Another server of the list may know these credentials: each gets its chance.
        self._refusals_left -= 1
        if self._refusals_left <= 0 and not self.refused.done():
            self.refused.set_result(None)


async def _connect(
    client: Client, options: dict[str, Any], listener: Listener, attempts: _Attempts
) -> None:
    async def on_error(error: Exception) -> None:
        attempts.note(error)
        listener.failed(error)

    await client.connect(
        **options,
        error_cb=on_error,
        disconnected_cb=_callback(listener.went_down),
        reconnected_cb=_callback(listener.came_back),
        closed_cb=_callback(listener.gave_up),
    )


def _callback(call: Callable[[], None]) -> Callable[[], Awaitable[None]]:
    """nats-py accepts coroutine functions only."""

    async def told() -> None:
        call()

    return told


def _check_connected(
    connecting: asyncio.Future[None], attempts: _Attempts, settings: Settings
) -> None:
    """Raise why the client is not connected, if it is not."""
    servers = ", ".join(map(without_credentials, settings.nats))
    if connecting.done():
        error = connecting.exception()
        if error is None:
            return
        raise ConnectError(
            f"NATS at {servers} cannot be used: {error}. Check nats / NBSCHED_NATS."
        ) from error
    if attempts.refused.done():
        raise ConnectError(
            f"NATS at {servers} refused the connection: authorization violation. Check nats_user"
            " and nats_password, nats_token or nats_creds (NBSCHED_NATS_USER, …)."
        ) from attempts.last
    raise BusUnreachableError(
        f"NATS does not answer at {servers} within {settings.connect_timeout_s:g} s"
        f" ({_cause(attempts.last)}). Start it (nats-server -js), or check nats / NBSCHED_NATS."
    ) from attempts.last


def _cause(error: Exception | None) -> str:
    if error is None or isinstance(error, (asyncio.TimeoutError, TimeoutError)):
        return "no answer"
    return str(error) or type(error).__name__


def _is_refusal(error: Exception) -> bool:
    text = str(error).lower()
    return "authorization" in text or "authentication" in text


def _check_tls(client: Client, settings: Settings) -> None:
    """nats-py goes on in the clear when the server offers no TLS, and says nothing."""
    named = any(server.startswith("tls://") for server in settings.nats)
    wanted = named or settings.nats_ca is not None or settings.nats_cert is not None
    if wanted and not client._server_info.get("tls_required"):
        servers = ", ".join(map(without_credentials, settings.nats))
        raise ConnectError(
            f"NATS at {servers} does not use TLS, the settings ask for it. Start nats-server with"
            " --tls, or leave out tls://, nats_ca and nats_cert."
        )


def _options(settings: Settings, name: str) -> dict[str, Any]:
    attempt_s = settings.connect_timeout_s / max(1, len(settings.nats))
    return {
        "servers": list(settings.nats),
        "name": name,
        "max_reconnect_attempts": -1,
        "reconnect_time_wait": RECONNECT_WAIT_S,
        "connect_timeout": max(_LEAST_ATTEMPT_S, attempt_s),
        "ping_interval": PING_INTERVAL_S,
        # Nothing is buffered while there is no connection: a publish fails at once and
        # its caller decides. It also keeps nats-py out of its forced flush, which
        # swallows the cancellation of the task that publishes.
        "pending_size": -1,
        "user": settings.nats_user,
        "password": settings.nats_password,
        "token": settings.nats_token,
        "user_credentials": _credentials(settings),
        "tls": _tls(settings),
    }


def _credentials(settings: Settings) -> str | None:
    if settings.nats_creds is None:
        return None
    path = Path(settings.nats_creds).expanduser()
    try:
        path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"The NATS credentials {path} cannot be read: {error.strerror}. Check nats_creds /"
            " NBSCHED_NATS_CREDS."
        ) from error
    if find_spec("nkeys") is None:  # nats-py signs with it, and only then
        raise ConfigurationError(
            "nats_creds needs the package nkeys, which is not installed: pip install"
            " 'nats-py[nkeys]'"
        )
    return str(path)


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.nats_ca is None and settings.nats_cert is None:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.nats_ca)
        if settings.nats_cert is not None:
            context.load_cert_chain(settings.nats_cert, settings.nats_key)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigurationError(
            f"The TLS files for NATS cannot be used: {error}. Check nats_ca, nats_cert and"
            " nats_key (NBSCHED_NATS_CA, …)."
        ) from error
    return context


def without_credentials(server: str) -> str:
    """A server as it may be shown: user and password in a URL stay out of messages."""
    if "@" not in server:
        return server
    parts = urlsplit(server)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _abort(client: Client) -> None:
    """Drop the socket of a client that does not close: nats-py has no public way."""
    writer = getattr(getattr(client, "_transport", None), "_io_writer", None)
    if writer is not None:
        writer.transport.abort()
