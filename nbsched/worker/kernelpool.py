"""The kernels of this worker: feeding them, stopping tasks in them, taking over what the
dead leave behind.

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
from nbsched.indexset import IndexSet
from nbsched.kernel.protocol import Breach, Finished, FromKernel, Hello, Ready, Skipped
from nbsched.messages import Held, JobBrief, Outcome, OutcomeState, PrintedText
from nbsched.model import JobId, TaskRange
from nbsched.worker import endings
from nbsched.worker.backlog import Backlog, JobBacklog, Piece
from nbsched.worker.deaths import Death
from nbsched.worker.inputs import InputCache
from nbsched.worker.kernelslot import KernelSlot, Returned, apart
from nbsched.worker.nursery import Nursery
from nbsched.worker.output import LastWords
from nbsched.worker.stopping import Stopper

log = logging.getLogger(__name__)

_TICK_S = 0.05
"""Resolution of the limits of time and memory, and of the grace after SIGINT."""
_SETTLE_S = 0.001
"""Between voiding what a kernel has not begun and taking it back."""
_LONG_S = 0.02
"""When a task has run this long, and longer than its job's other tasks, its neighbours in
the kernel are taken back."""
_LIVE_S = 0.2
"""How often to look what running tasks have printed. Who ends before tells it then."""
_AHEAD = 3

Publish = Callable[[Piece, Outcome, bytes], None]
Tell = Callable[[JobBrief, Sequence[PrintedText]], None]


class KernelPool:
    """``cpus`` kernels, fed from the backlog.

    ``publish`` gets every outcome, ``tell`` what running tasks print, ``changed`` is called
    when the report would differ (True: a task started after idleness), ``paused`` says that
    nothing new may start.
    """

    def __init__(
        self,
        home: Hello,
        cpus: int,
        grace_s: float,
        backlog: Backlog,
        inputs: InputCache,
        publish: Publish,
        tell: Tell,
        changed: Callable[[bool], None],
        paused: Callable[[], bool],
    ) -> None:
        self._home = home
        self._cpus = cpus
        self._stopper = Stopper(grace_s)
        self._backlog = backlog
        self._inputs = inputs
        self._publish = publish
        self._tell = tell
        self._changed = changed
        self._paused = paused
        self._nursery = Nursery(home, self._on_frame, self._on_output, self._on_death)
        self._slots = self._nursery.slots
        self._ticking: asyncio.TimerHandle | None = None
        self._looked_at = 0.0
        self._closing = False

    def start(self) -> None:
        """Start the kernels; they may be fed at once."""
        self._nursery.start(self._cpus)
        self.feed()

    async def stop(self) -> None:
        """Kill all kernels and wait for their end."""
        self._closing = True
        if self._ticking is not None:
            self._ticking.cancel()
        await self._nursery.stop()

    # ------------------------------------------------------------ looking

    @property
    def busy(self) -> bool:
        return any(slot.busy for slot in self._slots)

    @property
    def free_slots(self) -> int:
        """CPU slots that could start a task now; a wide task occupies several."""
        usable = sum(map(self._nursery.usable, self._slots))
        return max(0, usable - sum(self._width(slot) for slot in self._slots))

    def works_on(self, job: JobId) -> bool:
        """Whether a kernel has tasks of this job that it has not answered for."""
        return any(given.piece.job == job for slot in self._slots for given in slot.hand_overs)

    def running(self) -> list[Held]:
        """What runs at this moment."""
        return [held for slot in self._slots if (held := slot.running()) is not None]

    def pids(self) -> list[int]:
        return self._nursery.pids()

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
            piece = self._next(job_id, len(job.queue))
            if piece is None:
                continue
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

    def _next(self, job_id: JobId, pieces: int) -> Piece | None:
        """The job's next piece, past tasks of which an earlier attempt still runs here: it was
        told to stop a moment ago, and no task runs twice at once on a worker."""
        passed = 0
        while passed < pieces:
            piece = self._backlog.head(job_id)
            begun = list(self._begun(piece).ranges())
            if not begun:
                return piece
            start, stop = begun[0]
            if piece.start < start:
                self._backlog.cut_head(job_id, start)
                return self._backlog.head(job_id)
            if stop < piece.stop:
                self._backlog.cut_head(job_id, stop)
            self._backlog.pass_over(job_id)
            passed += 1
        return None

    def _begun(self, piece: Piece) -> IndexSet:
        """The tasks of a queued piece of which a kernel has an earlier attempt."""
        begun = IndexSet()
        if self._backlog.holds_earlier(piece):
            named = TaskRange(piece.start, piece.stop, piece.round)
            for slot in self._slots:
                for start, stop in slot.tasks_of(piece.job, named):
                    begun.add(start, stop)
        return begun

    def _idle_slot(self, width: int) -> KernelSlot | None:
        if self.free_slots < width:
            return None
        for slot in self._slots:
            if not slot.busy and self._nursery.usable(slot):
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
                self._nursery.is_ready(slot)
            case _:
                assert_never(frame)
        self.feed()

    def _on_finished(
        self, slot: KernelSlot, finished: Sequence[tuple[int, Outcome]], attachment: bytes
    ) -> None:
        slot.process.read_output()
        at = 0
        for first_run, outcome in finished:
            size = outcome.body_bytes
            body = attachment[at : at + size]
            at += size
            count = outcome.stop - outcome.start
            unwanted = count == 1 and first_run in slot.silenced
            answered = slot.answer(first_run, count)
            if answered is None:
                continue
            given, complete = answered
            if unwanted:
                self._drop(given.piece.part(outcome.start, outcome.stop))
                continue
            self._measure(given.piece, outcome, complete)
            outcome, body = slot.output.with_native(first_run, outcome, body)
            if given.piece.words is not None and not any(outcome.output):
                outcome, body = given.piece.words.added_to(outcome, body)
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
        for _, piece, stopped, silently in reversed(returned):
            if stopped:
                self.cancel(piece, silently=silently)
            else:
                self._backlog.give_back(piece)
        if returned:
            self._changed(False)

    def cancel(self, piece: Piece, *, silently: bool = False) -> None:
        """Publish that these tasks are cancelled, each for itself. Not one of which an earlier
        attempt still runs: its end is told when that has stopped."""
        if silently:
            self._drop(piece)
            return
        begun = self._begun(piece)
        for start, stop in begun.ranges():
            self._drop(piece.part(start, stop))
        for start, stop in begun.missing(piece.start, piece.stop):
            for index in range(start, stop):
                self._publish(piece, endings.cancelled(piece.part(index, index + 1)), b"")

    def _drop(self, piece: Piece) -> None:
        """Another run of these tasks counts: this one is not held any more, and that is all
        that is said of it."""
        self._backlog.release(piece.job, piece.start, piece.stop, piece.round, piece.attempt)
        self._changed(True)

    # ------------------------------------------------------------ stopping

    def stop_tasks(
        self, job: JobId, ranges: Sequence[TaskRange], grace_s: float, *, silently: bool = False
    ) -> None:
        """Cancel what kernels hold of these tasks, of these rounds or earlier ones."""
        deadline = time.monotonic() + grace_s
        for slot in self._slots:
            runs = [run for named in ranges for run in slot.runs_of(job, named)]
            if runs:
                for run in runs:
                    slot.stops.setdefault(run, deadline)
                if silently:
                    slot.silenced.update(runs)
                self._revoke(slot)

    def revoke_all(self) -> None:
        """Take back whatever no kernel has begun."""
        for slot in self._slots:
            if slot.has_unstarted():
                self._revoke(slot)

    def _revoke(self, slot: KernelSlot) -> None:
        slot.void_unstarted()
        self._nursery.later(_SETTLE_S, lambda: self._take_back(slot))

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
        now = time.monotonic()
        if now - self._looked_at >= _LIVE_S:
            self._looked_at = now
            self._tell_output()
        if self.busy:
            self._tick_soon()

    def _on_output(self, slot: KernelSlot, data: bytes) -> None:
        """A task prints past Python's streams: from now on its job's tasks go one by one,
        so that the daemon knows whose text it is."""
        job_id = slot.printed(data)
        job = None if job_id is None else self._backlog.job(job_id)
        if job is not None and not job.pace.alone:
            job.pace.alone = True
            self.revoke_all()

    def _tell_output(self) -> None:
        by_job: dict[JobId, tuple[JobBrief, list[PrintedText]]] = {}
        for slot in self._slots:
            found = slot.active()
            if found is None or found.elapsed_s < _LIVE_S / 2:
                continue
            piece = found.given.piece
            for stream, end, text in slot.output.news(found.run):
                part = PrintedText(found.task, piece.round, piece.attempt, stream, end, text)
                by_job.setdefault(piece.job, (piece.brief, []))[1].append(part)
        for brief, printed in by_job.values():
            self._tell(brief, printed)

    def _check(self, slot: KernelSlot) -> None:
        """Interrupt or kill what is to be stopped; free the neighbours of a long task."""
        if (found := slot.active()) is None:
            return
        if self._stopper.check(slot, found):
            return
        job = self._backlog.job(found.given.piece.job)
        if slot.has_unstarted() and found.elapsed_s > self._long_s(job):
            self._revoke(slot)

    # ------------------------------------------------------------ life and death

    def _on_death(self, slot: KernelSlot, death: Death) -> None:
        self._account_for(slot, death)
        # Its kernel's place is taken first: then what it leaves can go there.
        asyncio.get_running_loop().call_soon(self.feed)
        self._changed(False)

    def _account_for(self, slot: KernelSlot, death: Death) -> None:
        """Blame the task that was running, if any; its neighbours run again."""
        active, ran = slot.process.state.active, slot.active()
        breach = slot.breaches[active][0] if active in slot.breaches else None
        others, guilty = apart(slot.take_all(), active)
        try:
            if guilty is not None:
                self._end_guilty(slot, guilty, death, 0.0 if ran is None else ran.elapsed_s, breach)
        except Exception:  # no task may hang for want of words
            log.exception("what kernel pid=%d has left is not accounted for", slot.process.pid)
            assert guilty is not None
            self._end_without_words(guilty.piece, death)
        finally:  # they are to run, whatever can be said of it
            self._put_back(others)

    def _end_guilty(
        self,
        slot: KernelSlot,
        guilty: Returned,
        death: Death,
        elapsed_s: float,
        breach: Breach | None,
    ) -> None:
        words = slot.output.last_words(guilty.first_run)
        if not guilty.stopped:
            self._ended_by_death(guilty.piece, death, elapsed_s, breach, words)
        elif guilty.silently:
            self._drop(guilty.piece)
        else:
            self._publish(guilty.piece, *words.added_to(endings.cancelled(guilty.piece), b""))

    def _end_without_words(self, piece: Piece, death: Death) -> None:
        """Count the death, or if not even that is possible, leave the task to the leader: it
        gives tasks that nobody holds to somebody."""
        try:
            bare = Death(death.returncode, "")
            self._publish(piece, *endings.crashed(piece, bare, self._home.worker, 0.0))
        except Exception:
            log.exception("job=%s task=%d is left to the leader", piece.job, piece.start)
            self._drop(piece)

    def _ended_by_death(
        self,
        piece: Piece,
        death: Death,
        elapsed_s: float,
        breach: Breach | None,
        words: LastWords,
    ) -> None:
        log.warning(
            "job=%s task=%d attempt=%d ended its kernel: %s",
            piece.job,
            piece.start,
            piece.attempt,
            death.cause if breach is None else "it had broken a limit",
        )
        if breach is not None and self._inputs.may_retry(piece.brief):
            # Only a kernel may unpickle the policy, so a fresh one is asked.
            told = msgspec.structs.replace(breach, tail=death.tail, ran_s=elapsed_s)
            self._backlog.give_back(replace(piece, breach=told, words=words))
            return
        breach = breach or piece.breach
        if breach is not None:
            ended = endings.stopped(piece, breach, self._home.worker, breach.tail or death.tail)
        else:
            ended = endings.crashed(piece, death, self._home.worker, elapsed_s)
        self._publish(piece, *(piece.words or words).added_to(*ended))


def _with_history(outcome: Outcome, piece: Piece) -> Outcome:
    """Kernels do not know of earlier deaths."""
    return msgspec.structs.replace(outcome, crashes=piece.crashes) if piece.crashes else outcome
