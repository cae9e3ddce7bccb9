"""Waiting for conditions with a deadline, instead of sleeping and hoping."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

DEADLINE_S = 60.0
"""Longer than any condition needs, on a machine that does other things besides."""


def until(condition: Callable[[], T], timeout_s: float = DEADLINE_S, what: str = "") -> T:
    """The first truthy value of ``condition``; AssertionError when the time is over."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what or condition} did not come true within {timeout_s} s")
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    return _state(pid) not in ("Z", "X")


def stopped(pid: int) -> bool:
    """Whether all its threads stand still, or it has ended: SIGSTOP takes a moment, in which
    it may still answer."""
    return all(_state(f"{pid}/task/{thread}") in "TZX" for thread in _threads(pid))


def _threads(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []


def _state(process: object) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def children(pid: int) -> list[int]:
    """The processes that a process has started and that still run."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(entry))
    return found
