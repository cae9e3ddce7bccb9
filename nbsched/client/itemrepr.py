"""What a ``map`` call's items are called in tables: short texts, made when asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

from nbsched.shortrepr import short

_MOST_BYTES = 64 * 1024 * 1024
"""Items are kept alive for their reprs only while they are likely to be smaller."""


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
