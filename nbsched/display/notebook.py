"""A job in a notebook cell's output: one display, live first and static in the end.

Owns the output and what is published in it. While the job runs the output is
a widget (`nbsched.display.widget`), or without ipywidgets HTML that is published again.
When it has ended the output is replaced by HTML and text *without* the widget: a
reopened notebook has no model for a saved widget view and would show only an error.
"""

from __future__ import annotations

import sys
import uuid
from typing import Any

from nbsched.client.progress import Observable, Progress
from nbsched.display import html, text
from nbsched.display.widget import Panel, open_panel


def current_cell() -> str | None:
    """What identifies the running cell; None when there is no Jupyter kernel here.

    IPython is only looked for, never imported: where it is in use, it is there.
    """
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = get_ipython() if get_ipython is not None else None
    if getattr(shell, "kernel", None) is None:
        return None
    parent: dict[str, Any] = getattr(shell, "get_parent", dict)() or {}
    return str(parent.get("header", {}).get("msg_id", "kernel"))


def static_bundle(progress: Progress) -> dict[str, object]:
    """The job as any reader of the notebook can show it."""
    return {"text/plain": text.summary(progress), "text/html": html.render(progress)}


class Output:
    """One output in one cell: published once, then replaced in place."""

    def __init__(self) -> None:
        self._id = uuid.uuid4().hex
        self._bundle: dict[str, object] | None = None

    def publish(self, bundle: dict[str, object]) -> None:
        if bundle == self._bundle:
            return
        from IPython import display as ipython

        update = self._bundle is not None
        ipython.display(bundle, raw=True, display_id=self._id, update=update)  # type: ignore[no-untyped-call]
        self._bundle = bundle


class CellView:
    """A job in an output: the panel while it is live, then what stays."""

    def __init__(self, job: Observable, output: Output) -> None:
        self._job = job
        self._output = output
        self._panel: Panel | None = None

    def draw(self, progress: Progress) -> None:
        if self._panel is not None:
            self._panel.draw(progress)
            return
        self._panel = open_panel(self._job, progress)
        bundle = static_bundle(progress)
        if self._panel is not None:
            # Readers without widgets take the HTML of this moment.
            bundle |= self._panel.mimebundle()
        self._output.publish(bundle)

    def end(self, progress: Progress) -> None:
        self._output.publish(static_bundle(progress))
        if self._panel is not None:
            self._panel.close()
            self._panel = None
