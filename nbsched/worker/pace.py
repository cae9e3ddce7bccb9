"""How many tasks of a job to hand to a kernel at a time, from how long they take.

Pure arithmetic: the caller brings the times.
"""

from __future__ import annotations

HAND_OVER_S = 0.005
"""Work per hand-over: long beside what a hand-over costs, short for a person."""
SHORT_S = 0.002
"""Tasks below this are worth a spare hand-over that waits in the kernel. A longer one
waits here, where it can still be given to another kernel or worker."""
_WEIGHT = 0.3
_MOST = 4096


class Pace:
    """Measured time per task of one job, and the size of the next hand-over."""

    def __init__(self, fixed: int | None = None) -> None:
        self._fixed = fixed
        self._chunk = 1
        self.task_s: float | None = None
        """Seconds per task, or None before the first one has ended."""

    @property
    def short(self) -> bool:
        return self.task_s is not None and self.task_s < SHORT_S

    def measure(self, count: int, elapsed_s: float) -> None:
        """``count`` tasks took ``elapsed_s`` seconds together."""
        per_task = elapsed_s / count
        if self.task_s is None:
            self.task_s = per_task
        else:
            self.task_s += _WEIGHT * (per_task - self.task_s)

    def completed(self) -> None:
        """A hand-over is done: the next may be up to twice as large."""
        wanted = _MOST if not self.task_s else int(HAND_OVER_S / self.task_s)
        self._chunk = max(1, min(wanted, 2 * self._chunk, _MOST))

    def chunk(self, queued: int, slots: int) -> int:
        """Tasks for the next hand-over, when ``queued`` wait for ``slots`` kernels."""
        if self._fixed is not None:
            return max(1, self._fixed)
        share = -(-queued // max(1, slots))  # the last tasks are for all kernels
        return max(1, min(self._chunk, share))
