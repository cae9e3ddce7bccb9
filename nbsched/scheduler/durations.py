"""How long a job's tasks took: their median, from counts of lengths, not from the lengths."""

from __future__ import annotations

import math
from collections import Counter

_PER_OCTAVE = 8
"""So the median is right within 5 %."""
_LEAST_S = 1e-6


class Durations:
    """Takes as much room for ten million tasks as for a hundred."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._total = 0

    def add(self, seconds: float, tasks: int) -> None:
        """``tasks`` more, which took ``seconds`` together."""
        each = max(seconds / tasks, _LEAST_S)
        self._counts[round(math.log2(each) * _PER_OCTAVE)] += tasks
        self._total += tasks

    def median(self) -> float | None:
        """Seconds, or None when no task has ended yet."""
        left = (self._total + 1) // 2
        for length in sorted(self._counts):
            left -= self._counts[length]
            if left <= 0:
                return float(2 ** (length / _PER_OCTAVE))
        return None
