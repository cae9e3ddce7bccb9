"""Blocks: items packed so that a worker can pass them on without unpickling.

Scalars, and tuples of scalars, share one pickle: they have neither identity nor state,
so one task cannot disturb another through them. Everything else is pickled item by item,
so that no task sees what another did to a shared object and one unreadable item spoils
only itself.

Layout: length of the head (I) | head, msgpack of `_Head` | padding to a multiple of 64
| the pickles (see `frames`), one after another. So a reader takes what it needs from
a mapped file, and arrays are aligned.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import msgspec

from nbsched.errors import NotPicklableError
from nbsched.payload import frames, pickling
from nbsched.payload.frames import ALIGNMENT, Frame

MAX_ITEMS = 65536
"""Items in a block at most: a block of small integers is then of about the block size."""
MAX_WAIT_S = 0.1
"""A slow iterator's items are sent on after this long, not when a block is full."""
_RUN = 1024
"""Scalars are looked at so many at once."""
_LARGE = 1024


@dataclass(frozen=True)
class Packed:
    """A block to be stored: ``frame`` holds items ``first`` to ``first + count``."""

    first: int
    count: int
    frame: Frame


@dataclass(frozen=True)
class Block:
    """A block that was read.

    ``sizes`` is empty when ``data`` is one pickle of a list of scalars; else the frames
    of the single items lie in ``data`` one after another.
    """

    first: int
    count: int
    sizes: tuple[int, ...]
    data: memoryview


class _Head(msgspec.Struct, frozen=True, array_like=True):
    first: int
    count: int
    sizes: tuple[int, ...]


class InlineInput(msgspec.Struct, frozen=True, array_like=True):
    """A small job's whole input: the callable (see `pickling.Function`) and its blocks."""

    function: bytes
    blocks: tuple[bytes, ...]


def decode(data: bytes | memoryview) -> Block:
    """Read a block; the items stay where they are."""
    head, rest = frames.split(data)
    read = msgspec.msgpack.decode(head, type=_Head)
    return Block(read.first, read.count, read.sizes, rest)


def encode_inline(whole: InlineInput) -> bytes:
    return msgspec.msgpack.encode(whole)


def decode_inline(data: bytes | memoryview) -> InlineInput:
    return msgspec.msgpack.decode(data, type=InlineInput)


# ---------------------------------------------------------------- packing


def pack(
    items: Iterable[object], block_bytes: int, most_items: Callable[[], int] | None = None
) -> Iterator[Packed]:
    """Cut items into blocks of about ``block_bytes``, consuming them as it goes.

    ``most_items`` says how many items a block may have now, for callers that must not
    take too many at a time.

    A block whose data are not joined refers to the memory of an item: write it before
    the next one is asked for.

    Raises:
        NotPicklableError: names the index of the item that cannot be pickled.
    """
    packer = _Packer(block_bytes)
    limit = most_items or (lambda: MAX_ITEMS)
    source = _Source(items)
    while True:
        try:
            run = source.take(max(1, min(_RUN, limit() - packer.count)))
        except BaseException:
            if packer.count:
                yield packer.take()
            raise
        if not run:
            break
        yield from packer.add(run)
        if packer.full or packer.count >= limit() or packer.waits_for(MAX_WAIT_S):
            yield packer.take()
    if packer.count:
        yield packer.take()


class _Source:
    """Items in runs. A slow iterator gives short ones, so that nothing waits for it."""

    def __init__(self, items: Iterable[object]) -> None:
        # To read on in these never takes long, and never runs the user's code.
        self._at_hand = type(items) in (list, tuple, range)
        self._items = iter(items)
        self._error: BaseException | None = None

    def take(self, count: int) -> list[object]:
        """The next items; [] at the end. What the iterator raises comes behind the items
        that it has given."""
        if self._at_hand:
            return list(islice(self._items, count))
        if self._error is not None:
            raise self._error
        run: list[object] = []
        deadline = time.monotonic() + MAX_WAIT_S / 4
        try:
            for item in islice(self._items, count):
                run.append(item)
                if _goes_alone(item) or time.monotonic() > deadline:
                    break
        except BaseException as error:
            if not run:
                raise
            self._error = error
        return run


