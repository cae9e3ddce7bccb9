"""When jobs go, and that nothing of them stays: on the twins, with a clock of the test's."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nbsched import forgetting
from nbsched.errors import StoreFullError
from nbsched.leader import orphans as orphans_module
from nbsched.leader.election import Leadership, LeadershipLostError
from nbsched.leader.orphans import Orphans
from nbsched.leader.retention import Retention
from nbsched.model import (
    ClientId,
    ClientRecord,
    ForgottenJob,
    JobId,
    JobState,
    JobStatus,
    Record,
    Term,
    to_json,
)
from nbsched.names import Names
from nbsched.payload.sharedfolder import SharedFolder
from nbsched.storage import Change, Commit, Delete, Guard, Put
from nbsched.storage.memory import MemoryStore, MemoryStoreServer
from nbsched.transport.memory import MemoryBus, MemoryBusServer
from support.lastinglease import Lease
from support.simulation import job_record

NAMES = Names("t")
C = ClientId("c")
DEADLINE_S = 60.0
RETENTION_S = 100.0
ENDED_AT = 1000.0


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, DEADLINE_S))


class FullStore(MemoryStore):
    """One that only deletes, and without a condition, as etcd when its database is full."""

    async def commit(self, guards: Sequence[Guard], changes: Sequence[Change]) -> Commit:
        if guards or any(isinstance(change, Put) for change in changes):
            raise StoreFullError("full")
        return await super().commit(guards, changes)


class Place:
    """Both twins with an ended job here and there, and a leader's retention."""

    def __init__(self, folder: SharedFolder | None = None, retention_s: float = RETENTION_S):
        self.now = ENDED_AT
        self.stores = MemoryStoreServer()
        self.store = MemoryStore(self.stores)
        self.buses = MemoryBusServer()
        self.bus = MemoryBus(self.buses)
        self.buses.ensure_log(NAMES.inputs_log, NAMES.all_inputs)
        self.buses.ensure_log(NAMES.results_log, NAMES.all_results)
        self.folder = folder
        self.retention_s = retention_s
        self.lead()

    def lead(self, store: MemoryStore | None = None) -> None:
        """Begin another term."""
        self.put("leader", job_record())
        revision = self.stores.list("leader").items[0].create_revision
        leadership = Leadership(Term(revision), "leader", Lease())
        self.retention = Retention(
            leadership,
            store=store or self.store,
            bus=self.bus,
            names=NAMES,
            retention_s=self.retention_s,
            folder=self.folder,
            clock=lambda: self.now,
        )
        self.orphans = Orphans(
            leadership, store=self.store, bus=self.bus, names=NAMES, clock=lambda: self.now
        )

    def put(self, key: str, record: Record) -> None:
        self.stores.commit([], [Put(key, to_json(record))])

    def put_job(self, job: str, *, inline: bool = False, state: str = "succeeded") -> JobId:
        """A job with a message in both logs, and a file where there is a folder."""
        record = job_record(job, inline=inline)
        self.put(NAMES.job(record.id), record)
        self.put_status(record.id, state)
        if inline:
            self.put(NAMES.inline_input(record.id), record)
        else:
            self.buses.append(NAMES.input_part(record.client, record.id, 0, 0), b"", b"")
        self.buses.append(NAMES.job_results(record.client, record.id), b"", b"")
        if self.folder is not None:
            self.folder.write(job, "x", [b"data"])
        return record.id

    def put_status(self, job: JobId, state: str) -> None:
        ended = JobState(state).ended
        status = JobStatus(
            job=job,
            state=JobState(state),
            term=Term(1),
            ended_at=ENDED_AT if ended else None,
        )
        self.put(NAMES.status(job), status)

    async def remove(self, job: JobId) -> None:
        """Remove its records, as somebody does who forgets it."""
        stored = await forgetting.read(self.store, NAMES, job)
        assert stored is not None
        assert await forgetting.remove(self.store, NAMES, stored)

    def left(self) -> list[str]:
        items = self.stores.list(NAMES.root).items
        return [item.key.removeprefix(NAMES.root) for item in items]

    def subjects(self) -> set[str]:
        found = self.buses.subjects(NAMES.inputs_log, ">")
        return found | self.buses.subjects(NAMES.results_log, ">")

    def tell_marks(self) -> None:
        """What the watch on the store does."""
        for item in self.stores.list(NAMES.forgotten_jobs).items:
            self.retention.forgotten(msgspec.json.decode(item.value, type=ForgottenJob))

    async def work(self, until: Callable[[], bool]) -> None:
        """Let the leader work until something holds, and a little longer."""
        working = asyncio.ensure_future(self.retention.run())
        try:
            while not until() and not working.done():
                self.tell_marks()
                await asyncio.sleep(0.001)
            for _ in range(50):
                await asyncio.sleep(0)
            if working.done():
                working.result()
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    @property
    def empty(self) -> bool:
        return not self.left() and not self.subjects()


