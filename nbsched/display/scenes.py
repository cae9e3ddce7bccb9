"""What a display shows and what a click in it does, apart from where it is shown.

A scene turns snapshots into a state for the page (words and numbers, ready to draw) and
into a static bundle that needs no page at all, and carries out what was clicked, on a
thread of its own: a handler must not wait for the servers.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Protocol

log = logging.getLogger(__name__)

State = dict[str, Any]
Bundle = dict[str, object]


class Snapshot(Protocol):
    """What a subject is at a moment."""

    @property
    def finished(self) -> bool: ...


class Subject(Protocol):
    """What is displayed."""

    @property
    def id(self) -> str: ...

    @property
    def progress(self) -> Any:
        """A `Snapshot`."""


class Scene(Protocol):
    """One subject in one display."""

    dirty: bool
    """A click has changed what is to be drawn."""

    def state(self, snapshot: Any) -> State: ...

    def static(self, snapshot: Any, token: str | None) -> Bundle:
        """What a saved notebook keeps; ``token`` names the live display in its place."""

    def goes_on(self, snapshot: Any) -> bool:
        """Whether what has ended could run again by a click."""

    def act(self, message: dict[str, Any]) -> None: ...


class Requests:
    """Requests to the cluster that were clicked: one thread each, one of a kind at a time."""

    def __init__(self) -> None:
        self._busy: dict[object, str] = {}
        self._lock = threading.Lock()
        self.trouble = ""
        """Why the last one failed, for people."""

    def start(self, key: object, word: str, call: Callable[[], object]) -> bool:
        """Carry out ``call``; False while an equal request is under way."""
        with self._lock:
            if key in self._busy:
                return False
            self._busy[key] = word
            self.trouble = ""
        threading.Thread(
            target=self._carry_out, args=(key, word, call), name="nbsched-click", daemon=True
        ).start()
        return True

    def busy(self, key: object) -> bool:
        with self._lock:
            return key in self._busy

    def settled(self, key: object) -> None:
        """Its effect is there."""
        with self._lock:
            self._busy.pop(key, None)

    def settle_all(self, unless: Callable[[object], bool]) -> None:
        with self._lock:
            self._busy = {key: word for key, word in self._busy.items() if unless(key)}

    def _carry_out(self, key: object, word: str, call: Callable[[], object]) -> None:
        try:
            goes_on = call()
        except Exception as error:
            log.warning("%s failed", word, exc_info=True)
            self.trouble = f"{word} failed: {error}"
            goes_on = False
        if not goes_on:
            self.settled(key)
