"""etcd on a wire: the twin of `nbsched.storage.memory`, a network trip away.

The data, guards, leases and history are the twin's own. Added are the trips there and
back (a commit whose answer is lost has happened all the same), timeouts, the server's own
clock for leases, and an account of writes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, TypeVar

from nbsched.errors import StoreUnreachableError
from nbsched.storage import (
    Change,
    Commit,
    Delete,
    Guard,
    KeyValue,
    Snapshot,
    WatchEndedError,
    WatchEvent,
)
from nbsched.storage.lease import KeptLease
from nbsched.storage.limits import batches, check_watch
from nbsched.storage.memory import MemoryStoreServer
from support.sim.bell import Bell
from support.sim.clock import HOST, Host, VirtualLoop
from support.sim.network import BACK, OUT, Network

T = TypeVar("T")
SERVER = "etcd"
TIMEOUT_S = 5.0
"""As `EtcdStore` with the default ``connect_timeout_s``."""
_TRY_AGAIN_S = 0.1
WATCH_DEAD_S = 9.0
"""A watch over a cut wire ends after this long without a keepalive."""


class _Bell(Bell):
    """Wakes one watch."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.ended: str | None = None


class SimStoreServer(MemoryStoreServer):
    """The server, by its own clock."""

    def __init__(
        self,
        loop: VirtualLoop,
        on_commit: Callable[[Sequence[Change]], None],
        on_delete: Callable[[str], None],
    ) -> None:
        super().__init__()
        self._on_delete = on_delete
        self._loop = loop
        self._bells: dict[_Bell, None] = {}
        self._on_commit = on_commit
        self._expiry: asyncio.TimerHandle | None = None

    def serve(self, call: Callable[..., T], *args: Any) -> T:
        """Do something at the server, which no host's clock and pause touches."""
        token = HOST.set(None)
        try:
            return call(*args)
        finally:
            HOST.reset(token)

    def come_back(self) -> None:
        """Restarted: leases begin anew, as they do with a new leader of etcd."""
        super().come_back()
        for held in self._leases.values():
            held.ends_at = self._loop.now + held.ttl_s

    def end_watches(self, cause: str = "a fault ended it") -> None:
        for bell in list(self._bells):
            bell.ended = cause
            bell.wake()

    def commit(self, guards: Sequence[Guard], changes: Sequence[Change]) -> Commit:
        done = super().commit(guards, changes)
        if done.succeeded:
            self._on_commit(changes)
        return done

    def _apply(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if isinstance(change, Delete) and change.key in self._items:
                self._on_delete(change.key)
        super()._apply(changes)

    def grant(self, ttl_s: float) -> int:
        lease_id = super().grant(ttl_s)
        self._watch_leases()
        return lease_id

    def _watch_leases(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        due = self.next_end_in_s()
        self._expiry = None if due is None else self._loop.call_later(due + 1e-6, self._expire)

    def _expire(self) -> None:
        self._expiry = None
        if self.reachable:  # a server that is down takes nobody's lease
            self._end_due_leases()
        due = self.next_end_in_s()
        if due is not None:
            self._expiry = self._loop.call_later(max(due, 0.05), self._expire)

    def _end_due_leases(self) -> None:
        if self.reachable:
            super()._end_due_leases()

    def _wake(self) -> None:
        for bell in self._bells:
            bell.wake()

    def add_bell(self, bell: _Bell) -> None:
        self._bells[bell] = None

    def remove_bell(self, bell: _Bell) -> None:
        self._bells.pop(bell, None)


class SimStore:
    """One host's client; implements `nbsched.storage.Store`."""

    def __init__(
        self, server: SimStoreServer, network: Network, host: Host, loop: VirtualLoop
    ) -> None:
        self.server = server
        self._network = network
        self._host = host
        self._loop = loop
        self._closed = False
        self.leases: dict[int, KeptLease] = {}

    async def get(self, key: str) -> KeyValue | None:
        return await self._ask(self.server.get, key)

    async def list(self, prefix: str) -> Snapshot:
        return await self._ask(self.server.list, prefix)

    async def commit(self, guards: Sequence[Guard], changes: Sequence[Change]) -> Commit:
        for batch in batches(guards, changes):
            done = await self._ask(self.server.commit, guards, batch)
            if not done.succeeded:
                break
        return done

    async def watch(
        self, prefix: str, from_revision: int
    ) -> AsyncGenerator[Sequence[WatchEvent], None]:
        check_watch(prefix, from_revision)
        bell = _Bell(self._loop)
        self.server.add_bell(bell)
        after = from_revision - 1
        try:
            while True:
                self._check_watch(bell)
                for revision, events in self.server.serve(self.server.events, prefix, after):
                    after = revision
                    await self._watched()
                    yield events
                    self._check_watch(bell)
                await bell.wait()
        finally:
            self.server.remove_bell(bell)

    async def _watched(self) -> None:
        """Events on their way. Over a wire that stays cut the watch ends in the end."""
        delay = self._network.delay(self._host, SERVER, BACK)
        await asyncio.sleep(delay * self._host.rate)
        if self._network.is_cut(self._host, SERVER, BACK):
            ends_at = self._loop.now + WATCH_DEAD_S
            while self._network.is_cut(self._host, SERVER, BACK):
                if self._loop.now >= ends_at:
                    raise WatchEndedError("A watch ended: its connection is dead")
                await asyncio.sleep(0.2)

    async def lease(self, ttl_s: float) -> KeptLease:
        sent_at = self._loop.time()
        lease_id = await self._ask(self.server.grant, ttl_s)

        async def renew(timeout_s: float) -> float:
            return await self._ask(self.server.renew, lease_id, within_s=timeout_s)

        async def drop() -> None:
            self.leases.pop(lease_id, None)
            await self._ask(self.server.revoke, lease_id)

        lease = KeptLease(lease_id, ttl_s, sent_at, renew=renew, drop=drop)
        self.leases[lease_id] = lease
        return lease

    async def close(self) -> None:
        self._closed = True
        for lease in list(self.leases.values()):
            await lease.close()
        self.leases.clear()

    async def _ask(self, call: Callable[..., T], *args: Any, within_s: float = TIMEOUT_S) -> T:
        """There, and back. Whatever is lost on the way is a timeout here."""
        deadline = self._loop.time() + within_s
        await self._pass(OUT, deadline)
        result = self.server.serve(call, *args)
        await self._pass(BACK, deadline)
        return result

    async def _pass(self, way: int, deadline: float) -> None:
        self._check_open()
        delay = self._network.delay(self._host, SERVER, way)
        await asyncio.sleep(delay * self._host.rate)
        self._check_open()
        if self._network.is_cut(self._host, SERVER, way):
            await asyncio.sleep(max(0.0, deadline - self._loop.time()))
            raise StoreUnreachableError("etcd did not answer in time: the wire is cut.")
        while not self.server.reachable:
            # Not sent yet: tried again until time is up. Sent: nobody knows what came of it.
            if way == BACK or self._loop.time() >= deadline:
                raise StoreUnreachableError("etcd did not answer in time: it is down.")
            await asyncio.sleep(_TRY_AGAIN_S)
            self._check_open()

    def _check_open(self) -> None:
        if self._closed or not self._host.alive:
            raise StoreUnreachableError("The store is closed. Open a new one.")

    def _check_watch(self, bell: _Bell) -> None:
        if bell.ended is None and (self._closed or not self._host.alive):
            bell.ended = "the store was closed"
        if bell.ended is None and not self.server.reachable:
            bell.ended = "the server is down"
        if bell.ended is not None:
            raise WatchEndedError(f"A watch ended: {bell.ended}")
