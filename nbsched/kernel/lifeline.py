"""Dying with the daemon, by two ways that do not depend on each other.

Linux kills the kernel when its parent dies (PDEATHSIG). Everywhere, a thread waits
for the end of a pipe that only the daemon holds open.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1


def tie_to_parent(parent: int, lifeline: int) -> None:
    """End this process, and what it started in its session, when ``parent`` ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before we could ask for the signal
        os._exit(1)
    thread = threading.Thread(target=_watch, args=(lifeline,), name="nbsched-lifeline", daemon=True)
    thread.start()


def _watch(lifeline: int) -> None:
    try:
        os.read(lifeline, 1)
    finally:
        try:
            # This process leads its own session, so this reaches the user's children too.
            os.killpg(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
