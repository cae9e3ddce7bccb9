"""An event loop whose time is made up, and hosts whose clocks are wrong in their own way.

Which host a callback belongs to is kept in its context, so tasks, timers and callbacks
inherit it. From that follow a host's clock, and what a pause or a crash of it means: a
paused host's callbacks wait, in their order, until it goes on. Callbacks of one host run
in the order that asyncio promises; which host is next is drawn, as real hosts do not wait
for each other. Nothing here knows what the hosts do.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from typing import Any

LATE_S = 1e-6
"""A timer is late by this, or rounding would let one fire just before its time for ever."""
_TIDY = 50
"""Ended tasks are dropped when so many more are kept."""
EPOCH_S = 1_790_000_000.0
"""What the wall clock shows when a story begins."""


class Host:
    """A machine's process: its clock, and what of it is ready to run."""

    def __init__(self, name: str, offset_s: float = 0.0, rate: float = 1.0, wall_s: float = 0.0):
        self.name = name
        self.offset_s, self.rate, self.wall_s = offset_s, rate, wall_s
        self.alive = True
        self.paused = False
        self.ready: deque[Handle] = deque()
        self.listed = False
        self._tasks: list[asyncio.Task[Any]] = []
        self._tidy_at = _TIDY
        self.failures: list[str] = []
        """What its users did not expect."""
        self.context: Context = copy_context()
        self.context.run(HOST.set, self)

    def began(self, task: asyncio.Task[Any]) -> None:
        """A task was made here."""
        self._tasks.append(task)
        if len(self._tasks) >= self._tidy_at:
            self._tidy_at = 2 * len(self.tasks()) + _TIDY

    def tasks(self) -> list[asyncio.Task[Any]]:
        """Those that have not ended, the oldest first."""
        self._tasks = [task for task in self._tasks if not task.done()]
        return list(self._tasks)

    @property
    def busy(self) -> bool:
        return any(not task.done() for task in self._tasks)

    def local(self, now: float) -> float:
        """Its monotonic clock."""
        return self.offset_s + now * self.rate

    def __repr__(self) -> str:
        return self.name


HOST: ContextVar[Host | None] = ContextVar("host", default=None)
NOBODY = Host("nobody")
"""Servers, wires and users' hands: never paused, and their clock is right."""


class Handle:
    """What is to be called, once; asyncio's own, without what only a real loop needs."""

    __slots__ = ("args", "callback", "context", "gone", "when_s")

    def __init__(self, callback: Any, args: Any, context: Context | None, when_s: float) -> None:
        self.callback, self.args, self.when_s = callback, args, when_s
        self.context = copy_context() if context is None else context
        self.gone = False

    def cancel(self) -> None:
        self.gone = True
        self.callback = self.args = None

    def cancelled(self) -> bool:
        return self.gone

    def when(self) -> float:
        return self.when_s


class _Sleep:
    """What a sleeping task waits for: as a future, but its end runs the task at once."""

    _asyncio_future_blocking = False

    def __init__(self, loop: VirtualLoop, delay: float) -> None:
        self._loop, self._delay = loop, delay
        self._timer: Handle | None = None
        self._cancelled = False

    def __await__(self) -> Iterator[_Sleep]:
        self._asyncio_future_blocking = True
        yield self

    def get_loop(self) -> VirtualLoop:
        return self._loop

    def add_done_callback(self, wake: Any, context: Context) -> None:
        self._timer = self._loop.call_later(self._delay, wake, self, context=context)

    def cancel(self, msg: object = None) -> bool:
        timer = self._timer
        if self._cancelled or timer is None or timer.gone:
            return False
        self._cancelled = True
        self._loop.call_soon(timer.callback, self, context=timer.context)
        timer.cancel()
        return True

    def result(self) -> None:
        if self._cancelled:
            raise asyncio.CancelledError


async def _sleep(delay: float) -> None:
    """Stands for `asyncio.sleep`, in half the steps."""
    loop = asyncio.get_running_loop()
    if delay > 0 and isinstance(loop, VirtualLoop):
        await _Sleep(loop, delay)
    else:
        await _real_sleep(delay)


class SimTask(asyncio.Task):  # type: ignore[type-arg]
    """A task with a number for a hash: sets of tasks have the same order in every run."""

    _number = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        SimTask._number += 1
        self._hash = SimTask._number
        super().__init__(*args, **kwargs)

    def __hash__(self) -> int:
        return self._hash


