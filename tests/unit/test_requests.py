"""Cancel and retry requests: durable before anything else changes."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Coroutine
from typing import Any, cast

import pytest

from nbsched.client.requests import retry_tasks
from nbsched.client.results import TaskState
from nbsched.client.session import Session
from nbsched.client.tracker import JobTracker
from nbsched.errors import JobForgottenError, StoreUnreachableError
from nbsched.messages import Encoding, ErrorReport, Outcome, OutcomeState, encode
from nbsched.model import to_json
from nbsched.names import Names
from nbsched.storage import Put, Store
from nbsched.storage.memory import MemoryStore, MemoryStoreServer
from support.simulation import job_record


class _Away(MemoryStore):
    async def commit(self, *_: object) -> Any:
        raise StoreUnreachableError("etcd does not answer")


class _Session:
    names = Names("t")

    def __init__(self) -> None:
        self.server = MemoryStoreServer()
        self.store: Store = _Away(self.server)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run(work)


def _failed(index: int) -> tuple[Outcome, bytes]:
    data = encode(ErrorReport("ValueError", "no", pickle=pickle.dumps(ValueError("no"))))
    span = (index, index + 1)
    return Outcome(*span, 0, 1, OutcomeState.FAILED, Encoding.ERROR, (len(data),)), data


def test_a_retry_that_cannot_be_stored_leaves_the_task_as_it_was() -> None:
    tracker = JobTracker(job_record(total=1))
    outcome, data = _failed(0)
    tracker.take_in([outcome], data)
    session = _Session()
    session.server.commit([], [Put(Names("t").job(tracker.id), to_json(tracker.record))])
    with pytest.raises(StoreUnreachableError):
        retry_tasks(cast(Session, session), tracker, [0])
    assert tracker.state(0) is TaskState.FAILED
    session.store = MemoryStore(session.server)
    assert retry_tasks(cast(Session, session), tracker, [0]) == 1
    assert tracker.state(0) is TaskState.PENDING


def test_a_task_of_a_job_that_is_gone_is_not_retried() -> None:
    tracker = JobTracker(job_record(total=1))
    outcome, data = _failed(0)
    tracker.take_in([outcome], data)
    session = _Session()
    with pytest.raises(JobForgottenError):
        retry_tasks(cast(Session, session), tracker, [0])
    assert tracker.state(0) is TaskState.FAILED
