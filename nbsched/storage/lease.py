"""The lease that both stores hand out: kept alive by a task of its own.

Owns the schedule of keepalives and what its holder may believe in between. How a
keepalive reaches the server is the store's business; it passes two callables.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

_log = logging.getLogger(__name__)

Renew = Callable[[float], Awaitable[float]]
"""Send one keepalive within so many seconds; returns the TTL granted, 0 when the lease
is gone. Raises whatever kept it from knowing."""
Drop = Callable[[], Awaitable[None]]
"""End the lease on the server."""

_PAUSE_AFTER_FAILURE = 1 / 20
"""Of the TTL: a failure that comes at once must not turn the loop into a spin."""


class KeptLease:
    """A lease that is renewed three times per TTL until it is revoked or lost.

    It counts as lost when the store says so, when its keepalives have failed for the
    whole TTL (nobody can know better then), and when its store is closed.
    """

    def __init__(
        self, lease_id: int, ttl_s: float, granted_at: float, *, renew: Renew, drop: Drop
    ) -> None:
        """``granted_at`` is the monotonic time at which the grant was *sent*."""
        self.id = lease_id
        self.ttl_s = ttl_s
        self._renew = renew
        self._drop = drop
        self._sent_at = granted_at
        self._ended_at: float | None = None
        self._gone = asyncio.Event()
        self._task = asyncio.create_task(self._keep(), name=f"lease {lease_id:x}")

    @property
    def trusted_until(self) -> float:
        """Monotonic time until which the holder may act on the lease; past once it ended."""
        until = self._sent_at + self.ttl_s * 2 / 3
        return until if self._ended_at is None else min(until, self._ended_at)

    @property
    def alive(self) -> bool:
        return not self._gone.is_set()

    async def lost(self) -> None:
        await self._gone.wait()

    async def revoke(self) -> None:
        """End the lease now, and with it its keys. Never raises.

        When the server cannot be told, the lease ends there with its TTL.
        """
        self.end()
        await self._stopped()
        try:
            await self._drop()
        except Exception as error:
            _log.info("Lease %x was not revoked and will expire: %s", self.id, error)

    def end(self) -> None:
        """The lease is gone: its holder must not act on it any more."""
        if self._ended_at is None:
            self._ended_at = time.monotonic()
        self._gone.set()
        # The keeping task may itself have found out; it ends on its own then.
        if self._task is not asyncio.current_task():
            self._task.cancel()

    async def close(self) -> None:
        """Stop keeping the lease, without telling the server; it expires there."""
        self.end()
        await self._stopped()

    def pause(self) -> None:
        """Send no keepalives, as a frozen process would. For tests."""
        self._task.cancel()

    def resume(self) -> None:
        """Go on sending keepalives after `pause`. For tests."""
        if self.alive:
            self._task = asyncio.create_task(self._keep(), name=f"lease {self.id:x}")

    async def _stopped(self) -> None:
        if self._task is not asyncio.current_task():
            await asyncio.wait({self._task})

    async def _keep(self) -> None:
        pause_s = 0.0
        while self.alive:
            due_at = self._sent_at + self.ttl_s / 3
            await asyncio.sleep(max(pause_s, due_at - time.monotonic()))
            pause_s = 0.0 if await self._keep_once() else self.ttl_s * _PAUSE_AFTER_FAILURE

    async def _keep_once(self) -> bool:
        """Send one keepalive; False when it failed and the next must follow soon."""
        sent_at = time.monotonic()
        expires_at = self._sent_at + self.ttl_s
        try:
            ttl_s = await self._renew(
                max(self.ttl_s / 10, min(self.ttl_s / 3, expires_at - sent_at))
            )
        except Exception as error:
            _log.warning("A keepalive of lease %x failed: %s", self.id, error)
            if time.monotonic() >= expires_at:
                _log.error("Lease %x counts as lost: no keepalive for %.1f s", self.id, self.ttl_s)
                self.end()
            return False
        if ttl_s <= 0:
            _log.warning("Lease %x is gone, the store says", self.id)
            self.end()
            return True
        self.ttl_s = ttl_s
        self._sent_at = sent_at
        return True
