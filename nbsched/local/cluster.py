"""Join, start, stop and describe this machine's own clusters.

Synchronous functions, callable from any thread. Nothing here talks to a server:
the supervisor does, and says when they are ready.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

from nbsched._compat import Self
from nbsched.errors import ConfigurationError, LocalClusterError
from nbsched.local import runtime
from nbsched.local.binaries import find_etcd, find_nats_server
from nbsched.local.home import FileLock, Home, shared_home
from nbsched.local.launch import Supervision
from nbsched.local.runtime import Plan, Runtime
from nbsched.settings import Settings, load

logger = logging.getLogger(__name__)

Membership: TypeAlias = FileLock
"""Held by a process that uses the background cluster; ``close()`` leaves it."""

_STOP_TIMEOUT_S = 20.0
_POLL_S = 0.01
_IDLE_VARIABLE = "NBSCHED_IDLE_STOP_S"
_IDLE_STOP_S = 3600.0


# -------------------------------------------------------------------- the shared one


def join_or_start(
    settings: Settings, *, cpus: int | None = None, timeout_s: float = 30.0
) -> tuple[Settings, Membership]:
    """The background cluster of this machine, user and namespace; starts it if need be.

    Of many processes that call this at once, one starts it and the others join.

    Args:
        cpus: CPU slots of its worker when it has to be started; None is all there are.

    Returns:
        Settings that lead to it, and the membership: while anybody holds one, it does
        not end for lack of use.

    Raises:
        LocalClusterError: with what failed and the end of its log.
    """
    home = shared_home(settings.namespace)
    deadline = time.monotonic() + timeout_s
    presence = _acquire(home, home.clients_lock, deadline, shared=True)
    try:
        record = _running(home)
        if record is None:
            with _acquire(home, home.start_lock, deadline):
                record = _running(home) or _start_shared(home, settings, cpus, deadline)
        _check_fits(record)
        return runtime.to_settings(record, settings), presence
    except BaseException:
        presence.close()
        raise


def _acquire(home: Home, path: Path, deadline: float, *, shared: bool = False) -> FileLock:
    timeout_s = deadline - time.monotonic()
    lock = FileLock.acquire(path, shared=shared, timeout_s=timeout_s)
    if lock is None:
        raise LocalClusterError(
            f"The local cluster in {home.path} has been starting or stopping for"
            f" {timeout_s:.0f} s: another process holds {path.name}. Wait for it, or see"
            f" {home.log('supervisor')}."
        )
    return lock


def _running(home: Home) -> Runtime | None:
    """The record of a cluster whose supervisor lives. Another one is stale: its
    supervisor was killed, or the machine was switched off."""
    record = runtime.load(home.runtime, Runtime)
    return record if record is not None and runtime.is_alive(record) else None


def _start_shared(home: Home, settings: Settings, cpus: int | None, deadline: float) -> Runtime:
    home.runtime.unlink(missing_ok=True)
    home.rotate_log("supervisor")
    plan = Plan(
        folder=str(home.path),
        namespace=settings.namespace,
        shared=True,
        worker_cpus=(cpus,),
        # Not the starter's folder: the cluster outlives its reason to be there.
        worker_cwd=_existing(os.path.expanduser("~")),
        worker_environ=runtime.worker_environ(settings),
        etcd_binary=str(find_etcd()),
        nats_binary=str(find_nats_server()),
        idle_stop_s=_idle_stop_s(),
        start_timeout_s=max(1.0, deadline - time.monotonic()),
    )
    Supervision.begin(plan, home)
    return _require_record(home)


def _existing(folder: str) -> str:
    """The folder, or the root where there is none: a user without a home, or a working
    directory that was deleted."""
    try:
        return os.path.realpath(folder, strict=True)
    except OSError:
        return os.sep


def _require_record(home: Home) -> Runtime:
    record = runtime.load(home.runtime, Runtime)
    if record is None:
        raise LocalClusterError(
            "The local cluster has ended right after its start. The end of its log"
            f" ({home.log('supervisor')}):\n{home.log_tail('supervisor')}"
        )
    return record


def _idle_stop_s() -> float:
    text = os.environ.get(_IDLE_VARIABLE)
    try:
        seconds = float(text) if text else _IDLE_STOP_S
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise ConfigurationError(f"{_IDLE_VARIABLE} is {text!r}; it must be seconds, over 0.")
    return seconds


def _check_fits(record: Runtime) -> None:
    """Raise where tasks of this process could not run there."""
    if record.python == runtime.python_minor():
        return
    raise LocalClusterError(
        f"This machine's local cluster runs Python {record.python} ({record.executable}), this"
        f" process Python {runtime.python_minor()}. Stop it with 'nbsched down', or set"
        " NBSCHED_HOME to another folder to have one for each."
    )


def shared_status(settings: Settings | None = None) -> Runtime | None:
    """The running background cluster of the namespace, or None. Starts nothing."""
    settings = load() if settings is None else settings
    return _running(shared_home(settings.namespace))


def stop_shared(
    settings: Settings | None = None, *, purge: bool = False, timeout_s: float = _STOP_TIMEOUT_S
) -> bool:
    """Stop the background cluster of the namespace. False: none was running.

    Its data stay, so that jobs go on when it is started again, unless ``purge``.

    Raises:
        LocalClusterError: it does not end, or it runs on another machine.
    """
    settings = load() if settings is None else settings
    home = shared_home(settings.namespace)
    deadline = time.monotonic() + timeout_s
    with _acquire(home, home.start_lock, deadline):
        record = _running(home)
        if record is not None:
            _end_supervisor(record, deadline)
        # Its servers hold this too: when it is free, nothing of the cluster is left.
        remains = FileLock.acquire(
            home.supervisor_lock, timeout_s=max(1.0, deadline - time.monotonic())
        )
        if remains is None:
            raise LocalClusterError(_still_held(home))
        with remains:
            home.runtime.unlink(missing_ok=True)
            if purge:
                home.clear()
    return record is not None


def _end_supervisor(record: Runtime, deadline: float) -> None:
    try:
        os.kill(record.pid, signal.SIGTERM)
        while runtime.is_alive(record) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        if runtime.is_alive(record):
            os.kill(record.pid, signal.SIGKILL)  # its children die with it
    except ProcessLookupError:
        pass


def _still_held(home: Home) -> str:
    record = runtime.load(home.runtime, Runtime)
    if record is not None and record.host != socket.gethostname():
        return (
            f"The local cluster in {home.path} runs on {record.host}, which shares this folder."
            " Run 'nbsched down' there, or set NBSCHED_HOME to a folder of this machine."
        )
    return f"Something still uses {home.path}. See {home.log('supervisor')}."


# ------------------------------------------------------------------- the private one


class PrivateCluster:
    """A cluster that ends with this object, or with this process however that ends."""

    def __init__(self, home: Home, supervision: Supervision, settings: Settings) -> None:
        self._home = home
        self._closing = threading.Lock()
        self._end = weakref.finalize(self, _end_private, supervision, home)
        self.settings = settings
        """They lead to this cluster."""

    @property
    def folder(self) -> Path:
        """Its data and logs, until it ends."""
        return self._home.path

    def pids(self) -> dict[str, list[int]]:
        """Pids by kind: ``supervisor``, ``etcd``, ``nats``, ``workers``. A part that is
        just being started again is missing."""
        record = runtime.load(self._home.runtime, Runtime)
        empty: dict[str, list[int]] = {"supervisor": [], "etcd": [], "nats": [], "workers": []}
        return empty if record is None else record.pids()

    def log_tail(self, part: str) -> str:
        """The end of the log of ``supervisor``, ``etcd``, ``nats`` or ``worker-0``, …"""
        return self._home.log_tail(part)

    def close(self) -> None:
        """End it and delete its data. Does nothing the second time."""
        with self._closing:
            self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _end_private(supervision: Supervision, home: Home) -> None:
    if supervision.end():
        shutil.rmtree(home.path, ignore_errors=True)  # if the supervisor could not


def start_private(
    workers: int | None = None,
    cpus: int | Sequence[int] | None = None,
    settings: Settings | None = None,
    *,
    timeout_s: float = 30.0,
) -> PrivateCluster:
    """Start a cluster of this process's own, in a temporary folder.

    Args:
        workers: number of worker daemons, 1 by default. 0 is servers only.
        cpus: CPU slots of each; a list gives each its own number. By default the CPUs
            of this machine are shared out among the workers, at least one to each.

    Raises:
        LocalClusterError: with what failed and the end of its log.
    """
    settings = load() if settings is None else settings
    worker_cpus = _share_out(workers, cpus)
    etcd, nats = find_etcd(), find_nats_server()
    home = Home(Path(tempfile.mkdtemp(prefix="nbsched-")).absolute())
    plan = Plan(
        folder=str(home.path),
        namespace=settings.namespace,
        shared=False,
        worker_cpus=worker_cpus,
        worker_cwd=_existing(os.curdir),
        worker_environ=runtime.worker_environ(settings),
        etcd_binary=str(etcd),
        nats_binary=str(nats),
        drain_s=0.0,
        start_timeout_s=timeout_s,
    )
    try:
        supervision = Supervision.begin(plan, home)
    except BaseException:
        shutil.rmtree(home.path, ignore_errors=True)
        raise
    try:
        found = runtime.to_settings(_require_record(home), settings)
    except BaseException:
        _end_private(supervision, home)
        raise
    return PrivateCluster(home, supervision, found)


def _share_out(workers: int | None, cpus: int | Sequence[int] | None) -> tuple[int | None, ...]:
    """CPU slots of each worker; None lets the worker count them."""
    if isinstance(cpus, Sequence):
        if workers is not None and workers != len(cpus):
            raise ConfigurationError(
                f"workers={workers} does not go with the {len(cpus)} numbers in cpus={cpus!r}."
                " Leave one of them out."
            )
        counts: tuple[int | None, ...] = tuple(cpus)
    else:
        number = 1 if workers is None else workers
        if not isinstance(number, int) or number < 0:
            raise ConfigurationError(f"workers is {number!r}; it must be a number from 0 on.")
        if cpus is None and number > 1:
            cpus = max(1, _usable_cpus() // number)
        counts = (cpus,) * number
    for count in counts:
        if count is not None and (not isinstance(count, int) or count < 0):
            raise ConfigurationError(f"cpus is {count!r}; it must be a number from 0 on.")
    return counts


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
