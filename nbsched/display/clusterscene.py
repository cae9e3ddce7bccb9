"""The cluster in a display: members with what they use, who leads, jobs with their bars."""

from __future__ import annotations

import weakref
from html import escape
from typing import Any

from nbsched.client.progress import ClusterSnapshot, ClusterSubject, Progress
from nbsched.display import html
from nbsched.display.scenes import Bundle, Requests, State
from nbsched.display.wording import STATES, bar_state, number, one_line, total_words
from nbsched.errors import NbschedError

_GIB = 1024**3


class ClusterScene:
    """One cluster."""

    def __init__(self, cluster: ClusterSubject) -> None:
        self._ref = weakref.ref(cluster)
        self._requests = Requests()
        self.dirty = False

    def state(self, now: ClusterSnapshot) -> State:
        ended = {job.id for job in now.jobs if job.state not in ("waiting", "running")}
        self._requests.settle_all(unless=lambda key: key not in ended)
        return {
            "kind": "cluster",
            "label": f"Cluster {now.namespace}",
            "name": f"Cluster {now.namespace}",
            "id": now.where,
            "state": "closed" if now.closed else "open",
            "word": _summary(now),
            "announce": "",
            "note": self._requests.trouble or now.trouble,
            "members": [_member(member) for member in now.members],
            "jobsTitle": _jobs_title(now),
            "jobs": [self._job(job) for job in now.jobs],
        }

    def _job(self, job: Any) -> State:
        progress = _progress(job)
        words = STATES.get(job.state, job.state)
        if job.state in ("waiting", "running"):
            words = f"{number(job.done)} of {total_words(progress)}"
        busy = self._requests.busy(job.id)
        cancel = {
            "label": "…" if busy else "Cancel",
            "spoken": f"Cancel job {job.name}",
            "enabled": not busy,
            "busy": busy,
        }
        return {
            "id": job.id,
            "name": one_line(job.name),
            "state": job.state,
            "words": words,
            "bar": bar_state(progress),
            "cancel": cancel if job.state in ("waiting", "running") else None,
        }

    def static(self, now: ClusterSnapshot, token: str | None = None) -> Bundle:
        return self.of(now, token)

    @staticmethod
    def of(now: ClusterSnapshot, token: str | None = None) -> Bundle:
        """What is kept of a moment."""
        members = [_member(member) for member in now.members]
        lines = [
            f"{m['name']}  {m['use']}" + "".join(f"  {m[k]}" for k in ("memory", "role") if m[k])
            for m in members
        ]
        jobs = [f"{one_line(j.name)}  {j.id}  {STATES.get(j.state, j.state)}" for j in now.jobs]
        head = f"Cluster {now.namespace} at {now.where}: {_summary(now)}"
        inner = f"<strong>{escape(head)}</strong>" + "".join(
            f'<div style="font-size: 12px; opacity: 0.85">{escape(line)}</div>'
            for line in [*lines, *jobs]
        )
        return {
            "text/plain": "\n  ".join([head, *lines, *jobs]),
            "text/html": html.frame("nbsched-cluster", inner, token),
        }

    def goes_on(self, now: ClusterSnapshot) -> bool:
        return False

    def act(self, message: dict[str, Any]) -> None:
        self.dirty = True
        job = message.get("job")
        if message.get("do") == "cancel" and isinstance(job, str):
            cluster = self._ref()
            if cluster is None:
                raise NbschedError("The cluster is closed.")
            cancel = cluster.cancel
            self._requests.start(job, "Cancel", lambda: cancel(job))


def _summary(now: ClusterSnapshot) -> str:
    if now.closed:
        return "closed"
    cpus = sum(member.cpus for member in now.members)
    workers = len(now.members)
    return f"{number(workers)} worker{'s'[: workers != 1]} · {number(cpus)} CPUs"


def _jobs_title(now: ClusterSnapshot) -> str:
    if not now.known:
        return "no jobs yet"
    more = f", {number(now.known)} known" if now.known > len(now.jobs) else ""
    return f"Jobs: {number(now.running)} running{more}"


def _member(member: Any) -> State:
    used = member.in_use or 0
    parts = [("running", used), ("queued", max(0, member.cpus - used))]
    memory = ""
    if member.memory_bytes:
        used_gib, all_gib = member.memory_used_bytes / _GIB, member.memory_bytes / _GIB
        memory = f"{used_gib:.1f} of {all_gib:.1f} GiB"
    use = f"{used} of {member.cpus} CPUs" if member.in_use is not None else f"{member.cpus} CPUs"
    return {
        "key": member.id,
        "name": member.id,
        "role": "leads" if member.leader else "draining" if member.draining else "",
        "cpus": {
            "label": f"CPUs of {member.id}",
            "max": member.cpus,
            "now": used,
            "spoken": f"{used} of {member.cpus} CPUs in use",
            "parts": [{"kind": kind, "fill": kind, "count": n} for kind, n in parts if n],
        },
        "use": use,
        "memory": memory,
    }


def _progress(job: Any) -> Progress:
    return Progress(
        job=job.id,
        name=job.name,
        total=job.total,
        uploaded=job.done + job.queued + job.assigned,
        ok=job.ok,
        failed=job.failed,
        cancelled=job.cancelled,
        running=job.assigned,
        state=job.state,
    )
