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

from benchmarks.plan import WORKLOADS, Row
from benchmarks.systems import TITLES

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
ONLY_OURS = ("slow_daemon",)


def main(path: Path) -> None:
    results = json.loads(path.read_text())["results"]
    rows = [
        (row, workload)
        for workload, of_workload in WORKLOADS.items()
        for row in of_workload[:1]
        if workload not in ONLY_OURS and _median(results, "nbsched", workload, row.figure)
    ]
    figure, axes = plt.subplots(figsize=(10, 0.5 * len(rows) + 1.4), layout="constrained")
    for at, (row, workload) in enumerate(rows):
        _draw(axes, results, row, workload, at)
    axes.axvline(1, color="#222222", linewidth=1)
    low, high = _limits(axes)
    axes.axvspan(1, high, color="#2e7d32", alpha=0.06, zorder=0)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}" if x >= 1 else f"1/{1 / x:,.0f}")
    axes.set_yticks(range(len(rows)), [_short(row) for row, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(length=0)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    for at in range(1, len(rows)):
        axes.axhline(at - 0.5, color="#eeeeee", linewidth=0.8, zorder=0)
    axes.set_xlabel("nbsched is so many times as fast as … (right of the line: faster)")
    present = [name for name in COLOURS if any(each["system"] == name for each in results)]
    handles = [
        plt.Line2D([], [], color=COLOURS[n], marker=SHAPES[n], linestyle="", label=TITLES[n])
        for n in present
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=6, frameon=False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.savefig(path.with_suffix(".svg"), facecolor="white", metadata={"Date": None})


def _draw(axes: plt.Axes, results: list[dict], row: Row, workload: str, at: int) -> None:
    """One row: a point for each peer that has a figure, a little apart from each other."""
    ours = _median(results, "nbsched", workload, row.figure)
    drawn = 0
    for number, name in enumerate(COLOURS):
        theirs = _median(results, name, workload, row.figure)
        if theirs and ours:
            ratio = theirs / ours if row.less else ours / theirs
            height = at + (number - 2.5) * 0.13
            axes.scatter(ratio, height, color=COLOURS[name], marker=SHAPES[name], s=36, zorder=3)
            drawn += 1
    if not drawn:
        axes.text(1.15, at, "no other system has a figure", va="center", color="#555555")


def _short(row: Row) -> str:
    """The title without its unit."""
    title = row.title.replace("`", "").replace(", default settings", ", default")
    return title.rpartition(", ")[0] if ", " in title else title


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
