"""Election: the oldest leased candidate key leads, and its create-revision is the term.

A candidate that finds an older key waits for it to go. There is no fixed polling,
but every watch is only an optimisation: the list is read again when it ends, and
every `RELIST_S` seconds in any case.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from nbsched.errors import StoreUnreachableError
from nbsched.leader.patience import RETRY_S, within
from nbsched.model import Term
from nbsched.names import Names
from nbsched.storage import CreatedAt, Lease, Snapshot, Store, WatchEndedError

log = logging.getLogger(__name__)

RELIST_S = 30.0


class LeadershipLostError(Exception):
    """This daemon may not act as leader any more."""


@dataclass(frozen=True)
class Leadership:
    """One term of this daemon, and the fence that every write of it needs."""

    term: Term
    key: str
    lease: Lease

    @property
    def guard(self) -> CreatedAt:
        return CreatedAt(self.key, self.term)

    @property
    def trusted(self) -> bool:
        """Whether a successor is still impossible: see `Lease.trusted_until`."""
        return self.lease.alive and time.monotonic() < self.lease.trusted_until

    def check(self) -> None:
        if not self.trusted:
            raise LeadershipLostError(f"The lease of term {self.term} was not renewed in time.")


@dataclass(frozen=True)
class Leader:
    """Who leads now: the term, and the candidate's key."""

    term: Term
    key: str


async def changes(store: Store, names: Names) -> AsyncGenerator[Leader | None, None]:
    """The leader now, and again whenever another one leads; None while nobody does."""
    last: Leader | None = None
    first_time = True
    while True:
        try:
            snapshot = await store.list(names.candidates)
            leader = oldest(snapshot)
            if first_time or leader != last:
                first_time, last = False, leader
                yield leader
            await within(RELIST_S, _any_change(store, names, snapshot.revision))
        except (WatchEndedError, StoreUnreachableError) as error:
            log.info("The election is watched anew: %s", error)
            await asyncio.sleep(RETRY_S)


def oldest(snapshot: Snapshot) -> Leader | None:
    """The leader among the candidates of a snapshot."""
    if not snapshot.items:
        return None
    first = min(snapshot.items, key=lambda item: item.create_revision)
    return Leader(Term(first.create_revision), first.key)


async def _any_change(store: Store, names: Names, revision: int) -> None:
    async with aclosing(store.watch(names.candidates, revision + 1)) as batches:
        async for _ in batches:
            return
