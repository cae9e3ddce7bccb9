"""The processes of one schedule: servers, three daemons, a client; and who is what now."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from chaos import evidence
from chaos.client import ClientPlan, JobPlan
from chaos.diary import Diary
from chaos.netns import Network
from chaos.smalldisk import SmallDisk
from support.conditions import alive, children, until
from support.etcd import EtcdCluster, EtcdServer
from support.nats import NatsCluster, NatsServer
from support.serverprocess import ServerProcess

REPOSITORY = Path(__file__).resolve().parents[2]
TTL_S = 2.0
GAVE_UP = "nbsched-worker: "
"""How the last line of such a daemon begins."""
START_WITHIN_S = 60.0


def _environment(arena: Arena, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("NBSCHED_", "CHAOS_"))}
    return {
        **kept,
        "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}",
        "CHAOS_MARK": arena.mark,
        # etcd's version that comes from PyPI is refused otherwise.
        "NBSCHED_LOCAL": "true",
        **more,
    }


class DaemonProcess(ServerProcess):
    """One ``nbsched-worker``; starting it again is a new worker of the same name."""

    def __init__(self, arena: Arena, name: str, cpus: int) -> None:
        self.name = name
        self._arena = arena
        self._cpus = cpus
        self._joined = 0
        self.log = arena.folder / f"{name}.log"
        super().__init__(self.log)

    def _command(self) -> list[str]:
        settings = self._arena.settings_for(self.name)
        return [
            *self._arena.prefix_for(self.name),
            *(sys.executable, "-c", "from nbsched.daemon import main; main()  # nbsched.daemon"),
            *("--etcd", ",".join(settings["etcd"])),
            *("--nats", ",".join(settings["nats"])),
            *("--namespace", settings["namespace"]),
            *("--cpus", str(self._cpus)),
            *("--lease-ttl-s", str(self._arena.ttl_s)),
        ]

    def _environment(self) -> dict[str, str]:
        switch = Path(__file__).with_name("switch")
        more = {
            "CHAOS_FOLDER": str(self._arena.folder),
            "NBSCHED_CANCEL_GRACE_S": "0.5",
            "NBSCHED_LOST_DATA_GRACE_S": str(self._arena.lost_data_grace_s),
        }
        if self._arena.plant:
            more["CHAOS_PLANT"] = self._arena.plant
        replicas = {"NBSCHED_STREAM_REPLICAS": str(self._arena.replicas)}
        found = _environment(self._arena, **more, **replicas)
        found["PYTHONPATH"] += f":{switch}"
        return found

    def _wait_until_ready(self) -> None:
        until(self._has_joined, START_WITHIN_S, f"{self.name} joins")

    def _has_joined(self) -> bool:
        assert self.running, self.log.read_text(errors="replace")[-2000:]
        return self._marker_count() > self._joined

    def _marker_count(self) -> int:
        try:
            return self.log.read_text(errors="replace").count(" joined ")
        except FileNotFoundError:
            return 0

    def launch(self) -> None:
        self._joined = self._marker_count()
        super().launch()

    def kernels(self) -> list[int]:
        return children(self.pid) if self.running else []


class ClientProcess(ServerProcess):
    """The client; started again it goes on where the last one was."""

    def __init__(self, arena: Arena, jobs: Sequence[JobPlan]) -> None:
        self.log = arena.folder / "client.log"
        self._arena = arena
        self._plan = arena.folder / "client-plan.json"
        settings = arena.settings_for("client")
        plan = ClientPlan(settings, str(arena.folder), time.monotonic(), list(jobs))
        self._plan.write_bytes(msgspec.json.encode(plan))
        super().__init__(self.log)

    def _command(self) -> list[str]:
        prefix = self._arena.prefix_for("client")
        return [*prefix, sys.executable, "-m", "chaos.client", str(self._plan)]

    def _environment(self) -> dict[str, str]:
        more = {"CHAOS_FOLDER": str(self._arena.folder)} if self._arena.plant else {}
        if self._arena.plant:
            more["CHAOS_PLANT"] = self._arena.plant
        found = _environment(self._arena, **more)
        if self._arena.plant:
            found["PYTHONPATH"] += f":{Path(__file__).with_name('switch')}"
        return found

    def _wait_until_ready(self) -> None:
        pass

    @property
    def status(self) -> int | None:
        """How it ended; None while it runs, or after it was killed."""
        return None if self._process is None else self._process.poll()


class Arena:
    """Everything of one schedule. ``clustered``: three etcd members, three NATS servers."""

    def __init__(
        self,
        folder: Path,
        *,
        clustered: bool = False,
        daemons: int = 3,
        cpus: int = 2,
        plant: str = "",
        ttl_s: float = TTL_S,
        lost_data_grace_s: float = 5.0,
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.mark = f"chaos-{secrets.token_hex(6)}"
        self.namespace = f"chaos-{secrets.token_hex(4)}"
        self.root = f"/nbsched/{self.namespace}/"
        self.plant = plant
        self.ttl_s = ttl_s
        self.lost_data_grace_s = lost_data_grace_s
        self.replicas = 3 if clustered else 1
        self.diary = Diary(str(folder), "harness")
        self.etcd = EtcdCluster(folder) if clustered else None
        self.nats = NatsCluster(folder) if clustered else None
        self.etcd_members: tuple[EtcdServer, ...] = (
            self.etcd.members if self.etcd else (EtcdServer(folder / "etcd"),)
        )
        self.nats_members: tuple[NatsServer, ...] = (
            self.nats.members if self.nats else (NatsServer(folder / "nats"),)
        )
        self.daemons = [DaemonProcess(self, f"daemon-{n}", cpus) for n in range(daemons)]
        self.clients: list[ClientProcess] = []
        self.detours: dict[str, dict[str, list[str]]] = {}
        """By process name: other addresses of the servers, through a proxy for example."""
        self.prefixes: dict[str, list[str]] = {}
        """By process name: what stands before its command."""
        self.networks: dict[str, Network] = {}
        """By process name: those of their own, see `give_networks`."""
        self.disks: dict[str, SmallDisk] = {}
        """By server name, see `give_small_disk`."""
        self.old_revisions = 0
        """What etcd has behind it when the daemons come: terms are revisions, and those of
        an old etcd are higher than all of a new one."""

    # ------------------------------------------------------------ before it starts

    def give_networks(self, *names: str) -> None:
        """These processes are to run in networks of their own, which can be cut."""
        for name in names:
            network = Network(self.folder / name)
            self.networks[name] = network
            self.prefixes[name] = network.prefix
        # Every network has a way to the address of the first one.
        host = next(iter(self.networks.values())).host
        for server in (*self.etcd_members, *self.nats_members):
            server.host = host

    def give_small_disk(self, kind: str) -> None:
        """The (only) ``etcd`` or ``nats`` server is to have a disk that can be filled."""
        self.disks[kind] = SmallDisk(self.folder / kind)

    # ------------------------------------------------------------ life

    def start(self) -> None:
        for server in (*self.etcd_members, *self.nats_members):
            server.launch()
        for server in (*self.etcd_members, *self.nats_members):
            server.await_ready()
        self.etcd_members[0].age(self.old_revisions)
        self.start_daemons()

    def start_daemons(self) -> None:
        self.daemons[0].start()  # it makes the logs and the key
        for daemon in self.daemons[1:]:
            daemon.launch()
        for daemon in self.daemons[1:]:
            daemon.await_ready()

    def client(self, jobs: Sequence[JobPlan]) -> ClientProcess:
        process = ClientProcess(self, jobs)
        self.clients.append(process)
        process.launch()
        return process

    def settings_for(self, name: str) -> dict[str, Any]:
        return {
            "etcd": [member.endpoint for member in self.etcd_members],
            "nats": [member.url for member in self.nats_members],
            "namespace": self.namespace,
            "local": True,
            "lease_ttl_s": self.ttl_s,
            "stream_replicas": self.replicas,
            "connect_timeout_s": 5.0,
            "progress": "off",
            **self.detours.get(name, {}),
        }

    def prefix_for(self, name: str) -> list[str]:
        return self.prefixes.get(name, [])

    def heal(self) -> None:
        """Everything runs again."""
        for server in (*self.etcd_members, *self.nats_members):
            if server.running:
                server.thaw()
            else:
                server.kill()
                server.launch()
        for server in (*self.etcd_members, *self.nats_members):
            server.await_ready()
        for process in (*self.daemons, *self.clients):
            if process.running:
                process.thaw()
        self.start_again()
        for daemon in self.daemons:
            if not daemon.running:
                daemon.launch()
        for daemon in self.daemons:
            for kernel in daemon.kernels():
                send(kernel, signal.SIGCONT)

    def start_again(self) -> None:
        """What a service manager does: a daemon gives up when it is started while a server is
        away, and says so."""
        for daemon in self.daemons:
            if daemon.ended_by_itself:
                gave_up = GAVE_UP in daemon.log.read_text(errors="replace")[-500:]
                self.diary.write("gave up" if gave_up else "ended", daemon.name)
                daemon.kill()
                daemon.launch()

    def end_daemons(self, within_s: float = 20.0) -> list[int]:
        """Ask all daemons to go; the pids of those that do not."""
        for daemon in self.daemons:
            if daemon.running:
                send(daemon.pid, signal.SIGTERM)
        time.sleep(0.1)
        for daemon in self.daemons:
            if daemon.running:
                send(daemon.pid, signal.SIGTERM)
        deadline = time.monotonic() + within_s
        while any(d.running for d in self.daemons) and time.monotonic() < deadline:
            time.sleep(0.02)
        return [daemon.pid for daemon in self.daemons if daemon.running]

    def leftovers(self, within_s: float = 5.0) -> list[int]:
        """Processes of daemons, kernels and tasks that are still there after a while."""
        deadline = time.monotonic() + within_s
        while (left := self._processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left

    def _processes(self) -> list[int]:
        own = {client.pid for client in self.clients if client.running}
        return [pid for pid in evidence.processes_of(self.mark) if pid not in own]

    def close(self) -> None:
        """Kill all that is left."""
        for process in (*self.clients, *self.daemons, *self.etcd_members, *self.nats_members):
            process.kill()
        for pid in evidence.processes_of(self.mark):
            send(pid, signal.SIGKILL)
        for holder in (*self.networks.values(), *self.disks.values()):
            holder.close()

    # ------------------------------------------------------------ who is what

    def leader(self) -> DaemonProcess | None:
        pid = None
        for member in self.etcd_members:
            if member.running:
                pid = evidence.leader_pid(member.endpoint, self.root)
            if pid is not None:
                break
        return next((d for d in self.daemons if d.running and d.pid == pid), None)

    def others(self) -> list[DaemonProcess]:
        """Daemons that run and do not lead."""
        leader = self.leader()
        return [d for d in self.daemons if d.running and d is not leader]


def send(pid: int, number: signal.Signals) -> None:
    if alive(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
