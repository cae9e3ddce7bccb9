"""Why a task died, as its error says: on real clusters."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tenacity

from nbsched import LocalCluster, errors
from nbsched.attempts import bytes_text
from support.conditions import until
from support.memorygroup import MemoryGroup

MIB = 1 << 20


def test_a_killed_task_names_signal_worker_peak_memory_and_all_its_attempts(
    cluster: LocalCluster,
) -> None:
    def killed(_: int) -> None:
        held = bytearray(600 * MIB)
        held[::4096] = b"x" * len(held[::4096])
        print("my last line")
        os.kill(os.getpid(), signal.SIGKILL)

    error = cluster.options(max_crashes=2).submit(killed, 0).exception(60)
    assert isinstance(error, errors.TaskCrashedError)
    worker = cluster.workers()[0].id
    assert error.index == 0
    assert (error.details["cause"], error.details["worker"]) == ("signal SIGKILL", worker)
    peak = error.details["peak_bytes"]
    assert isinstance(peak, int)
    assert 600 * MIB < peak < 900 * MIB
    assert [(past.worker, past.cause) for past in error.history] == [
        (worker, "signal SIGKILL"),
        (worker, "signal SIGKILL"),
    ]
    assert error.history[0].ended_at <= error.history[1].ended_at <= time.time() + 1
    said = str(error)
    assert "Its attempts:" in said
    assert "  my last line" in said
    assert f"peak memory was {bytes_text(peak)}" in said


def test_a_small_task_that_is_killed_is_said_to_have_been_small(cluster: LocalCluster) -> None:
    error = (
        cluster.options(max_crashes=1)
        .submit(lambda: os.kill(os.getpid(), signal.SIGKILL))
        .exception(60)
    )
    assert "peak memory was" in str(error)
    assert "out of memory" not in str(error)


def test_an_exit_code_follows_the_exceptions_of_earlier_attempts(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"

    def fail_then_exit() -> None:
        with open(marks, "a") as file:
            file.write("x")
        if marks.stat().st_size == 1:
            raise ValueError("the first time")
        os._exit(7)

    error = cluster.options(max_crashes=1, retry=1).submit(fail_then_exit).exception(60)
    assert isinstance(error, errors.TaskCrashedError)
    assert error.details["exit_code"] == 7
    assert [past.cause for past in error.history] == ["ValueError: the first time", "exit code 7"]


def test_an_exception_of_a_last_attempt_lists_the_earlier_ones(cluster: LocalCluster) -> None:
    def fail() -> None:
        raise ValueError("no luck")

    error = cluster.options(retry=2).submit(fail).exception(60)
    assert isinstance(error, ValueError)
    assert str(error.__cause__).count(": ValueError: no luck") == 3


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_timeout_names_worker_and_last_lines(cluster: LocalCluster, stubborn: bool) -> None:
    def slow() -> None:
        print("so far")
        while True:
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                if not stubborn:
                    raise

    error = cluster.options(task_timeout=0.3).submit(slow).exception(60)
    assert isinstance(error, errors.TaskTimeoutError)
    assert error.details["cause"] == "timeout"
    assert error.details["worker"] == cluster.workers()[0].id
    assert "  so far" in str(error)


def test_a_lost_host_is_named(tmp_path: Path) -> None:
    def linger(index: int) -> None:
        (tmp_path / str(index)).write_text(f"{os.getppid()}.")
        time.sleep(600)

    def daemon(index: int) -> int:
        file = tmp_path / str(index)
        text = until(lambda: file.exists() and file.read_text().endswith(".") and file.read_text())
        return int(str(text)[:-1])

    with LocalCluster(workers=2, cpus=1, lease_ttl_s=2.0) as cluster:
        until(lambda: len(cluster.workers()) == 2)
        leader = until(lambda: [worker.pid for worker in cluster.workers() if worker.leader])[0]
        mf = cluster.map(linger, range(2), max_crashes=1)
        # A leader that dies takes along what it knew of who ran what.
        victim = next(index for index in range(2) if daemon(index) != leader)
        name = next(worker.id for worker in cluster.workers() if worker.pid == daemon(victim))
        until(mf[victim].running)
        os.kill(daemon(victim), signal.SIGKILL)
        error = mf[victim].exception(60)
    assert isinstance(error, errors.TaskCrashedError)
    assert (error.index, error.details["cause"]) == (victim, "host lost")
    assert [(past.worker, past.cause) for past in error.history] == [(name, "host lost")]
    assert name in str(error)


@pytest.fixture
def group() -> Iterator[MemoryGroup]:
    made = MemoryGroup.create(700 * MIB)
    if made is None:
        pytest.skip("no control group for memory can be made here: it takes root on Linux")
    yield made
    made.remove()


def test_the_out_of_memory_killer_is_named_and_spares_the_daemon(
    group: MemoryGroup, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(_GREEDY)
    done = subprocess.run(
        [sys.executable, str(script)],
        preexec_fn=group.enter,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    cause, limit, said = done.stdout.split("|", 2)
    assert cause == "out of memory (signal SIGKILL)"
    assert limit == "the same daemon"
    assert "may use 700 MiB" in said
    assert "  about to fill it" in said


_GREEDY = """
from nbsched import LocalCluster

def greedy():
    print("about to fill it")
    held = []
    while True:
        held.append(b"x" * (16 << 20))

with LocalCluster(workers=1, cpus=1) as cluster:
    assert cluster.submit(abs, -1).result(30) == 1
    before = cluster.workers()[0].pid
    error = cluster.options(max_crashes=1).submit(greedy).exception(80)
    same = cluster.submit(abs, -1).result(30) == 1 and cluster.workers()[0].pid == before
print(error.details["cause"], "the same daemon" if same else "another daemon", error, sep="|")
"""


def test_a_task_that_is_killed_at_a_limit_has_its_output_also_when_a_policy_is_asked(
    cluster: LocalCluster,
) -> None:
    def deaf() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("my last line")
        time.sleep(60)

    asked: list[float] = []

    def stops(state: tenacity.RetryCallState) -> bool:
        asked.append(state.seconds_since_start or 0.0)
        raise AssertionError(f"asked after {asked[0]:.1f} s")

    future = cluster.options(task_timeout=0.3, retry=0).submit(deaf)
    assert isinstance(future.exception(60), errors.TaskTimeoutError)
    assert future.stdout == "my last line\n"

    policy = tenacity.Retrying(stop=tenacity.stop_after_attempt(1))
    future = cluster.options(task_timeout=0.3, retry=policy).submit(deaf)
    error = future.exception(60)
    assert isinstance(error, errors.TaskTimeoutError)
    assert "my last line" in str(error)
    assert future.stdout == "my last line\n"

    policy = tenacity.Retrying(stop=stops)
    error = cluster.options(task_timeout=0.3, retry=policy).submit(deaf).exception(60)
    asked_after_s = float(str(error).partition("asked after ")[2].partition(" s")[0])
    assert asked_after_s >= 0.3
