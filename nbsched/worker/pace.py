"""How many tasks of a job to hand to a kernel at a time, from how long they take.

Pure arithmetic: the caller brings the times.
"""

from __future__ import annotations

HAND_OVER_S = 0.005
"""Work per hand-over: long beside what a hand-over costs, short for a person."""
SHORT_S = 0.002
"""Below this a spare hand-over always waits in the kernel, so that it is never idle."""
MEDIUM_S = 0.1
"""Below this one waits there while the queue is long. When it is not, the last tasks wait
here, where they can be given to whichever kernel or worker is free first."""
_GROWTH = 8
"""So many times larger at most: a first task may have been short by chance. What a kernel
has and does not begin in time is taken back, so a mistake costs little."""
_WEIGHT = 0.3
_MOST = 65536


class Pace:
    """Measured time per task of one job, and the size of the next hand-over."""

    def __init__(self, fixed: int | None = None) -> None:
        self._fixed = fixed
        self._chunk = 1
        self.alone = False
        """Its tasks go one by one: what they print past Python must find its task."""
        self.task_s: float | None = None
        """Seconds per task, or None before the first one has ended."""

    def keeps_spare(self, queued: int, slots: int) -> bool:
        """Whether a hand-over should wait in a kernel that is busy with another."""
        if self.task_s is None or self.alone:
            return False
        return self.task_s < (MEDIUM_S if queued > 2 * slots else SHORT_S)

    def measure(self, count: int, elapsed_s: float) -> None:
        """``count`` tasks took ``elapsed_s`` seconds together."""
        per_task = elapsed_s / count
        if self.task_s is None:
            self.task_s = per_task
        else:
            self.task_s += _WEIGHT * (per_task - self.task_s)

    def completed(self) -> None:
        """A hand-over is done: the next may be several times as large."""
        wanted = _MOST if not self.task_s else int(HAND_OVER_S / self.task_s)
        self._chunk = max(1, min(wanted, _GROWTH * self._chunk, _MOST))

    def chunk(self, queued: int, slots: int) -> int:
        """Tasks for the next hand-over, when ``queued`` wait for ``slots`` kernels."""
        if self.alone:
            return 1
        if self._fixed is not None:
            return max(1, self._fixed)
        share = -(-queued // max(1, slots))  # the last tasks are for all kernels
        return max(1, min(self._chunk, share))
