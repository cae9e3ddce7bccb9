"""A pickle and, beside it, the large buffers that it refers to (pickle protocol 5).

So that an array is copied where it is stored and nowhere before. A frame without such
buffers is the pickle itself. One with them begins with `_MAGIC`, which no pickle does:

    magic 4s | number of buffers I | size of the pickle Q | size of each buffer Q …
    | the pickle | the buffers, each at a multiple of 64 bytes from the start

Numbers are little-endian. 64 is what array libraries want for the address of their data.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

Chunk: TypeAlias = bytes | memoryview
"""A stretch of bytes. A memoryview is the user's own memory: write or copy it before
his code runs again."""

ALIGNMENT = 64
APART_BYTES = 64 * 1024
"""Smaller buffers lie in the pickle: there a copy costs less than the bookkeeping."""
_MAGIC = b"NBF5"
_HEAD = struct.Struct("<4sI")
_LENGTH = struct.Struct("<I")

Callback: TypeAlias = Callable[[pickle.PickleBuffer], bool]
"""Whether a buffer is to lie in the pickle."""


class Frame:
    """Bytes in several stretches, not joined yet."""

    __slots__ = ("chunks", "nbytes")

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self.chunks = tuple(chunks)
        self.nbytes = sum(map(len, chunks))

    def join(self) -> bytes:
        """The same in one piece, which is nobody else's."""
        if len(self.chunks) == 1 and isinstance(self.chunks[0], bytes):
            return self.chunks[0]
        return b"".join(self.chunks)


def dump(make_pickle: Callable[[Callback], bytes]) -> Frame:
    """The frame of what ``make_pickle`` pickles with the ``buffer_callback`` it is given."""
    buffers: list[memoryview] = []

    def keep_inside(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < APART_BYTES:
            return True
        buffers.append(raw)
        return False

    data = make_pickle(keep_inside)
    return _frame(data, buffers) if buffers else Frame((data,))


def has_buffers(data: Chunk) -> bool:
    """Whether this is a frame, or its first chunk, with buffers beside the pickle."""
    return data[:4] == _MAGIC


def _frame(data: bytes, buffers: Sequence[memoryview]) -> Frame:
    sizes = (len(data), *(buffer.nbytes for buffer in buffers))
    head = _HEAD.pack(_MAGIC, len(buffers)) + struct.pack(f"<{len(sizes)}Q", *sizes)
    chunks: list[Chunk] = [head, data]
    at = len(head) + len(data)
    for buffer in buffers:
        chunks += (bytes(-at % ALIGNMENT), buffer)
        at += -at % ALIGNMENT + buffer.nbytes
    chunks.append(bytes(-at % ALIGNMENT))  # what follows is aligned, too
    return Frame(chunks)


def load(data: bytes | memoryview) -> Any:
    """Unpickle a frame. Only for bytes whose envelope has been checked.

    Arrays lie in ``data`` itself where that can be written to, as a private mapping of
    a file can; else their bytes are copied, because whoever made them could write to them.
    """
    view = memoryview(data)
    if not has_buffers(view):
        return pickle.loads(view)
    _, count = _HEAD.unpack_from(view)
    sizes = struct.unpack_from(f"<{count + 1}Q", view, _HEAD.size)
    at = _HEAD.size + 8 * len(sizes)
    pickled = view[at : at + sizes[0]]
    at += sizes[0]
    buffers: list[bytearray | memoryview] = []
    for size in sizes[1:]:
        at += -at % ALIGNMENT
        part = view[at : at + size]
        buffers.append(bytearray(part) if part.readonly else part)
        at += size
    return pickle.loads(pickled, buffers=buffers)


# ---------------------------------------------------------------- what precedes them


def lead(head: bytes) -> tuple[bytes, ...]:
    """A head as it stands before pickles, whose first byte is aligned behind it."""
    return _LENGTH.pack(len(head)), head, bytes(-(_LENGTH.size + len(head)) % ALIGNMENT)


def split(data: bytes | memoryview) -> tuple[memoryview, memoryview]:
    """The head and what follows `lead`."""
    view = memoryview(data)
    (length,) = _LENGTH.unpack_from(view)
    end = _LENGTH.size + length
    return view[_LENGTH.size : end], view[end + -end % ALIGNMENT :]
