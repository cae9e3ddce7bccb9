"""Calls to etcd that survive a dead server: deadlines, failover, login.

Owns which endpoint is in use and the login token. What a call asks for is decided by
its caller, who passes a function that sends it to a given endpoint.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from nbsched.errors import ConnectError
from nbsched.settings import Settings
from nbsched.storage import etcd_errors, etcd_rpc
from nbsched.storage.closing import Closing
from nbsched.storage.etcd_endpoints import Endpoint
from nbsched.storage.etcd_rpc import grpc

_log = logging.getLogger(__name__)

T = TypeVar("T")
How = dict[str, Any]
"""Keyword arguments for a method of a stub: ``timeout`` (seconds) and ``metadata``."""
Attempt = Callable[[Endpoint, How], Awaitable[T]]

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 0.5
_SETTLE_S = 0.05
_REFUSED_VERSIONS = ((3, 5, 0), (3, 5, 2))
_RPC_ERRORS = (grpc.aio.AioRpcError, etcd_errors.StreamEndedError)


class _AttemptFailed(Exception):  # noqa: N818 - never leaves this module
    """One endpoint failed, in a way that another may not."""

    def __init__(self, cause: Exception, *, maybe_applied: bool) -> None:
        super().__init__(cause)
        self.cause = cause
        self.maybe_applied = maybe_applied


class EtcdCalls:
    """Sends calls to whichever endpoint works, starting with the one that last did."""

    def __init__(self, settings: Settings, endpoints: tuple[Endpoint, ...]) -> None:
        self.settings = settings
        self.endpoints = endpoints
        self.closing = Closing()
        self._current = endpoints[0]
        self._token: str | None = None
        self._login = asyncio.Lock()

    @property
    def current(self) -> Endpoint:
        """The endpoint to try first."""
        return self._current

    async def call(
        self, attempt: Attempt[T], *, repeatable: bool = True, within_s: float | None = None
    ) -> T:
        """Send a call, to each endpoint in turn until one answers.

        ``within_s`` is for all attempts together, ``connect_timeout_s`` by default. A
        call that is not ``repeatable`` is not sent again once it may have been applied.

        Raises:
            StoreUnreachableError: nobody answered in time; or a call that is not
                repeatable broke off and may have been applied or not.
            ConnectError, ConfigurationError: an answer that will not change.
        """
        within_s = self.settings.connect_timeout_s if within_s is None else within_s
        return await self.closing.run(self._call(attempt, repeatable, within_s))

    async def how(self, endpoint: Endpoint, timeout_s: float | None = None) -> How:
        """Arguments for a call to a stub; logs in first when that is necessary.

        ``hasleader`` makes a member that is cut off from the others say so at once,
        also to streams, instead of keeping us waiting.
        """
        metadata: tuple[tuple[str, str], ...] = (("hasleader", "true"),)
        if self.settings.etcd_user:
            metadata += (("token", await self._logged_in(endpoint, timeout_s)),)
        return {"timeout": timeout_s, "metadata": metadata}

    def failed(self, endpoint: Endpoint) -> None:
        """Try another endpoint first from now on, unless that is the case already."""
        if endpoint is self._current:
            at = self.endpoints.index(endpoint) + 1
            self._current = self.endpoints[at % len(self.endpoints)]

    def forget_token(self, token: str | None = None) -> None:
        """Log in again with the next call, unless that has happened since."""
        if token is None or token == self._token:
            self._token = None

    async def close(self) -> None:
        await self.closing.close()
        for endpoint in self.endpoints:
            await endpoint.close()
        # The ends of cancelled calls are on their way from gRPC's threads. If the event
        # loop were closed first, gRPC would fail in the next loop, with noise on stderr.
        await asyncio.sleep(_SETTLE_S)

    # ------------------------------------------------------------ failover

    async def _call(self, attempt: Attempt[T], repeatable: bool, within_s: float) -> T:
        ends_at = time.monotonic() + within_s
        causes: dict[str, str] = {}
        pause_s = _FIRST_PAUSE_S
        while True:
            untried = self._usable()
            while untried:
                # A server that does not answer gets its share of the time, not all of it.
                share_s = (ends_at - time.monotonic()) / len(untried)
                endpoint = untried.pop(0)
                if share_s <= 0:
                    raise self._unreachable(within_s, causes)
                try:
                    return await self._attempt(endpoint, attempt, share_s)
                except _AttemptFailed as failure:
                    causes[endpoint.address] = etcd_errors.details(failure.cause)
                    self.failed(endpoint)
                    if failure.maybe_applied and not repeatable:
                        raise etcd_errors.commit_unknown(
                            endpoint.address, failure.cause
                        ) from failure.cause
            left_s = ends_at - time.monotonic()
            if left_s <= 0:
                raise self._unreachable(within_s, causes)
            await asyncio.sleep(min(pause_s, left_s))
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    def _usable(self) -> list[Endpoint]:
        """The endpoints in the order in which to try them."""
        at = self.endpoints.index(self._current)
        order = [*self.endpoints[at:], *self.endpoints[:at]]
        usable = [endpoint for endpoint in order if endpoint.refused is None]
        if not usable and order[0].refused is not None:
            raise order[0].refused
        return usable

    def _unreachable(self, within_s: float, causes: dict[str, str]) -> ConnectError:
        return etcd_errors.unreachable([e.address for e in self.endpoints], within_s, causes)

    async def _attempt(self, endpoint: Endpoint, attempt: Attempt[T], timeout_s: float) -> T:
        ends_at = time.monotonic() + timeout_s
        try:
            if not endpoint.connected:
                await self._greet(endpoint, timeout_s)
            how = await self.how(endpoint, max(0.0, ends_at - time.monotonic()))
        except _RPC_ERRORS as error:
            raise self._explained(error, endpoint, maybe_applied=False) from error
        try:
            return await attempt(endpoint, how)
        except _RPC_ERRORS as error:
            if not (self.settings.etcd_user and etcd_errors.is_token_expired(error)):
                maybe = not etcd_errors.surely_not_applied(error)
                raise self._explained(error, endpoint, maybe_applied=maybe) from error
        self.forget_token(dict(how["metadata"])["token"])
        try:
            how = await self.how(endpoint, max(0.0, ends_at - time.monotonic()))
            return await attempt(endpoint, how)
        except _RPC_ERRORS as error:
            raise self._explained(error, endpoint, maybe_applied=True) from error

    def _explained(self, error: Exception, endpoint: Endpoint, *, maybe_applied: bool) -> Exception:
        if etcd_errors.is_transient(error):
            return _AttemptFailed(error, maybe_applied=maybe_applied)
        return etcd_errors.final(error, endpoint.address, self.settings)

    # ------------------------------------------------------------ first contact

    async def _greet(self, endpoint: Endpoint, timeout_s: float) -> None:
        """Connect, and refuse a server that may lose data.

        A call of its own, so that a change is only ever sent over a connection that
        stands: then a failure to connect is known to have changed nothing.
        """
        status = await endpoint.maintenance.Status(
            etcd_rpc.status_request(), **await self.how(endpoint, timeout_s)
        )
        if not self.settings.local and may_corrupt(status.version):
            endpoint.refused = etcd_errors.version_refused(endpoint.address, status.version)
            _log.warning("%s", endpoint.refused)
            raise _AttemptFailed(endpoint.refused, maybe_applied=False)

    async def _logged_in(self, endpoint: Endpoint, timeout_s: float | None) -> str:
        async with self._login:
            if self._token is None:
                request = etcd_rpc.authenticate_request(
                    self.settings.etcd_user or "", self.settings.etcd_password or ""
                )
                answer = await endpoint.auth.Authenticate(
                    request,
                    timeout=self.settings.connect_timeout_s if timeout_s is None else timeout_s,
                )
                self._token = str(answer.token)
            return self._token


def may_corrupt(version: str) -> bool:
    """Whether this version of etcd is one of those that can lose data."""
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if numbers is None:
        return False
    first, last = _REFUSED_VERSIONS
    return first <= tuple(map(int, numbers.groups())) <= last
