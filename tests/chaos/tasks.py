"""What the jobs of a schedule run. Every start, tick and end goes into a diary.

A task is told what to do by its item: its index, a kind, and how long it takes.
Runs in kernels: standard library only.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from typing import NamedTuple

from chaos.diary import Diary

TICK_S = 0.03
SLOWER = 100
FLAKY_STARTS = 3
"""A flaky task succeeds the third time it starts."""

_count = itertools.count(1)


class Item(NamedTuple):
    index: int
    kind: str
    """ok, fail, flaky, tick, slow (a hundred times as long, ticking), poison."""
    seconds: float
    ballast: bytes = b""
    """Makes a job too large to travel in etcd."""


class Work:
    """The callable of a job. Its result names the attempt that gave it."""

    def __init__(self, label: str, folder: str) -> None:
        self.label = label
        self.diary = Diary(folder, "task")

    def __call__(self, item: Item) -> list[object]:
        token = f"{os.getpid()}-{next(_count)}"
        note = self.diary.write
        note("start", self.label, item.index, token, os.getpid(), os.getppid())
        if item.kind == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        if item.kind in ("tick", "slow"):
            self._tick(item, token)
        else:
            time.sleep(item.seconds)
        if item.kind == "flaky" and self._starts(item.index) < FLAKY_STARTS:
            note("raise", self.label, item.index, token)
            raise RuntimeError(token)
        if item.kind == "fail":
            note("raise", self.label, item.index, token)
            raise ValueError(token)
        note("end", self.label, item.index, token)
        return [item.index, token]

    def _tick(self, item: Item, token: str) -> None:
        seconds = item.seconds * (SLOWER if item.kind == "slow" else 1)
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            self.diary.write("tick", self.label, item.index, token)
            time.sleep(TICK_S)

    def _starts(self, index: int) -> int:
        """How often this task has started, counted on disk: it outlives every process."""
        path = os.path.join(self.diary.folder, f"{self.label}-{index}.starts")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, b".")
            return os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
