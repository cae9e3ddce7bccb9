"""Outcomes that the daemon itself gives: of tasks that no kernel can speak for."""

from __future__ import annotations

import time

from nbsched import messages
from nbsched.attempts import PastAttempt, with_attempt
from nbsched.kernel import stops
from nbsched.kernel.protocol import Breach
from nbsched.messages import Encoding, ErrorReport, Outcome, OutcomeState
from nbsched.worker.backlog import Piece
from nbsched.worker.deaths import Death


def cancelled(piece: Piece) -> Outcome:
    return Outcome(
        piece.start,
        piece.stop,
        piece.round,
        piece.attempt,
        OutcomeState.CANCELLED,
        crashes=piece.crashes,
    )


def crashed(piece: Piece, death: Death, worker: str, elapsed_s: float) -> tuple[Outcome, bytes]:
    """The task took its kernel down: it runs again, or has done so once too often."""
    deaths = piece.crashes + 1
    most = piece.brief.max_crashes
    final = deaths >= most
    history = with_attempt(piece.past, worker, death.cause)
    return _with_report(
        piece,
        OutcomeState.FAILED if final else OutcomeState.RETRY,
        death.report(piece.start, worker, deaths, most, history),
        deaths,
        elapsed_s,
        history,
    )


def stopped(piece: Piece, breach: Breach, worker: str, tail: str) -> tuple[Outcome, bytes]:
    """The task broke a limit and had to be killed, and no policy retries it."""
    error = stops.breach_error(breach, piece.start, worker, tail, piece.past)
    return _with_report(piece, OutcomeState.FAILED, stops.report(error), piece.crashes)


def unreadable(piece: Piece, worker: str, host: str, reason: str) -> tuple[Outcome, bytes]:
    """Input that cannot be had, of one task."""
    report = ErrorReport(
        type_name="InputNotReadableError",
        message=(
            f"The input of task {piece.start} of job {piece.job} cannot be used on worker host"
            f" {host}: {reason}. Submit the job again."
        ),
        system="InputNotReadableError",
        details={"index": piece.start, "cause": reason, "worker": worker, "host": host},
    )
    return _with_report(piece, OutcomeState.FAILED, report, piece.crashes)


def _with_report(
    piece: Piece,
    state: OutcomeState,
    report: ErrorReport,
    crashes: int,
    elapsed_s: float = 0.0,
    history: tuple[PastAttempt, ...] = (),
) -> tuple[Outcome, bytes]:
    assert piece.count == 1, "an error speaks of one task"
    body = messages.encode(report)
    known = piece.first_started_at
    first = time.time() - elapsed_s if known is None else known
    outcome = Outcome(
        piece.start,
        piece.stop,
        piece.round,
        piece.attempt,
        state,
        Encoding.ERROR,
        (len(body),),
        elapsed_s,
        crashes=crashes,
        first_started_at=first if state is OutcomeState.RETRY else None,
        past=history if state is OutcomeState.RETRY else (),
    )
    return outcome, body
