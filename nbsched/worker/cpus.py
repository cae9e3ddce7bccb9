"""How many CPUs this process may use: its affinity and its cgroup's quota counted."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def usable_cpus() -> int:
    """At least 1. A container's limit of 1.5 CPUs counts as 2 slots."""
    allowed = _affinity()
    quota = cgroup_quota()
    return max(1, allowed if quota is None else min(allowed, math.ceil(quota)))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cgroup_quota(root: Path = _CGROUPS, own: Path = _OWN_CGROUPS) -> float | None:
    """CPUs that the cgroups (v2 or v1) of this process grant, or None without a limit."""
    limits = []
    for controllers, path in _own_paths(own):
        if controllers == "":
            limits += [_v2_quota(root / level) for level in _levels(path)]
        elif "cpu" in controllers.split(","):
            for mount in (root / "cpu", root / "cpu,cpuacct"):
                limits += [_v1_quota(mount / level) for level in _levels(path)]
    found = [limit for limit in limits if limit is not None]
    return min(found) if found else None


def _own_paths(own: Path) -> list[tuple[str, str]]:
    """``(controllers, path)`` of each hierarchy; controllers is '' in v2."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    fields = [line.split(":", 2) for line in lines]
    return [(field[1], field[2]) for field in fields if len(field) == 3]


def _levels(path: str) -> list[str]:
    """The cgroup and all above it: each may have a limit. In a container the path may
    name a place outside of what is mounted; then the root alone counts."""
    parts = [part for part in path.split("/") if part]
    return ["/".join(parts[:length]) for length in range(len(parts) + 1)]


def _v2_quota(group: Path) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _v1_quota(group: Path) -> float | None:
    try:
        quota = int((group / "cpu.cfs_quota_us").read_text())
        period = int((group / "cpu.cfs_period_us").read_text())
        return quota / period if quota > 0 and period > 0 else None
    except (OSError, ValueError):
        return None
