"""What a real server in a test has in common with the others: its process.

A server runs in a session of its own, so that Ctrl-C in pytest leaves it to its
fixture. If pytest itself is killed, the kernel kills the server: the parent-death
signal is set by `setpriv` between fork and exec, or by a line of Python where there
is no setpriv (slower by a start of Python), never by ``preexec_fn``, which is unsafe
in a process with threads. The signal comes when the *thread* that started the server
ends: start servers from the main thread.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

from support.conditions import stopped, until

STOP_WITHIN_S = 5.0

_DIE_WITH_PARENT = (
    "import ctypes, os, sys;"
    "ctypes.CDLL(None).prctl(1, 9, 0, 0, 0);"
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def dying_with_us(command: list[str]) -> list[str]:
    """``command``, killed by the kernel when the calling thread is gone (Linux)."""
    if not sys.platform.startswith("linux"):
        return command
    setpriv = shutil.which("setpriv")
    if setpriv is not None:
        return [setpriv, "--pdeathsig", "KILL", *command]
    return [sys.executable, "-S", "-c", _DIE_WITH_PARENT, *command]


_PORTS = range(20_000, 32_000)
"""Below those that systems give to outgoing connections: one of these could take a port
between the look at it and the start of its server."""
_SHARE = 300
"""So many are one process's own, for the same reason."""
_Share = tuple[socket.socket | None, Iterator[int]]
"""Its ports, and what keeps others off as long as the process lives."""
_shares: dict[int, _Share] = {}
"""By process: a fork has another."""


def free_ports(count: int) -> list[int]:
    """Loopback ports that are free now, none of them handed out lately."""
    pid = os.getpid()
    if pid not in _shares:
        _shares[pid] = _new_share()
    _, ports = _shares[pid]
    found = list[int]()
    while len(found) < count:
        port = next(ports)
        with closing(socket.socket()) as listener, suppress(OSError):  # somebody has it
            listener.bind(("127.0.0.1", port))
            found.append(port)
    return found


def _new_share() -> _Share:
    starts = list(_PORTS[::_SHARE])
    random.SystemRandom().shuffle(starts)
    for start in starts:
        ports = itertools.cycle(range(start, start + _SHARE))
        if not sys.platform.startswith("linux"):
            return None, ports
        claim = socket.socket(socket.AF_UNIX)
        with suppress(OSError):
            claim.bind(f"\0nbsched-test-ports-{start}")
            return claim, ports
        claim.close()
    raise AssertionError("other processes have all ports: end some tests")


class ServerProcess:
    """A server's process. Subclasses say how it is started and when it is there."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _wait_until_ready(self) -> None:
        raise NotImplementedError

    def _environment(self) -> dict[str, str] | None:
        """None: this process's own."""
        return None

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server does not run"
        return self._process.pid

    def start(self) -> None:
        """Start the server and return when it can be used."""
        self.launch()
        self.await_ready()

    def launch(self) -> None:
        """Start its process only: a member of a cluster is ready when others are there."""
        assert self._process is None, "the server runs already"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                dying_with_us(self._command()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=self._environment(),
            )

    def await_ready(self) -> None:
        """Return when it can be used; it does not run any more if that fails."""
        try:
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End it in order. Does nothing when it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, as a crash would. Does nothing when it does not run."""
        self._end(signal.SIGKILL)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def restart(self) -> None:
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Let it hold its connections and answer nothing, until `thaw` or `kill`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        until(partial(stopped, self.pid), what="standing still")

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    @property
    def ended_by_itself(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def _end(self, sent: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(sent)
        try:
            process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