class _Packer:
    """The block being filled: scalars as long as there are only scalars."""

    def __init__(self, limit: int) -> None:
        self._first = 0
        self._limit = limit
        self._scalars: list[object] = []
        self._pickles: list[bytes] = []
        self._bytes = 0
        self._opened_at = 0.0

    @property
    def count(self) -> int:
        return len(self._scalars) or len(self._pickles)

    @property
    def full(self) -> bool:
        return self._bytes >= self._limit

    def waits_for(self, seconds: float) -> bool:
        return bool(self.count) and time.monotonic() - self._opened_at > seconds

    def add(self, run: Sequence[object]) -> Iterator[Packed]:
        """Take items in; gives the blocks that are full before all are in."""
        if not self.count:
            self._opened_at = time.monotonic()
        if not self._pickles:
            size = _size_of_scalars(run)
            if size is not None and size <= 2 * self._limit:
                self._scalars += run
                self._bytes += size
                return
            self._pickles = list(map(_pickled, self._scalars))
            self._bytes = sum(map(len, self._pickles))
            self._scalars = []
        for item in run:
            frame = self._pack(item)
            if frame.nbytes >= self._limit:
                if self._pickles:
                    yield self.take()
                yield self._alone(frame)
                continue
            self._pickles.append(frame.join())
            self._bytes += frame.nbytes
            if self.full:
                yield self.take()

    def _pack(self, item: object) -> Frame:
        try:
            return pickling.pack(item)
        except Exception as error:
            index = self._first + self.count
            raise NotPicklableError(pickling.explain_item(item, index, error)) from error

    def take(self) -> Packed:
        """The block as it stands; the next one begins behind it."""
        sizes: tuple[int, ...] = ()
        if self._scalars:
            count, data = len(self._scalars), _pickled(self._scalars)
        else:
            pickles = self._pickles
            if any(map(frames.has_buffers, pickles)):
                pickles = [data + bytes(-len(data) % ALIGNMENT) for data in pickles]
            count, sizes, data = len(pickles), tuple(map(len, pickles)), b"".join(pickles)
        self._scalars, self._pickles, self._bytes = [], [], 0
        return self._packed(count, sizes, Frame((data,)))

    def _alone(self, frame: Frame) -> Packed:
        """A large item, which is not copied, as a block of its own."""
        return self._packed(1, (frame.nbytes,), frame)

    def _packed(self, count: int, sizes: tuple[int, ...], data: Frame) -> Packed:
        head = msgspec.msgpack.encode(_Head(self._first, count, sizes))
        block = Packed(self._first, count, Frame((*frames.lead(head), *data.chunks)))
        self._first += count
        return block


def _goes_alone(item: object) -> bool:
    """Large, or something that whoever makes the items may change when he is asked for
    the next one."""
    kind = type(item)
    if kind is str or kind is bytes:
        return len(item) > _LARGE  # type: ignore[arg-type]
    if kind is tuple:
        return not pickling.SCALAR_TYPES.issuperset(map(type, item))  # type: ignore[call-overload]
    return kind not in pickling.SCALAR_TYPES


def _pickled(value: object) -> bytes:
    return pickle.dumps(value, protocol=pickling.PROTOCOL)


def _size_of_scalars(run: Sequence[object]) -> int | None:
    """About the bytes of their pickle, never far too little; None if they are no scalars."""
    kinds = set(map(type, run))
    inner: list[object] = []
    if tuple in kinds:
        kinds.discard(tuple)
        inner = list(chain.from_iterable(item for item in run if type(item) is tuple))
        kinds.update(map(type, inner))
    if not kinds <= pickling.SCALAR_TYPES:
        return None
    size = 5 * (len(run) + len(inner))
    if str in kinds or bytes in kinds:
        size += sum(len(item) for item in (*run, *inner) if isinstance(item, (str, bytes)))
    return size
