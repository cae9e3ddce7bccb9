"""A server comes back without its data: an answer or a clear error, never a hang.

One server of each kind, so that nobody else has the data. With three of each, losing one
disk is no event for the user at all (see the rehearsals).
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chaos.arena import Arena, send
from nbsched import Cluster, MapFuture
from nbsched.errors import ConfigurationError, JobForgottenError, JobNotFoundError, ResultsLostError
from support.conditions import until

WITHIN_S = 60.0
OLD_REVISIONS = 60
GONE = (ResultsLostError, JobNotFoundError)
"""Before and after the job is forgotten."""


@contextmanager
def _aged(folder: Path, **options: float) -> Iterator[Arena]:
    """Two daemons on servers that have been there for a while."""
    arena = Arena(folder, daemons=2, **options)
    arena.old_revisions = OLD_REVISIONS
    try:
        arena.start()
        yield arena
    finally:
        arena.close()


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[Arena]:
    with _aged(tmp_path / "arena") as arena:
        yield arena


def _wipe(arena: Arena, kind: str) -> None:
    server = arena.etcd_members[0] if kind == "etcd" else arena.nats_members[0]
    server.kill()
    server.lose_data()
    server.start()


def _slow(item: object) -> int:
    time.sleep(0.1)
    return len(item) if isinstance(item, bytes) else 1


def _half_done(cluster: Cluster, items: list[object]) -> MapFuture:
    mf = cluster.map(_slow, items)
    mf.futures()
    until(lambda: mf.progress.ok >= 10, WITHIN_S, "some have ended")
    return mf


def _new_work(arena: Arena, cluster: Cluster) -> None:
    """What is submitted afterwards runs, from clients old and new."""
    assert cluster.map(_slow, [b"."] * 4).result(WITHIN_S) == [1] * 4
    with Cluster(**arena.settings_for("new")) as fresh:
        assert fresh.map(_slow, [b"." * 50_000] * 4).result(WITHIN_S) == [50_000] * 4


def test_an_etcd_without_its_data_has_forgotten_its_jobs_and_takes_new_ones(arena: Arena) -> None:
    with Cluster(**arena.settings_for("old")) as cluster:
        mf = _half_done(cluster, [1] * 200)
        _wipe(arena, "etcd")
        with pytest.raises(JobForgottenError, match="lost its data"):
            mf.result(WITHIN_S)
        _new_work(arena, cluster)


def test_daemons_that_find_another_key_after_that_end_and_come_back_with_it(arena: Arena) -> None:
    """A client was quicker than they were, when etcd came back without its data."""
    with Cluster(**arena.settings_for("old")) as cluster:
        mf = _half_done(cluster, [1] * 200)
        for daemon in arena.daemons:
            send(daemon.pid, signal.SIGSTOP)
        _wipe(arena, "etcd")
        with Cluster(**arena.settings_for("quick")):
            pass
        for daemon in arena.daemons:
            send(daemon.pid, signal.SIGCONT)
        until(lambda: all(each.ended_by_itself for each in arena.daemons), WITHIN_S, "they end")
        assert all("another cluster key" in each.log.read_text() for each in arena.daemons)
        arena.start_again()  # as a service manager does
        with pytest.raises(JobForgottenError, match="lost its data"):
            mf.result(WITHIN_S)
        with pytest.raises(ConfigurationError, match=r"create a new Cluster\(\)"):
            cluster.map(_slow, [1])
        with Cluster(**arena.settings_for("new")) as fresh:
            assert fresh.map(_slow, [1] * 4).result(WITHIN_S) == [1] * 4


def test_a_small_job_survives_that_nats_loses_all_its_data(arena: Arena) -> None:
    with Cluster(**arena.settings_for("old")) as cluster:
        mf = _half_done(cluster, [1] * 60)
        _wipe(arena, "nats")
        assert mf.result(WITHIN_S) == [1] * 60
        _new_work(arena, cluster)


def test_a_large_job_is_forgotten_when_nats_loses_all_its_data(arena: Arena) -> None:
    """Its items were there and nowhere else."""
    with Cluster(**arena.settings_for("old")) as cluster:
        mf = _half_done(cluster, [b"." * 5000] * 200)
        _wipe(arena, "nats")
        with pytest.raises(JobForgottenError, match="lost its data"):
            mf.result(WITHIN_S)
        _new_work(arena, cluster)


def test_results_that_nats_has_lost_are_a_clear_error_for_who_attaches(arena: Arena) -> None:
    with Cluster(**arena.settings_for("old")) as cluster:
        mf = cluster.map(_slow, [1] * 4)
        assert mf.result(WITHIN_S) == [1] * 4
        until(lambda: cluster.jobs()[0].state == "succeeded", WITHIN_S, "its status says so")
        _wipe(arena, "nats")
        _new_work(arena, cluster)
        with Cluster(**arena.settings_for("new")) as fresh, pytest.raises(GONE):
            fresh.attach(mf.id).result(WITHIN_S)
        assert mf.result() == [1] * 4


def test_a_nats_with_a_wrong_disk_can_be_given_the_right_one(tmp_path: Path) -> None:
    """The leader has seen jobs without their data, and has not forgotten them yet."""
    with (
        _aged(tmp_path / "arena", lost_data_grace_s=600.0) as arena,
        Cluster(**arena.settings_for("old")) as cluster,
    ):
        (nats,) = arena.nats_members
        mf = _half_done(cluster, [b"." * 5000] * 200)
        nats.kill()
        right = nats.data.rename(nats.data.with_name("right"))
        nats.start()
        until(
            lambda: any("has lost the data" in each.log.read_text() for each in arena.daemons),
            WITHIN_S,
            "the leader has seen it",
        )
        nats.kill()
        nats.lose_data()
        right.rename(nats.data)
        nats.start()
        assert mf.result(WITHIN_S) == [5000] * 200