@pytest.mark.parametrize("inline", [True, False])
def test_nothing_of_a_job_is_left_when_its_retention_is_over(inline: bool, tmp_path: Path) -> None:
    async def test() -> None:
        folder = SharedFolder.open(tmp_path / "shared")
        place = Place(folder)
        job = place.put_job("j", inline=inline)
        before = place.stores.list("").revision
        place.retention.ended(job, ENDED_AT)
        place.now = ENDED_AT + RETENTION_S - 0.1
        await place.work(until=lambda: True)
        assert "jobs/j" in place.left()
        place.now = ENDED_AT + RETENTION_S
        await place.work(until=lambda: place.empty)
        assert place.empty
        assert list((tmp_path / "shared").iterdir()) == []
        assert place.stores.list("").revision - before == 2  # etcd writes

    run(test())


def test_jobs_are_kept_for_ever_when_that_is_the_setting() -> None:
    async def test() -> None:
        place = Place(retention_s=math.inf)
        place.retention.ended(place.put_job("j"), ENDED_AT)
        place.now = ENDED_AT * 1e9
        await place.work(until=lambda: True)
        assert "jobs/j" in place.left()

    run(test())


def test_a_clock_that_is_set_forward_ends_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        place = Place()
        leadership = place.retention._leadership
        retention = Retention(
            leadership, store=place.store, bus=place.bus, names=NAMES, retention_s=RETENTION_S
        )
        ended_at = time.time()
        monkeypatch.setattr(time, "time", lambda: ended_at + 10 * RETENTION_S)
        retention.ended(place.put_job("j"), ended_at)
        place.retention = retention
        await place.work(until=lambda: True)
        assert "jobs/j" in place.left()

    run(test())


@pytest.mark.parametrize(("retention_s", "wait_s"), [(100.0, 100.0), (24 * 3600.0, 600.0)])
def test_a_leader_whose_clock_is_ahead_removes_nothing_at_first(
    retention_s: float, wait_s: float
) -> None:
    async def test() -> None:
        place = Place(retention_s=retention_s)
        job = place.put_job("j")
        began = place.now = ENDED_AT + 2 * retention_s
        place.lead()
        place.retention.ended(job, ENDED_AT)
        place.now = began + wait_s - 0.1
        await place.work(until=lambda: True)
        assert "jobs/j" in place.left()
        place.now = began + wait_s
        await place.work(until=lambda: place.empty)
        assert place.empty

    run(test())


def test_a_job_that_was_opened_again_stays_until_it_has_ended_again() -> None:
    async def test() -> None:
        place = Place()
        job = place.put_job("j")
        place.retention.ended(job, ENDED_AT)
        place.put_status(job, "running")
        place.now = ENDED_AT + RETENTION_S
        await place.work(until=lambda: True)
        assert "jobs/j" in place.left()
        place.put_status(job, "failed")
        place.retention.ended(job, ENDED_AT)
        await place.work(until=lambda: place.empty)
        assert place.empty

    run(test())


def test_a_job_that_ended_again_later_is_kept_from_then_on() -> None:
    async def test() -> None:
        place = Place()
        job = place.put_job("j")  # the record says: ended at ENDED_AT
        place.retention.ended(job, ENDED_AT - 50)
        place.now = ENDED_AT + RETENTION_S - 50
        await place.work(until=lambda: True)
        assert "jobs/j" in place.left()
        place.now = ENDED_AT + RETENTION_S
        await place.work(until=lambda: place.empty)
        assert place.empty

    run(test())


@pytest.mark.parametrize("changed", ["status", "record"])
def test_a_job_that_changes_after_it_was_read_is_not_removed(changed: str) -> None:
    async def test() -> None:
        place = Place()
        job = place.put_job("j")
        stored = await forgetting.read(place.store, NAMES, job)
        assert stored is not None
        if changed == "status":
            place.put_status(job, "running")
        else:
            place.put(NAMES.job(job), stored.record)
        assert not await forgetting.remove(place.store, NAMES, stored)
        assert {"jobs/j", "status/j"} <= set(place.left())

    run(test())


def test_a_leader_whose_term_is_over_removes_nothing() -> None:
    async def test() -> None:
        place = Place()
        job = place.put_job("j")
        place.retention.ended(job, ENDED_AT)
        place.stores.commit([], [Delete("leader")])
        place.put("leader", job_record())  # another term, under the same key
        place.now = ENDED_AT + RETENTION_S
        await place.work(until=lambda: True)
        assert {"jobs/j", "status/j"} <= set(place.left())
        assert len(place.subjects()) == 2

    run(test())


