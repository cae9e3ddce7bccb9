"""ipyparallel: a cluster of two engines, load balanced."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import ipyparallel


class System:
    name = "ipyparallel"

    def start(self) -> None:
        self.cluster = ipyparallel.Cluster(n=2, log_level=logging.CRITICAL)
        self.client = self.cluster.start_and_connect_sync(activate=False)
        self.client[:].use_cloudpickle()
        self.view = self.client.load_balanced_view()

    def map_default(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return list(self.view.map_sync(fn, items))

    def map_best(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return list(self.view.map_sync(fn, items, chunksize=max(1, len(items) // 50)))

    def futures(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return [future.get() for future in [self.view.apply_async(fn, item) for item in items]]

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self.view.apply_async(fn, *args)

    def cancel(self, future: Any) -> None:
        future.abort()

    def address(self) -> str:
        return str(self.cluster.cluster_file)

    def join(self, address: str) -> Callable[..., Any]:
        client = ipyparallel.Cluster.from_file(address).connect_client_sync()
        view = client.load_balanced_view()
        return lambda fn, x: view.apply_sync(fn, x)

    def stop(self) -> None:
        self.client.close()
        self.cluster.stop_cluster_sync()
