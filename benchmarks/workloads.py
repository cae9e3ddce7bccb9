"""The work that every system is given, and what is measured of it.

A workload gets a running system and returns its figures; `UnableError` says that the system has
no way to do it. Sizes are in `Sizes`: the real ones, and small ones that only show that
everything runs.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks import guest

MIB = 1 << 20
Figures = dict[str, float]


class UnableError(Exception):
    """The system has no such thing."""


@dataclass(frozen=True)
class Sizes:
    submits: int = 300
    tiny: int = 10_000
    many: int = 100_000
    most: int = 1_000_000
    arrays: int = 200
    closure_mib: int = 64
    waits: int = 200
    short_waits: int = 1000
    tail_s: float = 1.0
    futures: int = 100_000
    beside_s: float = 20.0
    jobs: int = 1000
    slow_tasks: int = 10_000
    never_s: float = 5.0


SMOKE = Sizes(20, 200, 1000, 2000, 4, 1, 10, 20, 0.05, 200, 0.3, 32, 200, 1.0)


# ---------------------------------------------------------------- tasks


def identity(x: Any) -> Any:
    return x


def negate(x: int) -> int:
    return -x


def double(array: np.ndarray) -> np.ndarray:
    return array * 2


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def spin(seconds: float) -> float:
    """Keep a CPU busy, whoever else wants it: by CPU time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
    return seconds


def now(_: Any = None) -> float:
    return time.time()


def slow_on(pid: int, usual_s: float, _: int) -> int:
    """A task that takes ten times as long under the daemon with this pid."""
    daemon = os.getppid()
    time.sleep(usual_s * (10 if daemon == pid else 1))
    return daemon


# ---------------------------------------------------------------- workloads


def cold(system: Any, sizes: Sizes) -> Figures:
    """From the call that starts the system (everything is imported) to the first result."""
    started = time.perf_counter()
    system.start()
    assert system.map_default(negate, [-1]) == [1]
    return {"s": time.perf_counter() - started}


def join(system: Any, sizes: Sizes) -> Figures:
    """A second client of the running cluster, until its first result."""
    with guest.invited(system.name, system.address(), 0) as other:
        return {"s": other.answer()}


def submit(system: Any, sizes: Sizes) -> Figures:
    """One task, there and back, again and again."""
    _result(system.submit(negate, 1))
    times = [
        _timed(lambda i=i: _result(system.submit(negate, -i)))[0] for i in range(sizes.submits)
    ]
    return {"p50 ms": _quantile(times, 0.5) * 1e3, "p99 ms": _quantile(times, 0.99) * 1e3}


def tiny(system: Any, sizes: Sizes) -> Figures:
    return _per_second(system.map_default, sizes.tiny)


def many(system: Any, sizes: Sizes) -> Figures:
    return _per_second(system.map_default, sizes.many)


def most(system: Any, sizes: Sizes) -> Figures:
    return _per_second(system.map_default, sizes.most)


def many_best(system: Any, sizes: Sizes) -> Figures:
    """With the best batching that the system offers; nbsched needs no help."""
    return _per_second(getattr(system, "map_best", system.map_default), sizes.many)


def most_best(system: Any, sizes: Sizes) -> Figures:
    return _per_second(getattr(system, "map_best", system.map_default), sizes.most)


