"""What a kernel keeps of a job: callable, policy and items, each unpickled once.

The daemon decides what is kept and dropped; there is no limit of its own here.
Unpickling runs the user's code, so it happens only where a task may fail or crash:
right before a task runs.
"""

from __future__ import annotations

import linecache
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from nbsched.model import CallShape
from nbsched.payload import blocks, frames, pickling
from nbsched.payload.sharedfolder import SharedFolder
from nbsched.shortrepr import short


@dataclass(frozen=True)
class SharedFile:
    """Bytes that lie in the shared folder. Every mapping is a fresh copy of them."""

    folder: SharedFolder
    name: str
    nbytes: int

    def map(self, start: int = 0, stop: int | None = None) -> memoryview:
        """Raises OSError when they are not there."""
        return self.folder.map(self.name, start, self.nbytes if stop is None else stop)


class Unreadable:
    """Stands for an item that could not be unpickled."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Items:
    """One block of items. Raises, when it is first looked at, what reading it raises."""

    def __init__(self, source: bytes | SharedFile) -> None:
        self._source = source
        self._read: blocks.Block | None = None
        self._base = 0
        self._ends: tuple[int, ...] = ()
        self._scalars: list[Any] | None = None

    def get(self, index: int) -> Any:
        """Unpickle the item of task ``index``."""
        block = self._block()
        if self._ends:
            return self._load(block, index - block.first)
        return self._all_scalars(block)[index - block.first]

    def some(self, start: int, stop: int) -> Iterator[Any] | Sequence[Any]:
        """The items of these tasks, each unpickled right before it is given, or an
        `Unreadable` in its place."""
        block = self._block()
        if not self._ends:
            return self._all_scalars(block)[start - block.first : stop - block.first]
        return self._unpickled(block, start - block.first, stop - block.first)

    def _unpickled(self, block: blocks.Block, start: int, stop: int) -> Iterator[Any]:
        for at in range(start, stop):
            try:
                item = self._load(block, at)
            except BaseException as error:
                item = Unreadable(error)
            yield item
            del item  # or it would live until the next one is asked for

    def _block(self) -> blocks.Block:
        if self._read is None:
            whole = self._source.map() if isinstance(self._source, SharedFile) else self._source
            self._read = blocks.decode(whole)
            self._base = len(whole) - len(self._read.data)
            self._ends = tuple(accumulate(self._read.sizes))
        return self._read

    def _load(self, block: blocks.Block, at: int) -> Any:
        end = self._ends[at]
        start = end - block.sizes[at]
        frame = block.data[start:end]
        if isinstance(self._source, SharedFile) and frames.has_buffers(frame):
            # A mapping of its own: what the task writes into its array is not the item.
            frame = self._source.map(self._base + start, self._base + end)
        return frames.load(frame)

    def _all_scalars(self, block: blocks.Block) -> list[Any]:
        if self._scalars is None:
            self._scalars = pickle.loads(block.data)
        return self._scalars


class LoadedJob:
    """One job's callable and its blocks."""

    def __init__(self, job: str, call: CallShape, source: bytes | SharedFile) -> None:
        self.job = job
        self.blocks: dict[int, Items] = {}
        self._shape = call
        self._source: bytes | SharedFile | None = source
        self._fn: Callable[..., Any] | None = None
        self._policy: Any = None
        self._function: pickling.Function | None = None

    @property
    def loaded(self) -> bool:
        """Whether the callable has been unpickled."""
        return self._fn is not None

    @property
    def cwd(self) -> str:
        """The client's working directory."""
        return self._head().cwd

    @property
    def paths(self) -> tuple[str, ...]:
        """The client's folders of modules."""
        return self._head().paths

    def function(self) -> Callable[..., Any]:
        """The callable, unpickled at the first call. Raises what reading it raises."""
        if self._fn is None:
            head = self._head()
            remember_sources(head.sources)
            fn: Callable[..., Any] = frames.load(head.pickle)
            self._policy = None if head.retry is None else pickle.loads(head.retry)
            self._fn = fn
            self._source = None
            self._function = head._replace(pickle=memoryview(b""), sources={})
        return self._fn

    def _head(self) -> pickling.Function:
        if self._function is None:
            source = self._source
            assert source is not None, "it is dropped once the callable is there"
            data = source.map() if isinstance(source, SharedFile) else source
            self._function = pickling.load_function(data)
        return self._function

    @property
    def policy(self) -> Any:
        """The retry policy or None; there once `function` has been called."""
        return self._policy

    def item_text(self, block: int, index: int) -> str:
        """A task's item in short; of a single call, its arguments. Raises what reading
        it raises."""
        item = self.blocks[block].get(index)
        return short(item[0] if self._shape == "apply" else item)

    def caller(self) -> Callable[[Any], Any]:
        """What runs a task, given its item. Raises what `function` raises."""
        fn = self.function()
        if self._shape == "one":
            return fn
        if self._shape == "star":
            return lambda item: fn(*item)
        return lambda item: fn(*item[0], **item[1])  # "apply"


def remember_sources(sources: Mapping[str, str]) -> None:
    """Let tracebacks show lines of files that exist only where the job came from."""
    for name, text in sources.items():
        lines = text.splitlines(keepends=True)
        # Without a modification time `linecache.checkcache` leaves the entry alone.
        linecache.cache[name] = (len(text), None, lines, name)
