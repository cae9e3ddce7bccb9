"""Where tasks run: in the client's folder, with the client's folders of modules to import.

Both only as far as they exist on this host, which on one machine they do.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from nbsched.kernel.jobs import LoadedJob
from nbsched.payload import localmodules


class Workplace:
    """The kernel's working directory and import path, set anew for each job."""

    def __init__(self) -> None:
        self._home = localmodules.working_directory()
        self._own_modules = frozenset(sys.modules)
        self._job: LoadedJob | None = None
        self._added: list[str] = []
        self._visited: set[str] = set()

    def enter(self, job: LoadedJob) -> None:
        """Right before a task: a neighbour may have changed the folder."""
        if job is not self._job:
            self._switch(job)
        for folder in (job.cwd, self._home):
            with suppress(OSError):
                if folder:
                    os.chdir(folder)
                    return

    def _switch(self, job: LoadedJob) -> None:
        sys.path[:] = [path for path in sys.path if path not in self._added]
        if not job.loaded:
            self._forget_modules()
        self._added = [path for path in job.paths if path not in sys.path and os.path.isdir(path)]
        self._visited.update(job.paths)
        sys.path += self._added
        self._job = job

    def _forget_modules(self) -> None:
        """A new job reads its modules again: their files may have been edited."""
        # Before every job, so only at modules that came since this kernel began.
        imported = sys.modules.keys() - self._own_modules
        for name, module in localmodules.under(tuple(self._visited), imported):
            # Compiled ones cannot be loaded twice.
            if str(module.__file__).endswith(".py"):
                sys.modules.pop(name, None)
        for folder in self._visited:
            finder = sys.path_importer_cache.get(folder)
            if finder is not None and hasattr(finder, "invalidate_caches"):
                finder.invalidate_caches()
