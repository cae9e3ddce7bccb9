"""The threads that resolve futures and that run user callbacks.

Neither may hold up the connections. There are two, as a callback may itself wait for
another future, which is resolved meanwhile.
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

    def __init__(self, name: str) -> None:
        self.pid = os.getpid()
        self._queue: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def put(self, call: Callable[[], object]) -> None:
        self._queue.put(call)

    def _run(self) -> None:
        while True:
            call = self._queue.get()
            try:
                call()
            except Exception:
                log.exception("A future could not be resolved, or its callback failed")
            del call  # or the last future would stay alive until the next one comes


_lock = threading.Lock()
_started: dict[str, Delivery] = {}


def delivery() -> Delivery:
    """The process's thread that unpickles and resolves."""
    return _thread("nbsched-delivery")


def callbacks() -> Delivery:
    """The process's thread that runs user callbacks."""
    return _thread("nbsched-callbacks")


def _thread(name: str) -> Delivery:
    """Started on first use, and again after a fork."""
    with _lock:
        found = _started.get(name)
        if found is None or found.pid != os.getpid():
            found = _started[name] = Delivery(name)
        return found
