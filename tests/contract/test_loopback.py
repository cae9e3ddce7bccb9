"""The short way within a process: same handler, same order, and an end."""

from __future__ import annotations

import asyncio

import pytest

from nbsched.transport import Message, RequestFailedError
from nbsched.transport.loopback import LoopbackBus
from nbsched.transport.memory import MemoryBus, MemoryBusServer
from support.buses import eventually, run


class _Deaf(MemoryBus):
    """A bus whose requests never arrive: only the short way works."""

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        raise RequestFailedError("the long way was taken")


def test_a_request_within_the_process_does_not_touch_the_server() -> None:
    async def test() -> None:
        bus = LoopbackBus(_Deaf(MemoryBusServer()))

        async def handler(message: Message) -> None:
            await bus.publish(message.reply, b"re: " + message.data)

        subscription = await bus.subscribe("to.me", handler)
        assert await bus.request("to.me", b"x", 5.0) == b"re: x"
        await subscription.close()
        with pytest.raises(RequestFailedError, match="long way"):
            await bus.request("to.me", b"x", 5.0)
        await bus.close()

    run(test())


def test_both_ways_lead_to_one_handler_one_message_after_another() -> None:
    async def test() -> None:
        server = MemoryBusServer()
        mine, others = LoopbackBus(MemoryBus(server)), MemoryBus(server)
        inside, most, got = 0, 0, 0

        async def handler(message: Message) -> None:
            nonlocal inside, most, got
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1
            got += 1
            await mine.publish(message.reply, b"done")

        await mine.subscribe("to.me", handler)
        requests = [bus.request("to.me", b"", 5.0) for _ in range(50) for bus in (mine, others)]
        await asyncio.gather(*requests)
        assert (got, most) == (100, 1)
        await mine.close()
        await others.close()

    run(test())


def test_after_the_end_of_a_subscription_nothing_reaches_its_handler() -> None:
    async def test() -> None:
        bus = LoopbackBus(MemoryBus(MemoryBusServer()))
        gate, got = asyncio.Event(), []

        async def handler(message: Message) -> None:
            got.append(message.data)
            await gate.wait()

        subscription = await bus.subscribe("to.me", handler)
        asked = [asyncio.ensure_future(bus.request("to.me", b"%d" % i, 0.2)) for i in range(2)]
        await eventually(lambda: got)
        await subscription.close()
        gate.set()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(answer, RequestFailedError) for answer in answers)
        assert got == [b"0"]
        await bus.close()

    run(test())
