"""The store on etcd: implements `nbsched.storage.Store` on the servers of the settings.

Uses the generated stubs of etcd-sdk-python with gRPC's own asyncio client rather than
its `client` module: there a timed-out call ends every watch without an error, and one
unavailable moment bans an endpoint for minutes. Failover and login lie in
`etcd_calls`, watches in `etcd_watch`, the wire format in `etcd_rpc`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from nbsched._compat import Self
from nbsched.errors import StoreFullError
from nbsched.names import Names
from nbsched.settings import Settings
from nbsched.storage import (
    Change,
    Commit,
    Guard,
    KeyValue,
    Put,
    Snapshot,
    WatchEvent,
    etcd_errors,
    etcd_rpc,
)
from nbsched.storage.etcd_calls import EtcdCalls, How
from nbsched.storage.etcd_endpoints import Endpoint, open_endpoints
from nbsched.storage.etcd_rpc import grpc
from nbsched.storage.etcd_watch import watch
from nbsched.storage.lease import KeptLease
from nbsched.storage.limits import batches, check_watch

_PAGE_KEYS = 1000
_REVOKE_WITHIN_S = 2.0


class EtcdStore:
    """A connection to etcd. Belongs to the event loop in which it was made."""

    def __init__(self, calls: EtcdCalls) -> None:
        self._calls = calls
        self._leases: dict[int, KeptLease] = {}

    @classmethod
    async def connect(cls, settings: Settings) -> Self:
        """Connect, log in if there is a user, and read something to see that it works.

        Raises:
            StoreUnreachableError: no endpoint answers within ``connect_timeout_s``.
            ConnectError: wrong password, no permission, or a version of etcd that can
                lose data (accepted with ``settings.local``).
            ConfigurationError: a wrong address or certificate, a user where the server
                has none or none where it has.
        """
        calls = EtcdCalls(settings, open_endpoints(settings))
        store = cls(calls)
        try:
            await store._probe(Names(settings.namespace).root)
        except BaseException:
            await store.close()
            raise
        return store

    async def _probe(self, prefix: str) -> None:
        request = etcd_rpc.page_request(prefix.encode(), prefix, 1, 0)
        await self._range(request)
        for endpoint in self._calls.endpoints:
            if endpoint.refused is not None:
                raise endpoint.refused

    async def get(self, key: str) -> KeyValue | None:
        request = etcd_rpc.range_request(key)
        answer = await self._range(request)
        return etcd_rpc.key_value(answer.kvs[0]) if answer.kvs else None

    async def list(self, prefix: str) -> Snapshot:
        """All pages at the revision of the first one."""
        while True:
            with contextlib.suppress(etcd_errors.CompactedError):  # under our hands: once more
                return await self._list_once(prefix)

    async def _list_once(self, prefix: str) -> Snapshot:
        items: list[KeyValue] = []
        start, revision = prefix.encode(), 0
        while True:
            request = etcd_rpc.page_request(start, prefix, _PAGE_KEYS, revision)
            page = await self._range(request)
            revision = revision or page.header.revision
            items.extend(map(etcd_rpc.key_value, page.kvs))
            if not page.more:
                return Snapshot(revision, tuple(items))
            start = page.kvs[-1].key + b"\0"

    async def _range(self, request: Any) -> Any:
        return await self._calls.call(lambda endpoint, how: endpoint.kv.Range(request, **how))

    async def commit(self, guards: Sequence[Guard], changes: Sequence[Change]) -> Commit:
        """Apply all changes in one transaction if all guards hold, else none.

        A put under a lease that is gone counts as a guard that does not hold.

        Without guards, more changes than one transaction takes (128, or 1.5 MiB) are
        cut into several, and a broken call is repeated: the changes are then made at
        least once, and not all at the same moment.

        With guards, a call that broke off is not repeated when it may have been
        applied, because the guards would then see its own effect. After a
        StoreUnreachableError the caller knows nothing about the changes: he must read
        the keys (an ``Absent`` guard: is the value mine?) before he goes on.

        Raises:
            ValueError: too large, a key twice, or a guard that can never hold.
            StoreUnreachableError: see above.
        """
        for batch in batches(guards, changes):
            done = await self._commit_batch(guards, batch)
            if not done.succeeded:
                break
        return done

    async def _commit_batch(self, guards: Sequence[Guard], changes: Sequence[Change]) -> Commit:
        request = etcd_rpc.txn_request(guards, changes)
        try:
            answer = await self._calls.call(
                lambda endpoint, how: endpoint.kv.Txn(request, **how), repeatable=not guards
            )
        except etcd_errors.LeaseNotFoundError:
            self._end_leases(changes)
            return Commit(False, await self._revision())
        except StoreFullError:
            if guards or any(isinstance(change, Put) for change in changes):
                raise
            return await self._delete_each(changes)
        return Commit(answer.succeeded, answer.header.revision)

    async def _delete_each(self, changes: Sequence[Change]) -> Commit:
        """A full etcd refuses every transaction, also one that would make room."""
        for change in changes:
            await self._delete(etcd_rpc.delete_request(change.key))
        return Commit(True, await self._revision())

    async def _delete(self, request: Any) -> None:
        await self._calls.call(lambda endpoint, how: endpoint.kv.DeleteRange(request, **how))

    def _end_leases(self, changes: Sequence[Change]) -> None:
        """One of these puts named a lease that is gone; with one lease we know which."""
        leases = {change.lease for change in changes if isinstance(change, Put) and change.lease}
        if len(leases) == 1 and (lease := self._leases.get(leases.pop())) is not None:
            lease.end()

    async def _revision(self) -> int:
        request = etcd_rpc.page_request(b"/", "/", 1, 0)
        answer = await self._range(request)
        return int(answer.header.revision)

    def watch(self, prefix: str, from_revision: int) -> AsyncGenerator[Sequence[WatchEvent], None]:
        check_watch(prefix, from_revision)
        return watch(self._calls, prefix, from_revision)

    async def lease(self, ttl_s: float) -> KeptLease:
        """A lease of whole seconds, rounded up; the server may grant more.

        Raises StoreUnreachableError when none is granted within ``connect_timeout_s``.
        """
        request = etcd_rpc.lease_grant_request(math.ceil(ttl_s))

        async def grant(endpoint: Endpoint, how: How) -> tuple[Any, float]:
            sent_at = time.monotonic()
            return await endpoint.leases.LeaseGrant(request, **how), sent_at

        answer, sent_at = await self._calls.call(grant)
        return self._keep(answer.ID, float(answer.TTL), sent_at)

    def _keep(self, lease_id: int, ttl_s: float, granted_at: float) -> KeptLease:
        async def renew(timeout_s: float) -> float:
            return await self._calls.call(
                lambda endpoint, how: _keep_alive(endpoint, lease_id, how), within_s=timeout_s
            )

        async def drop() -> None:
            self._leases.pop(lease_id, None)
            request = etcd_rpc.lease_revoke_request(lease_id)
            await self._calls.call(
                lambda endpoint, how: endpoint.leases.LeaseRevoke(request, **how),
                within_s=_REVOKE_WITHIN_S,
            )

        lease = KeptLease(lease_id, ttl_s, granted_at, renew=renew, drop=drop)
        self._leases = {i: other for i, other in self._leases.items() if other.alive}
        self._leases[lease_id] = lease
        return lease

    async def close(self) -> None:
        """End watches, calls and keepalives, and the connection.

        Leases are not revoked: they end with their TTL.
        """
        for lease in tuple(self._leases.values()):
            await lease.close()
        self._leases.clear()
        await self._calls.close()


async def _keep_alive(endpoint: Endpoint, lease_id: int, how: How) -> float:
    """One keepalive on a stream of its own; returns the TTL, 0 when the lease is gone.

    A stream for each keepalive goes through the same failover as every other call.
    """
    call = endpoint.leases.LeaseKeepAlive(**how)
    try:
        with contextlib.suppress(asyncio.InvalidStateError):  # reading tells what broke
            await call.write(etcd_rpc.keepalive_request(lease_id))
        answer = await call.read()
        if answer is grpc.aio.EOF:
            raise etcd_errors.StreamEndedError("the server ended a keepalive without an answer")
        return float(answer.TTL)
    finally:
        call.cancel()
