"""What a display of the whole cluster shows: members and jobs, looked up now and then.

Holds neither cluster nor connection: a display that is left in a notebook must not keep
them open. Lookups run on the I/O thread, so that servers that are away hold up nobody.
"""

from __future__ import annotations

import time
import weakref
from typing import TYPE_CHECKING, Any

import msgspec

from nbsched.client.newestjobs import Newest, NewestJobs
from nbsched.client.progress import ClusterSnapshot
from nbsched.client.requests import cancel_by_id
from nbsched.errors import NbschedError

if TYPE_CHECKING:
    from nbsched.client.cluster import Cluster

_EVERY_S = 2.0
_MOST_JOBS = 8


class Overview:
    """One cluster's members and jobs."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = weakref.ref(cluster)
        self.id = f"cluster {cluster.settings.namespace}"
        self._last = ClusterSnapshot(
            namespace=cluster.settings.namespace, where=", ".join(cluster.settings.etcd)
        )
        self._jobs = NewestJobs()
        self._looked_at = 0.0
        self._lookup: Any = None

    @property
    def progress(self) -> ClusterSnapshot:
        """As it was at the last lookup, at most some seconds ago."""
        cluster = self._cluster()
        if cluster is None or cluster.closed:
            self._last = self._changed(closed=True)
        else:
            self._keep_looking(cluster)
        return self._last

    def look(self) -> ClusterSnapshot:
        """Look now, and wait for the answer."""
        cluster = self._cluster()
        if cluster is None or cluster.closed:
            return self.progress
        self._take(*cluster._session.run(_look(cluster, self._jobs)))
        return self._last

    def cancel(self, job_id: str) -> bool:
        """Ask for a job to be stopped. Raises NbschedError when the cluster is closed."""
        cluster = self._cluster()
        if cluster is None:
            raise NbschedError("This cluster is closed. Create a new Cluster().")
        cancel_by_id(cluster._session, job_id)
        return True

    def _keep_looking(self, cluster: Cluster) -> None:
        if self._lookup is not None and self._lookup.done():
            try:
                self._take(*self._lookup.result())
            except Exception as error:
                self._last = self._changed(trouble=f"cannot be looked up: {error}")
            self._lookup = None
        if self._lookup is None and time.monotonic() - self._looked_at > _EVERY_S:
            self._looked_at = time.monotonic()
            self._lookup = cluster._session.start(_look(cluster, self._jobs))

    def _take(self, members: Any, newest: Newest) -> None:
        self._looked_at = time.monotonic()
        self._last = self._changed(
            members=tuple(members),
            jobs=tuple(newest.jobs),
            running=newest.running,
            known=newest.known,
            trouble="",
        )

    def _changed(self, **fields: Any) -> ClusterSnapshot:
        return msgspec.structs.replace(self._last, **fields)


async def _look(cluster: Cluster, jobs: NewestJobs) -> tuple[Any, Newest]:
    await cluster._session.members.list()
    return cluster._members_now(), await jobs.look(cluster._session, _MOST_JOBS)
