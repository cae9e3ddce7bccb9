"""A job's progress as HTML: name, bar, counts. One look for live and saved output.

A pure function of `Progress`. No script, no style sheet, nothing loaded: styles are
inline, for JupyterLab strips style sheets from a notebook that it does not trust. It
strips variables and gradients too, so each colour is given twice: plain, then as
JupyterLab's own variable. Text takes the page's colour, so dark and light both work.
Where styles are stripped altogether the text still reads in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from types import MappingProxyType

from nbsched.client.progress import Progress, TaskRow
from nbsched.display.wording import (
    STATES,
    Part,
    duration,
    facts,
    fill,
    number,
    one_line,
    parts,
    percent,
    spoken,
    total_words,
)

_BLUE = "var(--jp-brand-color1, #1976d2)"
_GREEN = "var(--jp-success-color1, #388e3c)"
_RED = "var(--jp-error-color1, #d32f2f)"
_GREY = "rgba(128, 128, 128, 0.8)"
_MOST_TRACEBACK = 4_000
_PALE = "rgba(128, 128, 128, 0.5)"
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
    "all-done": _paint("#388e3c", _GREEN),
    "failed": _paint(
        "#d32f2f", f"{_stripes('transparent', 'rgba(0, 0, 0, 0.28)', 135, 2)}, {_RED}"
    ),
    "cancelled": _paint("#9e9e9e", _stripes(_GREY, _PALE, 135, 3)),
    "running": _paint("#90caf9", _stripes(_BLUE, _FAINT, 45, 3)),
    "retrying": _paint("#ef9a9a", _stripes(_RED, _FAINT, 90, 3)),
    "queued": _paint(_FAINT, _FAINT),
    # While more may come the bar fades out instead of ending.
    "open-end": _paint(_FAINT, f"linear-gradient(90deg, {_FAINT}, transparent)"),
}

# No colour of its own has enough contrast on light and on dark pages: so the page's is
# tinted. Where that is stripped the page's colour remains.
_GREEN_TEXT = "color: color-mix(in srgb, currentColor 35%, #388e3c)"
_RED_TEXT = "color: color-mix(in srgb, currentColor 35%, #d32f2f)"
_STATE_COLOURS = {
    "succeeded": f"; {_GREEN_TEXT}",
    "failed": f"; {_RED_TEXT}",
    "incomplete": f"; {_RED_TEXT}",
}


def render(
    progress: Progress,
    failed: Sequence[TaskRow] = (),
    tracebacks: Mapping[int, str] = MappingProxyType({}),
    *,
    token: str | None = None,
    seen_at: str = "",
) -> str:
    """The whole view, as one ``div`` at most 900 px wide.

    ``failed`` are the first tasks that have failed; ``token`` names the live display
    that takes this one's place in a page; ``seen_at`` is the time of a snapshot.
    """
    rows = [_head(progress), _bar(progress), _foot(progress)]
    if progress.note:
        rows.append(_note(progress.note))
    if failed:
        rows.append(_failures(failed, tracebacks, progress.failed))
    if seen_at and not progress.finished:
        rows.append(_snapshot(progress.job, seen_at))
    return frame("nbsched-job", "".join(rows), token)


def frame(name: str, inner: str, token: str | None) -> str:
    """The box around a display; two, so that the live view can take the inner one's place."""
    mark = f' data-nbsched="{escape(token, quote=True)}"' if token else ""
    return (
        f'<div class="nbsched"{mark}><div class="{name}" style="max-width: 860px;'
        " padding: 6px 2px; line-height: 1.5; font-family:"
        f' var(--jp-ui-font-family, system-ui, sans-serif); font-size: 13px">{inner}</div></div>'
    )


def failure_line(error: str) -> str:
    """What something has failed with, in one line."""
    return f'<span style="{_RED_TEXT}">✗ {escape(one_line(error))}</span>'


def _failures(rows: Sequence[TaskRow], tracebacks: Mapping[int, str], count: int) -> str:
    shown = "".join(_failure(row, tracebacks.get(row.index, "")) for row in rows)
    more = count - len(rows)
    if more > 0:
        shown += (
            f'<div style="padding: 3px 8px; opacity: 0.7">… and {number(more)} more;'
            " mf.failures() has them</div>"
        )
    return (
        '<div style="margin-top: 6px; border: 1px solid rgba(128, 128, 128, 0.35);'
        f' border-radius: 4px; font-size: 12px">{shown}</div>'
    )


