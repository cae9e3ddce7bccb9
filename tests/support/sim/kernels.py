"""Kernel processes without processes: what they are told, what they say, how they die.

`SimKernel` stands for `nbsched.worker.kernelprocess.KernelProcess`; pool, slots and
shared state around it are the product's. Its tasks do what their job's script says. The
kernel runs on no host's loop: when its daemon is stopped it goes on, and what it says
waits for the daemon; when its daemon dies it dies, too.
"""

from __future__ import annotations

import asyncio
import itertools
import pickle
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from nbsched import messages
from nbsched.kernel import protocol
from nbsched.kernel.protocol import (
    DropBlock,
    DropJob,
    Finished,
    Frame,
    FromKernel,
    Hello,
    Ready,
    RunTasks,
    Skipped,
    TakeBlock,
    TakeJob,
)
from nbsched.kernel.sharedstate import CANCELLED, RING_BYTES, SharedState
from nbsched.messages import Encoding, ErrorReport, Outcome, OutcomeState
from nbsched.model import JobId
from nbsched.payload import blocks, pickling
from nbsched.worker.deaths import Death
from support.sim.clock import HOST, NOBODY, Host, VirtualLoop

START_S = 0.15
INTERRUPTED_S = 0.002


@dataclass(frozen=True)
class Act:
    """What one attempt does: ``ok``, ``fail``, ``crash``, ``retry``, after so long."""

    how: str
    seconds: float
    retry_in_s: float = 0.0
    stubborn: bool = False
    """It does not heed SIGINT."""


class Scripts(Protocol):
    """Who knows what tasks do, and keeps the diary."""

    def act(self, job: JobId, index: int, round_: int, attempt: int) -> Act: ...

    def started(self, worker: str, run: RunTasks, index: int) -> None: ...

    def left(self, worker: str, run: RunTasks, index: int, how: str) -> None: ...


_NOTHING_PRINTED = memoryview(bytearray(RING_BYTES))


class SimState(SharedState):
    """The page, without memory that processes share."""

    def __init__(self) -> None:
        self.cells = memoryview(bytearray(256)).cast("q")
        self._rings = (_NOTHING_PRINTED, _NOTHING_PRINTED)

    def close(self) -> None:
        pass


