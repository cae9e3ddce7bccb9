"""A real etcd for tests, on free loopback ports and in a folder of its own; or three.

How its process starts and ends is in `support.serverprocess`.
"""

from __future__ import annotations

import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nbsched.local.binaries import find_etcd
from nbsched.storage.etcd_rpc import grpc, rpc_pb2, rpc_pb2_grpc
from support.conditions import until
from support.serverprocess import STOP_WITHIN_S, ServerProcess, free_ports

START_WITHIN_S = 60.0


class EtcdServer(ServerProcess):
    """One member, alone unless an `EtcdCluster` says otherwise. Data and ports stay the
    same over a restart."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        tls: bool = False,
        name: str = "test",
        host: str = "127.0.0.1",
    ) -> None:
        """``tls`` makes it listen on https; say in the options with which certificate.

        ``folder`` may be there already, as a file system of its own.
        """
        self.binary = find_etcd()
        self.name = name
        self.members: tuple[EtcdServer, ...] = (self,)
        self._state = "new"
        self._folder = folder
        self._options = options
        self._scheme = "https" if tls else "http"
        self.host = host
        self._port, self._peer_port = free_ports(2)
        # Not in its folder: that may be full.
        super().__init__(folder.with_name(f"{folder.name}.log"))

    @property
    def endpoint(self) -> str:
        return f"{self.host}:{self._port}"

    @property
    def peer(self) -> str:
        return f"http://127.0.0.1:{self._peer_port}"

    def lose_data(self) -> None:
        """Its disk is replaced, while it is down. In a cluster see `EtcdCluster.replace`."""
        assert not self.running
        shutil.rmtree(self._folder / "data")

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

    def defragment(self) -> None:
        with grpc.insecure_channel(self.endpoint) as channel:
            request = rpc_pb2.DefragmentRequest()
            rpc_pb2_grpc.MaintenanceStub(channel).Defragment(request, timeout=STOP_WITHIN_S)

    def age(self, revisions: int) -> None:
        """Let some revisions go by."""
        with grpc.insecure_channel(self.endpoint) as channel:
            kv = rpc_pb2_grpc.KVStub(channel)
            for _ in range(revisions):
                kv.Put(rpc_pb2.PutRequest(key=b"/other", value=b""), timeout=STOP_WITHIN_S)

    def clear_alarms(self) -> None:
        with grpc.insecure_channel(self.endpoint) as channel:
            maintenance = rpc_pb2_grpc.MaintenanceStub(channel)
            for alarm in maintenance.Alarm(rpc_pb2.AlarmRequest()).alarms:
                maintenance.Alarm(
                    rpc_pb2.AlarmRequest(action=2, memberID=alarm.memberID, alarm=alarm.alarm)
                )

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
        return [
            str(self.binary),
            *("--name", self.name),
            *("--data-dir", str(self._folder / "data")),
            *("--listen-client-urls", client),
            *("--advertise-client-urls", client),
            *("--listen-peer-urls", self.peer),
            *("--initial-advertise-peer-urls", self.peer),
            *("--initial-cluster", ",".join(f"{m.name}={m.peer}" for m in self.members)),
            *("--initial-cluster-state", self._state),
            *("--heartbeat-interval", "20"),
            *("--election-timeout", "200"),
            *("--log-level", "error"),
            *self._options,
        ]

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_WITHIN_S
        while not self._healthy():
            log = self._log.read_text(errors="replace")[-2000:]
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


class EtcdCluster:
    """Three members that hold one state. Any one may be down."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.members = tuple(
            EtcdServer(folder / f"etcd-{number}", *options, name=f"etcd-{number}")
            for number in range(3)
        )
        for member in self.members:
            member.members = self.members

    @property
    def endpoints(self) -> list[str]:
        return [member.endpoint for member in self.members]

    def start(self) -> None:
        for member in self.members:
            member.launch()
        for member in self.members:
            member.await_ready()

    def replace(self, member: EtcdServer) -> None:
        """A member that is down has lost its data: take it out and in again, empty.

        That is what etcd wants: a member that forgot what it voted for must not come back
        as the one it was.
        """
        member.lose_data()
        others = [other for other in self.members if other is not member]
        with grpc.insecure_channel(others[0].endpoint) as channel:
            cluster = rpc_pb2_grpc.ClusterStub(channel)
            until(lambda: _without(cluster, member.name), START_WITHIN_S, "it is taken out")
            addition = rpc_pb2.MemberAddRequest(peerURLs=[member.peer])
            until(lambda: _accepted(cluster.MemberAdd, addition), START_WITHIN_S, "it is added")
        member._state = "existing"

    def stop(self) -> None:
        for member in self.members:
            member.kill()


def _without(cluster: Any, name: str) -> bool:
    """Take a member out, unless that is done."""
    listed = cluster.MemberList(rpc_pb2.MemberListRequest(), timeout=STOP_WITHIN_S)
    gone = [each.ID for each in listed.members if each.name == name]
    return not gone or _accepted(cluster.MemberRemove, rpc_pb2.MemberRemoveRequest(ID=gone[0]))


def _accepted(change: Any, request: Any) -> bool:
    """False: etcd refuses for 5 s after the others have lost touch with each other."""
    try:
        change(request, timeout=1)
    except grpc.RpcError:
        return False
    return True


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
