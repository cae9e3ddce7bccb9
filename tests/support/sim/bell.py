"""Wakes one that waits; also when it was rung before."""

from __future__ import annotations

import asyncio


class Bell:
    """For one reader of a log, or one watch."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: asyncio.Future[None] | None = None
        self._rung = False

    def wake(self) -> None:
        self._rung = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def wait(self) -> None:
        if not self._rung:
            self._waiting = self._loop.create_future()
            await self._waiting
        self._rung = False
