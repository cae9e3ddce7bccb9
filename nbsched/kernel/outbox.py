"""Outcomes on their way from the kernel to its daemon: grouped, and never kept waiting.

The main thread adds outcomes and flushes after each hand-over. When tasks follow one
another in it, a second thread flushes after a few milliseconds, so that a finished
task's result does not wait behind a neighbour that turns out to be long. Large results are
written to the shared folder, if there is one; then only their name is sent.
"""

from __future__ import annotations

import logging
import pickle
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec

from nbsched.kernel import protocol
from nbsched.kernel.output import Output, Printed
from nbsched.kernel.protocol import Finished, Frame, RunTasks, Skipped
from nbsched.messages import Encoding, Outcome, OutcomeState
from nbsched.payload import frames, pickling
from nbsched.payload.sharedfolder import SHARE_BYTES, SharedFolder

log = logging.getLogger(__name__)

FLUSH_AFTER_S = 0.005
_FLUSH_AT_LEAST_S = 0.04
_JOIN_BELOW = 64 * 1024


@dataclass
class _Results:
    """Results of neighbouring tasks of one hand-over, of one encoding.

    While it is open the main thread appends without the lock; what is there may be
    sent meanwhile.
    """

    batch: RunTasks
    run: int
    index: int
    encoding: Encoding
    values: list[Any] = field(default_factory=list)
    """Scalars, or pickles."""
    sent: int = 0
    began_ns: int = 0
    elapsed_s: float = 0.0

    def take(self) -> tuple[int, Outcome, list[bytes], str] | None:
        """Run, outcome, bytes and job of what has not been taken yet."""
        stop = len(self.values)
        values = self.values[self.sent : stop]
        if not values:
            return None
        if self.began_ns:
            now = time.monotonic_ns()
            self.elapsed_s += (now - self.began_ns) * 1e-9
            self.began_ns = now
        pickled = self.encoding is Encoding.PICKLES
        bodies = values if pickled else [pickle.dumps(values, protocol=pickling.PROTOCOL)]
        outcome = Outcome(
            start=self.index + self.sent,
            stop=self.index + stop,
            round=self.batch.round,
            attempt=self.batch.attempt,
            state=OutcomeState.OK,
            encoding=self.encoding,
            sizes=tuple(map(len, bodies)),
            elapsed_s=self.elapsed_s,
        )
        run = self.run + self.sent
        self.sent, self.elapsed_s = stop, 0.0
        return run, outcome, bodies, self.batch.job


@dataclass
class _Single:
    """Any other outcome, of one task, with its bytes if they are to be sent."""

    run: int
    outcome: Outcome
    body: bytes
    printed: Printed | None = None

    def take(self) -> tuple[int, Outcome, list[bytes], str] | None:
        printed = self.printed
        if printed is None:
            return self.run, self.outcome, [self.body], ""
        outcome = msgspec.structs.replace(
            self.outcome,
            output=(len(printed.stdout), len(printed.stderr), 0),
            printed=(*printed.nbytes, 0),
        )
        return self.run, outcome, [self.body, printed.stdout, printed.stderr], ""


_Taken: TypeAlias = tuple[int, Outcome, list[bytes]]
"""Run of the first task, outcome, and the bytes to send."""


def _ok(
    batch: RunTasks, index: int, encoding: Encoding, nbytes: int, elapsed: float, file: str = ""
) -> Outcome:
    return Outcome(
        start=index,
        stop=index + 1,
        round=batch.round,
        attempt=batch.attempt,
        state=OutcomeState.OK,
        encoding=encoding,
        sizes=(nbytes,),
        elapsed_s=elapsed,
        file=file,
    )


