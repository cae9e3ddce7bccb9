"""A job whose record comes long after its items, since a server was full: on the twins."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nbsched.client import committing
from nbsched.client.committing import Uploaded
from nbsched.client.iothread import io_thread
from nbsched.client.session import Session
from nbsched.client.upload import Upload
from nbsched.errors import NbschedError
from nbsched.model import JobId
from nbsched.names import Names
from nbsched.payload import pickling
from nbsched.payload.envelope import Key
from nbsched.settings import Settings
from nbsched.storage.memory import MemoryStore, MemoryStoreServer
from nbsched.transport import LogFullError
from nbsched.transport.memory import MemoryBus, MemoryBusServer
from support.conditions import until
from support.simulation import job_record

J = JobId("j")
NAMES = Names("t")
ITEMS = [bytes(100_000)] * 3


class TightBus(MemoryBus):
    """A bus that can be full."""

    refused = 0
    full = False

    async def append(self, subject: str, header: bytes, data: bytes) -> int:
        if self.full:
            self.refused += 1
            raise LogFullError("no room")
        return await super().append(subject, header, data)


class Client:
    """A session on the twins, with a shared folder; nobody runs its jobs."""

    def __init__(self, folder: Path) -> None:
        self.stores = MemoryStoreServer()
        self.buses = MemoryBusServer()
        self.session = io_thread().run(self._connect(str(folder)))
        self.interest = self.session.interest()  # as a cluster holds it
        self.record = job_record(J, None, inline=False, client=self.session.id)

    async def _connect(self, folder: str) -> Session:
        self.buses.ensure_log(NAMES.inputs_log, NAMES.all_inputs)
        self.buses.ensure_log(NAMES.results_log, NAMES.all_results)
        self.bus = TightBus(self.buses)
        settings = Settings(namespace="t", shared_folder=folder)
        store = MemoryStore(self.stores)
        return Session(io_thread(), settings, store, self.bus, Key.generate())

    @property
    def committed(self) -> bool:
        return self.stores.get(NAMES.job(J)) is not None

    @property
    def present(self) -> bool:
        return self.stores.get(NAMES.client(self.session.id)) is not None

    def upload(self) -> Uploaded:
        """What it has before the record: two messages and a file, and the sign of life."""
        sign_of_life = self.session.run(self.session.presence.announce())
        for part in range(2):
            self.buses.append(NAMES.input_part(self.session.id, J, 0, part), b"", b"")
        assert self.session.shared_folder is not None
        self.session.shared_folder.write(J, "in-0", [b"data"])
        return Uploaded(sign_of_life, messages=2, files=True)

    def go_away(self) -> None:
        """Its lease ends, and it does not know that yet."""
        lease: Any = self.session.presence._lease
        self.stores.revoke(lease.id)
        assert lease.alive
        assert not self.present

    def commit(self, had: Uploaded) -> int:
        return self.session.run(committing.commit(self.session, self.record, had=had))


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    made = Client(tmp_path / "shared")
    yield made
    made.session.close()


def test_a_job_is_committed_when_its_client_was_away_and_its_items_are_there(
    client: Client,
) -> None:
    had = client.upload()
    client.go_away()
    assert client.commit(had) > 0
    assert client.committed
    assert client.present, "or the leader would take the rest of the upload for abandoned"


@pytest.mark.parametrize("gone", ["messages", "files"])
def test_a_job_is_not_committed_when_its_items_were_deleted_meanwhile(
    gone: str, client: Client
) -> None:
    had = client.upload()
    client.go_away()
    assert client.session.shared_folder is not None
    if gone == "files":
        client.session.shared_folder.remove(J)
    else:
        client.buses.purge(NAMES.inputs_log, NAMES.job_inputs(client.session.id, J))
    with pytest.raises(NbschedError, match="deleted meanwhile"):
        client.commit(had)
    assert not client.committed


def test_a_job_that_exists_already_is_not_committed_again(client: Client) -> None:
    had = client.upload()
    client.commit(had)
    with pytest.raises(NbschedError, match="exists already"):
        client.commit(had)


def test_a_client_that_waits_for_room_shows_that_it_is_there(client: Client) -> None:
    client.bus.full = True
    function = pickling.dump_function(abs)
    upload = Upload(client.session, client.record, function, ITEMS)
    beginning = threading.Thread(target=upload.begin)
    beginning.start()
    try:
        until(lambda: client.bus.refused > 0)
        assert client.present
    finally:
        client.bus.full = False
        beginning.join(20)
    assert client.committed


def test_files_of_a_job_that_waits_for_room_stay_new(client: Client) -> None:
    folder = client.session.shared_folder
    assert folder is not None
    data = bytes(100_000)
    function = pickling.dump_function(lambda: data)
    client.bus.full = True
    upload = Upload(client.session, client.record, function, ITEMS)
    beginning = threading.Thread(target=upload.begin)
    beginning.start()
    try:
        until(lambda: client.bus.refused > 0)
        assert not client.committed, "its callable is in a file, and still not in the log"
        os.utime(Path(folder.path) / J, (0, 0))
        until(lambda: not folder.unchanged_for(3600), what="it is touched")
    finally:
        client.bus.full = False
        beginning.join(20)
    assert client.committed