class SimKernel:
    """See the module."""

    def __init__(self, loop: VirtualLoop, scripts: Scripts, pid: int) -> None:
        host = HOST.get()
        assert host is not None, "a pool starts kernels"
        self.pid = pid
        self.state = SimState()
        self.dead = False
        self._loop = loop
        self._host: Host = host
        self._scripts = scripts
        self._worker = ""
        self._ended = loop.create_future()
        self._items: dict[tuple[JobId, int], tuple[int, list[object]]] = {}
        self._runs: deque[tuple[int, int, RunTasks]] = deque()
        """Run number, task, and the message it came in."""
        self._now: tuple[int, int, RunTasks] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ready = False
        self._later(START_S, self._begin)

    def listen(
        self,
        on_frame: Callable[[FromKernel, bytes], None],
        on_output: Callable[[bytes], None],
        on_death: Callable[[Death], None],
    ) -> None:
        self._on_frame, self._on_death = on_frame, on_death

    def read_output(self) -> None:
        """Its tasks print nothing."""

    # ------------------------------------------------------------ what the daemon does

    def send(self, frame: Frame, attachment: bytes = b"") -> None:
        if self.dead:
            return
        frame = protocol.to_kernel(protocol.pack(frame)[protocol.HEAD_BYTES :])
        match frame:
            case Hello(worker=worker):
                self._worker = worker
            case TakeBlock(job=job, block=block):
                self._items[job, block] = _items(attachment)
            case DropBlock(job=job, block=block):
                del self._items[job, block]
            case DropJob(job=job):
                self._items = {key: kept for key, kept in self._items.items() if key[0] != job}
            case RunTasks():
                for index in range(frame.start, frame.stop):
                    self._runs.append((frame.first_run + index - frame.start, index, frame))
                self._wake()
            case TakeJob():
                pass

    def interrupt(self) -> None:
        run = self._now
        if self.dead or run is None or run[0] != self.state.target:
            return
        if not self._act(run).stubborn:
            self._later(INTERRUPTED_S, self._stopped, run)

    def kill(self) -> None:
        self.die(-signal.SIGKILL, "killed by its daemon")

    async def ended(self) -> None:
        await asyncio.shield(self._ended)

    # ------------------------------------------------------------ its life

    def die(self, code: int, cause: str) -> None:
        """It is gone; the daemon learns it when it looks."""
        if self.dead:
            return
        self.dead = True
        if self._timer is not None:
            self._timer.cancel()
        if self._now is not None:
            _, index, run = self._now
            self._scripts.left(self._worker, run, index, cause)
        self._loop.call_soon(self._bury, code, context=self._host.context)

    def _bury(self, code: int) -> None:
        if not self._ended.done():
            self._on_death(Death(code, ""))
            self._ended.set_result(None)

    def _begin(self) -> None:
        self._ready = True
        self._say(Ready())
        self._wake()

    def _wake(self) -> None:
        if self._ready and self._now is None and self._timer is None and not self.dead:
            self._timer = self._later(0.0, self._next)

    def _next(self) -> None:
        """Take up what comes next; runs that are void are passed over."""
        self._timer = None
        while self._runs and not self.dead:
            run = self._runs.popleft()
            if not self.state.begin(run[0]):
                self._say(Skipped(run[0], 1))
                continue
            self._now = run
            self.state.started(int(self._host.local(self._loop.now) * 1e9) + 1)
            self._scripts.started(self._worker, run[2], run[1])
            self._timer = self._later(self._act(run).seconds, self._done, run)
            return

    def _act(self, run: tuple[int, int, RunTasks]) -> Act:
        _, index, message = run
        return self._scripts.act(message.job, index, message.round, message.attempt)

    def _done(self, run: tuple[int, int, RunTasks]) -> None:
        act = self._act(run)
        if act.how == "crash":
            self.die(-signal.SIGSEGV, "crash")
            return
        _, index, message = run
        if act.how == "ok":
            first, items = self._items[message.job, message.block]
            self._answer(run, OutcomeState.OK, pickle.dumps([items[index - first]]))
        elif act.how == "retry":
            self._answer(run, OutcomeState.RETRY, _error("ValueError"), act.retry_in_s)
        else:
            self._answer(run, OutcomeState.FAILED, _error("ValueError"))

    def _stopped(self, run: tuple[int, int, RunTasks]) -> None:
        """SIGINT has reached the code of the task."""
        if self.dead or self._now is not run or self.state.target != run[0]:
            return
        if self._timer is not None:
            self._timer.cancel()
        if self.state.cause == CANCELLED:
            self._answer(run, OutcomeState.CANCELLED, b"")
        else:
            report = ErrorReport("TaskTimeoutError", "too long", system="TaskTimeoutError")
            self._answer(run, OutcomeState.FAILED, messages.encode(report))

    def _answer(
        self,
        run: tuple[int, int, RunTasks],
        state: OutcomeState,
        body: bytes,
        retry_in_s: float = 0.0,
    ) -> None:
        number, index, message = run
        self._now = None
        self._timer = None
        self._scripts.left(self._worker, message, index, state.name.lower())
        elapsed = self._host.local(self._loop.now) - self.state.started_ns / 1e9
        self.state.end()
        encoding = {OutcomeState.OK: Encoding.SCALARS, OutcomeState.CANCELLED: Encoding.NOTHING}
        outcome = Outcome(
            index,
            index + 1,
            message.round,
            message.attempt,
            state,
            encoding.get(state, Encoding.ERROR),
            (len(body),) if body else (),
            max(elapsed, 1e-5),
            retry_in_s=retry_in_s,
            first_started_at=1.0 if state is OutcomeState.RETRY else None,
        )
        self._say(Finished(((number, outcome),)), body)
        self._wake()

    def _say(self, frame: FromKernel, body: bytes = b"") -> None:
        """Write to the socket: the daemon reads it when it runs."""
        self._loop.call_soon(self._heard, frame, body, context=self._host.context)

    def _heard(self, frame: FromKernel, body: bytes) -> None:
        if not self._ended.done():
            self._on_frame(frame, body)

    def _later(
        self, seconds: float, call: Callable[..., None], *args: object
    ) -> asyncio.TimerHandle:
        return self._loop.call_later(seconds, call, *args, context=NOBODY.context)  # type: ignore[no-any-return]


def _items(block: bytes) -> tuple[int, list[object]]:
    found = blocks.decode(block)
    if not found.sizes:
        return found.first, pickle.loads(found.data)
    ends = list(itertools.accumulate(found.sizes, initial=0))
    return found.first, [pickling.loads(found.data[a:b]) for a, b in itertools.pairwise(ends)]


_reports: dict[str, bytes] = {}


def _error(name: str) -> bytes:
    if name not in _reports:
        _reports[name] = messages.encode(ErrorReport(name, "as the script says"))
    return _reports[name]


def error_of(body: bytes | memoryview) -> ErrorReport:
    return msgspec.msgpack.decode(body, type=ErrorReport)
