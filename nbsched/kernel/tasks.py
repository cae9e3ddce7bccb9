"""Running one task, and turning whatever it does into an outcome.

Everything of the user's is executed here: the callable, unpickling, the retry
policy, pickling the result. No exception leaves `TaskRunner.run`.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from nbsched import messages
from nbsched.errors import TaskError, TaskTimeoutError
from nbsched.kernel import outcomes, retrypolicy
from nbsched.kernel.disturbances import Disturbances
from nbsched.kernel.exceptions import safe_text
from nbsched.kernel.interrupts import Interrupts
from nbsched.kernel.jobs import LoadedJob
from nbsched.kernel.outbox import Outbox
from nbsched.kernel.output import Output
from nbsched.kernel.protocol import Hello, RunTasks
from nbsched.kernel.retrypolicy import Accept, Again, Attempt, BrokenPolicyError, GiveUp, Replace
from nbsched.kernel.sharedstate import CANCELLED, SharedState
from nbsched.kernel.streak import Stopped, Streak
from nbsched.kernel.workplace import Workplace
from nbsched.messages import Encoding, ErrorReport, Outcome, OutcomeState
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
                    self._run_one(_Task(job, batch, run))
            self._state.end()
            if void:
                self._outbox.skipped(run, end - run)  # all behind it are void, too
                return
            run += 1

    def _may_streak(self, job: LoadedJob, batch: RunTasks) -> bool:
        """Once the callable is known to be readable, and if nothing is to be judged."""
        return job.loaded and job.policy is None and batch.timed_out_after_s is None

    def _run_streak(self, job: LoadedJob, batch: RunTasks, first: int) -> Stopped | None:
        self._workplace.enter(job)
        self._output.spill()
        self._disturbances.clear()
        stopped = self._streak.run(job, batch, first)
        if stopped is None:
            self._state.end()
        elif not (stopped.void or stopped.ended):
            task = _Task(job, batch, stopped.run)
            self._reading = f"item {task.index}" if stopped.unreadable else ""
            self._conclude(task, stopped.value, stopped.error)
        return stopped

    def _run_one(self, task: _Task) -> None:
        self._output.spill()
        if task.batch.timed_out_after_s is not None:
            self._judge_timeout(task, task.batch.timed_out_after_s)
            return
        self._conclude(task, *self._execute(task))

    def _conclude(self, task: _Task, value: Any, error: BaseException | None) -> None:
        """Put the outcome of what has run into the outbox."""
        if self._disturbances.forked:
            os._exit(0)  # a child that the task forked: the parent reports the outcome
        run = task.run
        if self._state.target == run:
            if self._state.cause == CANCELLED:
                self._outbox.other(run, task.outcome(OutcomeState.CANCELLED))
                return
            error = self._timeout_error(task, task.batch.task_timeout_s or 0.0, error)
            self._reading = ""
        if error is None:
            self._succeeded(task, value)
        else:
            self._failed(task, error)

    def _execute(self, task: _Task) -> tuple[Any, BaseException | None]:
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

    def _succeeded(self, task: _Task, value: Any) -> None:
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
                self._retry(task, wait_s, _unsatisfied(task, final=False))
            case GiveUp():
                self._fail(task, _unsatisfied(task, final=True))

    def _failed(self, task: _Task, error: BaseException) -> None:
        if self._reading:
            self._fail(task, self._unreadable(task, error))
        elif isinstance(error, BrokenPolicyError):
            self._policy_broke(task, error)
        elif not isinstance(error, Exception):
            self._fail(task, _left(task, error))
        else:
            self._judge(task, error)

    def _judge(self, task: _Task, error: Exception) -> None:
        """Ask the policy what follows an exception."""
        try:
            verdict = retrypolicy.after_failure(task.job.policy, task.attempt(), error)
        except BrokenPolicyError as broken:
            self._policy_broke(task, broken)
            return
        match verdict:
            case Again(wait_s=wait_s):
                self._retry(task, wait_s, _report(error, task))
            case Replace(value=value):
                self._send_result(task, value)
            case Accept() | GiveUp():
                self._fail(task, _report(error, task))

    def _judge_timeout(self, task: _Task, after_s: float) -> None:
        """The task was killed for its time; only its policy is wanted here."""
        try:
            self._workplace.enter(task.job)
            task.job.function()
        except BaseException as error:
            self._reading = "callable"
            self._failed(task, error)
            return
        self._reading = ""
        self._judge(task, self._timeout_error(task, after_s, None))

    def _send_result(self, task: _Task, value: Any) -> None:
        if outcomes.is_small_scalar(value):
            self._outbox.close()  # an interrupt may have kept a streak from doing it
            self._outbox.scalar(task.batch, task.run, task.index, value, task.elapsed_s())
        else:
            self._pickle(task, value, task.elapsed_s())

    def _keep_result(self, job: LoadedJob, batch: RunTasks, run: int, value: Any, s: float) -> bool:
        """A streak's result that is not plain; False: it may lie with the plain ones."""
        if outcomes.is_small_scalar(value):
            index = batch.start + run - batch.first_run
            return self._outbox.scalar(batch, run, index, value, s)
        self._pickle(_Task(job, batch, run), value, s)
        return True

    def _pickle(self, task: _Task, value: Any, elapsed_s: float) -> None:
        try:
            frame = pickling.pack(value)
        except BaseException as error:
            self._fail(task, _unpicklable(task, value, error))
            return
        limit = self._home.max_result_bytes
        if frame.nbytes > limit:
            self._fail(task, _too_large(task, frame.nbytes, limit))
            return
        self._outbox.pickled(task.batch, task.run, task.index, frame, elapsed_s)

    def _fail(self, task: _Task, report: ErrorReport) -> None:
        body = messages.encode(report)
        self._outbox.other(task.run, task.outcome(OutcomeState.FAILED, body), body)

    def _retry(self, task: _Task, wait_s: float, report: ErrorReport) -> None:
        body = messages.encode(report)
        outcome = task.outcome(OutcomeState.RETRY, body, wait_s)
        self._outbox.other(task.run, outcome, body)

    # ------------------------------------------------------------ errors of ours

    def _timeout_error(
        self, task: _Task, after_s: float, interrupted: BaseException | None
    ) -> TaskTimeoutError:
        error = TaskTimeoutError(outcomes.timeout_message(task.index, after_s), index=task.index)
        where = interrupted.__traceback__ if isinstance(interrupted, KeyboardInterrupt) else None
        return error.with_traceback(where)

    def _policy_broke(self, task: _Task, broken: BrokenPolicyError) -> None:
        error = TaskError(
            f"The retry policy of task {task.index} raised {broken.__cause__!r:.500} on attempt"
            f" {task.batch.attempt}. Mend the policy that was passed as retry=, then retry().",
            index=task.index,
        )
        error.__cause__ = broken.__cause__
        self._fail(task, outcomes.report_exception(error))

    def _unreadable(self, task: _Task, error: BaseException) -> ErrorReport:
        host = self._home.host
        cause = f"{outcomes.type_name(error)}: {safe_text(error)}"
        what = f"The {self._reading} of job {task.job.job}"
        if isinstance(error, ModuleNotFoundError) and error.name:
            message = (
                f"{what} needs a module that is missing: No module named {error.name!r} on worker"
                f" host {host} ({sys.executable}): install it there."
            )
        else:
            message = (
                f"{what} cannot be unpickled on worker host {host}: {cause}. Check that the same"
                " packages and versions are installed there as where it was sent from."
            )
        return outcomes.report_system(
            "InputNotReadableError", message, error, index=task.index, cause=cause, host=host
        )


