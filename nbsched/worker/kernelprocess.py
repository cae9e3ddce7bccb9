"""One kernel process: starting it, its socket, its output, its signals, its end.

Nothing here knows what a task is. The process must be started from a thread that
lives as long as the daemon (the event loop's): on Linux a kernel dies with the
*thread* that started it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from nbsched.kernel import protocol, sharedstate
from nbsched.kernel.protocol import Frame, FromKernel
from nbsched.kernel.sharedstate import SharedState
from nbsched.worker.deaths import Death, oom_kills

log = logging.getLogger(__name__)

_TAIL_BYTES = 2048
_LAST_WORDS_S = 2.0
"""How long to wait for what a dead kernel had written; it is there at once unless
something that the task started still holds the other end."""


class KernelProcess:
    """A running kernel. Raises OSError when it cannot be started."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._oom_kills = oom_kills()
        self._killed = False
        self._unsent: list[bytes] = []
        memory = sharedstate.create()
        self.state = SharedState(memory)
        ours, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        output, output_of_kernel = os.pipe()
        try:
            self._process = _start(theirs.fileno(), memory, lifeline, output_of_kernel)
        except OSError:
            ours.close()
            os.close(self._lifeline)
            os.close(output)
            raise
        finally:
            theirs.close()
            for fd in (memory, lifeline, output_of_kernel):
                os.close(fd)
        self._socket = _Connection()
        self._output = _Output()
        self._life = asyncio.create_task(self._live(ours, output), name=f"kernel-{self.pid}")

    def listen(
        self, on_frame: Callable[[FromKernel, bytes], None], on_death: Callable[[Death], None]
    ) -> None:
        """Say, right after its start, who gets what it sends, and (once) its end."""
        self._socket.on_frame = on_frame
        self._on_death = on_death

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, frame: Frame, attachment: bytes = b"") -> None:
        """Queue a frame. A kernel that is dying does not get it: `on_death` follows."""
        self._write(protocol.pack(frame, len(attachment)))
        if attachment:
            self._write(attachment)

    def interrupt(self) -> None:
        """SIGINT, to the kernel alone. Aim with the shared state first."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL, to it and to what its tasks started in its session."""
        self._killed = True
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
        finally:
            self._bury()
        last_words = [end.closed for end in (self._socket, self._output) if end.transport]
        if last_words:
            await asyncio.wait(last_words, timeout=_LAST_WORDS_S)
        self._close()
        code = self._process.returncode
        assert code is not None, "it is dead and reaped"
        grown = oom_kills() > self._oom_kills
        printed = self.state.last_printed(self.state.active).decode(errors="replace")
        tail = printed + self._output.tail()
        self._on_death(Death(code, tail, grown and not self._killed))
        self.state.close()

    async def _connect(self, ours: socket.socket, output: int) -> None:
        pipe = os.fdopen(output, "rb", 0)
        await self._loop.create_unix_connection(lambda: self._socket, sock=ours)
        # A kernel that hangs up without dying (a task may close anything) is of no use.
        self._socket.closed.add_done_callback(lambda _: self.kill())
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
        self._process.wait()

    def _close(self) -> None:
        os.close(self._lifeline)
        for transport in (self._socket.transport, self._output.transport):
            if transport is not None:
                transport.close()


def _start(connection: int, memory: int, lifeline: int, output: int) -> subprocess.Popen[bytes]:
    handed = (connection, memory, lifeline)
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
    """The end of what a kernel writes to stdout and stderr; the rest is thrown away."""

    def __init__(self) -> None:
        self.transport: asyncio.BaseTransport | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._last = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._last = (self._last + data)[-_TAIL_BYTES:]

    def connection_lost(self, exc: Exception | None) -> None:
        _resolve(self.closed)

    def tail(self) -> str:
        return self._last.decode(errors="replace")
