"""Futures here that wait for what will not come: their job, or its outcomes, are gone.

Whoever forgets a job can only do so when it has ended; its outcomes are then in the log,
and normally here. A client that was cut off, or had just attached, may be too late for
them, and a NATS that lost its data has none: it must not wait for ever. Those that are in the
log and yet not here were passed over: it had come back shorter, and grown again before it was
read on. They are read once more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from nbsched.client.members import read_record
from nbsched.client.reading import OutcomeReader
from nbsched.client.results import TaskState
from nbsched.client.tracker import JobTracker
from nbsched.errors import ConnectError, JobForgottenError, ResultsLostError
from nbsched.model import JobId, JobStatus
from nbsched.names import Names
from nbsched.storage import Store
from nbsched.transport import Bus
from nbsched.wire import Wire

log = logging.getLogger(__name__)

LOOK_S = 5.0
_MOST_LOOKED_AT = 100


class GoneJobs:
    """Looks, now and then, whether the jobs that are waited for still exist."""

    def __init__(
        self,
        store: Store,
        bus: Bus,
        wire: Wire,
        names: Names,
        trackers: Callable[[], Sequence[JobTracker]],
    ) -> None:
        self._store = store
        self._bus = bus
        self._wire = wire
        self._names = names
        self._trackers = trackers
        self._at = 0
        """Where the next look begins: a client may wait for thousands of jobs."""
        self._missed: dict[JobId, int] = {}
        """Jobs that are gone, or have ended, and how many tasks are pending here."""

    async def follow(self) -> None:
        """Look, for ever. That a server is away, others notice and say."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except ConnectError as error:
                log.info("Whether jobs still exist is not known: %s", error)

    async def look(self) -> None:
        """Fail those that were missing now and the time before: until then, outcomes that
        are on their way have come."""
        waiting = [t for t in self._trackers() if t.committed and not t.finished]
        if self._at >= len(waiting):
            self._at = 0
        some = waiting[self._at : self._at + _MOST_LOOKED_AT]
        again = [t for t in waiting if t.id in self._missed and t not in some]
        self._at += _MOST_LOOKED_AT
        missed: dict[JobId, int] = {}
        looks = (self._store.get(self._names.job(tracker.id)) for tracker in [*some, *again])
        for tracker, stored in zip([*some, *again], await asyncio.gather(*looks), strict=True):
            if stored is not None and not await self._has_ended(tracker):
                continue
            missed[tracker.id] = tracker.count(TaskState.PENDING)
            before = self._missed.get(tracker.id)
            if before is not None and stored is None:
                tracker.fail(forgotten(tracker.id))
            elif before == missed[tracker.id]:  # nothing has come since
                await self._read_again(tracker)
        self._missed = missed

    async def _has_ended(self, tracker: JobTracker) -> bool:
        """Whether the leader has read all outcomes: those that are not here are late, or lost."""
        if tracker.total is None:
            return False
        stored = await self._store.get(self._names.status(tracker.id))
        status = None if stored is None else read_record(stored.value, JobStatus)
        if status is None or not status.state.ended:
            return False
        # Until a retry is carried out, the end that is recorded is an earlier one.
        asked = self._names.job_requests(tracker.id)
        return not tracker.retried or not (await self._store.list(asked)).items

    async def _read_again(self, tracker: JobTracker) -> None:
        subject = self._names.job_results(tracker.client, tracker.id)
        last = await self._bus.last_of(self._names.results_log, subject)
        if last is not None:
            known = {tracker.id: tracker}
            again = OutcomeReader(self._bus, self._wire, self._names, subject, 0, known.get)
            if not await _reaches(again, last.sequence):
                return
        missing = tracker.count(TaskState.PENDING)
        if not tracker.finished:
            tracker.fail(
                ResultsLostError(
                    f"Job {tracker.id} has ended, but {missing:,} of its"
                    f" {tracker.total:,} outcomes are not in the results log any more: NATS has"
                    " lost data, or somebody has deleted them. Submit those items again; results"
                    " that are there can be had one by one."
                )
            )


async def _reaches(reader: OutcomeReader, sequence: int) -> bool:
    """Read up to there; False when nothing more comes: the log was lost meanwhile."""
    reading = asyncio.ensure_future(reader.read_to(sequence))
    try:
        moved = True
        while moved and not reading.done():
            before = reader.position
            await asyncio.wait({reading}, timeout=LOOK_S)
            moved = reader.position != before
    finally:
        reading.cancel()
        await asyncio.wait({reading})
    return not reading.cancelled() and reading.exception() is None


def forgotten(job: JobId) -> JobForgottenError:
    return JobForgottenError(
        f"Job {job} was forgotten (forget(), nbsched jobs --prune, retention_s after its end, or"
        " a server that lost its data): what had not been loaded here by then is gone. Submit it"
        " again; a longer retention_s keeps jobs for longer."
    )
