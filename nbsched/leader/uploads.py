"""Jobs whose client has died before all items were uploaded: sealed with what there is.

A client that uploads keeps a key under its lease. When that has been gone for the grace,
the leader writes the job's record with the number of tasks that have arrived and
`JobRecord.abandoned`: what is there runs, and its outcomes stay. A client that was only
cut off comes back within the grace, or finds that its job has been sealed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable
from functools import partial

import msgspec

from nbsched.leader.election import Leadership
from nbsched.leader.patience import answered
from nbsched.model import ClientId, JobId, JobRecord, to_json
from nbsched.names import Names
from nbsched.storage import Guard, ModifiedAt, Put, Store

log = logging.getLogger(__name__)

_LOOKS = 10
"""In one grace."""
_LONGEST_PAUSE_S = 10.0


class Uploads:
    """Which clients are there, and since when those of unfinished uploads are not."""

    def __init__(
        self,
        leadership: Leadership,
        *,
        store: Store,
        names: Names,
        grace_s: float,
        unsealed: Callable[[], Iterable[tuple[JobRecord, int]]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``unsealed`` are the jobs without a total, and the tasks that each has."""
        self._leadership = leadership
        self._store = store
        self._names = names
        self._grace_s = grace_s
        self._unsealed = unsealed
        self._clock = clock
        self._present: set[ClientId] = set()
        self._missing: dict[JobId, float] = {}

    def listed(self, clients: Collection[ClientId]) -> None:
        """These are there, and no others."""
        self._present = set(clients)

    def came(self, client: ClientId) -> None:
        self._present.add(client)

    def went(self, client: ClientId) -> None:
        self._present.discard(client)

    async def run(self) -> None:
        """Look, for ever. Raises LeadershipLostError."""
        while True:
            await asyncio.sleep(min(_LONGEST_PAUSE_S, self._grace_s / _LOOKS))
            await self.look()

    async def look(self) -> None:
        """Seal the jobs whose client has been missing for the grace."""
        now = self._clock()
        missing = {
            record.id: self._missing.get(record.id, now)
            for record, _ in self._unsealed()
            if record.watched and record.client not in self._present
        }
        self._missing = missing
        for record, tasks in list(self._unsealed()):
            since = missing.get(record.id)
            if since is not None and now - since >= self._grace_s:
                await self._seal(record.id, tasks)

    async def _seal(self, job: JobId, tasks: int) -> None:
        """Nothing happens when the record has changed: the watch will tell."""
        key = self._names.job(job)
        stored = await answered(partial(self._store.get, key))
        if stored is None:
            return
        record = msgspec.json.decode(stored.value, type=JobRecord)
        if record.total is not None:
            return
        self._leadership.check()
        sealed = msgspec.structs.replace(record, total=tasks, abandoned=True)
        guards: list[Guard] = [self._leadership.guard, ModifiedAt(key, stored.mod_revision)]
        commit = await answered(partial(self._store.commit, guards, [Put(key, to_json(sealed))]))
        if commit.succeeded:
            log.warning(
                "job=%s is sealed with the %d tasks that have arrived: its client has been away"
                " for %.0f s",
                job,
                tasks,
                self._grace_s,
            )
