"""Room for the local cluster's servers: given back to the disk, and to servers that were full.

A log whose disk was full takes nothing until NATS is started again. etcd compacts by
itself, which frees pages within its file; only a defragmentation makes the file smaller,
and only a look at its alarm lets it write again after it had reached its quota. Both stop
etcd for a moment, about a second for each gigabyte in use.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from nbsched.local import etcdserver, natsserver
from nbsched.local.runtime import Identity, NotReadyError, RefusedError
from nbsched.names import Names

logger = logging.getLogger(__name__)

_WASTE_BYTES = 64 * 1024**2
"""Less than this is not worth a stop."""
_FULL_SHARE = 0.9
_ROOM_BYTES = 256 * 1024**2
"""So much must be free again, or a twentieth of a small disk."""
_PAUSES_S = (10.0, 60.0, 600.0)
"""From one new start of NATS that does not help to the next. Each one ends connections."""


class Upkeep:
    """Looks after both servers; what keeps it from one does not keep it from the other."""

    def __init__(
        self,
        namespace: str,
        folder: Path,
        restart_nats: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._namespace = namespace
        self._folder = folder
        self._restart_nats = restart_nats
        self._clock = clock
        self._nats_error = ""
        self._restarts = 0
        """New starts of NATS for what keeps it from writing now."""
        self._next_restart_at = 0.0

    def look(self, identity: Identity) -> None:
        """Look once, and do what is necessary. Never raises for a server's sake."""
        for server, tend_it in (("etcd", tend), ("NATS", self._tend_nats)):
            try:
                tend_it(identity)
            except (NotReadyError, RefusedError) as error:
                logger.warning("cannot look after %s: %s", server, error)

    def _tend_nats(self, identity: Identity) -> None:
        """Start it again when it was full and has room; seldom when that does not help."""
        before, error = self._nats_error, _nats_error(identity, self._namespace)
        self._nats_error = error
        if not error:
            if before:
                logger.warning("NATS takes messages again")
            self._restarts, self._next_restart_at = 0, 0.0
            return
        disk = shutil.disk_usage(self._folder)
        if error != before:
            logger.error("NATS takes nothing: %s (%d MiB are free)", error, disk.free >> 20)
        if disk.free >= min(_ROOM_BYTES, disk.total // 20):
            self._start_nats_again(disk.free)

    def _start_nats_again(self, free_bytes: int) -> None:
        now = self._clock()
        if now < self._next_restart_at:
            return
        pause_s = _PAUSES_S[min(self._restarts, len(_PAUSES_S) - 1)]
        if self._restarts:
            logger.error(
                "NATS still takes nothing (new starts: %d): %s. %d MiB are free, so look for"
                " another cause: inodes, a disk quota, the permissions of %s. It is started again"
                " now, and in %g s if that does not help",
                self._restarts,
                self._nats_error,
                free_bytes >> 20,
                self._folder,
                pause_s,
            )
        self._restarts += 1
        self._next_restart_at = now + pause_s
        self._restart_nats()


def _nats_error(identity: Identity, namespace: str) -> str:
    """What keeps a log from being written to, if anything. Raises NotReadyError."""
    names = Names(namespace)
    for log, subjects in (
        (names.inputs_log, names.all_inputs),
        (names.results_log, names.all_results),
    ):
        error = natsserver.write_error(identity, log, subjects.replace(">", "_none"))
        if error:
            return error
    return ""


def tend(identity: Identity, quota_bytes: int = etcdserver.QUOTA_BYTES) -> None:
    """Look once, and do what is necessary.

    Raises:
        NotReadyError, RefusedError: etcd does not answer, or not as it should.
    """
    token = etcdserver.log_in(identity)
    room = etcdserver.room(identity, token)
    if room.full:
        _make_room(identity, token, quota_bytes)
    elif room.file_bytes - room.used_bytes > max(_WASTE_BYTES, room.used_bytes):
        etcdserver.defragment(identity, token)
        after = etcdserver.room(identity, token)
        logger.info("etcd gave %d MiB back", (room.file_bytes - after.file_bytes) >> 20)


def _make_room(identity: Identity, token: str, quota_bytes: int) -> None:
    """Drop all history; let etcd write again if that has helped."""
    etcdserver.compact(identity, token)
    etcdserver.defragment(identity, token)
    room = etcdserver.room(identity, token)
    if room.file_bytes > quota_bytes * _FULL_SHARE:
        logger.error(
            "etcd is full: %d of %d MiB are in use. Forget jobs: nbsched jobs --prune",
            room.used_bytes >> 20,
            quota_bytes >> 20,
        )
        return
    etcdserver.clear_alarm(identity, token)
    logger.warning("etcd was full; it has room again and takes writes")
