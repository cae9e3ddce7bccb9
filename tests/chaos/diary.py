"""Append-only files, one per process, a JSON list per line.

Written with one ``write`` to a file opened with O_APPEND: a line is there completely or
not at all, whatever happens to its process then. Every line starts with a word and ends
with the monotonic time, which is the same for all processes of a machine, and the wall
clock's. Runs inside tasks: standard library only.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

Line = list[Any]


class Diary:
    """The diaries of one schedule: a folder."""

    def __init__(self, folder: str, name: str) -> None:
        """``name``: who writes here; a process has a file of its own."""
        self.folder = folder
        self.name = name
        self._file: tuple[int, int] | None = None

    def __reduce__(self) -> tuple[object, ...]:
        return Diary, (self.folder, self.name)

    def write(self, word: str, *fields: object) -> None:
        line = json.dumps([word, *fields, time.monotonic(), time.time()]) + "\n"
        os.write(self._descriptor(), line.encode())

    def _descriptor(self) -> int:
        pid = os.getpid()
        if self._file is None or self._file[0] != pid:
            path = os.path.join(self.folder, f"{self.name}-{pid}.diary")
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            self._file = pid, os.open(path, flags, 0o600)
        return self._file[1]


def read(folder: Path, name: str) -> list[Line]:
    """All lines of all who wrote under this name, in order of the monotonic time."""
    lines: list[Line] = []
    for path in sorted(folder.glob(f"{name}-*.diary")):
        lines += [json.loads(text) for text in path.read_text().splitlines()]
    return sorted(lines, key=lambda line: float(line[-2]))
