"""The blocks of items that a job has uploaded: in order, though they may come in any."""

from __future__ import annotations

from bisect import bisect_right

from nbsched.messages import BlockRef


class Blocks:
    """A block counts once all blocks before it are there too."""

    def __init__(self) -> None:
        self._known: list[BlockRef] = []
        self._early: dict[int, BlockRef] = {}
        """Those that came before their predecessors, by first index."""

    def store(self, block: BlockRef, uploaded: int) -> int:
        """A block is complete; returns how many items are there, ``uploaded`` before."""
        self._early[block.first] = block
        while (follower := self._early.pop(uploaded, None)) is not None:
            self._known.append(follower)
            uploaded = follower.first + follower.count
        return uploaded

    def of(self, start: int, stop: int) -> tuple[BlockRef, ...]:
        """The blocks that hold the items ``start`` to ``stop``."""
        if not self._known:
            return ()
        first = max(0, bisect_right(self._known, start, key=lambda block: block.first) - 1)
        last = bisect_right(self._known, stop - 1, key=lambda block: block.first)
        return tuple(self._known[first:last])

    def cut(self, start: int) -> None:
        """What lies behind does not count any more."""
        self._known = [block for block in self._known if block.first < start]
        self._early.clear()
