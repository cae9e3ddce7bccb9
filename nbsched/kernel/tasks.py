"""Running one task, and turning whatever it does into an outcome.

Everything of the user's is executed here: the callable, unpickling, the retry
policy, pickling the result. No exception leaves `TaskRunner.run`.
"""

from __future__ import annotations

import os
import time
from typing import Any

import msgspec

from nbsched import messages
from nbsched.attempts import PastAttempt, with_attempt
from nbsched.errors import TaskError, TaskMemoryError, TaskTimeoutError
from nbsched.kernel import outcomes, reports, retrypolicy, stops
from nbsched.kernel.disturbances import Disturbances
from nbsched.kernel.exceptions import note, safe_text
from nbsched.kernel.interrupts import Interrupts
from nbsched.kernel.jobs import LoadedJob
from nbsched.kernel.memorylimit import MemoryBackstop
from nbsched.kernel.outbox import Outbox
from nbsched.kernel.output import Output
from nbsched.kernel.protocol import Breach, Hello, RunTasks
from nbsched.kernel.retrypolicy import Accept, Again, BrokenPolicyError, GiveUp, Replace
from nbsched.kernel.sharedstate import CANCELLED, OVERDRAWN, TIMED_OUT, SharedState
from nbsched.kernel.streak import Keeping, Stopped, Streak
from nbsched.kernel.taskrun import TaskRun
from nbsched.kernel.workplace import Workplace
from nbsched.messages import ErrorReport, OutcomeState
from nbsched.payload import pickling


