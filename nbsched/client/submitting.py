"""Submitting work: ``map``, ``starmap`` and ``submit`` become jobs of a session.

Checks what was given, pickles the callable, begins the upload. What a cluster is, and how
one connects to it, is another module's business.
"""

from __future__ import annotations

import inspect
import os
import platform
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sized
from typing import Any, Literal

import nbsched
from nbsched.client.futures import Future
from nbsched.client.interrupts import ends_job_on_interrupt
from nbsched.client.itemrepr import item_texts
from nbsched.client.mapfuture import MapFuture
from nbsched.client.options import Options, chunk, merge
from nbsched.client.printing import OutputPrinter
from nbsched.client.requests import cancel_tasks, retry_tasks
from nbsched.client.session import Session
from nbsched.client.tracker import JobTracker
from nbsched.client.upload import Upload
from nbsched.errors import ConfigurationError, NotCallableError
from nbsched.model import CallShape, JobRecord
from nbsched.names import new_job_id
from nbsched.payload import pickling, retrypolicy
from nbsched.payload.largeparts import warn_if_large

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
        future = single_future(self._session, tracker, self._options)
        with ends_job_on_interrupt(future, self._options.on_interrupt):
            upload.advance(-1)  # a large argument is not in the record: seals the job
        return future

    def options(self, **options: object) -> Submitter:
        """The same cluster with other options, e.g. ``options(retry=3).submit(fn, x)``.

        Options: cpus, retry, task_timeout, memory, max_crashes, priority,
        speculate, tags, name,
        on_interrupt, progress, stream_output; see `Options`. Raises ConfigurationError for others.
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
            memory_bytes=options.memory_bytes,
            max_crashes=options.max_crashes,
            priority=options.priority,
            speculate=options.speculate,
            chunksize=chunksize,
            tags=options.tags,
            host=socket.gethostname(),
            pid=os.getpid(),
            sent_by=f"nbsched {nbsched.__version__}, Python {platform.python_version()}",
        )
        upload = Upload(session, record, function, items, buffersize=buffersize)
        tracker = upload.begin()
        if options.stream_output:
            tracker.print_with(OutputPrinter(tracker))
        return tracker, upload


def single_future(session: Session, tracker: JobTracker, options: Options) -> Future:
    """The future of a job with one task."""

    def make(index: int) -> Future:
        return Future(
            tracker,
            index,
            lambda indices: cancel_tasks(session, tracker, indices),
            lambda indices: retry_tasks(session, tracker, indices),
            options.on_interrupt,
        )

    return tracker.future(0, make)


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
