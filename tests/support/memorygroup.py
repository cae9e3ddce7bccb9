"""A control group with a memory limit of its own, where one can be made."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from support.conditions import until

_V1 = Path("/sys/fs/cgroup/memory")
_V2 = Path("/sys/fs/cgroup")


class MemoryGroup:
    """Processes that enter it may use so many bytes together, and no swap."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, limit_bytes: int) -> MemoryGroup | None:
        """None where that is not allowed or not possible."""
        for parent, name in ((_V1, "memory.limit_in_bytes"), (_V2, "memory.max")):
            try:
                folder = Path(tempfile.mkdtemp(prefix="nbsched-test-", dir=parent))
            except OSError:
                continue
            try:
                (folder / name).write_text(str(limit_bytes))
            except OSError:
                folder.rmdir()
                continue
            return cls(folder)
        return None

    def enter(self) -> None:
        """Move the calling process in; its children will be born there."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def remove(self) -> None:
        """Once everybody has left."""
        processes = self.folder / "cgroup.procs"
        until(lambda: not processes.read_text().strip(), what="an empty control group")
        self.folder.rmdir()
