"""A notebook's stand-in: submits jobs, cancels some tasks, writes down every outcome.

    python -m chaos.client PLAN

It may be killed and started again with the same plan: it attaches to the jobs that it
finds under their names, and submits those that it does not find. Once in order, it ends.
"""

from __future__ import annotations

import concurrent.futures
import logging
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from chaos.diary import Diary
from chaos.tasks import Item, Work
from nbsched import Cluster, Future, MapFuture
from nbsched.errors import (
    InputNotReadableError,
    JobForgottenError,
    NbschedError,
    ResultsLostError,
    TaskCrashedError,
)

RETRY_S = 0.3
SEAL_WITHIN_S = 3.0
GONE = (JobForgottenError, ResultsLostError, InputNotReadableError)
"""What a job ends in whose data a server has lost."""


class JobPlan(msgspec.Struct, frozen=True):
    """One job: a kind for each task."""

    label: str
    kinds: list[str]
    seconds: float
    ballast: int = 0
    """Bytes per item."""
    retry: int = 0
    max_crashes: int = 20
    speculate: bool = False
    cancel_after_s: float | None = None
    cancel: list[int] | None = None
    """Which tasks are cancelled then; None: the whole job."""
    begin_at_s: float = 0.0
    """When it is submitted, counted from when the first client was started."""


class ClientPlan(msgspec.Struct, frozen=True):
    settings: dict[str, Any]
    folder: str
    began_at: float
    """On the monotonic clock, which is the same for all processes."""
    jobs: list[JobPlan]
    """In the order in which they are submitted."""


class Client:
    """The jobs of one process, and what it writes about them."""

    def __init__(self, plan: ClientPlan) -> None:
        self.plan = plan
        self.diary = Diary(plan.folder, "client")
        self.futures: list[Future] = []
        """Held, so that each is one object with one callback."""

    def run(self) -> None:
        self.diary.write("begin")
        with self._patiently(lambda: Cluster(**self.plan.settings)) as cluster:
            timers = []
            jobs = []
            for job in self.plan.jobs:
                time.sleep(max(0.0, self.plan.began_at + job.begin_at_s - time.monotonic()))
                mf, fresh = self._patiently(lambda job=job: self._job(cluster, job))
                if not self._sealed(mf):
                    self.diary.write("abandoned", job.label)
                    self._cancel_one(job, mf)
                    continue
                self._note_outcomes(job, mf)
                jobs.append((job, mf))
                if job.cancel_after_s is not None and fresh:
                    timer = threading.Timer(job.cancel_after_s, self._cancel, (job, mf))
                    timer.start()
                    timers.append(timer)
            for job, mf in jobs:
                with suppress(*GONE):  # its futures say so, too
                    mf.wait()
                self.diary.write("done", job.label)
            for timer in timers:
                timer.join()
            concurrent.futures.wait(self.futures)
            self._look_again(jobs)
        self.diary.write("finished")

    def _look_again(self, jobs: list[tuple[JobPlan, MapFuture]]) -> None:
        """An outcome stays what it was."""
        for job, mf in jobs:
            for index, future in enumerate(mf.futures()):
                self.diary.write("final", job.label, index, *told(future))

    def _patiently(self, call: Callable[[], Any]) -> Any:
        """A server may be away just now; a user would run the cell again."""
        while True:
            try:
                return call()
            except NbschedError as error:
                self.diary.write("error", type(error).__name__, str(error))
                time.sleep(RETRY_S)

    def _job(self, cluster: Cluster, job: JobPlan) -> tuple[MapFuture, bool]:
        """Attach or submit. Called again after an error, which may have come too late."""
        for found in cluster.jobs(name=job.label):
            mf = cluster.attach(found.id)
            assert isinstance(mf, MapFuture)
            self.diary.write("job", job.label, mf.id, len(job.kinds), False)
            return mf, False
        self.diary.write("submitting", job.label)
        mf = self._submit(cluster, job)
        self.diary.write("job", job.label, mf.id, len(job.kinds), True)
        return mf, True

    def _sealed(self, mf: MapFuture) -> bool:
        """Whether all items are there: not if an earlier client died while uploading."""
        deadline = time.monotonic() + SEAL_WITHIN_S
        while mf.progress.total is None and time.monotonic() < deadline:
            time.sleep(0.1)
        return mf.progress.total is not None

    def _note_outcomes(self, job: JobPlan, mf: MapFuture) -> None:
        for index, future in enumerate(mf.futures()):
            self.futures.append(future)
            future.add_done_callback(self._noting(job.label, index))

    def _submit(self, cluster: Cluster, job: JobPlan) -> MapFuture:
        options = {
            "name": job.label,
            "retry": job.retry,
            "max_crashes": job.max_crashes,
            "speculate": job.speculate,
        }
        items = [
            Item(index, kind, job.seconds, bytes(job.ballast))
            for index, kind in enumerate(job.kinds)
        ]
        mf = cluster.options(**options).map(Work(job.label, self.plan.folder), items)
        mf.futures()  # uploads all of them
        return mf

    def _noting(self, label: str, index: int) -> Callable[[Any], None]:
        def note(future: Any) -> None:
            self.diary.write("outcome", label, index, *told(future))

        return note

    def _cancel(self, job: JobPlan, mf: MapFuture) -> None:
        self.diary.write("cancelling", job.label, job.cancel)
        if job.cancel is None:
            self._cancel_one(job, mf)
        else:
            for index in job.cancel:
                self._cancel_one(job, mf[index])

    def _cancel_one(self, job: JobPlan, target: MapFuture | Future) -> None:
        def cancel() -> None:
            try:
                target.cancel()
            except GONE:
                self.diary.write("forgotten", job.label)

        self._patiently(cancel)


def told(future: Any) -> tuple[str, str]:
    """What a future ended in: a state, and the attempt that it names."""
    if future.cancelled():
        return "cancelled", ""
    error = future.exception()
    if error is None:
        index, token = future.result()
        return "ok", f"{index}:{token}"
    if isinstance(error, TaskCrashedError):
        return "crashed", str(error)
    if isinstance(error, GONE):
        return "forgotten", type(error).__name__
    if isinstance(error, (ValueError, RuntimeError)):
        return "failed", str(error)
    return "error", f"{type(error).__name__}: {error}"


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    plan = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=ClientPlan)
    Client(plan).run()


if __name__ == "__main__":
    main()
