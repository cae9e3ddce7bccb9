"""Wires between hosts and the two servers: slow, cut, and for messages also lossy.

To each server a host has one connection, so what it sends and what it gets keep their
order, as over TCP; a cut holds both up. Messages of core NATS may get lost, come twice or
overtake each other on top of that: between a cut and a reconnection a server and its
clients do all three.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

from support.sim.clock import Host

OUT, BACK = 0, 1


@dataclass
class Weather:
    """How messages travel at the moment."""

    delay_s: float = 0.001
    loss: float = 0.0
    twice: float = 0.0
    overtake_s: float = 0.0
    """Messages are late by up to this, each by itself."""


@dataclass
class Wire:
    """A host's connection to one server, with a direction each way."""

    cut: list[int] = field(default_factory=lambda: [0, 0])
    """How many faults hold each direction up."""
    last: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """When the last thing sent arrives: what follows is not quicker."""
    healed: asyncio.Event | None = None


class Network:
    """All wires."""

    def __init__(self, loop: asyncio.AbstractEventLoop, rng: random.Random) -> None:
        self.weather = Weather()
        self._loop = loop
        self._rng = rng
        self._wires: dict[tuple[str, str], Wire] = {}

    def wire(self, host: Host, server: str) -> Wire:
        key = (host.name, server)
        wire = self._wires.get(key)
        if wire is None:
            wire = self._wires[key] = Wire()
        return wire

    def cut(self, host: Host, server: str, ways: tuple[int, ...]) -> None:
        wire = self.wire(host, server)
        for way in ways:
            wire.cut[way] += 1

    def heal(self, host: Host, server: str, ways: tuple[int, ...]) -> None:
        wire = self.wire(host, server)
        for way in ways:
            wire.cut[way] -= 1
        if not any(wire.cut) and wire.healed is not None:
            wire.healed.set()
            wire.healed = None

    def is_cut(self, host: Host, server: str, way: int) -> bool:
        return self.wire(host, server).cut[way] > 0

    def delay(self, host: Host, server: str, way: int) -> float:
        """Seconds, on the right clock, until something sent now arrives, in order."""
        last = self.wire(host, server).last
        now: float = self._loop.now  # type: ignore[attr-defined]
        at = now + self.weather.delay_s * (0.5 + self._rng.random())
        last[way] = at = max(last[way], at)
        return at - now

    async def travel(self, host: Host, server: str, way: int) -> None:
        """Arrive at the other end; waits as long as that direction is cut."""
        await asyncio.sleep(self.delay(host, server, way) * host.rate)
        while self.is_cut(host, server, way):
            wire = self.wire(host, server)
            if wire.healed is None:
                wire.healed = asyncio.Event()
            await wire.healed.wait()

    async def pause(self, host: Host, at_most_s: float) -> None:
        """Do nothing for a while that nobody knows before."""
        await asyncio.sleep(self._rng.random() * at_most_s * host.rate)

    def fates(self) -> list[float]:
        """A message's extra delays, one for each time that it arrives; [] is lost."""
        weather, rng = self.weather, self._rng
        if not (weather.loss or weather.twice or weather.overtake_s):
            return _AS_IT_SHOULD
        if rng.random() < weather.loss:
            return []
        copies = 2 if rng.random() < weather.twice else 1
        return [rng.random() * weather.overtake_s for _ in range(copies)]


_AS_IT_SHOULD = [0.0]
