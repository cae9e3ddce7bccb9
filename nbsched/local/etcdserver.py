"""The etcd of a local cluster: command line, first password, questions to it.

It is spoken to through its HTTP gateway, with the standard library: the gRPC client
would cost the supervisor its quick start, and would bring threads that make its
forks unsafe. Nothing here waits for the server to come up.
"""

from __future__ import annotations

import base64
import http.client
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from nbsched.local.home import Home
from nbsched.local.process import Command
from nbsched.local.runtime import ETCD_USER, Identity, NotReadyError, Plan, RefusedError
from nbsched.model import JobStatus
from nbsched.names import Names

_BOOT_SOCKET = "boot:0"
_PEER_URL = "unix://peer:0"
"""etcd talks to its peers, of which there are none, through a socket in the private
folder: no port, and nobody else can pose as a peer. etcd wants a port in the name."""
_ANSWER_TIMEOUT_S = 2.0
QUOTA_BYTES = 4 * 1024**3
_STOP_WITHIN_S = 60.0
"""For the calls that stop etcd while they work."""

_COMPACTED = "required revision has been compacted"
"""etcd's answer to a second compaction without a write in between."""

Address = Path | int
"""A socket in the folder, or a loopback port."""


def command(plan: Plan, home: Home, identity: Identity, *, boot: bool, lock: int) -> Command:
    """``boot``: listen on a socket inside the private folder only, to be given a
    password before anybody else can connect."""
    url = f"unix://{_BOOT_SOCKET}" if boot else f"http://127.0.0.1:{identity.etcd_port}"
    options = {
        "name": "local",
        "data-dir": "etcd",
        "listen-peer-urls": _PEER_URL,
        "initial-advertise-peer-urls": _PEER_URL,
        "initial-cluster": f"local={_PEER_URL}",
        "listen-client-urls": url,
        "advertise-client-urls": url,
        # One member needs no patience with its peers; it leads this soon after a start.
        "heartbeat-interval": "20",
        "election-timeout": "100",
        # The password is 24 random bytes: a slow hash would only delay each connection.
        "bcrypt-cost": "4",
        "auto-compaction-mode": "periodic",
        # What a thousand jobs a second leave behind within an hour would fill the quota.
        "auto-compaction-retention": "5m",
        "quota-backend-bytes": str(QUOTA_BYTES),
        # Entries since the last snapshot stay in memory, each up to 64 KiB of a small job.
        "snapshot-count": "5000",
        "logger": "zap",
        "log-outputs": "stderr",
        "log-level": "warn",
    }
    argv = [plan.etcd_binary, *(f"--{name}={value}" for name, value in options.items())]
    if not plan.shared:
        argv.append("--unsafe-no-fsync")  # these data do not outlive a power cut anyway
    # etcd refuses to start on ETCD_* variables that contradict its options.
    environ = {k: v for k, v in os.environ.items() if not k.startswith("ETCD_")}
    return Command(argv=argv, cwd=str(home.path), environ=environ, keep=(lock,))


def set_password(home: Home, identity: Identity) -> None:
    """Turn authentication on. Raises NotReadyError."""
    address = home.path / _BOOT_SOCKET
    _post(address, "auth/user/add", {"name": ETCD_USER, "password": identity.etcd_password})
    _post(address, "auth/role/add", {"name": "root"})
    _post(address, "auth/user/grant", {"user": ETCD_USER, "role": "root"})
    _post(address, "auth/enable", {})


def log_in(identity: Identity) -> str:
    """Log in: also the proof that etcd is up, leads and has the password.

    Raises:
        NotReadyError: no answer.
        RefusedError: somebody else's etcd answers there.
    """
    body = {"name": ETCD_USER, "password": identity.etcd_password}
    answer = _post(identity.etcd_port, "auth/authenticate", body)
    return str(answer["token"])


def revoke_leases(identity: Identity) -> None:
    """End the leases of an earlier life: all their holders are known to be dead, and
    a new leader need not wait for the old one's to run out."""
    token = log_in(identity)
    for lease in _post(identity.etcd_port, "lease/leases", {}, token).get("leases", []):
        _post(identity.etcd_port, "lease/revoke", {"ID": lease["ID"]}, token)


