"""How much memory the host has and uses, for reports. Reads at most once a second."""

from __future__ import annotations

import time

_EVERY_S = 1.0

_last = (float("-inf"), (0, 0))


def host_memory() -> tuple[int, int]:
    """Bytes in use and bytes in all; zeros where the system does not say (not Linux)."""
    global _last
    now = time.monotonic()
    if now - _last[0] >= _EVERY_S:
        _last = (now, _read())
    return _last[1]


def _read() -> tuple[int, int]:
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            sizes = {line.split(":")[0]: line.split()[1] for line in lines}
        total = int(sizes["MemTotal"]) * 1024
        return total - int(sizes["MemAvailable"]) * 1024, total
    except (OSError, LookupError, ValueError):
        return 0, 0
