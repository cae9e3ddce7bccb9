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

What the running task prints is here, too: the end of each stream in a ring. So the daemon
can show it while the task runs, without a word from the kernel, and has it however the
kernel ends.
"""

from __future__ import annotations

import mmap
import os
import tempfile

_PAGE = mmap.PAGESIZE
_TOUCHED, ACTIVE, _STARTED_NS, VOID_BELOW, _TARGET, _CAUSE, _PRINTED_RUN, _USED_BYTES = range(8)
_PRINTED, _CLAIMED = 8, 10
"""Of stdout; the next cell is that of stderr. Bytes that lie in the ring, and bytes that
are being written to it: what they overwrite is not to be trusted."""
RING_BYTES = 4 * _PAGE
"""Of each stream of the last run to print; behind the page of cells."""
_WORDS_BYTES = 2048

CANCELLED = 1
TIMED_OUT = 2
OVERDRAWN = 3
"""It occupies more memory than it may."""


def create() -> int:
    """A file descriptor of fresh memory, for one kernel."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("nbsched-kernel")
    else:
        fd, path = tempfile.mkstemp(prefix="nbsched-kernel-")
        os.unlink(path)
    try:
        os.ftruncate(fd, _PAGE + 2 * RING_BYTES)
    except OSError:
        os.close(fd)
        raise
    return fd


class SharedState:
    """Both ends' view of the page. See the module for who may write what."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, _PAGE + 2 * RING_BYTES)
        self.cells = memoryview(self._map).cast("q")
        """For `nbsched.kernel.streak`, which cannot afford a call per cell."""
        rings = memoryview(self._map)[_PAGE:]
        self._rings = (rings[:RING_BYTES], rings[RING_BYTES:])

    def close(self) -> None:
        self.cells.release()
        for ring in self._rings:
            ring.release()
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

    def print_tail(self, run: int, stream: int, end: bytes, nbytes: int) -> None:
        """The run has printed ``nbytes`` bytes to a stream (0 stdout, 1 stderr), which end
        like this."""
        cells = self.cells
        if cells[_PRINTED_RUN] != run:
            cells[_PRINTED_RUN] = 0
            for cell in (_PRINTED, _PRINTED + 1, _CLAIMED, _CLAIMED + 1):
                cells[cell] = 0
            cells[_PRINTED_RUN] = run
        total = cells[_PRINTED + stream] + nbytes
        cells[_CLAIMED + stream] = total
        end = end[-RING_BYTES:]
        at = (total - len(end)) % RING_BYTES
        room = RING_BYTES - at
        first, rest = end[:room], end[room:]
        ring = self._rings[stream]
        ring[at : at + len(first)] = first
        ring[: len(rest)] = rest
        cells[_PRINTED + stream] = total

    # ------------------------------------------------------------ the daemon writes

    def void_below(self, run: int) -> None:
        """Runs below this number that have not begun must not begin."""
        self.cells[VOID_BELOW] = run

    def aim(self, run: int, cause: int, used_bytes: int = 0) -> None:
        """Before a SIGINT: the one run that it is meant for, and why."""
        self.cells[_USED_BYTES] = used_bytes
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

    @property
    def used_bytes(self) -> int:
        """What the targeted run occupied, if that is the cause."""
        return self.cells[_USED_BYTES]

    @property
    def printing_run(self) -> int:
        """The last run that has printed, or 0."""
        return self.cells[_PRINTED_RUN]

    def printed(self, run: int, stream: int, after: int = 0) -> tuple[int, bytes]:
        """How many bytes the run has printed to the stream, and the end of those behind
        the first ``after``, as far as the ring has it. Nothing if another run has printed
        since."""
        cells = self.cells
        total = cells[_PRINTED + stream] if cells[_PRINTED_RUN] == run else 0
        count = min(total - after, RING_BYTES)
        if count <= 0:
            return total, b""
        ring = self._rings[stream]
        at = (total - count) % RING_BYTES
        data = bytes(ring[at : at + count])
        data += bytes(ring[: count - len(data)])
        # What was overwritten while it was being read is not this text any more.
        torn = cells[_CLAIMED + stream] - RING_BYTES - (total - count)
        return (total, data[max(0, torn) :]) if cells[_PRINTED_RUN] == run else (0, b"")

    def last_words(self, run: int) -> str:
        """The end of what the run has printed to both streams, for its error."""
        ends = [self.printed(run, stream)[1][-_WORDS_BYTES:] for stream in (0, 1)]
        return b"".join(ends).decode(errors="ignore")
