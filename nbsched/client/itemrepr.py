"""Short texts for items and results, which may be anything: a table's cell, not a dump.

Never calls the ``repr`` of something that could be huge: arrays and frames are told by
their shape, containers are cut by `reprlib` before they are written out.
"""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Callable, Iterable
from typing import Any

_MOST_CHARACTERS = 60
_MOST_BYTES = 64 * 1024 * 1024
"""Items are kept alive for their reprs only while they are likely to be smaller."""


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = _MOST_CHARACTERS
        self.maxlevel = 3

    def repr1(self, x: Any, level: int) -> str:
        shape = getattr(x, "shape", None)
        if isinstance(shape, tuple) and shape:
            return _shaped(x, shape)
        if isinstance(x, (bytes, bytearray, memoryview)) and len(x) > _MOST_CHARACTERS:
            return f"<{type(x).__name__} of {len(x):,} bytes>"
        if isinstance(x, str) and len(x) > 4 * _MOST_CHARACTERS:
            x = x[: 4 * _MOST_CHARACTERS]
        return super().repr1(x, level)


def _shaped(value: Any, shape: tuple[object, ...]) -> str:
    dtype = getattr(value, "dtype", None)
    kind = "" if dtype is None else f" {dtype}"
    return f"<{type(value).__name__} {'x'.join(map(str, shape))}{kind}>"


_short = _Short()


def short(value: object) -> str:
    """One line of at most 60 characters, whatever ``value`` is; never raises."""
    try:
        text = " ".join(_short.repr(value).split())
    except Exception:
        return f"<{type(value).__name__}>"
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 1] + "…"


def item_texts(iterables: tuple[Iterable[Any], ...]) -> Callable[[int], str] | None:
    """What tells each item of a ``map`` call, as far as its iterables can be looked at again.

    None for iterators, and for what is too large to be kept alive for this.
    """
    if not all(_can_be_kept(iterable) for iterable in iterables):
        return None
    if len(iterables) == 1:
        only: Any = iterables[0]
        return lambda index: short(only[index])
    several: Any = iterables
    return lambda index: short(tuple(each[index] for each in several))


def _can_be_kept(iterable: Any) -> bool:
    if isinstance(iterable, (range, str, bytes)):
        return True
    if isinstance(iterable, (list, tuple)):
        return not iterable or sys.getsizeof(iterable[0]) * len(iterable) <= _MOST_BYTES
    return isinstance(getattr(iterable, "nbytes", None), int) and iterable.nbytes <= _MOST_BYTES
