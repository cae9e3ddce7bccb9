"""One kernel process: starting it, its socket, its output, its signals, its end.

Nothing here knows what a task is. The process must be started from a thread that
lives as long as the daemon (the event loop's): on Linux a kernel dies with the
*thread* that started it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import cast

from nbsched.kernel import protocol, sharedstate
from nbsched.kernel.protocol import Frame, FromKernel
from nbsched.kernel.sharedstate import SharedState
from nbsched.worker.deaths import Death
from nbsched.worker.oomkills import memory_limit, oom_kills

log = logging.getLogger(__name__)

_TAIL_BYTES = 2048
_PIPE_BYTES = 64 * 1024
_READ_NOW_BYTES = 1024 * 1024
"""At most so much in one go: whoever writes without end must not stop the daemon."""
_LAST_WORDS_S = 2.0
"""How long to wait for what a dead kernel had written; it is there at once unless
something that the task started still holds the other end."""


class KernelProcess:
    """A running kernel. Raises OSError when it cannot be started."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._oom_kills = oom_kills()
        # A process's peak counts from that of its parent: they share memory until exec.
        self._floor = _peak_bytes(resource.getrusage(resource.RUSAGE_SELF))
        self._peak = 0
        self._killed = False
        self._unsent: list[bytes] = []
        with ExitStack() as ours, ExitStack() as theirs:
            memory = _kept(sharedstate.create(), theirs)
            self.state = SharedState(memory)
            ours.callback(self.state.close)
            connection, connection_of_kernel = socket.socketpair()
            ours.enter_context(connection)
            theirs.enter_context(connection_of_kernel)
            lifeline, self._lifeline = _pipe(theirs, ours)
            output, output_of_kernel = _pipe(ours, theirs)
            handed = (connection_of_kernel.fileno(), memory, lifeline)
            self._process = _start(handed, output_of_kernel)
            ours.pop_all()  # `_live` closes them
        self._socket = _Connection()
        self._output = _Output()
        self._life = asyncio.create_task(self._live(connection, output), name=f"kernel-{self.pid}")

    def listen(
        self,
        on_frame: Callable[[FromKernel, bytes], None],
        on_output: Callable[[bytes], None],
        on_death: Callable[[Death], None],
    ) -> None:
        """Say, right after its start, who gets what it sends, what it writes past Python's
        streams, and (once) its end."""
        self._socket.on_frame = on_frame
        self._output.on_output = on_output
        self._on_death = on_death

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, frame: Frame, attachment: bytes = b"") -> None:
        """Queue a frame. A kernel that is dying does not get it: `on_death` follows."""
        self._write(protocol.pack(frame, len(attachment)))
        if attachment:
            self._write(attachment)

    def read_output(self) -> None:
        """Take in at once what it has written so far: it was there before the frame that
        came last."""
        self._output.read_now()

    def interrupt(self) -> None:
        """SIGINT, to the kernel alone. Aim with the shared state first."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL, to it and to what its tasks started in its session."""
        self._killed = True
        self._end()

    def _end(self) -> None:
        if self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    async def ended(self) -> None:
        """Return when it is dead, reaped, and `on_death` has been called."""
        await asyncio.shield(self._life)

    # ------------------------------------------------------------ life and death

    def _write(self, data: bytes) -> None:
        if self._socket.transport is None:
            self._unsent.append(data)
        else:
            self._socket.transport.write(data)

    async def _live(self, ours: socket.socket, output: int) -> None:
        try:
            await self._connect(ours, output)
        except Exception:  # then nobody could talk to it; its death tells the rest
            log.exception("kernel pid=%d cannot be reached", self.pid)
            self.kill()
        try:
            await _dead(self._process)
        except OSError:  # no descriptor is left for that
            log.exception("kernel pid=%d cannot be watched, and is killed", self.pid)
            self.kill()
        finally:
            self._bury()
        last_words = [end.closed for end in (self._socket, self._output) if end.transport]
        if last_words:
            await asyncio.wait(last_words, timeout=_LAST_WORDS_S)
        self._close()
        code = self._process.returncode
        assert code is not None, "it is dead and reaped"
        tail = self.state.last_words(self.state.active) + self._output.tail()
        try:
            self._on_death(self._death(code, tail))
        except Exception:  # nobody awaits this task before the daemon's end
            log.exception("the end of kernel pid=%d was not taken in", self.pid)
        finally:
            self.state.close()

    def _death(self, code: int, tail: str) -> Death:
        death = Death(code, tail, peak_bytes=self._peak, peak_is_bound=self._peak <= self._floor)
        if code != -signal.SIGKILL or self._killed:
            return death
        struck = oom_kills() > self._oom_kills
        return replace(death, out_of_memory=struck, memory_limit=memory_limit())

    async def _connect(self, ours: socket.socket, output: int) -> None:
        self._output.fd = output
        pipe = os.fdopen(output, "rb", 0)
        await self._loop.create_unix_connection(lambda: self._socket, sock=ours)
        # A kernel that hangs up without dying (a task may close anything) is of no use. One
        # that was killed hangs up too, so that says nothing of who did it.
        self._socket.closed.add_done_callback(lambda _: self._end())
        await self._loop.connect_read_pipe(lambda: self._output, pipe)
        for data in self._unsent:
            self._write(data)
        self._unsent.clear()

    def _bury(self) -> None:
        """Kill what its tasks left running in its session, then reap it.

        In this order: until it is reaped, its process group cannot be somebody else's.
        """
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        try:
            _, status, usage = os.wait4(self.pid, 0)
        except ChildProcessError:  # it was reaped where there is no way to look first
            self._process.wait()
            return
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._peak = _peak_bytes(usage)

    def _close(self) -> None:
        os.close(self._lifeline)
        for transport in (self._socket.transport, self._output.transport):
            if transport is not None:
                transport.close()