class TaskRunner:
    """Runs the tasks of this kernel, one at a time, in the main thread."""

    def __init__(
        self,
        home: Hello,
        state: SharedState,
        interrupts: Interrupts,
        disturbances: Disturbances,
        outbox: Outbox,
        output: Output,
    ) -> None:
        self._home = home
        self._state = state
        self._interrupts = interrupts
        self._disturbances = disturbances
        self._outbox = outbox
        self._output = output
        self._workplace = Workplace()
        self._backstop = MemoryBackstop()
        self.spent = False
        """A task went beyond its memory. What it has left behind (a global, a cache) would
        count against the next one's limit, so this kernel is to end, and is replaced."""
        self._streak = Streak(state, interrupts, disturbances, outbox, self._keep_result)
        self._reading = ""
        """What of the input is being unpickled now, or ''."""

    def run(self, job: LoadedJob, batch: RunTasks) -> None:
        """Run the tasks of a hand-over; their outcomes are in the outbox afterwards."""
        run = batch.first_run
        end = run + batch.stop - batch.start
        while run < end:
            several = end - run > 1 and self._may_streak(job, batch)
            if several or run > batch.first_run:
                self._outbox.flush_soon()
            if several:
                stopped = self._run_streak(job, batch, run)
                if stopped is None:
                    return
                void, run = stopped.void, stopped.run
            else:
                void = not self._state.begin(run)
                if not void:
                    self._run_one(TaskRun(job, batch, run))
            self._state.end()
            if void:
                self._outbox.skipped(run, end - run)  # all behind it are void, too
                return
            run += 1
            if self.spent:
                if run < end:
                    self._outbox.skipped(run, end - run)
                return

    def _may_streak(self, job: LoadedJob, batch: RunTasks) -> bool:
        """Once the callable is known to be readable, and if nothing is to be judged."""
        return job.loaded and job.policy is None and batch.breach is None

    def _run_streak(self, job: LoadedJob, batch: RunTasks, first: int) -> Stopped | None:
        self._workplace.enter(job)
        self._output.spill()
        self._disturbances.clear()
        if batch.memory_bytes is not None:
            self._backstop.set(batch.memory_bytes)
        stopped = self._streak.run(job, batch, first)
        self._backstop.lift()
        if stopped is None:
            self._state.end()
        elif not (stopped.void or stopped.ended):
            task = TaskRun(job, batch, stopped.run)
            self._reading = f"item {task.index}" if stopped.unreadable else ""
            self._conclude(task, stopped.value, stopped.error)
        return stopped

    def _run_one(self, task: TaskRun) -> None:
        self._output.spill()
        if task.batch.breach is not None:
            self._judge_breach(task, task.batch.breach)
            return
        limit = task.batch.memory_bytes
        if limit is not None:
            self._backstop.set(limit)
        value, error = self._execute(task)
        self._backstop.lift()
        self._conclude(task, value, error)

    def _conclude(self, task: TaskRun, value: Any, error: BaseException | None) -> None:
        """Put the outcome of what has run into the outbox."""
        if self._disturbances.forked:
            os._exit(0)  # a child that the task forked: the parent reports the outcome
        run = task.run
        if self._state.target == run:
            if self._state.cause == CANCELLED:
                self._outbox.other(run, task.outcome(OutcomeState.CANCELLED))
                return
            error = self._breach_error(task, self._breach(task), error)
            self._reading = ""
        elif isinstance(error, MemoryError) and task.batch.memory_bytes is not None:
            error = self._refused(task, task.batch.memory_bytes, error)
            self._reading = ""
        if error is None:
            self._succeeded(task, value)
        else:
            self._failed(task, error)

    def _execute(self, task: TaskRun) -> tuple[Any, BaseException | None]:
        """The user's code, the only part that an interrupt can hit."""
        try:
            try:
                self._reading = "callable"
                self._interrupts.arm(task.run)
                self._workplace.enter(task.job)
                call = task.job.caller()
                task.started_ns = time.monotonic_ns()
                self._state.started(task.started_ns)
                self._reading = f"item {task.index}"
                item = task.job.blocks[task.batch.block].get(task.index)
                self._reading = ""
                if task.job.policy is not None:
                    retrypolicy.before(task.job.policy, task.attempt())
                value = call(item)
                self._interrupts.disarm()
                return value, None
            except BaseException as error:
                self._interrupts.disarm()
                return None, error
        except KeyboardInterrupt as error:  # it came between the two lines above
            return None, error

    # ------------------------------------------------------------ endings

    def _succeeded(self, task: TaskRun, value: Any) -> None:
        if task.job.policy is None:
            self._send_result(task, value)
            return
        try:
            verdict = retrypolicy.after_result(task.job.policy, task.attempt(), value)
        except BrokenPolicyError as error:
            self._policy_broke(task, error)
            return
        match verdict:
            case Accept():
                self._send_result(task, value)
            case Replace(value=replaced):
                self._send_result(task, replaced)
            case Again(wait_s=wait_s):
                self._retry(task, wait_s, reports.unsatisfied(task, final=False))
            case GiveUp():
                self._fail(task, reports.unsatisfied(task, final=True))

    def _failed(self, task: TaskRun, error: BaseException) -> None:
        if self._reading:
            self._fail(task, reports.unreadable(task, self._reading, self._home.host, error))
        elif isinstance(error, BrokenPolicyError):
            self._policy_broke(task, error)
        elif not isinstance(error, Exception):
            self._fail(task, reports.left(task, error))
        else:
            self._judge(task, error)

    def _judge(self, task: TaskRun, error: Exception) -> None:
        """Ask the policy what follows an exception."""
        try:
            verdict = retrypolicy.after_failure(task.job.policy, task.attempt(), error)
        except BrokenPolicyError as broken:
            self._policy_broke(task, broken)
            return
        match verdict:
            case Again(wait_s=wait_s):
                self._retry(task, wait_s, self._report(error, task))
            case Replace(value=value):
                self._send_result(task, value)
            case Accept() | GiveUp():
                self._fail(task, self._report(error, task))

    def _judge_breach(self, task: TaskRun, breach: Breach) -> None:
        """The task was killed for breaking a limit; only its policy is wanted here."""
        try:
            self._workplace.enter(task.job)
            task.job.function()
        except BaseException as error:
            self._reading = "callable"
            self._failed(task, error)
            return
        self._reading = ""
        task.started_ns -= int(breach.ran_s * 1e9)
        self._judge(task, self._breach_error(task, breach, None))

    def _send_result(self, task: TaskRun, value: Any) -> None:
        if outcomes.is_small_scalar(value):
            self._outbox.close()  # an interrupt may have kept a streak from doing it
            self._outbox.scalar(task.batch, task.run, task.index, value, task.elapsed_s())
        else:
            self._pickle(task, value, task.elapsed_s())

    def _keep_result(
        self, job: LoadedJob, batch: RunTasks, run: int, value: Any, s: float
    ) -> Keeping:
        """A streak's result that is not plain."""
        if outcomes.is_small_scalar(value):
            index = batch.start + run - batch.first_run
            apart = self._outbox.scalar(batch, run, index, value, s)
            return Keeping.APART if apart else Keeping.AMONG_PLAIN
        self._pickle(TaskRun(job, batch, run), value, s)
        return Keeping.LAST if self.spent else Keeping.APART

    def _pickle(self, task: TaskRun, value: Any, elapsed_s: float) -> None:
        try:
            frame = pickling.pack(value)
        except BaseException as error:
            if isinstance(error, MemoryError) and task.batch.memory_bytes is not None:
                self._judge(task, self._refused(task, task.batch.memory_bytes, error))
            else:
                self._fail(task, reports.unpicklable(task, value, error))
            return
        limit = self._home.max_result_bytes
        if frame.nbytes > limit:
            self._fail(task, reports.too_large(task, frame.nbytes, limit))
            return
        self._outbox.pickled(task.batch, task.run, task.index, frame, elapsed_s)

    def _fail(self, task: TaskRun, report: ErrorReport) -> None:
        body = messages.encode(self._with_item(task, report))
        self._outbox.other(task.run, task.outcome(OutcomeState.FAILED, body), body)

    def _retry(self, task: TaskRun, wait_s: float, report: ErrorReport) -> None:
        body = messages.encode(self._with_item(task, report))
        cause = report.details.get("cause") if report.system else None
        past = self._history(task, str(cause or f"{report.type_name}: {report.message}"))
        outcome = task.outcome(OutcomeState.RETRY, body, wait_s, past)
        self._outbox.other(task.run, outcome, body)

    def _history(self, task: TaskRun, cause: str) -> tuple[PastAttempt, ...]:
        """The attempts so far, this one included."""
        return with_attempt(task.batch.past, self._home.worker, cause)

    def _with_item(self, task: TaskRun, report: ErrorReport) -> ErrorReport:
        if self._reading or task.batch.breach is not None:
            return report  # reading the item is what fails, or what took too long
        return msgspec.structs.replace(report, item=task.item_text())

    # ------------------------------------------------------------ errors of ours

    def _breach(self, task: TaskRun) -> Breach:
        """The limit that the task has been interrupted for."""
        state, batch = self._state, task.batch
        if state.cause == OVERDRAWN:
            return Breach(OVERDRAWN, batch.memory_bytes or 0, state.used_bytes)
        return Breach(TIMED_OUT, batch.task_timeout_s or 0.0, task.elapsed_s())

    def _refused(self, task: TaskRun, limit: int, error: MemoryError) -> TaskError:
        self._backstop.lift()
        return self._breach_error(task, Breach(OVERDRAWN, limit, 0), error)

    def _breach_error(
        self, task: TaskRun, breach: Breach, raised: BaseException | None
    ) -> TaskError:
        """The error of a task that has broken a limit, with the place where that was."""
        self.spent = self.spent or (breach is not task.batch.breach and breach.cause == OVERDRAWN)
        tail = breach.tail or self._state.last_words(task.run)
        error = stops.breach_error(breach, task.index, self._home.worker, tail, task.batch.past)
        shown = isinstance(raised, (KeyboardInterrupt, MemoryError))
        return error.with_traceback(raised.__traceback__ if raised and shown else None)

    def _report(self, error: Exception, task: TaskRun) -> ErrorReport:
        if isinstance(error, (TaskTimeoutError, TaskMemoryError)) and error.index == task.index:
            return stops.report(error)
        if isinstance(error, ModuleNotFoundError) and error.name:
            note(error, reports.where_missing(error.name, self._home))
        if not task.batch.past:
            return outcomes.report_exception(error)
        cause = f"{outcomes.type_name(error)}: {safe_text(error)}"
        return outcomes.report_exception(error, self._history(task, cause))

    def _policy_broke(self, task: TaskRun, broken: BrokenPolicyError) -> None:
        error = TaskError(
            f"The retry policy of task {task.index} raised {broken.__cause__!r:.500} on attempt"
            f" {task.batch.attempt}. Mend the policy that was passed as retry=, then retry().",
            index=task.index,
        )
        error.__cause__ = broken.__cause__
        self._fail(task, outcomes.report_exception(error))
