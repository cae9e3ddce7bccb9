"""The faults that only the twin in memory can act out, and its use by several threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from nbsched.errors import StoreUnreachableError
from nbsched.storage import Changed, Put, WatchEndedError
from nbsched.storage.memory import MemoryStore, MemoryStoreServer

WITHIN_S = 60.0


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 60))


def test_server_that_is_down_answers_nobody_and_ends_watches() -> None:
    async def main() -> None:
        server = MemoryStoreServer()
        store = MemoryStore(server)
        done = await store.commit([], [Put("/a", b"")])
        watching = asyncio.ensure_future(anext(store.watch("/", done.revision + 1)))
        await asyncio.wait({watching}, timeout=0.05)
        server.go_down()
        with pytest.raises(WatchEndedError, match="went down"):
            await watching
        with pytest.raises(WatchEndedError, match="down"):
            await anext(store.watch("/", done.revision))
        with pytest.raises(StoreUnreachableError):
            await store.get("/a")
        server.come_back()
        assert await store.get("/a") is not None
        await store.close()

    run(main())


def test_lease_is_lost_when_the_server_stays_down_for_its_ttl() -> None:
    async def main() -> None:
        server = MemoryStoreServer()
        store = MemoryStore(server)
        lease = await store.lease(0.2)
        server.go_down()
        await asyncio.wait_for(lease.lost(), WITHIN_S)
        server.come_back()
        await store.close()

    run(main())


def test_watch_that_a_test_ends_can_be_begun_again() -> None:
    async def main() -> None:
        server = MemoryStoreServer()
        store = MemoryStore(server)
        done = await store.commit([], [Put("/a", b"")])
        watch = store.watch("/", done.revision)
        await anext(watch)
        server.end_watches("the line was cut")
        with pytest.raises(WatchEndedError, match="the line was cut"):
            await anext(watch)
        assert await anext(store.watch("/", done.revision))
        await store.close()

    run(main())


def test_clients_in_several_threads_see_each_other() -> None:
    server = MemoryStoreServer()
    seen: list[bytes] = []
    waiting = threading.Event()

    async def read() -> None:
        store = MemoryStore(server)
        watch = store.watch("/", 2)
        waiting.set()
        while len(seen) < 100:
            for event in await anext(watch):
                assert isinstance(event, Changed)
                seen.append(event.item.value)
        await store.close()

    async def write() -> None:
        store = MemoryStore(server)
        for number in range(100):
            await store.commit([], [Put("/a", b"%d" % number)])
        await store.close()

    reader = threading.Thread(target=run, args=(read(),), daemon=True)
    reader.start()
    assert waiting.wait(WITHIN_S)
    run(write())
    reader.join(WITHIN_S)
    assert seen == [b"%d" % number for number in range(100)]
