"""What tasks print finds its way to their futures, with real servers and kernels."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbsched import LocalCluster
from nbsched.errors import TaskCrashedError
from support.conditions import until


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(workers=1, cpus=2) as found:
        yield found


def test_prints_of_short_tasks_each_find_their_task(cluster: LocalCluster) -> None:
    def speak(i: int) -> int:
        if i % 3:
            print("task", i)
        return i

    mf = cluster.map(speak, range(2000))
    assert mf.result() == list(range(2000))
    said = [mf[i].stdout for i in range(2000)]
    assert said == [f"task {i}\n" if i % 3 else "" for i in range(2000)]


def test_stdout_and_stderr_are_kept_apart(cluster: LocalCluster) -> None:
    def both() -> list[int]:
        print("out")
        print("err", file=sys.stderr)
        sys.stdout.buffer.write("bytes ✓\n".encode())
        return [1]

    future = cluster.submit(both)
    assert future.result() == [1]
    assert (future.stdout, future.stderr) == ("out\nbytes ✓\n", "err\n")


def test_a_task_that_fails_has_its_output_too(cluster: LocalCluster) -> None:
    def fail() -> None:
        print("before")
        raise ValueError("no")

    future = cluster.submit(fail)
    assert isinstance(future.exception(), ValueError)
    assert future.stdout == "before\n"


def test_logging_and_warnings_come_with_stderr(cluster: LocalCluster) -> None:
    def warn() -> None:
        logging.getLogger("user").warning("logged")
        warnings.warn("warned", UserWarning, stacklevel=1)

    future = cluster.submit(warn)
    future.result()
    assert future.stderr.startswith("logged\n")
    assert "UserWarning: warned" in future.stderr


def test_threads_print_to_the_task_that_runs(cluster: LocalCluster) -> None:
    def work() -> None:
        threads = [threading.Thread(target=print, args=(f"thread {i}",)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    future = cluster.submit(work)
    future.result()
    assert all(f"thread {i}" in future.stdout for i in range(8))


@pytest.mark.parametrize("how", ["exit", "segfault"])
def test_a_crash_shows_the_last_lines(cluster: LocalCluster, how: str) -> None:
    def crash() -> None:
        print("last words")
        if how == "exit":
            os._exit(3)
        os.kill(os.getpid(), signal.SIGSEGV)

    future = cluster.options(max_crashes=1).submit(crash)
    error = future.exception()
    assert isinstance(error, TaskCrashedError)
    assert "last words" in error.details["tail"]
    assert future.stdout == "last words\n"


def test_cancel_keeps_what_was_printed(cluster: LocalCluster, tmp_path: Path) -> None:
    begun = tmp_path / "begun"

    def linger() -> None:
        print("so far")
        begun.touch()
        time.sleep(60)

    mf = cluster.map(lambda _: linger(), [0])
    until(begun.exists)
    assert mf[0].cancel()
    mf.wait(20)
    assert mf[0].cancelled()
    assert mf[0].stdout == "so far\n"


def test_a_task_that_ignores_its_cancellation_keeps_its_last_words(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"

    def deaf() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("so far")
        begun.touch()
        time.sleep(60)

    future = cluster.submit(deaf)
    until(begun.exists)
    assert future.cancel()
    until(future.cancelled)
    assert future.stdout == "so far\n"


def test_the_row_of_a_failed_task_shows_its_last_lines(cluster: LocalCluster) -> None:
    def fail(i: int) -> None:
        print("\n".join(f"line {n}" for n in range(100)))
        raise ValueError(i)

    mf = cluster.map(fail, [1])
    mf.wait()
    (row,) = mf.tasks.rows("failed")
    assert row.output.splitlines() == [f"line {n}" for n in range(90, 100)]


def test_retry_shows_the_new_attempt(cluster: LocalCluster) -> None:
    def when() -> None:
        print(time.time_ns())

    future = cluster.submit(when)
    future.result()
    first = future.stdout
    assert future.retry()
    future.result()
    assert future.stdout
    assert future.stdout != first


def test_a_flood_of_a_gigabyte_is_cut_to_its_ends(cluster: LocalCluster) -> None:
    def flood() -> int:
        def peak() -> int:
            with open("/proc/self/status") as status:
                return next(int(x.split()[1]) for x in status if x.startswith("VmHWM"))

        piece = "x" * (1024 * 1024 - 1) + "\n"
        before = peak()
        print("first")
        for _ in range(1024):
            sys.stdout.write(piece)
        print("last")
        return peak() - before

    began = time.monotonic()
    future = cluster.submit(flood)
    grown_kib = future.result(60)
    assert time.monotonic() - began < 10
    assert grown_kib < 50 * 1024
    text = future.stdout
    assert text.startswith("first\n")
    assert text.endswith("last\n")
    assert "characters left out" in text
    assert len(text) < 70_000
