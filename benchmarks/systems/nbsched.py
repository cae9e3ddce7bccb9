"""nbsched: a private local cluster with one daemon of two kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from nbsched import Cluster, Future, LocalCluster


class System:
    name = "nbsched"

    def start(self) -> None:
        self.cluster = LocalCluster(workers=1, cpus=2, progress="off")

    def start_slow_among(self, daemons: int) -> int:
        """Daemons with one kernel each; the pid of the one that is to be slow."""
        self.cluster = LocalCluster(workers=daemons, cpus=1, progress="off")
        while len(self.cluster.workers()) < daemons:
            self.cluster.submit(abs, 1).result()
        return self.cluster.pids()["workers"][-1]

    def map_default(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return self.cluster.map(fn, items).result()

    def futures(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return [future.result() for future in self.cluster.map(fn, items).futures()]

    def submit(self, fn: Callable[..., Any], *args: Any) -> Future:
        return self.cluster.submit(fn, *args)

    def cancel(self, future: Future) -> None:
        future.cancel()

    def address(self) -> dict[str, Any]:
        """What a second client has to know, as arguments."""
        settings = self.cluster.settings
        known = {name: getattr(settings, name) for name in settings.__struct_fields__}
        defaults = {field.name: field.default for field in msgspec.structs.fields(settings)}
        return {k: v for k, v in known.items() if v != defaults[k]}

    def join(self, address: dict[str, Any]) -> Callable[..., Any]:
        cluster = Cluster(**address)
        return lambda fn, x: cluster.submit(fn, x).result()

    def stop(self) -> None:
        self.cluster.close()