class Outbox:
    """The writing end of the socket. What a task has printed goes with its outcome."""

    def __init__(self, connection: socket.socket, output: Output) -> None:
        self._output = output
        self.folder: SharedFolder | None = None
        self._connection = connection
        self._entries: list[_Results | _Single] = []
        self._open: _Results | None = None
        self._lock = threading.Lock()
        self._unsent = threading.Event()
        threading.Thread(target=self._flush_soon, name="nbsched-outbox", daemon=True).start()

    # ------------------------------------------------------------ adding

    def open(self, batch: RunTasks, run: int, index: int) -> list[Any]:
        """Where to append the small scalars that tasks from ``index`` on return, one for
        each, until `close` or until anything else is added."""
        entry = _Results(batch, run, index, Encoding.SCALARS, began_ns=time.monotonic_ns())
        with self._lock:
            self._entries.append(entry)
            self._open = entry
            self._unsent.set()  # under the lock: a flush that is under way must not clear it
        return entry.values

    def close(self) -> None:
        """Nothing more is appended."""
        with self._lock:
            self._close()

    def scalar(self, batch: RunTasks, run: int, index: int, value: object, elapsed: float) -> bool:
        """Add a scalar. False: the open list is in its place, append it there."""
        with self._lock:
            if self._open is not None:
                return False
            if self._output.dirty:
                body = pickle.dumps([value], protocol=pickling.PROTOCOL)
                outcome = _ok(batch, index, Encoding.SCALARS, len(body), elapsed)
                self._entries.append(_Single(run, outcome, body, self._output.take()))
                return True
            last = self._last(batch, index)
            if last is None or last.encoding is Encoding.SCALARS:
                entry = last or self._begin(batch, run, index, Encoding.SCALARS)
                entry.values.append(value)
            else:
                entry = last
                entry.values.append(pickle.dumps(value, protocol=pickling.PROTOCOL))
            entry.elapsed_s += elapsed
        return True

    def pickled(
        self, batch: RunTasks, run: int, index: int, frame: frames.Frame, elapsed: float
    ) -> None:
        """Add a pickled result. Its bytes are taken over before this returns."""
        with self._lock:
            self._close()
            large = frame.nbytes >= SHARE_BYTES
            if large and (name := self._share(batch.job, index, frame.chunks)):
                outcome = _ok(batch, index, Encoding.PICKLES, frame.nbytes, elapsed, name)
                self._entries.append(_Single(run, outcome, b"", self._output.take()))
            elif self._output.dirty:
                outcome = _ok(batch, index, Encoding.PICKLES, frame.nbytes, elapsed)
                self._entries.append(_Single(run, outcome, frame.join(), self._output.take()))
            else:
                entry = self._last(batch, index)
                if entry is None or entry.encoding is not Encoding.PICKLES:
                    entry = self._begin(batch, run, index, Encoding.PICKLES)
                entry.values.append(frame.join())
                entry.elapsed_s += elapsed

    def other(self, run: int, outcome: Outcome, body: bytes = b"") -> None:
        """Add any other outcome."""
        with self._lock:
            self._close()
            self._entries.append(_Single(run, outcome, body, self._output.take()))

    def _close(self) -> None:
        entry, self._open = self._open, None
        if entry is not None:
            entry.elapsed_s += (time.monotonic_ns() - entry.began_ns) * 1e-9
            entry.began_ns = 0

    def _begin(self, batch: RunTasks, run: int, index: int, encoding: Encoding) -> _Results:
        entry = _Results(batch, run, index, encoding)
        self._entries.append(entry)
        return entry

    def _last(self, batch: RunTasks, index: int) -> _Results | None:
        """The last entry, if this task comes right behind it."""
        last = self._entries[-1] if self._entries else None
        if isinstance(last, _Results) and last.batch is batch:
            return last if last.index + len(last.values) == index else None
        return None

    def _share(self, job: str, index: int, chunks: Sequence[frames.Chunk]) -> str:
        """Write to the shared folder; '' when that cannot be done."""
        if self.folder is None:
            return ""
        try:
            return self.folder.write(job, f"out-{index}", chunks)
        except OSError as error:  # the log has room, or says what is to be done
            log.warning("a result cannot be written to the shared folder: %s", error)
            return ""

    # ------------------------------------------------------------ sending

    def flush_soon(self) -> None:
        """Other tasks follow: what there is by then must not wait for their end."""
        if not self._unsent.is_set():
            self._unsent.set()

    def skipped(self, first_run: int, count: int) -> None:
        self.flush()
        self.send(Skipped(first_run, count))

    def send(self, frame: Frame) -> None:
        with self._lock:
            self._connection.sendall(protocol.pack(frame))

    def flush(self) -> bool:
        """Send what there is, in order; whether there was anything."""
        with self._lock:
            entries, self._entries = self._entries, []
            if self._open is not None:
                self._entries.append(self._open)
            else:
                self._unsent.clear()
            taken = [self._placed(*part) for entry in entries if (part := entry.take())]
            if taken:
                self._send_outcomes(taken)
            return bool(taken)

    def _placed(self, run: int, outcome: Outcome, bodies: list[bytes], job: str) -> _Taken:
        """With its bytes in the shared folder, if they are many."""
        if job and sum(map(len, bodies)) >= SHARE_BYTES:
            name = self._share(job, outcome.start, bodies)
            if name:
                return run, msgspec.structs.replace(outcome, file=name), []
        return run, outcome, bodies

    def _send_outcomes(self, taken: list[_Taken]) -> None:
        outcomes: list[tuple[int, Outcome]] = []
        bodies: list[bytes] = []
        for run, outcome, parts in taken:
            outcomes.append((run, outcome))
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
        """Every few milliseconds while there is something; more rarely while nothing comes,
        as it interrupts the user's code each time."""
        while True:
            self._unsent.wait()
            pause_s = FLUSH_AFTER_S
            while self._unsent.is_set():
                time.sleep(pause_s)
                sent = self.flush()
                pause_s = FLUSH_AFTER_S if sent else min(2 * pause_s, _FLUSH_AT_LEAST_S)
