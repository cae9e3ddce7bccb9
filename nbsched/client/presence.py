"""The sign of life of a client that uploads: a key under a lease, kept as long as it runs.

Made with the first job whose items go into the log, before the first of them, so that a
small one still takes one write. As long as it is there, the leader leaves alone what the
client has uploaded for jobs that are not committed yet. When it has been gone for
``upload_grace_s``, the leader seals the client's jobs with what has arrived.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any

from nbsched.model import ClientId, ClientRecord, to_json
from nbsched.names import Names
from nbsched.storage import Lease, ModifiedAt, Put, Store

TTLS = 3
"""The lease is so many times that of a daemon: nothing hangs on noticing soon."""


class Presence:
    """This client's key."""

    def __init__(
        self,
        client: ClientId,
        store: Store,
        names: Names,
        lease_ttl_s: float,
        supervise: Callable[[Callable[[], Coroutine[Any, Any, None]]], object],
        on_return: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        """``on_return`` is called when the key was gone and is there again."""
        self._client = client
        self._store = store
        self._names = names
        self._ttl_s = lease_ttl_s * TTLS
        self._supervise = supervise
        self._on_return = on_return
        self._lease: Lease | None = None
        self._put_at = 0
        self._making = asyncio.Lock()
        self._kept = False
        self._was_gone = False
        """The key was gone, and ``on_return`` has not come to its end since."""

    async def announce(self, *, anew: bool = False) -> ModifiedAt:
        """Have the key there, and keep it from now on. The guard that is returned holds as
        long as it has been there ever since. ``anew``: such a guard has not held.

        Raises StoreUnreachableError, also for a store that is full.
        """
        async with self._making:
            if anew and self._lease is not None:
                await self._lease.revoke()  # it may not have noticed yet
            put_at = await self._put()
        if not self._kept:
            self._kept = True
            self._supervise(self._keep)
        return ModifiedAt(self._names.client(self._client), put_at)

    async def _put(self) -> int:
        """Put the key unless it is there; the revision at which that was done."""
        while self._lease is None or not self._lease.alive:
            lease = await self._store.lease(self._ttl_s)
            record = ClientRecord(
                id=self._client, host=socket.gethostname(), pid=os.getpid(), at=time.time()
            )
            put = Put(self._names.client(self._client), to_json(record), lease.id)
            commit = await self._store.commit([], [put])
            if commit.succeeded:
                self._lease, self._put_at = lease, commit.revision
        return self._put_at

    async def _keep(self) -> None:
        """Put the key again whenever its lease has ended, for ever."""
        while True:
            if self._lease is not None and not self._was_gone:
                await self._lease.lost()
            self._was_gone = True
            async with self._making:
                await self._put()
            await self._on_return()
            self._was_gone = False
