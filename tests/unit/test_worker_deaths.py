"""What a kernel died of: the system's counters, and the words made of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbsched.attempts import PastAttempt, attempts_text, with_attempt
from nbsched.worker import oomkills
from nbsched.worker.deaths import Death

MIB = 1 << 20


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host whose counters are files here; the other kills on it are none of ours."""
    (tmp_path / "vmstat").write_text("pgfault 12\noom_kill 40\n")
    for name, file in (("_CGROUPS", "cg"), ("_MEMBERSHIP", "membership"), ("_VMSTAT", "vmstat")):
        monkeypatch.setattr(oomkills, name, tmp_path / file)
    monkeypatch.setattr(oomkills, "_host_bytes", lambda: 8000 * MIB)
    return tmp_path


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_kills_and_limit_are_those_of_the_own_group_in_cgroup_v2(system: Path) -> None:
    _write(system / "membership", "0::/pod/worker\n")
    events = system / "cg/pod/worker/memory.events"
    _write(events, "low 0\nmax 9\noom 3\noom_kill 2\noom_group_kill 0\n")
    _write(system / "cg/pod/worker/memory.max", "max\n")
    _write(system / "cg/pod/memory.max", f"{512 * MIB}\n")
    assert oomkills.oom_kills() == 2
    assert oomkills.memory_limit() == 512 * MIB


def test_kills_and_limit_are_those_of_the_own_group_in_cgroup_v1(system: Path) -> None:
    _write(system / "membership", "4:memory:/docker/x\n3:cpu:/y\n0::/\n")
    # The container sees its own group at the root, and is told the host's path.
    _write(system / "cg/memory/memory.oom_control", "oom_kill_disable 0\noom_kill 5\n")
    _write(system / "cg/memory/memory.limit_in_bytes", f"{300 * MIB}\n")
    assert oomkills.oom_kills() == 5
    assert oomkills.memory_limit() == 300 * MIB


def test_without_a_group_the_host_counts_and_there_is_no_limit(system: Path) -> None:
    assert oomkills.oom_kills() == 40
    (system / "vmstat").unlink()
    assert oomkills.oom_kills() == 0
    assert oomkills.memory_limit() == 0


def test_a_limit_beyond_the_hosts_memory_is_none(system: Path) -> None:
    _write(system / "membership", "4:memory:/\n")
    _write(system / "cg/memory/memory.limit_in_bytes", f"{2**63 - 4096}\n")
    assert oomkills.memory_limit() == 0


def test_running_out_of_memory_is_said_with_peak_and_limit() -> None:
    death = Death(-9, "", True, peak_bytes=1900 * MIB, memory_limit=2048 * MIB)
    report = death.report(4, "w", 1, 3)
    assert report.details["cause"] == "out of memory (signal SIGKILL)"
    assert report.details["peak_bytes"] == 1900 * MIB
    assert "peak memory was 1.9 GiB; the worker and its kernels may use 2.0 GiB" in report.message


def test_a_sigkill_without_a_trace_is_not_called_out_of_memory() -> None:
    message = Death(-9, "", peak_bytes=80 * MIB, peak_is_bound=True).report(4, "w", 1, 3).message
    assert "signal SIGKILL" in message
    assert "peak memory was under 80 MiB" in message
    assert "out of memory" not in message


def test_attempts_are_listed_from_the_second_on_and_are_bounded() -> None:
    past = with_attempt((), "w1", "signal SIGSEGV", 1.0)
    assert attempts_text(past) == ""
    for number in range(30):
        past = with_attempt(past, "w2", f"ValueError: {number}\nmore " + "x" * 500, 2.0 + number)
    assert len(past) == 20
    assert past[-1] == PastAttempt("w2", ("ValueError: 29\nmore " + "x" * 500)[:200], 31.0)
    lines = attempts_text(past).splitlines()
    assert len(lines) == 22
    assert lines[-1].endswith("on w2: ValueError: 29")
