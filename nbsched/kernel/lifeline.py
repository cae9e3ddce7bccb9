"""Dying with the daemon, by two ways that do not depend on each other; and before it.

Linux kills the kernel when its parent dies (PDEATHSIG). Everywhere, a thread waits
for the end of a pipe that only the daemon holds open. When memory runs out, the kernel
and what its task has started go before the daemon and the servers beside it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from contextlib import suppress

_PR_SET_PDEATHSIG = 1
_OOM_SCORE_ADJ = "/proc/self/oom_score_adj"
_OOM_SCORE = 500
"""As if half of the host's memory were used besides, in thousandths: a daemon that is
killed in place of a task costs all of its tasks. Ray marks its workers likewise."""


def tie_to_parent(parent: int, lifeline: int) -> None:
    """End this process, and what it started in its session, when ``parent`` ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before we could ask for the signal
        os._exit(1)
    thread = threading.Thread(target=_watch, args=(lifeline,), name="nbsched-lifeline", daemon=True)
    thread.start()


def go_before_the_daemon() -> None:
    """Offer this process to the out-of-memory killer; its children inherit that."""
    # Where that is not possible (not Linux, not allowed), it may be the daemon.
    with suppress(OSError, ValueError), open(_OOM_SCORE_ADJ, "r+") as file:
        score = min(1000, int(file.read()) + _OOM_SCORE)
        file.seek(0)
        file.write(str(score))


def _watch(lifeline: int) -> None:
    try:
        os.read(lifeline, 1)
    finally:
        try:
            # This process leads its own session, so this reaches the user's children too.
            os.killpg(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
