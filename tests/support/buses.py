"""Buses for contract tests: the twin in memory and a real NATS, under one roof."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nbsched.settings import Settings
from nbsched.transport import Bus, LogEntry
from nbsched.transport.loopback import LoopbackBus
from nbsched.transport.memory import MemoryBus, MemoryBusServer
from nbsched.transport.nats import NatsBus
from support.nats import NatsServer

DEADLINE_S = 60.0
Connect = Callable[[], Coroutine[Any, Any, Bus]]


def run(test: Coroutine[Any, Any, object]) -> None:
    asyncio.run(asyncio.wait_for(test, DEADLINE_S))


async def eventually(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.002)  # `run` has the deadline


async def take(reader: AsyncGenerator[Sequence[LogEntry], None], count: int) -> list[LogEntry]:
    """The next ``count`` entries of a reader, which must not hand over more."""
    taken: list[LogEntry] = []
    while len(taken) < count:
        taken += await anext(reader)
    assert len(taken) == count
    return taken


async def replay(bus: Bus, log: str, subject: str) -> list[LogEntry]:
    return [entry async for batch in bus.replay(log, subject) for entry in batch]


class Place:
    """A bus to connect to, and names that no other test uses."""

    def __init__(self, connect: Connect, namespace: str) -> None:
        self._connect = connect
        self.log = f"log-{namespace}"
        self.prefix = f"test.{namespace}"

    @asynccontextmanager
    async def bus(self) -> AsyncIterator[Bus]:
        bus = await self._connect()
        try:
            yield bus
        finally:
            await bus.close()

    @asynccontextmanager
    async def bus_with_log(self) -> AsyncIterator[Bus]:
        async with self.bus() as bus:
            await bus.ensure_log(self.log, f"{self.prefix}.log.>")
            yield bus

    def subject(self, name: str) -> str:
        return f"{self.prefix}.log.{name}"

    async def fill(self, bus: Bus, count: int, name: str = "a") -> None:
        appends = (bus.append(self.subject(name), b"h%d" % i, b"d%d" % i) for i in range(count))
        await asyncio.gather(*appends)


@pytest.fixture(params=["memory", "nats", "loopback"])
def place(request: pytest.FixtureRequest, namespace: str) -> Place:
    if request.param in ("memory", "loopback"):
        server = MemoryBusServer()

        async def join() -> Bus:
            bus = MemoryBus(server)
            return bus if request.param == "memory" else LoopbackBus(bus)

        return Place(join, namespace)

    nats: NatsServer = request.getfixturevalue("nats_server")

    async def dial() -> Bus:
        return await NatsBus.connect(Settings(nats=(nats.url,)), name="test")

    return Place(dial, namespace)


# ---------------------------------------------------------------- NATS alone


async def connect(*urls: str, **settings: Any) -> NatsBus:
    return await NatsBus.connect(Settings(nats=urls, **settings), name="test")


@asynccontextmanager
async def bus_on(server: NatsServer, **settings: Any) -> AsyncIterator[NatsBus]:
    bus = await connect(server.url, **settings)
    try:
        yield bus
    finally:
        await bus.close()


async def in_thread(call: Callable[[], None]) -> None:
    """Start or stop a server while the loop goes on."""
    await asyncio.get_running_loop().run_in_executor(None, call)


@pytest.fixture
def private_nats(tmp_path: Path) -> Iterator[NatsServer]:
    """A server of the test's own, to be killed and restarted at will."""
    server = NatsServer(tmp_path)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def serve(tmp_path: Path, *options: str, jetstream: bool = True) -> NatsServer:
    server = NatsServer(tmp_path, *options, jetstream=jetstream)
    server.start()
    return server
