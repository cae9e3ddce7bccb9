"""From results to a page: medians, spreads, and what the machine was."""

from __future__ import annotations

import os
import platform
import statistics
from pathlib import Path
from typing import Any

from benchmarks.plan import WORKLOADS, Row
from benchmarks.systems import NAMES, TITLES

Result = dict[str, Any]

_RESOURCES = (
    "CPU seconds of all processes of the system (client, servers, workers) per million tasks,"
    " and peak memory in MiB: client / largest other process / all together."
)
_NOTES = (
    "*none*: the system has no such thing. *best batching*: 50 batches, by the system's own"
    " option or by hand; nbsched's is the default. Arrays: 400 MiB in 200 tasks; both ways"
    " count. Memory is touched before the two workloads with large data, as a virtual machine"
    " may get it at its first touch only. Long tail: 95 tasks of 10 ms, then 5 of 1 s; who"
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
    present = [name for name in NAMES if any(each["system"] == name for each in results)]
    about = (
        f"{run['machine']}; {run['date']}; {run['rounds']} rounds, the systems in turn,"
        f" {run['minutes']:g} minutes. Two workers each. Medians, and in brackets the least and"
        " the greatest. Compare within a row only: all of it is one run on one machine."
    )
    lines = ["# How fast, beside others", "", about, ""]
    versions = ", ".join(_named(name, run["versions"]) for name in present)
    lines += [f"Versions: {versions}.", "", *table(results, present), ""]
    lines += ["## CPU and memory", "", _RESOURCES, "", *resources(results, present), "", _NOTES, ""]
    return "\n".join(lines)


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
    if value >= 1000:
        digits = len(str(int(value))) - 3
        return f"{round(value / 10**digits) * 10**digits:,}"
    return f"{value:.3g}"


def resources(results: list[Result], present: list[str]) -> list[str]:
    tasks = {"many": 100_000, "many_best": 100_000, "most": 1_000_000, "most_best": 1_000_000}
    titles = {name: WORKLOADS[name][0].title.removesuffix(", per s") for name in tasks}
    lines = [
        "| | " + " | ".join(TITLES[name] for name in present) + " |",
        "|---" * (len(present) + 1) + "|",
    ]
    for workload, count in tasks.items():
        mine = [r for r in results if r["workload"] == workload and "cpu_s" in r]
        if not mine:
            continue
        cpu, memory = [], []
        for name in present:
            found = [r for r in mine if r["system"] == name]
            if not found:
                cpu.append("")
                memory.append("")
                continue
            seconds = statistics.median(r["cpu_s"] for r in found)
            cpu.append(number(seconds * 1e6 / count))
            peaks = found[-1]["peak_mib"]
            memory.append(" / ".join(f"{peaks[key]:,.0f}" for key in peaks))
        lines.append(f"| {titles[workload]}: CPU s per million | " + " | ".join(cpu) + " |")
        lines.append(f"| {titles[workload]}: peak MiB | " + " | ".join(memory) + " |")
    return lines
