"""The store in memory: the twin of etcd that tests run against.

Owns a store's whole behaviour without a server: revisions, guards, leases that end
by the clock, watches with history. `MemoryStoreServer` is the data, `MemoryStore` one
client of it; several clients, in one event loop or in several threads, see the same
data. Nothing here is kept on disk.

There is no task behind the server. Whoever looks (a call, a waiting watch) first lets
the leases end whose time has come, and a waiting watch looks when the next one is due.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from nbsched._compat import assert_never
from nbsched.errors import StoreUnreachableError
from nbsched.storage import (
    Absent,
    Change,
    Changed,
    Commit,
    CreatedAt,
    Delete,
    Deleted,
    Guard,
    KeyValue,
    ModifiedAt,
    Present,
    Put,
    Snapshot,
    WatchEndedError,
    WatchEvent,
)
from nbsched.storage.lease import KeptLease
from nbsched.storage.limits import batches, check_watch


@dataclass
class _Held:
    """A lease as the server sees it."""

    ttl_s: float
    ends_at: float
    keys: set[str] = field(default_factory=set)


class _Waiter:
    """Wakes one waiting watch, from whatever thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self.ended: str | None = None

    def wake(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, timeout_s: float | None) -> None:
        waiting = asyncio.ensure_future(self._event.wait())
        try:
            await asyncio.wait({waiting}, timeout=timeout_s)
        finally:
            waiting.cancel()
        self._event.clear()


