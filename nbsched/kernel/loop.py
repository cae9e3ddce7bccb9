"""The kernel's main loop: read a frame, do what it says, until the daemon is gone.

The main thread runs the user's code, so that signals reach it and libraries that
insist on the main thread work. It reads the socket only between tasks.
"""

from __future__ import annotations

import faulthandler
import io
import os
import socket
import sys
from collections.abc import Sequence

from nbsched._compat import assert_never
from nbsched.kernel import lifeline, protocol
from nbsched.kernel.interrupts import Interrupts
from nbsched.kernel.jobs import Items, LoadedJob
from nbsched.kernel.outbox import Outbox
from nbsched.kernel.protocol import (
    DropBlock,
    DropJob,
    Hello,
    Ready,
    RunTasks,
    TakeBlock,
    TakeJob,
    ToKernel,
)
from nbsched.kernel.sharedstate import SharedState
from nbsched.kernel.tasks import TaskRunner
from nbsched.model import JobId
from nbsched.payload import localmodules


def main(arguments: Sequence[str]) -> None:
    """Run a kernel on the descriptors that the daemon has passed."""
    parent, connection_fd, memory_fd, lifeline_fd = map(int, arguments)
    lifeline.tie_to_parent(parent, lifeline_fd)
    for fd in (connection_fd, memory_fd, lifeline_fd):
        os.set_inheritable(fd, False)  # programs that tasks start have no business with them
    sys.argv[:] = ["nbsched-kernel"]
    _show_output_at_once()
    # The client can import what was imported here from its own folders.
    localmodules.send_by_reference()
    state = SharedState(memory_fd)
    Kernel(socket.socket(fileno=connection_fd), state, Interrupts(state)).serve()


def _show_output_at_once() -> None:
    """What a task printed before it crashed must have left the process by then."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    faulthandler.enable()


class Kernel:
    """Reads frames and carries them out, one after another."""

    def __init__(
        self, connection: socket.socket, state: SharedState, interrupts: Interrupts
    ) -> None:
        self._connection = connection
        self._reader = connection.makefile("rb", buffering=256 * 1024)
        self._state = state
        self._interrupts = interrupts
        self._outbox = Outbox(connection)
        self._jobs: dict[JobId, LoadedJob] = {}
        self._runner: TaskRunner | None = None

    def serve(self) -> None:
        """Return when the daemon has closed the socket."""
        self._outbox.send(Ready())
        while True:
            head = self._reader.read(protocol.HEAD_BYTES)
            if len(head) < protocol.HEAD_BYTES:
                return
            message_bytes, attachment_bytes = protocol.lengths(head)
            frame = protocol.to_kernel(self._reader.read(message_bytes))
            self._carry_out(frame, self._reader.read(attachment_bytes))

    def _carry_out(self, frame: ToKernel, attachment: bytes) -> None:
        match frame:
            case RunTasks():
                self._run(frame)
            case TakeBlock(job=job, block=block):
                self._jobs[job].blocks[block] = Items(attachment)
            case TakeJob(job=job, call=call):
                self._jobs[job] = LoadedJob(job, call, attachment)
            case DropBlock(job=job, block=block):
                self._jobs[job].blocks.pop(block, None)
            case DropJob(job=job):
                self._jobs.pop(job, None)
            case Hello():
                self._runner = TaskRunner(frame, self._state, self._interrupts, self._outbox)
            case _:
                assert_never(frame)

    def _run(self, batch: RunTasks) -> None:
        assert self._runner is not None, "the daemon says Hello first"
        self._interrupts.install()  # a task may have set a handler of its own
        count = batch.stop - batch.start
        for offset in range(count):
            run = batch.first_run + offset
            if not self._state.begin(run):
                self._outbox.skipped(run, count - offset)  # all behind it are void, too
                break
            self._runner.run(self._jobs[batch.job], batch, batch.start + offset, run)
            self._state.end()
        self._outbox.flush()