def _kept(fd: int, by: ExitStack) -> int:
    by.callback(os.close, fd)
    return fd


def _pipe(reader: ExitStack, writer: ExitStack) -> tuple[int, int]:
    """Its ends, each kept by who is to have it."""
    read, write = os.pipe()
    return _kept(read, reader), _kept(write, writer)


def _start(handed: tuple[int, int, int], output: int) -> subprocess.Popen[bytes]:
    """``handed`` are its socket, its shared memory and its lifeline."""
    command = [sys.executable, "-m", "nbsched.kernel", str(os.getpid()), *map(str, handed)]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=handed,
        # A session of its own: a terminal's Ctrl-C is not for kernels, and all that a
        # task starts can be killed with it.
        start_new_session=True,
        env=_environment(),
    )


def _peak_bytes(usage: resource.struct_rusage) -> int:
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _environment() -> dict[str, str]:
    """Servers' addresses and credentials are none of the user's code's business.

    ``NBSCHED_KERNEL=1`` lets that code tell that it runs as a task.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith("NBSCHED_")}
    return {**kept, "NBSCHED_KERNEL": "1"}


async def _dead(process: subprocess.Popen[bytes]) -> None:
    """Return when the process is dead, before it is reaped where the system can."""
    if not hasattr(os, "pidfd_open"):
        await asyncio.to_thread(process.wait)
        return
    loop = asyncio.get_running_loop()
    fd = os.pidfd_open(process.pid)
    dead = loop.create_future()
    loop.add_reader(fd, _resolve, dead)
    try:
        await dead
    finally:
        loop.remove_reader(fd)
        os.close(fd)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class _Connection(asyncio.Protocol):
    """Our end of the socket."""

    on_frame: Callable[[FromKernel, bytes], None]

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._parser = protocol.Parser()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        for frame, attachment in self._parser.feed(data):
            self.on_frame(frame, attachment)

    def connection_lost(self, exc: Exception | None) -> None:
        _resolve(self.closed)


class _Output(asyncio.Protocol):
    """What a kernel writes to its descriptors; the end of it is kept here."""

    on_output: Callable[[bytes], None]

    def __init__(self) -> None:
        self.fd = -1
        self.transport: asyncio.BaseTransport | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._last = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._last = (self._last + data)[-_TAIL_BYTES:]
        self.on_output(data)

    def read_now(self) -> None:
        if self.transport is None or self.closed.done():
            return
        with suppress(OSError):  # nothing more is there
            for _ in range(_READ_NOW_BYTES // _PIPE_BYTES):
                if not (data := os.read(self.fd, _PIPE_BYTES)):
                    return
                self.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        _resolve(self.closed)

    def tail(self) -> str:
        return self._last.decode(errors="replace")
