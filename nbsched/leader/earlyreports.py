"""Workers' reports that came before the outcomes which explain them were read.

A report says all that its worker holds, so a newer one makes an older one worthless. Still
the oldest is kept beside the newest: while outcomes are read more slowly than reports come,
the newest alone would be replaced each time before it is ripe, and none ever acted upon.
"""

from __future__ import annotations

import msgspec

from nbsched.messages import WorkerReport
from nbsched.model import WorkerId


class EarlyReports:
    """At most two reports of each worker, the older first."""

    def __init__(self) -> None:
        self._waiting: dict[WorkerId, list[WorkerReport]] = {}

    def __len__(self) -> int:
        """Workers whose reports wait."""
        return len(self._waiting)

    @property
    def furthest(self) -> int:
        """The highest sequence number of the results log that one waits for."""
        return max((one.results_seq for two in self._waiting.values() for one in two), default=0)

    def add(self, report: WorkerReport) -> None:
        waiting = self._waiting.setdefault(report.worker, [])
        waiting[1:] = [report]

    def take_ripe(self, position: int) -> list[WorkerReport]:
        """Of each worker the newest report that the results log explains up to there."""
        taken = []
        for worker, waiting in list(self._waiting.items()):
            ripe = [at for at, report in enumerate(waiting) if report.results_seq <= position]
            if not ripe:
                continue
            taken.append(waiting[ripe[-1]])
            del waiting[: ripe[-1] + 1]
            if not waiting:
                del self._waiting[worker]
        return taken

    def limit(self, last: int) -> None:
        """Let none wait for an entry behind the log's last one."""
        for waiting in self._waiting.values():
            waiting[:] = [
                msgspec.structs.replace(report, results_seq=min(report.results_seq, last))
                for report in waiting
            ]
