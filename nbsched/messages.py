"""Every message that crosses NATS, as frozen structs.

Commands (leader to worker) are imperative, reports (worker to everybody) say what
is. They travel as msgpack inside a signed envelope. Fields may be added with
defaults, never moved: the array-like ones are positional.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TypeAlias

import msgspec

from nbsched.attempts import PastAttempt
from nbsched.model import CallShape, ClientId, JobId, TaskRange, Term, WorkerId


class Message(msgspec.Struct, frozen=True, tag=True, tag_field="t"):
    """Base of what crosses NATS."""


# ---------------------------------------------------------------- leader to worker


class BlockRef(msgspec.Struct, frozen=True, array_like=True):
    """Where a block of items lies in the inputs log.

    Attributes:
        block: its number; 0 is the callable, items start at 1.
        first: index of its first item.
        count: number of its items (0 for the callable).
        parts: number of messages that it takes.
        nbytes: its size in bytes.
        file: its name in the shared folder, if it lies there; then the log has an
            entry without data.
    """

    block: int
    first: int
    count: int
    parts: int
    nbytes: int
    file: str = ""


class JobBrief(msgspec.Struct, frozen=True):
    """What a worker must know of a job to run its tasks."""

    job: JobId
    client: ClientId
    call: CallShape
    inline: bool
    function_parts: int
    cpus: int = 1
    task_timeout_s: float | None = None
    max_crashes: int = 3
    chunksize: int | None = None
    function_file: str = ""
    """The callable's name in the shared folder, if it lies there."""
    function_bytes: int = 0
    memory_bytes: int | None = None
    priority: int = 0


class RunSlice(Message, frozen=True):
    """Run tasks ``start`` to ``stop`` (excluded) of a job.

    ``seq`` counts the leader's slices to this worker within its term, from 1. The
    same message may come twice: a worker ignores a ``seq`` it has already seen.
    All tasks of a slice share round, attempt and history; a task with a history
    (a retry, a crash) travels alone.

    Attributes:
        attempt: number of the coming run within its round, from 1.
        crashes: how often the task has taken its kernel or host down in this round.
        first_started_at: epoch seconds of the first attempt of this round, if any.
        blocks: the blocks that cover the slice; empty when the job is inline.
        inline: the job's sealed inline input, with the first slice to a worker.
        past: the attempts of this round that have ended, for the error of the last one.
        joined: the store's revision of the worker's record, as the leader knows it. The
            worker has lost what was sent to it before it registered for the last time.
    """

    term: Term
    seq: int
    brief: JobBrief
    start: int
    stop: int
    round: int = 0
    attempt: int = 1
    crashes: int = 0
    first_started_at: float | None = None
    blocks: tuple[BlockRef, ...] = ()
    inline: bytes | None = None
    past: tuple[PastAttempt, ...] = ()
    joined: int = 0


class RecallTasks(Message, frozen=True):
    """Give back what of these tasks no kernel has started; answer `Recalled`."""

    term: Term
    job: JobId
    ranges: tuple[TaskRange, ...]


class StopTasks(Message, frozen=True):
    """Cancel these tasks, queued or running; their outcomes are the answer.

    Running ones get SIGINT, and SIGKILL ``grace_s`` seconds later. ``silently``: they get
    no outcome, since another run of the same task counts; that they are no longer held is
    the answer.
    """

    term: Term
    job: JobId
    ranges: tuple[TaskRange, ...]
    grace_s: float
    silently: bool = False


class ForgetJob(Message, frozen=True):
    """The job has ended: drop its callable and blocks."""

    term: Term
    job: JobId


class AskReport(Message, frozen=True):
    """Send a `WorkerReport` now."""

    term: Term


Command: TypeAlias = RunSlice | RecallTasks | StopTasks | ForgetJob | AskReport


# ---------------------------------------------------------------- worker to leader


class Accepted(Message, frozen=True):
    """The command is being carried out."""

    seq: int = 0


class Refused(Message, frozen=True):
    """The command is not carried out, and never will be."""

    reason: str
    term: Term
    """The highest term that the worker knows."""


class Recalled(Message, frozen=True):
    """These tasks left the worker unstarted."""

    job: JobId
    ranges: tuple[TaskRange, ...]


Answer: TypeAlias = Accepted | Refused | Recalled


class Held(msgspec.Struct, frozen=True, array_like=True):
    """Tasks that a worker holds and has published no outcome for.

    ``running_for_s`` is None while they wait in the backlog; a running entry is one
    task, the seconds since it started.
    """

    job: JobId
    start: int
    stop: int
    round: int
    attempt: int
    running_for_s: float | None = None


class WorkerReport(Message, frozen=True):
    """Everything that a worker holds: the reconciliation message.

    Published on the reports subject when something changed (at most five a second),
    every few seconds in any case, and when asked.

    Attributes:
        term: term of the leader that it obeys; 0 before the first command.
        seq: the last slice of that term that it has received.
        results_seq: highest sequence number of the results log that its own outcomes
            got. A reader that has read so far has seen every outcome that explains
            why a task is no longer held.
        free_slots: CPU slots without work.
        trouble: why it pauses, for people; empty when it does not.
    """

    worker: WorkerId
    term: Term
    seq: int
    results_seq: int
    held: tuple[Held, ...]
    free_slots: int
    draining: bool = False
    memory_used_bytes: int = 0
    """Of the whole host; 0 where that cannot be told."""
    memory_bytes: int = 0
    trouble: str = ""


