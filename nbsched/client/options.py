"""How a job is to run: checked here, soon, so that a wrong option never reaches a worker."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal, get_args

import msgspec

from nbsched.client.interrupts import OnInterrupt
from nbsched.errors import ConfigurationError
from nbsched.payload import retrypolicy
from nbsched.settings import ProgressMode


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Options of a job; times in seconds.

    Attributes:
        cpus: CPU slots that one task takes.
        retry: number of retries, or a tenacity policy (stop, wait, retry).
        task_timeout: seconds that one task may run.
        max_crashes: a task that has taken down so many kernels or hosts fails.
        priority: jobs with a higher one are served first.
        tags: for finding the job again.
        name: shown in place of the callable's own name.
        on_interrupt: what Ctrl-C in a call that waits does to the job.
        progress: how waiting for a map shows its progress: auto, text, tqdm, off; by
            default as the cluster's setting says. Where that is off, it is off.
    """

    cpus: int = 1
    retry: object = 0
    task_timeout: float | None = None
    max_crashes: int = 3
    priority: int = 0
    tags: tuple[str, ...] = ()
    name: str | None = None
    on_interrupt: OnInterrupt = "cancel"
    progress: ProgressMode | None = None

    def __post_init__(self) -> None:
        _require(_is_int(self.cpus) and self.cpus >= 1, "cpus", self.cpus, "a whole number from 1")
        _require(
            _is_int(self.max_crashes) and self.max_crashes >= 1,
            "max_crashes",
            self.max_crashes,
            "a whole number from 1",
        )
        _require(_is_int(self.priority), "priority", self.priority, "a whole number")
        timeout = self.task_timeout
        positive = isinstance(timeout, (int, float)) and timeout > 0
        _require(timeout is None or positive, "task_timeout", timeout, "seconds above 0, or None")
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


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require(holds: bool, name: str, value: object, needed: str) -> None:
    if not holds:
        raise ConfigurationError(f"{name}={value!r} is not possible; it must be {needed}.")
