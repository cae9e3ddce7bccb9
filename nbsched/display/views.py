"""Chooses how a job is shown where it is waited for or displayed.

In a notebook a job has one display per cell, which stays until the job ends; elsewhere
a wait writes text to stderr. ``NBSCHED_PROGRESS`` (`Settings.progress`) says ``off``
for nothing live at all, ``text`` for text in notebooks too, ``tqdm`` for a tqdm bar.
Owns which view exists for which job; draws nothing itself.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import TextIO, TypeVar
from weakref import WeakValueDictionary

from nbsched.client.progress import ClusterSnapshot, ClusterSubject, Observable, TaskSubject
from nbsched.display.clusterscene import ClusterScene
from nbsched.display.jobscene import JobScene
from nbsched.display.live import Live, View, ticker
from nbsched.display.notebook import CellView, Output, current_cell
from nbsched.display.pump import in_kernel, pump_here
from nbsched.display.scenes import Scene, Subject
from nbsched.display.taskscene import TaskScene
from nbsched.display.terminal import PipeLines, TerminalLine
from nbsched.display.tqdm import TqdmBar
from nbsched.errors import ConfigurationError
from nbsched.settings import ProgressMode, load

S = TypeVar("S", bound=Subject)
DELAY_S = 0.3
"""A wait shorter than this shows nothing: it would only flicker."""


class Views:
    """The `ViewFactory` of this process. Keeps no job alive that has ended."""

    def __init__(self, mode: Callable[[], ProgressMode] | None = None) -> None:
        self._mode = mode or _configured_mode
        self._lock = threading.RLock()
        # By job and place. The ticker holds on to what still runs.
        self._lives: WeakValueDictionary[tuple[str, str], Live] = WeakValueDictionary()
        self._outputs: dict[tuple[str, str], Output] = {}
        self._pipes: dict[str, PipeLines] = {}

    def blocking(self, job: Observable) -> AbstractContextManager[None]:
        """Show progress from now until the wait is over, if it takes long enough.

        In a notebook the display goes on when the wait was given up. Meant to be
        entered once for a whole iteration, not for every item.
        """
        mode = job.progress_mode or self._mode()
        if mode == "off" or job.progress.finished:
            return nullcontext()
        if mode == "tqdm":
            return _Wait([self._live(job, "tqdm", TqdmBar, DELAY_S)], stays=False)
        cell = current_cell() if mode == "auto" else None
        if cell is not None:
            self._in_cell(job, JobScene, cell, DELAY_S)
            return _Wait(self._lives_of(job), stays=True)
        if sys.stderr is not None:
            return _Wait([self._on_stderr(job, sys.stderr)], stays=False)
        return nullcontext()

    def mimebundle(self, job: Observable) -> dict[str, object]:
        """The job as it is now, in text and HTML."""
        return JobScene(job).static(job.progress)

    def display(self, job: Observable) -> bool:
        """Show the job in the running cell, live until it ends; False outside a notebook."""
        mode = job.progress_mode or self._mode()
        cell = current_cell() if mode in ("auto", "tqdm") else None
        if cell is None:
            return False
        self._in_cell(job, JobScene, cell, 0.0).flush()
        return True

    def task_mimebundle(self, task: TaskSubject) -> dict[str, object]:
        return TaskScene(task).static(task.progress)

    def display_task(self, task: TaskSubject) -> bool:
        """Show a future in the running cell, live until it ends; False outside a notebook."""
        cell = current_cell() if self._mode() in ("auto", "tqdm") else None
        if cell is None:
            return False
        self._in_cell(task, TaskScene, cell, 0.0).flush()
        return True

    def cluster_mimebundle(self, now: ClusterSnapshot) -> dict[str, object]:
        return ClusterScene.of(now)

    def display_cluster(self, cluster: ClusterSubject) -> bool:
        """Show a cluster in the running cell, live until it is closed or shown again."""
        cell = current_cell() if self._mode() in ("auto", "tqdm") else None
        if cell is None:
            return False
        for live in self._lives_of(cluster):
            live.stop()
        self._in_cell(cluster, ClusterScene, cell, 0.0).flush()
        return True

    def may_pump(self) -> bool:
        return in_kernel()

    def pump(self) -> Callable[[], None] | None:
        """What a call that blocks this thread should call now and then."""
        return pump_here()

    def _in_cell(self, job: S, scene: Callable[[S], Scene], cell: str, after_s: float) -> Live:
        def make() -> View:
            self._outputs = {k: v for k, v in self._outputs.items() if k[1] == cell}
            # A job that is retried in the cell where it ended goes on in its display.
            return CellView(scene(job), self._outputs.setdefault((job.id, cell), Output()))

        return self._live(job, cell, make, after_s)

    def _on_stderr(self, job: Observable, stream: TextIO) -> Live:
        def make() -> View:
            if stream.isatty():
                return TerminalLine(stream)
            self._pipes = {k: v for k, v in self._pipes.items() if not v.finished}
            # What is written already is not repeated by the next wait for the job.
            if job.id not in self._pipes or self._pipes[job.id].stream is not stream:
                self._pipes[job.id] = PipeLines(stream)
            return self._pipes[job.id]

        return self._live(job, "stderr", make, DELAY_S)

    def _live(self, job: Subject, place: str, make: Callable[[], View], after_s: float) -> Live:
        """What keeps the job's view in this place up to date; there is never a second."""
        with self._lock:
            live = self._lives.get((job.id, place))
            if live is None or not live.wake():
                live = ticker().add(job, make(), after_s=after_s)
                self._lives[job.id, place] = live
            return live

    def _lives_of(self, job: Subject) -> list[Live]:
        with self._lock:
            return [live for (job_id, _), live in list(self._lives.items()) if job_id == job.id]


class _Wait(AbstractContextManager[None]):
    """One call that waits for a job, seen by all of the job's views."""

    def __init__(self, lives: list[Live], *, stays: bool) -> None:
        self._lives = lives
        self._stays = stays

    def __enter__(self) -> None:
        for live in self._lives:
            live.wait_begins()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for live in self._lives:
            live.wait_ends(stays=self._stays)


def _configured_mode() -> ProgressMode:
    try:
        return load().progress
    except ConfigurationError:
        # Whoever connects is told; a job that runs is not worth less for it.
        return "auto"