class PrintedText(msgspec.Struct, frozen=True, array_like=True):
    """The newest of what a running task has printed to a stream.

    Attributes:
        stream: 0 stdout, 1 stderr, 2 past Python, as in `Outcome`.
        end: bytes that it has printed there so far; ``text`` are the last of them, UTF-8
            cut anywhere.
    """

    index: int
    round: int
    attempt: int
    stream: int
    end: int
    text: bytes


class TaskOutput(Message, frozen=True):
    """What tasks of a job print while they run, for whoever listens now; at most five a
    second. The outcomes have all of it."""

    worker: WorkerId
    job: JobId
    printed: tuple[PrintedText, ...]


# ---------------------------------------------------------------- results log


class OutcomeState(IntEnum):
    """What an attempt ended in. ``RETRY`` is not final: the task runs again."""

    OK = 0
    FAILED = 1
    CANCELLED = 2
    RETRY = 3

    @property
    def final(self) -> bool:
        return self is not OutcomeState.RETRY


class Encoding(IntEnum):
    """How the bytes of an outcome are to be read."""

    NOTHING = 0
    """No bytes (cancelled)."""
    SCALARS = 1
    """One pickle of a list with the results of all tasks of the run."""
    PICKLES = 2
    """One pickle per task, of the given sizes."""
    ERROR = 3
    """One msgpack `ErrorReport`."""


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """The outcome of a run of tasks ``start`` to ``stop`` that ended alike.

    Everything but OK speaks of one task. The bytes of all outcomes of a message lie
    one after another in its body.

    Attributes:
        sizes: bytes of each pickle: one for all (SCALARS, ERROR), or one per task.
        elapsed_s: seconds that the tasks ran, together.
        retry_in_s: RETRY only: seconds until the next attempt may start.
        crashes: deaths of kernel or host that the task has caused in this round,
            this one included.
        first_started_at: RETRY only: epoch seconds of the round's first attempt.
        file: where the bytes lie in the shared folder; then the message has none of them.
        output: bytes of UTF-8 text that the task has printed, each cut to its two ends: to
            stdout, to stderr, and past Python (by programs and libraries that it used; the
            two streams are one then). They follow the result's, also when those lie in a
            file. An outcome with output speaks of one task.
        printed: bytes of each, before cutting.
        past: RETRY only: the round's attempts so far, this one last.
    """

    start: int
    stop: int
    round: int
    attempt: int
    state: OutcomeState
    encoding: Encoding = Encoding.NOTHING
    sizes: tuple[int, ...] = ()
    elapsed_s: float = 0.0
    retry_in_s: float = 0.0
    crashes: int = 0
    first_started_at: float | None = None
    file: str = ""
    output: tuple[int, int, int] = (0, 0, 0)
    printed: tuple[int, int, int] = (0, 0, 0)
    past: tuple[PastAttempt, ...] = ()

    @property
    def body_bytes(self) -> int:
        """Bytes that the outcome takes in its message."""
        return (0 if self.file else sum(self.sizes)) + sum(self.output)


class OutcomeBatch(msgspec.Struct, frozen=True, array_like=True):
    """Header of a message in the results log.

    A body too large for one message travels as ``parts`` messages before this one,
    all with the same ``token``; then this message has no body of its own.
    """

    worker: WorkerId
    outcomes: tuple[Outcome, ...]
    parts: int = 0
    token: str = ""


class OutcomePart(msgspec.Struct, frozen=True, array_like=True):
    """Header of one part of a large body; the `OutcomeBatch` follows."""

    token: str
    part: int


class ErrorReport(msgspec.Struct, frozen=True):
    """A failure, readable without unpickling anything.

    ``system`` names the error class of nbsched (``"TaskCrashedError"``) when the
    failure is not an exception that the task raised.
    """

    type_name: str
    message: str
    traceback: str = ""
    """The remote traceback, formatted where it happened."""
    pickle: bytes | None = None
    """The exception itself, when it can be pickled."""
    system: str | None = None
    details: dict[str, str | int | float | None] = {}
    history: tuple[PastAttempt, ...] = ()
    """The attempts of the task's round, this one last, when there was more than one."""
    item: str = ""
    """The task's item in short, for clients that have never seen it."""


# ---------------------------------------------------------------- client and leader


class AskCounts(Message, frozen=True):
    """A client asks the leader where its jobs are; None asks for all jobs."""

    jobs: tuple[JobId, ...] | None = None


class JobCounts(msgspec.Struct, frozen=True):
    """Live counts of one job, in tasks."""

    job: JobId
    total: int | None
    ok: int
    failed: int
    cancelled: int
    queued: int
    assigned: int
    note: str = ""


class Counts(Message, frozen=True):
    """The leader's answer to `AskCounts`."""

    term: Term
    jobs: tuple[JobCounts, ...]


AnyMessage: TypeAlias = (
    RunSlice
    | RecallTasks
    | StopTasks
    | ForgetJob
    | AskReport
    | Accepted
    | Refused
    | Recalled
    | WorkerReport
    | TaskOutput
    | AskCounts
    | Counts
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)


def encode(message: object) -> bytes:
    """Encode a message, or any struct of this module, as msgpack."""
    return _encoder.encode(message)


def decode(data: bytes | memoryview) -> AnyMessage:
    """Decode a tagged message. Raises ``msgspec.ValidationError`` when it is none."""
    return _decoder.decode(data)
