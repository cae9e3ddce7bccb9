"""`speculate=True` on a real cluster: slow last tasks run a second time elsewhere."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from nbsched import LocalCluster
from nbsched.client.records import WorkerInfo
from support.conditions import until

TASKS = 8
SLOW = TASKS - 1


@pytest.fixture
def pair() -> Iterator[LocalCluster]:
    with LocalCluster(workers=2, cpus=2, lease_ttl_s=3.0, cancel_grace_s=1.0) as cluster:
        until(lambda: len(cluster.workers()) == 2, what="both workers")
        yield cluster


class Diary:
    """Every run of the slow task ticks into a file of its own, as long as it runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def task(self, first_alone: bool) -> Callable[[int], int]:
        folder = self.folder

        def work(index: int) -> int:
            if index != SLOW:
                time.sleep(0.02)
                return index
            run = folder / f"{os.getppid()}-{os.getpid()}"
            first = not any(folder.iterdir())
            run.touch()
            while first or not first_alone:
                with open(run, "a") as file:
                    file.write(".")
                time.sleep(0.02)
            return index

        return work

    def runs(self) -> list[Path]:
        return sorted(self.folder.iterdir(), key=lambda run: run.stat().st_ctime)

    def daemon(self, run: int) -> int:
        return int(self.runs()[run].name.split("-")[0])

    def at_rest(self) -> bool:
        """Nothing is written any more: no run goes on."""
        sizes = [run.stat().st_size for run in self.runs()]
        time.sleep(0.3)  # fifteen ticks
        return sizes == [run.stat().st_size for run in self.runs()]


@pytest.fixture
def diary(tmp_path: Path) -> Diary:
    folder = tmp_path / "runs"
    folder.mkdir()
    return Diary(folder)


def test_a_task_that_hangs_in_one_place_is_done_in_another(
    pair: LocalCluster, diary: Diary
) -> None:
    started = time.monotonic()
    mf = pair.map(diary.task(first_alone=True), range(TASKS), speculate=True)
    assert mf.result(60) == list(range(TASKS))
    print(f"done after {time.monotonic() - started:.1f} s; alone it would hang for ever")
    assert len(diary.runs()) == 2
    assert diary.daemon(0) != diary.daemon(1), "the copy ran on another worker"
    until(diary.at_rest, what="the end of the first run")
    assert mf.progress.ok == TASKS
    assert pair.attach(mf.id).result(60) == list(range(TASKS))
    # Its slot is free again: four tasks that wait for each other need all of them.
    gate = diary.folder.parent / "gate"
    gate.mkdir()

    def meet(index: int) -> int:
        (gate / str(index)).touch()
        while len(list(gate.iterdir())) < 4:
            time.sleep(0.01)
        return index

    assert pair.map(meet, range(4)).result(30) == [0, 1, 2, 3]


def test_without_the_option_it_hangs(pair: LocalCluster, diary: Diary) -> None:
    mf = pair.map(diary.task(first_alone=True), range(TASKS))
    until(lambda: mf.progress.ok == TASKS - 1)
    with pytest.raises(TimeoutError):
        mf.result(5)
    assert len(diary.runs()) == 1
    mf.cancel()


def test_cancel_ends_both_runs_before_it_is_confirmed(pair: LocalCluster, diary: Diary) -> None:
    mf = pair.map(diary.task(first_alone=False), range(TASKS), speculate=True)
    until(lambda: len(diary.runs()) == 2, what="a copy")
    mf.cancel()
    with pytest.raises(CancelledError):
        mf[SLOW].result(30)
    assert diary.at_rest(), "confirmed, and still running"


def _leader(cluster: LocalCluster) -> WorkerInfo:
    return until(lambda: [worker for worker in cluster.workers() if worker.leader])[0]


def test_a_new_leader_goes_on_with_both_runs(diary: Diary) -> None:
    with LocalCluster(workers=3, cpus=[2, 2, 1], lease_ttl_s=2.0) as cluster:
        until(lambda: len(cluster.workers()) == 3)
        stop = diary.folder.parent / "stop"
        folder = diary.folder

        def work(index: int) -> int:
            if index == SLOW:
                (folder / f"{os.getppid()}-{os.getpid()}").touch()
                while not stop.exists():
                    time.sleep(0.02)
            return index

        mf = cluster.map(work, range(TASKS), speculate=True)
        until(lambda: len(diary.runs()) == 2, what="a copy")
        killed = _leader(cluster).pid
        os.kill(killed, signal.SIGKILL)
        until(lambda: [w for w in cluster.workers() if w.leader and w.pid != killed], 40.0)
        stop.touch()
        assert mf.result(60) == list(range(TASKS))
