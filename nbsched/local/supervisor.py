"""The one process that a local cluster hangs on: starts, watches, stops its parts.

Run by `nbsched.local.launch` with the path of a plan and the descriptor of the pipe
that takes its verdict. Single-threaded and without asyncio: one ``select`` waits for
everything (`nbsched.local.alarm`), and children can be forked safely
(`nbsched.local.process`). A shared one forks away from its starter first. A private
one ends when its lifeline, the pipe on its standard input, does: then its starter
has ended, in whatever way.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

import nbsched
from nbsched.local import etcdserver, natsserver, runtime, upkeep
from nbsched.local.alarm import Alarm, StopRequested
from nbsched.local.home import FileLock, Home
from nbsched.local.launch import Verdict, python_command
from nbsched.local.process import Child, Command, Family
from nbsched.local.runtime import Identity, NotReadyError, Part, Plan, RefusedError, Runtime

logger = logging.getLogger(__name__)

_START_POLL_S = 0.003
_TICK_S = 1.0
"""Between looks at whether the starter of a private cluster is still there."""
_IDLE_CHECK_S = 60.0
_TEND_S = 10.0
"""Between looks at the servers' room."""
_PREDECESSOR_TIMEOUT_S = 10.0
_SERVER_GRACE_S = 3.0
_PORT_ATTEMPTS = 5
_PORT_TAKEN = "address already in use"


class StartFailedError(Exception):
    """A part did not come up. ``part`` names its log."""

    def __init__(self, part: str, problem: str) -> None:
        super().__init__(problem)
        self.part = part


