"""Tells everybody what this worker holds: when it changed, and regularly in any case."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress

from nbsched.errors import ConnectError
from nbsched.messages import WorkerReport
from nbsched.names import Names
from nbsched.payload.envelope import Kind
from nbsched.transport import Bus
from nbsched.wire import Wire

log = logging.getLogger(__name__)

_INTERVAL_S = 0.2
"""At most five reports a second; the last change is always reported."""
_HEARTBEAT_S = 5.0


class Reporter:
    """Publishes what ``make_report`` says."""

    def __init__(
        self, names: Names, wire: Wire, bus: Bus, make_report: Callable[[], WorkerReport]
    ) -> None:
        self._names = names
        self._wire = wire
        self._bus = bus
        self._make_report = make_report
        self._changed = asyncio.Event()
        self._urgent = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="reporter")

    def changed(self, urgent: bool = False) -> None:
        """The next report would differ. ``urgent``: do not wait for the interval."""
        self._changed.set()
        if urgent:
            self._urgent.set()

    async def report(self) -> None:
        """Publish a report now. Never raises: the next one follows soon."""
        self._changed.clear()
        self._urgent.clear()
        report = self._make_report()
        data = self._wire.seal(Kind.REPORT, report, report.term)
        try:
            await self._bus.publish(self._names.reports, data)
        except ConnectError as error:
            log.warning("a report was not sent: %s", error)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            try:
                await self.report()
            except Exception:  # supervised: a worker that is silent counts as lost
                log.exception("a report could not be made")
            sent_at = time.monotonic()
            await _set_within(self._changed, _HEARTBEAT_S)
            await _set_within(self._urgent, sent_at + _INTERVAL_S - time.monotonic())


async def _set_within(event: asyncio.Event, timeout_s: float) -> None:
    """Wait until the event is set, or for the time."""
    if timeout_s > 0:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(event.wait(), timeout_s)
