"""Sealed jobs of which a log has lost items: they end all the same."""

from __future__ import annotations

import asyncio

from nbsched.leader.shortjobs import Short, ShortJobs, lost_items
from nbsched.messages import BlockRef
from nbsched.scheduler.events import BlockStored
from support.simulation import job_record

RECORD = job_record(inline=False, total=10)


def _stored(number: int, first: int, count: int) -> BlockStored:
    return BlockStored(RECORD.id, BlockRef(number, first, count, parts=1, nbytes=1))


def _ranges(short: Short, *found: BlockStored) -> list[tuple[int, int]]:
    return [
        (event.block.first, event.block.first + event.block.count)
        for event in lost_items(short, found)
    ]


def test_items_are_lost_that_neither_the_leader_nor_the_log_has() -> None:
    short = Short(RECORD, total=10, known=4)
    assert _ranges(short) == [(4, 10)]
    assert _ranges(short, _stored(1, 0, 2), _stored(3, 6, 2)) == [(4, 6), (8, 10)]
    assert _ranges(short, _stored(2, 4, 6)) == []


def test_what_stands_for_lost_items_has_the_number_of_no_block() -> None:
    found = [_stored(number, number - 1, 1) for number in range(1, 11) if number % 3]
    lost = lost_items(Short(RECORD, total=10, known=2), found)
    assert len(lost) == 3
    assert {event.block.block for event in lost}.isdisjoint(range(11))
    assert len({event.block.block for event in lost}) == 3


class Looks:
    """Looks at one job, of which so many items are known, at times of a made-up clock."""

    def __init__(self, grace_s: float) -> None:
        self.now = 0.0
        self.known = 0
        self.read: list[tuple[int, bool]] = []
        self._jobs = ShortJobs(self._find, self._read_again, grace_s, clock=lambda: self.now)

    def _find(self) -> list[Short]:
        return [Short(RECORD, 10, self.known)] if self.known < 10 else []

    async def _read_again(self, short: Short, give_up: bool) -> None:
        self.read.append((short.known, give_up))

    def look(self, at: float, known: int) -> list[tuple[int, bool]]:
        """What is read by it."""
        self.now, self.known, self.read = at, known, []
        asyncio.run(self._jobs.look())
        return self.read


def test_a_log_is_read_again_once_for_a_job_that_does_not_grow() -> None:
    looks = Looks(grace_s=300.0)
    assert looks.look(0.0, known=3) == []
    assert looks.look(5.0, known=5) == []
    assert looks.look(10.0, known=5) == [(5, False)]
    assert looks.look(15.0, known=5) == []
    assert looks.look(20.0, known=10) == []


def test_items_are_given_up_when_they_have_been_missing_for_the_grace() -> None:
    looks = Looks(grace_s=300.0)
    looks.look(0.0, known=3)
    looks.look(100.0, known=5)
    assert looks.look(350.0, known=5) == [(5, False)]
    assert looks.look(399.0, known=5) == []
    assert looks.look(400.0, known=5) == [(5, True)]
