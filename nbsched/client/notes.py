"""Why jobs do not move, in one line for people: servers that do not answer, no worker.

Each source of trouble says so here, and says when it is over; every unfinished job
of the session shows the first line that stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

from nbsched.client.tracker import JobTracker
from nbsched.errors import ConnectError, StoreUnreachableError
from nbsched.settings import Settings

Source = Literal["etcd", "nats", "workers"]


class Notes:
    """The troubles of one session."""

    def __init__(self, settings: Settings, trackers: Callable[[], Iterable[JobTracker]]) -> None:
        self._settings = settings
        self._trackers = trackers
        self._lines: dict[Source, str] = {}

    @property
    def line(self) -> str:
        """What jobs show now; empty when nothing is wrong."""
        return next(iter(self._lines.values()), "")

    def server_failed(self, error: ConnectError) -> None:
        """A server did not answer."""
        source: Source = "etcd" if isinstance(error, StoreUnreachableError) else "nats"
        name = "etcd" if source == "etcd" else "NATS"
        self._set(
            source,
            "the local cluster is down: nbsched up"
            if self._settings.local
            else f"{name} does not answer; the job goes on when it is back",
        )

    def no_worker(self) -> None:
        """Nobody is there who could run a task."""
        remedy = start_worker(self._settings)
        self._set("workers", f"no worker is there: {remedy}")

    def works(self, source: Source) -> None:
        """What had failed works again."""
        if self._lines.pop(source, None) is not None:
            self._show()

    def _set(self, source: Source, line: str) -> None:
        if self._lines.get(source) != line:
            self._lines[source] = line
            self._show()

    def _show(self) -> None:
        for tracker in self._trackers():
            tracker.set_note(self.line)


def start_worker(settings: Settings) -> str:
    """The command that brings a worker."""
    return "nbsched up" if settings.local else f"nbsched-worker --namespace {settings.namespace}"
