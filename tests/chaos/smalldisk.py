"""A small disk of a server's own, in memory (tmpfs), that can be filled to the last byte."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SIZE_MB = 160
"""etcd sets two files of 64 MB aside."""


def missing() -> str:
    """Why none can be made here; '' when one can."""
    if not sys.platform.startswith("linux"):
        return "tmpfs is Linux's"
    if os.geteuid() != 0:
        return "only root can mount a tmpfs"
    with tempfile.TemporaryDirectory() as folder:
        tried = subprocess.run(_mount(Path(folder)), capture_output=True, text=True)
        if tried.returncode != 0:
            return f"a tmpfs cannot be mounted here: {tried.stderr.strip()}"
        subprocess.run(["umount", folder], check=True)
    return ""


def _mount(folder: Path) -> list[str]:
    return ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "tmpfs", str(folder)]


class SmallDisk:
    """Mounted on ``folder`` until `close`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        subprocess.run(_mount(folder), check=True)
        self._folder = folder
        self._filler = folder / "filler"

    def fill(self) -> None:
        with self._filler.open("wb", buffering=0) as file:
            for size in (1 << 20, 4096):
                try:
                    while True:
                        file.write(b"\0" * size)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def make_room(self) -> None:
        self._filler.unlink()

    def close(self) -> None:
        # Lazily: a server that has just been killed may still be there for a moment.
        subprocess.run(["umount", "--lazy", str(self._folder)], check=True)
