"""The folder of a local cluster: where it lies, who may read it, its locks.

The only place that creates files of local mode. Folders are 0700 and files 0600
from their first moment (never changed afterwards, which would leave a gap), and a
folder that others own or can enter is refused: credentials and pickles lie in it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from nbsched._compat import Self
from nbsched.errors import LocalClusterError

_LOCK_POLL_S = 0.01


@dataclass(frozen=True)
class Home:
    """The folder of one local cluster."""

    path: Path

    @property
    def runtime(self) -> Path:
        """Exists while the cluster runs; how to reach it."""
        return self.path / "cluster.json"

    @property
    def identity(self) -> Path:
        """Ports and credentials, which outlive a stop as the data do."""
        return self.path / "identity.json"

    @property
    def plan(self) -> Path:
        """What the supervisor is to run."""
        return self.path / "plan.json"

    @property
    def start_lock(self) -> Path:
        """Held while somebody starts or stops the cluster."""
        return self.path / "start.lock"

    @property
    def clients_lock(self) -> Path:
        """Held, shared, by every client; the supervisor must get it alone to end idle."""
        return self.path / "clients.lock"

    @property
    def supervisor_lock(self) -> Path:
        """Held by the supervisor and its servers as long as any of them lives."""
        return self.path / "supervisor.lock"

    def data(self, part: str) -> Path:
        return self.path / part

    @property
    def payloads(self) -> Path:
        """Large inputs and results: see `nbsched.payload.sharedfolder`."""
        return self.path / "payloads"

    def log(self, part: str) -> Path:
        return self.path / f"{part}.log"

    def log_tail(self, part: str, lines: int = 12) -> str:
        """The end of a part's log, indented, for an error message."""
        try:
            text = self.log(part).read_text(errors="replace")
        except OSError:
            return "  (no log)"
        return "\n".join(f"  {line[:400]}" for line in text.splitlines()[-lines:]) or "  (empty)"

    def open_log(self, part: str) -> int:
        """Descriptor to append to a part's log."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        return os.open(self.log(part), flags, 0o600)

    def rotate_log(self, part: str) -> None:
        """Keep the log of the cluster's previous life as ``*.log.1``, and no older one."""
        path = self.log(part)
        if path.exists():
            path.replace(path.with_suffix(".log.1"))

    def clear(self) -> None:
        """Delete everything but the locks: a lock file that others wait for must stay."""
        for entry in self.path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.suffix != ".lock":
                entry.unlink(missing_ok=True)


def state_root(environ: Mapping[str, str] | None = None) -> Path:
    """``$NBSCHED_HOME``, else ``$XDG_STATE_HOME/nbsched``, else ``~/.local/state/nbsched``."""
    environ = os.environ if environ is None else environ
    named = environ.get("NBSCHED_HOME")
    if named:
        return Path(named).expanduser().absolute()
    state = environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state).absolute() / "nbsched"


def shared_home(namespace: str, environ: Mapping[str, str] | None = None) -> Home:
    """The folder of this user's background cluster of that namespace; makes it.

    Raises:
        LocalClusterError: it cannot be made, or others may enter it.
    """
    root = state_root(environ)
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        for folder in (root, root / namespace):
            _private_folder(folder)
    except OSError as error:
        raise LocalClusterError(
            f"The folder {root / namespace} of the local cluster cannot be made:"
            f" {error.strerror}. Set NBSCHED_HOME to a folder of your own."
        ) from error
    return Home(root / namespace)


def _private_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        require_private(folder)


def require_private(folder: Path) -> None:
    """Raise LocalClusterError unless the folder is ours alone."""
    found = folder.stat()
    if not stat.S_ISDIR(found.st_mode):
        problem = "is not a folder"
    elif found.st_uid != os.geteuid():
        problem = f"belongs to user {found.st_uid}, not to you (user {os.geteuid()})"
    elif found.st_mode & 0o077:
        problem = f"can be entered by others (its mode is {stat.S_IMODE(found.st_mode):o})"
    else:
        return
    raise LocalClusterError(
        f"{folder} {problem}, and the local cluster's credentials and data lie there. Run"
        f" chmod 700 {folder} if it is yours, or set NBSCHED_HOME to another folder."
    )


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only we can read, so that readers see the old or the new one."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


class FileLock:
    """A held ``flock``. It ends with `close`, or with the process, however that dies.

    A child made by fork shares it; a child made by exec does not, unless the
    descriptor is passed on by intent.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def acquire(cls, path: Path, *, shared: bool = False, timeout_s: float = 0.0) -> Self | None:
        """Take the lock, or return None when it is still held after ``timeout_s``.

        Polls: a blocking flock cannot be given a deadline without signals, and this
        is called from any thread of a user's process.
        """
        kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + timeout_s
        try:
            while not _try_lock(descriptor, kind):
                if time.monotonic() >= deadline:
                    os.close(descriptor)
                    return None
                time.sleep(_LOCK_POLL_S)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(descriptor)

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True
