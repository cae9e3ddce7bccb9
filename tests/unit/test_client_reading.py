"""Reading outcomes from the log, and what jobs say while servers are away."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import cast

import msgspec
import pytest

from nbsched.client.notes import Notes
from nbsched.client.reading import OutcomeReader
from nbsched.client.tracker import JobTracker
from nbsched.errors import BusUnreachableError, StoreUnreachableError
from nbsched.messages import Encoding, Outcome, OutcomeBatch, OutcomePart, OutcomeState
from nbsched.model import WorkerId
from nbsched.names import Names
from nbsched.payload.envelope import Envelope, Key, Kind
from nbsched.settings import Settings
from nbsched.transport import Bus, LogEntry
from nbsched.transport.memory import MemoryBus, MemoryBusServer
from nbsched.wire import Wire
from support.buses import eventually, run
from support.simulation import job_record

NAMES = Names("t")


class _Log:
    """A results log with one job of two tasks in it."""

    def __init__(self, bus: MemoryBus) -> None:
        self.bus = bus
        self.wire = Wire(Key.generate(), NAMES)
        self.tracker = JobTracker(job_record(total=2))
        self.subject = NAMES.job_results(self.tracker.client, self.tracker.id)

    async def append(self, meta: OutcomePart | OutcomeBatch, body: bytes) -> None:
        encoded = msgspec.msgpack.encode(meta)
        content = Envelope(Kind.OUTCOME, NAMES.namespace, self.tracker.id, meta=encoded)
        await self.bus.append(self.subject, self.wire.write(content, body), body)

    async def end(self, index: int, value: object) -> None:
        body = pickle.dumps([value])
        sizes = (len(body),)
        outcome = Outcome(index, index + 1, 0, 1, OutcomeState.OK, Encoding.SCALARS, sizes)
        await self.append(OutcomeBatch(WorkerId("w"), (outcome,)), body)

    def reader(self, bus: Bus | None = None) -> OutcomeReader:
        return OutcomeReader(
            bus or self.bus, self.wire, NAMES, self.subject, 0, lambda _: self.tracker
        )


def _with_log(scenario: Callable[[_Log], Awaitable[None]]) -> None:
    async def with_bus() -> None:
        bus = MemoryBus(MemoryBusServer())
        await bus.ensure_log(NAMES.results_log, NAMES.all_results)
        await scenario(_Log(bus))
        await bus.close()

    run(with_bus())


async def _stop(task: asyncio.Future[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_a_result_whose_worker_died_half_way_is_forgotten_with_its_job() -> None:
    async def scenario(log: _Log) -> None:
        reader = log.reader()
        reading = asyncio.ensure_future(reader.run())
        await log.append(OutcomePart("left", 0), b"x" * 100)
        await log.end(0, 7)
        await eventually(lambda: log.tracker.progress().ok == 1)
        assert reader._parts
        await log.end(1, 8)
        await eventually(lambda: log.tracker.finished)
        assert not reader._parts
        await _stop(reading)

    _with_log(scenario)


def test_an_entry_that_cannot_be_taken_in_holds_up_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(log: _Log) -> None:
        take_in = log.tracker.take_in
        failing = iter([True])

        def fails_once(outcomes: Sequence[Outcome], body: bytes, worker: WorkerId) -> None:
            if next(failing, False):
                raise RuntimeError("a bug")
            take_in(outcomes, body, worker)

        monkeypatch.setattr(log.tracker, "take_in", fails_once)
        reading = asyncio.ensure_future(log.reader().run())
        await log.bus.append(log.subject, b"not an envelope", b"")
        await log.end(0, "lost")
        await log.end(1, "taken in")
        await eventually(lambda: log.tracker.progress().ok == 1)
        assert log.tracker.value(1) == "taken in"
        await _stop(reading)

    _with_log(scenario)


class _BreaksAfterOne:
    """A bus whose readers end with an error after a batch; notes where they began."""

    def __init__(self, bus: MemoryBus) -> None:
        self._bus = bus
        self.begun: list[int] = []

    async def read(
        self, log: str, subject: str, *, after: int = 0
    ) -> AsyncGenerator[Sequence[LogEntry], None]:
        self.begun.append(after)
        async for batch in self._bus.read(log, subject, after=after):
            yield batch
            raise BusUnreachableError("gone")


def test_a_reader_that_is_started_anew_goes_on_where_it_was() -> None:
    async def scenario(log: _Log) -> None:
        bus = _BreaksAfterOne(log.bus)
        reader = log.reader(cast(Bus, bus))
        for index in range(2):
            await log.end(index, index)
            with pytest.raises(BusUnreachableError):
                await reader.run()
        assert bus.begun == [0, 1]
        assert log.tracker.finished

    _with_log(scenario)


@pytest.mark.parametrize("local", [False, True])
def test_unfinished_jobs_say_what_is_away_until_it_is_back(local: bool) -> None:
    tracker = JobTracker(job_record(total=1))
    notes = Notes(Settings(local=local, namespace="demo"), lambda: [tracker])
    notes.no_worker()
    worker = "nbsched up" if local else "nbsched-worker --namespace demo"
    assert tracker.progress().note == f"no worker is there: {worker}"
    notes.works("workers")
    assert tracker.progress().note == ""
    notes.server_failed(StoreUnreachableError("no answer"))
    assert ("nbsched up" if local else "etcd does not answer") in tracker.progress().note
    notes.server_failed(BusUnreachableError("no answer"))
    notes.works("etcd")
    assert ("nbsched up" if local else "NATS does not answer") in tracker.progress().note
    tracker.take_in([Outcome(0, 1, 0, 0, OutcomeState.CANCELLED)], b"")
    assert tracker.progress().note == ""
