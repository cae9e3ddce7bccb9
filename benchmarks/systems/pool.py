"""multiprocessing.Pool with two processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from typing import Any


class _Handle:
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def result(self, timeout: float | None = None) -> Any:
        return self.answer.get(timeout)


class System:
    name = "pool"

    def start(self) -> None:
        self.pool = multiprocessing.Pool(2)

    def map_default(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return self.pool.map(fn, items)

    def map_best(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return self.pool.map(fn, items, chunksize=max(1, len(items) // 50))

    def futures(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return [answer.get() for answer in [self.pool.apply_async(fn, (i,)) for i in items]]

    def submit(self, fn: Callable[..., Any], *args: Any) -> _Handle:
        return _Handle(self.pool.apply_async(fn, args))

    def stop(self) -> None:
        self.pool.terminate()
