"""A job's progress as a tqdm bar, for those who have tqdm everywhere else.

``tqdm.auto`` decides what it looks like here: text on stderr, or a widget in a notebook.
Counted in tasks. Knows nothing of threads, as the other views.
"""

from __future__ import annotations

from typing import Any

from nbsched.client.progress import Progress
from nbsched.display.wording import known, one_line


class TqdmBar:
    """One bar: appears with the first `draw`, stays after `end`."""

    def __init__(self, make: Any = None) -> None:
        self._make = make
        self._bar: Any = None

    def draw(self, progress: Progress) -> None:
        if self._bar is None:
            self._bar = self._opened(progress)
        self._bar.total = known(progress)
        counts = {"failed": progress.failed, "cancelled": progress.cancelled}
        self._bar.set_postfix({k: v for k, v in counts.items() if v}, refresh=False)
        self._bar.update(progress.done - self._bar.n)  # fewer, when tasks are retried
        self._bar.refresh()

    def end(self, progress: Progress) -> None:
        self.draw(progress)
        self._bar.close()
        self._bar = None

    def _opened(self, progress: Progress) -> Any:
        if self._make is None:
            from tqdm.auto import tqdm

            self._make = tqdm
        return self._make(
            total=known(progress),
            desc=one_line(progress.name) or progress.job,
            unit="task",
            mininterval=0.0,  # it is drawn when something is new, at most 5 times a second
        )
