"""Outcomes on their way from the kernel to its daemon: grouped, and never kept waiting.

The main thread adds outcomes and flushes after each hand-over. A second thread
flushes a few milliseconds after the first unsent one, so that a finished task's
result does not wait behind a neighbour that turns out to be long.
"""

from __future__ import annotations

import pickle
import socket
import threading
import time
from dataclasses import dataclass, field

from nbsched.kernel import protocol
from nbsched.kernel.protocol import Finished, Frame, RunTasks, Skipped
from nbsched.messages import Encoding, Outcome, OutcomeState
from nbsched.payload import pickling

FLUSH_AFTER_S = 0.005
_JOIN_BELOW = 64 * 1024


@dataclass
class _Results:
    """Results of neighbouring tasks of one hand-over: scalars while all are scalars."""

    batch: RunTasks
    first_run: int
    start: int
    elapsed_s: float = 0.0
    scalars: list[object] = field(default_factory=list)
    pickles: list[bytes] = field(default_factory=list)

    @property
    def stop(self) -> int:
        return self.start + len(self.scalars) + len(self.pickles)

    def add_scalar(self, value: object) -> None:
        if self.pickles:
            self.pickles.append(pickle.dumps(value, protocol=pickling.PROTOCOL))
        else:
            self.scalars.append(value)

    def add_pickle(self, data: bytes) -> None:
        self.pickles += [pickle.dumps(v, protocol=pickling.PROTOCOL) for v in self.scalars]
        self.scalars = []
        self.pickles.append(data)

    def encode(self) -> tuple[Outcome, list[bytes]]:
        if self.scalars:
            encoding = Encoding.SCALARS
            bodies = [pickle.dumps(self.scalars, protocol=pickling.PROTOCOL)]
        else:
            encoding, bodies = Encoding.PICKLES, self.pickles
        outcome = Outcome(
            start=self.start,
            stop=self.stop,
            round=self.batch.round,
            attempt=self.batch.attempt,
            state=OutcomeState.OK,
            encoding=encoding,
            sizes=tuple(map(len, bodies)),
            elapsed_s=self.elapsed_s,
        )
        return outcome, bodies


@dataclass
class _Other:
    """Any other outcome, of one task."""

    first_run: int
    outcome: Outcome
    body: bytes

    def encode(self) -> tuple[Outcome, list[bytes]]:
        return self.outcome, [self.body]


class Outbox:
    """The writing end of the socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._entries: list[_Results | _Other] = []
        self._lock = threading.Lock()
        self._unsent = threading.Event()
        threading.Thread(target=self._flush_soon, name="nbsched-outbox", daemon=True).start()

    def scalar(self, batch: RunTasks, run: int, index: int, value: object, elapsed: float) -> None:
        with self._lock:
            self._results(batch, run, index, elapsed).add_scalar(value)
        self._unsent.set()

    def pickled(self, batch: RunTasks, run: int, index: int, data: bytes, elapsed: float) -> None:
        with self._lock:
            self._results(batch, run, index, elapsed).add_pickle(data)
        self._unsent.set()

    def other(self, run: int, outcome: Outcome, body: bytes = b"") -> None:
        with self._lock:
            self._entries.append(_Other(run, outcome, body))
        self._unsent.set()

    def skipped(self, first_run: int, count: int) -> None:
        self.flush()
        self.send(Skipped(first_run, count))

    def send(self, frame: Frame) -> None:
        with self._lock:
            self._connection.sendall(protocol.pack(frame))

    def flush(self) -> None:
        """Send what there is, in order."""
        with self._lock:
            self._unsent.clear()
            entries, self._entries = self._entries, []
            if entries:
                self._send_outcomes(entries)

    def _results(self, batch: RunTasks, run: int, index: int, elapsed: float) -> _Results:
        last = self._entries[-1] if self._entries else None
        if not isinstance(last, _Results) or last.batch is not batch or last.stop != index:
            last = _Results(batch, run, index)
            self._entries.append(last)
        last.elapsed_s += elapsed
        return last

    def _send_outcomes(self, entries: list[_Results | _Other]) -> None:
        outcomes: list[tuple[int, Outcome]] = []
        bodies: list[bytes] = []
        for entry in entries:
            outcome, parts = entry.encode()
            outcomes.append((entry.first_run, outcome))
            bodies += parts
        size = sum(map(len, bodies))
        head = protocol.pack(Finished(tuple(outcomes)), size)
        if size < _JOIN_BELOW:
            self._connection.sendall(head + b"".join(bodies))
            return
        self._connection.sendall(head)
        for body in bodies:
            self._connection.sendall(body)

    def _flush_soon(self) -> None:
        while True:
            self._unsent.wait()
            time.sleep(FLUSH_AFTER_S)
            self.flush()
