"""Blocks: items packed so that a worker can pass them on without unpickling.

A block is msgpack of `Block`. Scalars share one pickle: they have neither identity
nor state, so one task cannot disturb another through them. Everything else is
pickled item by item, so that no task sees what another did to a shared object and
one unreadable item spoils only itself.
"""

from __future__ import annotations

import pickle
import sys
import time
from collections.abc import Callable, Iterable, Iterator

import msgspec

from nbsched.errors import NotPicklableError
from nbsched.payload import pickling

MAX_ITEMS = 16384
"""Items in a block at most: keeps a block of small integers near the block size."""
MAX_WAIT_S = 0.1
"""A slow iterator's items are sent on after this long, not when a block is full."""


class Block(msgspec.Struct, frozen=True, array_like=True):
    """Items ``first`` to ``first + count``.

    ``sizes`` is empty when ``data`` is one pickle of a list of scalars; else the
    pickles of the single items lie in ``data`` one after another.
    """

    first: int
    count: int
    sizes: tuple[int, ...]
    data: bytes


class InlineInput(msgspec.Struct, frozen=True, array_like=True):
    """A small job's whole input: the callable (see `pickling.Function`) and its blocks."""

    function: bytes
    blocks: tuple[bytes, ...]


def encode(block: Block | InlineInput) -> bytes:
    return msgspec.msgpack.encode(block)


def decode(data: bytes | memoryview) -> Block:
    return msgspec.msgpack.decode(data, type=Block)


def decode_inline(data: bytes | memoryview) -> InlineInput:
    return msgspec.msgpack.decode(data, type=InlineInput)


def pack(
    items: Iterable[object], block_bytes: int, most_items: Callable[[], int] | None = None
) -> Iterator[Block]:
    """Cut items into blocks of about ``block_bytes``, consuming them as it goes.

    ``most_items`` says how many items a block may have now, for callers that must not
    take too many at a time.

    Raises:
        NotPicklableError: names the index of the item that cannot be pickled.
    """
    packer = _Packer(block_bytes, most_items or (lambda: MAX_ITEMS))
    for item in items:
        packer.add(item)
        if packer.full:
            yield packer.take()
    if packer.count:
        yield packer.take()


class _Packer:
    """The block being filled: scalars as long as there are only scalars."""

    def __init__(self, limit: int, most_items: Callable[[], int]) -> None:
        self._first = 0
        self._limit = limit
        self._most_items = most_items
        self._scalars: list[object] = []
        self._pickles: list[bytes] = []
        self._bytes = 0
        self._opened_at = 0.0

    @property
    def count(self) -> int:
        return len(self._scalars) or len(self._pickles)

    @property
    def full(self) -> bool:
        return (
            self._bytes >= self._limit
            or self.count >= self._most_items()
            or time.monotonic() - self._opened_at > MAX_WAIT_S
        )

    def add(self, item: object) -> None:
        if not self.count:
            self._opened_at = time.monotonic()
        if type(item) in pickling.SCALAR_TYPES and not self._pickles:
            self._scalars.append(item)
            self._bytes += sys.getsizeof(item) // 2  # a pickle is about half the object
            return
        for scalar in self._scalars:
            self._pickles.append(pickle.dumps(scalar, protocol=pickling.PROTOCOL))
        self._scalars = []
        self._add_pickle(item)

    def _add_pickle(self, item: object) -> None:
        index = self._first + len(self._pickles)
        try:
            data = pickling.dumps(item)
        except Exception as error:
            raise NotPicklableError(pickling.explain_item(item, index, error)) from error
        self._pickles.append(data)
        self._bytes += len(data)

    def take(self) -> Block:
        """The block as it stands; the next one begins behind it."""
        if self._scalars:
            data = pickle.dumps(self._scalars, protocol=pickling.PROTOCOL)
            block = Block(self._first, len(self._scalars), (), data)
        else:
            sizes = tuple(map(len, self._pickles))
            block = Block(self._first, len(sizes), sizes, b"".join(self._pickles))
        self._first += block.count
        self._scalars, self._pickles, self._bytes = [], [], 0
        return block


def unpack_one(block: Block, index: int) -> memoryview:
    """The pickle of one item of a block that is not scalars; ``index`` is the task's."""
    at = sum(block.sizes[: index - block.first])
    return memoryview(block.data)[at : at + block.sizes[index - block.first]]
