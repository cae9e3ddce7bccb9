"""The one event loop of the process in which all connections live, on its own thread.

gRPC's asyncio support wants a single loop per process, and user code in a notebook
may or may not run inside a loop of its own; both are at peace with this one.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from nbsched.errors import NbschedError

T = TypeVar("T")


class IoThread:
    """An event loop on a daemon thread."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self.loop.run_forever, name="nbsched-io", daemon=True
        )
        self._thread.start()

    @property
    def usable(self) -> bool:
        """False in a forked child: threads do not come along."""
        return self._pid == os.getpid()

    def start(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run a coroutine there; any thread may call this."""
        if not self.usable:
            work.close()
            raise NbschedError(
                f"This cluster was connected in process {self._pid} and does not work in its"
                " forked child. Create a new Cluster() in the child."
            )
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there and wait for it; never from the I/O thread itself."""
        if threading.current_thread() is self._thread:
            work.close()
            raise NbschedError("A blocking call was made on nbsched's own I/O thread.")
        future = self.start(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


_lock = threading.Lock()
_current: IoThread | None = None


def io_thread() -> IoThread:
    """The process's I/O thread, started on first use (and again after a fork)."""
    global _current
    with _lock:
        if _current is None or not _current.usable:
            _current = IoThread()
        return _current
