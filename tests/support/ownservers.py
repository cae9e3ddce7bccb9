"""Servers of a test's own, with limits of the test's, and a worker daemon on them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nbsched import Cluster
from support.etcd import EtcdServer
from support.nats import NatsServer
from support.serverprocess import ServerProcess


class WorkerDaemon(ServerProcess):
    """One ``nbsched-worker``; there when it has written that it joined."""

    def __init__(self, folder: Path, etcd: str, nats: str, *options: str) -> None:
        self._options = ("--etcd", etcd, "--nats", nats, *options)
        self.log = folder / "worker.log"
        super().__init__(self.log)

    def _command(self) -> list[str]:
        start = "from nbsched.daemon import main; main()"
        return ["env", "NBSCHED_LOCAL=1", sys.executable, "-c", start, *self._options]

    def _wait_until_ready(self) -> None:
        """A client waits for workers by itself."""


@contextmanager
def own_cluster(
    folder: Path,
    *,
    etcd_options: tuple[str, ...] = (),
    jetstream_bytes: int | None = None,
    data: Path | None = None,
    worker_options: tuple[str, ...] = ("--cpus", "2"),
) -> Iterator[tuple[Cluster, EtcdServer, NatsServer]]:
    """A client on servers with such limits; ``data`` is where they keep theirs."""
    place = folder if data is None else data
    etcd = EtcdServer(place / "etcd", *etcd_options)
    options: tuple[str, ...] = ()
    if jetstream_bytes is not None:
        config = folder / "nats.conf"
        config.write_text(f"jetstream: {{max_file_store: {jetstream_bytes}}}")
        options = ("-c", str(config))
    nats = NatsServer(place / "nats", *options)
    worker = WorkerDaemon(folder, etcd.endpoint, nats.url, *worker_options)
    try:
        etcd.start()
        nats.start()
        worker.start()
        with Cluster(etcd=etcd.endpoint, nats=nats.url, local=True) as cluster:
            yield cluster, etcd, nats
    finally:
        for server in (worker, nats, etcd):
            server.kill()
