"""When a worker may begin tasks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from nbsched.worker.trust import Trust


@dataclass
class Lease:
    """A lease that a test renews."""

    trusted_until: float
    id: int = 1
    ttl_s: float = 5.0
    alive: bool = True

    async def lost(self) -> None: ...
    async def revoke(self) -> None: ...


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def test_a_worker_that_answers_to_nobody_begins_tasks_at_once() -> None:
    assert Trust(lambda: None).holds()


def test_nothing_begins_under_a_lease_that_was_not_renewed_in_time_until_it_is() -> None:
    async def test() -> None:
        returned = asyncio.Event()
        trust = Trust(returned.set)
        lease = Lease(time.monotonic() - 1.0)
        trust.rest_on(lease)
        assert not trust.holds()
        lease.trusted_until = time.monotonic() + 60.0
        await asyncio.wait_for(returned.wait(), 20.0)
        assert trust.holds()

    run(test)


def test_nothing_begins_between_two_leases() -> None:
    trust = Trust(lambda: None)
    trust.rest_on(Lease(time.monotonic() + 60.0))
    trust.lose()
    assert not trust.holds()
    trust.rest_on(Lease(time.monotonic() + 60.0))
    assert trust.holds()