class VirtualLoop(asyncio.BaseEventLoop):
    """See the module. Drive it with `advance`."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.now = 0.0
        self.troubles: list[dict[str, Any]] = []
        """What asyncio would have complained about on stderr."""
        self._draw = rng.random
        self._runnable: list[Host] = []
        self._timers: list[tuple[float, int, Handle, Host]] = []
        self._numbers = 0
        SimTask._number = 0
        _clear_nobody()  # finalizers of an earlier story may have left something
        self.set_task_factory(_make_task)

    # ------------------------------------------------------------ what asyncio asks for

    def time(self) -> float:
        host = HOST.get()
        return self.now if host is None else host.offset_s + self.now * host.rate

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> Any:
        handle = Handle(callback, args, context, 0.0)
        self._enqueue(handle, handle.context.get(HOST) or NOBODY)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> Any:
        timer = Handle(callback, args, context, self.time() + delay)
        host: Host = timer.context.get(HOST) or NOBODY
        self._numbers += 1
        due = self.now + (delay / host.rate + LATE_S if delay > 0 else 0.0)
        heapq.heappush(self._timers, (due, self._numbers, timer, host))
        return timer

    def call_at(
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> Any:
        return self.call_later(when - self.time(), callback, *args, context=context)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.troubles.append(context)

    # ------------------------------------------------------------ running

    def advance(self, over: Callable[[], bool], until: float) -> bool:
        """Run until ``over()``, asked after every callback; False when time is up first."""
        runnable, draw = self._runnable, self._draw
        before = events._get_running_loop()
        events._set_running_loop(self)
        try:
            while not over():
                if not runnable and not self._next_timers(until):
                    return False
                at = int(draw() * len(runnable)) if len(runnable) > 1 else 0
                host = runnable[at]
                handle = host.ready.popleft()
                if not host.ready:
                    host.listed = False
                    runnable[at] = runnable[-1]
                    runnable.pop()
                if handle.gone:
                    continue
                try:
                    handle.context.run(handle.callback, *handle.args)
                except Exception as error:
                    told = f"{handle.callback} failed"
                    self.troubles.append({"message": told, "exception": error})
            return True
        finally:
            events._set_running_loop(before)

    def _enqueue(self, handle: Handle, host: Host) -> None:
        host.ready.append(handle)
        if not host.listed and not host.paused:
            host.listed = True
            self._runnable.append(host)

    def _next_timers(self, until: float) -> bool:
        timers = self._timers
        while timers:
            due, _, timer, host = timers[0]
            if timer.gone:
                heapq.heappop(timers)
                continue
            if due > until:
                break
            self.now = max(self.now, due)
            while timers and timers[0][0] <= self.now:
                _, _, timer, host = heapq.heappop(timers)
                if not timer.gone:
                    self._enqueue(timer, host)
            if self._runnable:
                return True
        self.now = max(self.now, until)
        return False

    # ------------------------------------------------------------ hosts

    def start(self, host: Host, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine on a host."""
        return host.context.copy().run(self.create_task, work)

    def pause(self, host: Host) -> None:
        """SIGSTOP: nothing of it runs, and its timers wait although time goes on."""
        host.paused = True
        if host.listed:
            host.listed = False
            self._runnable.remove(host)

    def resume(self, host: Host) -> None:
        host.paused = False
        if host.ready and not host.listed:
            host.listed = True
            self._runnable.append(host)

    def crash(self, host: Host) -> None:
        """Its wires are cut by whoever made them (see ``alive``); its tasks end."""
        host.alive = False
        self.resume(host)
        for task in host.tasks():
            task.cancel()

    def close(self) -> None:
        """Break the cycles that keep a played story alive."""
        self._timers.clear()
        for host in self._runnable:
            host.ready.clear()
        _clear_nobody()
        self._runnable.clear()
        super().close()


def _clear_nobody() -> None:
    NOBODY.listed = False
    NOBODY.ready.clear()
    NOBODY._tasks.clear()


def _make_task(
    loop: asyncio.AbstractEventLoop,
    work: Coroutine[Any, Any, Any],
    context: Context | None = None,
) -> asyncio.Task[Any]:
    task = (
        SimTask(work, loop=loop) if context is None else SimTask(work, loop=loop, context=context)
    )
    host = HOST.get() or NOBODY
    host.began(task)
    if not host.alive:
        task.cancel()
    return task


_real_sleep = asyncio.sleep
_real = time.monotonic, time.monotonic_ns, time.time, time.clock_gettime
_now: list[VirtualLoop] = []


def _monotonic() -> float:
    return _now[0].time() if _now else _real[0]()


def _monotonic_ns() -> int:
    return int(_now[0].time() * 1e9) if _now else _real[1]()


def _clock_gettime(clock: int) -> float:
    """Hosts do not sleep here: all clocks that only go on are one."""
    return _now[0].time() if _now else _real[3](clock)


def _wall() -> float:
    if not _now:
        return _real[2]()
    host = HOST.get()
    return EPOCH_S + _now[0].now + (host.wall_s if host is not None else 0.0)


def take_over() -> None:
    """From now on `time.monotonic` and `time.time` are those of whoever asks, while a
    story is played. To be called before the product is imported: some of it keeps them."""
    time.monotonic, time.monotonic_ns, time.time = _monotonic, _monotonic_ns, _wall
    time.clock_gettime = _clock_gettime
    asyncio.sleep = _sleep  # type: ignore[assignment]
    # Nobody asks for all tasks of a loop, as hosts know their own: a set of Python 3.11's.
    if hasattr(asyncio.tasks, "_all_tasks"):
        asyncio.tasks._all_tasks.add = lambda task: None


@contextmanager
def clocks(loop: VirtualLoop) -> Iterator[None]:
    """Time is this loop's."""
    assert time.monotonic is _monotonic, "call take_over first"
    _now[:] = [loop]
    try:
        yield
    finally:
        _now.clear()
