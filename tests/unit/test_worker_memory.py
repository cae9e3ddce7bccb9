"""What the daemon reads of the system to keep its tasks' memory limits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nbsched.worker import memory
from nbsched.worker.memory import MemoryWatch

MIB = 1 << 20


class Host:
    """Processes in files like the system's, a clock that stands, and what was read."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.now = 100.0
        self.read: list[str] = []
        self.watch = MemoryWatch(folder, lambda: self.now)
        read = memory._read

        def noting(path: str) -> bytes:
            self.read.append(os.path.relpath(path, folder))
            return read(path)

        monkeypatch.setattr(memory, "_read", noting)

    def process(self, pid: int, parent: int, mib: int, share_mib: int | None = None) -> None:
        place = self.folder / str(pid)
        place.mkdir(exist_ok=True)
        (place / "stat").write_text(f"{pid} (a) b (c) S {parent} 1 1 0 -1")
        (place / "status").write_text(f"Name: x\nRssAnon:\t{mib * 1024} kB\nVmSwap:\t0 kB\n")
        if share_mib is not None:
            (place / "smaps_rollup").write_text(f"x\nPss_Anon:  {share_mib * 1024} kB\n")

    def used_mib(self, kernel: int, limit_mib: int = 1000) -> int:
        self.read.clear()
        return self.watch.used_bytes(kernel, limit_mib * MIB) // MIB


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_between_two_looks_a_question_costs_one_file_and_tells_the_kernels_growth(
    host: Host,
) -> None:
    host.process(10, 1, 50)
    host.process(11, 10, 30)
    assert host.used_mib(10) == 80
    host.process(10, 1, 60)
    host.now += 0.45
    assert host.used_mib(10) == 60
    assert host.read == ["10/status"]
    host.now += 0.1
    assert host.used_mib(10) == 90


def test_one_look_at_the_processes_is_for_all_kernels(host: Host) -> None:
    for kernel in (10, 20, 30):
        host.process(kernel, 1, 50)
        host.process(kernel + 1, kernel, 5)
        host.process(kernel + 2, kernel + 1, 1)
    for _ in range(2):
        read: list[str] = []
        for kernel in (10, 20, 30):
            assert host.used_mib(kernel) == 56
            read += host.read
        assert sorted(path for path in read if path.endswith("/stat")) == sorted(
            f"{pid + more}/stat" for pid in (10, 20, 30) for more in range(3)
        )
        host.now += 0.6


def test_looking_takes_a_twentieth_of_the_time_at_most(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.process(10, 1, 50)
    pids = memory._pids

    def slowly(proc: str) -> list[int]:
        host.now += 0.2
        return pids(proc)

    monkeypatch.setattr(memory, "_pids", slowly)
    host.used_mib(10)
    host.now += 3.7
    host.used_mib(10)
    assert host.read == ["10/status"]
    host.now += 0.2
    host.used_mib(10)
    assert "10/stat" in host.read


def test_beyond_the_limit_pages_that_a_family_shares_count_once(host: Host) -> None:
    host.process(10, 1, 600, share_mib=320)
    host.process(11, 10, 600, share_mib=320)
    assert host.used_mib(10) == 640


def test_a_kernel_beyond_its_limit_by_itself_is_found_at_every_question(host: Host) -> None:
    host.process(10, 1, 900)
    assert host.used_mib(10) == 900
    host.process(10, 1, 1001)
    assert host.used_mib(10) == 1001


def test_a_process_that_is_gone_occupies_nothing(host: Host) -> None:
    assert host.used_mib(10) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not say")
def test_a_real_childs_memory_counts() -> None:
    code = f"held = b'x' * {100 * MIB}; print('held', flush=True); input()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        alone = MemoryWatch().used_bytes(child.pid, 1 << 50)
        assert alone >= 100 * MIB
        assert MemoryWatch().used_bytes(os.getpid(), 1 << 50) > alone
        child.communicate(b"\n", timeout=20)
