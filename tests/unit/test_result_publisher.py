"""Outcomes on their way into the results log."""

from __future__ import annotations

import secrets

import msgspec

from nbsched.attempts import PastAttempt
from nbsched.messages import Encoding, Outcome, OutcomeBatch, OutcomeState
from nbsched.model import ClientId, JobId, Term, WorkerId
from nbsched.names import Names
from nbsched.payload import envelope
from nbsched.payload.envelope import Key, Kind
from nbsched.transport.memory import MemoryBus, MemoryBusServer
from nbsched.worker.results import ResultPublisher
from support.buses import eventually, run

NAMES = Names("n")
KEY = Key(secrets.token_bytes(32))
JOB = JobId("j")


def test_failures_with_long_histories_fit_into_the_headers_that_the_log_takes() -> None:
    past = tuple(PastAttempt("worker-1", "ConnectionError: " + "x" * 180, 1.0) for _ in range(5))
    count = 2000

    async def scenario() -> None:
        bus = MemoryBus(MemoryBusServer())
        await bus.ensure_log(NAMES.results_log, NAMES.all_results)
        acknowledged: list[int] = []
        publisher = ResultPublisher(
            WorkerId("w"),
            NAMES,
            KEY,
            bus,
            512 * 1024,
            lambda: Term(1),
            lambda job, outcomes: acknowledged.extend(outcome.start for outcome in outcomes),
            lambda: None,
            lambda job: False,
        )
        for index in range(count):
            state = OutcomeState.RETRY
            outcome = Outcome(index, index + 1, 0, 5, state, Encoding.ERROR, (2,), past=past)
            publisher.add(JOB, ClientId("c"), outcome, b"{}")
        await eventually(lambda: len(acknowledged) == count)
        assert sorted(acknowledged) == list(range(count))
        await publisher.close()
        read = 0
        async for batch in bus.read(NAMES.results_log, NAMES.all_results):
            for entry in batch:
                content = envelope.read(
                    KEY, entry.header, kind=Kind.OUTCOME, namespace=NAMES.namespace
                )
                outcomes = msgspec.msgpack.decode(content.meta, type=OutcomeBatch).outcomes
                assert all(outcome.past == past for outcome in outcomes)
                read += len(outcomes)
            if read == count:
                break
        await bus.close()

    run(scenario())
