"""A page of memory that daemon and kernel share: seen at all times, without a message.

The kernel says what it is running, so that a death is blamed on the right task and
a task's time is measured from outside. The daemon says what is not to be started
any more, and which run is to be interrupted.

Every cell is one aligned 64-bit number with one writer, so a read is never torn.
Two orders matter:

* The kernel stores ``touched`` (or, in a streak of short tasks, ``active`` alone) and
  *then* reads ``void_below``. The daemon stores ``void_below``, waits a moment, and then
  reads both. So a run above them will certainly not start, and the daemon may give it
  to another kernel at once, even while this one is deep in a long task.
* The daemon stores the cause before the target, and the target before the signal.
"""

from __future__ import annotations

import mmap
import os
import tempfile

_PAGE = mmap.PAGESIZE
_TOUCHED, ACTIVE, _STARTED_NS, VOID_BELOW, _TARGET, _CAUSE, _PRINTED_RUN, _PRINTED = range(8)
RING_BYTES = _PAGE
"""Of what the last run to print has printed; a second page holds it."""

CANCELLED = 1
TIMED_OUT = 2


def create() -> int:
    """A file descriptor of fresh memory, for one kernel."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("nbsched-kernel")
    else:
        fd, path = tempfile.mkstemp(prefix="nbsched-kernel-")
        os.unlink(path)
    os.ftruncate(fd, _PAGE + RING_BYTES)
    return fd


class SharedState:
    """Both ends' view of the page. See the module for who may write what."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, _PAGE + RING_BYTES)
        self.cells = memoryview(self._map).cast("q")
        """For `nbsched.kernel.streak`, which cannot afford a call per cell."""
        self._ring = memoryview(self._map)[_PAGE:]

    def close(self) -> None:
        self.cells.release()
        self._ring.release()
        self._map.close()

    # ------------------------------------------------------------ the kernel writes

    def begin(self, run: int) -> bool:
        """Announce that ``run`` comes next. False: it is void, do not start it."""
        cells = self.cells
        cells[_TOUCHED] = run
        if run < cells[VOID_BELOW]:
            return False
        cells[ACTIVE] = run
        return True

    def started(self, now_ns: int) -> None:
        """The user's code starts now: its time is counted from here."""
        self.cells[_STARTED_NS] = now_ns

    def end(self) -> None:
        """Nothing of the user's runs any more."""
        cells = self.cells
        cells[_TOUCHED] = max(cells[_TOUCHED], cells[ACTIVE])  # first: see `touched`
        cells[_STARTED_NS] = 0
        cells[ACTIVE] = 0

    def print_tail(self, run: int, data: bytes) -> None:
        """The run has printed this, at most `RING_BYTES` of it are kept. It is there for
        the daemon however the kernel ends."""
        cells = self.cells
        if cells[_PRINTED_RUN] != run:
            cells[_PRINTED] = 0
            cells[_PRINTED_RUN] = run
        data = data[-RING_BYTES:]
        at = cells[_PRINTED] % RING_BYTES
        room = RING_BYTES - at
        first, rest = data[:room], data[room:]
        self._ring[at : at + len(first)] = first
        self._ring[: len(rest)] = rest
        cells[_PRINTED] += len(data)

    # ------------------------------------------------------------ the daemon writes

    def void_below(self, run: int) -> None:
        """Runs below this number that have not begun must not begin."""
        self.cells[VOID_BELOW] = run

    def aim(self, run: int, cause: int) -> None:
        """Before a SIGINT: the one run that it is meant for, and why."""
        self.cells[_CAUSE] = cause
        self.cells[_TARGET] = run

    # ------------------------------------------------------------ both read

    @property
    def touched(self) -> int:
        """The last run that the kernel has looked at."""
        active = self.cells[ACTIVE]  # in this order: the other one is stored before it goes
        return max(active, self.cells[_TOUCHED])

    @property
    def active(self) -> int:
        """The run whose user code (unpickling included) is being executed, or 0."""
        return self.cells[ACTIVE]

    @property
    def started_ns(self) -> int:
        """Monotonic time at which the active run's code started, or 0."""
        return self.cells[_STARTED_NS]

    @property
    def target(self) -> int:
        return self.cells[_TARGET]

    @property
    def cause(self) -> int:
        return self.cells[_CAUSE]

    def last_printed(self, run: int) -> bytes:
        """The end of what this run has printed; empty when another one has printed since."""
        if self.cells[_PRINTED_RUN] != run:
            return b""
        count = self.cells[_PRINTED]
        at = count % RING_BYTES
        if count <= RING_BYTES:
            return bytes(self._ring[:count])
        return bytes(self._ring[at:]) + bytes(self._ring[:at])
