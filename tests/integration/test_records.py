"""What lies in etcd: readable, and little of it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from nbsched import LocalCluster
from nbsched.names import Names
from nbsched.storage.etcd import EtcdStore
from support.conditions import until


def _stored(cluster: LocalCluster) -> tuple[int, dict[str, bytes]]:
    async def read() -> tuple[int, dict[str, bytes]]:
        store = await EtcdStore.connect(cluster.settings)
        try:
            snapshot = await store.list(Names(cluster.settings.namespace).root)
        finally:
            await store.close()
        return snapshot.revision, {item.key: item.value for item in snapshot.items}

    return asyncio.run(read())


def _under(stored: dict[str, bytes], folder: str) -> list[Any]:
    return [json.loads(value) for key, value in stored.items() if f"/{folder}/" in key]


def test_members_leader_job_and_status_are_readable_json(cluster: LocalCluster) -> None:
    mf = cluster.map(abs, range(10))
    mf.result(60)
    until(lambda: [j for j in cluster.jobs() if j.id == mf.id and j.state == "succeeded"])
    _, stored = _stored(cluster)
    (member,) = _under(stored, "workers")
    assert member["cpus"] == 2
    assert member["address"] == "127.0.0.1"
    assert member["versions"]["nbsched"]
    assert _under(stored, "leader")[0]["worker"] == member["id"]
    assert [job["total"] for job in _under(stored, "jobs") if job["id"] == mf.id] == [10]
    (status,) = [s for s in _under(stored, "status") if s["job"] == mf.id]
    assert (status["state"], status["ok"]) == ("succeeded", 10)


def test_etcd_writes_do_not_grow_with_the_tasks(cluster: LocalCluster) -> None:
    before, _ = _stored(cluster)
    mf = cluster.map(lambda x: [x], range(10_000))
    assert len(mf.result(60)) == 10_000
    until(lambda: [j for j in cluster.jobs() if j.id == mf.id and j.state == "succeeded"])
    after, _ = _stored(cluster)
    print(f"{after - before} etcd writes for 10,000 tasks")
    assert 0 < after - before < 50


def test_requests_are_deleted_when_they_have_been_carried_out(cluster: LocalCluster) -> None:
    mf = cluster.map(lambda x: 1 // x, [0, 1])
    mf.wait(60)
    mf.retry()
    mf.wait(60)
    until(lambda: not _under(_stored(cluster)[1], "requests"), what="no request is left")
