"""A single future in a display: state, attempt, worker, time, result or error in short."""

from __future__ import annotations

import weakref
from html import escape
from typing import Any

from nbsched.client.progress import TaskSnapshot, TaskSubject
from nbsched.display import html
from nbsched.display.scenes import Bundle, Requests, State
from nbsched.display.wording import SIGNS, duration, one_line
from nbsched.errors import NbschedError


class TaskScene:
    """One task, and whether its traceback is open."""

    def __init__(self, task: TaskSubject) -> None:
        self._ref = weakref.ref(task)
        self._requests = Requests()
        self._open = False
        self.dirty = False

    @property
    def _task(self) -> TaskSubject:
        task = self._ref()
        if task is None:
            raise NbschedError("The future is gone; cluster.attach() brings it back.")
        return task

    def state(self, now: TaskSnapshot) -> State:
        row = now.row
        if row.ended:
            self._requests.settled("cancel")
        cancelling, retrying = self._requests.busy("cancel"), self._requests.busy("retry")
        again = row.state in ("failed", "cancelled")
        return {
            "kind": "task",
            "label": f"Task {now.name}",
            "name": one_line(now.name),
            "id": now.id,
            "state": row.state,
            "word": SIGNS[row.state],
            "announce": f"{now.name}: {row.state}",
            "facts": _facts(now),
            "note": self._requests.trouble,
            "error": one_line(row.error),
            "open": self._open,
            "more": self._task.traceback() if self._open else "",
            "value": now.result,
            "cancel": None if row.ended else _button("Cancel", cancelling),
            "retry": _button("Retry", retrying) if again else None,
        }

    def static(self, now: TaskSnapshot, token: str | None = None) -> Bundle:
        row = now.row
        error = html.failure_line(row.error) if row.error else ""
        value = f"<code>{escape(now.result)}</code>" if now.result else ""
        inner = (
            '<div style="display: flex; flex-wrap: wrap; gap: 0 10px; align-items: baseline">'
            f'<strong style="font-weight: 600">{escape(one_line(now.name))}</strong>'
            f'<span style="opacity: 0.7; font-size: 11px">{escape(now.id)}</span>'
            f'<span style="margin-left: auto; font-weight: 600">{SIGNS[row.state]}</span></div>'
            f'<div style="font-size: 12px; opacity: 0.7">{escape(_facts(now))}</div>'
            f'<div style="font-size: 12px">{error or value}</div>'
        )
        words = [SIGNS[row.state], _facts(now), one_line(row.error) or now.result]
        text = f"<Future {one_line(now.name)!r} {now.id}: {', '.join(w for w in words if w)}>"
        return {"text/plain": text, "text/html": html.frame("nbsched-task", inner, token)}

    def goes_on(self, now: TaskSnapshot) -> bool:
        return now.row.state in ("failed", "cancelled")

    def act(self, message: dict[str, Any]) -> None:
        self.dirty = True
        match message.get("do"):
            case "cancel":
                self._requests.start("cancel", "Cancel", self._task.cancel)
            case "retry":
                self._requests.start("retry", "Retry", self._retry)
            case "open":
                self._open = not self._open

    def _retry(self) -> None:
        self._task.retry()
        self.dirty = True


def _button(word: str, busy: bool) -> State:
    return {"label": f"{word} …" if busy else word, "enabled": not busy, "busy": busy}


def _facts(now: TaskSnapshot) -> str:
    row = now.row
    words = [
        f"attempt {row.attempt}" if row.attempt else "",
        f"on {row.worker}" if row.worker else "",
        "" if row.elapsed_s is None else duration(row.elapsed_s, exact=row.ended),
    ]
    return " · ".join(word for word in words if word)
