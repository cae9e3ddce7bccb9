"""Ends other tasks' waits when a store closes, and no more than that.

When gRPC ends a call because its channel is closed, whoever awaits it sees a
CancelledError that nobody meant for him. Waits that go through `Closing` raise
StoreUnreachableError instead, and a CancelledError always is the caller's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from nbsched.errors import StoreUnreachableError

T = TypeVar("T")


class Closing:
    """The waits of one store that `close` has to end."""

    def __init__(self) -> None:
        self._closed = False
        self._running: set[asyncio.Task[Any]] = set()

    @property
    def closed(self) -> bool:
        return self._closed

    async def run(self, work: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """Await ``work`` until it ends, the time is over, or the store is closed.

        Raises:
            TimeoutError: it took longer.
            StoreUnreachableError: the store is or was closed.
        """
        if self._closed:
            work.close()
            raise _closed_error()
        task = asyncio.ensure_future(work)
        self._running.add(task)
        try:
            done, _ = await asyncio.wait({task}, timeout=timeout_s)
        finally:
            self._running.discard(task)
            if not task.done():
                await _end(task)
        if not done:
            raise TimeoutError(f"no answer within {timeout_s:g} s")
        if task.cancelled():
            raise _closed_error()
        return task.result()

    async def close(self) -> None:
        """End every wait, and refuse new ones."""
        self._closed = True
        for task in tuple(self._running):
            await _end(task)


async def _end(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # seen, or asyncio would complain that nobody looked


def _closed_error() -> StoreUnreachableError:
    return StoreUnreachableError("The connection to etcd is closed here. Open a new one.")
