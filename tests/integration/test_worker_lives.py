"""Kernels that are of no use: a worker tries again, later and later, and recovers by itself."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from nbsched.messages import OutcomeState, StopTasks
from nbsched.model import TaskRange
from nbsched.worker.nursery import Place
from support.workerbench import bench, run, true

OK, FAILED, CANCELLED, RETRY = OutcomeState

_START_UP = """
import os, sys, threading, time
if "nbsched.kernel" in " ".join(sys.orig_argv):
    with open({starts!r}, "a") as file:
        file.write(f"{{time.monotonic()}}\\n")
    if not os.path.exists({mended!r}):
        {fault}
"""


@pytest.mark.parametrize(
    ("fault", "lives_s"),
    [("os._exit(3)", 0.0), ("threading.Timer(1.0, os._exit, (3,)).start()", 1.0)],
    ids=["before it is ready", "idle"],
)
def test_kernels_that_die_without_having_worked_are_replaced_later_and_later(
    fault: str, lives_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts, mended = tmp_path / "starts", tmp_path / "mended"
    text = _START_UP.format(starts=str(starts), mended=str(mended), fault=fault)
    (tmp_path / "sitecustomize.py").write_text(text)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)

    async def scenario() -> None:
        async with bench() as b:
            await true(lambda: starts.exists() and starts.read_text().count("\n") >= 4)
            times = [float(line) for line in starts.read_text().splitlines()]
            gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
            for gap, wait_s in zip(gaps, (0.2, 0.4, 0.8), strict=False):
                assert gap >= lives_s + wait_s
            mended.touch()
            job = await b.finish(b.job(lambda x: x + 1, range(3)))
            assert job.values() == [1, 2, 3]

    run(scenario())


def test_a_place_waits_longer_after_each_useless_kernel_and_forgets_it_after_a_good_one() -> None:
    place = Place()
    waits = [place.wait_s(of_use=False, lived_s=1.0) for _ in range(9)]
    assert waits == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 10.0]
    assert place.wait_s(of_use=True, lived_s=1.0) == 0.0
    assert place.wait_s(of_use=False, lived_s=1.0) == 0.2
    assert place.wait_s(of_use=False, lived_s=3600.0) == 0.0


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_run_that_is_stopped_silently_has_no_outcome_and_frees_its_slot(
    stubborn: bool, tmp_path: Path
) -> None:
    def linger(x: int) -> int:
        import time

        (tmp_path / str(x)).touch()
        while True:
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                if not stubborn:
                    raise

    async def scenario() -> None:
        async with bench() as b:
            job = b.job(linger, range(2))
            await b.run(job)
            await true((tmp_path / "0").exists)
            ranges = (TaskRange(0, 2, 0),)
            await b.command(StopTasks(b.term, job.brief.job, ranges, 0.3, silently=True))
            await true(lambda: not b.report().held)
            other = await b.finish(b.job(lambda x: x, range(3)))
            assert other.values() == [0, 1, 2]
            b.read_log()
            assert job.results == {}
            assert not (tmp_path / "1").exists()

    run(scenario())
