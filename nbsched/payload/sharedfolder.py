"""Large payloads as files in a folder that client, workers and kernels all see.

On one machine this replaces four trips through sockets and a server's log by one write
and one mapping. An entry in the log still says that the payload exists, what it belongs
to and who says so (its envelope is signed); the file holds the bytes.

Why bytes in a file are trusted without a digest of their own: the folder belongs to this
user alone (mode 0700, which is checked), and whoever can write there can read the
cluster's credentials beside it as well. Durability is that of the log: written through
the page cache, it survives the end of any process, and the power with the same
uncertainty as JetStream, which syncs every two minutes.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import secrets
import shutil
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from nbsched.errors import ConfigurationError
from nbsched.payload.frames import Chunk

SHARE_BYTES = 64 * 1024
"""From this size on a file costs less than the way through the log."""
_LEAVE_BYTES = 2 << 30
_MOST_MAPPED = 256
"""Mappings at a time, beyond which files are read: each holds a descriptor."""
_MOST_CHUNKS = 512
"""In one call of writev; the system takes 1024."""
_NAME = re.compile(r"[A-Za-z0-9_-]+/[A-Za-z0-9_-]+")


class SharedFolder:
    """The folder. Files are named ``JOB/NAME``, written once and never changed."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> SharedFolder:
        """Make the folder if need be. Raises ConfigurationError when others could write there."""
        try:
            os.makedirs(path, mode=0o700, exist_ok=True)
            found = os.stat(path)
        except OSError as error:
            raise ConfigurationError(
                f"The shared folder {path} cannot be used: {error.strerror}. Check"
                " NBSCHED_SHARED_FOLDER; without one, payloads travel through NATS."
            ) from error
        if found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise ConfigurationError(
                f"The shared folder {path} is open to other users (owner {found.st_uid}, mode"
                f" {found.st_mode & 0o777:o}), who could put code there. Make it yours alone:"
                f" chmod 700 {path}"
            )
        return cls(path)

    @classmethod
    def of(cls, path: str | None, namespace: str, key_id: str) -> SharedFolder | None:
        """What the setting says: none, or a cluster's part of one that is checked now.

        Each cluster has its own part: it deletes what belongs to none of its jobs. Clusters on
        other servers may have the same namespace, but not the same key unless they share a
        key file.
        """
        if path is None:
            return None
        cls.open(path)
        return cls.open(os.path.join(path, f"{namespace}.{key_id}"))

    @property
    def path(self) -> str:
        return str(self._path)

    def write(self, job: str, name: str, chunks: Sequence[Chunk]) -> str:
        """Write a file; returns its name for `map`. Raises OSError, and leaves nothing then."""
        self._check_room()
        unique = f"{job}/{name}-{secrets.token_hex(4)}"
        path = self._path / unique
        try:
            fd = _create(path)
        except FileNotFoundError:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            fd = _create(path)
        try:
            _write_all(fd, [chunk for chunk in chunks if len(chunk)])
        except BaseException:
            with suppress(OSError):
                path.unlink()
            raise
        finally:
            os.close(fd)
        return unique

    def map(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        """The bytes of a file, as memory of this process's own: writing changes a copy.

        Raises FileNotFoundError when it is not there, or not whole; OSError when the
        process has too much open.
        """
        fd = os.open(self._locate(name), os.O_RDONLY)
        try:
            size = os.fstat(fd).st_size
            end = size if stop is None else stop
            if end > size:
                raise FileNotFoundError(f"{name} has {size} bytes, and {end} were written")
            if end <= start:
                return memoryview(b"")
            return _mapped(fd, start, end) or _read(fd, start, end)
        finally:
            os.close(fd)

    def remove(self, job: str) -> None:
        """Delete a job's files; whoever has mapped one keeps it."""
        shutil.rmtree(self._path / job, ignore_errors=True)

    def touch(self, job: str) -> None:
        """Let its files count as new."""
        with suppress(OSError):
            os.utime(self._path / job)

    def has(self, job: str) -> bool:
        """Whether there are files of the job."""
        return (self._path / job).is_dir()

    def unchanged_for(self, seconds: float) -> list[str]:
        """Jobs whose files nothing has been added to for so long."""
        found = []
        before = time.time() - seconds
        for folder in self._path.iterdir():
            with suppress(OSError):
                if folder.stat().st_mtime < before:
                    found.append(folder.name)
        return found

    def _check_room(self) -> None:
        """Leave some to the servers: their logs lie on the same disk, and say when it is full."""
        disk = os.statvfs(self._path)
        least = min(_LEAVE_BYTES, disk.f_blocks * disk.f_frsize // 20)
        if disk.f_bavail * disk.f_frsize < least:
            raise OSError(errno.ENOSPC, f"less than {least >> 20} MiB are left", str(self._path))

    def _locate(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise FileNotFoundError(f"{name!r} is no name of a shared file")
        return self._path / name


class _Mappings:
    """How many live in this process."""

    count = 0

    @classmethod
    def ended(cls) -> None:
        cls.count -= 1


def _mapped(fd: int, start: int, end: int) -> memoryview | None:
    """A private mapping; None when there are enough of them."""
    if _Mappings.count >= _MOST_MAPPED:
        return None
    offset = start - start % mmap.ALLOCATIONGRANULARITY
    try:
        mapped = mmap.mmap(fd, end - offset, access=mmap.ACCESS_COPY, offset=offset)
    except OSError:
        return None
    _Mappings.count += 1
    weakref.finalize(mapped, _Mappings.ended).atexit = False
    return memoryview(mapped)[start - offset :]


def _read(fd: int, start: int, end: int) -> memoryview:
    data = memoryview(bytearray(end - start))
    done = 0
    while done < len(data):
        count = os.preadv(fd, [data[done:]], start + done)
        if not count:
            raise FileNotFoundError("the file became shorter while it was read")
        done += count
    return data


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)


def _write_all(fd: int, chunks: list[Chunk]) -> None:
    while chunks:
        written = os.writev(fd, chunks[:_MOST_CHUNKS])
        done = 0
        while done < len(chunks) and written >= len(chunks[done]):
            written -= len(chunks[done])
            done += 1
        chunks = chunks[done:]
        if written:
            chunks[0] = memoryview(chunks[0])[written:]
