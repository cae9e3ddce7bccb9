"""How often a page is told something: at most 5 messages in any second.

Counts what all displays of a process send together, where it is sent. Knows nothing of
what is in a message.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

MOST = 5
WINDOW_S = 1.15
"""More than the second that is promised: messages arrive less evenly than they are sent."""
REFRESH_S = 0.3
"""Between two updates: with these four the window has room for one more, the last state
of a job, which is never held back."""


class Pace:
    """The messages of the last moments."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sent: deque[float] = deque(maxlen=MOST)

    def note(self) -> None:
        """A message is being sent."""
        self._sent.append(self._clock())

    def has_room(self, messages: int = 1, *, last: bool = False) -> bool:
        """Whether so many may be sent now; one more has room for what is the ``last``."""
        begin = self._clock() - WINDOW_S
        recent = sum(at > begin for at in list(self._sent))
        return recent + messages <= (MOST if last else MOST - 1)


pace = Pace()
"""Of this process."""
