"""Waiting, for the loops of a term: none of it can lose a cancellation.

``asyncio.wait_for`` can: before Python 3.12 a cancellation that comes together with
the result is swallowed, and a loop that should be over goes on. ``asyncio.wait`` on a
task never does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from nbsched.errors import ConnectError, StoreFullError

log = logging.getLogger(__name__)

_T = TypeVar("_T")
RETRY_S = 0.2
FULL_RETRY_S = 2.0
"""Room does not come so soon, and each attempt writes a line."""
_CANCEL_AGAIN_S = 0.5
_PAGE = 500
"""Records that may be decoded in one go: some milliseconds."""


async def within(timeout_s: float, work: Coroutine[Any, Any, object]) -> bool:
    """Whether the work ended in time; it is cancelled if not. Raises what it raises."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=timeout_s)
        in_time = task.done()
    finally:
        await ended([task])
    if in_time:
        task.result()
    return in_time


async def alone(work: Coroutine[Any, Any, _T]) -> _T:
    """Await work that may swallow a cancellation: here it arrives all the same."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task})
    finally:
        await ended([task])
    return task.result()


async def ended(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks until they have ended: one that swallows a cancellation gets another."""
    tasks = list(tasks)
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_CANCEL_AGAIN_S)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # or asyncio says that nobody has looked


def pause_after(error: ConnectError) -> float:
    """Seconds until the same may be tried again."""
    return FULL_RETRY_S if isinstance(error, StoreFullError) else RETRY_S


async def answered(ask: Callable[[], Awaitable[_T]], *, patient: bool = False) -> _T:
    """Ask a server until it answers. Whoever asks must be cancelled when a term ends.

    ``patient`` is what can wait: it is asked less often.
    """
    while True:
        try:
            return await ask()
        except ConnectError as error:
            log.warning("A server does not answer the leader; it is asked again: %s", error)
            await asyncio.sleep(FULL_RETRY_S if patient else pause_after(error))


async def in_turns(items: Sequence[_T]) -> AsyncIterator[_T]:
    """All of very many, and now and then it is somebody else's turn on the event loop: a leader
    that keeps 100,000 jobs must go on renewing its lease while it looks through them."""
    for number, item in enumerate(items):
        if number and number % _PAGE == 0:
            await asyncio.sleep(0)
        yield item
