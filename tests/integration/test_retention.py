"""Jobs that are over go, with all they have: on real servers."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from click.testing import CliRunner

from nbsched import Cluster, LocalCluster
from nbsched.cli import main
from nbsched.client import gonejobs
from nbsched.errors import JobForgottenError, JobNotEndedError, JobNotFoundError, ResultsLostError
from nbsched.model import ClientId
from nbsched.names import Names
from nbsched.storage.etcd import EtcdStore
from nbsched.transport.nats import NatsBus
from support.conditions import until

MIB = 131_072
"""Numbers (float64) in a MiB."""


class Kept(NamedTuple):
    """What there is of jobs on the servers and in the folder."""

    keys: tuple[str, ...]
    subjects: tuple[str, ...]
    files: tuple[str, ...]


def kept(cluster: Cluster) -> Kept:
    async def look() -> Kept:
        names = Names(cluster.settings.namespace)
        store = await EtcdStore.connect(cluster.settings)
        bus = await NatsBus.connect(cluster.settings, name="test")
        try:
            folders = ("jobs", "inputs", "status", "requests", "forgotten")
            keys = [item.key.removeprefix(names.root) for item in (await store.list("/")).items]
            subjects = await bus.subjects(names.inputs_log, ">")
            subjects |= await bus.subjects(names.results_log, ">")
        finally:
            await bus.close()
            await store.close()
        return Kept(
            tuple(key for key in keys if key.startswith(folders)),
            tuple(sorted(subjects)),
            shared_files(cluster),
        )

    return asyncio.run(look())


def shared_files(cluster: LocalCluster) -> tuple[str, ...]:
    """The jobs that have any."""
    folder = Path(cluster.settings.shared_folder or "")
    return tuple(path.name for path in folder.glob(f"{cluster.settings.namespace}.*/*"))


NOTHING = Kept((), (), ())


def again(cluster: Cluster) -> Cluster:
    """A second client of the same cluster."""
    names = cluster.settings.__struct_fields__
    return Cluster(**{name: getattr(cluster.settings, name) for name in names})


@pytest.fixture(autouse=True)
def _everything_goes(cluster: LocalCluster) -> Iterator[None]:
    yield
    for job in cluster.jobs():
        with_end = cluster.attach(job.id)
        with_end.cancel()
        until(lambda job=job: job.id not in unfinished(cluster))  # type: ignore[misc]
        cluster.forget(job.id)
    until(lambda: kept(cluster) == NOTHING, what="nothing is left of any job")


def unfinished(cluster: Cluster) -> list[str]:
    return [job.id for job in cluster.jobs(state=["waiting", "running"])]


# ---------------------------------------------------------------- forget


def test_nothing_is_left_of_forgotten_jobs_of_all_kinds(cluster: LocalCluster) -> None:
    small = cluster.submit(abs, -1)
    uploaded = cluster.map(lambda x: x, range(100_000))
    in_files = cluster.map(lambda array: array + 1, [np.zeros(MIB)] * 2)
    uploaded.result(60)
    in_files.result(60)
    assert small.result(60) == 1
    found = kept(cluster)
    assert len([key for key in found.keys if key.startswith("jobs/")]) == 3
    assert {in_files.id, uploaded.id} <= set(found.files)
    assert len({Names(cluster.settings.namespace).owner_of(each) for each in found.subjects}) == 3
    cluster.forget(small.job_id)
    uploaded.forget()
    in_files.forget()
    assert cluster.jobs() == []
    until(lambda: kept(cluster) == NOTHING, what="nothing is left")


def test_a_job_that_has_not_ended_is_not_forgotten(cluster: LocalCluster) -> None:
    mf = cluster.map(time.sleep, [30, 0])
    with pytest.raises(JobNotEndedError, match=r"(waiting|running).*cancel\(\) it first"):
        mf.forget()
    mf.cancel()
    assert mf.wait(60)
    mf.forget()
    with pytest.raises(JobNotFoundError, match="was forgotten"):
        mf.forget()


def test_attach_says_that_a_forgotten_job_is_gone(cluster: LocalCluster) -> None:
    mf = cluster.map(abs, [1, 2])
    mf.result(60)
    mf.forget()
    with again(cluster) as other:
        for client in (cluster, other):
            with pytest.raises(JobNotFoundError, match=rf"{mf.id}.*was forgotten.*jobs\(\)"):
                client.attach(mf.id)


def test_results_that_were_loaded_stay_and_the_rest_says_that_it_is_gone(
    cluster: LocalCluster,
) -> None:
    mf = cluster.map(lambda i: np.full(MIB, i) if i else "small", range(2))
    loaded = mf[1].result(60)
    mf.wait(60)
    mf.forget()
    until(lambda: kept(cluster) == NOTHING)
    assert mf[0].result(0) == "small"
    assert mf[1].result(0) is loaded
    with pytest.raises(JobForgottenError, match="Submit it again"):
        mf[0].retry()
    assert mf.done()


def test_who_waits_for_a_job_that_somebody_else_forgets_is_told(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was opened again by one client, and removed before the request was seen."""
    monkeypatch.setattr(gonejobs, "LOOK_S", 0.05)
    with again(cluster) as other:
        mf = other.map(lambda x: 1 // x, [0, 1])
        mf.wait(60)
        until(lambda: not unfinished(other))
        # As a request that the leader drops, as the job is gone: the task stays open.
        mf._tracker.reopen(mf._tracker.to_retry([0]))
        failing, ended = mf[0], threading.Event()
        failing.add_done_callback(lambda future: ended.set())
        cluster.forget(mf.id)
        with pytest.raises(JobForgottenError):
            mf.result(60)
        with pytest.raises(JobForgottenError):
            failing.result(60)
        assert ended.wait(60)
        assert mf[1].result(0) == 1


def test_attach_says_when_outcomes_are_not_in_the_log_any_more(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a NATS that lost its data."""
    monkeypatch.setattr(gonejobs, "LOOK_S", 0.05)
    mf = cluster.map(abs, range(100))
    mf.result(60)
    until(lambda: not unfinished(cluster))

    async def lose() -> None:
        names = Names(cluster.settings.namespace)
        bus = await NatsBus.connect(cluster.settings, name="test")
        await bus.purge(names.results_log, names.job_results(ClientId("*"), mf.id))
        await bus.close()

    asyncio.run(lose())
    with again(cluster) as other:
        attached = other.attach(mf.id)
        with pytest.raises(ResultsLostError, match=r"100 of its 100 outcomes.*Submit"):
            attached.result(60)
    assert mf.result(0) == list(range(100))


# ---------------------------------------------------------------- the command


def test_prune_forgets_ended_jobs_and_only_those_that_are_meant(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("etcd_user", "etcd_password", "nats_user", "nats_password"):
        monkeypatch.setenv(f"NBSCHED_{name.upper()}", getattr(cluster.settings, name))
    monkeypatch.setenv("NBSCHED_ETCD", ",".join(cluster.settings.etcd))
    monkeypatch.setenv("NBSCHED_NATS", ",".join(cluster.settings.nats))
    monkeypatch.setenv("NBSCHED_LOCAL", "1")

    def jobs(*options: str) -> str:
        answer = CliRunner().invoke(main, ["jobs", *options])
        assert answer.exit_code == 0, answer.output
        return answer.stdout

    tagged = cluster.options(tags=("a",)).submit(abs, 1)
    other, slow = cluster.submit(abs, 2), cluster.submit(time.sleep, 60)
    assert (tagged.result(60), other.result(20)) == (1, 2)
    until(lambda: len(unfinished(cluster)) == 1)
    assert jobs("--prune", "--older-than", "1h") == "0 jobs are forgotten.\n"
    assert jobs("--prune", "--tag", "a") == "1 job is forgotten.\n"
    assert {job.id for job in cluster.jobs()} == {other.job_id, slow.job_id}
    assert other.job_id in jobs("--prune", "--older-than", "0s", "--json")
    assert jobs("--prune", "--all-ended") == "0 jobs are forgotten.\n"
    assert [job.id for job in cluster.jobs()] == [slow.job_id]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prune"], "Say of which jobs"),
        (["--all-ended"], "go with --prune"),
        (["--prune", "--older-than", "soon"], "write 90s"),
        (["--prune", "--older-than", "-1h"], "write 90s"),
        (["--prune", "--older-than", "nand"], "write 90s"),
        (["--prune", "--older-than", "200000w"], "5200w or less"),
        (["--prune", "--older-than", "infd"], "5200w or less"),
    ],
)
def test_prune_refuses_what_may_not_be_meant(options: list[str], words: str) -> None:
    answer = CliRunner().invoke(main, ["jobs", *options])
    assert answer.exit_code == 2
    assert words in answer.stderr


# ---------------------------------------------------------------- retention


def test_a_job_goes_by_itself_and_a_new_leader_goes_on_with_that() -> None:
    with LocalCluster(workers=2, cpus=1, retention_s=1.0, lease_ttl_s=2.0) as cluster:
        first = cluster.map(lambda array: array + 1, [np.zeros(MIB)] * 2)
        first.result(60)
        until(lambda: kept(cluster) == NOTHING, what="the first job has gone")
        assert float(first[0].result()[0]) == 1.0
        leader = next(worker for worker in cluster.workers() if worker.leader)
        second = cluster.map(abs, range(1000))
        second.result(60)
        os.kill(leader.pid, signal.SIGKILL)
        until(lambda: kept(cluster) == NOTHING, what="the second job has gone", timeout_s=60)
        with pytest.raises(JobNotFoundError):
            cluster.attach(second.id)
