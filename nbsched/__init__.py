"""nbsched: ``cluster.map(fn, items)`` on many machines, from a notebook.

    client → leader (scheduler inside) → worker → kernel → results → future → display

Names are imported on first use, so that a kernel process, which needs none of the
servers' clients, starts quickly.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "Cluster",
    "Future",
    "LargeCallableWarning",
    "LocalCluster",
    "MapFuture",
    "__version__",
    "as_completed",
    "errors",
    "wait",
]

if TYPE_CHECKING:
    from nbsched import errors as errors
    from nbsched.client.cluster import Cluster as Cluster
    from nbsched.client.cluster import LocalCluster as LocalCluster
    from nbsched.client.futures import Future as Future
    from nbsched.client.futures import as_completed as as_completed
    from nbsched.client.futures import wait as wait
    from nbsched.client.mapfuture import MapFuture as MapFuture
    from nbsched.errors import LargeCallableWarning as LargeCallableWarning

logging.getLogger(__name__).addHandler(logging.NullHandler())

_HOMES = {
    "Cluster": "nbsched.client.cluster",
    "LocalCluster": "nbsched.client.cluster",
    "Future": "nbsched.client.futures",
    "as_completed": "nbsched.client.futures",
    "wait": "nbsched.client.futures",
    "MapFuture": "nbsched.client.mapfuture",
    "LargeCallableWarning": "nbsched.errors",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("nbsched.errors")
    if name in _HOMES:
        import_module("nbsched.display")  # it registers itself with the client
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nbsched' has no attribute {name!r}")


def load_ipython_extension(shell: Any) -> None:
    """``%load_ext nbsched``: the magics ``%nbsched`` and ``%%nbsched``."""
    import_module("nbsched.magics").load(shell)


def __dir__() -> list[str]:
    return sorted(__all__)
