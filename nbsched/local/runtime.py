"""The records of a local cluster: what it is to run, how to reach it, who it is.

Plain JSON files in its folder. Nothing here starts, stops or connects to anything.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path
from typing import TypeVar

import msgspec

from nbsched.local.home import Home, write_private
from nbsched.settings import Settings

_Record = TypeVar("_Record", bound=msgspec.Struct)

ETCD_USER = "root"
"""etcd insists on this name for the user without whom authentication cannot be on."""
NATS_USER = "nbsched"


class NotReadyError(Exception):
    """A server does not answer yet."""


class RefusedError(Exception):
    """A server answered that it will not do that, or is not the one it should be."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a supervisor is to run; written by its starter."""

    folder: str
    namespace: str
    shared: bool
    """True: in the background until it is stopped or idle. False: the starter's own."""
    worker_cpus: tuple[int | None, ...]
    """CPU slots of each worker; None leaves the number to the worker."""
    worker_cwd: str
    worker_environ: dict[str, str]
    """Settings of the starter, as ``NBSCHED_*``; no credentials."""
    etcd_binary: str
    nats_binary: str
    idle_stop_s: float = 3600.0
    drain_s: float = 3.0
    """How long workers may finish or hand back work at a stop; 0 stops at once."""
    start_timeout_s: float = 30.0


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Ports and credentials. They stay the same when the cluster is started again, so
    that a client of its earlier life finds it."""

    etcd_port: int
    nats_port: int
    etcd_password: str
    nats_password: str
    ready: bool = False
    """Whether etcd's data know the password; before, they hold nothing worth keeping."""

    @classmethod
    def new(cls) -> Identity:
        etcd_port, nats_port = free_ports(2)
        return cls(
            etcd_port=etcd_port,
            nats_port=nats_port,
            etcd_password=secrets.token_hex(24),
            nats_password=secrets.token_hex(24),
        )


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One process under the supervisor."""

    name: str
    """``etcd``, ``nats``, ``worker-0``, …; its log is ``NAME.log``."""
    pid: int
    """0 while it waits to be started again."""
    restarts: int
    started_at: float


class Runtime(msgspec.Struct, frozen=True, kw_only=True):
    """A running cluster, as its supervisor publishes it."""

    pid: int
    """The supervisor's."""
    start_mark: str
    """When that process began: another one may get its pid later."""
    host: str
    folder: str
    namespace: str
    shared: bool
    etcd: str
    nats: str
    etcd_password: str
    nats_password: str
    worker_cpus: tuple[int | None, ...]
    started_at: float
    version: str
    python: str
    """Minor version of its workers' Python: pickles do not cross it."""
    executable: str
    etcd_user: str = ETCD_USER
    nats_user: str = NATS_USER
    parts: tuple[Part, ...] = ()

    def pids(self) -> dict[str, list[int]]:
        """Pids by kind: ``supervisor``, ``etcd``, ``nats``, ``workers``."""
        found: dict[str, list[int]] = {"supervisor": [self.pid]}
        found.update({"etcd": [], "nats": [], "workers": []})
        for part in self.parts:
            if part.pid:
                found["workers" if part.name.startswith("worker") else part.name].append(part.pid)
        return found


def save(path: Path, record: msgspec.Struct) -> None:
    """Replace the record on disk in one step, readable by its owner only."""
    write_private(path, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")


def load(path: Path, kind: type[_Record]) -> _Record | None:
    """Read a record. None when there is none, or one that this version cannot read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def is_alive(record: Runtime) -> bool:
    """Whether the supervisor of this record runs, on this machine."""
    return record.host == socket.gethostname() and start_mark(record.pid) == record.start_mark


def start_mark(pid: int) -> str | None:
    """When a process began, as the system writes it. None: no such process.

    A process that has ended and waits for its parent to notice counts as gone.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() else _start_mark_by_ps(pid)
    except OSError:
        return None
    # The name, in parentheses, may itself hold blanks and parentheses.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def _start_mark_by_ps(pid: int) -> str | None:
    """For systems without /proc."""
    command = ["ps", "-o", "lstart=", "-p", str(pid)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


def to_settings(record: Runtime, base: Settings) -> Settings:
    """``base`` pointed at this cluster.

    What ``base`` says of other servers (their TLS files, tokens, credentials) does not
    apply to this machine's own and is dropped.
    """
    return msgspec.structs.replace(
        base,
        etcd=(record.etcd,),
        nats=(record.nats,),
        namespace=record.namespace,
        etcd_user=record.etcd_user,
        etcd_password=record.etcd_password,
        nats_user=record.nats_user,
        nats_password=record.nats_password,
        **dict.fromkeys(_OF_OTHER_SERVERS),
        local=True,
        shared_folder=str(Home(Path(record.folder)).payloads),
    )


_OF_OTHER_SERVERS = (
    "etcd_ca",
    "etcd_cert",
    "etcd_key",
    "nats_token",
    "nats_creds",
    "nats_ca",
    "nats_cert",
    "nats_key",
)
_GIVEN_BY_SUPERVISOR = {
    "etcd",
    "nats",
    "namespace",
    "etcd_user",
    "etcd_password",
    "nats_user",
    "nats_password",
    "local",
    "shared_folder",
}


def worker_environ(settings: Settings) -> dict[str, str]:
    """The settings that apply to workers of a local cluster, as environment variables."""
    found = {}
    for name in settings.__struct_fields__:
        value = getattr(settings, name)
        if value is None or name in _GIVEN_BY_SUPERVISOR or name in _OF_OTHER_SERVERS:
            continue
        found[f"NBSCHED_{name.upper()}"] = str(value)
    # Everything has been decided here: a config file must not add to it.
    found["NBSCHED_CONFIG"] = os.devnull
    return found


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on at this moment."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def port_is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the servers do: a port in TIME_WAIT can be listened on.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def with_other_ports(identity: Identity) -> Identity:
    etcd_port, nats_port = free_ports(2)
    return msgspec.structs.replace(identity, etcd_port=etcd_port, nats_port=nats_port)


def python_minor() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"
