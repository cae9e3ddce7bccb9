"""Short texts for items and results, which may be anything: a table's cell, not a dump.

Never calls the ``repr`` of something that could be huge: arrays and frames are told by
their shape, containers are cut by `reprlib` before they are written out. Clients and
kernels use the same, so that an item reads alike wherever it is told.
"""

from __future__ import annotations

import reprlib
from typing import Any

_MOST_CHARACTERS = 60


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
