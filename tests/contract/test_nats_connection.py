"""What only a real NATS can do to a connection: refuse it, never answer, go and come back."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from contextlib import closing
from pathlib import Path
from socket import create_server
from typing import Any

import pytest

from nbsched.errors import (
    BusUnreachableError,
    ConfigurationError,
    ConnectError,
    JetStreamMissingError,
)
from nbsched.transport import Message
from support.buses import (
    bus_on,
    connect,
    eventually,
    in_thread,
    private_nats,
    run,
    serve,
)
from support.nats import NatsServer
from support.serverprocess import free_ports

__all__ = ["private_nats"]


# ---------------------------------------------------------------- connecting


def test_a_closed_port_is_an_error_within_the_timeout() -> None:
    (port,) = free_ports(1)
    started = time.monotonic()
    with pytest.raises(BusUnreachableError) as caught:
        run(connect(f"nats://127.0.0.1:{port}", connect_timeout_s=0.5))
    assert 0.4 < time.monotonic() - started < 10
    for words in (f"127.0.0.1:{port}", "within 0.5 s", "refused", "nats-server -js"):
        assert words in str(caught.value).replace("Connect call failed", "refused")


def test_a_server_that_never_answers_is_an_error_within_the_timeout() -> None:
    with closing(create_server(("127.0.0.1", 0))) as silent:
        url = f"nats://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(BusUnreachableError, match=r"within 0\.5 s \(no answer\)"):
            run(connect(url, connect_timeout_s=0.5))
        assert time.monotonic() - started < 10


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
            run(connect(server.url))
    finally:
        server.kill()


def test_wrong_credentials_are_an_error_at_once_that_names_the_settings(tmp_path: Path) -> None:
    server = serve(tmp_path, "--user", "me", "--pass", "right")
    try:
        run(close(connect(server.url, nats_user="me", nats_password="right")))
        for wrong in ({}, {"nats_user": "me", "nats_password": "wrong"}):
            with pytest.raises(ConnectError, match=r"authorization.*nats_password") as caught:
                run(connect(server.url, connect_timeout_s=20, **wrong))
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
            run(connect(with_secret))
        assert "hunter2" not in str(caught.value)
    finally:
        server.kill()


def test_a_server_without_tls_is_refused_when_tls_was_asked_for(nats_server: NatsServer) -> None:
    with pytest.raises(ConnectError, match="does not use TLS"):
        run(connect(nats_server.url.replace("nats://", "tls://")))


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
            run(connect(url, connect_timeout_s=0.5))
    finally:
        server.kill()


@pytest.mark.parametrize("field", ["nats_ca", "nats_creds"])
def test_a_file_that_cannot_be_read_is_named(
    nats_server: NatsServer, tmp_path: Path, field: str
) -> None:
    with pytest.raises(ConfigurationError, match=field):
        run(connect(nats_server.url, **{field: str(tmp_path / "missing")}))


# ---------------------------------------------------------------- outages


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
        assert time.monotonic() - started < 10
        for append in appends:
            with pytest.raises(BusUnreachableError):
                await append

    run(test())
