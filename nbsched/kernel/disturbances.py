"""What a task may have done to its kernel that the next task must not feel.

Looking after every task would cost more than a short task itself. So whatever matters
leaves a note here, and only a note is looked at.
"""

from __future__ import annotations

import os
import sys


class Disturbances:
    """``notes`` is empty as long as nothing has happened."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._pid = os.getpid()
        os.register_at_fork(after_in_child=lambda: self.notes.append("forked"))
        sys.addaudithook(self._on_audit)  # it cannot be removed, and lives with the process

    @property
    def forked(self) -> bool:
        """Whether this is a child that a task forked, which has come back from it."""
        return os.getpid() != self._pid

    def clear(self) -> None:
        self.notes.clear()

    def _on_audit(self, event: str, _: tuple[object, ...]) -> None:
        if event in ("os.chdir", "os.fchdir"):
            self.notes.append("moved")
