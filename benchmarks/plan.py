"""Which workloads there are, what their rows are called, and what nbsched aims at."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """One row of the table: a figure of a workload.

    ``aim`` is in the figure's unit, and "at most" or "at least" as ``less`` says; None where
    there is none.
    """

    title: str
    figure: str
    less: bool = False
    aim: float | None = None


WORKLOADS: dict[str, tuple[Row, ...]] = {
    "cold": (Row("cold start to first result, s", "s", less=True, aim=1.0),),
    "join": (Row("joining a running cluster, s", "s", less=True, aim=0.1),),
    "submit": (
        Row("submit, there and back, median, ms", "p50 ms", less=True, aim=1.5),
        Row("the same, 99th percentile, ms", "p99 ms", less=True),
    ),
    "tiny": (Row("10,000 tiny tasks, default settings, per s", "per s", aim=100_000),),
    "many": (Row("100,000 tiny tasks, default settings, per s", "per s", aim=1_000_000),),
    "many_best": (Row("100,000 tiny tasks, best batching, per s", "per s", aim=1_000_000),),
    "most": (Row("1,000,000 tiny tasks, default settings, per s", "per s", aim=1_000_000),),
    "most_best": (Row("1,000,000 tiny tasks, best batching, per s", "per s", aim=1_000_000),),
    "futures": (Row("100,000 futures, each asked, us each", "us each", less=True, aim=10),),
    "arrays": (Row("200 arrays of 1 MiB, in and out, MiB/s", "MiB/s", aim=700),),
    "closure": (Row("callable with 64 MiB, 40 tasks, s", "s", less=True, aim=0.3),),
    "asleep": (Row("tasks of 50 ms asleep, of ideal", "of ideal", aim=0.99),),
    "busy": (Row("tasks of 50 ms busy, of ideal", "of ideal", aim=0.96),),
    "short_asleep": (Row("tasks of 5 ms asleep, of ideal", "of ideal", aim=0.92),),
    "short_busy": (Row("tasks of 5 ms busy, of ideal", "of ideal"),),
    "tail": (Row("long tail, of the ideal that knows", "of ideal", aim=0.86),),
    "cancel": (Row("cancel a sleeping task, to the slot's next, s", "s", less=True, aim=0.1),),
    "beside": (Row("one-task job beside a million-task job, p99 ms", "p99 ms", less=True, aim=50),),
    "jobs": (Row("1,000 jobs of one task, 16 threads, per s", "per s"),),
    "slow_daemon": (Row("8 daemons, one 10 times slower, of ideal", "of ideal", aim=0.9),),
}

QUICK_SYSTEMS = ("nbsched", "dask", "joblib")
QUICK_WORKLOADS = (
    "cold",
    "submit",
    "tiny",
    "many",
    "many_best",
    "arrays",
    "closure",
    "asleep",
    "busy",
    "tail",
    "cancel",
)

SMOKE_ALIKE = ("many_best", "busy")
"""Of these, so like others that they show nothing more of whether everything runs."""

LIMIT_S = 60
"""For one workload; a system that takes longer is not waited for, and the table says so."""
START_AND_STOP_S = 20
"""What a system may take for these besides."""
FORETOLD_BY = {
    "many": (100_000, ("tiny",)),
    "futures": (100_000, ("tiny",)),
    "most": (1_000_000, ("many", "tiny")),
    "most_best": (1_000_000, ("many_best",)),
}
"""Tasks of a workload, and smaller ones of its kind: whoever would be over the limit at their
rate is not tried."""
