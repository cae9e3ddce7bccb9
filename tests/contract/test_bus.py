"""What every bus must do with messages that are not kept, in memory and on NATS."""

from __future__ import annotations

import asyncio
import logging

import pytest

from nbsched.errors import ConfigurationError
from nbsched.transport import Message, RequestFailedError
from support.buses import Place, eventually, place, run

__all__ = ["place"]


def test_messages_arrive_in_the_order_of_publishing(place: Place) -> None:
    async def test() -> None:
        async with place.bus() as sender, place.bus() as receiver:
            got: list[Message] = []

            async def handler(message: Message) -> None:
                await asyncio.sleep(0)
                got.append(message)

            await receiver.subscribe(f"{place.prefix}.*", handler)
            for i in range(300):
                await sender.publish(f"{place.prefix}.x", b"%d" % i, reply="answers.here")
            await eventually(lambda: len(got) == 300)
            assert [message.data for message in got] == [b"%d" % i for i in range(300)]
            assert {(m.subject, m.reply) for m in got} == {(f"{place.prefix}.x", "answers.here")}

    run(test())


def test_a_request_gets_its_answer(place: Place) -> None:
    async def test() -> None:
        async with place.bus() as client, place.bus() as server:

            async def handler(message: Message) -> None:
                await server.publish(message.reply, b"re: " + message.data)

            await server.subscribe(f"{place.prefix}.ask", handler)
            asked = (client.request(f"{place.prefix}.ask", b"%d" % i, 5.0) for i in range(50))
            assert await asyncio.gather(*asked) == [b"re: %d" % i for i in range(50)]

    run(test())


def test_a_subscription_is_there_when_subscribe_returns(place: Place) -> None:
    async def test() -> None:
        async with place.bus() as client, place.bus() as server:

            async def handler(message: Message) -> None:
                await server.publish(message.reply, b"here")

            await client.subscribe(f"{place.prefix}.warm-up", handler)
            for i in range(200):
                await server.subscribe(f"{place.prefix}.ask.{i}", handler)
                assert await client.request(f"{place.prefix}.ask.{i}", b"", 5.0) == b"here"

    run(test())


def test_a_request_that_nobody_listens_to_fails_at_once(place: Place) -> None:
    async def test() -> None:
        async with place.bus() as bus:
            with pytest.raises(RequestFailedError, match="Nobody"):
                await bus.request(f"{place.prefix}.nobody", b"", 60.0)

    run(test())


def test_a_request_without_an_answer_fails_in_time(place: Place) -> None:
    async def test() -> None:
        async with place.bus() as bus:

            async def silent(message: Message) -> None:
                pass

            await bus.subscribe(f"{place.prefix}.silent", silent)
            with pytest.raises(RequestFailedError, match=r"within 0\.05 s"):
                await bus.request(f"{place.prefix}.silent", b"", 0.05)

    run(test())


def test_a_failing_handler_keeps_its_subscription(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with place.bus() as bus:
            got: list[bytes] = []

            async def handler(message: Message) -> None:
                got.append(message.data)
                if message.data == b"raise":
                    raise ValueError("no good")
                if message.data == b"cancel":
                    raise asyncio.CancelledError

            await bus.subscribe(f"{place.prefix}.x", handler)
            for data in (b"raise", b"cancel", b"last"):
                await bus.publish(f"{place.prefix}.x", data)
            await eventually(lambda: len(got) == 3)

    with caplog.at_level(logging.ERROR):
        run(test())
    assert "no good" in caplog.text
    assert "cancelled from inside" in caplog.text


def test_a_closed_subscription_gets_nothing_more(place: Place) -> None:
    async def test() -> None:
        async with place.bus() as bus:
            got: list[Message] = []

            async def handler(message: Message) -> None:
                got.append(message)

            subscription = await bus.subscribe(f"{place.prefix}.x", handler)
            await subscription.close()
            with pytest.raises(RequestFailedError):
                await bus.request(f"{place.prefix}.x", b"", 5.0)
            assert got == []

    run(test())


def test_a_message_over_the_limit_is_refused_with_the_setting_to_change(place: Place) -> None:
    async def test() -> None:
        async with place.bus_with_log() as bus:
            too_large = bytes(bus.max_payload + 1)
            for call in (
                bus.publish(f"{place.prefix}.x", too_large),
                bus.request(f"{place.prefix}.x", too_large, 1.0),
                bus.append(place.subject("a"), b"header", too_large[:-1]),
            ):
                with pytest.raises(ConfigurationError, match="message_bytes"):
                    await call
            # The server would have cut off the connection for it.
            assert await bus.append(place.subject("a"), b"header", b"small") == 1

    run(test())