class Supervisor:
    """A cluster's processes, from their start to their end."""

    def __init__(self, plan: Plan, alarm: Alarm, lock: FileLock, worker_umask: int) -> None:
        self._plan = plan
        self._home = Home(Path(plan.folder))
        self._alarm = alarm
        self._lock = lock.fileno()
        self._worker_umask = worker_umask
        self._started_at = time.time()
        self._identity = _known_or_new(self._home)
        self._family = Family(alarm.nap)
        self._upkeep = upkeep.Upkeep(plan.namespace, self._home.path, self._restart_nats)
        self._last_busy = time.monotonic()

    # ---------------------------------------------------------------- start

    def start(self) -> None:
        """Bring everything up: etcd and NATS answer, the workers are on their way.

        Raises:
            StartFailedError, StopRequested
        """
        for part in ("etcd", "nats", *self._worker_names):
            self._home.rotate_log(part)
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            try:
                self._start_once(time.monotonic() + self._plan.start_timeout_s)
                break
            except StartFailedError as error:
                # Somebody else took the port between our choice and the server's bind.
                taken = _PORT_TAKEN in self._home.log_tail(error.part)
                if not taken or attempt == _PORT_ATTEMPTS:
                    raise
                logger.warning("port taken part=%s; choosing others", error.part)
                self._family.kill_all()
                self._remember(runtime.with_other_ports(self._identity))
            except OSError as error:
                raise StartFailedError("supervisor", f"{error}.") from error

    def _start_once(self, deadline: float) -> None:
        identity = self._identity
        fresh = not identity.ready
        command = natsserver.command(self._plan, self._home, identity, lock=self._lock)
        nats = self._family.start("nats", self._home, command)
        if fresh:
            self._start_workers()  # they load their modules while the servers come up
            self._boot_etcd(deadline)
        etcd = self._family.start("etcd", self._home, self._etcd_command(boot=False))
        self._until(lambda: natsserver.check(identity), nats, deadline)
        self._until(lambda: etcdserver.log_in(identity), etcd, deadline)
        if not fresh:
            self._until(lambda: etcdserver.revoke_leases(identity), etcd, deadline)
            self._start_workers()

    def _boot_etcd(self, deadline: float) -> None:
        """Give a new etcd its password where nobody else can reach it yet."""
        shutil.rmtree(self._home.data("etcd"), ignore_errors=True)
        boot = self._family.start("etcd", self._home, self._etcd_command(boot=True))
        set_password = etcdserver.set_password
        self._until(lambda: set_password(self._home, self._identity), boot, deadline)
        self._family.end([boot], signal.SIGTERM, _SERVER_GRACE_S)
        if boot.pid:
            raise StartFailedError("etcd", "etcd does not stop after its first configuration.")
        self._remember(msgspec.structs.replace(self._identity, ready=True))

    def _etcd_command(self, *, boot: bool) -> Command:
        return etcdserver.command(
            self._plan, self._home, self._identity, boot=boot, lock=self._lock
        )

    def _remember(self, identity: Identity) -> None:
        self._identity = identity
        runtime.save(self._home.identity, identity)

    def _until(self, check: Callable[[], object], child: Child, deadline: float) -> None:
        """Repeat a question to a server until it answers."""
        while True:
            try:
                check()
                return
            except NotReadyError as error:
                problem = str(error)
            except RefusedError as error:
                raise StartFailedError(child.name, str(error)) from error
            code = child.ended()
            if code is not None:
                raise StartFailedError(child.name, f"{child.name} ended with code {code}.")
            if time.monotonic() > deadline:
                raise StartFailedError(
                    child.name,
                    f"{child.name} did not answer within {self._plan.start_timeout_s:g} s"
                    f" ({problem}).",
                )
            self._alarm.wait(_START_POLL_S)

    # ---------------------------------------------------------------- workers

    @property
    def _worker_names(self) -> list[str]:
        return [f"worker-{i}" for i in range(len(self._plan.worker_cpus))]

    def _start_workers(self) -> None:
        for name, cpus in zip(self._worker_names, self._plan.worker_cpus, strict=True):
            self._family.start(name, self._home, self._worker_command(cpus))

    def _worker_command(self, cpus: int | None) -> Command:
        options = ["--etcd", self._etcd_endpoint, "--nats", self._nats_url]
        options += ["--namespace", self._plan.namespace]
        if cpus is not None:
            options += ["--cpus", str(cpus)]
        environ = {k: v for k, v in os.environ.items() if not k.startswith("NBSCHED_")}
        environ.update(self._plan.worker_environ)
        # Not on the command line, which every user of the machine can read.
        environ.update(
            NBSCHED_ETCD_USER=runtime.ETCD_USER,
            NBSCHED_ETCD_PASSWORD=self._identity.etcd_password,
            NBSCHED_NATS_USER=runtime.NATS_USER,
            NBSCHED_NATS_PASSWORD=self._identity.nats_password,
            NBSCHED_LOCAL="1",
            NBSCHED_SHARED_FOLDER=str(self._home.payloads),
        )
        argv = python_command("nbsched.daemon", *options)
        return Command(argv, self._plan.worker_cwd, environ, umask=self._worker_umask)

    # ---------------------------------------------------------------- run

    def watch(self) -> None:
        """Start again what dies; returns when nobody has used it for long enough.

        Raises:
            StopRequested: somebody wants it to end.
        """
        self._last_busy = time.monotonic()
        next_idle_check = self._next_idle_check()
        next_tending = time.monotonic() + _TEND_S
        while True:
            self._alarm.wait(self._family.time_to_next_restart(_TICK_S))
            if self._family.restart_dead():
                self._publish_if_possible()
            if time.monotonic() >= next_tending:
                self._upkeep.look(self._identity)
                next_tending = time.monotonic() + _TEND_S
            if self._plan.shared and time.monotonic() >= next_idle_check:
                next_idle_check = self._next_idle_check()
                if self._idle_long_enough():
                    logger.info("stopping: unused for %g s", self._plan.idle_stop_s)
                    return

    def _restart_nats(self) -> None:
        self._family.children["nats"].signal(signal.SIGTERM)  # it is started again

    def _publish_if_possible(self) -> None:
        try:
            self.publish()
        except OSError as error:  # a full disk must not end a cluster that works
            logger.warning("cannot write %s: %s", self._home.runtime, error)

    def _next_idle_check(self) -> float:
        return time.monotonic() + min(_IDLE_CHECK_S, self._plan.idle_stop_s / 4)

    def _idle_long_enough(self) -> bool:
        """Whether there was neither a client nor work for the time. If so, its end is
        public before a new client can come: clients need the lock that is held here."""
        try:
            alone = FileLock.acquire(self._home.clients_lock)
        except OSError as error:
            logger.warning("cannot look for clients: %s", error)
            return False
        if alone is None:
            self._last_busy = time.monotonic()
            return False
        with alone:
            if self._has_work():
                self._last_busy = time.monotonic()
            if time.monotonic() - self._last_busy < self._plan.idle_stop_s:
                return False
            self._home.runtime.unlink(missing_ok=True)
            return True

    def _has_work(self) -> bool:
        try:
            return etcdserver.has_unfinished_jobs(self._identity, self._plan.namespace)
        except (NotReadyError, RefusedError) as error:
            logger.warning("cannot look for unfinished jobs: %s", error)
            return True

    # ---------------------------------------------------------------- publish

    def publish(self) -> None:
        """Say where the cluster is and what it consists of."""
        pid = os.getpid()
        record = Runtime(
            pid=pid,
            start_mark=runtime.start_mark(pid) or "",
            host=socket.gethostname(),
            folder=self._plan.folder,
            namespace=self._plan.namespace,
            shared=self._plan.shared,
            etcd=self._etcd_endpoint,
            nats=self._nats_url,
            etcd_password=self._identity.etcd_password,
            nats_password=self._identity.nats_password,
            worker_cpus=self._plan.worker_cpus,
            started_at=self._started_at,
            version=nbsched.__version__,
            python=runtime.python_minor(),
            executable=sys.executable,
            parts=tuple(
                Part(name=c.name, pid=c.pid, restarts=c.restarts, started_at=c.started_at)
                for c in sorted(self._family.children.values(), key=_servers_first)
            ),
        )
        runtime.save(self._home.runtime, record)

    @property
    def _etcd_endpoint(self) -> str:
        return f"127.0.0.1:{self._identity.etcd_port}"

    @property
    def _nats_url(self) -> str:
        return f"nats://127.0.0.1:{self._identity.nats_port}"

    # ---------------------------------------------------------------- stop

    def stop(self, *, at_once: bool) -> None:
        """End everything: workers first, while the servers can still hear them."""
        self._alarm.ignore_stops()
        with contextlib.suppress(OSError):
            self._home.runtime.unlink(missing_ok=True)
        if not (at_once or self._plan.drain_s == 0):
            for names, grace_s in (
                (self._worker_names, self._plan.drain_s),
                (self._worker_names, _SERVER_GRACE_S),  # the second one ends the drain
                (["nats"], _SERVER_GRACE_S),
                (["etcd"], _SERVER_GRACE_S),
            ):
                children = [c for c in self._family.children.values() if c.name in names]
                self._family.end(children, signal.SIGTERM, grace_s)
        self._family.kill_all()


