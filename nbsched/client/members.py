"""Who is in the cluster: followed in the background, and asked before a job is sent."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import TypeVar

import msgspec

from nbsched.client.notes import start_worker
from nbsched.errors import ConfigurationError, NoWorkersError, VersionMismatchError
from nbsched.model import Candidate, WorkerId, WorkerRecord
from nbsched.names import Names
from nbsched.payload.envelope import Key
from nbsched.settings import Settings
from nbsched.storage import Snapshot, Store, WatchEndedError

log = logging.getLogger(__name__)

_RELIST_S = 30.0


class Members:
    """The workers that are there, by id, and which of them leads."""

    def __init__(
        self, store: Store, names: Names, settings: Settings, on_list: Callable[[], None]
    ) -> None:
        self.records: dict[WorkerId, WorkerRecord] = {}
        self.leader: WorkerId | None = None
        self.free_slots: dict[WorkerId, int] = {}
        """CPU slots without work, of workers that have said so."""
        self.memory: dict[WorkerId, tuple[int, int]] = {}
        """Bytes of memory in use on their hosts, and all bytes."""
        self._store = store
        self._names = names
        self._settings = settings
        self._on_list = on_list
        self._listed = asyncio.Event()

    def working(self) -> list[WorkerRecord]:
        """Those that run tasks; any thread may ask."""
        return [w for w in list(self.records.values()) if w.cpus > 0 and not w.draining]

    def reported(self, worker: WorkerId, free_slots: int, memory: tuple[int, int]) -> None:
        """A worker said how many of its CPU slots have no work, and what memory is in use."""
        self.free_slots[worker] = free_slots
        self.memory[worker] = memory

    # ------------------------------------------------------------ following

    async def list(self) -> int:
        """Read members and leader now; returns the store's revision."""
        snapshot = await self._store.list(self._names.workers)
        records = (read_record(item.value, WorkerRecord) for item in snapshot.items)
        self.records = {record.id: record for record in records if record is not None}
        self.leader = _leading(await self._store.list(self._names.candidates))
        self.free_slots = {w: free for w, free in self.free_slots.items() if w in self.records}
        self.memory = {w: memory for w, memory in self.memory.items() if w in self.records}
        self._listed.set()
        self._on_list()
        return snapshot.revision

    async def follow(self) -> None:
        """List after every change, and every 30 s in any case; for ever."""
        while True:
            await self._change(await self.list())

    async def _change(self, revision: int) -> None:
        waits = [
            asyncio.ensure_future(self._first_change(prefix, revision))
            for prefix in (self._names.workers, self._names.candidates)
        ]
        try:
            await asyncio.wait(waits, timeout=_RELIST_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            ended = await asyncio.gather(*waits, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception) and not isinstance(error, WatchEndedError):
                raise error

    async def _first_change(self, prefix: str, revision: int) -> None:
        async with aclosing(self._store.watch(prefix, revision + 1)) as batches:
            async for _ in batches:
                return

    # ------------------------------------------------------------ before a job is sent

    async def wait_for_one(self) -> None:
        """Wait until somebody could run a task. Raises NoWorkersError."""
        if not await self._wait_until(lambda: bool(self.working())):
            raise NoWorkersError(
                f"No worker joined {self._names.namespace!r} within"
                f" {self._settings.worker_timeout_s:g} s. Start one:"
                f" {start_worker(self._settings)}"
            )

    async def wait_for(self, count: int) -> bool:
        """Wait until so many have joined and one leads; False when that takes too long."""
        return await self._wait_until(lambda: len(self.records) >= count and bool(self.leader))

    async def _wait_until(self, holds: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + self._settings.worker_timeout_s
        while not holds():
            if time.monotonic() >= deadline:
                return False
            self._listed.clear()
            listed = asyncio.ensure_future(self._listed.wait())
            try:
                await asyncio.wait([listed], timeout=max(0.0, deadline - time.monotonic()))
            finally:
                listed.cancel()
        return True

    def check(self, key: Key, python: str, cpus: int) -> None:
        """Raise unless a member can run a task of this client; any thread may ask.

        Raises:
            VersionMismatchError: workers are there, but none with this Python.
            ConfigurationError: no worker has so many CPUs, or the keys differ.
        """
        workers = self.working()
        keys = {worker.key_id for worker in workers}
        if key.id not in keys:
            raise ConfigurationError(
                f"The workers of {self._names.namespace!r} sign with key"
                f" {', '.join(sorted(keys))}, this client has {key.id}. Give both the same key"
                " file (NBSCHED_KEY_FILE, nbsched-worker --key-file); without one, create a new"
                " Cluster(): etcd has lost its data, and the key with it."
            )
        matching = [worker for worker in workers if worker.python == python]
        if not matching:
            versions = ", ".join(sorted({worker.python for worker in workers}))
            raise VersionMismatchError(
                f"This client runs Python {python}, the workers of {self._names.namespace!r} run"
                f" {versions}: pickles do not cross minor versions. Start the notebook with"
                f" Python {versions}, or a worker with Python {python}."
            )
        most = max(worker.cpus for worker in matching)
        if cpus > most:
            raise ConfigurationError(
                f"A task asks for {cpus} CPUs, the largest worker has {most}. Ask for fewer"
                " (options(cpus=...)), or start a larger worker."
            )


def _leading(candidates: Snapshot) -> WorkerId | None:
    if not candidates.items:
        return None
    first = min(candidates.items, key=lambda item: item.create_revision)
    record = read_record(first.value, Candidate)
    return None if record is None else record.worker


_R = TypeVar("_R", bound=msgspec.Struct)


def read_record(data: bytes, kind: type[_R]) -> _R | None:
    """A record of etcd; None, and a line in the log, when it cannot be read."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        log.warning("A record cannot be read and is ignored: %s", error)
        return None
