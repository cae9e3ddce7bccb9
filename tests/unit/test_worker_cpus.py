"""How many CPUs a worker may use."""

from __future__ import annotations

import os
from pathlib import Path

from nbsched.worker.cpus import cgroup_quota, usable_cpus


def own(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "own"
    path.write_text(text)
    return path


def test_a_quota_of_cgroup_v2_counts_also_when_a_parent_has_it(tmp_path: Path) -> None:
    group = tmp_path / "a" / "b"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text("max 100000\n")
    (tmp_path / "a" / "cpu.max").write_text("150000 100000\n")
    assert cgroup_quota(tmp_path, own(tmp_path, "0::/a/b\n")) == 1.5


def test_a_quota_of_cgroup_v1_counts(tmp_path: Path) -> None:
    group = tmp_path / "cpu" / "docker"
    group.mkdir(parents=True)
    (group / "cpu.cfs_quota_us").write_text("300000\n")
    (group / "cpu.cfs_period_us").write_text("100000\n")
    text = "4:memory:/docker\n3:cpu,cpuacct:/docker\n"
    assert cgroup_quota(tmp_path, own(tmp_path, text)) == 3.0


def test_no_quota_is_no_limit(tmp_path: Path) -> None:
    group = tmp_path / "cpu"
    group.mkdir()
    (group / "cpu.cfs_quota_us").write_text("-1\n")
    (group / "cpu.cfs_period_us").write_text("100000\n")
    assert cgroup_quota(tmp_path, own(tmp_path, "3:cpu:/\n")) is None
    assert cgroup_quota(tmp_path, tmp_path / "missing") is None


def test_usable_cpus_are_at_least_one_and_at_most_what_there_is() -> None:
    assert 1 <= usable_cpus() <= (os.cpu_count() or 1)
