"""Rebuilding a job from what is stored: its record, its blocks, its outcomes.

Used when a leader takes over, and when a request arrives for a job that had ended.
Reads headers only.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import msgspec

from nbsched.errors import AuthenticationError
from nbsched.messages import BlockRef, OutcomeBatch
from nbsched.model import JobId, JobRecord
from nbsched.names import Names
from nbsched.payload.envelope import Kind
from nbsched.scheduler import events
from nbsched.transport import Bus, LogEntry
from nbsched.wire import Wire

log = logging.getLogger(__name__)


class LogDecoder:
    """Turns headers of both logs into events; what is not authentic is logged and skipped."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def outcomes(self, entry: LogEntry) -> Iterator[events.OutcomesRead]:
        """At most one event. Parts of large bodies carry no outcome and give none."""
        try:
            content = self._wire.read(Kind.OUTCOME, entry.header)
            batch = msgspec.msgpack.decode(content.meta, type=OutcomeBatch)
        except AuthenticationError as error:
            log.warning("An entry of the results log is ignored: %s", error)
        except msgspec.DecodeError:
            return
        else:
            yield events.OutcomesRead(
                JobId(content.job), batch.worker, batch.outcomes, entry.sequence
            )

    def blocks(self, entry: LogEntry) -> Iterator[events.BlockStored]:
        """At most one event: only a block's last part names the block."""
        try:
            content = self._wire.read(Kind.INPUT, entry.header)
            if content.meta:
                block = msgspec.msgpack.decode(content.meta, type=BlockRef)
                yield events.BlockStored(JobId(content.job), block)
        except (AuthenticationError, msgspec.DecodeError) as error:
            log.warning("An entry of the inputs log is ignored: %s", error)


async def load(
    record: JobRecord, *, bus: Bus, names: Names, decoder: LogDecoder, request_follows: bool
) -> events.JobRebuilt:
    """What rebuilds a job, in order. Outcomes and blocks that come twice do no harm."""
    found: list[events.JobAdded | events.BlockStored | events.OutcomesRead] = [
        events.JobAdded(record, request_follows)
    ]
    found += await blocks(record, bus=bus, names=names, decoder=decoder)
    subject = names.job_results(record.client, record.id)
    async for batch in bus.replay(names.results_log, subject):
        for entry in batch:
            found += decoder.outcomes(entry)
    return events.JobRebuilt(tuple(found))


async def blocks(
    record: JobRecord, *, bus: Bus, names: Names, decoder: LogDecoder
) -> list[events.BlockStored]:
    """The blocks of a job that its log holds."""
    found: list[events.BlockStored] = []
    if not record.inline:
        async for batch in bus.replay(names.inputs_log, names.job_inputs(record.client, record.id)):
            for entry in batch:
                found += decoder.blocks(entry)
    return found
