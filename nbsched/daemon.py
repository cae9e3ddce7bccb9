"""``nbsched-worker``: one daemon on a compute host. Puts worker and leader together.

It registers under a lease, stands in the election, runs tasks in its kernels, and
leads when it is the oldest candidate. When its lease vanishes it registers again
under the same id; what its kernels run goes on meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import signal
import socket
import sys
import time
from contextlib import aclosing
from dataclasses import dataclass
from importlib import metadata

import click
import msgspec

import nbsched
from nbsched import clusterkey
from nbsched.errors import (
    ConfigurationError,
    ConnectError,
    NbschedError,
    StoreUnreachableError,
)
from nbsched.leader import election
from nbsched.leader.election import Leadership
from nbsched.leader.service import LeaderService
from nbsched.model import Candidate, JobId, Term, WorkerRecord, to_json
from nbsched.names import Names, new_worker_id
from nbsched.payload.envelope import Key
from nbsched.payload.sharedfolder import SharedFolder
from nbsched.servers import Servers
from nbsched.settings import Settings, load
from nbsched.storage import Absent, CreatedAt, Delete, Lease, Put, Store
from nbsched.transport import Bus, LogLostError
from nbsched.transport.loopback import LoopbackBus
from nbsched.worker.cpus import usable_cpus
from nbsched.worker.service import WorkerService

log = logging.getLogger(__name__)

_RETRY_S = 0.5
_SWEEP_S = 3600.0
_LEFT_ALONE_S = 3600.0
"""Files may be there for so long before the record of their job is."""
_VERSIONS_OF = ("nbsched", "cloudpickle", "numpy")


@dataclass
class Daemon:
    """The parts of one daemon and its life."""

    record: WorkerRecord
    settings: Settings
    names: Names
    key: Key
    store: Store
    bus: Bus
    worker: WorkerService

    @classmethod
    async def start(cls, settings: Settings, cpus: int) -> Daemon:
        """Connect and start the kernels. Raises ConnectError, ConfigurationError."""
        if settings.shared_folder is not None:
            SharedFolder.open(settings.shared_folder)  # an error before anything is started
        host = socket.gethostname()
        worker_id = new_worker_id(host)
        servers = await Servers.connect(settings, name=f"nbsched-worker {worker_id}")
        names, key, store = servers.names, servers.key, servers.store
        bus = LoopbackBus(servers.bus)  # who leads commands itself, too
        record = WorkerRecord(
            id=worker_id,
            host=host,
            address=_address_towards(settings.etcd[0]),
            cpus=cpus,
            pid=os.getpid(),
            python=f"{sys.version_info.major}.{sys.version_info.minor}",
            versions=_versions(),
            key_id=key.id,
            started_at=time.time(),
        )
        worker = WorkerService(
            record=record,
            names=names,
            key=key,
            bus=bus,
            store=store,
            settings=settings,
            cpus=cpus,
        )
        await worker.start()
        return cls(record, settings, names, key, store, bus, worker)

    async def run(self, drain: asyncio.Event, stop: asyncio.Event) -> None:
        """Work until ``drain`` is set and nothing runs any more, or ``stop`` is set.

        Raises ConfigurationError: it does not belong to the cluster any more.
        """
        membership = asyncio.ensure_future(self._stay_member(drain))
        sweeping = asyncio.ensure_future(self._sweep())
        try:
            await _first_of(drain, stop, membership)
            if membership.done():
                membership.result()
            if not stop.is_set():
                log.info("worker=%s drains", self.record.id)
                draining = asyncio.ensure_future(self.worker.drain(None))
                stopping = asyncio.ensure_future(stop.wait())
                await asyncio.wait({draining, stopping}, return_when=asyncio.FIRST_COMPLETED)
                for task in (draining, stopping):
                    task.cancel()
        finally:
            await self.worker.stop()
            for background in (membership, sweeping):
                background.cancel()
            await asyncio.gather(membership, sweeping, return_exceptions=True)
            await self.bus.close()
            await self.store.close()

    async def _sweep(self) -> None:
        """Delete shared files that a leader could not: of jobs that are not there any more,
        written after their end, or never committed."""
        settings = self.settings
        folder = SharedFolder.of(settings.shared_folder, settings.namespace, self.key.id)
        while folder is not None:
            try:
                await self._sweep_once(folder)
            except (OSError, ConnectError) as error:
                log.warning("the shared folder cannot be looked through: %s", error)
            await asyncio.sleep(_SWEEP_S)

    async def _sweep_once(self, folder: SharedFolder) -> None:
        for job in await asyncio.to_thread(folder.unchanged_for, _LEFT_ALONE_S):
            if await self.store.get(self.names.job(JobId(job))) is None:
                await asyncio.to_thread(folder.remove, job)
                log.info("job=%s does not exist; its shared files are deleted", job)

    # ------------------------------------------------------------ membership

    async def _stay_member(self, drain: asyncio.Event) -> None:
        """Keep a lease with the member's and the candidate's key; begin again when it goes."""
        while True:
            lease: Lease | None = None
            try:
                lease = await self.store.lease(self.settings.lease_ttl_s)
                self.worker.serve_under(lease)
                if await self._register(lease, draining=drain.is_set()):
                    await self._serve_under(lease, drain)
                self.worker.disowned()
                log.warning("worker=%s: its lease vanished; it registers again", self.record.id)
            except ConfigurationError:
                raise
            except StoreUnreachableError as error:
                log.warning("worker=%s cannot register yet: %s", self.record.id, error)
            except Exception:
                log.exception("worker=%s: its membership is set up anew", self.record.id)
            finally:
                if lease is not None:
                    await lease.revoke()
            await asyncio.sleep(_RETRY_S)

    async def _register(self, lease: Lease, *, draining: bool) -> bool:
        """Put the member's and the candidate's key; False when the lease is gone already."""
        record = msgspec.structs.replace(self.record, draining=draining)
        candidacy = self._candidacy(lease)
        commit = await self.store.commit(
            [Absent(candidacy.key)],
            [Put(self.names.worker(self.record.id), to_json(record), lease.id), candidacy],
        )
        if not commit.succeeded:  # the candidate's key is named after the lease
            return False
        if commit.revision < self.worker.term:
            log.error("etcd has lost its data: revision %d comes after a leader's", commit.revision)
            self.worker.forget_terms()
        self.worker.registered(commit.revision)
        await clusterkey.keep(self.store, self.names, self.settings, self.key)
        log.info(
            "worker=%s joined %s with %s CPUs",
            self.record.id,
            self.names.namespace,
            self.record.cpus,
        )
        return True

    def _candidacy(self, lease: Lease) -> Put:
        candidate = Candidate(worker=self.record.id, host=self.record.host, pid=self.record.pid)
        return Put(self.names.candidate(lease.id), to_json(candidate), lease.id)

    async def _serve_under(self, lease: Lease, drain: asyncio.Event) -> None:
        """Stand in the election until the lease is gone."""
        over: asyncio.Queue[Term] = asyncio.Queue()
        lost = asyncio.ensure_future(lease.lost())
        election_tasks = [
            asyncio.ensure_future(self._follow_election(lease, over)),
            asyncio.ensure_future(self._stand_again(lease, over)),
        ]
        announcing = asyncio.ensure_future(self._announce_draining(lease, drain))
        tasks = [lost, *election_tasks, announcing]
        try:
            await asyncio.wait({lost, *election_tasks}, return_when=asyncio.FIRST_COMPLETED)
            for task in election_tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _announce_draining(self, lease: Lease, drain: asyncio.Event) -> None:
        await drain.wait()
        record = msgspec.structs.replace(self.record, draining=True)
        key = self.names.worker(self.record.id)
        with contextlib.suppress(StoreUnreachableError):
            await self.store.commit([], [Put(key, to_json(record), lease.id)])

    # ------------------------------------------------------------ leading

    async def _follow_election(self, lease: Lease, over: asyncio.Queue[Term]) -> None:
        """Lead while this daemon's candidate is the oldest; say which terms are over."""
        mine = self.names.candidate(lease.id)
        term: Term | None = None
        leading: asyncio.Task[None] | None = None
        try:
            async with aclosing(election.changes(self.store, self.names)) as leaders:
                async for leader in leaders:
                    if leader is not None:
                        self.worker.observe_term(leader.term)
                    won = leader.term if leader is not None and leader.key == mine else None
                    if term is not None and leading is not None and won != term:
                        await _end(leading)
                        over.put_nowait(term)
                        leading = None
                    if won is not None and leading is None:
                        leading = asyncio.ensure_future(self._lead(lease, won, mine, over))
                    term = won
        finally:
            if leading is not None:
                await _end(leading)

    async def _stand_again(self, lease: Lease, over: asyncio.Queue[Term]) -> None:
        """After a term make room for the next candidate, then stand with a new key.

        The lease stays, and with it the worker's record: what it runs goes on.
        """
        candidacy = self._candidacy(lease)
        while True:
            term = await over.get()
            while True:
                try:
                    # A guard that does not hold says that it is done already.
                    await self.store.commit(
                        [CreatedAt(candidacy.key, term)], [Delete(candidacy.key)]
                    )
                    await asyncio.sleep(_RETRY_S)
                    await self.store.commit([Absent(candidacy.key)], [candidacy])
                    break
                except StoreUnreachableError as error:
                    log.warning("worker=%s cannot stand again yet: %s", self.record.id, error)
                    await asyncio.sleep(_RETRY_S)

    async def _lead(self, lease: Lease, term: Term, key: str, over: asyncio.Queue[Term]) -> None:
        leadership = Leadership(term, key, lease)
        try:
            service = LeaderService(
                self.record.id,
                leadership,
                store=self.store,
                bus=self.bus,
                names=self.names,
                key=self.key,
                settings=self.settings,
            )
            await service.run()
        except asyncio.CancelledError:
            raise
        except (election.LeadershipLostError, LogLostError) as error:
            log.warning("term=%s ends: %s", term, error)
        except Exception:
            log.exception("term=%s ends by an error", term)
        over.put_nowait(term)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _first_of(drain: asyncio.Event, stop: asyncio.Event, ends: asyncio.Task[None]) -> None:
    waits = [asyncio.ensure_future(condition.wait()) for condition in (drain, stop)]
    await asyncio.wait([*waits, ends], return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


def _address_towards(endpoint: str) -> str:
    """The IP address that this host uses towards a server; nothing is sent."""
    host, _, port = endpoint.rpartition("//")[2].rpartition(":")
    try:
        family, kind, proto, _, target = socket.getaddrinfo(
            host.strip("[]") or "127.0.0.1", int(port), type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind, proto) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0])
    except (OSError, ValueError):
        return "127.0.0.1"


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "nbsched": nbsched.__version__}
    for name in _VERSIONS_OF:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


