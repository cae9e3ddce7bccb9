"""Tells who watches what running tasks print. Nothing waits for it, nothing depends on it:
the outcomes have the text in any case."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import msgspec

from nbsched.errors import ConnectError
from nbsched.messages import JobBrief, PrintedText, TaskOutput
from nbsched.model import WorkerId
from nbsched.names import Names
from nbsched.payload.envelope import Kind
from nbsched.transport import Bus
from nbsched.wire import Wire

log = logging.getLogger(__name__)

_MESSAGE_BYTES = 64 * 1024
_AT_ONCE = 8
"""Messages on their way; what comes while a slow connection has so many is left out."""


class LiveOutput:
    """Publishes the news of running tasks, for ever catching up with the newest."""

    def __init__(self, worker: WorkerId, names: Names, wire: Wire, bus: Bus) -> None:
        self._worker = worker
        self._names = names
        self._wire = wire
        self._bus = bus
        self._tasks: set[asyncio.Task[None]] = set()

    def tell(self, brief: JobBrief, printed: Sequence[PrintedText]) -> None:
        """Running tasks of this job have printed this."""
        if len(self._tasks) >= _AT_ONCE:
            return
        share = max(1, _MESSAGE_BYTES // len(printed))
        cut = tuple(msgspec.structs.replace(part, text=part.text[-share:]) for part in printed)
        task = asyncio.create_task(self._publish(brief, cut), name="live-output")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _publish(self, brief: JobBrief, printed: tuple[PrintedText, ...]) -> None:
        message = TaskOutput(self._worker, brief.job, printed)
        subject = self._names.job_output(brief.client, brief.job)
        try:
            await self._bus.publish(subject, self._wire.seal(Kind.REPORT, message))
        except ConnectError as error:
            log.debug("live output of job=%s is not told: %s", brief.job, error)

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
