"""What the system says of processes that it killed because memory was short.

Linux counts such kills per control group, where a container's limit strikes, and for the
whole host. Elsewhere there is nothing to read, and zeros are returned.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_VMSTAT = Path("/proc/vmstat")
_COUNT = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


def oom_kills() -> int:
    """How often the out-of-memory killer has struck in this process's control group (so
    that other containers of the host do not count), else on the whole host."""
    for folder in _folders():
        for name in ("memory.events", "memory.oom_control"):  # cgroup v2, v1
            if (found := _COUNT.search(_text(folder / name))) is not None:
                return int(found[1])
    found = _COUNT.search(_text(_VMSTAT))
    return int(found[1]) if found is not None else 0


def memory_limit() -> int:
    """Bytes that this process's control group may use; 0 when it may use all there is."""
    limits = [_host_bytes()]
    for folder in _folders():
        for level in (folder, *folder.parents):
            if _CGROUPS not in (level, *level.parents):
                break
            for name in ("memory.max", "memory.limit_in_bytes"):
                text = _text(level / name).strip()
                if text.isdigit():
                    limits.append(int(text))
    least = min(limits)
    return least if least < limits[0] else 0


def _folders() -> Iterator[Path]:
    """Where this process's control group may be mounted: it is not always told."""
    for line in _text(_MEMBERSHIP).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            mounts = [_CGROUPS / "memory"]
        elif not controllers:
            mounts = [_CGROUPS, _CGROUPS / "unified"]
        else:
            continue
        for mount in mounts:
            yield mount / path.lstrip("/")
            yield mount  # inside a container the path may be that of the host


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _host_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return 2**63
