"""Stories in processes of their own, where the product may be patched and hashes are
the same every time. For tests; knows only the command line of `support.sim`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Played:
    """How it ended, and what was printed."""

    fine: bool
    text: str


def play_apart(arguments: Sequence[str]) -> Played:
    """Run ``python -m support.sim`` with these arguments."""
    paths = [str(_ROOT), str(_ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    ended = subprocess.run(
        [sys.executable, "-m", "support.sim", *arguments],
        env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if ended.returncode not in (0, 1):
        raise AssertionError(f"the simulation itself failed:\n{ended.stdout}")
    return Played(ended.returncode == 0, ended.stdout)