@dataclass(frozen=True)
class Room:
    """What etcd's file takes, what of it is in use, and whether it refuses to grow."""

    file_bytes: int
    used_bytes: int
    full: bool


def room(identity: Identity, token: str) -> Room:
    """How much room there is. Raises NotReadyError, RefusedError."""
    status = _post(identity.etcd_port, "maintenance/status", {}, token)
    full = bool(_space_alarms(identity, token))
    return Room(int(status["dbSize"]), int(status["dbSizeInUse"]), full)


def _space_alarms(identity: Identity, token: str) -> list[dict[str, Any]]:
    answer = _post(identity.etcd_port, "maintenance/alarm", {"action": "GET"}, token)
    return [alarm for alarm in answer.get("alarms", []) if alarm.get("alarm") == "NOSPACE"]


def compact(identity: Identity, token: str) -> None:
    """Drop all history, if there is any, and wait until its pages are free."""
    status = _post(identity.etcd_port, "maintenance/status", {}, token)
    body = {"revision": status["header"]["revision"], "physical": True}
    try:
        _post(identity.etcd_port, "kv/compaction", body, token, timeout_s=_STOP_WITHIN_S)
    except RefusedError as error:
        if _COMPACTED not in str(error):
            raise


def defragment(identity: Identity, token: str) -> None:
    """Give free pages back to the disk; etcd stands still meanwhile."""
    _post(identity.etcd_port, "maintenance/defragment", {}, token, timeout_s=_STOP_WITHIN_S)


def clear_alarm(identity: Identity, token: str) -> None:
    """Let etcd write again after it was full."""
    for alarm in _space_alarms(identity, token):
        body = {"action": "DEACTIVATE", **alarm}
        _post(identity.etcd_port, "maintenance/alarm", body, token)


def has_unfinished_jobs(identity: Identity, namespace: str) -> bool:
    """Whether a job has not ended: no status yet, or one that is not an end."""
    names = Names(namespace)
    token = log_in(identity)
    jobs = {key.removeprefix(names.jobs) for key, _ in _range(identity, token, names.jobs, True)}
    for key, value in _range(identity, token, names.statuses, False):
        if _has_ended(value):
            jobs.discard(key.removeprefix(names.statuses))
    return bool(jobs)


def _has_ended(status: bytes) -> bool:
    try:
        return msgspec.json.decode(status, type=JobStatus).state.ended
    except msgspec.DecodeError:  # of a newer version: better to run on than to lose it
        return False


def _range(identity: Identity, token: str, prefix: str, keys_only: bool) -> list[tuple[str, bytes]]:
    after = prefix[:-1] + chr(ord(prefix[-1]) + 1)
    body = {"key": _b64(prefix), "range_end": _b64(after), "keys_only": keys_only}
    answer = _post(identity.etcd_port, "kv/range", body, token)
    return [
        (base64.b64decode(item["key"]).decode(), base64.b64decode(item.get("value", "")))
        for item in answer.get("kvs", [])
    ]


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _post(
    address: Address,
    path: str,
    body: object,
    token: str | None = None,
    *,
    timeout_s: float = _ANSWER_TIMEOUT_S,
) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = token
    connection = http.client.HTTPConnection("127.0.0.1")
    try:
        connection.sock = _connect(address, timeout_s)
        connection.request("POST", f"/v3/{path}", msgspec.json.encode(body), headers)
        response = connection.getresponse()
        answer = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise NotReadyError(f"etcd: {error}") from error
    finally:
        connection.close()
    if response.status == 503:  # it serves, but does not lead yet
        raise NotReadyError(answer.decode(errors="replace"))
    if response.status != 200:
        raise RefusedError(f"etcd refused {path}: {answer.decode(errors='replace')}")
    found: dict[str, Any] = msgspec.json.decode(answer)
    return found


def _connect(address: Address, timeout_s: float) -> socket.socket:
    if isinstance(address, int):
        return socket.create_connection(("127.0.0.1", address), timeout=timeout_s)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout_s)
    try:
        # The bare name, in the folder that the supervisor works in: the path of a
        # socket may have 107 bytes, the path of the folder may have more.
        connection.connect(address.name)
    except BaseException:
        connection.close()
        raise
    return connection
