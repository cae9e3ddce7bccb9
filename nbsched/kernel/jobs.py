"""What a kernel keeps of a job: callable, policy and items, each unpickled once.

The daemon decides what is kept and dropped; there is no limit of its own here.
Unpickling runs the user's code, so it happens only where a task may fail or crash:
right before a task runs.
"""

from __future__ import annotations

import linecache
import pickle
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any

from nbsched.model import CallShape
from nbsched.payload import blocks, pickling


class Items:
    """One block of items."""

    def __init__(self, data: bytes) -> None:
        self._block = blocks.decode(data)
        self._scalars: list[Any] | None = None
        self._ends = tuple(accumulate(self._block.sizes))

    def get(self, index: int) -> Any:
        """Unpickle the item of task ``index``."""
        at = index - self._block.first
        if self._ends:
            end = self._ends[at]
            return pickle.loads(memoryview(self._block.data)[end - self._block.sizes[at] : end])
        if self._scalars is None:
            self._scalars = pickle.loads(self._block.data)
        return self._scalars[at]


class LoadedJob:
    """One job's callable and its blocks."""

    def __init__(self, job: str, call: CallShape, data: bytes) -> None:
        self.job = job
        self.blocks: dict[int, Items] = {}
        self._shape = call
        self._function: pickling.Function | None = pickling.load_function(data)
        self.cwd = self._function.cwd
        self.paths = self._function.paths
        self._fn: Callable[..., Any] | None = None
        self._policy: Any = None

    @property
    def loaded(self) -> bool:
        """Whether the callable has been unpickled."""
        return self._fn is not None

    def function(self) -> Callable[..., Any]:
        """The callable, unpickled at the first call. Raises what unpickling raises."""
        if self._fn is None:
            function = self._function
            assert function is not None, "it is dropped once the callable is there"
            remember_sources(function.sources)
            fn: Callable[..., Any] = pickle.loads(function.pickle)
            self._policy = None if function.retry is None else pickle.loads(function.retry)
            self._fn = fn
            self._function = None
        return self._fn

    @property
    def policy(self) -> Any:
        """The retry policy or None; there once `function` has been called."""
        return self._policy

    def call(self, fn: Callable[..., Any], item: Any) -> Any:
        """The task itself."""
        if self._shape == "one":
            return fn(item)
        if self._shape == "star":
            return fn(*item)
        return fn(*item[0], **item[1])  # "apply"


def remember_sources(sources: Mapping[str, str]) -> None:
    """Let tracebacks show lines of files that exist only where the job came from."""
    for name, text in sources.items():
        lines = text.splitlines(keepends=True)
        # Without a modification time `linecache.checkcache` leaves the entry alone.
        linecache.cache[name] = (len(text), None, lines, name)