# ---------------------------------------------------------------- command line


@click.command(context_settings={"show_default": True, "max_content_width": 100})
@click.option("--etcd", metavar="HOST:PORT,…", help="etcd endpoints.")
@click.option("--nats", metavar="URL,…", help="NATS servers.")
@click.option("--namespace", help="Which cluster to join on these servers.  [default: default]")
@click.option(
    "--cpus",
    type=click.IntRange(min=0),
    help="CPU slots; 0: only stand for election.  [default: what this process may use]",
)
@click.option("--key-file", help="File with the key that signs payloads.  [default: key in etcd]")
@click.option("--etcd-user")
@click.option("--etcd-password", help="Better: NBSCHED_ETCD_PASSWORD.")
@click.option("--etcd-ca", help="CA certificate (PEM); turns TLS on.")
@click.option("--etcd-cert", help="Client certificate (PEM).")
@click.option("--etcd-key", help="Key of the client certificate (PEM).")
@click.option("--nats-user")
@click.option("--nats-password", help="Better: NBSCHED_NATS_PASSWORD.")
@click.option("--nats-token", help="Better: NBSCHED_NATS_TOKEN.")
@click.option("--nats-creds", help="NATS credentials file (.creds).")
@click.option("--nats-ca", help="CA certificate (PEM).")
@click.option("--nats-cert", help="Client certificate (PEM).")
@click.option("--nats-key", help="Key of the client certificate (PEM).")
@click.option("--lease-ttl-s", type=float, help="Seconds until a dead daemon is noticed.")
@click.option("--retention-s", type=float, help="Seconds that ended jobs are kept; inf: for ever.")
@click.option("--verbose", "-v", is_flag=True, help="Log every event.")
@click.version_option(nbsched.__version__, prog_name="nbsched-worker")
def main(cpus: int | None, verbose: bool, **options: object) -> None:
    """Run tasks on this host for an nbsched cluster.

    Every option can be set as NBSCHED_NAME in the environment, or in the config file.
    The first SIGTERM or Ctrl-C drains: running tasks finish, queued ones go back. The
    second one stops at once.
    """
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    try:
        settings = load(options)
        asyncio.run(_serve(settings, usable_cpus() if cpus is None else cpus))
    except NbschedError as error:
        click.echo(f"nbsched-worker: {error}", err=True)
        sys.exit(1)


async def _serve(settings: Settings, cpus: int) -> None:
    drain, stop = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (stop if drain.is_set() else drain).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    daemon = await Daemon.start(settings, cpus)
    await daemon.run(drain, stop)


if __name__ == "__main__":
    main()
