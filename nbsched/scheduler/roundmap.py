"""Which round each task is in: a number per index, stored as runs of equal ones.

A job of which a million tasks are retried at once is two runs, not a million numbers.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

Run = tuple[int, int, int]
"""``(start, stop, round)``, stop excluded."""


class RoundMap:
    """Rounds by task index; 0 where nothing was set."""

    __slots__ = ("_rounds", "_starts")

    def __init__(self) -> None:
        self._starts = [0]
        self._rounds = [0]

    def get(self, index: int) -> int:
        return self._rounds[bisect_right(self._starts, index) - 1]

    def run_stop(self, index: int, limit: int) -> int:
        """Where the run that holds ``index`` ends, at most ``limit``."""
        behind = bisect_right(self._starts, index)
        return min(limit, self._starts[behind]) if behind < len(self._starts) else limit

    def runs(self, start: int, stop: int) -> Iterator[Run]:
        """The runs that ``[start, stop)`` consists of, ascending; a snapshot."""
        if start >= stop:
            return
        first = bisect_right(self._starts, start) - 1
        last = bisect_left(self._starts, stop)
        starts, rounds = self._starts[first:last], self._rounds[first:last]
        stops = [*starts[1:], stop]
        for low, high, round_ in zip(starts, stops, rounds, strict=True):
            if max(low, start) < high:
                yield max(low, start), high, round_

    def set(self, start: int, stop: int, round_: int) -> None:
        """Put ``[start, stop)`` into a round."""
        if start >= stop:
            return
        behind = self.get(stop)
        low = bisect_left(self._starts, start)
        high = bisect_right(self._starts, stop)
        self._starts[low:high] = [start, stop]
        self._rounds[low:high] = [round_, behind]
        self._merge(low)

    def _merge(self, at: int) -> None:
        """Join the two new runs with equal neighbours."""
        for position in (at + 1, at):
            inside = 0 < position < len(self._rounds)
            if inside and self._rounds[position] == self._rounds[position - 1]:
                del self._starts[position], self._rounds[position]
