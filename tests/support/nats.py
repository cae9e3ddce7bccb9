"""A real nats-server for tests, on a free loopback port and in a folder of its own; or three.

How its process starts and ends is in `support.serverprocess`.
"""

from __future__ import annotations

import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbsched.local.binaries import find_nats_server
from support.serverprocess import ServerProcess, free_ports

START_WITHIN_S = 60.0


class NatsServer(ServerProcess):
    """One server, alone unless a `NatsCluster` says otherwise. Data and port stay the
    same over a restart."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        jetstream: bool = True,
        name: str = "",
        host: str = "127.0.0.1",
    ) -> None:
        """``folder`` may be there already, as a file system of its own."""
        self.binary = find_nats_server()
        self.name = name
        self.routes: tuple[NatsServer, ...] = ()
        """The servers of its cluster, this one included."""
        self._folder = folder
        self._options = options
        self._jetstream = jetstream
        self.host = host
        self.port, self.route_port, self._monitor_port = free_ports(3)
        # Not in its folder: that may be full.
        super().__init__(folder.with_name(f"{folder.name}.log"))

    @property
    def url(self) -> str:
        return f"nats://{self.host}:{self.port}"

    @property
    def data(self) -> Path:
        """What is its disk."""
        return self._folder / "data"

    def lose_data(self) -> None:
        """Its disk is replaced, while it is down."""
        assert not self.running
        shutil.rmtree(self.data)

    def _command(self) -> list[str]:
        jetstream = ["-js", "-sd", str(self.data)] if self._jetstream else []
        return [
            str(self.binary),
            *("-a", self.host),
            *("-p", str(self.port)),
            *jetstream,
            *self._clustering(),
            *self._options,
        ]

    def _clustering(self) -> list[str]:
        if not self.routes:
            return []
        routes = ",".join(f"nats://127.0.0.1:{other.route_port}" for other in self.routes)
        return [
            *("--name", self.name),
            *("--cluster_name", "test"),
            *("--cluster", f"nats://127.0.0.1:{self.route_port}"),
            *("--routes", routes),
            # The monitoring of a member says when JetStream has a leader and is current.
            *("-m", str(self._monitor_port)),
        ]

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_WITHIN_S
        while not (self._greets() and (not self.routes or self._clustered())):
            log = self._log.read_text(errors="replace")[-2000:]
            if self._process.poll() is not None:
                raise RuntimeError(f"nats-server ended, {self._process.returncode}: {log}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"nats-server is not there after {START_WITHIN_S} s: {log}")
            time.sleep(0.01)

    def _greets(self) -> bool:
        try:
            with socket.create_connection((self.host, self.port), timeout=1) as connection:
                return connection.recv(4) == b"INFO"
        except OSError:
            return False

    def _clustered(self) -> bool:
        """Whether its JetStream takes part in the cluster and has caught up."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(
                f"http://{self.host}:{self._monitor_port}/healthz", timeout=1
            ) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False


class NatsCluster:
    """Three servers whose JetStream can keep three copies. Any one may be down."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.members = tuple(
            NatsServer(folder / f"nats-{number}", *options, name=f"nats-{number}")
            for number in range(3)
        )
        for member in self.members:
            member.routes = self.members

    @property
    def urls(self) -> list[str]:
        return [member.url for member in self.members]

    def start(self) -> None:
        for member in self.members:
            member.launch()
        for member in self.members:
            member.await_ready()

    def stop(self) -> None:
        for member in self.members:
            member.kill()


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """The NATS that all tests share; keep to your `namespace`, and leave it running."""
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    server.start()
    try:
        yield server
    finally:
        server.stop()
