"""`memory=`: a task that needs more than it may is stopped, and its neighbours are not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nbsched import LocalCluster, errors
from nbsched.errors import RemoteTraceback
from support.conditions import alive, until

MIB = 1 << 20
LIMIT = 400 * MIB


def fill(mib: int) -> list[bytes]:
    """Touched memory, a little at a time, so that the backstop does not strike first."""
    held = []
    for _ in range(mib // 4):
        held.append(b"x" * (4 * MIB))
        time.sleep(0.002)
    return held


def test_a_task_beyond_its_limit_fails_with_what_there_is_to_know(cluster: LocalCluster) -> None:
    def greedy(_: int) -> int:
        print("filling")
        held = fill(750)
        time.sleep(60)
        return len(held)

    error = cluster.options(memory="400 MiB").submit(greedy, 0).exception(60)
    assert isinstance(error, errors.TaskMemoryError)
    assert isinstance(error, MemoryError)
    assert error.index == 0
    assert error.details["limit_bytes"] == LIMIT
    used = error.details["used_bytes"]
    assert isinstance(used, int)
    assert used > LIMIT
    assert error.details["worker"] == cluster.workers()[0].id
    assert [past.cause for past in error.history] == ["memory limit"]
    for text in ("Task 0", "400 MiB", cluster.workers()[0].id, "memory=", "  filling"):
        assert text in str(error)
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "in greedy" in str(error.__cause__)


def test_neighbours_in_the_batch_have_their_results(cluster: LocalCluster) -> None:
    def greedy(index: int) -> int:
        if index == 7:
            fill(700)
        return index

    mf = cluster.map(greedy, range(40), memory=LIMIT, chunksize=20, return_exceptions=True)
    results = mf.result(60)
    assert isinstance(results[7], errors.TaskMemoryError)
    assert results[:7] + results[8:] == [*range(7), *range(8, 40)]
    assert all(mf[i].exception(1) is None for i in range(40) if i != 7)


def test_a_sudden_allocation_is_refused_at_its_line(cluster: LocalCluster) -> None:
    def sudden(size: int) -> int:
        return len(bytearray(size))  # here

    future = cluster.options(memory="400MiB").submit(sudden, 20_000 * MIB)
    error = future.exception(60)
    assert isinstance(error, errors.TaskMemoryError)
    assert error.details["used_bytes"] is None
    assert "refused" in str(error)
    assert "# here" in str(error.__cause__)


def test_a_task_may_handle_the_refusal_itself(cluster: LocalCluster) -> None:
    def careful() -> str:
        try:
            return str(len(bytearray(20_000 * MIB)))
        except MemoryError:
            return "in smaller steps"

    assert cluster.options(memory=LIMIT).submit(careful).result(60) == "in smaller steps"


def test_without_a_limit_nothing_is_refused_in_the_same_kernel(cluster: LocalCluster) -> None:
    def untouched() -> int:
        import mmap

        with mmap.mmap(-1, 3000 * MIB, flags=mmap.MAP_PRIVATE) as area:
            return len(area)

    limited = cluster.map(lambda x: x, range(4), memory=LIMIT)
    assert limited.result(30) == [0, 1, 2, 3]
    assert cluster.map(lambda _: untouched(), range(4)).result(30) == [3000 * MIB] * 4


def test_a_task_that_swallows_the_interrupt_is_killed(cluster: LocalCluster) -> None:
    def stubborn() -> None:
        held: list[list[bytes]] = []
        while len(held) < 2:
            try:
                held.append(fill(600))
                time.sleep(60)
            except KeyboardInterrupt:
                held.append(fill(4))
                held.pop()

    error = cluster.options(memory=LIMIT).submit(stubborn).exception(60)
    assert isinstance(error, errors.TaskMemoryError)
    assert error.details["cause"] == "memory limit"


def test_what_its_children_occupy_counts(cluster: LocalCluster) -> None:
    code = f"import time; held = b'x' * {600 * MIB}; time.sleep(60)"

    def parent() -> int:
        return subprocess.run([sys.executable, "-c", code]).returncode

    error = cluster.options(memory=LIMIT).submit(parent).exception(60)
    assert isinstance(error, errors.TaskMemoryError)


def test_pages_that_forked_children_share_count_once(cluster: LocalCluster) -> None:
    def family() -> str:
        held = b"x" * (250 * MIB)
        children = []
        for _ in range(4):
            pid = os.fork()
            if pid == 0:
                time.sleep(1.5)
                os._exit(len(held) % 2)
            children.append(pid)
        for pid in children:
            os.waitpid(pid, 0)
        return "in peace"

    assert cluster.options(memory=LIMIT).submit(family).result(60) == "in peace"


def test_it_is_no_crash_but_the_users_retry_counts(cluster: LocalCluster, tmp_path: Path) -> None:
    def greedy(name: str) -> str:
        with open(tmp_path / name, "a") as file:
            file.write("x")
        if (tmp_path / name).stat().st_size < 3:
            fill(700)
        return "at last"

    once = cluster.options(memory=LIMIT, max_crashes=9).submit(greedy, "once")
    assert isinstance(once.exception(60), errors.TaskMemoryError)
    assert (tmp_path / "once").stat().st_size == 1
    again = cluster.options(memory=LIMIT, retry=2, max_crashes=1).submit(greedy, "again")
    assert again.result(60) == "at last"


def test_a_kernel_is_replaced_that_keeps_what_a_stopped_task_has_left_behind(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    def leave() -> None:
        import builtins

        (tmp_path / "pid").write_text(f"{os.getpid()}.")
        builtins.kept = []  # type: ignore[attr-defined]
        while True:
            builtins.kept.append(b"x" * (4 * MIB))  # type: ignore[attr-defined]
            time.sleep(0.002)

    error = cluster.options(memory=LIMIT).submit(leave).exception(60)
    assert isinstance(error, errors.TaskMemoryError)
    pid = int((tmp_path / "pid").read_text()[:-1])
    until(lambda: not alive(pid), what="the end of that kernel")
    assert cluster.map(lambda x: x, range(100), memory=LIMIT).result(60) == list(range(100))


@pytest.mark.parametrize("size", ["", "2 GiBs", "-1", 0, -5, 1.5, True, "x GB", [1]])
def test_a_limit_that_is_no_size_is_refused_at_once(cluster: LocalCluster, size: object) -> None:
    with pytest.raises(errors.ConfigurationError, match="memory="):
        cluster.options(memory=size)
