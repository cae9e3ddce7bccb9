"""What a kernel died of, in words and in figures."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from nbsched.attempts import PastAttempt, attempts_text, bytes_text, last_lines
from nbsched.messages import ErrorReport


@dataclass(frozen=True)
class Death:
    """How a kernel's process ended.

    Attributes:
        returncode: as `subprocess` has it, negative for a signal.
        tail: the last of what it wrote to stdout and stderr.
        out_of_memory: whether the system's out-of-memory killer was at work meanwhile.
        peak_bytes: the most memory that it had at a time; 0 when that is not known.
        peak_is_bound: it had less than that, how much is not known.
        memory_limit: bytes that it and its daemon may use together; 0 for all there is.
    """

    returncode: int
    tail: str
    out_of_memory: bool = False
    peak_bytes: int = 0
    peak_is_bound: bool = False
    memory_limit: int = 0

    @property
    def signal(self) -> str | None:
        if self.returncode >= 0:
            return None
        try:
            return signal.Signals(-self.returncode).name
        except ValueError:
            return f"SIG{-self.returncode}"

    @property
    def cause(self) -> str:
        if self.out_of_memory and self.signal == "SIGKILL":
            return "out of memory (signal SIGKILL)"
        return f"signal {self.signal}" if self.signal else f"exit code {self.returncode}"

    def _memory(self) -> str:
        """What memory had to do with it, where that is the question."""
        if self.signal != "SIGKILL" or not self.peak_bytes:
            return ""
        under = "under " if self.peak_is_bound else ""
        text = f" Its kernel's peak memory was {under}{bytes_text(self.peak_bytes)}"
        if self.memory_limit:
            text += f"; the worker and its kernels may use {bytes_text(self.memory_limit)}"
        if self.out_of_memory:
            return f"{text}. Let it need less, or fewer run beside it with cpus=."
        return f"{text}. Whoever killed it has left no trace."

    def report(
        self,
        index: int,
        worker: str,
        deaths: int,
        max_crashes: int,
        history: tuple[PastAttempt, ...] = (),
    ) -> ErrorReport:
        """The report of the task that was running when it happened."""
        if deaths >= max_crashes:
            follows = f"It has done so {deaths} times and is not run again (max_crashes)."
        else:
            follows = f"It runs again ({deaths} of {max_crashes} deaths that are allowed)."
        message = (
            f"Task {index} ended its kernel on worker {worker}: {self.cause}. {follows}"
            f"{self._memory()}{attempts_text(history)}{last_lines(self.tail)}"
        )
        return ErrorReport(
            type_name="TaskCrashedError",
            message=message,
            system="TaskCrashedError",
            details={
                "index": index,
                "cause": self.cause,
                "signal": self.signal,
                "exit_code": self.returncode if self.returncode >= 0 else None,
                "worker": worker,
                "attempts": deaths,
                "peak_bytes": self.peak_bytes or None,
                "tail": self.tail,
            },
            history=history,
        )
