"""A job's progress as text: one line of a given width, and a longer repr.

Pure functions of `Progress`; who writes the line, and where, is
`nbsched.display.terminal`'s business.
"""

from __future__ import annotations

import unicodedata

from nbsched.client.progress import Progress
from nbsched.display.wording import (
    STATES,
    number,
    one_line,
    pace,
    parts,
    percent,
    total_words,
)

_MARKS = {
    "done": "█",
    "failed": "✗",
    "cancelled": "/",
    "running": "▒",
    "retrying": "↻",
    "queued": "·",
}
_ASCII_MARKS = {
    "done": "#",
    "failed": "x",
    "cancelled": "/",
    "running": "=",
    "retrying": "~",
    "queued": ".",
}
# What is dropped last stands first.
_RANKS = (
    "done", "state", "failed", "cancelled", "note", "bar", "left", "running", "elapsed", "retrying",
    "rate", "queued",
)  # fmt: skip

_BAR_CELLS = 24
_LEAST_BAR_CELLS = 8
_NAME_CELLS = 28
_NOTE_CELLS = 48


def line(progress: Progress, width: int = 80, *, ascii_only: bool = False) -> str:
    """One line, never wider than ``width`` cells.

    Where room is short the bar shrinks first, then words go, the least telling first;
    name, count and state stay longest.
    """
    fields = _fields(progress, ascii_only)
    bar_cells = _BAR_CELLS
    while True:
        text = _join(progress, fields, bar_cells, ascii_only)
        excess = cells(text) - width
        if excess <= 0:
            return text
        if bar_cells > _LEAST_BAR_CELLS:
            bar_cells = max(_LEAST_BAR_CELLS, bar_cells - excess)
            continue
        least = max([*fields, "bar"] if bar_cells else fields, key=_RANKS.index)
        if least == "bar":
            bar_cells = 0
        elif least == "state" or len(fields) == 1:
            return shorten(text, width, ascii_only=ascii_only)
        else:
            del fields[least]


def summary(progress: Progress, kind: str = "MapFuture") -> str:
    """The repr of a job: ``<MapFuture 'count' 2026…: 40/100 done, 2 failed, 3.0/s, running>``."""
    words = [*_counts(progress).values(), *pace(progress).values()]
    note = one_line(progress.note)
    words.append(progress.state + (f" ({note})" if note else ""))
    return f"<{kind} {one_line(progress.name)!r} {progress.job}: {', '.join(words)}>"


def bar(progress: Progress, width: int, *, ascii_only: bool = False) -> str:
    """A bar of exactly ``width`` cells; a single failed task still gets one."""
    marks = _ASCII_MARKS if ascii_only else _MARKS
    split = parts(progress)
    shares = apportion([part.count for part in split], width)
    drawn = "".join(marks[part.kind] * n for part, n in zip(split, shares, strict=True))
    return drawn or marks["done" if progress.finished else "queued"] * width


def apportion(counts: list[int], width: int) -> list[int]:
    """Split ``width`` cells in proportion to ``counts``; what is there gets a cell at least.

    Returns zeros when there is nothing to split. ``width`` must have room for one each.
    """
    total = sum(counts)
    if not total:
        return [0] * len(counts)
    ideals = [count * width / total for count in counts]
    shares = [max(1, int(ideal)) if ideal else 0 for ideal in ideals]
    while sum(shares) < width:
        shares[max(range(len(counts)), key=lambda i: ideals[i] - shares[i])] += 1
    while sum(shares) > width:
        shares[shares.index(max(shares))] -= 1
    return shares


def cells(text: str) -> int:
    """Columns that ``text`` takes in a terminal."""
    return len(text) if text.isascii() else sum(map(_cells_of, text))


def _cells_of(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def shorten(text: str, width: int, *, ascii_only: bool = False) -> str:
    """``text`` cut to ``width`` cells, with an ellipsis when something is missing."""
    if cells(text) <= width:
        return text
    kept, left = 0, width - 1
    for character in text:
        left -= _cells_of(character)
        if left < 0:
            break
        kept += 1
    mark = "~" if ascii_only else "…"
    return text[:kept].rstrip() + mark if width > 0 else ""


def _fields(progress: Progress, ascii_only: bool) -> dict[str, str]:
    """The words behind the bar, in reading order."""
    state = progress.state
    fields = _counts(progress) | pace(progress)
    if not (state == "running" and "running" in fields):
        fields["state"] = state if ascii_only else STATES.get(state, state)
    if progress.note:
        fields["note"] = shorten(one_line(progress.note), _NOTE_CELLS, ascii_only=ascii_only)
    return fields


def _counts(progress: Progress) -> dict[str, str]:
    """Counts that are not zero, in words; the first is always there."""
    words = {p.kind: f"{number(p.count)} {p.kind}" for p in parts(progress) if p.count}
    return {**words, "done": f"{number(progress.ok)}/{total_words(progress)} done"}


def _join(progress: Progress, fields: dict[str, str], bar_cells: int, ascii_only: bool) -> str:
    done = percent(progress)
    name = one_line(progress.name) or progress.job
    start = [shorten(name, _NAME_CELLS, ascii_only=ascii_only)]
    if bar_cells:
        start.append(bar(progress, bar_cells, ascii_only=ascii_only))
    if done is not None:
        start.append(f"{done:3} %")
    text = "  ".join([*start, (", " if ascii_only else " · ").join(fields.values())])
    return text.encode("ascii", "replace").decode() if ascii_only else text
