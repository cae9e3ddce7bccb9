"""The faults of the bus in memory, and its use from several threads."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing

import pytest

from nbsched.errors import BusUnreachableError
from nbsched.transport import LogFullError, Message
from nbsched.transport.memory import MemoryBus, MemoryBusServer, matches


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a", False),
        ("a", "a.b", False),
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", False),
        ("a.*", "a", False),
        ("*.b", "a.b", True),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        (">", "a", True),
    ],
)
def test_subjects_match_as_on_nats(pattern: str, subject: str, expected: bool) -> None:
    assert matches(pattern, subject) is expected


def test_while_the_server_is_down_messages_fail_and_logs_wait() -> None:
    async def test() -> None:
        server = MemoryBusServer()
        bus = MemoryBus(server)
        await bus.ensure_log("log", "log.>")
        server.go_down()
        with pytest.raises(BusUnreachableError):
            await bus.publish("subject", b"")
        async with aclosing(bus.read("log", "log.>")) as reader:
            reading = asyncio.ensure_future(anext(reader))
            appending = asyncio.ensure_future(bus.append("log.a", b"", b"d"))
            await asyncio.wait({reading, appending}, timeout=0.02)
            assert not reading.done()
            assert not appending.done()
            server.come_back()
            assert await appending == 1
            assert [entry.data for entry in await reading] == [b"d"]
        await bus.close()

    asyncio.run(asyncio.wait_for(test(), 60))


def test_a_full_log_refuses_until_it_is_purged() -> None:
    async def test() -> None:
        server = MemoryBusServer()
        server.ensure_log("log", "log.>", max_entries=1)
        bus = MemoryBus(server)
        await bus.append("log.a", b"", b"")
        with pytest.raises(LogFullError):
            await bus.append("log.a", b"", b"")
        await bus.purge("log", "log.>")
        assert await bus.append("log.a", b"", b"") == 2
        await bus.close()

    asyncio.run(asyncio.wait_for(test(), 60))


def test_clients_in_two_threads_reach_each_other() -> None:
    server = MemoryBusServer()
    listening = threading.Event()

    async def serve() -> None:
        bus = MemoryBus(server)
        asked = asyncio.Event()

        async def handler(message: Message) -> None:
            await bus.publish(message.reply, b"re: " + message.data)
            asked.set()

        await bus.subscribe("ask", handler)
        listening.set()
        await asyncio.wait_for(asked.wait(), 10)
        await bus.close()

    async def ask() -> bytes:
        return await MemoryBus(server).request("ask", b"x", 5.0)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert listening.wait(60)
    assert asyncio.run(ask()) == b"re: x"
    thread.join(10)
    assert not thread.is_alive()
