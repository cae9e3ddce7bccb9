"""Requests that are being carried out, and the tasks whose outcome each waits for."""

from __future__ import annotations

from nbsched.indexset import IndexSet
from nbsched.model import RequestId


class OpenRequests:
    """The open requests of one job. A request is settled when its effect is in the log."""

    def __init__(self) -> None:
        self._pending: dict[RequestId, IndexSet] = {}
        self._whole: dict[RequestId, None] = {}

    def __bool__(self) -> bool:
        return bool(self._pending) or bool(self._whole)

    def __contains__(self, request: RequestId) -> bool:
        return request in self._pending or request in self._whole

    def ids(self) -> list[RequestId]:
        return [*self._pending, *self._whole]

    def add(self, request: RequestId, tasks: IndexSet) -> None:
        """A request that waits for these tasks."""
        self._pending[request] = tasks

    def add_whole(self, request: RequestId) -> None:
        """A request that waits for the whole job, what is not uploaded yet included."""
        self._whole[request] = None

    def ended(self, start: int, stop: int) -> None:
        """Tasks ended as far as requests are concerned."""
        for tasks in self._pending.values():
            tasks.remove(start, stop)

    def take_settled(self, *, job_ended: bool) -> list[RequestId]:
        """Requests that are settled; they are forgotten here."""
        settled = [request for request, tasks in self._pending.items() if not tasks]
        for request in settled:
            del self._pending[request]
        if job_ended:
            settled += self._whole
            self._whole.clear()
        return settled
