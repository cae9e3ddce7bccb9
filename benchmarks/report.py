"""From results to a page: medians, spreads, and what the machine was."""

from __future__ import annotations

import os
import platform
import re
import statistics
from pathlib import Path
from typing import Any

from benchmarks.plan import WORKLOADS, Row
from benchmarks.systems import NAMES, TITLES

Result = dict[str, Any]

PEAKS = ("client", "largest other", "all")
_RESOURCES = (
    "CPU seconds of all processes of the system (client, servers, workers) per million tasks,"
    " and peak memory in MiB: client / largest other process / all together."
)
_NOTES = (
    "*none*: the system has no such thing. *best batching*: 50 batches, by the system's own"
    " option or by hand; nbsched's is the default. *over 60 s*: it took longer, or"
    " would have at the rate of a tenth of the size. *fails*: results.json has the reason."
    " Arrays: 200 MiB in and 200 MiB out are 400 MiB; both ways count."
    " Memory is touched before the two workloads with large data, as a virtual machine may get"
    " it at its first touch only. Beside a million-task job: for 20 s from its submission, by a"
    " client in another process. Long tail: 95 tasks of 10 ms, then 5 of 1 s; who"
    " does not know the lengths reaches 0.863 at best."
)


def machine() -> str:
    """CPU, cores, memory, kernel and Python, in one line."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.partition(":")[2].strip() for line in info.splitlines() if "model name" in line]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return (
        f"{models[0] if models else platform.machine()}, {cores} cores, {memory:.0f} GiB,"
        f" Linux {platform.release().partition('-')[0]}, Python {platform.python_version()}"
    )


def page(run: dict[str, Any]) -> str:
    results = run["results"]
    present = _present(results)
    lines = ["# How fast, beside others", "", about(run), "", *table(results, present), ""]
    lines += [_NOTES, "", "## CPU and memory", "", _RESOURCES, "", *resources(results, present)]
    lines += ["", *failures(results)]
    return "\n".join(lines)


def about(run: dict[str, Any]) -> str:
    """The machine, the versions, and how to read the table."""
    versions = ", ".join(_named(name, run["versions"]) for name in _present(run["results"]))
    warning = "**Tiny sizes: these figures say that it runs, and nothing else.** "
    return (
        f"{warning if run.get('smoke') else ''}{run['machine']}; {versions}; {run['date']};"
        f" rounds: {run['rounds']}, the systems in turn, {run['minutes']:g} minutes."
        " Two workers each. Medians, and in brackets the least and the greatest; bold"
        " where nbsched reaches its aim. Compare within a row only: all of it is one run"
        " on one machine."
    )


def _present(results: list[Result]) -> list[str]:
    return [name for name in NAMES if any(each["system"] == name for each in results)]


def _named(name: str, versions: dict[str, str]) -> str:
    return f"{TITLES[name]} {versions.get(name, '')}".strip()


def table(results: list[Result], present: list[str]) -> list[str]:
    """One line for each figure, one column for each system, and our aim."""
    lines = [
        "| | " + " | ".join(TITLES[name] for name in present) + " | aim |",
        "|---" * (len(present) + 2) + "|",
    ]
    for workload, rows in WORKLOADS.items():
        if any(each["workload"] == workload for each in results):
            for row in rows:
                cells = [cell(results, name, workload, row) for name in present]
                lines.append(f"| {row.title} | " + " | ".join(cells) + f" | {aim(row)} |")
    return lines


def cell(results: list[Result], name: str, workload: str, row: Row) -> str:
    mine = [r for r in results if r["system"] == name and r["workload"] == workload]
    values = [r["figures"][row.figure] for r in mine if "figures" in r]
    if not values:
        why = next((r.get("unable") or "fails" for r in mine), "")
        return str(why)
    text = number(statistics.median(values))
    if len(values) > 1:
        text += f" ({number(min(values))}-{number(max(values))})"
    if missing := len(mine) - len(values):
        text += f", {missing} of {len(mine)} rounds without"
    return f"**{text}**" if name == "nbsched" and reached(row, values) else text


def reached(row: Row, values: list[float]) -> bool:
    if row.aim is None:
        return False
    median = statistics.median(values)
    return median <= row.aim if row.less else median >= row.aim


def aim(row: Row) -> str:
    if row.aim is None:
        return ""
    return f"{'≤' if row.less else '≥'} {number(row.aim)}"


def number(value: float) -> str:
    """Three digits that matter, and commas."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if rounded >= 1000 else f"{rounded:.3g}"


def resources(results: list[Result], present: list[str]) -> list[str]:
    """CPU time and peak memory for the workloads that count their tasks."""
    lines = [
        "| | " + " | ".join(TITLES[name] for name in present) + " |",
        "|---" * (len(present) + 1) + "|",
    ]
    for workload, rows in WORKLOADS.items():
        mine = [r for r in results if r["workload"] == workload and r.get("tasks")]
        if mine:
            title = rows[0].title.removesuffix(", per s")
            of_each = [[r for r in mine if r["system"] == name] for name in present]
            cpu = [_cpu_s_per_million(found) for found in of_each]
            peaks = [_peaks(found) for found in of_each]
            lines.append(f"| {title}: CPU s | " + " | ".join(cpu) + " |")
            lines.append(f"| {title}: peak MiB | " + " | ".join(peaks) + " |")
    return lines


def _cpu_s_per_million(found: list[Result]) -> str:
    used = [r["cpu_s"] / r["tasks"] * 1e6 for r in found]
    return number(statistics.median(used)) if used else ""


def _peaks(found: list[Result]) -> str:
    """The greatest of all rounds."""
    if not found:
        return ""
    return " / ".join(f"{max(r['peak_mib'][of] for r in found):,.0f}" for of in PEAKS)


def failures(results: list[Result]) -> list[str]:
    """What each failure said, once for each system and workload."""
    said = {(r["system"], r["workload"]): r["failed"] for r in results if "failed" in r}
    if not said:
        return []
    lines = [
        f"- {TITLES[name]}, {WORKLOADS[workload][0].title}: {_without_paths(message)}"
        for (name, workload), message in said.items()
    ]
    return ["## What failed", "", *lines, ""]


def _without_paths(message: str) -> str:
    """As a path tells only where this machine has its files."""
    return re.sub(r"(?<![\w.])(/[\w.@+-]+){2,}", "…", message)


README_BEGINS, README_ENDS = "<!-- begin: benchmarks -->\n", "<!-- end: benchmarks -->"


def into_readme(readme: str, run: dict[str, Any]) -> str:
    """The README with the table of this run between its two marks."""
    before, begin, rest = readme.partition(README_BEGINS)
    _, end, after = rest.partition(README_ENDS)
    if not (begin and end):
        raise ValueError(
            f"The README lacks {README_BEGINS.strip()} and {README_ENDS}, so its table cannot"
            " be written. Put both on lines of their own where the table is to be."
        )
    results = run["results"]
    picture = "![nbsched beside the others](benchmarks/results.svg)"
    lines = [about(run), "", *table(results, _present(results)), "", _NOTES, "", picture, ""]
    shown = "\n".join(lines)
    return before + begin + "\n" + shown + "\n" + end + after
