"""A job in a display: bar, counts, buttons, and a page of its tasks.

All wording is done here, so that the page only draws. Only the page of rows that is
looked at is made and sent, whatever the number of tasks.
"""

from __future__ import annotations

import time
import weakref
from typing import Any, Literal

from nbsched.client.progress import Observable, Progress, TaskRow
from nbsched.display import html, text
from nbsched.display.scenes import Bundle, Requests, State
from nbsched.display.wording import (
    SIGNS,
    STATES,
    bar_state,
    count_words,
    duration,
    facts,
    fill,
    number,
    one_line,
    parts,
    percent,
)
from nbsched.errors import NbschedError

ROWS = 6
"""On a page: what fits in below the bar without pushing the next cell out of sight."""
_MOST_WATCHED = 50
_KEPT_ROWS = 10
_TABS = ("failed", "running", "cancelled")
Tab = Literal["failed", "running", "cancelled"]


class JobScene:
    """One job, and what its reader has opened in this display."""

    def __init__(self, job: Observable) -> None:
        # Live drawing holds the job; a display that only waits for a click must not.
        self._ref = weakref.ref(job)
        self._requests = Requests()
        self._tab: Tab | None = None
        self._chosen = False
        """The reader has opened or closed a table: nothing opens by itself any more."""
        self._page = 0
        self._opened: set[int] = set()
        self._watched: dict[int, None] = {}
        """Tasks that were sent off again from here: they stay in sight to their end."""
        self._items = True
        """The table says items: of an attached job only those of failures are known."""
        self.dirty = False

    @property
    def _job(self) -> Observable:
        job = self._ref()
        if job is None:
            raise NbschedError("The job's future is gone; cluster.attach() brings it back.")
        return job

    # ------------------------------------------------------------ what is shown

    def state(self, progress: Progress) -> State:
        self._settle(progress)
        done = percent(progress)
        name = one_line(progress.name) or progress.job
        word = STATES.get(progress.state, progress.state)
        state: State = {
            "kind": "job",
            "label": f"Job {name}",
            "name": name,
            "id": progress.job,
            "state": progress.state,
            "word": word,
            "percent": "" if done is None else f"{done} %",
            "announce": word if done is None else f"{name}: {word}, {done // 25 * 25} %",
            "bar": bar_state(progress),
            "counts": [
                {"kind": p.kind, "text": count_words(p, progress), "fill": fill(p.kind, progress)}
                for p in parts(progress)
                if p.kind == "done" or p.count
            ],
            "facts": facts(progress),
            "note": self._requests.trouble or one_line(progress.note),
            "cancel": self._cancel_button(progress),
            "retry": self._retry_button(progress),
        }
        return state | self._table(progress)

    def static(self, progress: Progress, token: str | None = None) -> Bundle:
        rows, tracebacks = [], {}
        if progress.failed and (tasks := _tasks(self._job)) is not None:
            rows = [tasks.row(index) for index in tasks.indices("failed", 0, _KEPT_ROWS)]
            tracebacks = {row.index: tasks.traceback(row.index) for row in rows}
        return {
            "text/plain": text.summary(progress),
            "text/html": html.render(
                progress, rows, tracebacks, token=token, seen_at=time.strftime("%Y-%m-%d %H:%M:%S")
            ),
        }

    def goes_on(self, progress: Progress) -> bool:
        return progress.failed + progress.cancelled > 0

    def _cancel_button(self, progress: Progress) -> State | None:
        if progress.finished:
            return None
        busy = self._requests.busy("cancel")
        label = "Cancelling …" if busy else "Cancel"
        return {"label": label, "enabled": not busy, "busy": busy, "spoken": f"{label} job"}

    def _retry_button(self, progress: Progress) -> State | None:
        count = progress.failed + progress.cancelled
        busy = self._requests.busy("retry")
        if not count and not busy:
            return None
        what = "tasks" if progress.failed and progress.cancelled else "cancelled"
        if count == progress.failed:
            what = "failed"
        label = "Retrying …" if busy else f"Retry {number(count)} {what}"
        return {"label": label, "enabled": not busy, "busy": busy}

    # ------------------------------------------------------------ the table

    def _table(self, progress: Progress) -> State:
        tasks = _tasks(self._job)
        if tasks is None:
            return {"tabs": [], "tab": None}
        counts = {
            "failed": progress.failed,
            "running": progress.running + progress.retrying,
            "cancelled": progress.cancelled,
        }
        if not self._chosen and progress.failed and self._tab is None:
            self._tab = "failed"
        shown = [tab for tab in _TABS if counts[tab] or tab == self._tab]
        tabs = [{"key": tab, "label": f"{tab.capitalize()} {number(counts[tab])}"} for tab in shown]
        if self._tab is None:
            return {"tabs": tabs, "tab": None}
        indices, count = self._indices(tasks, self._tab, counts[self._tab])
        pages = max(1, -(-count // ROWS))
        if self._page >= pages:
            self._page = pages - 1
            indices, count = self._indices(tasks, self._tab, counts[self._tab])
        start = self._page * ROWS
        rows = [self._row(tasks, tasks.row(index)) for index in indices]
        if rows:
            self._items = any(row["item"] for row in rows)
        return {
            "tabs": tabs,
            "tab": self._tab,
            "tableLabel": f"{self._tab} tasks",
            "page": self._page,
            "pages": pages,
            "where": f"{number(start + 1)} to {number(start + len(indices))} of {number(count)}",
            "empty": "too short to be listed" if counts[self._tab] else "none now",
            "rows": rows,
            "items": self._items,
        }

    def _indices(self, tasks: Any, tab: Tab, count: int) -> tuple[list[int], int]:
        start, stop = self._page * ROWS, (self._page + 1) * ROWS
        if tab == "running":
            found = tasks.indices(tab, 0, None)
            return found[start:stop], len(found)
        if not self._watched:
            return tasks.indices(tab, start, ROWS), count
        extra = [i for i in self._watched if tasks.row(i).state != tab]
        found = sorted({*tasks.indices(tab, 0, stop), *extra})
        return found[start:stop], count + len(extra)

    def _row(self, tasks: Any, row: TaskRow) -> State:
        is_open = row.index in self._opened
        shown: State = {
            "index": row.index,
            "item": row.item,
            "state": row.state,
            "word": SIGNS[row.state],
            "attempt": str(row.attempt or ""),
            "worker": row.worker,
            "elapsed": "" if row.elapsed_s is None else duration(row.elapsed_s, exact=row.ended),
            "error": one_line(row.error),
            "open": is_open,
            "hasMore": bool(row.output),
            "moreLabel": one_line(row.output.rpartition("\n")[2]) if row.output else "",
            "more": "",
            "act": self._row_button(row),
        }
        if is_open:
            pieces = [tasks.traceback(row.index), row.output]
            shown["more"] = "\n".join(piece for piece in pieces if piece)
        return shown

    def _row_button(self, row: TaskRow) -> State | None:
        index = row.index
        if row.state in ("failed", "cancelled"):
            busy = self._requests.busy(("retry", index)) or self._requests.busy("retry")
            return _button("retry", "Retry", index, busy)
        if not row.ended:
            busy = self._requests.busy(("cancel", index)) or self._requests.busy("cancel")
            return _button("cancel", "Cancel", index, busy)
        return None

    def _settle(self, progress: Progress) -> None:
        """Requests whose effect is there are over: their buttons are free again."""
        if progress.finished:
            self._requests.settled("cancel")
        tasks = _tasks(self._job)

        def under_way(key: object) -> bool:
            if tasks is None or not isinstance(key, tuple) or key[0] != "cancel":
                return True
            return not tasks.row(key[1]).ended

        self._requests.settle_all(unless=under_way)

    # ------------------------------------------------------------ what was clicked

    def act(self, message: dict[str, Any]) -> None:
        self.dirty = True
        index = message.get("index")
        match message.get("do"):
            case "cancel" if index is None:
                self._requests.start("cancel", "Cancel", self._job.cancel)
            case "cancel" if isinstance(index, int):
                cancel = self._job.tasks.cancel
                self._requests.start(("cancel", index), "Cancel", lambda: cancel([index]))
            case "retry" if index is None:
                self._requests.start("retry", "Retry", self._retry_all)
            case "retry" if isinstance(index, int):
                self._watched[index] = None
                self._requests.start(("retry", index), "Retry", lambda: self._retry_one(index))
            case "show":
                tab = message.get("tab")
                if tab in _TABS:
                    self._tab = None if self._tab == tab else tab
                    self._chosen, self._page = True, 0
            case "page":
                self._page = max(0, self._page + (1 if message.get("by") == 1 else -1))
            case "open" if isinstance(index, int):
                self._opened ^= {index}

    def _retry_all(self) -> None:
        tasks = _tasks(self._job)
        if tasks is not None:
            self._watched.update(dict.fromkeys(tasks.indices("failed", 0, _MOST_WATCHED)))
        self._job.retry()
        self.dirty = True

    def _retry_one(self, index: int) -> None:
        self._job.tasks.retry([index])
        self.dirty = True


def _button(do: str, word: str, index: int, busy: bool) -> State:
    return {
        "do": do,
        "label": "…" if busy else word,
        "spoken": f"{word} task {index}",
        "enabled": not busy,
        "busy": busy,
    }


def _tasks(job: Observable) -> Any | None:
    return getattr(job, "tasks", None)
