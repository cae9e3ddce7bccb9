"""What only a real NATS can do: be away, refuse, be full, and come back."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import aclosing, asynccontextmanager, closing
from pathlib import Path
from socket import create_server
from typing import Any

import pytest
from nats.aio.msg import Msg

from nbsched.errors import (
    BusUnreachableError,
    ConfigurationError,
    ConnectError,
    JetStreamMissingError,
)
from nbsched.settings import Settings
from nbsched.transport import LogFullError, Message, logreader
from nbsched.transport import jetstream as jetstream_module
from nbsched.transport.nats import NatsBus
from support.buses import eventually, run, take
from support.etcd import free_ports
from support.nats import NatsServer


async def connect(*urls: str, **settings: Any) -> NatsBus:
    return await NatsBus.connect(Settings(nats=urls, **settings), name="test")


@asynccontextmanager
async def bus_on(server: NatsServer, **settings: Any):  # type: ignore[no-untyped-def]
    bus = await connect(server.url, **settings)
    try:
        yield bus
    finally:
        await bus.close()


async def in_thread(call: Any) -> None:
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


# ---------------------------------------------------------------- connecting


def test_a_closed_port_is_an_error_within_the_timeout() -> None:
    (port,) = free_ports(1)
    started = time.monotonic()
    with pytest.raises(BusUnreachableError) as caught:
        run(connect(f"nats://127.0.0.1:{port}", connect_timeout_s=0.5))  # type: ignore[arg-type]
    assert 0.4 < time.monotonic() - started < 1.5
    for words in (f"127.0.0.1:{port}", "within 0.5 s", "refused", "nats-server -js"):
        assert words in str(caught.value).replace("Connect call failed", "refused")


def test_a_server_that_never_answers_is_an_error_within_the_timeout() -> None:
    with closing(create_server(("127.0.0.1", 0))) as silent:
        url = f"nats://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(BusUnreachableError, match=r"within 0\.5 s \(no answer\)"):
            run(connect(url, connect_timeout_s=0.5))  # type: ignore[arg-type]
        assert time.monotonic() - started < 1.5


def test_one_server_of_the_list_is_enough(nats_server: NatsServer) -> None:
    async def test() -> None:
        with closing(create_server(("127.0.0.1", 0))) as silent:
            silent_url = f"nats://127.0.0.1:{silent.getsockname()[1]}"
            closed_url = f"nats://127.0.0.1:{free_ports(1)[0]}"
            bus = await connect(silent_url, closed_url, nats_server.url)
            await bus.close()

    run(test())


def test_a_server_without_jetstream_is_refused_with_the_option_to_use(tmp_path: Path) -> None:
    server = serve(tmp_path, jetstream=False)
    try:
        with pytest.raises(JetStreamMissingError, match="-js"):
            run(connect(server.url))  # type: ignore[arg-type]
    finally:
        server.kill()


def test_wrong_credentials_are_an_error_at_once_that_names_the_settings(tmp_path: Path) -> None:
    server = serve(tmp_path, "--user", "me", "--pass", "right")
    try:
        run(close(connect(server.url, nats_user="me", nats_password="right")))
        for wrong in ({}, {"nats_user": "me", "nats_password": "wrong"}):
            with pytest.raises(ConnectError, match=r"authorization.*nats_password") as caught:
                run(connect(server.url, connect_timeout_s=20, **wrong))  # type: ignore[arg-type]
            assert "wrong" not in str(caught.value)
    finally:
        server.kill()


async def close(connecting: Any) -> None:
    await (await connecting).close()


def test_a_token_is_accepted_and_passwords_in_urls_are_not_shown(tmp_path: Path) -> None:
    server = serve(tmp_path, "--auth", "secret-token")
    try:
        run(close(connect(server.url, nats_token="secret-token")))
        with_secret = server.url.replace("//", "//user:hunter2@")
        with pytest.raises(ConnectError) as caught:
            run(connect(with_secret))  # type: ignore[arg-type]
        assert "hunter2" not in str(caught.value)
    finally:
        server.kill()


def test_a_server_without_tls_is_refused_when_tls_was_asked_for(nats_server: NatsServer) -> None:
    with pytest.raises(ConnectError, match="does not use TLS"):
        run(connect(nats_server.url.replace("nats://", "tls://")))  # type: ignore[arg-type]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_tls_checks_the_server_against_our_ca(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *(
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=test",
                "-addext",
                "subjectAltName=IP:127.0.0.1",
            ),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    server = serve(tmp_path, "--tls", "--tlscert", str(certificate), "--tlskey", str(key))
    url = server.url.replace("nats://", "tls://")
    try:
        run(close(connect(url, nats_ca=str(certificate))))
        with pytest.raises(BusUnreachableError, match="certificate verify failed"):
            run(connect(url, connect_timeout_s=0.5))  # type: ignore[arg-type]
    finally:
        server.kill()


@pytest.mark.parametrize("field", ["nats_ca", "nats_creds"])
def test_a_file_that_cannot_be_read_is_named(
    nats_server: NatsServer, tmp_path: Path, field: str
) -> None:
    with pytest.raises(ConfigurationError, match=field):
        run(connect(nats_server.url, **{field: str(tmp_path / "missing")}))  # type: ignore[arg-type]


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
                entries += await reading
            assert [entry.data for entry in entries] == [b"%d" % i for i in range(200)]
            assert [entry.sequence for entry in entries] == list(range(1, 201))

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


def test_messages_in_an_outage_fail_at_once_and_subscriptions_survive_it(
    private_nats: NatsServer,
) -> None:
    async def test() -> None:
        async with bus_on(private_nats) as bus:
            got: list[Message] = []

            async def handler(message: Message) -> None:
                got.append(message)

            await bus.subscribe("subject", handler)
            asking = asyncio.ensure_future(bus.request("subject", b"before", 60.0))
            await eventually(lambda: got)
            await in_thread(private_nats.kill)
            with pytest.raises(BusUnreachableError, match="not reachable"):
                await asking
            with pytest.raises(BusUnreachableError, match="not reachable"):
                await bus.publish("subject", b"lost")
            with pytest.raises(BusUnreachableError):
                await bus.request("subject", b"lost", 60.0)
            await in_thread(private_nats.start)
            await bus._connection.wait_connected()
            await bus.publish("subject", b"after")
            await eventually(lambda: len(got) == 2)
            assert got[1].data == b"after"

    run(test())


def test_a_client_that_the_server_has_thrown_out_is_replaced(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with bus_on(nats_server) as bus:
            got: list[Message] = []

            async def handler(message: Message) -> None:
                got.append(message)

            await bus.subscribe("thrown.out", handler)
            first = bus._connection._client
            # nats-py counts only the payload, the server the headers too: it hangs up for
            # good with "Maximum Payload Violation".
            await first.publish("x", bytes(bus.max_payload), headers={"Too": "much"})
            await eventually(lambda: bus._connection._client is not first)
            await bus._connection.wait_connected()
            await bus.publish("thrown.out", b"")
            await eventually(lambda: got)

    run(test())


def test_closing_does_not_wait_for_a_frozen_server(private_nats: NatsServer) -> None:
    async def test() -> None:
        bus = await connect(private_nats.url)
        await bus.ensure_log("log", "log.>")
        private_nats.freeze()
        appends = [
            asyncio.ensure_future(bus.append("log.a", b"", bytes(500_000))) for _ in range(40)
        ]
        await asyncio.wait(appends, timeout=0.1)
        started = time.monotonic()
        await bus.close()
        assert time.monotonic() - started < 4.0
        for append in appends:
            with pytest.raises(BusUnreachableError):
                await append

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
