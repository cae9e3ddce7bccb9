"""A cluster that nobody closes: its connections end with the last that has use for them."""

from __future__ import annotations

import gc
import os
import weakref

import pytest

from nbsched import Cluster, LocalCluster
from nbsched.client.cluster import latest
from nbsched.client.session import Session
from support.conditions import until


def _again(cluster: LocalCluster) -> Cluster:
    """A second client of the same cluster."""
    names = cluster.settings.__struct_fields__
    return Cluster(**{name: getattr(cluster.settings, name) for name in names})


def _sockets() -> int:
    """Connections that this process has open."""
    found = 0
    for entry in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{entry}").startswith("socket:")
        except OSError:
            continue
    return found


def _gone(session: weakref.ref[Session]) -> bool:
    gc.collect()
    return session() is None


def _collected() -> bool:
    gc.collect()
    return True


def test_connections_of_a_dropped_cluster_go_away(cluster: LocalCluster) -> None:
    before = _sockets()
    dropped = [_again(cluster) for _ in range(3)]
    sessions = [weakref.ref(each._session) for each in dropped]
    for each in dropped:
        assert each.submit(abs, -2).result(60) == 2
    assert _sockets() > before
    del dropped, each

    until(lambda: all(map(_gone, sessions)), what="the sessions are gone")
    until(lambda: _sockets() <= before, what="the connections are closed")
    assert cluster.submit(abs, -3).result(60) == 3


@pytest.mark.parametrize("kind", ["map", "task of a map", "submit"])
def test_a_future_keeps_the_connection_of_a_dropped_cluster(
    cluster: LocalCluster, kind: str
) -> None:
    second = _again(cluster)
    session = weakref.ref(second._session)
    submitter = second.options(name="kept")
    future: object
    if kind == "map":
        future = submitter.map(lambda x: 1 // x, [0])
    elif kind == "task of a map":
        future = submitter.map(lambda x: 1 // x, [0])[0]
    else:
        future = submitter.submit(lambda x: 1 // x, 0)
    del second, submitter
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            future.result(60)  # type: ignore[attr-defined]
        gc.collect()
        found = session()
        assert found is not None
        assert not found.closed
        del found
        assert future.retry()  # type: ignore[attr-defined]
    with pytest.raises(ZeroDivisionError):
        future.result(60)  # type: ignore[attr-defined]
    del future
    until(lambda: _gone(session), what="the session is gone with the last future")


def test_options_keep_the_connection_too(cluster: LocalCluster) -> None:
    submitter = _again(cluster).options(retry=1)
    gc.collect()
    assert submitter.submit(abs, -1).result(60) == 1


def test_a_job_goes_on_when_its_client_is_dropped(cluster: LocalCluster) -> None:
    second = _again(cluster)
    session = weakref.ref(second._session)
    job = second.map(abs, range(-50, 0)).id
    del second
    until(lambda: _gone(session))
    assert cluster.attach(job).result(60) == list(range(50, 0, -1))


def test_a_closed_cluster_is_not_closed_again(cluster: LocalCluster) -> None:
    second = _again(cluster)
    session = weakref.ref(second._session)
    second.close()
    assert second.closed
    del second
    until(lambda: _gone(session))


def test_the_servers_of_a_private_cluster_stay_as_long_as_its_futures() -> None:
    mf = LocalCluster(workers=1, cpus=1).map(abs, [-1, -2])
    gc.collect()
    assert mf.result(60) == [1, 2]


def test_the_latest_cluster_is_the_last_one_that_is_open(cluster: LocalCluster) -> None:
    second, third = _again(cluster), _again(cluster)
    assert latest() is third
    third.close()
    assert latest() is second
    del second
    until(lambda: _collected() and latest() is cluster)
