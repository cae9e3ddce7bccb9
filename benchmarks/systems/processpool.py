"""concurrent.futures.ProcessPoolExecutor with two processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any


class System:
    name = "processpool"

    def start(self) -> None:
        self.executor = ProcessPoolExecutor(2)

    def map_default(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return list(self.executor.map(fn, items))

    def map_best(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return list(self.executor.map(fn, items, chunksize=max(1, len(items) // 50)))

    def futures(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return [f.result() for f in [self.executor.submit(fn, item) for item in items]]

    def submit(self, fn: Callable[..., Any], *args: Any) -> Future:
        return self.executor.submit(fn, *args)

    def cancel(self, future: Future) -> None:
        future.cancel()

    def stop(self) -> None:
        processes = list((self.executor._processes or {}).values())  # shutdown forgets them
        self.executor.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()
