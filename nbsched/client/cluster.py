"""`Cluster`: where a notebook submits its work. Synchronous, from any thread."""

from __future__ import annotations

import inspect
import os
import platform
import socket
import sys
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Sequence, Sized
from typing import Any, Literal

import msgspec

import nbsched
from nbsched._compat import Self
from nbsched.client import records
from nbsched.client.futures import Future
from nbsched.client.interrupts import ends_job_on_interrupt
from nbsched.client.itemrepr import item_texts
from nbsched.client.mapfuture import MapFuture
from nbsched.client.options import Options, chunk, merge, require_progress
from nbsched.client.overview import Overview
from nbsched.client.progress import view_factory
from nbsched.client.requests import cancel_tasks, retry_tasks
from nbsched.client.session import Session
from nbsched.client.tables import JobTable, WorkerTable
from nbsched.client.tracker import JobTracker
from nbsched.client.upload import Upload
from nbsched.errors import ConfigurationError, JobNotFoundError, NotCallableError
from nbsched.local import cluster as local
from nbsched.model import CallShape, JobId, JobRecord, JobStatus
from nbsched.names import check_id, new_job_id
from nbsched.payload import pickling, retrypolicy
from nbsched.payload.largeparts import warn_if_large
from nbsched.settings import Settings, load

_opened: list[weakref.ref[Cluster]] = []
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