class _Task:
    """One run: what names it, and when it started."""

    __slots__ = ("batch", "index", "job", "run", "started_ns")

    def __init__(self, job: LoadedJob, batch: RunTasks, run: int) -> None:
        self.job = job
        self.batch = batch
        self.run = run
        self.index = batch.start + run - batch.first_run
        self.started_ns = time.monotonic_ns()

    def elapsed_s(self) -> float:
        return (time.monotonic_ns() - self.started_ns) * 1e-9

    def first_started_at(self) -> float:
        known = self.batch.first_started_at
        return time.time() - self.elapsed_s() if known is None else known

    def attempt(self) -> Attempt:
        return Attempt(self.batch.attempt, self.first_started_at(), self.job.function())

    def outcome(self, state: OutcomeState, report: bytes = b"", retry_in_s: float = 0.0) -> Outcome:
        return Outcome(
            start=self.index,
            stop=self.index + 1,
            round=self.batch.round,
            attempt=self.batch.attempt,
            state=state,
            encoding=Encoding.ERROR if report else Encoding.NOTHING,
            sizes=(len(report),) if report else (),
            elapsed_s=self.elapsed_s(),
            retry_in_s=retry_in_s,
            first_started_at=self.first_started_at() if state is OutcomeState.RETRY else None,
        )


def _report(error: Exception, task: _Task) -> ErrorReport:
    if isinstance(error, TaskTimeoutError) and error.index == task.index:
        text = safe_text(error)
        return outcomes.report_system("TaskTimeoutError", text, error, index=task.index)
    return outcomes.report_exception(error)


def _left(task: _Task, error: BaseException) -> ErrorReport:
    """An exit that is no exception: ``sys.exit``, KeyboardInterrupt, …"""
    text = safe_text(error)
    if isinstance(error, SystemExit):
        cause = f"sys.exit({'' if error.code is None else text})"
    else:
        cause = f"{outcomes.type_name(error)}({text})"
    message = (
        f"Task {task.index} ended with {cause} instead of returning. Return a value, or raise an"
        " exception to let it fail."
    )
    return outcomes.report_system("TaskCrashedError", message, error, index=task.index, cause=cause)


def _unsatisfied(task: _Task, *, final: bool) -> ErrorReport:
    after = "and has given up" if final else "and lets it run again"
    return outcomes.report_system(
        "RetriesExhaustedError",
        f"The retry policy did not accept the result of task {task.index} on attempt"
        f" {task.batch.attempt} {after}. Relax retry= or its stop=.",
        index=task.index,
        attempts=task.batch.attempt,
    )


def _unpicklable(task: _Task, value: object, error: BaseException) -> ErrorReport:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    cause = f"{outcomes.type_name(error)}: {safe_text(error)}"
    return outcomes.report_system(
        "ResultNotPicklableError",
        f"The result of task {task.index} ({kind}) cannot be sent back: it cannot be pickled"
        f" ({cause}). Return plain data instead of open connections, locks, files or generators.",
        index=task.index,
        cause=cause,
    )


def _too_large(task: _Task, size: int, limit: int) -> ErrorReport:
    return outcomes.report_system(
        "ResultTooLargeError",
        f"The result of task {task.index} has {size:,} bytes; the limit is {limit:,}. Return less,"
        " write it to storage and return its path, or raise NBSCHED_MAX_RESULT_BYTES on the"
        " workers.",
        index=task.index,
        size=size,
        limit=limit,
    )
