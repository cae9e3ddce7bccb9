"""Servers do not grow for ever: under a steady load, after a large job, when etcd was full."""

from __future__ import annotations

import asyncio
import json
import os
from typing import NamedTuple

import pytest

from nbsched import LocalCluster
from nbsched.errors import StoreFullError
from nbsched.local import etcdserver, upkeep
from nbsched.local.runtime import Identity, RefusedError
from nbsched.names import Names
from nbsched.settings import Settings
from nbsched.storage import Delete, Put
from nbsched.storage.etcd import EtcdStore
from nbsched.transport.nats import NatsBus
from support.conditions import until
from support.etcd import EtcdServer

MANY = int(os.environ.get("NBSCHED_TEST_TASKS", "100000"))
"""Tasks of the large job; `docs` have the figures for a million."""


LARGE_ITEMS = [chr(ord("a") + number) * 10_000 for number in range(20)]
"""Too large together to travel inside a record."""


class Size(NamedTuple):
    """Of what lies in etcd and in the logs, in keys, messages and bytes."""

    keys: int
    messages: int
    log_bytes: int


def size(settings: Settings) -> Size:
    async def look() -> Size:
        names = Names(settings.namespace)
        store = await EtcdStore.connect(settings)
        bus = await NatsBus.connect(settings, name="test")
        try:
            keys = len((await store.list("/")).items)
            states = []
            for log in (names.inputs_log, names.results_log):
                answer = json.loads(await bus.request(f"$JS.API.STREAM.INFO.{log}", b"", 5.0))
                states.append(answer["state"])
        finally:
            await bus.close()
            await store.close()
        return Size(
            keys,
            sum(state["messages"] for state in states),
            sum(state["bytes"] for state in states),
        )

    return asyncio.run(look())


def identity(settings: Settings) -> Identity:
    return Identity(
        etcd_port=int(settings.etcd[0].rpartition(":")[2]),
        nats_port=0,
        etcd_password=settings.etcd_password or "",
        nats_password="",
    )


def database_bytes(settings: Settings) -> int:
    """Of etcd's file, without its history and without free pages."""
    who = identity(settings)
    token = etcdserver.log_in(who)
    etcdserver.compact(who, token)
    etcdserver.defragment(who, token)
    return etcdserver.room(who, token).file_bytes


# ---------------------------------------------------------------- jobs


def test_etcd_and_logs_do_not_grow_under_a_steady_load() -> None:
    with LocalCluster(workers=1, cpus=1, retention_s=1.0) as cluster:

        def work(jobs: int) -> None:
            for number in range(jobs):
                if number % 10 == 0:
                    mf = cluster.map(len, LARGE_ITEMS)
                    assert mf.result(60) == [10_000] * 20
                else:
                    mf = cluster.map(abs, range(5))
                    assert mf.result(60) == list(range(5))
                if number % 2:
                    mf.forget()  # the others go by themselves
            until(lambda: not cluster.jobs(), what="every job has gone")

        work(20)
        until(lambda: size(cluster.settings).messages == 0)
        before, used_before = size(cluster.settings), database_bytes(cluster.settings)
        work(200)
        until(lambda: size(cluster.settings) == before, what="keys and messages are back")
        used = database_bytes(cluster.settings)
        print(f"etcd's file has {used_before} bytes before, {used} after 200 jobs; {before}")
        assert used <= used_before + 100_000
        assert before[1:] == (0, 0)


def test_a_large_job_leaves_nothing_behind_when_it_is_forgotten() -> None:
    with LocalCluster(workers=1, cpus=2) as cluster:
        first = cluster.map(len, LARGE_ITEMS)  # a client that uploads has a key, too
        first.result(60)
        first.forget()
        until(lambda: size(cluster.settings).messages == 0)
        before, used_before = size(cluster.settings), database_bytes(cluster.settings)
        assert before.keys == 4  # cluster key, leader, worker, and this client
        mf = cluster.map(lambda x: x + 1, range(MANY))
        assert mf.wait(MANY / 500)
        during = size(cluster.settings)
        assert mf[MANY - 1].result() == MANY
        mf.forget()
        until(lambda: size(cluster.settings) == before, what="keys and messages are back")
        used = database_bytes(cluster.settings)
        print(f"{MANY} tasks: {before}, {during}; etcd's file: {used_before} before, {used} after")
        assert during.messages > 2
        assert used <= used_before + 100_000


