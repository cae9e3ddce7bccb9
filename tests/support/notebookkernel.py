"""A Jupyter kernel of a test's own, without a front end."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

from support.conditions import DEADLINE_S


@contextlib.contextmanager
def started_kernel() -> Iterator[BlockingKernelClient]:
    """Its client; the kernel is gone afterwards."""
    manager = KernelManager(kernel_name="python3")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        manager.start_kernel()
        client = manager.blocking_client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=DEADLINE_S)
            yield client
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
            manager.cleanup_resources()
