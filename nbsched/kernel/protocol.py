"""Frames between daemon and kernel: the one place that knows their layout.

A frame is a fixed head (length of the message, length of the attachment), the
message in msgpack, and an attachment that is passed on as it is: a callable, a
block, the bytes of results. Both ends are of the same installation, so nothing
here needs to be compatible with other versions.

Every task handed to a kernel has a *run* number, counted by the daemon from 1 per
kernel. It names the task in the shared memory, where one number must do.
"""

from __future__ import annotations

import struct
from typing import TypeAlias

import msgspec

from nbsched.attempts import PastAttempt
from nbsched.messages import Outcome
from nbsched.model import CallShape, JobId

_HEAD = struct.Struct(">IQ")
HEAD_BYTES = _HEAD.size


class Frame(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of what crosses the socket."""


# ---------------------------------------------------------------- daemon to kernel


class Hello(Frame, frozen=True):
    """The first frame: where this kernel lives."""

    worker: str
    host: str
    max_result_bytes: int
    shared_folder: str | None = None
    """Where large results go, and large input lies."""


class TakeJob(Frame, frozen=True):
    """Keep this job's callable (`pickling.Function`): the attachment, or a shared file."""

    job: JobId
    call: CallShape
    file: str = ""
    nbytes: int = 0


class TakeBlock(Frame, frozen=True):
    """Keep this block of items: the attachment, or a shared file of so many bytes."""

    job: JobId
    block: int
    file: str = ""
    nbytes: int = 0


class DropBlock(Frame, frozen=True):
    job: JobId
    block: int


class DropJob(Frame, frozen=True):
    job: JobId


class Breach(msgspec.Struct, frozen=True, array_like=True):
    """A limit that a task broke: seconds (`TIMED_OUT`) or bytes (`OVERDRAWN`)."""

    cause: int
    limit: float
    amount: float
    """What it took when that was seen; 0 when the system refused to give it."""
    tail: str = ""
    """The end of what it had printed, when it was killed for it."""
    ran_s: float = 0.0
    """How long it had run then."""


class RunTasks(Frame, frozen=True):
    """Run tasks ``start`` to ``stop``, whose items lie in ``block``.

    Attributes:
        first_run: run number of the first task; the others follow.
        breach: when set, the task is not run. It broke a limit and was killed for it, and
            its retry policy is to say what follows.
    """

    job: JobId
    block: int
    first_run: int
    start: int
    stop: int
    round: int
    attempt: int
    first_started_at: float | None = None
    task_timeout_s: float | None = None
    memory_bytes: int | None = None
    breach: Breach | None = None
    past: tuple[PastAttempt, ...] = ()


# ---------------------------------------------------------------- kernel to daemon


class Ready(Frame, frozen=True):
    """The kernel has started and reads frames."""


class Finished(Frame, frozen=True):
    """Outcomes, in the order of their runs; their bytes are the attachment."""

    outcomes: tuple[tuple[int, Outcome], ...]
    """Each with the run number of its first task."""


class Skipped(Frame, frozen=True):
    """These runs were void when the kernel got to them: nothing of them was run."""

    first_run: int
    count: int


ToKernel: TypeAlias = Hello | TakeJob | TakeBlock | DropBlock | DropJob | RunTasks
FromKernel: TypeAlias = Ready | Finished | Skipped

_encoder = msgspec.msgpack.Encoder()
_to_kernel: msgspec.msgpack.Decoder[ToKernel] = msgspec.msgpack.Decoder(ToKernel)
_from_kernel: msgspec.msgpack.Decoder[FromKernel] = msgspec.msgpack.Decoder(FromKernel)


def pack(frame: Frame, attachment_bytes: int = 0) -> bytes:
    """Head and message; the attachment is sent behind them."""
    body = _encoder.encode(frame)
    return _HEAD.pack(len(body), attachment_bytes) + body


def lengths(head: bytes) -> tuple[int, int]:
    """Bytes of the message and of the attachment that follow this head."""
    message, attachment = _HEAD.unpack(head)
    return message, attachment


def to_kernel(data: bytes) -> ToKernel:
    return _to_kernel.decode(data)


class Parser:
    """Cuts the bytes that a kernel sends into frames, without blocking."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._wanted: tuple[int, int] | None = None

    def feed(self, data: bytes) -> list[tuple[FromKernel, bytes]]:
        """The frames that are complete now, each with its attachment."""
        self._bytes += data
        frames = []
        while (frame := self._next()) is not None:
            frames.append(frame)
        return frames

    def _next(self) -> tuple[FromKernel, bytes] | None:
        if self._wanted is None:
            if len(self._bytes) < HEAD_BYTES:
                return None
            self._wanted = lengths(self._take(HEAD_BYTES))
        message, attachment = self._wanted
        if len(self._bytes) < message + attachment:
            return None
        self._wanted = None
        return _from_kernel.decode(self._take(message)), self._take(attachment)

    def _take(self, count: int) -> bytes:
        taken = bytes(memoryview(self._bytes)[:count])
        del self._bytes[:count]
        return taken