def _servers_first(child: Child) -> tuple[bool, str]:
    return child.name.startswith("worker"), child.name


def _known_or_new(home: Home) -> Identity:
    known = runtime.load(home.identity, Identity)
    if known is None:
        return Identity.new()
    if all(map(runtime.port_is_free, (known.etcd_port, known.nats_port))):
        return known
    return runtime.with_other_ports(known)


class Verdicts:
    """The pipe on which the starter waits for one word."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        os.set_inheritable(descriptor, False)

    def awaited(self) -> bool:
        """Whether the starter still waits. One that was interrupted or killed will not
        join, and the next one would find this cluster neither running nor gone."""
        poll = select.poll()
        poll.register(self._descriptor, 0)  # errors are always reported
        return not poll.poll(0)

    def say(self, error: str = "") -> None:
        with contextlib.suppress(OSError):  # the starter may have ended
            os.write(self._descriptor, msgspec.json.encode(Verdict(error)))
        os.close(self._descriptor)


def supervise(plan: Plan, verdicts: Verdicts, worker_umask: int) -> None:
    """Run a cluster from its start to its end."""
    home = Home(Path(plan.folder))
    alarm = Alarm(lifeline=None if plan.shared else sys.stdin.fileno())
    lock = FileLock.acquire(home.supervisor_lock, timeout_s=_PREDECESSOR_TIMEOUT_S)
    if lock is None:
        verdicts.say(
            f"The data in {home.path} are in use: a supervisor that ran before has not ended, or"
            " another machine shares this folder. End that one, or set NBSCHED_HOME to another"
            " folder."
        )
        return
    supervisor = Supervisor(plan, alarm, lock, worker_umask)
    at_once, failure = True, ""
    try:
        supervisor.start()
        if not verdicts.awaited():
            raise StopRequested("its starter has not waited for it", abandoned=True)
        supervisor.publish()
        verdicts.say()
        supervisor.watch()
        at_once = False
    except StartFailedError as error:
        logger.error("start failed part=%s: %s", error.part, error)
        failure = (
            f"The local cluster did not start: {error} The end of its log"
            f" ({home.log(error.part)}):\n{home.log_tail(error.part)}"
        )
    except StopRequested as request:
        logger.info("stopping: %s", request)
        at_once = request.abandoned
    finally:
        supervisor.stop(at_once=at_once)
        lock.close()
        if failure:  # said last: the starter may try again as soon as it hears it
            verdicts.say(failure)


def main() -> None:
    """Entry point: ``PLAN.json VERDICT_FD``."""
    plan_path, descriptor = sys.argv[1:]
    verdicts = Verdicts(int(descriptor))
    plan = msgspec.json.decode(Path(plan_path).read_bytes(), type=Plan)
    if plan.shared and os.fork():
        # The starter reaps this one at once; the supervisor is nobody's zombie.
        os._exit(0)
    worker_umask = os.umask(0o077)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        supervise(plan, verdicts, worker_umask)
    except Exception:
        logger.exception("the supervisor has failed")
        sys.exit(1)
    finally:
        if not plan.shared:
            shutil.rmtree(plan.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
