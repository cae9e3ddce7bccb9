"""A second client of a running system, in a process of its own, as another user's would be.

    python -m benchmarks.guest SYSTEM SECONDS     # the address comes pickled on stdin

It joins, says how long that took until its first result, waits for a line, and then runs
one task after another for so many seconds. Both answers are lines of JSON.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from benchmarks import systems

_MARK = b"#guest "


class Guest:
    """The other side of the pipe: what a workload sees of it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def answer(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(_MARK):
                return json.loads(line.removeprefix(_MARK))
        raise RuntimeError("The second client ended without an answer; its stderr says why.")

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()


@contextmanager
def invited(name: str, address: Any, seconds: float) -> Iterator[Guest]:
    """A guest of the system at this address; it does not outlive the block."""
    command = [sys.executable, "-m", "benchmarks.guest", name, str(seconds)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    try:
        process.stdin.write(pickle.dumps(address).hex().encode() + b"\n")
        process.stdin.flush()
        yield Guest(process)
    finally:
        process.kill()
        process.communicate()


def negate(x: int) -> int:
    return -x


def main(name: str, seconds: float) -> None:
    system: Any = systems.load(name)
    address = pickle.loads(bytes.fromhex(sys.stdin.readline().strip()))
    started = time.perf_counter()
    ask = system.join(address)
    assert ask(negate, -1) == 1
    _say(time.perf_counter() - started)
    sys.stdin.readline()
    times = []
    until = time.perf_counter() + seconds
    while (now := time.perf_counter()) < until:
        assert ask(negate, -1) == 1
        times.append(time.perf_counter() - now)
    _say(times)
    with suppress(OSError):
        sys.stdin.read()  # until the block at the other side ends


def _say(answer: Any) -> None:
    os.write(1, b"\n" + _MARK + json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
