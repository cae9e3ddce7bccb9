"""What only a real NATS can do to logs: be full, be away, lose a delivery or an answer."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from nats.aio.msg import Msg

from nbsched.transport import LogFullError, LogLostError, appender, logreader
from nbsched.transport import jetstream as jetstream_module
from nbsched.transport.nats import NatsBus
from support.buses import (
    bus_on,
    eventually,
    in_thread,
    private_nats,
    replay,
    run,
    serve,
    take,
)
from support.nats import NatsServer

__all__ = ["private_nats"]


# ---------------------------------------------------------------- outages


def test_a_reader_goes_on_after_the_server_was_killed(private_nats: NatsServer) -> None:
    async def test() -> None:
        async with bus_on(private_nats) as bus:
            await bus.ensure_log("log", "log.>")
            for i in range(100):
                await bus.append("log.a", b"", b"%d" % i)
            async with aclosing(bus.read("log", "log.>")) as reader:
                entries = await take(reader, 100)
                reading = asyncio.ensure_future(take(reader, 100))
                await in_thread(private_nats.kill)
                await in_thread(private_nats.start)
                for i in range(100, 200):
                    await bus.append("log.a", b"", b"%d" % i)
                entries += await asyncio.wait_for(reading, 3.0)  # not only when silence alarms
            assert [entry.data for entry in entries] == [b"%d" % i for i in range(200)]
            assert [entry.sequence for entry in entries] == list(range(1, 201))

    run(test())


def test_a_reader_says_when_the_log_comes_back_without_its_end(
    private_nats: NatsServer, tmp_path: Path
) -> None:
    """As after a power cut, which takes what the server had not synced."""
    data, synced = private_nats._folder / "data", tmp_path / "synced"

    async def test() -> None:
        async with bus_on(private_nats) as bus:
            await bus.ensure_log("log", "log.>")
            await bus.append("log.a", b"", b"synced")
            await in_thread(private_nats.stop)
            shutil.copytree(data, synced)
            await in_thread(private_nats.start)
            for _ in range(9):
                await bus.append("log.a", b"", b"not synced")
            async with aclosing(bus.read("log", "log.>")) as reader:
                await take(reader, 10)
                reading = asyncio.ensure_future(take(reader, 1))
                await in_thread(private_nats.kill)
                shutil.rmtree(data)
                shutil.copytree(synced, data)
                await in_thread(private_nats.start)
                with pytest.raises(LogLostError, match="up to 10 and ends at 1"):
                    await reading

    run(test())


def test_appends_in_an_outage_are_stored_once_and_in_order(private_nats: NatsServer) -> None:
    async def test() -> None:
        async with bus_on(private_nats) as bus:
            await bus.ensure_log("log", "log.>")
            appends = [
                asyncio.ensure_future(bus.append("log.a", b"", b"%d" % i)) for i in range(3000)
            ]
            await eventually(lambda: appends[200].done())
            await in_thread(private_nats.kill)  # some are stored and not acknowledged
            assert not appends[-1].done()
            appends += [
                asyncio.ensure_future(bus.append("log.a", b"", b"%d" % i))
                for i in range(3000, 3100)
            ]
            await in_thread(private_nats.start)
            assert await asyncio.gather(*appends) == list(range(1, 3101))
            async with aclosing(bus.read("log", "log.>")) as reader:
                entries = await take(reader, 3100)
            assert [entry.data for entry in entries] == [b"%d" % i for i in range(3100)]

    run(test())


def test_appends_after_an_outage_come_behind_those_that_waited(private_nats: NatsServer) -> None:
    async def test() -> None:
        async with bus_on(private_nats) as bus:
            await bus.ensure_log("log", "log.>")
            await in_thread(private_nats.kill)
            late: list[asyncio.Future[int]] = []

            def append_at_once(up: bool) -> None:
                if up:
                    late.append(asyncio.ensure_future(bus.append("log.a", b"", b"late")))

            waiting = [asyncio.ensure_future(bus.append("log.a", b"", b"")) for _ in range(5)]
            bus._connection.watchers.add(append_at_once)
            await in_thread(private_nats.start)
            assert await asyncio.gather(*waiting) == [1, 2, 3, 4, 5]
            assert await late[0] == 6

    run(test())


def test_an_entry_whose_acknowledgement_got_lost_is_stored_once(
    nats_server: NatsServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_answer = appender.Appender._on_answer
    lost: list[Msg] = []

    def lossy(self: appender.Appender, entry: Any, answer: Msg) -> None:
        if lost:
            on_answer(self, entry, answer)
        else:
            lost.append(answer)

    monkeypatch.setattr(appender.Appender, "_on_answer", lossy)
    monkeypatch.setattr(appender, "ACK_TIMEOUT_S", 0.01)
    monkeypatch.setattr(appender, "TICK_S", 0.01)

    async def test() -> None:
        async with bus_on(nats_server) as bus:
            await bus.ensure_log(namespace, f"{namespace}.>")
            assert await bus.append(f"{namespace}.a", b"", b"") == 1
            assert lost
            assert await bus.last_sequence(namespace) == 1

    run(test())


# ---------------------------------------------------------------- full logs


@pytest.mark.parametrize(
    ("limit", "words"), [({"max_msgs": 3}, "messages"), ({"max_bytes": 700}, "bytes")]
)
def test_a_full_log_refuses_and_says_so(
    nats_server: NatsServer, namespace: str, limit: dict[str, int], words: str
) -> None:
    async def test() -> None:
        async with bus_on(nats_server) as bus:
            config = {"name": namespace, "subjects": [f"{namespace}.>"], "discard": "new", **limit}
            kind = jetstream_module._Response
            await bus._jetstream._call(f"STREAM.CREATE.{namespace}", config, kind)
            for _ in range(3):
                await bus.append(f"{namespace}.a", b"", bytes(100))
            with pytest.raises(LogFullError, match=f"maximum {words} exceeded"):
                await bus.append(f"{namespace}.a", b"", bytes(100))
            assert await bus.last_sequence(namespace) == 3
            await bus.purge(namespace, f"{namespace}.>")
            assert await bus.append(f"{namespace}.a", b"", bytes(100)) == 4

    run(test())


def test_a_full_jetstream_refuses_and_says_so(tmp_path: Path) -> None:
    config = tmp_path / "nats.conf"
    config.write_text("jetstream: {max_file_store: 100KB}")
    server = serve(tmp_path, "-c", str(config))

    async def test() -> None:
        async with bus_on(server) as bus:
            await bus.ensure_log("log", "log.>")
            appends = (bus.append("log.a", b"", bytes(30_000)) for _ in range(10))
            outcomes = await asyncio.gather(*appends, return_exceptions=True)
            assert outcomes[:3] == [1, 2, 3]
            assert isinstance(outcomes[-1], LogFullError)
            assert "max_file_store" in str(outcomes[-1])

    try:
        run(test())
    finally:
        server.kill()


# ---------------------------------------------------------------- readers


async def consumers(bus: NatsBus, log: str) -> list[str]:
    answer = await bus._connection.ask(f"$JS.API.CONSUMER.NAMES.{log}", b"", 5.0)
    return list(json.loads(answer.data)["consumers"] or ())


async def new_consumer(bus: NatsBus, log: str, seen: list[str]) -> str:
    """The log's consumer, once there is one that has not been seen."""
    while True:
        found = [name for name in await consumers(bus, log) if name not in seen]
        if found:
            return found[0]
        await asyncio.sleep(0.01)


