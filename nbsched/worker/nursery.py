"""Starts the kernels of a worker, and others in place of those that died.

At once, in the place of a kernel that was of use; later and later in the place of one that
did nothing but start and die, since the next one will do the same: a broken installation,
a start-up file of the user's that raises, no memory even for an idle process.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from nbsched.kernel.protocol import FromKernel, Hello
from nbsched.worker.deaths import Death
from nbsched.worker.kernelprocess import KernelProcess
from nbsched.worker.kernelslot import KernelSlot

log = logging.getLogger(__name__)

_FIRST_WAIT_S = 0.2
_LAST_WAIT_S = 10.0
_LONG_LIFE_S = 60.0
"""A kernel that has lived so long has not died of starting."""


class Place:
    """Where one kernel follows another; ``wait_s`` is asked after each death."""

    def __init__(self) -> None:
        self._useless = 0
        """Kernels in a row that were of no use."""

    def wait_s(self, *, of_use: bool, lived_s: float) -> float:
        """How long to wait before the next kernel."""
        if of_use or lived_s >= _LONG_LIFE_S:
            self._useless = 0
            return 0.0
        self._useless += 1
        return min(_LAST_WAIT_S, _FIRST_WAIT_S * float(2 ** min(self._useless - 1, 10)))


class Nursery:
    """``slots`` are the kernels that there are. ``on_death`` comes before the next start."""

    def __init__(
        self,
        home: Hello,
        on_frame: Callable[[KernelSlot, FromKernel, bytes], None],
        on_output: Callable[[KernelSlot, bytes], None],
        on_death: Callable[[KernelSlot, Death], None],
    ) -> None:
        self.slots: list[KernelSlot] = []
        self._home = home
        self._on_frame = on_frame
        self._on_output = on_output
        self._on_death = on_death
        self._processes: set[KernelProcess] = set()
        self._timers: set[asyncio.TimerHandle] = set()
        self._failing = False
        self._closing = False

    def start(self, kernels: int) -> None:
        for _ in range(kernels):
            self._spawn(Place())

    async def stop(self) -> None:
        """Kill all kernels and wait for their end."""
        self._closing = True
        for timer in self._timers:
            timer.cancel()
        for process in list(self._processes):
            process.kill()
        await asyncio.gather(*(process.ended() for process in list(self._processes)))

    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def usable(self, slot: KernelSlot) -> bool:
        """Whether to give it tasks: before it is ready only as long as none failed to be."""
        return slot.ready or not self._failing

    def is_ready(self, slot: KernelSlot) -> None:
        slot.ready = True
        self._failing = False

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        """`loop.call_later`, remembered so that `stop` can cancel it."""

        def run() -> None:
            self._timers.discard(timer)
            call()

        timer = asyncio.get_running_loop().call_later(delay_s, run)
        self._timers.add(timer)

    def _spawn(self, place: Place) -> None:
        if self._closing:
            return
        try:
            process = KernelProcess()
        except OSError as error:
            self._failing = True
            self._spawn_later(place, place.wait_s(of_use=False, lived_s=0.0), f"{error.strerror}")
            return
        slot = KernelSlot(process)
        born = time.monotonic()
        process.listen(
            lambda frame, attachment: self._on_frame(slot, frame, attachment),
            lambda data: self._on_output(slot, data),
            lambda death: self._died(slot, place, time.monotonic() - born, death),
        )
        self._processes.add(process)
        process.send(self._home)
        self.slots.append(slot)

    def _died(self, slot: KernelSlot, place: Place, lived_s: float, death: Death) -> None:
        self._processes.discard(slot.process)
        self.slots.remove(slot)
        if self._closing:
            return
        log.warning("kernel pid=%d died: %s", slot.process.pid, death.cause)
        self._failing = self._failing or not slot.ready
        of_use = slot.answered or slot.process.state.active != 0
        try:
            self._on_death(slot, death)
        except Exception:  # whatever it was, the place must not stay empty for that
            log.exception("what kernel pid=%d has left is not accounted for", slot.process.pid)
        wait_s = place.wait_s(of_use=of_use, lived_s=lived_s)
        if wait_s:
            self._spawn_later(place, wait_s, f"{death.cause}; its output ends: {death.tail!r}")
        else:
            self._spawn(place)

    def _spawn_later(self, place: Place, wait_s: float, cause: str) -> None:
        log.error("a kernel was of no use (%s); the next one in %.1f s", cause, wait_s)
        self.later(wait_s, lambda: self._spawn(place))
