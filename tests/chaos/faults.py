"""What is done to the processes of an arena: each fault is begun, and ended a while later.

Whoever is hit is chosen when it happens (the leader *now*), by the schedule's own random
numbers. Everything is written into the diary.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from chaos.arena import Arena, DaemonProcess, send
from chaos.witness import CLOCK
from support.conditions import alive
from support.serverprocess import ServerProcess

KERNEL_DIES_WITHIN_S = 1.0
NEW_KERNEL_DIES_WITHIN_S = 5.0
"""One that has just been started looks for its daemon when it has got so far, which takes
its time on a busy machine."""

End = Callable[[], None]
Begin = Callable[[Arena, random.Random], "End | None"]


def _again(process: ServerProcess) -> End:
    def start() -> None:
        if not (process.running or process.ended_by_itself):
            process.launch()

    return start


def _left(pids: list[int], within_s: float) -> list[int]:
    """Those that are still alive after a while."""
    deadline = time.monotonic() + within_s
    while (left := [pid for pid in pids if alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.005)
    return left


def _kill_daemon(arena: Arena, daemon: DaemonProcess | None) -> End | None:
    if daemon is None or not daemon.running:
        return None
    kernels = daemon.kernels()
    arena.diary.write("killed", "daemon", daemon.pid, kernels)
    daemon.kill()
    worked = [pid for pid in kernels if (arena.folder / f"task-{pid}.diary").exists()]
    left = _left(worked, KERNEL_DIES_WITHIN_S) or _left(kernels, NEW_KERNEL_DIES_WITHIN_S)
    arena.diary.write("outlived", left)
    return _again(daemon)


def _freeze(arena: Arena, process: ServerProcess | None, what: str) -> End | None:
    if process is None or not process.running:
        return None
    pid = process.pid
    arena.diary.write("frozen", what, pid)
    send(pid, signal.SIGSTOP)

    def thaw() -> None:
        arena.diary.write("thawed", what, pid)
        send(pid, signal.SIGCONT)

    return thaw


def _some(choices: list[DaemonProcess], chance: random.Random) -> DaemonProcess | None:
    return chance.choice(choices) if choices else None


def kill_leader(arena: Arena, chance: random.Random) -> End | None:
    return _kill_daemon(arena, arena.leader())


def kill_worker(arena: Arena, chance: random.Random) -> End | None:
    return _kill_daemon(arena, _some(arena.others(), chance))


def freeze_leader(arena: Arena, chance: random.Random) -> End | None:
    return _freeze(arena, arena.leader(), "leader")


def freeze_worker(arena: Arena, chance: random.Random) -> End | None:
    return _freeze(arena, _some(arena.others(), chance), "worker")


def _kernel(arena: Arena, chance: random.Random) -> int | None:
    kernels = [pid for daemon in arena.daemons for pid in daemon.kernels()]
    return chance.choice(kernels) if kernels else None


def kill_kernel(arena: Arena, chance: random.Random) -> End | None:
    pid = _kernel(arena, chance)
    if pid is None:
        return None
    arena.diary.write("killed", "kernel", pid)
    send(pid, signal.SIGKILL)
    return lambda: None


def freeze_kernel(arena: Arena, chance: random.Random) -> End | None:
    pid = _kernel(arena, chance)
    if pid is None:
        return None
    arena.diary.write("frozen", "kernel", pid)
    send(pid, signal.SIGSTOP)
    return lambda: send(pid, signal.SIGCONT) if alive(pid) else None


def kill_client(arena: Arena, chance: random.Random) -> End | None:
    client = arena.clients[0]
    if not client.running:
        return None
    arena.diary.write("killed", "client", client.pid)
    client.kill()
    return client.launch


def freeze_client(arena: Arena, chance: random.Random) -> End | None:
    return _freeze(arena, arena.clients[0], "client")


def _restart(arena: Arena, server: ServerProcess, what: str) -> End | None:
    if not server.running:
        return None
    arena.diary.write("killed", what, server.pid)
    server.kill()
    return _again(server)


def restart_etcd(arena: Arena, chance: random.Random) -> End | None:
    if arena.etcd is not None and not all(m.running for m in arena.etcd_members):
        return None  # any one may be down, not two
    return _restart(arena, chance.choice(arena.etcd_members), "etcd")


def restart_nats(arena: Arena, chance: random.Random) -> End | None:
    if arena.nats is not None and not all(m.running for m in arena.nats_members):
        return None
    return _restart(arena, chance.choice(arena.nats_members), "nats")


def freeze_etcd(arena: Arena, chance: random.Random) -> End | None:
    if not all(m.running for m in arena.etcd_members):
        return None
    return _freeze(arena, chance.choice(arena.etcd_members), "etcd")


def freeze_nats(arena: Arena, chance: random.Random) -> End | None:
    if not all(m.running for m in arena.nats_members):
        return None
    return _freeze(arena, chance.choice(arena.nats_members), "nats")


def jump_clock(arena: Arena, chance: random.Random) -> End | None:
    """The wall clocks of all daemons and kernels are wrong by up to a day; then they are set."""
    seconds = chance.choice([-1, 1]) * chance.choice([5.0, 300.0, 86_400.0])
    arena.diary.write("clock", seconds)
    (arena.folder / CLOCK).write_text(str(seconds))

    def right() -> None:
        with suppress(FileNotFoundError):
            (arena.folder / CLOCK).unlink()

    return right


FAULTS: dict[str, Begin] = {
    fault.__name__: fault
    for fault in (
        kill_leader,
        kill_worker,
        kill_kernel,
        kill_client,
        freeze_leader,
        freeze_worker,
        freeze_kernel,
        freeze_client,
        restart_etcd,
        restart_nats,
        freeze_etcd,
        freeze_nats,
        jump_clock,
    )
}
