"""Blocks that were read from the inputs log before the record of their job came by.

A client uploads the callable and the first items, then commits the job. Who has seen the
callable's entry has seen every one behind it, and need not read the log again for it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from nbsched.model import JobId
from nbsched.scheduler import events

MOST_BLOCKS = 4096
"""Kept in all. A job whose blocks were dropped is rebuilt from the log."""


class EarlyBlocks:
    """The blocks of jobs that nobody knows yet, oldest jobs first."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[JobId, list[events.BlockStored]] = OrderedDict()
        self._count = 0

    def add(self, event: events.BlockStored) -> None:
        self._jobs.setdefault(event.job, []).append(event)
        self._count += 1
        while self._count > MOST_BLOCKS:
            self._count -= len(self._jobs.popitem(last=False)[1])

    def take(self, job: JobId) -> Sequence[events.BlockStored] | None:
        """All blocks of a job so far; None when some may have been missed."""
        found = self._jobs.pop(job, [])
        self._count -= len(found)
        return found if found and found[0].block.block == 0 else None
