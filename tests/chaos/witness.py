"""What is put into the daemons of a schedule: it writes down, and changes nothing by itself.

Two things are changed on demand: the wall clock, by a file that says how wrong it is, and
the code, by a bug of `chaos.planted`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from chaos.diary import Diary

CLOCK = "clock-offset"
"""The file, in the schedule's folder, with the seconds by which wall clocks are wrong."""

Patch = Callable[[ModuleType], None]


def begin(command: str) -> None:
    folder = os.environ["CHAOS_FOLDER"]
    _bend_clock(Path(folder) / CLOCK)
    patches: list[tuple[str, Patch]] = []
    planted = os.environ.get("CHAOS_PLANT")
    if planted:
        from chaos.planted import BUGS, NONE

        if planted != NONE:
            patches.append((BUGS[planted].module, BUGS[planted].patch))
    if "nbsched.daemon" in command:  # last: it notes what a planted bug does, too
        patches.append(("nbsched.worker.service", lambda module: _note_commands(module, folder)))
    if patches:
        sys.meta_path.insert(0, _Patching(patches))


def _bend_clock(offset: Path) -> None:
    true_time = time.time
    looked_at, seconds = 0.0, 0.0

    def bent() -> float:
        nonlocal looked_at, seconds
        now = time.monotonic()
        if now - looked_at > 0.05:
            looked_at = now
            try:
                seconds = float(offset.read_text() or 0)
            except (OSError, ValueError):
                seconds = 0.0
        return true_time() + seconds

    time.time = bent


def _note_commands(module: Any, folder: str) -> None:
    """Write down every command that a worker gets, with its term and the answer."""
    diary = Diary(folder, "worker")
    obey = module.WorkerService._obey

    def noted(self: Any, command: Any) -> Any:
        before = self._term
        answer = obey(self, command)
        diary.write(
            "command",
            self._id,
            type(command).__name__,
            command.term,
            before,
            type(answer).__name__,
        )
        return answer

    module.WorkerService._obey = noted


class _Patching(MetaPathFinder):
    """Patches modules right after they have been imported."""

    def __init__(self, patches: list[tuple[str, Patch]]) -> None:
        self._patches = patches

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        patches = [patch for module, patch in self._patches if module == name]
        if not patches:
            return None
        spec = PathFinder.find_spec(name, path, target)
        assert spec is not None
        assert spec.loader is not None
        spec.loader = _Afterwards(spec.loader, patches)
        return spec


class _Afterwards(Loader):
    def __init__(self, loader: Any, patches: list[Patch]) -> None:
        self._loader = loader
        self._patches = patches

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self._loader.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        for patch in self._patches:
            patch(module)
