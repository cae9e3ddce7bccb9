"""Dask distributed: a LocalCluster of two processes with one thread each."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from distributed import Client, Future, LocalCluster


class System:
    name = "dask"

    def start(self) -> None:
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        self.cluster = LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        )
        self.client = Client(self.cluster)

    def map_default(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return self.client.gather(self.client.map(fn, items, pure=False))

    def map_best(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """By hand, 50 batches: ``Client.map(batch_size=)`` batches messages, not tasks."""
        size = max(1, len(items) // 50)
        batches = [items[at : at + size] for at in range(0, len(items), size)]
        done = self.client.map(lambda batch: [fn(item) for item in batch], batches, pure=False)
        return [result for batch in self.client.gather(done) for result in batch]

    def futures(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return [future.result() for future in self.client.map(fn, items, pure=False)]

    def submit(self, fn: Callable[..., Any], *args: Any) -> Future:
        return self.client.submit(fn, *args, pure=False)

    def cancel(self, future: Future) -> None:
        future.cancel()

    def address(self) -> str:
        return str(self.cluster.scheduler_address)

    def join(self, address: str) -> Callable[..., Any]:
        client = Client(address)
        return lambda fn, x: client.submit(fn, x, pure=False).result()

    def stop(self) -> None:
        self.client.close()
        self.cluster.close()
