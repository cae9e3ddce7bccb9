"""How a job gets its total when nobody can ask for more items: on the twins."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import itertools
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
import pytest

from nbsched.client.delivery import delivery
from nbsched.client.iothread import io_thread
from nbsched.client.sealing import Sending, seal_what_arrives
from nbsched.client.session import Session
from nbsched.client.tracker import JobTracker
from nbsched.client.upload import Upload
from nbsched.errors import (
    ConfigurationError,
    JobForgottenError,
    NbschedError,
    StoreUnreachableError,
)
from nbsched.model import JobId, JobRecord, to_json
from nbsched.names import Names
from nbsched.payload import pickling
from nbsched.payload.envelope import Key
from nbsched.settings import Settings
from nbsched.storage import Change, Commit, Delete, Guard, Put
from nbsched.storage.memory import MemoryStore, MemoryStoreServer
from nbsched.transport.memory import MemoryBus, MemoryBusServer
from support.conditions import until
from support.simulation import job_record

J = JobId("j")
NAMES = Names("t")


class SlowStore(MemoryStore):
    """A store that can keep a commit waiting, or fail it."""

    def __init__(self, server: MemoryStoreServer) -> None:
        super().__init__(server)
        self.answers = asyncio.Event()
        self.answers.set()
        self.waiting = False
        self.failed = 0

    async def commit(self, guards: Sequence[Guard], changes: Sequence[Change]) -> Commit:
        self.waiting = True
        try:
            await self.answers.wait()
            return await super().commit(guards, changes)
        except StoreUnreachableError:
            self.failed += 1
            raise
        finally:
            self.waiting = False


class Client:
    """A session on the twins; nobody runs its jobs."""

    def __init__(self) -> None:
        self.server = MemoryStoreServer()
        self.session = io_thread().run(self._connect())
        self.interest = self.session.interest()  # as a cluster holds it

    async def _connect(self) -> Session:
        self.store = SlowStore(self.server)
        server = MemoryBusServer()
        server.ensure_log(NAMES.inputs_log, NAMES.all_inputs)
        server.ensure_log(NAMES.results_log, NAMES.all_results)
        settings = Settings(namespace="t")
        return Session(io_thread(), settings, self.store, MemoryBus(server), Key.generate())

    @property
    def committed(self) -> bool:
        return self.server.get(NAMES.job(J)) is not None

    @property
    def job(self) -> JobRecord:
        stored = self.server.get(NAMES.job(J))
        assert stored is not None
        return msgspec.json.decode(stored.value, type=JobRecord)

    def upload(self) -> tuple[Upload, int]:
        """A lazy job that has begun, and how many items it has."""
        upload = self.upload_of(itertools.count())
        return upload, upload.begin().known

    def upload_of(self, items: Iterable[int]) -> Upload:
        record = job_record(J, None, inline=False, client=self.session.id)
        return Upload(self.session, record, pickling.dump_function(abs), items, buffersize=8)


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client()
    yield made
    made.session.close()


def test_a_dropped_map_is_sealed_when_the_servers_are_back(client: Client) -> None:
    upload, count = client.upload()
    client.server.go_down()

    del upload
    gc.collect()
    until(lambda: client.store.failed >= 2)
    client.server.come_back()

    until(lambda: client.job.total is not None)
    assert client.job.total == count > 0


def test_futures_are_resolved_while_a_dropped_map_waits_to_be_sealed(client: Client) -> None:
    upload, count = client.upload()
    loop = client.session._io.loop
    loop.call_soon_threadsafe(client.store.answers.clear)

    del upload
    gc.collect()
    until(lambda: client.store.waiting)
    resolved = threading.Event()
    delivery().put(resolved.set)
    assert resolved.wait(60)
    assert client.store.waiting  # still: whoever waits for it holds up no delivery

    loop.call_soon_threadsafe(client.store.answers.set)
    until(lambda: client.job.total == count)


def test_a_dropped_map_whose_session_closes_is_left_to_the_leader(client: Client) -> None:
    upload, _ = client.upload()
    client.server.go_down()
    del upload
    gc.collect()
    until(lambda: client.store.failed)

    client.session.close()

    assert not client.session._tasks
    client.server.come_back()
    assert client.job.total is None


def test_a_map_whose_end_falls_into_an_outage_of_etcd_waits_and_is_not_cancelled(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    upload = client.upload_of(range(100))
    upload.begin()
    client.server.go_down()

    ending = threading.Thread(target=upload.advance, args=(-1,))
    ending.start()
    until(lambda: client.store.failed >= 2)
    client.server.come_back()
    ending.join(20)

    assert not ending.is_alive()
    assert client.job.total == 100
    assert not client.server.list(NAMES.job_requests(J)).items, "nobody asked for a cancel"
    assert "etcd does not answer; the job goes on when it is back" in capsys.readouterr().err


def test_a_map_begun_while_etcd_is_away_begins_when_it_is_back(client: Client) -> None:
    upload = client.upload_of(range(3))
    client.server.go_down()

    beginning = threading.Thread(target=upload.begin)
    beginning.start()
    until(lambda: bool(client.session.notes.waits_for))
    client.server.come_back()
    beginning.join(20)

    assert client.committed


def test_a_map_that_waits_for_etcd_ends_when_its_cluster_is_closed(client: Client) -> None:
    upload = client.upload_of(range(3))
    client.server.go_down()
    ended: list[BaseException] = []

    def begin() -> None:
        try:
            upload.begin()
        except NbschedError as error:
            ended.append(error)

    beginning = threading.Thread(target=begin)
    beginning.start()
    until(lambda: bool(client.session.notes.waits_for))
    client.session.close()
    beginning.join(20)

    assert ended


def test_an_upload_whose_job_was_forgotten_says_so(client: Client) -> None:
    """The leader has seen that a server lost its data, while items were still being sent."""
    upload, _ = client.upload()
    client.server.commit([], [Delete(NAMES.job(J))])
    with pytest.raises(JobForgottenError, match="lost its data"):
        upload.stop()


def test_items_behind_a_block_that_got_lost_do_not_count(client: Client) -> None:
    def sent(error: Exception | None) -> Any:
        future: concurrent.futures.Future[None] = concurrent.futures.Future()
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
        return future

    errors = (None, ConfigurationError("too large"), None)
    sending = [Sending(10 * n, 1, sent(error)) for n, error in enumerate(errors)]
    record = job_record(J, None, inline=False)
    revision = client.server.commit([], [Put(NAMES.job(J), to_json(record))]).revision
    tracker = JobTracker(record)
    tracker.uploaded(30)

    client.session.run(seal_what_arrives(client.session, tracker, record, revision, 30, sending))

    assert client.job.total == 10