def test_the_next_leader_clears_what_the_last_one_has_removed() -> None:
    async def test() -> None:
        place = Place()
        job = place.put_job("j")
        await place.remove(job)
        assert place.left() == ["forgotten/j"]
        assert len(place.subjects()) == 2  # here the first one died
        place.stores.commit([], [Delete("leader")])
        old = place.retention
        place.lead()
        place.retention, new = old, place.retention
        with pytest.raises(LeadershipLostError):
            await place.work(until=lambda: False)
        assert place.left() == ["forgotten/j"]
        place.retention = new
        await place.work(until=lambda: place.empty)
        assert place.empty

    run(test())


def test_a_status_that_comes_after_its_job_was_removed_goes_too() -> None:
    """A request had opened the job again, and its end was on its way to the store."""

    async def test() -> None:
        place = Place()
        job = place.put_job("j")
        await place.remove(job)
        place.put_status(job, "cancelled")
        await place.work(until=lambda: place.empty)
        assert place.empty

    run(test())


def test_thousands_of_jobs_go_in_rounds_of_bounded_size() -> None:
    async def test() -> None:
        place = Place()
        most = 0

        class Counting(MemoryBus):
            purging = 0

            async def purge(self, log: str, subject: str) -> None:
                nonlocal most
                self.purging += 1
                most = max(most, self.purging)
                await super().purge(log, subject)
                self.purging -= 1

        place.bus = Counting(place.buses)
        place.lead()
        for number in range(500):
            job = place.put_job(f"j{number}", inline=True)
            place.retention.ended(job, ENDED_AT)

        place.now = ENDED_AT + RETENTION_S
        await place.work(until=lambda: place.empty)
        assert 1 < most <= 16

    run(test())


def test_jobs_that_are_forgotten_as_fast_as_they_end_take_no_memory() -> None:
    async def test() -> None:
        place = Place()
        for number in range(20_000):
            job = JobId(f"j{number}")
            place.retention.ended(job, ENDED_AT + number)
            if number:
                mark = ForgottenJob(id=job, client=ClientId("c"), inline=True, at=0.0)
                place.retention.forgotten(mark)
                place.retention._marks.clear()
        assert len(place.retention._due) < 2_000
        place.put_job("j0")
        place.now = ENDED_AT + RETENTION_S
        await place.work(until=lambda: place.empty)
        assert place.empty

    run(test())


def test_a_full_store_lets_no_job_go_by_itself_but_one_that_is_forgotten() -> None:
    async def test() -> None:
        place = Place()
        full = FullStore(place.stores)
        place.lead(full)
        job = place.put_job("j")
        place.retention.ended(job, ENDED_AT)
        place.now = ENDED_AT + RETENTION_S
        await place.work(until=lambda: True)
        assert "jobs/j" in place.left()
        stored = await forgetting.read(full, NAMES, job)
        assert stored is not None
        assert await forgetting.remove(full, NAMES, stored)
        assert place.left() == []
        assert len(place.subjects()) == 2  # left to `Orphans`

    run(test())


# ---------------------------------------------------------------- what belongs to no job


def test_what_belongs_to_no_job_goes_when_it_has_done_so_for_an_hour() -> None:
    async def test() -> None:
        place = Place()
        place.put_job("kept")
        place.buses.append(NAMES.input_part(C, JobId("never"), 0, 0), b"", b"")
        place.buses.append(NAMES.job_results(C, JobId("late")), b"", b"")
        place.put_status(JobId("status"), "running")
        await place.orphans.look()
        place.now += orphans_module.ORPHAN_S - 1
        await place.orphans.look()
        assert len(place.subjects()) == 4
        place.now += 1
        await place.orphans.look()
        assert sorted(place.left()) == ["jobs/kept", "status/kept"]
        assert {NAMES.owner_of(subject) for subject in place.subjects()} == {(C, "kept")}

    run(test())


def test_an_upload_whose_job_comes_late_is_left_alone() -> None:
    async def test() -> None:
        place = Place()
        place.buses.append(NAMES.input_part(C, JobId("slow"), 0, 0), b"", b"")
        await place.orphans.look()
        place.put_job("slow")
        place.now += orphans_module.ORPHAN_S
        await place.orphans.look()
        assert len(place.subjects()) == 2

    run(test())


def test_an_upload_that_waits_for_room_is_left_alone_as_long_as_its_client_is_there() -> None:
    async def test() -> None:
        place = Place()
        present = ClientRecord(id=C, host="h", pid=1, at=0.0)
        place.put(NAMES.client(C), present)
        place.buses.append(NAMES.input_part(C, JobId("waits"), 0, 0), b"", b"")
        for _ in range(3):
            place.now += orphans_module.ORPHAN_S
            await place.orphans.look()
        assert len(place.subjects()) == 1

        place.stores.commit([], [Delete(NAMES.client(C))])
        await place.orphans.look()
        place.now += orphans_module.ORPHAN_S - 1
        await place.orphans.look()
        assert len(place.subjects()) == 1, "it may have been cut off"
        place.now += 1
        await place.orphans.look()
        assert not place.subjects()

    run(test())