def _failure(row: TaskRow, traceback: str) -> str:
    words = [f"task {row.index}"]
    words += [row.item] if row.item else []
    words += [f"attempt {row.attempt}"] if row.attempt > 1 else []
    words += [duration(row.elapsed_s, exact=True)] if row.elapsed_s is not None else []
    line = (
        f'<span style="opacity: 0.75">{escape(one_line(" · ".join(words)))}</span> '
        f"{failure_line(row.error)}"
    )
    style = 'style="padding: 3px 8px; overflow-wrap: anywhere"'
    if not traceback:
        return f"<div {style}>{line}</div>"
    text = traceback if len(traceback) <= _MOST_TRACEBACK else "…" + traceback[-_MOST_TRACEBACK:]
    return (
        f'<details {style}><summary style="cursor: pointer">{line}</summary>'
        '<pre style="margin: 4px 0; max-height: 240px; overflow: auto; font-size: 11px;'
        f' white-space: pre-wrap">{escape(text)}</pre></details>'
    )


def _snapshot(job: str, seen_at: str) -> str:
    return (
        '<div style="margin-top: 3px; font-size: 12px; opacity: 0.7">As of '
        f"{escape(seen_at)}. See it live: <code>cluster.attach({escape(repr(job))})</code></div>"
    )


def _head(progress: Progress) -> str:
    name = escape(one_line(progress.name) or progress.job)
    state = escape(STATES.get(progress.state, progress.state))
    colour = _STATE_COLOURS.get(progress.state, "")
    done = percent(progress)
    return (
        '<div style="display: flex; flex-wrap: wrap; gap: 0 10px; align-items: baseline">'
        '<strong style="font-weight: 600; overflow-wrap: anywhere">' + name + "</strong> "
        '<span style="opacity: 0.7; font-size: 11px; font-family:'
        f' var(--jp-code-font-family, monospace)">{escape(progress.job)}</span> '
        f'<span style="margin-left: auto; font-weight: 600{colour}">{state}</span> '
        + (f"<span>{done} %</span>" if done is not None else "")
        + "</div>"
    )


def _bar(progress: Progress) -> str:
    label = escape(one_line(progress.name) or progress.job, quote=True)
    words = escape(spoken(progress), quote=True)
    # While more tasks may come the bar has no end, which ARIA says by leaving out the value.
    value = (
        f' aria-valuemin="0" aria-valuemax="{progress.total}" aria-valuenow="{progress.done}"'
        if progress.total is not None
        else ""
    )
    segments = "".join(_segment(part, progress) for part in parts(progress))
    return (
        f'<div role="progressbar" aria-label="{label}"{value} aria-valuetext="{words}"'
        ' style="display: flex; gap: 1px; height: 8px; margin: 5px 0 6px; border-radius: 4px;'
        f' overflow: hidden">{segments or _empty(progress)}</div>'
    )


def _segment(part: Part, progress: Progress) -> str:
    open_end = part.kind == "queued" and progress.total is None
    if not part.count and not open_end:
        return ""
    return (
        f'<span title="{number(part.count)} {part.kind}" style="flex-grow: {part.count};'
        f' min-width: {60 if open_end else 4}px; {_FILLS[fill(part.kind, progress)]}"></span>'
    )


def _empty(progress: Progress) -> str:
    kind = "done" if progress.finished else "queued"
    return f'<span style="flex-grow: 1; {_FILLS[fill(kind, progress)]}"></span>'


def _foot(progress: Progress) -> str:
    counts = "".join(_count(part, progress) for part in parts(progress) if _named(part))
    return (
        '<div style="display: flex; flex-wrap: wrap; gap: 0 16px; font-size: 12px;'
        f' font-variant: tabular-nums">{counts}'
        f'<span style="margin-left: auto; opacity: 0.7">{facts(progress)}</span></div>'
    )


def _named(part: Part) -> bool:
    return part.kind == "done" or part.count > 0


def _count(part: Part, progress: Progress) -> str:
    whole = f' <span style="opacity: 0.7">of {total_words(progress)}</span>'
    return (
        '<span style="white-space: nowrap"><span style="display: inline-block; width: 9px;'
        " height: 9px; margin-right: 5px; border-radius: 2px;"
        f' {_FILLS[fill(part.kind, progress)]}"></span>'
        f"{number(part.count)}{whole if part.kind == 'done' else ''} {part.kind}</span> "
    )


def _note(note: str) -> str:
    return (
        '<div style="margin-top: 3px; font-size: 12px; overflow-wrap: anywhere">'
        f'<span aria-hidden="true">⚠</span> {escape(one_line(note))}</div>'
    )
