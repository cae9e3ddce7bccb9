"""Which jobs count as lost by the servers: on the twins."""

from __future__ import annotations

import asyncio

import pytest

from nbsched.leader import lostjobs
from nbsched.leader.election import Leadership
from nbsched.model import ClientId, JobId, JobState, JobStatus, Term, to_json
from nbsched.names import Names
from nbsched.storage import Put
from nbsched.storage.memory import MemoryStore, MemoryStoreServer
from nbsched.transport.memory import MemoryBus, MemoryBusServer
from support.lastinglease import Lease
from support.simulation import job_record

NAMES = Names("t")
J = JobId("j")
GRACE_S = 300.0


class Forgetful(MemoryBus):
    """One that misses subjects when it is asked for all of them."""

    async def subjects(self, log: str, subject: str) -> set[str]:
        return set() if subject.endswith("s.>") else await super().subjects(log, subject)


def jobs_left(
    bus_type: type[MemoryBus],
    *,
    ended: bool,
    in_logs: bool,
    back_after: bool = False,
    first_block: int = 0,
) -> list[str]:
    """``back_after``: the data are there again after the grace."""

    async def forget() -> list[str]:
        stores, buses = MemoryStoreServer(), MemoryBusServer()
        for log, subjects in (
            (NAMES.inputs_log, NAMES.all_inputs),
            (NAMES.results_log, NAMES.all_results),
        ):
            buses.ensure_log(log, subjects)
        state = JobState.SUCCEEDED if ended else JobState.RUNNING
        status = JobStatus(job=J, state=state, term=Term(1), ok=10)
        record = job_record(inline=False)
        stores.commit([], [Put("leader", b""), Put(NAMES.job(J), to_json(record))])
        stores.commit([], [Put(NAMES.status(J), to_json(status))])

        def bring_data() -> None:
            buses.append(NAMES.input_part(ClientId("c"), J, first_block, 0), b"", b"")
            buses.append(NAMES.job_results(ClientId("c"), J), b"", b"")

        async def grace(seconds: float) -> None:
            assert seconds == GRACE_S
            assert stores.list(NAMES.jobs).items, "nothing is forgotten before"
            if back_after:
                bring_data()

        if in_logs:
            bring_data()
        term = stores.list("leader").items[0].create_revision
        leadership = Leadership(Term(term), "leader", Lease())
        store, bus = MemoryStore(stores), bus_type(buses)
        await lostjobs.forget(leadership, store, bus, NAMES, GRACE_S, grace)
        return [item.key for item in stores.list(NAMES.jobs).items]

    return asyncio.run(forget())


@pytest.mark.parametrize("ended", [False, True])
def test_a_job_without_messages_is_lost(ended: bool) -> None:
    assert jobs_left(MemoryBus, ended=ended, in_logs=False) == []
    assert jobs_left(MemoryBus, ended=ended, in_logs=True) == [NAMES.job(J)]


@pytest.mark.parametrize("ended", [False, True])
def test_a_job_that_a_list_of_all_subjects_has_missed_is_not_lost(ended: bool) -> None:
    assert jobs_left(Forgetful, ended=ended, in_logs=True) == [NAMES.job(J)]


@pytest.mark.parametrize("ended", [False, True])
def test_a_job_whose_data_come_back_within_the_grace_is_not_lost(
    ended: bool, caplog: pytest.LogCaptureFixture
) -> None:
    assert jobs_left(MemoryBus, ended=ended, in_logs=False, back_after=True) == [NAMES.job(J)]
    assert "lost the data of 1 jobs (j)" in caplog.text
    assert "300 s from now" in caplog.text


def test_a_job_that_was_being_uploaded_is_lost_although_its_later_blocks_are_there() -> None:
    """Nothing of a job is stored before its callable: without that, the beginning is lost."""
    assert jobs_left(MemoryBus, ended=False, in_logs=True, first_block=7) == []
