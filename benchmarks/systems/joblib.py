"""joblib with loky, its default: two worker processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor


class System:
    name = "joblib"

    def start(self) -> None:
        self.parallel = Parallel(n_jobs=2)

    @cached_property
    def executor(self) -> Any:
        return get_reusable_executor(max_workers=2)

    def map_default(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return self.parallel(delayed(fn)(item) for item in items)

    def map_best(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        size = max(1, len(items) // 50)
        return Parallel(n_jobs=2, batch_size=size)(delayed(fn)(item) for item in items)

    def futures(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return [future.result() for future in [self.executor.submit(fn, item) for item in items]]

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self.executor.submit(fn, *args)

    def cancel(self, future: Any) -> None:
        future.cancel()

    def stop(self) -> None:
        get_reusable_executor().shutdown(kill_workers=True)
