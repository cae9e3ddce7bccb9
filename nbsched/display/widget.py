"""The live view in a notebook: the job's HTML with the buttons Cancel and Retry failed.

Owns the widgets and what a click does; when to draw, and where, is decided elsewhere.
Imports ipywidgets only when a panel is opened, and a panel is only opened in a kernel.

A click must arrive while a cell blocks, and its handler must not wait for the servers:

- With ipykernel 7 the front end sends clicks to a subshell, a thread beside the
  blocked one, but the kernel hands a widget's messages to the shell that last
  published on it, which for a widget made in a cell is the blocked one. So our
  widgets' comms answer that question themselves (`_take_clicks_on_the_subshell`).
- The handler only marks the button and starts a short thread for the request.
"""

from __future__ import annotations

import functools
import importlib
import logging
import threading
from collections.abc import Callable
from typing import Any

import msgspec

from nbsched.client.progress import Observable, Progress
from nbsched.display import html

_log = logging.getLogger(__name__)

_WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


@functools.cache
def _ipywidgets() -> Any | None:
    try:
        return importlib.import_module("ipywidgets")
    except ImportError:
        return None


def open_panel(job: Observable, progress: Progress) -> Panel | None:
    """A panel for ``job``, or None without ipywidgets."""
    widgets = _ipywidgets()
    return None if widgets is None else Panel(widgets, job, progress)


class Panel:
    """HTML and two buttons: nine models, whatever the number of tasks."""

    def __init__(self, widgets: Any, job: Observable, progress: Progress) -> None:
        self._job = job
        self._cancel = _Action(self._cancel_job, "Cancel", "Cancelling …", icon="stop")
        self._retry = _Action(self._retry_job, "Retry failed", "Retrying …", icon="repeat")
        self._html = widgets.HTML(html.render(progress), layout=widgets.Layout(flex="1 1 100%"))
        layout = widgets.Layout(width="auto", height="26px", margin="0 6px 4px 2px")
        style = widgets.ButtonStyle()
        buttons = [
            action.add_button(widgets, layout, style) for action in (self._cancel, self._retry)
        ]
        self._box = widgets.Box(
            [self._html, *buttons],
            layout=widgets.Layout(flex_flow="row wrap", max_width="900px"),
        )
        self._models = [
            self._box, self._box.layout, self._html, self._html.layout, self._html.style,
            *buttons, layout, style,
        ]  # fmt: skip
        for model in self._models:
            _take_clicks_on_the_subshell(model.comm)
        self.draw(progress)

    def mimebundle(self) -> dict[str, object]:
        """The reference to the widget, for a display."""
        view = {"version_major": 2, "version_minor": 0, "model_id": self._box.model_id}
        return {_WIDGET_VIEW: view}

    def draw(self, progress: Progress) -> None:
        self._cancel.update(possible=not progress.finished)
        self._retry.update(possible=progress.failed + progress.cancelled > 0)
        trouble = self._cancel.trouble or self._retry.trouble
        if trouble:
            progress = msgspec.structs.replace(progress, note=trouble)
        self._html.value = html.render(progress)

    def close(self) -> None:
        """Close every model, the layouts too: none is left behind in the front end."""
        for model in self._models:
            model.close()

    def _cancel_job(self) -> bool:
        # True keeps the button busy: the workers have yet to confirm.
        return self._job.cancel()

    def _retry_job(self) -> bool:
        self._cancel.release()
        self._job.retry()
        return False


class _Action:
    """A request to the job, and the button that makes it.

    ``call`` returns whether the request goes on after the call; the button stays busy
    until then.
    """

    def __init__(self, call: Callable[[], bool], label: str, busy_label: str, icon: str) -> None:
        self._call = call
        self._label = label
        self._busy_label = busy_label
        self._icon = icon
        self._button: Any = None
        # Clicks come on a subshell's thread, updates on the display's.
        self._lock = threading.Lock()
        self._possible = False
        self._busy = False
        self.trouble = ""
        """Why the last request failed, for people."""

    def add_button(self, widgets: Any, layout: Any, style: Any) -> Any:
        self._button = widgets.Button(
            description=self._label, icon=self._icon, disabled=True, layout=layout, style=style
        )
        self._button.on_click(self._clicked)
        return self._button

    def update(self, *, possible: bool) -> None:
        with self._lock:
            self._possible = possible
            self._button.disabled = self._busy or not possible
            self._button.description = self._busy_label if self._busy else self._label

    def release(self) -> None:
        self._busy = False
        self.update(possible=self._possible)

    def _clicked(self, _button: object) -> None:
        if self._busy:
            return
        self._busy = True
        self.trouble = ""
        self.update(possible=self._possible)
        threading.Thread(target=self._request, name="nbsched-click", daemon=True).start()

    def _request(self) -> None:
        try:
            goes_on = self._call()
        except Exception as error:
            _log.warning("%s failed", self._label, exc_info=True)
            self.trouble = f"{self._label} failed: {error}"
            goes_on = False
        if not goes_on:
            self.release()


def _take_clicks_on_the_subshell(comm: Any) -> None:
    """Let messages to this comm go where the front end sends them.

    ``_reply_subshell_for(data, default)`` is a private method of ipykernel 7's comms;
    kernels without it need nothing, or have no subshells and take clicks between cells.
    """
    if hasattr(comm, "_reply_subshell_for"):
        comm._reply_subshell_for = lambda data, default: default
