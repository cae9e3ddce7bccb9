"""A set of task indices as sorted, disjoint ranges.

Ten million queued tasks are one range, not ten million objects. Every operation
costs O(log n) in the number of *ranges* to find its place, plus the ranges that it
touches. Pure data: nothing here knows what an index means.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

Range = tuple[int, int]
"""``(start, stop)``, stop excluded."""


class IndexSet:
    """A mutable set of non-negative integers, stored as ranges."""

    __slots__ = ("_size", "_starts", "_stops")

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        self._size = 0
        for start, stop in ranges:
            self.add(start, stop)

    def __len__(self) -> int:
        return self._size

    def __bool__(self) -> bool:
        return self._size > 0

    def __contains__(self, index: int) -> bool:
        at = bisect_right(self._starts, index) - 1
        return at >= 0 and index < self._stops[at]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IndexSet):
            return NotImplemented
        return self._starts == other._starts and self._stops == other._stops

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"IndexSet({list(self.ranges())})"

    def ranges(self) -> Iterator[Range]:
        """The ranges in ascending order, none touching another."""
        return zip(tuple(self._starts), tuple(self._stops), strict=True)

    def indices(self) -> Iterator[int]:
        """Every index, ascending."""
        for start, stop in self.ranges():
            yield from range(start, stop)

    def copy(self) -> IndexSet:
        twin = IndexSet()
        twin._starts, twin._stops, twin._size = self._starts[:], self._stops[:], self._size
        return twin

    def add(self, start: int, stop: int) -> int:
        """Add ``[start, stop)``; returns how many indices were new."""
        if start >= stop:
            return 0
        low = bisect_left(self._stops, start)
        high = bisect_right(self._starts, stop)
        had = sum(self._stops[i] - self._starts[i] for i in range(low, high))
        if low < high:
            start = min(start, self._starts[low])
            stop = max(stop, self._stops[high - 1])
        self._starts[low:high] = [start]
        self._stops[low:high] = [stop]
        gained = stop - start - had
        self._size += gained
        return gained

    def remove(self, start: int, stop: int) -> list[Range]:
        """Remove ``[start, stop)``; returns the ranges that were in the set."""
        if start >= stop:
            return []
        low = bisect_right(self._stops, start)
        high = bisect_left(self._starts, stop)
        if low >= high:
            return []
        removed = [
            (max(start, self._starts[i]), min(stop, self._stops[i])) for i in range(low, high)
        ]
        first, last = self._starts[low], self._stops[high - 1]
        keep: list[Range] = []
        if first < start:
            keep.append((first, start))
        if last > stop:
            keep.append((stop, last))
        self._starts[low:high] = [a for a, _ in keep]
        self._stops[low:high] = [b for _, b in keep]
        self._size -= sum(b - a for a, b in removed)
        return removed

    def intersection(self, start: int, stop: int) -> list[Range]:
        """The parts of ``[start, stop)`` that are in the set."""
        low = bisect_right(self._stops, start)
        high = bisect_left(self._starts, stop)
        return [(max(start, self._starts[i]), min(stop, self._stops[i])) for i in range(low, high)]

    def missing(self, start: int, stop: int) -> list[Range]:
        """The parts of ``[start, stop)`` that are not in the set."""
        gaps: list[Range] = []
        at = start
        for low, high in self.intersection(start, stop):
            if at < low:
                gaps.append((at, low))
            at = high
        if at < stop:
            gaps.append((at, stop))
        return gaps

    def take_first(self, count: int) -> Range | None:
        """Remove and return up to ``count`` indices from the front, as one range."""
        if not self._starts or count < 1:
            return None
        start = self._starts[0]
        stop = min(self._stops[0], start + count)
        self.remove(start, stop)
        return start, stop

    def tail(self, count: int) -> list[Range]:
        """The last ``count`` indices, as ascending ranges; the set keeps them."""
        found: list[Range] = []
        for start, stop in zip(reversed(self._starts), reversed(self._stops), strict=True):
            if count <= 0:
                break
            found.append((max(start, stop - count), stop))
            count -= stop - start
        return found[::-1]

    def first(self) -> int | None:
        return self._starts[0] if self._starts else None
