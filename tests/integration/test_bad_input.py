"""Bad input gets a clear error of ours, soon, with the next step; nothing hangs."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbsched import Cluster, LocalCluster, errors
from nbsched.client import submitting
from nbsched.client.records import JobInfo
from support.conditions import until
from support.nats import NatsServer


def _arguments(cluster: LocalCluster, **changes: object) -> dict[str, object]:
    settings = {
        name: getattr(cluster.settings, name) for name in cluster.settings.__struct_fields__
    }
    return {**settings, **changes}


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_etcd_that_is_not_there(cluster: LocalCluster) -> None:
    started = time.monotonic()
    nowhere = f"127.0.0.1:{_closed_port()}"
    with pytest.raises(errors.StoreUnreachableError, match=nowhere):
        Cluster(**_arguments(cluster, etcd=[nowhere], connect_timeout_s=1.0))  # type: ignore[arg-type]
    assert time.monotonic() - started < 10


def test_nats_that_is_not_there(cluster: LocalCluster) -> None:
    nowhere = f"nats://127.0.0.1:{_closed_port()}"
    with pytest.raises(errors.BusUnreachableError, match=nowhere):
        Cluster(**_arguments(cluster, nats=[nowhere], connect_timeout_s=1.0))  # type: ignore[arg-type]


def test_nats_without_jetstream(cluster: LocalCluster, tmp_path: Path) -> None:
    server = NatsServer(tmp_path, jetstream=False)
    server.start()
    try:
        arguments = _arguments(
            cluster, nats=[server.url], nats_user=None, nats_password=None, connect_timeout_s=2.0
        )
        with pytest.raises(errors.JetStreamMissingError, match="-js"):
            Cluster(**arguments)  # type: ignore[arg-type]
    finally:
        server.stop()


def test_only_one_of_the_servers_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NBSCHED_NATS", raising=False)
    with pytest.raises(errors.ConfigurationError, match="NBSCHED_NATS"):
        Cluster(etcd="127.0.0.1:2379")


def test_no_worker_joined(cluster: LocalCluster) -> None:
    arguments = _arguments(cluster, namespace="empty", worker_timeout_s=0.5)
    with Cluster(**arguments) as empty:  # type: ignore[arg-type]
        with pytest.raises(
            errors.NoWorkersError, match=r"'empty' within 0\.5 s\. Start one: nbsched up"
        ):
            empty.map(abs, [1])
        assert empty.jobs() == []


def test_a_callable_that_cannot_be_pickled_names_the_member(cluster: LocalCluster) -> None:
    lock = threading.Lock()
    with pytest.raises(errors.NotPicklableError, match="closure variable 'lock'"):
        cluster.map(lambda x: (lock, x), [1])


def test_an_item_that_cannot_be_pickled_names_its_index(cluster: LocalCluster) -> None:
    with pytest.raises(errors.NotPicklableError, match="Item 3 "):
        cluster.map(abs, [1, 2, 3, threading.Lock()])


def test_an_item_that_fails_during_the_upload_ends_the_job(cluster: LocalCluster) -> None:
    def items() -> Iterator[object]:
        for _ in range(20):
            yield b"x" * 100_000
        yield threading.Lock()

    with pytest.raises(errors.NotPicklableError, match="Item 20 "):
        cluster.map(len, items(), name="half")

    def ended() -> JobInfo | None:
        (job,) = [job for job in cluster.jobs() if job.name == "half"]
        return job if job.state in ("cancelled", "succeeded") else None

    job = until(ended, what="the job has ended")
    assert job.total == job.ok + job.cancelled


def test_what_is_not_callable(cluster: LocalCluster) -> None:
    with pytest.raises(errors.NotCallableError, match=r"cluster\.map\(fn, items\)"):
        cluster.map([1, 2], abs)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        cluster.submit(3)  # type: ignore[arg-type]


def test_an_async_function_is_refused(cluster: LocalCluster) -> None:
    async def fetch(x: int) -> int:
        return x

    with pytest.raises(errors.ConfigurationError, match=r"lambda x: asyncio\.run\(fetch\(x\)\)"):
        cluster.map(fetch, [1])
    with pytest.raises(errors.ConfigurationError, match="async"):
        cluster.submit(fetch, 1)


def test_a_cluster_inside_a_task_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NBSCHED_ETCD", "NBSCHED_NATS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NBSCHED_KERNEL", "1")
    with pytest.raises(errors.ConfigurationError, match="tasks hold no credentials"):
        Cluster()


def test_what_is_not_iterable(cluster: LocalCluster) -> None:
    with pytest.raises(errors.ConfigurationError, match="submit"):
        cluster.map(abs, 3)  # type: ignore[arg-type]
    with pytest.raises(errors.ConfigurationError, match="at least one iterable"):
        cluster.map(abs)


def test_iterables_of_different_length(cluster: LocalCluster) -> None:
    with pytest.raises(errors.ConfigurationError, match=r"3, 2\."):
        cluster.map(pow, [1, 2, 3], [1, 2])
    assert list(cluster.map(pow, [1, 2, 3], iter([1, 2]))) == [1, 4]


def test_an_empty_iterable_is_an_empty_result(cluster: LocalCluster) -> None:
    mf = cluster.map(abs, [])
    assert (mf.result(60), mf.done(), len(mf), list(mf)) == ([], True, 0, [])


@pytest.mark.parametrize(
    "options",
    [
        {"cpus": 0},
        {"retry": -1},
        {"retry": "often"},
        {"task_timeout": 0},
        {"max_crashes": 0},
        {"colour": "red"},
        {"on_interrupt": "hide"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_an_option_that_is_not_possible(cluster: LocalCluster, options: dict[str, object]) -> None:
    (name,) = options
    with pytest.raises(errors.ConfigurationError, match=name):
        cluster.map(abs, [1], **options)
    with pytest.raises(errors.ConfigurationError, match=name):
        cluster.options(**options)


def test_more_cpus_than_any_worker_has(cluster: LocalCluster) -> None:
    with pytest.raises(errors.ConfigurationError, match="64 CPUs"):
        cluster.map(abs, [1], cpus=64)


def test_another_python_version_is_refused_before_running(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submitting, "PYTHON", "3.99")
    before = len(cluster.jobs())
    with pytest.raises(errors.VersionMismatchError, match=r"3\.99.*3\.\d+"):
        cluster.map(abs, [1])
    assert len(cluster.jobs()) == before


def test_another_cluster_key_is_refused_before_running(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("another key, long enough to be one")
    arguments = _arguments(cluster, key_file=str(tmp_path / "key"))
    with (
        Cluster(**arguments) as stranger,  # type: ignore[arg-type]
        pytest.raises(errors.ConfigurationError, match="NBSCHED_KEY_FILE"),
    ):
        stranger.map(abs, [1])


def test_a_job_that_does_not_exist(cluster: LocalCluster) -> None:
    with pytest.raises(errors.JobNotFoundError, match=r"cluster\.jobs\(\)"):
        cluster.attach("20200101-000000-aaaaaa")


@pytest.mark.parametrize("bad", ["a.b", "a*", ">", "a/b", "", "-a", "x" * 65, "a b", "ä", 7])
def test_an_id_with_characters_of_the_servers(cluster: LocalCluster, bad: str) -> None:
    with pytest.raises(errors.InvalidIdError):
        cluster.attach(bad)
    if bad:
        with pytest.raises((errors.InvalidIdError, errors.ConfigurationError)):
            Cluster(etcd="127.0.0.1:1", nats="127.0.0.1:1", namespace=bad)


def test_a_closed_cluster_says_so(cluster: LocalCluster) -> None:
    second = Cluster(**_arguments(cluster))  # type: ignore[arg-type]
    mf = second.map(time.sleep, [0.5])
    second.close()
    with pytest.raises(errors.NbschedError, match="attach"):
        mf.result(60)
    with pytest.raises(errors.NbschedError, match="closed"):
        second.map(abs, [1])
    again = cluster.attach(mf.id)
    assert again.result(60) == [None]


def test_settings_that_do_not_exist() -> None:
    with pytest.raises(errors.ConfigurationError, match="etdc"):
        Cluster(etdc="127.0.0.1:2379")
    with pytest.raises(errors.ConfigurationError, match="wrong type"):
        Cluster(etcd="127.0.0.1:1", nats="127.0.0.1:1", connect_timeout_s="soon")
