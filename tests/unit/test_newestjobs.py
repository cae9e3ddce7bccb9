"""What a display of the cluster looks up about jobs, and what that costs when there are many."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import msgspec

from nbsched.client.newestjobs import Newest, NewestJobs
from nbsched.model import JobId, JobState, JobStatus, Term
from nbsched.names import Names
from nbsched.storage import Delete, Put, Snapshot
from nbsched.storage.memory import MemoryStore, MemoryStoreServer
from support.simulation import job_record

NAMES = Names("test")


class Lists(MemoryStore):
    """Counts what is asked of it."""

    lists = 0

    async def list(self, prefix: str) -> Snapshot:
        self.lists += 1
        return await super().list(prefix)


def job(number: int) -> Put:
    record = job_record(f"j{number:05}", submitted_at=float(number))
    return Put(NAMES.job(record.id), msgspec.json.encode(record))


def status(number: int, state: JobState) -> Put:
    name = JobId(f"j{number:05}")
    made = JobStatus(job=name, state=state, term=Term(1))
    return Put(NAMES.status(name), msgspec.json.encode(made))


class Namespace:
    """A namespace in memory with a client that looks at it."""

    def __init__(self) -> None:
        self.store = Lists(MemoryStoreServer())
        self.newest = NewestJobs()
        self._session: Any = SimpleNamespace(
            store=self.store, names=NAMES, live_counts=self._live_counts
        )

    async def _live_counts(self, jobs: object) -> dict[JobId, Any]:
        return {}

    async def put(self, changes: Sequence[Any]) -> None:
        for start in range(0, len(changes), 100):
            await self.store.commit([], changes[start : start + 100])

    async def look(self) -> Newest:
        return await self.newest.look(self._session, 3)

    async def until(self, seen: list[str], running: int) -> Newest:
        """Looks again until it sees these jobs, the rest of which has ended."""
        for _ in range(200):
            found = await self.look()
            if [info.id for info in found.jobs] == seen and found.running == running:
                return found
            await asyncio.sleep(0.01)
        raise AssertionError((found, seen))


def run(main: Any) -> None:
    asyncio.run(asyncio.wait_for(main, 60))


def test_ten_thousand_ended_jobs_are_listed_once_however_often_one_looks() -> None:
    async def main() -> None:
        space = Namespace()
        await space.put([job(n) for n in range(10_000)])
        await space.put([status(n, JobState.SUCCEEDED) for n in range(10_000)])

        for _ in range(5):
            found = await space.look()

        assert [info.id for info in found.jobs] == ["j09999", "j09998", "j09997"]
        assert (found.running, found.known) == (0, 10_000)
        assert space.store.lists == 2  # jobs, and their states

    run(main())


def test_what_changes_is_seen_without_listing_again() -> None:
    async def main() -> None:
        space = Namespace()
        await space.put([job(n) for n in range(5)])
        await space.put([status(n, JobState.SUCCEEDED) for n in range(5)])
        await space.look()

        await space.put([job(5)])  # it waits for a leader
        await space.until(["j00005", "j00004", "j00003"], running=1)
        await space.put([status(5, JobState.FAILED), status(1, JobState.RUNNING)])
        await space.until(["j00001", "j00005", "j00004"], running=1)
        await space.put([Delete(NAMES.job(JobId("j00005"))), status(1, JobState.CANCELLED)])
        found = await space.until(["j00004", "j00003", "j00002"], running=0)

        assert found.known == 5
        assert space.store.lists == 2

    run(main())


def test_a_watch_that_has_ended_is_made_up_for_by_a_list() -> None:
    async def main() -> None:
        space = Namespace()
        await space.put([job(1)])
        await space.look()
        await space.put([job(2)])
        await space.until(["j00002", "j00001"], running=2)

        space.store.server.end_watches()
        await space.put([job(3)])

        await space.until(["j00003", "j00002", "j00001"], running=3)
        assert space.store.lists > 2

    run(main())


def test_a_record_that_cannot_be_read_hides_no_other() -> None:
    async def main() -> None:
        space = Namespace()
        await space.put([job(1), job(2), Put(NAMES.job(JobId("j00003")), b"{")])
        await space.put([status(1, JobState.SUCCEEDED), Put(NAMES.status(JobId("j00002")), b"{")])
        await space.until(["j00002", "j00001"], running=1)

        await space.put([Put(NAMES.job(JobId("j00002")), b"{"), job(4)])
        await space.until(["j00004", "j00002", "j00001"], running=2)

        assert space.store.lists == 2

    run(main())
