"""Whether this worker may hand tasks to its kernels: only while its lease is certainly there.

A process that was stopped, or cut off, for longer than the lease lives has been taken for
dead: what it had not begun has been given to others, and maybe cancelled there. So it looks
at the clock before it hands anything over. What it was running when it was stopped nobody
can take back.

Nothing here guards what a kernel has been handed already: the rest of a hand-over, and a
spare one behind it. Kernels know of no lease. When the daemon alone is stopped they go on
with that; when the host is suspended they may begin some of it after it wakes, before the
daemon learns that its lease is gone and takes back what has not begun. These tasks run
twice, or although they were cancelled; the outcome of one run counts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from nbsched.storage import Lease

_LOOK_S = 0.2
"""How often to look whether a lease is trusted again, while something waits for that."""


class Trust:
    """In the lease that the worker serves under; a worker without any answers to nobody."""

    def __init__(self, on_return: Callable[[], None]) -> None:
        """``on_return`` is called when tasks may be handed over again that had to wait."""
        self._on_return = on_return
        self._lease: Lease | None = None
        self._lost = False
        self._looking: asyncio.TimerHandle | None = None

    def rest_on(self, lease: Lease) -> None:
        self._lease, self._lost = lease, False

    def lose(self) -> None:
        """The lease is gone, and there is no other one yet."""
        self._lost = True

    def holds(self) -> bool:
        """Whether tasks may be handed over now. Whoever was told no is called back."""
        if self._lost:
            return False  # the next lease will be said
        if self._lease is None or time.monotonic() < self._lease.trusted_until:
            return True
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(_LOOK_S, self._look)
        return False

    def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()

    def _look(self) -> None:
        self._looking = None
        if self.holds():
            self._on_return()
