"""A client that dies, or is away, while it uploads: what has arrived is a job with an end."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any, cast

import msgspec
import pytest

from nbsched import Cluster, LocalCluster, MapFuture
from nbsched.errors import IncompleteJobWarning, JobIncompleteError
from nbsched.model import JobId, JobStatus
from nbsched.storage.lease import KeptLease
from support.conditions import until

GRACE_S = 1.5

UPLOADER = """
import itertools, sys, time
from nbsched import Cluster

def items():
    for number in itertools.count():
        yield number
        time.sleep(0.002)

cluster = Cluster(progress="off")
mf = cluster.map(abs, items(), buffersize=40)
print(mf.id, flush=True)
for result in mf:
    pass
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(
        workers=1, cpus=2, lease_ttl_s=2.0, upload_grace_s=GRACE_S, block_bytes=1000
    ) as running:
        yield running


def environment(cluster: Cluster) -> dict[str, str]:
    found = {
        f"NBSCHED_{name.upper()}": str(getattr(cluster.settings, name))
        for name in ("etcd_user", "etcd_password", "nats_user", "nats_password", "lease_ttl_s")
    }
    found["NBSCHED_ETCD"] = ",".join(cluster.settings.etcd)
    found["NBSCHED_NATS"] = ",".join(cluster.settings.nats)
    return {**os.environ, **found, "NBSCHED_LOCAL": "1"}


def state(cluster: Cluster, job: str) -> str:
    return next(found.state for found in cluster.jobs() if found.id == job)


def abandoned_job(cluster: LocalCluster) -> str:
    """The job of a client that was killed while it uploaded."""
    uploader = subprocess.Popen(
        [sys.executable, "-c", UPLOADER],
        env=environment(cluster),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert uploader.stdout is not None
        job = uploader.stdout.readline().strip()
        until(lambda: next(f.ok for f in cluster.jobs() if f.id == job) > 100)
        assert state(cluster, job) == "running"
    finally:
        uploader.send_signal(signal.SIGKILL)
        uploader.wait()
        uploader.stdout.close()
    return job


def test_the_job_of_a_client_that_was_killed_ends_with_what_had_arrived(
    cluster: LocalCluster,
) -> None:
    job = abandoned_job(cluster)
    before = cast(MapFuture, cluster.attach(job))  # nobody knows yet that it is abandoned
    until(lambda: state(cluster, job) == "incomplete", what="the job ends", timeout_s=40)
    (found,) = [each for each in cluster.jobs(state="incomplete") if each.id == job]
    assert found.total == found.ok
    assert found.total is not None
    assert found.total > 100
    assert before.wait(60)
    assert before.progress.state == "incomplete"
    with pytest.warns(IncompleteJobWarning, match=f"when {found.total} items had arrived"):
        assert before.result(60) == list(range(found.total))
    with pytest.warns(IncompleteJobWarning, match="is incomplete"):
        again = cast(MapFuture, cluster.attach(job))
    assert len(again) == found.total
    cluster.forget(job)


def test_a_job_that_is_sealed_while_somebody_looks_is_incomplete_for_them(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = abandoned_job(cluster)
    with another(cluster) as client:
        before = cast(MapFuture, client.attach(job))
        store, names = client._session.store, client._session.names
        get = store.get

        async def get_late(key: str) -> Any:
            found = await get(key)
            if key == names.job(JobId(job)):
                while state_of(await get(names.status(JobId(job)))) != "incomplete":
                    await asyncio.sleep(0.05)
            return found

        monkeypatch.setattr(store, "get", get_late)
        assert before.wait(60)
        assert before.progress.state == "incomplete"
        monkeypatch.undo()
    cluster.forget(job)


def state_of(status: Any) -> str:
    return msgspec.json.decode(status.value, type=JobStatus).state.value


def slowly(count: int, seconds: float) -> Iterator[int]:
    for number in range(count):
        yield number
        time.sleep(seconds)


def lease_of(cluster: Cluster) -> KeptLease:
    lease: Any = cluster._session.presence._lease
    return cast(KeptLease, lease)


def away_until(cluster: Cluster, condition: Any) -> None:
    """As if the machine had no connection to etcd for that long."""
    loop = cluster._session._io.loop
    lease = lease_of(cluster)
    loop.call_soon_threadsafe(lease.pause)
    until(condition, timeout_s=40)
    loop.call_soon_threadsafe(lease.resume)


def another(cluster: Cluster, **changes: object) -> Cluster:
    names = cluster.settings.__struct_fields__
    values = {name: getattr(cluster.settings, name) for name in names}
    return Cluster(**{**values, **changes})


def test_a_client_that_was_away_for_too_long_is_told_and_harms_nothing(
    cluster: LocalCluster,
) -> None:
    with another(cluster) as client:
        mf = client.map(abs, itertools.count(), buffersize=2000)
        results = iter(mf)
        first = list(itertools.islice(results, 500))
        away_until(client, lambda: state(cluster, mf.id) == "incomplete")
        with pytest.raises(JobIncompleteError, match=r"only the first \d+ items.*another job"):
            first += list(results)
        (found,) = cluster.jobs(state="incomplete")
        assert found.total is not None
        assert found.total == found.ok >= len(first)
        assert first == list(range(len(first)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", IncompleteJobWarning)
            whole = cast(MapFuture, cluster.attach(mf.id))
            assert whole.result(60) == list(range(found.total))
        cluster.forget(mf.id)


def test_a_client_that_goes_on_uploading_after_its_job_was_sealed_changes_nothing(
    cluster: LocalCluster,
) -> None:
    """It is cut off from etcd only: its blocks go on arriving."""
    with another(cluster) as client:
        sealed_at: list[int] = []

        def items() -> Iterator[int]:
            yield from range(2000)
            away_until(client, lambda: cluster.jobs(state="incomplete"))
            sealed_at.extend(job.total or 0 for job in cluster.jobs(state="incomplete"))
            yield from range(2000, 200_000)

        mf = client.map(abs, items(), buffersize=10**9)
        with pytest.raises(JobIncompleteError, match="only the first"):
            mf.result(60)
        (found,) = cluster.jobs(state="incomplete")
        assert sealed_at == [found.total]
        assert found.ok == found.total
        cluster.forget(found.id)


def test_a_client_that_is_back_within_the_grace_goes_on(cluster: LocalCluster) -> None:
    with another(cluster) as client:
        mf = client.map(abs, slowly(400, 0.002), buffersize=8)
        results = iter(mf)
        first = next(results)
        key = client._session.names.client(client._session.id)

        def key_is_gone() -> bool:
            return client._session.run(client._session.store.get(key)) is None

        away_until(client, key_is_gone)
        assert [first, *results] == list(range(400))
        until(lambda: state(cluster, mf.id) == "succeeded")
        assert not key_is_gone()
        mf.forget()


def test_a_client_that_uploads_for_longer_than_the_grace_is_left_alone(
    cluster: LocalCluster,
) -> None:
    with another(cluster) as client:
        mf = client.map(abs, slowly(300, 0.02), buffersize=8)
        assert list(mf) == list(range(300))
        until(lambda: state(cluster, mf.id) == "succeeded")
        mf.forget()
