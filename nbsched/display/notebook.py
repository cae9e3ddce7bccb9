"""A display in a notebook cell's output: static HTML that a page brings to life.

Owns the output and what is published in it. What is published is HTML and text, at the
beginning and when the subject has ended, so that a notebook says what it means whenever
it is saved. A live view is never part of it where that can be avoided: a reopened
notebook has no model for a saved widget view, and would show only an error. The page
puts the live view in the HTML's place (`static/display.js`), with buttons that go on
working after the end, as long as the kernel lives.

A page that is reloaded shows the HTML that was saved, maybe of a moment long before the
end, and no update can reach an output that it has loaded. So the model stays open when
the subject has ended, and both carry a ``stage``, the number of ends so far: the page
shows the live view where the HTML is behind, or where something can still be clicked.

Front ends that keep outputs apart from widgets (VS Code, Colab) never say hello. They
get the widget view in the output, and the static one without it at the end.
"""

from __future__ import annotations

import sys
import time
import uuid
from typing import Any

from nbsched.display.pace import pace
from nbsched.display.scenes import Scene, State
from nbsched.display.widget import Panel, open_panel

_HELLO_S = 2.0
"""A page that has not taken over by then cannot."""


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


class Output:
    """One output in one cell: published once, then replaced in place."""

    def __init__(self) -> None:
        self.id = uuid.uuid4().hex
        self.stage = 0
        """How often its subject has ended."""
        self._bundle: dict[str, object] | None = None

    @property
    def published(self) -> bool:
        return self._bundle is not None

    def publish(self, bundle: dict[str, object], metadata: dict[str, object]) -> None:
        if bundle == self._bundle:
            return
        from IPython import display as ipython

        update = self._bundle is not None
        pace.note()
        ipython.display(  # type: ignore[no-untyped-call]
            bundle, metadata=metadata, raw=True, display_id=self.id, update=update
        )
        self._bundle = bundle


class CellView:
    """A scene in an output: live while something can happen, then what stays."""

    def __init__(self, scene: Scene, output: Output) -> None:
        self._scene = scene
        self._output = output
        self._panel: Panel | None = None
        self._tried = False
        self._opened_at = 0.0
        self._behind = False
        """The page has the last HTML, but not yet the state that goes with it."""
        self._in_output = False
        """The widget view is part of the output."""

    @property
    def dirty(self) -> bool:
        return self._scene.dirty or self._behind

    def may_send(self, *, last: bool) -> bool:
        """Whether a page may be told now. Opening takes two messages, all else one."""
        return pace.has_room(1 if self._tried else 2, last=last)

    def draw(self, snapshot: Any) -> None:
        self._scene.dirty = self._behind = False
        state = self._state(snapshot)
        if self._panel is not None:
            self._panel.show(state)
            self._show_where_nobody_took_over(snapshot)
            return
        if not self._tried:
            self._tried = True
            self._opened_at = time.monotonic()
            self._panel = open_panel(self._output.id, state, self._scene.act)
        if self._panel is None or not self._output.published:
            self._publish(snapshot)

    def end(self, snapshot: Any) -> bool:
        """Show what stays. True when the model stays open, for clicks and reloaded pages.

        The HTML comes at once, for what executes a notebook hears nothing any more when
        its cell has ended. The state may wait until the page can be told more.
        """
        self._output.stage += 1
        self._in_output = False
        self._publish(snapshot)
        if not snapshot.finished:  # only this view has ended: it is of no use any more
            self.close()
            return False
        # One that was not shown before its end needs a model only if it can be clicked.
        self._behind = self._panel is not None or self._scene.goes_on(snapshot)
        return self._behind

    def close(self) -> None:
        """Nothing can happen any more: the page goes back to the static view."""
        if self._panel is not None:
            self._panel.close()
            self._panel = None
            self._tried = False

    def _state(self, snapshot: Any) -> State:
        idle = snapshot.finished and not self._scene.goes_on(snapshot)
        return self._scene.state(snapshot) | {"stage": self._output.stage, "idle": idle}

    def _publish(self, snapshot: Any) -> None:
        bundle = self._scene.static(snapshot, f"{self._output.id}:{self._output.stage}")
        metadata: dict[str, object] = {}
        if self._in_output and self._panel is not None:
            view, metadata = self._panel.view()
            bundle = bundle | view
        self._output.publish(bundle, metadata)

    def _show_where_nobody_took_over(self, snapshot: Any) -> None:
        assert self._panel is not None
        if snapshot.finished:  # what stays has no view, whoever took over
            return
        late = time.monotonic() - self._opened_at > _HELLO_S
        if late and not self._panel.greeted and not self._in_output and not Panel.any_greeted:
            self._in_output = True
            self._publish(snapshot)
