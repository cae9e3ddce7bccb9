"""A job's progress as HTML: name, bar, counts. One look for live and saved output.

A pure function of `Progress`. No script, no style sheet, nothing loaded: styles are
inline, and only such as JupyterLab's sanitizer lets through, so that a notebook opened
again, or shown elsewhere, looks the same. Colours are JupyterLab's own variables with
fallbacks; text takes the page's colour, so dark and light both work. Where styles are
stripped altogether the text still reads in order.
"""

from __future__ import annotations

from html import escape

from nbsched.client.progress import Progress
from nbsched.display.wording import (
    STATES,
    Part,
    number,
    one_line,
    pace,
    parts,
    percent,
    total_words,
)

_BLUE = "var(--jp-brand-color1, #1976d2)"
_GREEN = "var(--jp-success-color1, #388e3c)"
_RED = "var(--jp-error-color1, #d32f2f)"
_FAINT = "rgba(128, 128, 128, 0.22)"
_GREY = "rgba(128, 128, 128, 0.75)"


def _stripes(first: str, second: str, angle: int, step: int) -> str:
    return (
        f"repeating-linear-gradient({angle}deg, {first} 0, {first} {step}px,"
        f" {second} {step}px, {second} {2 * step}px)"
    )


_FILLS = {
    "done": _BLUE,
    # Patterns, not only colours, tell the parts apart.
    "failed": _stripes(_RED, "rgba(255, 255, 255, 0.55)", 135, 2),
    "cancelled": _stripes(_GREY, "transparent", 90, 2),
    "running": _stripes(_BLUE, "rgba(128, 128, 128, 0.25)", 45, 3),
    "retrying": _stripes(_RED, _FAINT, 90, 3),
    "queued": _FAINT,
}

_STATE_COLOURS = {"succeeded": _GREEN, "failed": _RED}


def render(progress: Progress) -> str:
    """The whole view, as one ``div`` at most 900 px wide."""
    rows = [_head(progress), _bar(progress), _foot(progress)]
    if progress.note:
        rows.append(_note(progress.note))
    return (
        '<div class="nbsched-job" style="max-width: 860px; padding: 6px 2px; line-height: 1.5;'
        ' font-family: var(--jp-ui-font-family, system-ui, sans-serif); font-size: 13px">'
        + "".join(rows)
        + "</div>"
    )


def _head(progress: Progress) -> str:
    name = escape(one_line(progress.name) or progress.job)
    state = escape(STATES.get(progress.state, progress.state))
    colour = _STATE_COLOURS.get(progress.state, "inherit")
    done = percent(progress)
    return (
        '<div style="display: flex; flex-wrap: wrap; gap: 0 10px; align-items: baseline">'
        '<strong style="font-weight: 600; overflow-wrap: anywhere">' + name + "</strong> "
        '<span style="opacity: 0.6; font-size: 11px; font-family:'
        f' var(--jp-code-font-family, monospace)">{escape(progress.job)}</span> '
        f'<span style="margin-left: auto; font-weight: 600; color: {colour}">{state}</span> '
        + (f"<span>{done} %</span>" if done is not None else "")
        + "</div>"
    )


def _bar(progress: Progress) -> str:
    label = escape(one_line(progress.name) or progress.job, quote=True)
    spoken = escape(_spoken(progress), quote=True)
    # While more tasks may come the bar has no end, which ARIA says by leaving out the value.
    value = (
        f' aria-valuemin="0" aria-valuemax="{progress.total}" aria-valuenow="{progress.done}"'
        if progress.total is not None
        else ""
    )
    segments = "".join(_segment(part, progress) for part in parts(progress) if part.count)
    return (
        f'<div role="progressbar" aria-label="{label}"{value} aria-valuetext="{spoken}"'
        ' style="display: flex; gap: 1px; height: 8px; margin: 5px 0 6px; border-radius: 4px;'
        f' overflow: hidden">{segments or _empty(progress)}</div>'
    )


def _segment(part: Part, progress: Progress) -> str:
    return (
        f'<span title="{number(part.count)} {part.kind}" style="flex-grow: {part.count};'
        f' min-width: 3px; background: {_fill(part.kind, progress)}"></span>'
    )


def _empty(progress: Progress) -> str:
    kind = "done" if progress.finished else "queued"
    return f'<span style="flex-grow: 1; background: {_fill(kind, progress)}"></span>'


def _fill(kind: str, progress: Progress) -> str:
    return _GREEN if kind == "done" and progress.state == "succeeded" else _FILLS[kind]


def _foot(progress: Progress) -> str:
    counts = "".join(_count(part, progress) for part in parts(progress) if _named(part))
    times = " · ".join(pace(progress).values())
    return (
        '<div style="display: flex; flex-wrap: wrap; gap: 0 16px; font-size: 12px;'
        f' font-variant: tabular-nums">{counts}'
        f'<span style="margin-left: auto; opacity: 0.7">{times}</span></div>'
    )


def _named(part: Part) -> bool:
    return part.kind == "done" or part.count > 0


def _count(part: Part, progress: Progress) -> str:
    whole = f' <span style="opacity: 0.7">of {total_words(progress)}</span>'
    return (
        '<span style="white-space: nowrap"><span style="display: inline-block; width: 9px;'
        " height: 9px; margin-right: 5px; border-radius: 2px;"
        f' background: {_fill(part.kind, progress)}"></span>'
        f"{number(part.count)}{whole if part.kind == 'done' else ''} {part.kind}</span> "
    )


def _note(note: str) -> str:
    return (
        '<div style="margin-top: 3px; font-size: 12px; overflow-wrap: anywhere">'
        f'<span aria-hidden="true">⚠</span> {escape(one_line(note))}</div>'
    )


def _spoken(progress: Progress) -> str:
    counts = [
        f"{number(p.count)} {p.kind}" for p in parts(progress) if p.count and p.kind != "done"
    ]
    done = f"{number(progress.ok)} of {total_words(progress)} tasks done"
    return ", ".join([done, *counts])