class Submitter:
    """What `Cluster` and ``cluster.options(...)`` have in common: submitting work."""

    def __init__(self, session: Session, options: Options) -> None:
        self._session = session
        self._options = options
        self._interest = session.interest()

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        chunksize: int | Literal["auto"] = "auto",
        buffersize: int | None = None,
        return_exceptions: bool = False,
        **options: object,
    ) -> MapFuture:
        """Apply ``fn`` to every item, as the built-in ``map`` does, on the cluster.

        Items are consumed and uploaded by this call while the first ones already run;
        with ``buffersize`` it takes only so many ahead of the results that have been
        iterated over. Iterables without a length stop the map where the shortest
        ends; those with one must be of the same length.

        Args:
            chunksize: tasks handed to a kernel at once; "auto" measures.
            buffersize: how many items may be ahead of the iteration over the results.
            return_exceptions: results may be exceptions instead of raising them.
            options: see `Options`.

        Raises:
            ConfigurationError: an argument is not possible.
            NotPicklableError: ``fn`` or an item cannot be sent; names which.
            NoWorkersError, VersionMismatchError: nobody can run it.
        """
        chosen = merge(self._options, options)
        _check_callable(fn)
        if not iterables:
            raise ConfigurationError(
                "map() needs at least one iterable of items after the callable."
            )
        for position, iterable in enumerate(iterables):
            if not isinstance(iterable, Iterable):
                raise ConfigurationError(
                    f"Argument {position + 2} of map() is a {type(iterable).__name__}, not an"
                    " iterable of items. For a single call use submit()."
                )
        _check_lengths(iterables)
        items = iterables[0] if len(iterables) == 1 else zip(*iterables, strict=False)
        call: CallShape = "one" if len(iterables) == 1 else "star"
        text = item_texts(iterables)
        return self._map(fn, items, call, chunksize, buffersize, return_exceptions, chosen, text)

    def starmap(
        self,
        fn: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        *,
        chunksize: int | Literal["auto"] = "auto",
        buffersize: int | None = None,
        return_exceptions: bool = False,
        **options: object,
    ) -> MapFuture:
        """Like `map`, with items that are argument tuples: ``fn(*item)``."""
        chosen = merge(self._options, options)
        text = item_texts((iterable,))
        return self._map(
            fn, iterable, "star", chunksize, buffersize, return_exceptions, chosen, text
        )

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """Run ``fn(*args, **kwargs)`` on the cluster. Options: ``options(...).submit``."""
        tracker, upload = self._begin(fn, [(args, kwargs)], "apply", None, self._options, None)
        future = _future(self._session, tracker, self._options)
        with ends_job_on_interrupt(future, self._options.on_interrupt):
            upload.advance(-1)  # a large argument is not in the record: seals the job
        return future

    def options(self, **options: object) -> Submitter:
        """The same cluster with other options, e.g. ``options(retry=3).submit(fn, x)``.

        Options: cpus, retry, task_timeout, max_crashes, priority, tags, name,
        on_interrupt, progress; see `Options`. Raises ConfigurationError for others.
        """
        return Submitter(self._session, merge(self._options, options))

    def _map(
        self,
        fn: Callable[..., Any],
        items: Iterable[Any],
        call: CallShape,
        chunksize: int | Literal["auto"],
        buffersize: int | None,
        return_exceptions: bool,
        options: Options,
        item_text: Callable[[int], str] | None,
    ) -> MapFuture:
        if buffersize is not None and buffersize < 1:
            raise ConfigurationError(f"buffersize={buffersize!r} is not possible; at least 1.")
        tracker, upload = self._begin(fn, items, call, chunk(chunksize), options, buffersize)
        mf = MapFuture(
            self._session,
            tracker,
            return_exceptions=return_exceptions,
            on_interrupt=options.on_interrupt,
            upload=upload,
            progress=options.progress,
            item_text=item_text,
        )
        if buffersize is None:
            with ends_job_on_interrupt(mf, options.on_interrupt):
                upload.advance(-1)
        elif tracker.total is None:
            # Somebody else may cancel it, and its items may have no end.
            self._session.run(self._session.await_seal(tracker))
        return mf

    def _begin(
        self,
        fn: Callable[..., Any],
        items: Iterable[Any],
        call: CallShape,
        chunksize: int | None,
        options: Options,
        buffersize: int | None,
    ) -> tuple[JobTracker, Upload]:
        _check_callable(fn)
        session = self._session
        policy = retrypolicy.normalise(options.retry)
        function = pickling.dump_function(fn, policy)
        warn_if_large(fn, pickling.describe(fn), function)
        session.require_workers(PYTHON, options.cpus)
        record = JobRecord(
            id=new_job_id(),
            client=session.id,
            name=options.name or pickling.describe(fn),
            submitted_at=time.time(),
            python=PYTHON,
            call=call,
            inline=False,
            total=None,
            cpus=options.cpus,
            retry=retrypolicy.describe(policy),
            task_timeout_s=options.task_timeout,
            max_crashes=options.max_crashes,
            priority=options.priority,
            chunksize=chunksize,
            tags=options.tags,
            host=socket.gethostname(),
            pid=os.getpid(),
            sent_by=f"nbsched {nbsched.__version__}, Python {platform.python_version()}",
        )
        upload = Upload(session, record, function, items, buffersize=buffersize)
        return upload.begin(), upload


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
        self._open(chosen)

    def _open(self, settings: Settings) -> None:
        require_progress(settings.progress)
        self.settings = settings
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
        self._session.run(self._session.members.list())
        return self._members_now()

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
            state: one state or several (waiting, running, succeeded, failed, cancelled).
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
            JobNotFoundError: there is no such job in this namespace.
        """
        job = JobId(check_id(job_id, "job id"))
        tracker = self._session.run(self._attach(job))
        if tracker.record.call == "apply":
            return _future(self._session, tracker, self._options)
        return MapFuture(self._session, tracker, return_exceptions=return_exceptions)

    async def _attach(self, job: JobId) -> JobTracker:
        session = self._session
        stored = await session.store.get(session.names.job(job))
        if stored is None:
            raise JobNotFoundError(
                f"There is no job {job!r} in namespace {session.names.namespace!r}."
                " cluster.jobs() lists those that there are."
            )
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
            self._open(self._private.settings)
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


def _future(session: Session, tracker: JobTracker, options: Options) -> Future:
    def make(index: int) -> Future:
        return Future(
            tracker,
            index,
            lambda indices: cancel_tasks(session, tracker, indices),
            lambda indices: retry_tasks(session, tracker, indices),
            options.on_interrupt,
        )

    return tracker.future(0, make)


def _refuse_in_task() -> None:
    if os.environ.get("NBSCHED_KERNEL"):  # set by the worker
        raise ConfigurationError(
            "Cluster() was called inside a task, and tasks hold no credentials: submit from the"
            " notebook, or pass etcd= and nats= explicitly."
        )


def _check_callable(fn: object) -> None:
    if inspect.iscoroutinefunction(fn):
        name = getattr(fn, "__name__", "fn")
        raise ConfigurationError(
            f"{name} is an async function: a task would end in a coroutine that nobody awaits."
            f" Wrap it: lambda x: asyncio.run({name}(x))"
        )
    if not callable(fn):
        raise NotCallableError(
            f"{fn!r} is not callable. Pass the function itself first, then the items:"
            " cluster.map(fn, items)."
        )


def _check_lengths(iterables: tuple[Iterable[Any], ...]) -> None:
    lengths = [len(each) for each in iterables if isinstance(each, Sized)]
    if len(set(lengths)) > 1:
        raise ConfigurationError(
            f"The iterables have different lengths: {', '.join(map(str, lengths))}. Cut them to"
            " one length, or pass iter(...) of the longer ones to stop at the shortest."
        )
