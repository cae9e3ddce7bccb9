"""The thread that resolves futures: unpickling and user callbacks happen here.

Neither may hold up the connections, and a callback may itself call the cluster.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class Delivery:
    """A queue of calls and the daemon thread that makes them, in order."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="nbsched-delivery", daemon=True).start()

    def put(self, call: Callable[[], None]) -> None:
        self._queue.put(call)

    def _run(self) -> None:
        while True:
            call = self._queue.get()
            try:
                call()
            except Exception:
                log.exception("A future could not be resolved")
            del call  # or the last future would stay alive until the next one comes


_lock = threading.Lock()
_current: Delivery | None = None


def delivery() -> Delivery:
    """The process's delivery thread, started on first use (and again after a fork)."""
    global _current
    with _lock:
        if _current is None or _current.pid != os.getpid():
            _current = Delivery()
        return _current
