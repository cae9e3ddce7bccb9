"""How tasks end: exceptions, crashes, timeouts, retries, cancels."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
import tenacity

from nbsched import LocalCluster, errors
from nbsched.errors import RemoteTraceback
from support.conditions import until

QUICK = tenacity.wait_exponential(multiplier=0.01, max=0.05)


def test_an_exception_arrives_as_itself_with_its_source_lines(cluster: LocalCluster) -> None:
    def divide(x: int) -> float:
        return 1 / x  # the line that fails

    with pytest.raises(ZeroDivisionError) as caught:
        cluster.submit(divide, 0).result(60)
    remote = caught.value.__cause__
    assert isinstance(remote, RemoteTraceback)
    assert "the line that fails" in str(remote)


def test_one_failure_leaves_the_other_results(cluster: LocalCluster) -> None:
    mf = cluster.map(lambda x: 1 // x, [1, 0, 2])
    mf.wait(60)
    assert mf[0].result(60) == 1
    assert [future.index for future in mf.failures()] == [1]
    with pytest.raises(ZeroDivisionError):
        mf.result(60)
    kept = cluster.map(lambda x: 1 // x, [1, 0, 2], return_exceptions=True).result(60)
    assert [type(each) for each in kept] == [int, ZeroDivisionError, int]


def test_a_package_that_a_task_imports_and_its_worker_lacks_is_named_with_the_worker(
    cluster: LocalCluster,
) -> None:
    def lacking() -> None:
        import surely_missing_module.inner  # type: ignore[import-not-found]  # noqa: F401

    error = cluster.submit(lacking).exception()
    assert isinstance(error, ModuleNotFoundError)
    named = [f"'surely_missing_module' is missing on worker {w.id}" for w in cluster.workers()]
    assert any(text in error.__notes__[0] for text in named)
    assert error.__notes__[0] in str(error.__cause__)


# ---------------------------------------------------------------- tasks that misbehave


def test_an_exception_that_cannot_print_itself(cluster: LocalCluster) -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    def fail() -> None:
        raise MuteError

    assert type(cluster.submit(fail).exception(60)).__name__ == "MuteError"


def test_results_and_exceptions_that_cannot_be_pickled(cluster: LocalCluster) -> None:
    def lock() -> object:
        import threading

        return threading.Lock()

    def fail() -> None:
        import threading

        raise ValueError(threading.Lock())

    with pytest.raises(errors.ResultNotPicklableError, match="lock"):
        cluster.submit(lock).result(60)
    with pytest.raises(errors.ResultNotPicklableError, match="ValueError"):
        cluster.submit(fail).result(60)


def test_sys_exit_is_an_error_of_its_task(cluster: LocalCluster) -> None:
    with pytest.raises(errors.TaskCrashedError, match=r"sys\.exit"):
        cluster.submit(sys.exit, 3).result(60)


def test_a_poison_task_fails_and_its_neighbours_do_not(cluster: LocalCluster) -> None:
    def poison(x: int) -> int:
        if x == 5:
            os._exit(7)
        return x

    mf = cluster.map(poison, range(10), max_crashes=2, return_exceptions=True)
    results = mf.result(30)
    error = results.pop(5)
    assert isinstance(error, errors.TaskCrashedError)
    assert "exit code 7" in str(error)
    assert results == [0, 1, 2, 3, 4, 6, 7, 8, 9]


def test_a_task_that_forks_gives_one_result(cluster: LocalCluster) -> None:
    def fork() -> str:
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
        return "parent" if pid else "child"

    assert [*cluster.map(lambda _: fork(), range(4))] == ["parent"] * 4


def test_a_result_over_the_limit_is_an_error_of_its_task() -> None:
    with LocalCluster(workers=1, cpus=1, max_result_bytes=10_000) as small:
        with pytest.raises(errors.ResultTooLargeError, match=r"10,?000"):
            small.submit(bytes, 20_000).result(60)
        assert len(small.submit(bytes, 5_000).result(60)) == 5_000


def test_a_policy_that_gives_up_leaves_the_tasks_own_exception(cluster: LocalCluster) -> None:
    policy = tenacity.Retrying(stop=tenacity.stop_after_attempt(2), wait=QUICK)
    error = cluster.options(retry=policy).submit(divmod, 1, 0).exception(60)
    assert isinstance(error, ZeroDivisionError)
    policy = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(2),
        wait=QUICK,
        retry_error_callback=lambda state: f"given up after {state.attempt_number}",
    )
    assert cluster.options(retry=policy).submit(divmod, 1, 0).result(60) == "given up after 2"


def test_a_task_timeout_stops_the_task(cluster: LocalCluster) -> None:
    started = time.monotonic()
    future = cluster.options(task_timeout=0.3).submit(time.sleep, 60)
    with pytest.raises(errors.TaskTimeoutError):
        future.result(60)
    assert time.monotonic() - started < 15


# ---------------------------------------------------------------- retries


def _flaky(folder: str, fails: int, kind: type[Exception]) -> int:
    """Fails so many times, then returns the number of runs."""
    with open(Path(folder) / "runs", "a+") as file:
        file.write("x")
        runs = file.tell()
    if runs <= fails:
        raise kind(f"run {runs}")
    return runs


def _policy() -> tenacity.Retrying:
    return tenacity.Retrying(
        stop=tenacity.stop_after_attempt(5),
        wait=QUICK,
        retry=tenacity.retry_if_exception_type(OSError),
    )


def test_a_policy_retries_until_the_task_succeeds(cluster: LocalCluster, tmp_path: Path) -> None:
    future = cluster.options(retry=_policy()).submit(_flaky, str(tmp_path), 2, OSError)
    assert future.result(60) == 3


def test_a_policy_does_not_retry_what_it_does_not_name(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    future = cluster.options(retry=_policy()).submit(_flaky, str(tmp_path), 2, ValueError)
    with pytest.raises(ValueError, match="run 1"):
        future.result(60)
    assert (tmp_path / "runs").read_text() == "x"
    assert future.retry()  # by hand: runs again, in the same future
    with pytest.raises(ValueError, match="run 2"):
        future.result(60)
    assert future.retry()
    assert future.result(60) == 3


def test_a_number_of_retries(cluster: LocalCluster, tmp_path: Path) -> None:
    assert cluster.options(retry=2).submit(_flaky, str(tmp_path), 2, OSError).result(60) == 3
    (tmp_path / "runs").unlink()
    with pytest.raises(OSError, match="run 2"):
        cluster.options(retry=1).submit(_flaky, str(tmp_path), 2, OSError).result(60)


def test_a_map_retries_what_failed_and_nothing_else(cluster: LocalCluster, tmp_path: Path) -> None:
    def task(x: int) -> int:
        with open(tmp_path / str(x), "a+") as file:
            file.write("x")
            runs = file.tell()
        if x % 2 and runs == 1:
            raise OSError(x)
        return x

    mf = cluster.map(task, range(6))
    mf.wait(60)
    assert len(mf.failures()) == 3
    assert mf.retry() == 3
    assert mf.result(60) == [0, 1, 2, 3, 4, 5]
    assert [len((tmp_path / str(x)).read_text()) for x in range(6)] == [1, 2, 1, 2, 1, 2]


# ---------------------------------------------------------------- cancel


def _spin() -> None:
    while True:
        pass


@pytest.mark.parametrize("stuck", [lambda: time.sleep(60), _spin], ids=["sleep", "loop"])
def test_cancel_stops_running_code_and_frees_its_slot(cluster: LocalCluster, stuck: object) -> None:
    futures = [cluster.submit(stuck) for _ in range(2)]  # type: ignore[arg-type]
    until(lambda: all(future.running() for future in futures), what="both run")
    asked = time.monotonic()
    assert all(future.cancel() for future in futures)
    assert cluster.submit(abs, -1).result(60) == 1
    assert time.monotonic() - asked < 10
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(60)
        assert future.cancelled()
        assert not future.cancel()


def test_cancelled_queued_tasks_never_run(cluster: LocalCluster, tmp_path: Path) -> None:
    def task(x: int) -> None:
        (tmp_path / str(x)).touch()
        time.sleep(60)

    mf = cluster.map(task, range(100))
    until(lambda: len(list(tmp_path.iterdir())) == 2, what="two run")
    assert mf.cancel()
    assert mf.wait(60)
    assert mf.cancelled()
    assert mf.progress.cancelled == 100
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(CancelledError):
        mf.result(60)


def test_a_cancelled_task_can_be_retried(cluster: LocalCluster, tmp_path: Path) -> None:
    def task() -> str:
        if not (tmp_path / "second").exists():
            (tmp_path / "second").touch()
            time.sleep(60)
        return "done"

    future = cluster.submit(task)
    until(future.running)
    future.cancel()
    with pytest.raises(CancelledError):
        future.result(60)
    assert future.retry()
    assert future.result(60) == "done"


def test_ctrl_c_cancels_the_job_says_so_and_leaves_the_client_usable(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import time\n"
        "from nbsched import LocalCluster\n"
        "with LocalCluster(cpus=1) as cluster:\n"
        "    mf = cluster.map(time.sleep, [60] * 3)\n"
        "    print('waiting', flush=True)\n"
        "    try:\n"
        "        mf.result()\n"
        "    except KeyboardInterrupt:\n"
        "        mf.wait(60)\n"
        "        print(mf.cancelled(), cluster.submit(abs, -3).result(60), flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    # As a terminal does: the whole process group gets the signal.
    until(lambda: _waits(process.pid), what="the script waits")
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert out == "True 3\n", err
    assert "is cancelled" in err


def _waits(pid: int) -> bool:
    """The main thread sleeps in a lock."""
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state == "S"


def test_a_failed_task_of_an_attached_job_names_its_item(cluster: LocalCluster) -> None:
    def no(word: str, number: int) -> None:
        raise ValueError(word)

    mf = cluster.map(no, iter(["a", "b"]), iter([1, 2]))
    mf.wait(60)

    rows = cluster.attach(mf.id).tasks.rows("failed")

    assert [row.item for row in rows] == ["('a', 1)", "('b', 2)"]


def test_an_item_that_cannot_say_what_it_is_spoils_no_failure(cluster: LocalCluster) -> None:
    class Mute:
        def __repr__(self) -> str:
            raise RuntimeError("no repr")

    def no(item: object) -> None:
        raise ValueError("no")

    mf = cluster.map(no, [Mute()])
    mf.wait(60)

    (row,) = cluster.attach(mf.id).tasks.rows("failed")

    assert row.error == "ValueError: no"
    assert row.item.startswith("<Mute")
