"""A Jupyter kernel of a test's own, without a front end."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from queue import Empty
from typing import Any

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


def published(
    client: BlockingKernelClient, within_s: float, late: Callable[[], str]
) -> Iterator[dict[str, Any]]:
    """The kernel's messages as they come. AssertionError at an error in a cell, and, saying
    ``late()``, when whoever reads them still wants more after that time."""
    deadline = time.monotonic() + within_s
    while True:
        assert time.monotonic() < deadline, late()
        try:
            message = client.get_iopub_msg(timeout=1)
        except Empty:
            continue
        assert message["header"]["msg_type"] != "error", message["content"]
        yield message
