"""The results as a picture: how many times as fast as each peer, workload by workload.

python -m benchmarks.plot RESULTS.json      # needs matplotlib
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from benchmarks.plan import WORKLOADS
from benchmarks.systems import NAMES, TITLES

COLOURS = {
    "dask": "#d55e00",
    "ray": "#0072b2",
    "ipyparallel": "#009e73",
    "joblib": "#cc79a7",
    "processpool": "#8a7a00",
    "pool": "#555555",
}
"""Told apart by people who do not see all colours (Okabe and Ito), and by their shapes."""
SHAPES = dict(zip(COLOURS, "osD^vP", strict=True))


def main(path: Path) -> None:
    results = json.loads(path.read_text())["results"]
    rows = [
        (row, workload)
        for workload, of_workload in WORKLOADS.items()
        for row in of_workload[:1]
        if _median(results, "nbsched", workload, row.figure) is not None
        and workload not in ("jobs", "slow_daemon", "most", "many_best", "most_best")
    ]
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(rows) + 1.6))
    for at, (row, workload) in enumerate(rows):
        ours = _median(results, "nbsched", workload, row.figure)
        for name in NAMES[1:]:
            theirs = _median(results, name, workload, row.figure)
            if theirs and ours:
                ratio = theirs / ours if row.less else ours / theirs
                axes.scatter(ratio, at, color=COLOURS[name], marker=SHAPES[name], s=42, zorder=3)
    axes.axvline(1, color="#222222", linewidth=1)
    axes.axvspan(1, 1e6, color="#2e7d32", alpha=0.06, zorder=0)
    axes.set_xscale("log")
    axes.set_xlim(*_limits(axes))
    axes.set_yticks(range(len(rows)), [row.title.partition(", ")[0] for row, _ in rows])
    axes.invert_yaxis()
    axes.grid(axis="both", color="#dddddd", linewidth=0.6)
    axes.set_xlabel("nbsched is so many times as fast (right of 1) as …")
    handles = [
        plt.Line2D([], [], color=COLOURS[n], marker=SHAPES[n], linestyle="", label=TITLES[n])
        for n in NAMES[1:]
        if any(each["system"] == n for each in results)
    ]
    axes.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.4, 1.12),
        ncols=6,
        frameon=False,
        fontsize=8,
        handletextpad=0.1,
        columnspacing=1.0,
    )
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.savefig(
        path.with_suffix(".svg"), bbox_inches="tight", facecolor="white", metadata={"Date": None}
    )


def _limits(axes: plt.Axes) -> tuple[float, float]:
    points = [float(x) for each in axes.collections for x, _ in each.get_offsets() if x]
    return min([*points, 0.5]) / 1.6, max([*points, 2.0]) * 1.6


def _median(results: list[dict], name: str, workload: str, figure: str) -> float | None:
    values = [
        each["figures"][figure]
        for each in results
        if each["system"] == name and each["workload"] == workload and "figures" in each
    ]
    return statistics.median(values) if values else None


if __name__ == "__main__":
    main(Path(sys.argv[1]))
