"""Servers without room: work pauses, says what is full, and goes on when there is room."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nbsched import LocalCluster
from nbsched.errors import StoreFullError
from nbsched.settings import Settings
from nbsched.storage import Delete, Put
from nbsched.storage.etcd import EtcdStore
from nbsched.transport import LogFullError
from nbsched.transport.nats import NatsBus
from support.conditions import until
from support.etcd import EtcdServer
from support.nats import NatsServer
from support.ownservers import own_cluster

KB = 1000
MB = 1000 * KB


def noise(kilobytes: int) -> bytes:
    return os.urandom(kilobytes * KB)


def slow_noise(kilobytes: int) -> bytes:
    time.sleep(0.02)
    return os.urandom(kilobytes * 1000)


class InThread:
    """A call that is expected to take its time."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.value: Any = None
        self._call = call
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.value = self._call()

    @property
    def waits(self) -> bool:
        return self._thread.is_alive()

    def result(self) -> Any:
        self._thread.join(30)
        assert not self.waits
        return self.value


def test_a_full_results_log_pauses_a_job_that_says_so(tmp_path: Path) -> None:
    with own_cluster(tmp_path, jetstream_bytes=4 * MB) as (cluster, _, _):
        first = cluster.map(noise, [100] * 25)
        first.result(30)
        second = cluster.map(noise, [100] * 25)
        until(lambda: "results log in NATS is full" in second.progress.note, what="the note")
        assert "nbsched jobs --prune" in second.progress.note
        (listed,) = [job for job in cluster.jobs() if job.id == second.id]
        assert "results log in NATS is full" in listed.note
        assert not second.done()
        first.forget()
        results = second.result(30)
        assert [len(result) for result in results] == [100 * KB] * 25
        assert second.progress.note == ""
        until(lambda: all(not job.note for job in cluster.jobs()), what="no job has a note")


def test_a_full_inputs_log_pauses_an_upload_that_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with own_cluster(tmp_path, jetstream_bytes=4 * MB) as (cluster, _, _):
        first = cluster.map(len, (noise(100) for _ in range(25)))
        assert sum(first.result(30)) == 25 * 100 * KB
        uploading = InThread(lambda: cluster.map(len, (noise(100) for _ in range(25))))
        said = ""

        def heard() -> bool:
            nonlocal said
            said += capfd.readouterr().err
            return "waits: the inputs log in NATS is full" in said

        until(heard, what="it says what is full")
        (running,) = cluster.jobs(state="running")
        until(lambda: cluster.attach(running.id).progress.note, what="the job says so")
        assert uploading.waits
        first.forget()
        second = uploading.result()
        assert sum(second.result(30)) == 25 * 100 * KB
        assert said.count("waits:") == 1


def _fill(server: EtcdServer) -> list[str]:
    """Fill etcd with what is none of ours; returns the keys."""

    async def write() -> list[str]:
        store = await EtcdStore.connect(Settings(etcd=(server.endpoint,), local=True))
        keys = []
        try:
            for number in range(1000):
                keys.append(f"/others/{number}")
                await store.commit([], [Put(keys[-1], b"x" * 100_000)])
        except StoreFullError:
            return keys
        finally:
            await store.close()
        raise AssertionError("etcd was not full")

    return asyncio.run(write())


def _make_room(server: EtcdServer, keys: list[str]) -> None:
    async def delete() -> int:
        store = await EtcdStore.connect(Settings(etcd=(server.endpoint,), local=True))
        await store.commit([], [Delete(key) for key in keys])
        revision = (await store.list("/others/")).revision
        await store.close()
        return revision

    server.compact(asyncio.run(delete()))
    server.defragment()
    server.clear_alarms()


def test_a_full_etcd_pauses_a_submit_that_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    quota = ("--quota-backend-bytes", str(8 * MB))
    with own_cluster(tmp_path, etcd_options=quota) as (cluster, etcd, _):
        old = cluster.submit(abs, -1)
        assert old.result(60) == 1
        until(lambda: cluster.jobs(state="succeeded"))
        keys = _fill(etcd)
        submitting = InThread(lambda: cluster.submit(abs, -2))
        said = ""

        def heard() -> bool:
            nonlocal said
            said += capfd.readouterr().err
            return "waits: etcd is full" in said

        until(heard, what="it says what is full")
        assert submitting.waits
        with pytest.raises(StoreFullError, match="is full"):
            old.retry()
        cluster.forget(old.job_id)  # what it needs no room for
        assert cluster.jobs() == []
        _make_room(etcd, keys)
        assert submitting.result().result(60) == 2
        until(lambda: cluster.jobs(state="succeeded"), what="its end is recorded")


# ---------------------------------------------------------------- a disk that others fill


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 MB; etcd alone makes files of 64 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounting = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounting.returncode:
        pytest.skip(f"mounting a small disk is not allowed here: {mounting.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=False)


def _fill_disk(place: Path) -> Path:
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    return filler


def test_a_full_disk_pauses_a_local_cluster_that_says_so(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    with LocalCluster(workers=1, cpus=2) as cluster:
        assert len(cluster.submit(noise, 1).result(60)) == KB
        mf = cluster.map(slow_noise, [30] * 1000)
        until(lambda: mf.progress.ok > 10)
        filler = _fill_disk(small_disk)
        until(lambda: " is full (" in mf.progress.note, what="the note", timeout_s=40)
        assert not mf.done()
        print(mf.progress.note)
        filler.unlink()
        results = mf.result(60)
        assert {len(result) for result in results} == {30 * KB}
        assert cluster.submit(abs, -1).result(60) == 1
        until(lambda: mf.progress.note == "" and not cluster.jobs(state="running"))


async def append_for_ever(bus: NatsBus) -> None:
    while True:
        await bus.append("log.a", b"", bytes(100_000))


def test_a_log_whose_disk_is_full_says_so(small_disk: Path) -> None:
    """Of a NATS of one's own, which an administrator starts again."""
    server = NatsServer(small_disk / "nats")
    server.start()

    async def test() -> None:
        bus = await NatsBus.connect(Settings(etcd=("-:1",), nats=(server.url,)), name="test")
        try:
            await bus.ensure_log("log", "log.>")
            assert await bus.append("log.a", b"", b"x") == 1
            filler = _fill_disk(small_disk)
            with pytest.raises(LogFullError, match=r"no space left.*start nats-server") as full:
                await append_for_ever(bus)
            assert "results log in NATS is full (no space left" in full.value.in_short("results")
            filler.unlink()
            await asyncio.to_thread(server.restart)
            stored = await bus.append("log.a", b"", b"y")
            last = await bus.last_of("log", "log.a")
            assert last is not None
            assert (last.sequence, last.data) == (stored, b"y")
        finally:
            await bus.close()

    try:
        asyncio.run(asyncio.wait_for(test(), 120))
    finally:
        server.kill()
