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
from nbsched.kernel.disturbances import Disturbances
from nbsched.kernel.interrupts import Interrupts
from nbsched.kernel.jobs import Items, LoadedJob, SharedFile
from nbsched.kernel.outbox import Outbox
from nbsched.kernel.output import Output
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
from nbsched.payload.sharedfolder import SharedFolder


def main(arguments: Sequence[str]) -> None:
    """Run a kernel on the descriptors that the daemon has passed."""
    parent, connection_fd, memory_fd, lifeline_fd = map(int, arguments)
    lifeline.tie_to_parent(parent, lifeline_fd)
    lifeline.go_before_the_daemon()
    for fd in (connection_fd, memory_fd, lifeline_fd):
        os.set_inheritable(fd, False)  # programs that tasks start have no business with them
    sys.argv[:] = ["nbsched-kernel"]
    _show_output_at_once()
    # The client can import what was imported here from its own folders.
    localmodules.send_by_reference()
    Kernel(socket.socket(fileno=connection_fd), SharedState(memory_fd)).serve()


def _show_output_at_once() -> None:
    """What goes past our own streams (``sys.__stdout__``) must not wait for a crash."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    faulthandler.enable()


class Kernel:
    """Reads frames and carries them out, one after another."""

    def __init__(self, connection: socket.socket, state: SharedState) -> None:
        self._connection = connection
        self._reader = connection.makefile("rb", buffering=256 * 1024)
        self._state = state
        self._disturbances = Disturbances()
        self._interrupts = Interrupts(state, self._disturbances)
        self._output = Output(state, self._disturbances)
        self._outbox = Outbox(connection, self._output)
        self._jobs: dict[JobId, LoadedJob] = {}
        self._runner: TaskRunner | None = None
        self._folder: SharedFolder | None = None

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
            case TakeBlock(job=job, block=block, file=file, nbytes=nbytes):
                self._jobs[job].blocks[block] = Items(self._source(attachment, file, nbytes))
            case TakeJob(job=job, call=call, file=file, nbytes=nbytes):
                self._jobs[job] = LoadedJob(job, call, self._source(attachment, file, nbytes))
            case DropBlock(job=job, block=block):
                self._jobs[job].blocks.pop(block, None)
            case DropJob(job=job):
                self._jobs.pop(job, None)
            case Hello():
                self._begin(frame)
            case _:
                assert_never(frame)

    def _begin(self, home: Hello) -> None:
        if home.shared_folder is not None:
            self._outbox.folder = self._folder = SharedFolder(home.shared_folder)
        self._runner = TaskRunner(
            home, self._state, self._interrupts, self._disturbances, self._outbox, self._output
        )

    def _source(self, attachment: bytes, file: str, nbytes: int) -> bytes | SharedFile:
        if not file:
            return attachment
        assert self._folder is not None, "the daemon named one when it said Hello"
        return SharedFile(self._folder, file, nbytes)

    def _run(self, batch: RunTasks) -> None:
        assert self._runner is not None, "the daemon says Hello first"
        self._interrupts.install()  # a task may have set a handler of its own
        self._output.install()
        self._runner.run(self._jobs[batch.job], batch)
        self._outbox.flush()
        if self._runner.spent:
            os._exit(0)
