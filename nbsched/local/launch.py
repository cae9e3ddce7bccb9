"""Starts a supervisor, from any thread of a user's process.

Leaves that process as it was: no signal handler, no thread, no event loop, no
zombie. Uses no ``preexec_fn``: the process may have threads (gRPC's, Jupyter's).
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec

import nbsched
from nbsched.errors import LocalClusterError
from nbsched.local import runtime
from nbsched.local.home import Home
from nbsched.local.runtime import Plan

_END_TIMEOUT_S = 10.0


class Verdict(msgspec.Struct, frozen=True):
    """What a supervisor says through the ready pipe, once. ``error`` '' is success."""

    error: str = ""


def python_command(module: str, *arguments: str) -> list[str]:
    """Command that runs ``module.main()`` in an interpreter like this one.

    Not ``python -m``: that looks for modules in the working directory first, where a
    notebook's ``queue.py`` or ``types.py`` would take the place of Python's own.
    """
    root = str(Path(nbsched.__file__).parent.parent)
    code = (
        "import sys; sys.path[:1] == [''] and sys.path.pop(0);"
        f" {root!r} in sys.path or sys.path.append({root!r});"
        f" from {module} import main; main()"
    )
    if not sys.executable:
        raise LocalClusterError(
            "This Python does not know its own executable, so it cannot start a local cluster."
            " Run 'nbsched up' in a terminal."
        )
    return [sys.executable, "-c", code, *arguments]


class Supervision:
    """A supervisor process that this process has started."""

    def __init__(self, home: Home, process: subprocess.Popen[bytes], lifeline: int) -> None:
        self._home = home
        self._process = process
        self._lifeline = lifeline
        self._owner = os.getpid()

    @classmethod
    def begin(cls, plan: Plan, home: Home) -> Supervision:
        """Start it and wait until it is ready.

        Raises:
            LocalClusterError: with the end of the log of the part that failed.
        """
        runtime.save(home.plan, plan)
        lifeline_end, lifeline = os.pipe()
        verdict, verdict_end = os.pipe()
        try:
            process = _spawn(plan, home, lifeline_end, verdict_end)
        except BaseException:
            os.close(lifeline)
            os.close(verdict)
            raise
        finally:
            os.close(lifeline_end)
            os.close(verdict_end)
        supervision = cls(home, process, lifeline)
        try:
            _await_verdict(verdict, home, plan.start_timeout_s)
            if plan.shared:
                supervision._let_go()
        except BaseException:
            supervision.end()
            raise
        finally:
            os.close(verdict)
        return supervision

    def _let_go(self) -> None:
        """The process that was started has forked the supervisor and ended."""
        self._close_lifeline()
        self._process.wait()

    def end(self) -> bool:
        """Stop the supervisor and what it runs.

        False: not ours to stop. This process was forked from the one that started it.
        """
        if self._owner != os.getpid():
            return False
        if self._lifeline >= 0 and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self._close_lifeline()
        try:
            self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its children die with it
            self._process.wait()
        return True

    def _close_lifeline(self) -> None:
        lifeline, self._lifeline = self._lifeline, -1
        if lifeline >= 0:
            os.close(lifeline)


def _spawn(plan: Plan, home: Home, lifeline: int, verdict: int) -> subprocess.Popen[bytes]:
    log = home.open_log("supervisor")
    try:
        return subprocess.Popen(
            python_command("nbsched.local.supervisor", str(home.plan), str(verdict)),
            # The folder, not the caller's: a background process must not hold that one.
            cwd=home.path,
            stdin=subprocess.DEVNULL if plan.shared else lifeline,
            stdout=log,
            stderr=log,
            pass_fds=(verdict,),
            # Jupyter's interrupt button signals the whole process group of a kernel.
            start_new_session=True,
        )
    finally:
        os.close(log)


def _await_verdict(pipe: int, home: Home, timeout_s: float) -> None:
    # The supervisor gives up by itself after the time, and says why: let it.
    text = _read_all(pipe, time.monotonic() + timeout_s + _END_TIMEOUT_S)
    try:
        verdict = msgspec.json.decode(text, type=Verdict)
    except msgspec.DecodeError:
        raise LocalClusterError(
            "The supervisor of the local cluster has ended without a word. The end of its log"
            f" ({home.log('supervisor')}):\n{home.log_tail('supervisor')}"
        ) from None
    if verdict.error:
        raise LocalClusterError(verdict.error)


def _read_all(pipe: int, deadline: float) -> bytes:
    """Everything until the other end is closed, or until the deadline."""
    found = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline - time.monotonic())):
            piece = os.read(pipe, 65536)
            if not piece:
                break
            found += piece
    return found