def test_a_reader_survives_its_consumer_and_leaves_none_behind(
    nats_server: NatsServer, namespace: str
) -> None:
    async def test() -> None:
        async with bus_on(nats_server) as bus:
            await bus.ensure_log(namespace, f"{namespace}.>")
            async with aclosing(bus.read(namespace, f"{namespace}.>")) as reader:
                seen: list[str] = []
                for i in range(3):
                    reading = asyncio.ensure_future(take(reader, 1))
                    seen.append(await new_consumer(bus, namespace, seen))
                    await bus._jetstream.delete_consumer(namespace, seen[-1])
                    seen.append(await new_consumer(bus, namespace, seen))
                    await bus.append(f"{namespace}.a", b"", b"")
                    assert [entry.sequence for entry in await reading] == [i + 1]
                    await bus._jetstream.delete_consumer(namespace, seen[-1])
            while await consumers(bus, namespace):
                await asyncio.sleep(0.01)

    run(test())


def test_a_delivery_that_got_lost_is_read_again(
    nats_server: NatsServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive = logreader._Consumer._receive
    lost: list[Msg] = []

    async def lossy(self: logreader._Consumer, message: Msg) -> None:
        if message.data == b"17" and not lost:
            lost.append(message)
            return
        await receive(self, message)

    async def test() -> None:
        async with bus_on(nats_server) as bus:
            await bus.ensure_log(namespace, f"{namespace}.>")
            for i in range(50):
                await bus.append(f"{namespace}.a", b"", b"%d" % i)
            async with aclosing(bus.read(namespace, f"{namespace}.>")) as reader:
                entries = await take(reader, 50)
            assert lost
            assert [entry.data for entry in entries] == [b"%d" % i for i in range(50)]

    monkeypatch.setattr(logreader._Consumer, "_receive", lossy)
    run(test())


def test_silence_of_the_server_makes_a_new_consumer(
    nats_server: NatsServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logreader, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(logreader, "RETRY_S", 0.01)
    pull = jetstream_module.JetStream.pull
    pulls: list[str] = []

    async def deaf(self: jetstream_module.JetStream, *args: Any, **kwargs: Any) -> None:
        pulls.append(args[1])
        if len(pulls) > 1:  # the first request never reaches the server
            await pull(self, *args, **kwargs)

    monkeypatch.setattr(jetstream_module.JetStream, "pull", deaf)

    async def test() -> None:
        async with bus_on(nats_server) as bus:
            await bus.ensure_log(namespace, f"{namespace}.>")
            await bus.append(f"{namespace}.a", b"", b"")
            async with aclosing(bus.read(namespace, f"{namespace}.>")) as reader:
                assert len(await take(reader, 1)) == 1
            assert len(set(pulls)) == 2

    run(test())


def test_an_idle_reader_outlives_its_requests(
    nats_server: NatsServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logreader, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(logreader, "EXPIRES_S", 0.2)
    pull = jetstream_module.JetStream.pull
    pulls: list[str] = []

    async def counted(self: jetstream_module.JetStream, *args: Any, **kwargs: Any) -> None:
        pulls.append(args[1])
        await pull(self, *args, **kwargs)

    monkeypatch.setattr(jetstream_module.JetStream, "pull", counted)

    async def test() -> None:
        async with bus_on(nats_server) as bus:
            await bus.ensure_log(namespace, f"{namespace}.>")
            async with aclosing(bus.read(namespace, f"{namespace}.>")) as reader:
                reading = asyncio.ensure_future(take(reader, 1))
                await eventually(lambda: len(pulls) >= 4)
                await bus.append(f"{namespace}.a", b"", b"")
                assert len(await reading) == 1
            assert len(set(pulls)) == 1

    run(test())


def test_replay_ends_without_waiting_for_a_sign_of_life(
    nats_server: NatsServer, namespace: str
) -> None:
    async def test() -> None:
        async with bus_on(nats_server) as bus:
            await bus.ensure_log(namespace, f"{namespace}.>")
            for name in ("a", "b"):
                await bus.append(f"{namespace}.{name}", b"", b"")
            started = time.monotonic()
            for name, count in (("a", 1), ("b", 1), ("none", 0)):
                assert len(await replay(bus, namespace, f"{namespace}.{name}")) == count
            assert time.monotonic() - started < logreader.HEARTBEAT_S / 2

    run(test())


def test_a_slow_reader_of_200_mib_loses_nothing_and_buffers_little(
    private_nats: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with bus_on(private_nats) as bus, bus_on(private_nats) as other:
            await bus.ensure_log("log", "log.>")
            await other.append("log.a", b"", b"first")
            async with aclosing(bus.read("log", "log.>")) as reader:
                await take(reader, 1)
                # The reader's owner is busy while 200 MiB arrive, then slow.
                body = bytes(512 * 1024)
                await asyncio.gather(*(other.append("log.a", b"", body) for _ in range(400)))
                sequences: list[int] = []
                while len(sequences) < 400:
                    batch = await anext(reader)
                    assert sum(len(entry.data) for entry in batch) <= logreader.MAX_BYTES
                    sequences += [entry.sequence for entry in batch]
                    time.sleep(0.005)  # noqa: ASYNC251 - it blocks even the loop
            assert sequences == list(range(2, 402))

    with caplog.at_level(logging.INFO, logger="nbsched"):
        run(test())
    assert not caplog.records, "the reader had to start again"