# ---------------------------------------------------------------- etcd's own file


QUOTA_BYTES = 8 * 1024**2


@pytest.fixture
def small_etcd(private_etcd: EtcdServer) -> EtcdServer:
    """One that takes 8 MiB, with a password."""
    private_etcd.stop()
    private_etcd._options = (*private_etcd._options, "--quota-backend-bytes", str(QUOTA_BYTES))
    private_etcd.start()
    private_etcd.turn_authentication_on("secret")
    return private_etcd


def settings_of(server: EtcdServer) -> Settings:
    return Settings(etcd=(server.endpoint,), etcd_user="root", etcd_password="secret", local=True)


def fill(settings: Settings, keys: int) -> None:
    """Write values of 100 KB to so many keys in turn, until etcd is full."""

    async def write() -> None:
        store = await EtcdStore.connect(settings)
        try:
            for number in range(1000):
                await store.commit([], [Put(f"/k{number % keys}", b"x" * 100_000)])
        finally:
            await store.close()

    with pytest.raises(StoreFullError, match="is full"):
        asyncio.run(write())


def test_an_etcd_that_its_history_has_filled_takes_writes_again(small_etcd: EtcdServer) -> None:
    settings = settings_of(small_etcd)
    who = identity(settings)
    fill(settings, keys=5)
    token = etcdserver.log_in(who)
    full = etcdserver.room(who, token)
    assert full.full
    upkeep.tend(who, QUOTA_BYTES)
    after = etcdserver.room(who, token)
    assert not after.full
    assert after.file_bytes < QUOTA_BYTES // 4 < full.file_bytes
    fill(settings, keys=5)


def test_an_etcd_whose_history_is_gone_already_takes_writes_again(
    small_etcd: EtcdServer,
) -> None:
    """An earlier look was interrupted behind its compaction."""
    settings = settings_of(small_etcd)
    who = identity(settings)
    fill(settings, keys=5)
    etcdserver.compact(who, etcdserver.log_in(who))
    upkeep.tend(who, QUOTA_BYTES)
    assert not etcdserver.room(who, etcdserver.log_in(who)).full


def test_an_etcd_that_is_full_of_jobs_takes_writes_when_some_are_gone(
    small_etcd: EtcdServer,
) -> None:
    settings = settings_of(small_etcd)
    who = identity(settings)
    fill(settings, keys=1000)
    upkeep.tend(who, QUOTA_BYTES)
    assert etcdserver.room(who, etcdserver.log_in(who)).full

    async def delete() -> None:
        store = await EtcdStore.connect(settings)
        keys = [item.key for item in (await store.list("/k")).items]
        # Not in a transaction: whether it takes one depends on its version and its size.
        await store.commit([], [Delete(key) for key in keys])
        assert (await store.list("/k")).items == ()
        await store.close()

    asyncio.run(delete())
    upkeep.tend(who, QUOTA_BYTES)
    assert not etcdserver.room(who, etcdserver.log_in(who)).full


def test_free_pages_go_back_to_the_disk(
    small_etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(small_etcd)
    who = identity(settings)

    async def write(times: int) -> None:
        store = await EtcdStore.connect(settings)
        for _ in range(times):
            await store.commit([], [Put("/k", b"x" * 100_000)])
        await store.close()

    asyncio.run(write(30))
    token = etcdserver.log_in(who)
    etcdserver.compact(who, token)

    def free() -> bool:
        asyncio.run(write(1))  # pages become free with the next writes
        return etcdserver.room(who, token).used_bytes < 1024**2

    until(free, what="the pages of the history are free")
    before = etcdserver.room(who, token).file_bytes
    upkeep.tend(who)
    assert etcdserver.room(who, token).file_bytes == before  # not worth it
    monkeypatch.setattr(upkeep, "_WASTE_BYTES", 1024**2)
    upkeep.tend(who)
    assert etcdserver.room(who, token).file_bytes < before // 4


def test_an_etcd_with_another_password_is_not_tended(small_etcd: EtcdServer) -> None:
    wrong = identity(Settings(etcd=(small_etcd.endpoint,), etcd_password="wrong"))
    with pytest.raises(RefusedError):
        upkeep.tend(wrong)
