"""One adapter per system: the least that lets all of them do the same work.

An adapter is a class `System` in the module of its name. What a system has no way to do,
it does not define; the table then says "none". Every adapter starts two workers, one CPU
each, with the settings that the system's own documentation starts with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, Protocol

NAMES = ("nbsched", "dask", "ray", "ipyparallel", "joblib", "processpool", "pool")
TITLES = {
    "nbsched": "nbsched",
    "dask": "Dask",
    "ray": "Ray",
    "ipyparallel": "ipyparallel",
    "joblib": "joblib",
    "processpool": "ProcessPoolExecutor",
    "pool": "Pool",
}
REQUIREMENTS = {
    "nbsched": [],  # this checkout, with its servers
    "dask": ["distributed>=2024.8"],
    "ray": ["ray>=2.40"],
    "ipyparallel": ["ipyparallel>=9.0", "cloudpickle>=3.0"],
    "joblib": ["joblib>=1.4"],
    "processpool": [],
    "pool": [],
    "plot": ["matplotlib>=3.8"],
}
PACKAGES = {"dask": "distributed"}
"""Where the package is named otherwise than the system."""


class System(Protocol):
    """What every system can do. Optional: ``map_best``, ``futures``, ``submit``, ``cancel``,
    ``start_slow_among``, and ``address`` with ``join``, which is called in another process and
    returns a function that runs one task."""

    name: str

    def start(self) -> None: ...

    def map_default(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """All results, with the system's default batching."""

    def stop(self) -> None: ...


def load(name: str) -> System:
    system: System = import_module(f"benchmarks.systems.{name}").System()
    return system
