"""What tasks print finds its way to their futures, with real servers and kernels."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from nbsched import Cluster, LocalCluster, MapFuture
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
    assert future.stdout.startswith("last words\n")  # behind it, what a segfault says


def test_cancel_keeps_what_was_printed(cluster: LocalCluster, tmp_path: Path) -> None:
    begun = tmp_path / "begun"

    def linger() -> None:
        print("so far")
        begun.touch()
        time.sleep(60)

    mf = cluster.map(lambda _: linger(), [0])
    until(begun.exists)
    assert mf[0].cancel()
    mf.wait(60)
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

    future = cluster.submit(flood)
    grown_kib = future.result(60)
    assert grown_kib < 50 * 1024
    text = future.stdout
    assert text.startswith("first\n")
    assert text.endswith("last\n")
    assert "characters left out" in text
    assert len(text) < 70_000


# ---------------------------------------------------------------- past Python's streams


def test_what_programs_print_is_the_tasks_own(cluster: LocalCluster) -> None:
    def ask(i: int) -> int:
        print("python", i)
        subprocess.run(["sh", "-c", f"echo program {i}; echo to stderr {i} >&2"], check=True)
        os.write(1, f"descriptor {i}\n".encode())
        return i

    mf = cluster.map(ask, range(40))
    assert mf.result() == list(range(40))
    said = [sorted(mf[i].stdout.splitlines()) for i in range(1, 40)]
    assert said == [
        sorted([f"python {i}", f"program {i}", f"to stderr {i}", f"descriptor {i}"])
        for i in range(1, 40)
    ]


def test_a_forked_childs_output_is_its_tasks(cluster: LocalCluster) -> None:
    def fork() -> int:
        print("parent")
        pid = os.fork()
        if pid == 0:
            print("child")
            os._exit(0)
        return os.waitpid(pid, 0)[1]

    future = cluster.submit(fork)
    assert future.result() == 0
    assert future.stdout == "parent\nchild\n"


def test_a_large_result_has_its_text_beside_it(cluster: LocalCluster) -> None:
    def much() -> bytes:
        print("large")
        return bytes(8 * 1024 * 1024)

    future = cluster.submit(much)
    assert len(future.result()) == 8 * 1024 * 1024
    assert future.stdout == "large\n"


# ---------------------------------------------------------------- while it runs


def test_text_can_be_read_while_the_task_runs(cluster: LocalCluster, tmp_path: Path) -> None:
    go_on = tmp_path / "go on"

    def speak() -> None:
        print("out", flush=True)
        print("err", file=sys.stderr)
        os.write(1, b"native\n")
        while not go_on.exists():
            time.sleep(0.01)
        print("done")

    mf = cluster.map(lambda _: speak(), [0])
    future = mf[0]
    until(lambda: future.stdout == "out\nnative\n")
    assert future.stderr == "err\n"
    assert sorted(mf.tail().splitlines()) == ["[0] err", "[0] native", "[0] out"]
    assert sorted(mf.tasks.rows("running")[0].output.splitlines()) == ["err", "native", "out"]
    again = cluster.attach(mf.id)
    assert isinstance(again, MapFuture)
    assert not future.done()
    go_on.touch()
    mf.wait(60)
    assert future.stdout == "out\ndone\nnative\n"
    assert mf.tail(1) == "[0] done"


def test_another_client_sees_it_too(cluster: LocalCluster, tmp_path: Path) -> None:
    begin, go_on = tmp_path / "begin", tmp_path / "go on"

    def speak() -> None:
        while not begin.exists():
            time.sleep(0.01)
        print("before")
        while not go_on.exists():
            time.sleep(0.01)
            print(".", end="")

    mf = cluster.map(lambda _: speak(), [0])
    with Cluster(**msgspec.structs.asdict(cluster.settings)) as other:
        attached = other.attach(mf.id)
        assert isinstance(attached, MapFuture)
        begin.touch()  # who attaches later has what is printed from then on, until the end
        until(lambda: "before" in attached.tail() and attached.tail().endswith("."))
        go_on.touch()
        attached.wait(60)
        mf.wait(60)  # it may have been told later
        assert attached[0].stdout.startswith("before\n.")
        assert attached[0].stdout == mf[0].stdout


def test_every_attempt_is_in_the_tail(cluster: LocalCluster) -> None:
    def twice(_: int) -> None:
        print("again")
        raise ValueError

    mf = cluster.map(twice, [0], retry=2)
    mf.wait()
    assert mf.tail() == "[0] again\n[0] again\n[0] again"
    assert mf[0].stdout == "again\n"
    assert mf.tail(0) == ""


def test_streamed_output_has_every_line_once(
    cluster: LocalCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    def speak(i: int) -> int:
        for part in range(3):
            print("part", part)
            time.sleep(0.15)
        print("error", file=sys.stderr)
        return i

    mf = cluster.map(speak, range(6), stream_output=True, progress="off")
    assert mf.result() == list(range(6))
    printed = capsys.readouterr()
    wanted = [f"[{i}] part {part}" for i in range(6) for part in range(3)]
    assert sorted(printed.out.splitlines()) == wanted
    assert sorted(printed.err.splitlines()) == [f"[{i}] error" for i in range(6)]


def test_a_single_call_streams_too(
    cluster: LocalCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cluster.options(stream_output=True).submit(print, "hello").result() is None
    assert capsys.readouterr().out == "[0] hello\n"


def test_a_streamed_job_that_runs_again_prints_again(
    cluster: LocalCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    mf = cluster.map(print, ["once"], stream_output=True, progress="off")
    mf.wait()
    assert mf[0].retry()
    mf.wait()
    assert capsys.readouterr().out == "[0] once\n" * 2


def test_following_prints_until_the_end(
    cluster: LocalCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    def speak(i: int) -> None:
        time.sleep(0.3)
        print("task")

    mf = cluster.map(speak, range(4))
    mf.tail(follow=True)
    assert mf.done()
    assert sorted(capsys.readouterr().out.splitlines()) == [f"[{i}] task" for i in range(4)]


def test_following_a_map_that_is_uploaded_on_demand_ends(
    cluster: LocalCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    mf = cluster.map(print, range(30), buffersize=2)
    mf.tail(30, follow=True)
    assert sorted(capsys.readouterr().out.splitlines()) == sorted(f"[{i}] {i}" for i in range(30))


def test_a_streamed_flood_is_cut(cluster: LocalCluster, capsys: pytest.CaptureFixture[str]) -> None:
    def flood() -> None:
        for i in range(200_000):
            print("line", i)

    cluster.options(stream_output=True).submit(flood).result()
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "[0] line 199999"
    assert any("left out" in line for line in printed)
    assert len(printed) < 5000
