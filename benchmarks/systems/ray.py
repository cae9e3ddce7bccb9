"""Ray: a local instance with two CPUs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")

import ray
from ray.util.multiprocessing import Pool


class _Handle:
    def __init__(self, ref: Any) -> None:
        self.ref = ref

    def result(self, timeout: float | None = None) -> Any:
        return ray.get(self.ref, timeout=timeout)


class System:
    name = "ray"

    def start(self) -> None:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")

        self.remotes: dict[Callable[..., Any], Any] = {}

    def map_default(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        remote = self._remote(fn)
        return ray.get([remote.remote(item) for item in items])

    def map_best(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        with Pool(processes=2) as pool:
            return pool.map(fn, items, chunksize=max(1, len(items) // 50))

    def futures(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        remote = self._remote(fn)
        return [ray.get(ref) for ref in [remote.remote(item) for item in items]]

    def submit(self, fn: Callable[..., Any], *args: Any) -> _Handle:
        return _Handle(self._remote(fn).remote(*args))

    def cancel(self, handle: _Handle) -> None:
        ray.cancel(handle.ref)

    def _remote(self, fn: Callable[..., Any]) -> Any:
        """Once for each function, as a decorator would."""
        if fn not in self.remotes:
            self.remotes[fn] = ray.remote(fn)
        return self.remotes[fn]

    def address(self) -> str:
        return str(ray.get_runtime_context().gcs_address)

    def join(self, address: str) -> Callable[..., Any]:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        remotes: dict[Callable[..., Any], Any] = {}
        return lambda fn, x: ray.get(
            (remotes.get(fn) or remotes.setdefault(fn, ray.remote(fn))).remote(x)
        )

    def stop(self) -> None:
        ray.shutdown()
