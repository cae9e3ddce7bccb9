"""What is begun by a client also ends: uploads, waits, background tasks, callbacks."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from nbsched import Cluster, LocalCluster
from nbsched.client import mapfuture
from support.conditions import until


def _again(cluster: LocalCluster) -> Cluster:
    """A second client of the same cluster."""
    names = cluster.settings.__struct_fields__
    return Cluster(**{name: getattr(cluster.settings, name) for name in names})


def _endless() -> Iterator[int]:
    """About a thousand items a second, for ever."""
    for number in itertools.count():
        yield number
        time.sleep(0.001)


# ------------------------------------------------------------ the beginning


def test_a_new_cluster_has_all_of_its_workers_and_a_leader_when_it_is_looked_at() -> None:
    with LocalCluster(workers=2, cpus=1) as cluster:
        workers = cluster.workers()

    assert [worker.cpus for worker in workers] == [1, 1]
    assert len(workers.filter(leader=True)) == 1


# ------------------------------------------------------------ uploads


def test_cancelling_a_map_over_an_endless_iterator_ends_it(cluster: LocalCluster) -> None:
    mf = cluster.map(abs, itertools.count(), buffersize=10)
    assert next(iter(mf)) == 0
    assert mf.cancel()
    assert mf.wait(60)
    assert len(mf) == mf.progress.done
    assert mf.done()
    assert list(itertools.islice(mf, 1)) == [0]


def test_a_map_that_nobody_can_iterate_further_ends_with_what_it_has(
    cluster: LocalCluster,
) -> None:
    mf = cluster.map(abs, itertools.count(), buffersize=10)
    job = mf.id
    assert list(itertools.islice(mf, 3)) == [0, 1, 2]
    del mf

    def ended() -> bool:
        gc.collect()
        (found,) = [found for found in cluster.jobs() if found.id == job]
        return found.state == "succeeded" and found.total == found.ok

    until(ended)


def test_waiting_for_an_endless_map_ends_in_time(cluster: LocalCluster) -> None:
    mf = cluster.map(abs, _endless(), buffersize=10)
    started = time.monotonic()
    assert not mf.wait(0.3)
    with pytest.raises(TimeoutError, match="has not ended within"):
        mf.result(0.3)
    assert time.monotonic() - started < 20
    mf.cancel()
    assert mf.wait(60)


def test_a_map_is_cancelled_while_another_thread_uploads_it(cluster: LocalCluster) -> None:
    mf = cluster.map(abs, _endless(), buffersize=10)
    ended = threading.Event()

    def waits() -> None:
        mf.wait()
        ended.set()

    threading.Thread(target=waits, daemon=True).start()
    until(lambda: mf.progress.uploaded > 100)
    assert mf.cancel()
    assert ended.wait(60)
    assert mf.done()


def test_a_map_whose_iterator_never_goes_on_is_cancelled(cluster: LocalCluster) -> None:
    stuck, go_on = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        yield from range(8)
        stuck.set()
        assert go_on.wait(60)

    mf = cluster.map(abs, items(), buffersize=4)

    def iterate() -> None:
        with contextlib.suppress(CancelledError):
            list(mf)

    threading.Thread(target=iterate, daemon=True).start()
    assert stuck.wait(60)
    started = time.monotonic()
    assert mf.cancel()
    assert time.monotonic() - started < 20
    until(lambda: _state(cluster, mf.id) == "cancelled")
    go_on.set()
    until(mf.done)


def _state(cluster: Cluster, job: str) -> str:
    return next(info.state for info in cluster.jobs() if info.id == job)


@pytest.mark.parametrize("buffersize", [None, 4])
def test_an_interrupt_while_items_are_taken_cancels_the_job(
    cluster: LocalCluster, buffersize: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    def items() -> Iterator[bytes]:
        for _ in range(10):
            yield b"x" * 100_000
        raise KeyboardInterrupt

    name = f"interrupted-{buffersize}"
    with pytest.raises(KeyboardInterrupt):
        list(cluster.map(len, items(), buffersize=buffersize, name=name))
    (job,) = [info.id for info in cluster.jobs() if info.name == name]
    assert f"Interrupted: job {job} is cancelled." in capsys.readouterr().err
    until(lambda: _state(cluster, job) in ("cancelled", "succeeded"))
    (info,) = [info for info in cluster.jobs() if info.id == job]
    assert info.total == info.ok + info.cancelled


def test_a_detached_job_goes_on_with_the_items_that_were_uploaded(cluster: LocalCluster) -> None:
    def items() -> Iterator[bytes]:
        for _ in range(10):
            yield b"x" * 100_000
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cluster.map(len, items(), name="left-alone", on_interrupt="detach")
    (job,) = [info.id for info in cluster.jobs() if info.name == "left-alone"]
    until(lambda: _state(cluster, job) == "succeeded")
    results = cluster.attach(job).result(60)
    assert results == [100_000] * len(results)
    assert 1 <= len(results) <= 10


# ------------------------------------------------------------ attaching


def test_a_job_that_was_cancelled_unsealed_ends_for_whoever_attaches(
    cluster: LocalCluster,
) -> None:
    owner = _again(cluster)
    mf = owner.map(abs, itertools.count(), buffersize=10)
    assert next(iter(mf)) == 0
    owner.close()  # nobody will ever seal it
    attached = cluster.attach(mf.id)
    assert attached.cancel()
    assert attached.wait(60)
    assert len(attached) == attached.progress.done


def test_what_runs_for_an_attached_job_ends_when_its_future_goes(cluster: LocalCluster) -> None:
    jobs = []
    for _ in range(5):
        mf = cluster.map(abs, [-1])
        assert mf.result(60) == [1]
        jobs.append(mf.id)
    del mf
    other = _again(cluster)
    before = len(other._session._tasks)
    for job in jobs:
        assert other.attach(job).result(60) == [1]
    until(lambda: _collected() and len(other._session._tasks) == before)
    other.close()


def _collected() -> bool:
    gc.collect()
    return True


# ------------------------------------------------------------ outages


def test_a_job_says_that_a_server_does_not_answer_and_stops_saying_so() -> None:
    with LocalCluster(workers=1, cpus=1, connect_timeout_s=1.0, cancel_grace_s=1.0) as private:
        mf = private.map(time.sleep, [60])
        for name in ("etcd", "nats"):
            (pid,) = private.pids()[name]
            os.kill(pid, signal.SIGSTOP)
            try:
                until(lambda: "nbsched up" in mf.progress.note, what=f"a note about {name}")
            finally:
                os.kill(pid, signal.SIGCONT)
            until(lambda: not mf.progress.note, what=f"no note after {name} is back")
        mf.cancel()
        assert mf.wait(60)


def test_a_callback_may_submit_and_wait(cluster: LocalCluster) -> None:
    seen: list[int] = []
    future = cluster.submit(abs, -1)
    future.add_done_callback(lambda _: seen.append(cluster.submit(abs, -2).result(60)))
    until(lambda: seen == [2])


def test_a_loop_that_is_closed_while_it_waits_holds_up_nobody(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    loop = asyncio.new_event_loop()
    go = str(tmp_path / "go")

    def until_go(_: int) -> None:
        while not os.path.exists(go):
            time.sleep(0.02)

    mf = cluster.map(until_go, [0])

    async def waits() -> object:
        return await mf

    task = loop.create_task(waits())
    loop.run_until_complete(asyncio.sleep(0.05))
    loop.stop()
    assert not task.done()
    loop.close()
    Path(go).touch()
    assert mf.result(60) == [None]
    assert cluster.submit(abs, -7).result(60) == 7


def test_an_interrupt_while_the_display_is_drawn_cancels_the_job(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def interrupted(_: object) -> Iterator[None]:
        raise KeyboardInterrupt
        yield

    mf = cluster.map(time.sleep, [60])
    monkeypatch.setattr(mapfuture, "shown_while_waiting", interrupted)
    for call in (mf.result, mf.wait, lambda: list(mf), lambda: list(mf.as_completed())):
        with pytest.raises(KeyboardInterrupt):
            call()
    monkeypatch.undo()
    assert mf.wait(60)
    assert mf.cancelled()
