"""A job's progress as HTML: name, bar, counts. One look for live and saved output.

A pure function of `Progress`. No script, no style sheet, nothing loaded: styles are
inline, for JupyterLab strips style sheets from a notebook that it does not trust. It
strips variables and gradients too, so each colour is given twice: plain, then as
JupyterLab's own variable. Text takes the page's colour, so dark and light both work.
Where styles are stripped altogether the text still reads in order.
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
_GREY = "rgba(128, 128, 128, 0.8)"
_FAINT = "rgba(128, 128, 128, 0.26)"


def _stripes(first: str, second: str, angle: int, step: int) -> str:
    return (
        f"repeating-linear-gradient({angle}deg, {first} 0, {first} {step}px,"
        f" {second} {step}px, {second} {2 * step}px)"
    )


def _paint(plain: str, fill: str) -> str:
    return f"background-color: {plain}; background: {fill}"


# Patterns, not only colours, tell the parts apart.
_FILLS = {
    "done": _paint("#1976d2", _BLUE),
    "all done": _paint("#388e3c", _GREEN),
    "failed": _paint(
        "#d32f2f", f"{_stripes('transparent', 'rgba(0, 0, 0, 0.28)', 135, 2)}, {_RED}"
    ),
    "cancelled": _paint("#9e9e9e", _stripes(_GREY, "transparent", 90, 2)),
    "running": _paint("#90caf9", _stripes(_BLUE, _FAINT, 45, 3)),
    "retrying": _paint("#ef9a9a", _stripes(_RED, _FAINT, 90, 3)),
    "queued": _paint(_FAINT, _FAINT),
    # While more may come the bar fades out instead of ending.
    "open end": _paint(_FAINT, f"linear-gradient(90deg, {_FAINT}, transparent)"),
}

_STATE_COLOURS = {
    "succeeded": f"; color: #388e3c; color: {_GREEN}",
    "failed": f"; color: #d32f2f; color: {_RED}",
}


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
    colour = _STATE_COLOURS.get(progress.state, "")
    done = percent(progress)
    return (
        '<div style="display: flex; flex-wrap: wrap; gap: 0 10px; align-items: baseline">'
        '<strong style="font-weight: 600; overflow-wrap: anywhere">' + name + "</strong> "
        '<span style="opacity: 0.6; font-size: 11px; font-family:'
        f' var(--jp-code-font-family, monospace)">{escape(progress.job)}</span> '
        f'<span style="margin-left: auto; font-weight: 600{colour}">{state}</span> '
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
    segments = "".join(_segment(part, progress) for part in parts(progress))
    return (
        f'<div role="progressbar" aria-label="{label}"{value} aria-valuetext="{spoken}"'
        ' style="display: flex; gap: 1px; height: 8px; margin: 5px 0 6px; border-radius: 4px;'
        f' overflow: hidden">{segments or _empty(progress)}</div>'
    )


def _segment(part: Part, progress: Progress) -> str:
    open_end = part.kind == "queued" and progress.total is None
    if not part.count and not open_end:
        return ""
    fill = _FILLS["open end"] if open_end else _fill(part.kind, progress)
    return (
        f'<span title="{number(part.count)} {part.kind}" style="flex-grow: {part.count};'
        f' min-width: {60 if open_end else 4}px; {fill}"></span>'
    )


def _empty(progress: Progress) -> str:
    kind = "done" if progress.finished else "queued"
    return f'<span style="flex-grow: 1; {_fill(kind, progress)}"></span>'


def _fill(kind: str, progress: Progress) -> str:
    if kind == "done" and progress.state == "succeeded":
        return _FILLS["all done"]
    return _FILLS[kind]


def _foot(progress: Progress) -> str:
    counts = "".join(_count(part, progress) for part in parts(progress) if _named(part))
    times = pace(progress)
    if "elapsed" in times:
        times["elapsed"] = ("took {}" if progress.finished else "{} elapsed").format(
            times["elapsed"]
        )
    return (
        '<div style="display: flex; flex-wrap: wrap; gap: 0 16px; font-size: 12px;'
        f' font-variant: tabular-nums">{counts}'
        f'<span style="margin-left: auto; opacity: 0.7">{" · ".join(times.values())}</span></div>'
    )


def _named(part: Part) -> bool:
    return part.kind == "done" or part.count > 0


def _count(part: Part, progress: Progress) -> str:
    whole = f' <span style="opacity: 0.7">of {total_words(progress)}</span>'
    return (
        '<span style="white-space: nowrap"><span style="display: inline-block; width: 9px;'
        " height: 9px; margin-right: 5px; border-radius: 2px;"
        f' {_fill(part.kind, progress)}"></span>'
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
