"""A real etcd for tests, on free loopback ports and in a folder of its own.

How its process starts and ends is in `support.serverprocess`.
"""

from __future__ import annotations

import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbsched.local.binaries import find_etcd
from nbsched.storage.etcd_rpc import grpc, rpc_pb2, rpc_pb2_grpc
from support.serverprocess import STOP_WITHIN_S, ServerProcess, free_ports

START_WITHIN_S = 20.0


class EtcdServer(ServerProcess):
    """One single-member etcd. Data and ports stay the same over a restart."""

    def __init__(self, folder: Path, *options: str, tls: bool = False) -> None:
        """``tls`` makes it listen on https; say in the options with which certificate."""
        self.binary = find_etcd()
        self._folder = folder
        self._options = options
        self._scheme = "https" if tls else "http"
        self._port, self._peer_port = free_ports(2)
        super().__init__(folder / "etcd.log")

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def certificate(self) -> Path:
        """The self-signed certificate that ``--auto-tls`` made."""
        return self._folder / "data" / "fixtures" / "client" / "cert.pem"

    def revoke_lease(self, lease_id: int) -> None:
        with grpc.insecure_channel(self.endpoint) as channel:
            request = rpc_pb2.LeaseRevokeRequest(ID=lease_id)
            rpc_pb2_grpc.LeaseStub(channel).LeaseRevoke(request, timeout=STOP_WITHIN_S)

    def compact(self, revision: int) -> None:
        with grpc.insecure_channel(self.endpoint) as channel:
            request = rpc_pb2.CompactionRequest(revision=revision)
            rpc_pb2_grpc.KVStub(channel).Compact(request, timeout=STOP_WITHIN_S)

    def turn_authentication_on(self, root_password: str) -> None:
        """Make a user root with this password; nobody gets in without one any more."""
        with grpc.insecure_channel(self.endpoint) as channel:
            auth = rpc_pb2_grpc.AuthStub(channel)
            auth.UserAdd(rpc_pb2.AuthUserAddRequest(name="root", password=root_password))
            auth.RoleAdd(rpc_pb2.AuthRoleAddRequest(name="root"))
            auth.UserGrantRole(rpc_pb2.AuthUserGrantRoleRequest(user="root", role="root"))
            auth.AuthEnable(rpc_pb2.AuthEnableRequest())

    def _command(self) -> list[str]:
        client = f"{self._scheme}://{self.endpoint}"
        peer = f"http://127.0.0.1:{self._peer_port}"
        return [
            str(self.binary),
            *("--name", "test"),
            *("--data-dir", str(self._folder / "data")),
            *("--listen-client-urls", client),
            *("--advertise-client-urls", client),
            *("--listen-peer-urls", peer),
            *("--initial-advertise-peer-urls", peer),
            *("--initial-cluster", f"test={peer}"),
            *("--heartbeat-interval", "20"),
            *("--election-timeout", "200"),
            *("--log-level", "error"),
            *self._options,
        ]

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_WITHIN_S
        while not self._healthy():
            log = (self._folder / "etcd.log").read_text(errors="replace")[-2000:]
            if self._process.poll() is not None:
                raise RuntimeError(f"etcd ended with status {self._process.returncode}: {log}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"etcd is not healthy after {START_WITHIN_S} s: {log}")
            time.sleep(0.01)

    def _healthy(self) -> bool:
        trusting = ssl._create_unverified_context()
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusting)
        )
        try:
            with opener.open(f"{self._scheme}://{self.endpoint}/health", timeout=1) as answer:
                return b'"true"' in answer.read()
        except (urllib.error.URLError, OSError):
            return False


@pytest.fixture(scope="session")
def etcd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """The etcd that all tests share; keep to your `namespace`, and leave it running."""
    server = EtcdServer(tmp_path_factory.mktemp("etcd"))
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def private_etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    """An etcd of the test's own, running, to be killed and restarted at will."""
    server = EtcdServer(tmp_path / "private-etcd")
    server.start()
    try:
        yield server
    finally:
        server.kill()
