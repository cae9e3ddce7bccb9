"""Tests side by side (``pytest --numprocesses 4``): what stays together, and what begins first.

A group is what one process runs from its first test to its last, as its tests share what is
slow to start: each folder of `TOGETHER`, and elsewhere each file. Nothing here starts or
runs a test; pytest-xdist does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

TOGETHER = ("simulation", "chaos", "notebook")
"""Stories and trials use all CPUs by themselves; one JupyterLab and one browser are enough."""

ORDER = ("simulation/test_seeds.py", *TOGETHER, "integration", "contract", "unit")
"""What takes long begins first, and many short files are left to fill the end. A process is
given its next group with the last two tests of the one before, so none ends in a long test."""


def group_of(nodeid: str) -> str:
    """What the test is run together with."""
    file = nodeid.partition("::")[0]
    folder = _below_tests(file).partition("/")[0]
    return folder if folder in TOGETHER else file


def long_ones_first(items: list[pytest.Item]) -> None:
    """Sort in place; the order within a file stays."""
    items.sort(key=lambda item: _place(item.nodeid))


def _place(nodeid: str) -> int:
    path = _below_tests(nodeid.partition("::")[0])
    places = (at for at, part in enumerate(ORDER) if f"{path}/".startswith(f"{part}/"))
    return next(places, len(ORDER))


def _below_tests(file: str) -> str:
    return file.removeprefix("tests/")


def scheduler(config: pytest.Config, log: Callable[..., None]) -> Any:
    """What deals groups out to processes, in the order of the tests."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        # `--dist loadgroup` would do, but it adds the group to the name of every test.
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False
    return Groups(config, log)
