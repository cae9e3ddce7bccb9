"""Sealed jobs of which the leader does not know all items.

A record gets its total when the inputs log has acknowledged all items. What the leader does
not know a while after that, it has missed: a log that came back shorter had grown again
before it was read on. So the log is read once more. Or the log has lost it, and like the jobs
that are lost as a whole (`lostjobs`) that gets a grace: NATS may have another disk. Then what is
not there is handed out all the same, as a block that nobody will find: workers fail those
tasks with an error that says so, and the job ends.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

from nbsched.indexset import IndexSet
from nbsched.messages import BlockRef
from nbsched.model import JobId, JobRecord
from nbsched.scheduler.events import BlockStored

log = logging.getLogger(__name__)

LOOK_S = 5.0
"""Blocks that are on their way to the leader come within this, or soon after."""


class Short(NamedTuple):
    """A job that has a total, and of which only so many tasks are known."""

    record: JobRecord
    total: int
    known: int


class ShortJobs:
    """Looks at jobs on behalf of one term.

    ``find`` says which are short now. ``read_again`` gives the scheduler what the log holds of
    a job and, if that is said, what stands for the rest.
    """

    def __init__(
        self,
        find: Callable[[], Iterable[Short]],
        read_again: Callable[[Short, bool], Awaitable[None]],
        grace_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find = find
        self._read_again = read_again
        self._grace_s = grace_s
        self._clock = clock
        self._since: dict[tuple[JobId, int], float] = {}
        """When a job was first seen to know so many tasks."""
        self._read: set[tuple[JobId, int]] = set()

    async def run(self) -> None:
        """Look, for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Read again the logs of jobs that have not grown since the last look, and once more
        at the end of the grace."""
        now = self._clock()
        found = {(short.record.id, short.known): short for short in self._find()}
        before = self._since
        self._since = {key: before.get(key, now) for key in found}
        self._read &= found.keys()
        for key, short in found.items():
            if key not in before:
                continue
            if now - before[key] >= self._grace_s:
                await self._read_again(short, True)
            elif key not in self._read:
                self._read.add(key)
                log.warning(
                    "job=%s: %d of %d items are not known; its log is read again. What is not there"
                    " either counts as lost after %.0f s (lost_data_grace_s)",
                    short.record.id,
                    short.total - short.known,
                    short.total,
                    self._grace_s,
                )
                await self._read_again(short, False)


def lost_items(short: Short, found: Iterable[BlockStored]) -> list[BlockStored]:
    """Blocks that stand for what neither the leader nor the log has.

    Their numbers are those of no block: each has one item at least.
    """
    there = IndexSet([(0, short.known)])
    for event in found:
        there.add(event.block.first, event.block.first + event.block.count)
    return [
        BlockStored(
            short.record.id,
            BlockRef(short.total + 1 + start, start, stop - start, parts=1, nbytes=0),
        )
        for start, stop in there.missing(0, short.total)
    ]
