"""Lists of records that read well: ``cluster.jobs()`` and ``cluster.workers()``.

A table is a list, so everything that works on a list works on it. It draws itself as
aligned text and as HTML, and `Table.filter` makes a smaller one. Which columns are
drawn, and in what words, is decided here; what the records hold, in `records`.
"""

from __future__ import annotations

import fnmatch
import time
import unicodedata
from collections.abc import Callable, Collection, Iterable
from html import escape
from typing import Any, ClassVar, Generic, SupportsIndex, TypeVar, overload

from nbsched._compat import Self
from nbsched.client.records import JobInfo, WorkerInfo
from nbsched.errors import ConfigurationError
from nbsched.model import JobState

R = TypeVar("R")

_MOST_ROWS = 100
"""A drawing stops there: a namespace can hold thousands of jobs."""
_MOST_CELLS = 40
_NUMBERS_RIGHT = "text-align: right; font-variant-numeric: tabular-nums"

Columns = dict[str, Callable[[Any], str]]
"""Heading, and what stands below it for a record. A column that is empty is left out."""


class Table(list[R], Generic[R]):
    """A list of records of one kind."""

    _columns: ClassVar[Columns] = {}
    _right: ClassVar[frozenset[str]] = frozenset()
    _fields: ClassVar[tuple[str, ...]] = ()
    _noun: ClassVar[str] = "row"

    def filter(self, predicate: Callable[[R], bool] | None = None, /, **wanted: object) -> Self:
        """Those records for which everything holds, in the same order.

        Args:
            predicate: a function of the record, e.g. ``lambda job: job.failed > 3``.
            wanted: fields of the record and their values. A set, list or tuple means
                any of its values; a text may be a pattern with ``*`` and ``?``; a
                function is asked about the field's value. ``tag="x"`` finds records
                that have this tag among others.

        Raises:
            ConfigurationError: there is no such field, or no such state.
        """
        for name, value in wanted.items():
            self._check(name, value)
        found = [
            record
            for record in self
            if (predicate is None or predicate(record))
            and all(_holds(record, name, value) for name, value in wanted.items())
        ]
        return type(self)(found)

    @overload
    def __getitem__(self, index: SupportsIndex) -> R: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: SupportsIndex | slice) -> R | Self:
        found = super().__getitem__(index)
        return type(self)(found) if isinstance(index, slice) else found  # type: ignore[arg-type, return-value]

    def __repr__(self) -> str:
        if not self:
            return f"no {self._noun}s"
        headings, rows = self._drawn()
        widths = [max(map(_cells, column)) for column in zip(headings, *rows, strict=True)]
        lines = []
        for cells in (headings, *rows):
            words = [
                _padded(cell, width, right=heading in self._right)
                for cell, width, heading in zip(cells, widths, headings, strict=True)
            ]
            lines.append("  ".join(words).rstrip())
        return "\n".join([*lines, *self._more()])

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    def _repr_html_(self) -> str:
        """The table for a notebook; takes its colours from the page, light or dark."""
        if not self:
            return f"<em>no {self._noun}s</em>"
        headings, rows = self._drawn()
        head = "".join(self._cell("th", heading, heading) for heading in headings)
        body = "".join(
            "<tr>"
            + "".join(self._cell("td", c, h) for h, c in zip(headings, cells, strict=True))
            + "</tr>"
            for cells in rows
        )
        more = "".join(
            f'<p style="margin: 4px 8px; opacity: 0.7">{escape(line)}</p>' for line in self._more()
        )
        return (
            '<div class="nbsched-table" style="max-width: 860px; overflow-x: auto; font-family:'
            ' var(--jp-ui-font-family, system-ui, sans-serif); font-size: 13px">'
            '<table style="border-collapse: collapse; color: inherit">'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}</div>"
        )

    # ------------------------------------------------------------ inside

    def _check(self, name: str, value: object) -> None:
        if name not in self._fields and not (name == "tag" and "tags" in self._fields):
            known = ", ".join(self._fields)
            raise ConfigurationError(f"A {self._noun} has no field {name!r}. Fields: {known}.")

    def _drawn(self) -> tuple[list[str], list[list[str]]]:
        """Headings and cells; columns in which nothing stands are left out."""
        shown = list(self)[:_MOST_ROWS]
        columns = {
            heading: [_clean(tell(record)) for record in shown]
            for heading, tell in self._columns.items()
        }
        columns = {heading: cells for heading, cells in columns.items() if any(cells)}
        return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]

    def _more(self) -> list[str]:
        hidden = len(self) - _MOST_ROWS
        return [f"… and {hidden:,} more; filter() or slice to see them"] if hidden > 0 else []

    def _cell(self, tag: str, text: str, heading: str) -> str:
        style = "padding: 3px 8px; white-space: nowrap; background: transparent; "
        style += _NUMBERS_RIGHT if heading in self._right else "text-align: left"
        line = "rgba(128, 128, 128, 0.4)"
        style += f"; border-bottom: 1px solid {line}"
        if tag == "th":
            return f'<th scope="col" style="{style}; font-weight: 600">{escape(text)}</th>'
        if heading == "id":
            style += "; font-family: var(--jp-code-font-family, monospace)"
        return f'<td style="{style}">{escape(text)}</td>'