class MemoryStoreServer:
    """The data that several `MemoryStore` clients share, and its faults for tests."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._revision = 1  # as in a fresh etcd
        self._items: dict[str, KeyValue] = {}
        self._lease_of: dict[str, int] = {}
        self._leases: dict[int, _Held] = {}
        self._lease_ids = itertools.count(1)
        self._history: list[tuple[int, tuple[WatchEvent, ...]]] = []
        self._compacted = 0
        self._waiters: set[_Waiter] = set()
        self.reachable = True

    # ------------------------------------------------------------ faults, for tests

    def go_down(self) -> None:
        """End all watches and answer nobody until `come_back`. Leases go on ending."""
        self.reachable = False
        self.end_watches("the server went down")

    def come_back(self) -> None:
        self.reachable = True

    def end_watches(self, cause: str = "a test ended it") -> None:
        """End every watch, as a broken connection would."""
        with self._lock:
            for waiter in self._waiters:
                waiter.ended = cause
                waiter.wake()

    def compact(self, revision: int) -> None:
        """Forget the history up to ``revision``."""
        with self._lock:
            self._compacted = revision
            self._history = [entry for entry in self._history if entry[0] > revision]
            self._wake()

    def revoke(self, lease_id: int) -> None:
        """End a lease, as another client or an operator may."""
        with self._lock:
            held = self._leases.pop(lease_id, None)
            if held is not None:
                self._apply([Delete(key) for key in sorted(held.keys)])

    # ------------------------------------------------------------ what clients do

    def check_reachable(self) -> None:
        if not self.reachable:
            raise StoreUnreachableError(
                "The store in memory does not answer: it was taken down. Call come_back()."
            )

    def get(self, key: str) -> KeyValue | None:
        with self._lock:
            self._end_due_leases()
            return self._items.get(key)

    def list(self, prefix: str) -> Snapshot:
        with self._lock:
            self._end_due_leases()
            keys = sorted(key for key in self._items if key.startswith(prefix))
            return Snapshot(self._revision, tuple(self._items[key] for key in keys))

    def commit(self, guards: Sequence[Guard], changes: Sequence[Change]) -> Commit:
        with self._lock:
            self._end_due_leases()
            leases = {change.lease for change in changes if isinstance(change, Put)} - {None}
            if not leases <= self._leases.keys() or not all(map(self._holds, guards)):
                return Commit(False, self._revision)
            self._apply(changes)
            return Commit(True, self._revision)

    def grant(self, ttl_s: float) -> int:
        with self._lock:
            lease_id = next(self._lease_ids)
            self._leases[lease_id] = _Held(ttl_s, time.monotonic() + ttl_s)
            self._wake()  # it may be the next one that is due
            return lease_id

    def renew(self, lease_id: int) -> float:
        """The TTL that the lease has again, or 0 when it is gone."""
        with self._lock:
            self._end_due_leases()
            held = self._leases.get(lease_id)
            if held is None:
                return 0.0
            held.ends_at = time.monotonic() + held.ttl_s
            return held.ttl_s

    def add_waiter(self, waiter: _Waiter) -> None:
        with self._lock:
            self._waiters.add(waiter)

    def remove_waiter(self, waiter: _Waiter) -> None:
        with self._lock:
            self._waiters.discard(waiter)

    def events(self, prefix: str, after: int) -> Sequence[tuple[int, Sequence[WatchEvent]]]:
        """Events under ``prefix`` of the revisions behind ``after``, by revision.

        Raises:
            WatchEndedError: they have been compacted.
        """
        with self._lock:
            self._end_due_leases()
            if after < self._compacted:
                raise WatchEndedError(
                    f"Revision {after + 1} has been compacted up to {self._compacted}"
                )
            found = []
            for revision, events in reversed(self._history):
                if revision <= after:
                    break
                matching = [event for event in events if _key_of(event).startswith(prefix)]
                if matching:
                    found.append((revision, matching))
            return found[::-1]

    def next_end_in_s(self) -> float | None:
        """Seconds until the next lease ends unless it is renewed."""
        with self._lock:
            ends = [held.ends_at for held in self._leases.values()]
            return max(0.0, min(ends) - time.monotonic()) if ends else None

    # ------------------------------------------------------------ under the lock

    def _holds(self, guard: Guard) -> bool:
        item = self._items.get(guard.key)
        match guard:
            case Absent():
                holds = item is None
            case Present():
                holds = item is not None
            case CreatedAt(revision=revision):
                holds = item is not None and item.create_revision == revision
            case ModifiedAt(revision=revision):
                holds = item is not None and item.mod_revision == revision
            case _:
                assert_never(guard)
        return holds

    def _apply(self, changes: Sequence[Change]) -> None:
        """One transaction: one revision, unless it changes nothing."""
        revision = self._revision + 1
        events: list[WatchEvent] = []
        for change in changes:
            match change:
                case Put(key=key, value=value, lease=lease):
                    events.append(Changed(self._put(key, value, lease, revision)))
                case Delete(key=key):
                    if key in self._items:
                        self._detach(key)
                        del self._items[key]
                        events.append(Deleted(key, revision))
                case _:
                    assert_never(change)
        if events:
            self._revision = revision
            self._history.append((revision, tuple(events)))
            self._wake()

    def _put(self, key: str, value: bytes, lease: int | None, revision: int) -> KeyValue:
        before = self._items.get(key)
        created = revision if before is None else before.create_revision
        self._detach(key)
        if lease is not None:
            self._leases[lease].keys.add(key)
            self._lease_of[key] = lease
        self._items[key] = KeyValue(key, bytes(value), created, revision)
        return self._items[key]

    def _detach(self, key: str) -> None:
        held = self._leases.get(self._lease_of.pop(key, 0))
        if held is not None:
            held.keys.discard(key)

    def _end_due_leases(self) -> None:
        now = time.monotonic()
        for lease_id in [i for i, held in self._leases.items() if held.ends_at <= now]:
            self.revoke(lease_id)

    def _wake(self) -> None:
        for waiter in self._waiters:
            waiter.wake()


class MemoryStore:
    """One client of a `MemoryStoreServer`; implements `nbsched.storage.Store`."""

    def __init__(self, server: MemoryStoreServer) -> None:
        self.server = server
        self._closed = False
        self._leases: set[KeptLease] = set()
        self._waiters: set[_Waiter] = set()

    async def get(self, key: str) -> KeyValue | None:
        await self._answer()
        return self.server.get(key)

    async def list(self, prefix: str) -> Snapshot:
        await self._answer()
        return self.server.list(prefix)

    async def commit(self, guards: Sequence[Guard], changes: Sequence[Change]) -> Commit:
        """See `EtcdStore.commit`: limits and a vanished lease are treated alike."""
        cut = batches(guards, changes)
        await self._answer()
        for batch in cut:
            done = self.server.commit(guards, batch)
            if not done.succeeded:
                break
        return done

    async def watch(
        self, prefix: str, from_revision: int
    ) -> AsyncGenerator[Sequence[WatchEvent], None]:
        check_watch(prefix, from_revision)
        waiter = _Waiter()
        self.server.add_waiter(waiter)
        self._waiters.add(waiter)
        try:
            after = from_revision - 1
            while True:
                self._check_watch(waiter)
                for revision, events in self.server.events(prefix, after):
                    after = revision
                    yield events
                    self._check_watch(waiter)
                # Whatever happens between here and the wait has set the event.
                await waiter.wait(self.server.next_end_in_s())
        finally:
            self._waiters.discard(waiter)
            self.server.remove_waiter(waiter)

    async def lease(self, ttl_s: float) -> KeptLease:
        await self._answer()
        sent_at = time.monotonic()
        lease_id = self.server.grant(ttl_s)

        async def renew(timeout_s: float) -> float:
            await self._answer()
            return self.server.renew(lease_id)

        async def drop() -> None:
            self._leases.discard(lease)
            await self._answer()
            self.server.revoke(lease_id)

        lease = KeptLease(lease_id, ttl_s, sent_at, renew=renew, drop=drop)
        self._leases.add(lease)
        return lease

    async def close(self) -> None:
        """End watches and keepalives. Leases are not revoked: they end with their TTL."""
        self._closed = True
        for waiter in self._waiters:
            waiter.ended = "the store was closed"
            waiter.wake()
        for lease in tuple(self._leases):
            await lease.close()
        self._leases.clear()

    async def _answer(self) -> None:
        """Let others run, as waiting for a server would, then see whether it is there."""
        await asyncio.sleep(0)
        if self._closed:
            raise StoreUnreachableError("The store is closed. Open a new one.")
        self.server.check_reachable()

    def _check_watch(self, waiter: _Waiter) -> None:
        cause = waiter.ended
        if cause is None and self._closed:
            cause = "the store was closed"
        if cause is None and not self.server.reachable:
            cause = "the server is down"
        if cause is not None:
            raise WatchEndedError(f"A watch ended: {cause}")


def _key_of(event: WatchEvent) -> str:
    return event.item.key if isinstance(event, Changed) else event.key
