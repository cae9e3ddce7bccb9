"""The live view in a notebook's page: one anywidget model for each display.

Owns the model and what travels over it: states to the page, clicks back. Knows nothing
of jobs; `nbsched.display.scenes` says what is drawn and what a click does. Imports
anywidget only when a panel is opened, and a panel is only opened in a kernel.

A click must arrive while a cell blocks. With ipykernel 7 the front end sends it to a
subshell, a thread beside the blocked one, but the kernel hands a widget's messages to
the shell that last published on it, which for a widget made in a cell is the blocked
one. So our comm answers that question itself (`_take_clicks_on_the_subshell`). Where
there are no subshells, `nbsched.display.pump` takes clicks in from the wait.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable
from importlib import resources
from typing import Any

from nbsched.display.pace import pace

log = logging.getLogger(__name__)

_VIEW = "application/vnd.jupyter.widget-view+json"

Act = Callable[[dict[str, Any]], None]


@functools.cache
def _model_class() -> Any | None:
    """The class of our models, or None where anywidget is not installed, or is broken."""
    try:
        anywidget: Any = importlib.import_module("anywidget")
        traitlets: Any = importlib.import_module("traitlets")
    except Exception as error:  # half an installation may raise anything
        log.debug("displays are static: %s", error)
        return None
    files = resources.files("nbsched.display") / "static"

    class JobDisplay(anywidget.AnyWidget):  # type: ignore[misc]
        """What a page draws. ``token`` names the HTML whose place it takes."""

        _esm = (files / "display.js").read_text("utf-8")
        _style = traitlets.Unicode((files / "display.css").read_text("utf-8")).tag(sync=True)
        token = traitlets.Unicode().tag(sync=True)
        state = traitlets.Dict().tag(sync=True)
        # A layout would be a second model, for nothing.
        layout = traitlets.Any(None, allow_none=True)
        tooltip = traitlets.Any(None, allow_none=True)

    return JobDisplay


def open_panel(token: str, state: dict[str, Any], act: Act) -> Panel | None:
    """A panel, or None where there is no anywidget that works."""
    kind = _model_class()
    return None if kind is None else Panel(kind, token, state, act)


class Panel:
    """One model in the page."""

    any_greeted = False
    """Some page of this kernel finds static HTML by itself; so it will the next."""

    def __init__(self, kind: Any, token: str, state: dict[str, Any], act: Act) -> None:
        self._act = act
        self.greeted = False
        """A page has the model, and shows it in the place of the static HTML."""
        self._in_output = False
        pace.note()
        self._model = kind(token=token, state=state)
        _take_clicks_on_the_subshell(self._model.comm)
        self._model.on_msg(self._received)
        _open[self._model.comm.comm_id] = self

    def show(self, state: dict[str, Any]) -> None:
        """Send a state; nothing travels when it is as before."""
        if self._model.state != state:
            pace.note()
            self._model.state = state

    def view(self) -> tuple[dict[str, object], dict[str, object]]:
        """The representation for pages that do not find the static HTML, and what must be
        said of it: Colab shows a widget of somebody else only where it is told how."""
        self._in_output = True
        data, metadata = self._model._repr_mimebundle_()
        return {_VIEW: data[_VIEW]}, metadata

    def close(self) -> None:
        comm_id = getattr(self._model.comm, "comm_id", "")
        pace.note()
        try:
            self._model.close()
        finally:
            _open.pop(comm_id, None)

    def _received(self, _model: object, message: dict[str, Any], _buffers: object) -> None:
        if message.get("do") == "hello":
            self.greeted = True
            # One that had to be given the view in an output will not find the next HTML either.
            Panel.any_greeted = Panel.any_greeted or not self._in_output
            return
        try:
            self._act(message)
        except Exception:  # a broken click must not print into a cell
            log.warning("a click was not understood: %r", message, exc_info=True)


_open: dict[str, Panel] = {}


def any_open() -> bool:
    return bool(_open)


def is_ours(comm_id: str) -> bool:
    """Whether messages of this comm are for one of our panels."""
    return comm_id in _open


def _take_clicks_on_the_subshell(comm: Any) -> None:
    """Let messages to this comm go where the front end sends them.

    ``_reply_subshell_for(data, default)`` is a private method of ipykernel 7's comms;
    kernels without it need nothing, or have no subshells and take clicks from the wait.
    """
    if hasattr(comm, "_reply_subshell_for"):
        comm._reply_subshell_for = lambda data, default: default