def arrays(system: Any, sizes: Sizes) -> Figures:
    """Arrays of 1 MiB in and out. Every byte moves twice: both ways count."""
    items = [np.full(MIB // 8, float(i)) for i in range(sizes.arrays)]
    seconds, results = _timed(lambda: system.map_default(double, items))
    for i, array in enumerate(results):
        assert array[0] == 2.0 * i == array[-1]
    return {"MiB/s": 2 * sizes.arrays / seconds}


def closure(system: Any, sizes: Sizes) -> Figures:
    """A function that carries data, used by 40 tasks."""
    data = np.random.default_rng(1).random(sizes.closure_mib * MIB // 8)
    seconds, results = _timed(lambda: system.map_default(lambda i: float(data[i]), range(40)))
    assert results == [float(data[i]) for i in range(40)]
    return {"s": seconds}


def asleep(system: Any, sizes: Sizes) -> Figures:
    return _efficiency(system, sleep, 0.05, sizes.waits)


def busy(system: Any, sizes: Sizes) -> Figures:
    return _efficiency(system, spin, 0.05, sizes.waits)


def short_asleep(system: Any, sizes: Sizes) -> Figures:
    return _efficiency(system, sleep, 0.005, sizes.short_waits)


def short_busy(system: Any, sizes: Sizes) -> Figures:
    return _efficiency(system, spin, 0.005, sizes.short_waits)


def tail(system: Any, sizes: Sizes) -> Figures:
    """95 short tasks, then 5 long ones; the ideal knows that, and starts with those."""
    lengths = [sizes.tail_s / 100] * 95 + [sizes.tail_s] * 5
    seconds, _ = _timed(lambda: system.map_default(sleep, lengths))
    return {"of ideal": 3 * sizes.tail_s / seconds}


def cancel(system: Any, sizes: Sizes) -> Figures:
    """Both slots sleep for a minute, one of them is cancelled: until its next task runs."""
    sleepers = [system.submit(sleep, 60) for _ in range(2)]
    time.sleep(1)  # nothing tells for every system that they run
    follower = system.submit(now)
    cancelled_at = time.time()
    system.cancel(sleepers[0])
    try:
        return {"s": _result(follower, sizes.never_s) - cancelled_at}
    except Exception as error:
        raise UnableError(f"never (over {sizes.never_s:g} s)") from error


def futures(system: Any, sizes: Sizes) -> Figures:
    """A future for each task, and each asked for its result."""
    seconds, results = _timed(lambda: system.futures(identity, range(sizes.futures)))
    assert results == list(range(sizes.futures))
    return {"per s": sizes.futures / seconds, "us each": seconds / sizes.futures * 1e6}


def beside(system: Any, sizes: Sizes) -> Figures:
    """Jobs of one task by another client while a million tiny tasks run.

    For some seconds from the call on; where the large job ends sooner, it is run again.
    """
    over = threading.Event()

    def large() -> None:
        while not over.is_set():
            system.map_default(identity, range(sizes.most))

    # A system that is slow at it is left with the large job: the process ends anyway.
    thread = threading.Thread(target=large, daemon=True)
    with guest.invited(system.name, system.address(), sizes.beside_s) as other:
        other.answer()
        thread.start()
        other.go()
        times = other.answer()
        still_running = thread.is_alive()
        over.set()
        thread.join(10)
    assert still_running, "the large job failed"
    return {"p50 ms": _quantile(times, 0.5) * 1e3, "p99 ms": _quantile(times, 0.99) * 1e3}


def jobs(system: Any, sizes: Sizes) -> Figures:
    """Jobs of one task each, from 16 threads."""
    with ThreadPoolExecutor(16) as threads:
        seconds, results = _timed(
            lambda: list(
                threads.map(lambda i: _result(system.submit(negate, -i)), range(sizes.jobs))
            )
        )
    assert results == list(range(sizes.jobs))
    return {"per s": sizes.jobs / seconds}


def slow_daemon(system: Any, sizes: Sizes) -> Figures:
    """8 daemons of one kernel each, one of them 10 times slower; of the ideal for that."""
    slow = system.start_slow_among(8)
    task = partial(slow_on, slow, 0.02)
    assert system.map_default(negate, range(-100, 0)) == list(range(100, 0, -1))
    seconds, results = _timed(lambda: system.map_default(task, range(sizes.slow_tasks)))
    ideal = sizes.slow_tasks * 0.02 / 7.1
    return {"of ideal": ideal / seconds, "tasks on the slow one": results.count(slow)}


STARTING = {"cold": cold, "slow_daemon": slow_daemon}
"""These start the system themselves."""
RUNNING: dict[str, Callable[[Any, Sizes], Figures]] = {
    work.__name__: work
    for work in (
        join,
        submit,
        tiny,
        many,
        most,
        many_best,
        most_best,
        futures,
        arrays,
        closure,
        asleep,
        busy,
        short_asleep,
        short_busy,
        tail,
        cancel,
        beside,
        jobs,
    )
}
NEEDS = {
    "join": "join",
    "submit": "submit",
    "futures": "futures",
    "cancel": "cancel",
    "beside": "join",
    "jobs": "submit",
    "slow_daemon": "start_slow_among",
}
"""What a system must define for a workload, beyond the least of all."""
TASKS = {"tiny": "tiny", "many": "many", "many_best": "many", "most": "most", "most_best": "most"}
"""Workloads whose CPU time is reported by task, and the size that says how many there are."""
TOUCHES_MEMORY = {"arrays", "closure"}


# ---------------------------------------------------------------- measuring


def _per_second(run: Callable[..., list[Any]], count: int) -> Figures:
    items = list(range(count))
    seconds, results = _timed(lambda: run(identity, items))
    assert results == items
    return {"per s": count / seconds}


def _efficiency(system: Any, task: Callable[[float], float], seconds: float, n: int) -> Figures:
    took, _ = _timed(lambda: system.map_default(task, [seconds] * n))
    return {"of ideal": seconds * n / 2 / took}


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def _result(handle: Any, timeout: float | None = None) -> Any:
    get = getattr(handle, "result", None) or handle.get
    return get(timeout=timeout) if timeout is not None else get()


def _quantile(times: Sequence[float], q: float) -> float:
    if len(times) < 2:
        return max(times)
    return statistics.quantiles(times, n=100, method="inclusive")[round(q * 100) - 1]
