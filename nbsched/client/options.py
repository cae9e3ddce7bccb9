"""How a job is to run: checked here, soon, so that a wrong option never reaches a worker."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Literal, TypeGuard, get_args

import msgspec

from nbsched.client.interrupts import OnInterrupt
from nbsched.errors import ConfigurationError
from nbsched.payload import retrypolicy
from nbsched.settings import ProgressMode

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?))?(b?)")
_MOST_BYTES = 1 << 60
"""No host has more, and the system can count twice as much: `sys.maxsize` means no less."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Options of a job; times in seconds.

    Attributes:
        cpus: CPU slots that one task takes.
        retry: number of retries, or a tenacity policy (stop, wait, retry).
        task_timeout: seconds that one task may run.
        memory: what one task may occupy, together with the processes that it starts and
            with the kernel that it runs in (some 50 MiB): bytes, or text such as "2 GiB"
            or "500MB". A task that goes beyond is stopped, and fails with TaskMemoryError
            unless ``retry`` lets it run again; it counts as no crash. On Linux.
        max_crashes: a task that has taken down so many kernels or hosts fails.
        priority: jobs with a higher one are served first.
        speculate: when a job has nothing left to hand out, and one of its tasks has run
            for more than twice the median time of the others and for 2 s, a second copy of
            it runs on another worker with a free slot. The first outcome counts, the other
            run is stopped: so a task must bear to run twice at the same time.
        tags: for finding the job again.
        name: shown in place of the callable's own name.
        on_interrupt: what Ctrl-C in a call that waits does to the job.
        progress: how waiting for a map shows its progress: auto, text, tqdm, off; by
            default as the cluster's setting says. Where that is off, it is off.
        stream_output: print what tasks print, as it comes, each line with its task's index.
    """

    cpus: int = 1
    retry: object = 0
    task_timeout: float | None = None
    memory: int | str | None = None
    max_crashes: int = 3
    priority: int = 0
    speculate: bool = False
    tags: tuple[str, ...] = ()
    name: str | None = None
    on_interrupt: OnInterrupt = "cancel"
    progress: ProgressMode | None = None
    stream_output: bool = False

    def __post_init__(self) -> None:
        _require(_is_int(self.cpus) and self.cpus >= 1, "cpus", self.cpus, "a whole number from 1")
        _require(
            _is_int(self.max_crashes) and self.max_crashes >= 1,
            "max_crashes",
            self.max_crashes,
            "a whole number from 1",
        )
        _require(_is_int(self.priority), "priority", self.priority, "a whole number")
        _require(isinstance(self.speculate, bool), "speculate", self.speculate, "True or False")
        timeout = self.task_timeout
        positive = isinstance(timeout, (int, float)) and timeout > 0
        _require(timeout is None or positive, "task_timeout", timeout, "seconds above 0, or None")
        _require(
            self.memory is None or (self.memory_bytes or 0) > 0,
            "memory",
            self.memory,
            "bytes above 0, text such as '2 GiB', or None",
        )
        _require(
            self.on_interrupt in ("cancel", "detach"),
            "on_interrupt",
            self.on_interrupt,
            "'cancel' or 'detach'",
        )
        modes = get_args(ProgressMode)
        known = self.progress is None or self.progress in modes
        _require(known, "progress", self.progress, f"one of {', '.join(modes)}")
        require_progress(self.progress)
        retrypolicy.normalise(self.retry)

    @property
    def memory_bytes(self) -> int | None:
        """``memory`` as a number, 1 EiB at most; None when there is no limit, or when it is
        no size."""
        if isinstance(self.memory, str):
            return _size(self.memory)
        return min(self.memory, _MOST_BYTES) if _is_int(self.memory) else None


def require_progress(mode: ProgressMode | None) -> None:
    """Raise ConfigurationError when what this way of showing progress needs is missing."""
    if mode == "tqdm" and find_spec("tqdm") is None:
        raise ConfigurationError(
            "progress='tqdm' needs the package tqdm, which is not installed here. Install it:"
            " pip install tqdm"
        )


def merge(base: Options, changes: dict[str, object]) -> Options:
    """``base`` with some options changed.

    Raises:
        ConfigurationError: an unknown option, or a value that it cannot have.
    """
    unknown = sorted(changes.keys() - set(Options.__struct_fields__))
    if unknown:
        raise ConfigurationError(
            f"There is no option {unknown[0]!r}. Options: {', '.join(Options.__struct_fields__)}."
        )
    if "tags" in changes:
        tags = changes["tags"]
        words = (tags,) if isinstance(tags, str) else tuple(tags)  # type: ignore[arg-type]
        changes = {**changes, "tags": tuple(map(str, words))}
    return msgspec.structs.replace(base, **changes)


def chunk(chunksize: int | Literal["auto"]) -> int | None:
    """The ``chunksize=`` argument of ``map`` as it stands in the job's record."""
    if chunksize == "auto":
        return None
    _require(_is_int(chunksize) and chunksize >= 1, "chunksize", chunksize, "'auto' or at least 1")
    return chunksize


def _size(text: str) -> int | None:
    """The bytes that a text such as ``"1.5 GiB"`` means, or None when it means none."""
    found = _SIZE.fullmatch(text.strip().lower())
    if found is None:
        return None
    number, prefix, binary, unit = found.groups()
    # As everywhere: kB, MB, GB are powers of 1000, KiB, MiB, GiB and plain K, M, G of 1024.
    base = 1000 if unit and not binary else 1024
    return int(min(float(number) * base ** " kmgt".index(prefix or " "), _MOST_BYTES))


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _require(holds: bool, name: str, value: object, needed: str) -> None:
    if not holds:
        raise ConfigurationError(f"{name}={value!r} is not possible; it must be {needed}.")
