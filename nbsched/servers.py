"""The connections that every process of a cluster has: etcd, NATS, and the cluster's key."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from nbsched import clusterkey
from nbsched.names import Names
from nbsched.payload.envelope import Key
from nbsched.settings import Settings
from nbsched.storage import Store
from nbsched.storage.etcd import EtcdStore
from nbsched.transport import Bus
from nbsched.transport.nats import NatsBus


@dataclass(frozen=True)
class Servers:
    """A namespace on its servers, ready to be used: the key is known, the logs exist."""

    store: Store
    bus: Bus
    names: Names
    key: Key

    @classmethod
    async def connect(cls, settings: Settings, *, name: str) -> Servers:
        """Connect to both servers at once; ``name`` is shown in NATS's own lists.

        Raises ConnectError and ConfigurationError; no connection is left open then.
        """
        settings.require_servers()
        store, bus = await _connect_both(settings, name)
        names = Names(settings.namespace)
        copies = settings.stream_replicas
        try:
            key, *_ = await asyncio.gather(
                clusterkey.obtain(store, names, settings),
                bus.ensure_log(names.inputs_log, names.all_inputs, replicas=copies),
                bus.ensure_log(names.results_log, names.all_results, replicas=copies),
            )
        except BaseException:
            await bus.close()
            await store.close()
            raise
        return cls(store, bus, names, key)

    async def close(self) -> None:
        await self.bus.close()
        await self.store.close()


async def _connect_both(settings: Settings, name: str) -> tuple[Store, Bus]:
    store, bus = await asyncio.gather(
        EtcdStore.connect(settings), NatsBus.connect(settings, name=name), return_exceptions=True
    )
    if isinstance(store, BaseException):
        if not isinstance(bus, BaseException):
            await bus.close()
        raise store
    if isinstance(bus, BaseException):
        await store.close()
        raise bus
    return store, bus
