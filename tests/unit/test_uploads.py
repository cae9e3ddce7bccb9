"""When a job whose client has gone is sealed, and when not: on the twins."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import msgspec

from nbsched.leader.election import Leadership
from nbsched.leader.uploads import Uploads
from nbsched.model import ClientId, JobId, JobRecord, Term, to_json
from nbsched.names import Names
from nbsched.storage import Delete, Put
from nbsched.storage.memory import MemoryStore, MemoryStoreServer
from support.lastinglease import Lease
from support.simulation import job_record

NAMES = Names("t")
GRACE_S = 100.0
CLIENT = ClientId("c")


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


class Place:
    """A job of a client that uploads, and a leader that looks."""

    def __init__(self, **changes: object) -> None:
        self.now = 0.0
        self.server = MemoryStoreServer()
        self.tasks = 30
        self.write(job_record(total=None, inline=False, **{"watched": True, **changes}))
        self.server.commit([], [Put("leader", b"")])
        term = self.server.list("leader").items[0].create_revision
        self.uploads = Uploads(
            Leadership(Term(term), "leader", Lease()),
            store=MemoryStore(self.server),
            names=NAMES,
            grace_s=GRACE_S,
            unsealed=lambda: [(self.job, self.tasks)] if self.job.total is None else [],
            clock=lambda: self.now,
        )

    def write(self, record: JobRecord) -> None:
        self.server.commit([], [Put(NAMES.job(record.id), to_json(record))])

    @property
    def job(self) -> JobRecord:
        stored = self.server.get(NAMES.job(JobId("j")))
        assert stored is not None
        return msgspec.json.decode(stored.value, type=JobRecord)

    async def look_at(self, now: float) -> JobRecord:
        self.now = now
        await self.uploads.look()
        return self.job


def test_a_job_is_sealed_when_its_client_has_been_gone_for_the_grace() -> None:
    async def test() -> None:
        place = Place()
        place.uploads.came(CLIENT)
        assert (await place.look_at(0)).total is None
        assert (await place.look_at(10 * GRACE_S)).total is None
        place.uploads.went(CLIENT)
        assert (await place.look_at(1000)).total is None
        assert (await place.look_at(1000 + GRACE_S - 1)).total is None
        sealed = await place.look_at(1000 + GRACE_S)
        assert (sealed.total, sealed.abandoned) == (30, True)

    run(test())


def test_a_client_that_comes_back_has_the_whole_grace_again() -> None:
    async def test() -> None:
        place = Place()
        await place.look_at(0)
        place.uploads.listed([CLIENT])
        await place.look_at(GRACE_S - 1)
        place.uploads.listed([])
        await place.look_at(GRACE_S)
        assert (await place.look_at(2 * GRACE_S - 1)).total is None
        assert (await place.look_at(2 * GRACE_S)).total == 30

    run(test())


def test_a_client_that_gives_no_sign_of_life_is_not_waited_for() -> None:
    """One of an earlier version."""

    async def test() -> None:
        place = Place(watched=False)
        await place.look_at(0)
        assert (await place.look_at(10 * GRACE_S)).total is None

    run(test())


def test_what_the_client_has_sealed_meanwhile_stays_as_it_is() -> None:
    async def test() -> None:
        place = Place()
        stale = place.job
        place.uploads._unsealed = lambda: [(stale, 30)]
        await place.look_at(0)
        place.write(msgspec.structs.replace(stale, total=50))
        sealed = await place.look_at(GRACE_S)
        assert (sealed.total, sealed.abandoned) == (50, False)

    run(test())


def test_a_leader_whose_term_is_over_seals_nothing() -> None:
    async def test() -> None:
        place = Place()
        await place.look_at(0)
        place.server.commit([], [Delete("leader")])
        place.server.commit([], [Put("leader", b"")])
        assert (await place.look_at(GRACE_S)).total is None

    run(test())
