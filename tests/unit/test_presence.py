"""A client's sign of life, on the twin of etcd."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from nbsched.client.presence import Presence
from nbsched.errors import StoreUnreachableError
from nbsched.model import ClientId
from nbsched.names import Names
from nbsched.storage import KeyValue
from nbsched.storage.memory import MemoryStore, MemoryStoreServer

NAMES = Names("t")
CLIENT = ClientId("c")


class Client:
    """A client with its key, whose look at its jobs fails some times."""

    def __init__(self, failures: int) -> None:
        self.server = MemoryStoreServer()
        self.looks: list[bool] = []
        """Whether each look succeeded."""
        self.looked = asyncio.Event()
        self._failures = failures
        self._store = MemoryStore(self.server)
        self._kept: asyncio.Task[None] | None = None
        self.presence = Presence(CLIENT, self._store, NAMES, 20.0, self._supervise, self._look)

    async def _look(self) -> None:
        self.looks.append(len(self.looks) >= self._failures)
        if not self.looks[-1]:
            raise StoreUnreachableError("etcd is away.")
        self.looked.set()

    def _supervise(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def again() -> None:
            while True:
                try:
                    await work()
                except StoreUnreachableError:
                    await asyncio.sleep(0)

        self._kept = asyncio.ensure_future(again())

    @property
    def key(self) -> KeyValue | None:
        return self.server.get(NAMES.client(CLIENT))

    def lose_key(self) -> None:
        lease: Any = self.presence._lease
        self.server.revoke(lease.id)
        lease.end()  # what its next keepalive finds out

    async def close(self) -> None:
        assert self._kept is not None
        self._kept.cancel()
        await asyncio.wait([self._kept])
        await self._store.close()


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 60))


def test_jobs_are_looked_at_until_that_succeeds_once_the_key_has_been_gone() -> None:
    async def main() -> None:
        client = Client(failures=2)
        await client.presence.announce()
        assert client.key is not None
        assert client.looks == []

        client.lose_key()
        await client.looked.wait()
        assert client.key is not None
        assert client.looks == [False, False, True]

        client.looked.clear()
        client.lose_key()
        await client.looked.wait()
        assert client.looks == [False, False, True, True]
        await client.close()

    run(main())
