"""Counts, numbers and durations as people read them; shared by text and HTML.

Pure functions of `Progress`. Knows nothing of a terminal or a browser.
"""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass

from nbsched.client.progress import Progress

STATES = {
    "waiting": "waiting",
    "running": "running",
    "succeeded": "✓ succeeded",
    "failed": "✗ failed",
    "cancelled": "⊘ cancelled",
    "incomplete": "◐ incomplete",
}
"""The sign says what colour alone must not."""

SIGNS = {
    "queued": "· queued",
    "running": "▸ running",
    "retrying": "↻ retrying",
    "done": "✓ done",
    "failed": "✗ failed",
    "cancelled": "⊘ cancelled",
}
"""The same for single tasks."""


@dataclass(frozen=True)
class Part:
    """Some of a job's tasks that are in the same situation."""

    kind: str
    """done (succeeded), failed, cancelled, running, retrying or queued."""
    count: int


def parts(progress: Progress) -> tuple[Part, ...]:
    """All tasks known so far, split without overlap, in the order of a bar.

    Counts come from different sources and can be a moment apart: outcomes are facts,
    so where the rest does not fit in, the rest gives way.
    """
    counts = [
        ("done", progress.ok),
        ("failed", progress.failed),
        ("cancelled", progress.cancelled),
        ("running", progress.running),
        ("retrying", progress.retrying),
    ]
    left = known(progress)
    split = []
    for kind, count in counts:
        fitting = min(max(count, 0), left)
        split.append(Part(kind, fitting))
        left -= fitting
    return (*split, Part("queued", left))


def known(progress: Progress) -> int:
    """Tasks known so far: the total, or while items are being uploaded what is there."""
    return max(progress.done, progress.uploaded if progress.total is None else progress.total)


def total_words(progress: Progress) -> str:
    """``2,000``, or ``2,000+`` while more may come."""
    return number(known(progress)) + ("+" if progress.total is None else "")


def percent(progress: Progress) -> int | None:
    """Tasks that ended, rounded down: 100 means that all is well.

    None while more may come, and for a job that has not ended well: that 100 % of its
    tasks have ended is not what anybody would read there.
    """
    if progress.total is None or progress.state in ("failed", "cancelled"):
        return None
    return 100 if progress.finished else progress.done * 100 // progress.total


def pace(progress: Progress) -> dict[str, str]:
    """``rate``, ``elapsed`` and ``left`` in words, as far as each can be said."""
    words = {}
    if progress.ok + progress.failed and progress.elapsed_s > 0:
        words["rate"] = rate(progress.rate)
    if progress.elapsed_s > 0:
        words["elapsed"] = duration(progress.elapsed_s, exact=progress.finished)
    if progress.eta_s is not None and progress.state == "running":
        words["left"] = f"{duration(math.ceil(progress.eta_s))} left"
    return words


def facts(progress: Progress) -> str:
    """Rate, elapsed, what is left and workers in use, on one line."""
    times = pace(progress)
    if "elapsed" in times:
        words = "took {}" if progress.finished else "{} elapsed"
        times["elapsed"] = words.format(times["elapsed"])
    if progress.workers and not progress.finished:
        times["workers"] = f"{number(progress.workers)} worker{'s'[: progress.workers > 1]}"
    return " · ".join(times.values())


def count_words(part: Part, progress: Progress) -> str:
    """``1,237 of 2,000 done``, ``3 failed``."""
    whole = f" of {total_words(progress)}" if part.kind == "done" else ""
    return f"{number(part.count)}{whole} {part.kind}"


def spoken(progress: Progress) -> str:
    """The counts in a sentence, for those who do not see the bar."""
    counts = [
        f"{number(p.count)} {p.kind}" for p in parts(progress) if p.count and p.kind != "done"
    ]
    done = f"{number(progress.ok)} of {total_words(progress)} tasks done"
    return ", ".join([done, *counts])


def fill(kind: str, progress: Progress) -> str:
    """How the part of a bar is painted: its kind, but for the ends of a job."""
    if kind == "done" and progress.state == "succeeded":
        return "all-done"
    return "open-end" if kind == "queued" and progress.total is None else kind


def bar_state(progress: Progress) -> dict[str, object]:
    """A bar ready to draw, with what a screen reader says."""
    drawn = [p for p in parts(progress) if p.count or fill(p.kind, progress) == "open-end"]
    if not drawn:
        drawn = [Part("done" if progress.finished else "queued", 1)]
    return {
        "label": one_line(progress.name) or progress.job,
        "max": progress.total,
        "now": progress.done,
        "spoken": spoken(progress),
        "parts": [
            {"kind": p.kind, "fill": fill(p.kind, progress), "count": p.count or 1} for p in drawn
        ],
    }


def number(value: int) -> str:
    return f"{value:,}"


def rate(per_second: float) -> str:
    """``1,240/s``, ``2.5/s``, or ``12/min`` for what takes its time."""
    for factor, unit in ((1.0, "s"), (60.0, "min"), (3600.0, "h")):
        value = per_second * factor
        if value >= 1 or unit == "h":
            break
    return f"{value:,.0f}/{unit}" if value >= 10 else f"{value:.1f}/{unit}"


def duration(seconds: float, *, exact: bool = False) -> str:
    """``42 s``, ``1:05``, ``3:00:12``, ``2 d 03:04``; ``exact`` adds tenths below 10 s.

    Without it a running display changes once a second, not with every refresh.
    """
    if exact and seconds < 10:
        return f"{seconds:.1f} s"
    whole = math.floor(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, second = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{second:02}"
    hours, minute = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}:{minute:02}:{second:02}"
    days, hour = divmod(hours, 24)
    return f"{days} d {hour:02}:{minute:02}"


def one_line(text: str) -> str:
    """``text`` on one line and without control characters: names come from users, and
    must not move the cursor."""
    printable = "".join(" " if c.isspace() else c for c in text)
    return " ".join("".join(c for c in printable if unicodedata.category(c)[0] != "C").split())
