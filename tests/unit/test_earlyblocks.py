"""Blocks that come before the record of their job."""

from __future__ import annotations

from nbsched.leader import earlyblocks
from nbsched.leader.earlyblocks import EarlyBlocks
from nbsched.messages import BlockRef
from nbsched.model import JobId
from nbsched.scheduler.events import BlockStored

A, B = JobId("a"), JobId("b")


def _block(job: JobId, number: int) -> BlockStored:
    count = 10 if number else 0
    return BlockStored(job, BlockRef(number, max(0, number - 1) * 10, count, 1, 100))


def test_who_has_seen_the_callable_has_seen_every_block() -> None:
    early = EarlyBlocks()
    for number in range(3):
        early.add(_block(A, number))
    assert early.take(A) == [_block(A, number) for number in range(3)]
    assert early.take(A) is None


def test_a_job_of_which_the_beginning_was_missed_is_read_from_the_log() -> None:
    early = EarlyBlocks()
    early.add(_block(A, 1))
    assert early.take(A) is None
    assert early.take(B) is None


def test_the_oldest_jobs_are_dropped_whole() -> None:
    early = EarlyBlocks()
    early.add(_block(A, 0))
    for number in range(earlyblocks.MOST_BLOCKS):
        early.add(_block(B, number))
    assert early.take(A) is None
    assert len(early.take(B) or ()) == earlyblocks.MOST_BLOCKS
