"""Why jobs do not move, in one line for people: servers that do not answer, no worker.

Each source of trouble says so here, and says when it is over; every unfinished job
of the session shows the first line that stands.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable
from typing import Literal

from nbsched.client.tracker import JobTracker
from nbsched.errors import ConnectError, StoreFullError, StoreUnreachableError
from nbsched.model import WorkerId
from nbsched.settings import Settings

_FULL_BYTES = 128 * 1024**2
"""etcd ends when it cannot make the file of 64 MiB that it needs next."""
Source = Literal["etcd", "nats", "workers"]
Room = tuple[Literal["room"], str]
"""Who cannot store what it wants to: a worker, or this client."""
HERE: Room = ("room", "")
STORE_FULL = (
    "etcd is full and takes no writes: work goes on when there is room; nbsched jobs --prune"
    " makes some"
)


class Notes:
    """The troubles of one session."""

    def __init__(self, settings: Settings, trackers: Callable[[], Iterable[JobTracker]]) -> None:
        self._settings = settings
        self._trackers = trackers
        self._lines: dict[Source | Room, str] = {}

    @property
    def line(self) -> str:
        """What jobs show now; empty when nothing is wrong."""
        return next(iter(self._lines.values()), "")

    def server_failed(self, error: ConnectError) -> None:
        """A server did not answer."""
        if isinstance(error, StoreFullError):
            self._set("etcd", STORE_FULL)
            return
        self._set("etcd" if isinstance(error, StoreUnreachableError) else "nats", self.away(error))

    def away(self, error: ConnectError) -> str:
        """The line for a server that does not answer."""
        if self._settings.local:
            return _disk_full(self._settings) or "the local cluster is down: nbsched up"
        name = "etcd" if isinstance(error, StoreUnreachableError) else "NATS"
        return f"{name} does not answer; the job goes on when it is back"

    def no_worker(self) -> None:
        """Nobody is there who could run a task."""
        remedy = start_worker(self._settings)
        self._set("workers", f"no worker is there: {remedy}")

    @property
    def waits_for(self) -> str:
        """What this client cannot store just now, and why; empty when it can."""
        return self._lines.get(HERE, "")

    def waits(self, line: str) -> None:
        """This client waits for a server; until ``works(HERE)``."""
        self._set(HERE, line)

    def pauses(self, worker: WorkerId, trouble: str) -> None:
        """A worker said why it pauses; '' when it does not."""
        if trouble:
            self._set(("room", worker), trouble)
        else:
            self.works(("room", worker))

    def keep_workers(self, members: Collection[WorkerId]) -> None:
        """Workers that are not there any more wait for nothing."""
        for source in list(self._lines):
            if isinstance(source, tuple) and source != HERE and source[1] not in members:
                self.works(source)

    def works(self, source: Source | Room) -> None:
        """What had failed works again."""
        if self._lines.pop(source, None) is not None:
            self._show()

    def _set(self, source: Source | Room, line: str) -> None:
        if self._lines.get(source) != line:
            self._lines[source] = line
            self._show()

    def _show(self) -> None:
        for tracker in self._trackers():
            tracker.set_note(self.line)


def start_worker(settings: Settings) -> str:
    """The command that brings a worker."""
    return "nbsched up" if settings.local else f"nbsched-worker --namespace {settings.namespace}"


def _disk_full(settings: Settings) -> str:
    """Whether the local cluster's disk is full, which ends its etcd; '' if not."""
    folder = settings.shared_folder
    try:
        free = None if folder is None else shutil.disk_usage(folder).free
    except OSError:
        return ""
    if free is None or free > _FULL_BYTES:
        return ""
    return f"the disk of the local cluster is full ({folder}): it goes on when there is room"
