"""Tells everybody what this worker holds: when it changed, and regularly in any case."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from nbsched.errors import ConnectError
from nbsched.messages import Held, WorkerReport
from nbsched.names import Names
from nbsched.payload.envelope import Kind
from nbsched.transport import Bus
from nbsched.wire import Wire

log = logging.getLogger(__name__)

_INTERVAL_S = 0.2
"""At most five reports a second; the last change is always reported."""
_LOOK_S = 0.05
"""While tasks are held, how often to look whether others run than were reported: a
kernel says that in shared memory, not by a message."""
_HEARTBEAT_S = 5.0


_Essence = frozenset[tuple[str, int, int]]


class Reporter:
    """Publishes what ``make_report`` says; ``running`` are the running tasks in it."""

    def __init__(
        self,
        names: Names,
        wire: Wire,
        bus: Bus,
        make_report: Callable[[], WorkerReport],
        running: Callable[[], Iterable[Held]],
    ) -> None:
        self._names = names
        self._wire = wire
        self._bus = bus
        self._make_report = make_report
        self._running = running
        self._changed = False
        self._urgent = False
        self._bell = asyncio.Event()
        self._told: _Essence = frozenset()
        self._told_held = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="reporter")

    def changed(self, urgent: bool = False) -> None:
        """The next report would differ. ``urgent``: do not wait for the interval."""
        if urgent or not self._changed:  # a change that is known already only waits
            self._bell.set()
        self._changed = True
        self._urgent = self._urgent or urgent

    async def report(self) -> None:
        """Publish a report now. Never raises: the next one follows soon."""
        self._changed = self._urgent = False
        report = self._make_report()
        self._told = _essence(held for held in report.held if held.running_for_s is not None)
        self._told_held = bool(report.held)
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
                await self._until_due(time.monotonic())
            except Exception:  # supervised: a worker that is silent counts as lost
                log.exception("a report could not be made")
                await asyncio.sleep(_INTERVAL_S)

    async def _until_due(self, sent_at: float) -> None:
        """Wait until something new may be told, or the heartbeat is due."""
        while not self._urgent:
            elapsed = time.monotonic() - sent_at
            if elapsed >= _HEARTBEAT_S:
                return
            now = _essence(self._running())
            news = now != self._told or self._changed
            begins = bool(now) and not self._told
            if news and (begins or elapsed >= _INTERVAL_S):
                return
            look_s = _LOOK_S if self._told_held or news else _HEARTBEAT_S - elapsed
            await self._rung(look_s)

    async def _rung(self, timeout_s: float) -> None:
        """Wait until the bell is rung, or for the time."""
        timer = asyncio.get_running_loop().call_later(timeout_s, self._bell.set)
        try:
            await self._bell.wait()
        finally:
            timer.cancel()
        self._bell.clear()


def _essence(running: Iterable[Held]) -> _Essence:
    """Which tasks run, by job, index and round."""
    return frozenset((held.job, held.start, held.round) for held in running)
