"""`Cluster`: a connection to a cluster, and what can be looked up there. Synchronous, from
any thread."""

from __future__ import annotations

import os
import weakref
from collections.abc import Collection, Sequence

import msgspec

from nbsched._compat import Self
from nbsched.client import records
from nbsched.client.forgetting import forget, not_found
from nbsched.client.futures import Future
from nbsched.client.incomplete import warn_if_incomplete
from nbsched.client.mapfuture import MapFuture
from nbsched.client.options import Options, require_progress
from nbsched.client.overview import Overview
from nbsched.client.progress import view_factory
from nbsched.client.session import Session
from nbsched.client.submitting import Submitter, single_future
from nbsched.client.tables import JobTable, WorkerTable
from nbsched.client.tracker import JobTracker
from nbsched.errors import ConfigurationError
from nbsched.local import cluster as local
from nbsched.model import JobId, JobRecord, JobStatus
from nbsched.names import check_id
from nbsched.settings import Settings, load

_opened: list[weakref.ref[Cluster]] = []


class Cluster(Submitter):
    """A connection to a cluster.

    Servers come from the arguments, else from ``NBSCHED_*``, else from the config
    file; with none of them it joins, or starts, this machine's own local cluster.
    All of `Settings` may be given as keyword arguments.

    ``close()`` or a ``with`` block ends the connection; so does dropping the cluster
    and all of its futures. Jobs go on in any case.

    Raises:
        ConfigurationError: a setting is wrong or missing.
        ConnectError: a server does not answer within ``connect_timeout_s``.
        LocalClusterError: the local cluster does not start.
    """

    def __init__(
        self,
        *,
        etcd: str | Sequence[str] | None = None,
        nats: str | Sequence[str] | None = None,
        namespace: str | None = None,
        **settings: object,
    ) -> None:
        chosen = load({"etcd": etcd, "nats": nats, "namespace": namespace, **settings})
        self._membership: local.Membership | None = None
        if not chosen.connected:
            _refuse_in_task()
            chosen, self._membership = local.join_or_start(chosen)
        self._open(chosen, joining=0 if self._membership is None else 1)

    def _open(self, settings: Settings, joining: int) -> None:
        require_progress(settings.progress)
        self.settings = settings
        self._joining = joining
        """Workers of a cluster that was just started, which join a moment after its servers."""
        self._overview: Overview | None = None
        super().__init__(Session.connect(settings), Options())
        if self._membership is not None:
            weakref.finalize(self._interest, self._membership.close)
        _opened[:] = [opened for opened in _opened if opened() is not None]
        _opened.append(weakref.ref(self))

    def __repr__(self) -> str:
        where = "closed" if self.closed else ", ".join(self.settings.etcd)
        return f"<nbsched.{type(self).__name__} {self.settings.namespace!r} at {where}>"

    def _ipython_display_(self) -> None:
        views = view_factory()
        if views is None or self.closed or not views.display_cluster(self._looked_up()):
            print(repr(self))

    def _repr_mimebundle_(self, **_: object) -> dict[str, object]:
        views = view_factory()
        if views is None or self.closed:
            return {"text/plain": repr(self)}
        return views.cluster_mimebundle(self._looked_up().progress)

    def _looked_up(self) -> Overview:
        self._let_join()
        if self._overview is None:
            self._overview = Overview(self)
        self._overview.look()
        return self._overview

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether it was disconnected by ``close()``."""
        return self._session.closed

    def close(self) -> None:
        """Disconnect. Jobs go on; `attach` brings them back."""
        self._session.close()
        if self._membership is not None:
            self._membership.close()
            self._membership = None

    # ------------------------------------------------------------ looking

    def workers(self) -> WorkerTable:
        """The members that are there now, sorted by host and id: a list that draws itself.

        ``cluster.workers().filter(host="node*")`` is a part of it; see `Table.filter`.
        """
        self._let_join()
        self._session.run(self._session.members.list())
        return self._members_now()

    def _let_join(self) -> None:
        """Wait, the first time, for workers that are just starting: nobody wants to see none."""
        joining, self._joining = self._joining, 0
        if joining:
            self._session.run(self._session.members.wait_for(joining))

    def _members_now(self) -> WorkerTable:
        members = self._session.members
        found = sorted(members.records.values(), key=lambda record: (record.host, record.id))
        free, memory = members.free_slots, members.memory
        return WorkerTable(
            records.worker_info(record, members.leader, free.get(record.id), memory.get(record.id))
            for record in found
        )

    def jobs(
        self,
        *,
        state: str | Collection[str] | None = None,
        tag: str | Collection[str] | None = None,
        name: str | None = None,
        limit: int | None = None,
    ) -> JobTable:
        """Jobs of the namespace, newest first, with live counts of unfinished ones.

        A list that draws itself; ``.filter(...)`` is a part of it.

        Args:
            state: one state or several (waiting, running, succeeded, failed, cancelled,
                incomplete).
            tag: one tag or several, of which a job must have one.
            name: its name, or a pattern with ``*`` and ``?``.
            limit: at most so many of those.
        """
        wanted = {"state": state, "tag": tag, "name": name}
        wanted = {key: value for key, value in wanted.items() if value is not None}
        if limit is not None and limit < 0:
            raise ConfigurationError(f"limit={limit!r} is not possible; at least 0, or None.")
        return JobTable(self._session.run(self._jobs())).filter(**wanted)[:limit]

    async def _jobs(self) -> list[records.JobInfo]:
        session = self._session
        stored = await session.store.list(session.names.jobs)
        statuses = await session.store.list(session.names.statuses)
        found = [msgspec.json.decode(item.value, type=JobRecord) for item in stored.items]
        by_job = {
            status.job: status
            for item in statuses.items
            for status in [msgspec.json.decode(item.value, type=JobStatus)]
        }
        unfinished = any(
            record.id not in by_job or not by_job[record.id].state.ended for record in found
        )
        live = await session.live_counts(None) if unfinished else {}
        infos = [records.job_info(r, by_job.get(r.id), live.get(r.id)) for r in found]
        return sorted(infos, key=lambda info: info.submitted, reverse=True)

    def attach(self, job_id: str, *, return_exceptions: bool = False) -> MapFuture | Future:
        """A job's future again, whoever submitted it: progress, results, errors.

        Returns a `MapFuture`, or the `Future` of a job that was a single ``submit``.

        Raises:
            InvalidIdError: this can be no id of a job.
            JobNotFoundError: there is no such job in this namespace (any more).
        """
        job = JobId(check_id(job_id, "job id"))
        tracker = self._session.run(self._attach(job))
        warn_if_incomplete(tracker)
        if tracker.record.call == "apply":
            return single_future(self._session, tracker, self._options)
        return MapFuture(self._session, tracker, return_exceptions=return_exceptions)

    def forget(self, job_id: str) -> None:
        """Delete a job that has ended for good: its record, its inputs and results.

        Futures of it keep the results that they have loaded. Jobs are forgotten by
        themselves ``retention_s`` after their end (24 h, unless the workers are told
        otherwise).

        Raises:
            InvalidIdError: this can be no id of a job.
            JobNotFoundError: there is no such job in this namespace (any more).
            JobNotEndedError: it is still waiting or running: cancel it first.
        """
        self._session.run(forget(self._session, JobId(check_id(job_id, "job id"))))

    async def _attach(self, job: JobId) -> JobTracker:
        session = self._session
        stored = await session.store.get(session.names.job(job))
        if stored is None:
            raise not_found(session, job)
        return await session.attach(msgspec.json.decode(stored.value, type=JobRecord))


class LocalCluster(Cluster):
    """A private cluster on this machine, which ends with its ``with`` block.

    Args:
        workers: number of worker daemons.
        cpus: CPU slots of each, or a list with one number per daemon; default: this
            machine's CPUs, divided among them.
        settings: see `Settings`.
    """

    def __init__(
        self, workers: int = 1, cpus: int | Sequence[int] | None = None, **settings: object
    ) -> None:
        self._membership = None
        self._private = local.start_private(workers, cpus, load(settings))
        try:
            self._open(self._private.settings, joining=workers)
            self._interest.keeps.append(self._private)
        except BaseException:
            self._private.close()
            raise

    def pids(self) -> dict[str, list[int]]:
        """Process ids: ``supervisor``, ``etcd``, ``nats``, ``workers``."""
        return self._private.pids()

    def close(self) -> None:
        """Disconnect, and end the cluster with everything in it."""
        super().close()
        self._private.close()


def latest() -> Cluster | None:
    """The cluster of this process that was opened last and is still open."""
    clusters = (opened() for opened in reversed(_opened))
    return next((found for found in clusters if found is not None and not found.closed), None)


def _refuse_in_task() -> None:
    if os.environ.get("NBSCHED_KERNEL"):  # set by the worker
        raise ConfigurationError(
            "Cluster() was called inside a task, and tasks hold no credentials: submit from the"
            " notebook, or pass etcd= and nats= explicitly."
        )