class JobTable(Table[JobInfo]):
    """Jobs, newest first."""

    _noun = "job"
    _fields = JobInfo.__struct_fields__
    _right = frozenset({"done", "failed", "cancelled"})
    _columns: ClassVar[Columns] = {
        "id": lambda job: job.id,
        "name": lambda job: job.name,
        "state": lambda job: job.state,
        "done": lambda job: f"{job.done:,}/{'?' if job.total is None else f'{job.total:,}'}",
        "failed": lambda job: f"{job.failed:,}" if job.failed else "",
        "cancelled": lambda job: f"{job.cancelled:,}" if job.cancelled else "",
        "submitted": lambda job: age(time.time() - job.submitted.timestamp()),
        "from": lambda job: job.host,
        "tags": lambda job: ", ".join(job.tags),
        "note": lambda job: job.note,
    }

    def _check(self, name: str, value: object) -> None:
        super()._check(name, value)
        states = {state.value for state in JobState}
        if name == "state" and not callable(value):
            for word in _alternatives(value):
                if isinstance(word, str) and not _is_pattern(word) and word not in states:
                    raise ConfigurationError(
                        f"There is no state {word!r}. States: {', '.join(sorted(states))}."
                    )


class WorkerTable(Table[WorkerInfo]):
    """Members of the cluster, by host and id."""

    _noun = "worker"
    _fields = WorkerInfo.__struct_fields__
    _right = frozenset({"CPUs", "in use"})
    _columns: ClassVar[Columns] = {
        "id": lambda worker: worker.id,
        "host": lambda worker: worker.host,
        "CPUs": lambda worker: str(worker.cpus),
        "in use": lambda worker: "" if worker.in_use is None else str(worker.in_use),
        "python": lambda worker: worker.versions.get("python", worker.python),
        "role": lambda worker: ", ".join(
            word
            for word, holds in (("leads", worker.leader), ("draining", worker.draining))
            if holds
        ),
        "other versions": lambda worker: ", ".join(
            f"{name} {theirs} (here {ours})" for name, (theirs, ours) in worker.differs.items()
        ),
    }


def age(seconds: float) -> str:
    """``12 s ago``, ``5 min ago``, ``3 h ago``, ``2 d ago``."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} ago"
    return f"{max(0.0, seconds):.0f} s ago"


# ------------------------------------------------------------ what a filter means


def _holds(record: object, name: str, wanted: object) -> bool:
    if name == "tag":
        return any(_is(tag, wanted) for tag in record.tags)  # type: ignore[attr-defined]
    return _is(getattr(record, name), wanted)


def _is(value: object, wanted: object) -> bool:
    if callable(wanted):
        return bool(wanted(value))
    if value == wanted:
        return True
    return any(_matches(value, each) for each in _alternatives(wanted))


def _matches(value: object, wanted: object) -> bool:
    if isinstance(value, str) and isinstance(wanted, str) and _is_pattern(wanted):
        return fnmatch.fnmatchcase(value, wanted)
    return value == wanted


def _is_pattern(text: str) -> bool:
    return "*" in text or "?" in text


def _alternatives(wanted: object) -> Iterable[object]:
    plain = isinstance(wanted, (str, bytes)) or not isinstance(wanted, Collection)
    return (wanted,) if plain else wanted  # type: ignore[return-value]


# ------------------------------------------------------------ text in cells


def _clean(text: str) -> str:
    """On one line, no control characters, not too long: names come from users."""
    words = " ".join(text.split())
    words = "".join(c for c in words if unicodedata.category(c)[0] != "C")
    return words if len(words) <= _MOST_CELLS else words[: _MOST_CELLS - 1] + "…"


def _padded(text: str, width: int, *, right: bool) -> str:
    space = " " * (width - _cells(text))
    return space + text if right else text + space


def _cells(text: str) -> int:
    """Columns that ``text`` takes in a terminal."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))
