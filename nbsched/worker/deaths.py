"""What a kernel died of, in words and in figures."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

from nbsched.messages import ErrorReport

_VMSTAT = Path("/proc/vmstat")
_SHOWN_LINES = 10
"""In the message; ``details['tail']`` has all that is kept."""


@dataclass(frozen=True)
class Death:
    """How a kernel's process ended.

    Attributes:
        returncode: as `subprocess` has it, negative for a signal.
        tail: the last of what it wrote to stdout and stderr.
        out_of_memory: whether the system's out-of-memory killer was at work meanwhile.
    """

    returncode: int
    tail: str
    out_of_memory: bool = False

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

    def _last_words(self) -> str:
        lines = self.tail.strip().splitlines()[-_SHOWN_LINES:]
        if not lines:
            return " It had written nothing."
        return "\nThe end of its output:\n" + "\n".join(f"  {line}" for line in lines)

    def report(self, index: int, worker: str, deaths: int, max_crashes: int) -> ErrorReport:
        """The report of the task that was running when it happened."""
        if deaths >= max_crashes:
            follows = f"It has done so {deaths} times and is not run again (max_crashes)."
        else:
            follows = f"It runs again ({deaths} of {max_crashes} deaths that are allowed)."
        message = (
            f"Task {index} ended its kernel on worker {worker}: {self.cause}. {follows}"
            f"{self._last_words()}"
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
                "tail": self.tail,
            },
        )


def oom_kills() -> int:
    """How often this host's out-of-memory killer has struck, cgroups included."""
    try:
        for line in _VMSTAT.read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0
