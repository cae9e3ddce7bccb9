"""A real nats-server for tests, on a free loopback port and in a folder of its own.

How its process starts and ends is in `support.serverprocess`.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbsched.local.binaries import find_nats_server
from support.serverprocess import ServerProcess, free_ports

START_WITHIN_S = 20.0


class NatsServer(ServerProcess):
    """One server. Data and port stay the same over a restart."""

    def __init__(self, folder: Path, *options: str, jetstream: bool = True) -> None:
        self.binary = find_nats_server()
        self._folder = folder
        self._options = options
        self._jetstream = jetstream
        (self.port,) = free_ports(1)
        super().__init__(folder / "nats.log")

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def _command(self) -> list[str]:
        jetstream = ["-js", "-sd", str(self._folder / "data")] if self._jetstream else []
        return [
            str(self.binary),
            *("-a", "127.0.0.1"),
            *("-p", str(self.port)),
            *jetstream,
            *self._options,
        ]

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_WITHIN_S
        while not self._greets():
            log = (self._folder / "nats.log").read_text(errors="replace")[-2000:]
            if self._process.poll() is not None:
                raise RuntimeError(f"nats-server ended, {self._process.returncode}: {log}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"nats-server is not there after {START_WITHIN_S} s: {log}")
            time.sleep(0.01)

    def _greets(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                return connection.recv(4) == b"INFO"
        except OSError:
            return False


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """The NATS that all tests share; keep to your `namespace`, and leave it running."""
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    server.start()
    try:
        yield server
    finally:
        server.stop()
