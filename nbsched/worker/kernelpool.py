"""The kernels of this worker: feeding them, stopping tasks in them, replacing them.

A task that waits in a kernel can always be taken back before it begins (see
`nbsched.kernel.sharedstate`). So hand-overs may hold several tasks: when one of them
turns out to be long, its neighbours come back and run elsewhere.

Everything here runs on the event loop, and nothing awaits in the middle of a
change, so the accounts are consistent between any two callbacks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec

from nbsched._compat import assert_never
from nbsched.kernel.protocol import Finished, FromKernel, Hello, Ready, Skipped
from nbsched.kernel.sharedstate import CANCELLED, TIMED_OUT
from nbsched.messages import Held, Outcome, OutcomeState
from nbsched.model import JobId, TaskRange
from nbsched.worker import endings
from nbsched.worker.backlog import Backlog, JobBacklog, Piece
from nbsched.worker.deaths import Death
from nbsched.worker.inputs import InputCache
from nbsched.worker.kernelprocess import KernelProcess
from nbsched.worker.kernelslot import KernelSlot, Returned
from nbsched.worker.output import with_last_words

log = logging.getLogger(__name__)

_TICK_S = 0.05
"""Resolution of task timeouts and of the grace after SIGINT."""
_SETTLE_S = 0.001
"""Between voiding what a kernel has not begun and taking it back."""
_LONG_S = 0.02
"""When a task has run this long, and longer than its job's other tasks, its neighbours in
the kernel are taken back."""
_AHEAD = 3
_FIRST_RESPAWN_S = 0.2
_LAST_RESPAWN_S = 10.0

Publish = Callable[[Piece, Outcome, bytes], None]


class KernelPool:
    """``cpus`` kernels, fed from the backlog.

    ``publish`` gets every outcome, ``changed`` is called when the report would differ
    (True: a task started after idleness), ``paused`` says that nothing new may start.
    """

    def __init__(
        self,
        home: Hello,
        cpus: int,
        grace_s: float,
        backlog: Backlog,
        inputs: InputCache,
        publish: Publish,
        changed: Callable[[bool], None],
        paused: Callable[[], bool],
    ) -> None:
        self._home = home
        self._cpus = cpus
        self._grace_s = grace_s
        self._backlog = backlog
        self._inputs = inputs
        self._publish = publish
        self._changed = changed
        self._paused = paused
        self._slots: list[KernelSlot] = []
        self._processes: set[KernelProcess] = set()
        self._failed_starts = 0
        self._timers: set[asyncio.TimerHandle] = set()
        self._ticking: asyncio.TimerHandle | None = None
        self._closing = False

    def start(self) -> None:
        """Start the kernels; they may be fed at once."""
        for _ in range(self._cpus):
            self._spawn()
        self.feed()

    async def stop(self) -> None:
        """Kill all kernels and wait for their end."""
        self._closing = True
        for timer in self._timers:
            timer.cancel()
        if self._ticking is not None:
            self._ticking.cancel()
        for process in list(self._processes):
            process.kill()
        await asyncio.gather(*(process.ended() for process in list(self._processes)))

    # ------------------------------------------------------------ looking

    @property
    def busy(self) -> bool:
        return any(slot.busy for slot in self._slots)

    @property
    def free_slots(self) -> int:
        """CPU slots that could start a task now; a wide task occupies several."""
        usable = sum(1 for slot in self._slots if slot.ready or not self._failed_starts)
        return max(0, usable - sum(self._width(slot) for slot in self._slots))

    def works_on(self, job: JobId) -> bool:
        """Whether a kernel has tasks of this job that it has not answered for."""
        return any(given.piece.job == job for slot in self._slots for given in slot.hand_overs)

    def running(self) -> list[Held]:
        """What runs at this moment."""
        return [held for slot in self._slots if (held := slot.running()) is not None]

    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def _width(self, slot: KernelSlot) -> int:
        return max((self._cpus_of(given.piece) for given in slot.hand_overs), default=0)

    def _cpus_of(self, piece: Piece) -> int:
        return max(1, min(piece.brief.cpus, self._cpus))

    # ------------------------------------------------------------ feeding

    def feed(self) -> None:
        """Hand over what can be handed over. Called whenever that may have changed."""
        if self._closing or self._paused():
            return
        was_idle = not self.busy
        fed = False
        while self._feed_one():
            fed = True
        if fed:
            self._changed(was_idle)
            self._tick_soon()

    def _feed_one(self) -> bool:
        """Give the next piece whose turn it is to a kernel; False when none can go."""
        for job_id in self._backlog.turns():
            job = self._backlog.job(job_id)
            if job is None or not job.queue:
                continue  # its input was found to be missing a moment ago
            piece = self._backlog.head(job_id)
            width = self._cpus_of(piece)
            slot = self._idle_slot(width) or self._slot_for_spare(width, job)
            if slot is None:
                # It waits for a whole slot, and must not starve: the tasks of others, which
                # are narrower or wait behind each other, would fill every gap.
                return False
            given = self._inputs.ready(piece)
            for later in self._backlog.upcoming(job_id, _AHEAD):
                self._inputs.fetch_ahead(later)
            if given is None:
                continue
            most = given.stop - piece.start
            count = min(most, job.pace.chunk(job.queued, self._cpus // width))
            slot.give(self._backlog.take(job_id, count), given)
            return True
        return False

    def _idle_slot(self, width: int) -> KernelSlot | None:
        if self.free_slots < width:
            return None
        for slot in self._slots:
            if not slot.busy and (slot.ready or not self._failed_starts):
                return slot
        return None

    def _slot_for_spare(self, width: int, job: JobBacklog) -> KernelSlot | None:
        """A kernel that works on short tasks and has no spare hand-over yet."""
        if width > 1 or not job.pace.keeps_spare(job.queued, self._cpus):
            return None
        for slot in self._slots:
            if len(slot.hand_overs) == 1 and not slot.in_long_task(self._long_s(job)):
                ahead = slot.hand_overs[0].piece
                other = self._backlog.job(ahead.job)
                short = other is not None and other.pace.keeps_spare(job.queued, self._cpus)
                if short and self._cpus_of(ahead) == 1:
                    return slot
        return None

    def _long_s(self, job: JobBacklog | None) -> float:
        """How long a task may run before nothing is to wait behind it in its kernel."""
        if job is None or not job.pace.keeps_spare(job.queued, self._cpus):
            return _LONG_S
        return max(_LONG_S, 2 * (job.pace.task_s or 0.0))

    def forget(self, job: JobId) -> None:
        """Drop what the kernels keep of a job."""
        for slot in self._slots:
            slot.forget(job)

    # ------------------------------------------------------------ what kernels say

    def _on_frame(self, slot: KernelSlot, frame: FromKernel, attachment: bytes) -> None:
        match frame:
            case Finished(outcomes=finished):
                self._on_finished(slot, finished, attachment)
            case Skipped(first_run=first_run, count=count):
                self._put_back(slot.skipped(first_run, count))
            case Ready():
                slot.ready = True
                self._failed_starts = 0
            case _:
                assert_never(frame)
        self.feed()

    def _on_finished(
        self, slot: KernelSlot, finished: Sequence[tuple[int, Outcome]], attachment: bytes
    ) -> None:
        at = 0
        for first_run, outcome in finished:
            size = outcome.body_bytes
            body = attachment[at : at + size]
            at += size
            count = outcome.stop - outcome.start
            answered = slot.answer(first_run, count)
            if answered is None:
                continue
            given, complete = answered
            self._measure(given.piece, outcome, complete)
            self._publish(given.piece, _with_history(outcome, given.piece), body)
        if not self.busy:
            self._changed(False)

    def _measure(self, piece: Piece, outcome: Outcome, complete: bool) -> None:
        job = self._backlog.job(piece.job)
        if job is None:
            return
        if outcome.state in (OutcomeState.OK, OutcomeState.FAILED):
            job.pace.measure(outcome.stop - outcome.start, outcome.elapsed_s)
        if complete:
            job.pace.completed()

    def _put_back(self, returned: Sequence[Returned]) -> None:
        """Tasks that did not run: cancelled if that was wanted, else they come next."""
        for _, piece, stopped in reversed(returned):
            if stopped:
                self.cancel(piece)
            else:
                self._backlog.give_back(piece)
        if returned:
            self._changed(False)

    def cancel(self, piece: Piece) -> None:
        """Publish that these tasks are cancelled, each for itself."""
        for index in range(piece.start, piece.stop):
            self._publish(piece, endings.cancelled(piece.part(index, index + 1)), b"")

    # ------------------------------------------------------------ stopping

    def stop_tasks(self, job: JobId, ranges: Sequence[TaskRange], grace_s: float) -> None:
        """Cancel what kernels hold of these tasks, of these rounds or earlier ones."""
        deadline = time.monotonic() + grace_s
        for slot in self._slots:
            runs = [run for named in ranges for run in slot.runs_of(job, named)]
            if runs:
                for run in runs:
                    slot.stops.setdefault(run, deadline)
                self._revoke(slot)

    def revoke_all(self) -> None:
        """Take back whatever no kernel has begun."""
        for slot in self._slots:
            if slot.has_unstarted():
                self._revoke(slot)

    def _revoke(self, slot: KernelSlot) -> None:
        slot.void_unstarted()
        self._later(_SETTLE_S, lambda: self._take_back(slot))

    def _take_back(self, slot: KernelSlot) -> None:
        if slot in self._slots:
            self._put_back(slot.take_back())
            self._check(slot)
            self.feed()

    def _tick_soon(self) -> None:
        if self._ticking is None and not self._closing:
            loop = asyncio.get_running_loop()
            self._ticking = loop.call_later(_TICK_S, self._tick)

    def _tick(self) -> None:
        self._ticking = None
        for slot in self._slots:
            self._check(slot)
        if self.busy:
            self._tick_soon()

    def _check(self, slot: KernelSlot) -> None:
        """Interrupt or kill what is to be stopped; free the neighbours of a long task."""
        if (found := slot.active()) is None:
            return
        run, piece, elapsed = found
        limit = piece.brief.task_timeout_s
        if run in slot.stops:
            self._press(slot, run, CANCELLED, slot.stops[run])
        elif limit is not None and elapsed > limit:
            deadline = slot.timeouts.setdefault(run, time.monotonic() + self._grace_s)
            self._press(slot, run, TIMED_OUT, deadline)
        elif slot.has_unstarted() and elapsed > self._long_s(self._backlog.job(piece.job)):
            self._revoke(slot)

    def _press(self, slot: KernelSlot, run: int, cause: int, deadline: float) -> None:
        """SIGINT at first, SIGKILL when the time is over."""
        state = slot.process.state
        if (state.target, state.cause) != (run, cause):
            state.aim(run, cause)
            slot.process.interrupt()
        elif time.monotonic() >= deadline:
            log.info("killing kernel pid=%d: run %d did not stop", slot.process.pid, run)
            slot.process.kill()

    # ------------------------------------------------------------ life and death

    def _spawn(self) -> None:
        if self._closing:
            return
        try:
            process = KernelProcess()
        except OSError as error:
            self._start_failed(f"{error.strerror}")
            return
        slot = KernelSlot(process)
        process.listen(
            lambda frame, attachment: self._on_frame(slot, frame, attachment),
            lambda death: self._on_death(slot, death),
        )
        self._processes.add(process)
        process.send(self._home)
        self._slots.append(slot)

    def _on_death(self, slot: KernelSlot, death: Death) -> None:
        self._processes.discard(slot.process)
        self._slots.remove(slot)
        if self._closing:
            return
        log.warning("kernel pid=%d died: %s", slot.process.pid, death.cause)
        self._account_for(slot, death)
        if slot.ready:
            self._spawn()
        else:
            self._start_failed(f"{death.cause}; its output ends: {death.tail!r}")
        self._changed(False)
        self.feed()

    def _account_for(self, slot: KernelSlot, death: Death) -> None:
        """Blame the task that was running, if any; its neighbours run again."""
        active = slot.process.state.active
        printed = slot.process.state.last_printed(active)
        elapsed_s = found[2] if (found := slot.active()) is not None else 0.0
        timed_out = active in slot.timeouts
        neighbours = []
        for returned in slot.take_all():
            first, piece, stopped = returned
            if stopped and piece.count == 1 and first == active:
                self._publish(piece, *with_last_words(endings.cancelled(piece), b"", printed))
                continue
            if stopped or not first <= active < first + piece.count:
                neighbours.append(returned)
                continue
            at = piece.start + active - first
            guilty = piece.part(at, at + 1)
            if at > piece.start:
                neighbours.append(Returned(first, piece.part(piece.start, at), False))
            if at + 1 < piece.stop:
                neighbours.append(Returned(active + 1, piece.part(at + 1, piece.stop), False))
            self._ended_by_death(guilty, death, elapsed_s, timed_out, printed)
        self._put_back(neighbours)

    def _ended_by_death(
        self, piece: Piece, death: Death, elapsed_s: float, timed_out: bool, printed: bytes
    ) -> None:
        log.warning(
            "job=%s task=%d attempt=%d ended its kernel: %s",
            piece.job,
            piece.start,
            piece.attempt,
            "out of time" if timed_out else death.cause,
        )
        limit = piece.timed_out_after_s or piece.brief.task_timeout_s or 0.0
        if timed_out and self._inputs.may_retry(piece.brief):
            # Only a kernel may unpickle the policy, so a fresh one is asked.
            self._backlog.give_back(replace(piece, timed_out_after_s=limit))
        elif timed_out or piece.timed_out_after_s is not None:
            self._publish(piece, *with_last_words(*endings.timed_out(piece, limit), printed))
        else:
            crashed = endings.crashed(piece, death, self._home.worker, elapsed_s)
            self._publish(piece, *with_last_words(*crashed, printed))

    def _start_failed(self, cause: str) -> None:
        self._failed_starts += 1
        delay = min(_LAST_RESPAWN_S, _FIRST_RESPAWN_S * 2 ** min(self._failed_starts - 1, 10))
        log.error("a kernel does not start (%s); trying again in %.1f s", cause, delay)
        self._later(delay, self._spawn)

    def _later(self, delay_s: float, call: Callable[[], None]) -> None:
        """`loop.call_later`, remembered so that `stop` can cancel it."""

        def run() -> None:
            self._timers.discard(timer)
            call()

        timer = asyncio.get_running_loop().call_later(delay_s, run)
        self._timers.add(timer)


def _with_history(outcome: Outcome, piece: Piece) -> Outcome:
    """Kernels do not know of earlier deaths."""
    return msgspec.structs.replace(outcome, crashes=piece.crashes) if piece.crashes else outcome
