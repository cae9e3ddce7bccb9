"""How results and exceptions become bytes that are safe to read elsewhere.

Nothing here may raise because of what the user's objects do: an exception whose
``__str__`` raises, or whose pickle cannot be read again, is still reported.
"""

from __future__ import annotations

import os
import sys
import traceback

from nbsched.attempts import PastAttempt
from nbsched.kernel import exceptions
from nbsched.kernel.exceptions import safe_text
from nbsched.messages import ErrorReport
from nbsched.payload import pickling

_OWN_FILES = os.path.dirname(os.path.abspath(__file__)) + os.sep
_SMALL_BYTES = 4096
_MAX_TEXT = 100_000


def is_small_scalar(value: object) -> bool:
    """Whether many such results may share one pickle."""
    return type(value) in pickling.SCALAR_TYPES and sys.getsizeof(value) <= _SMALL_BYTES


# ---------------------------------------------------------------- exceptions


def report_exception(error: BaseException, history: tuple[PastAttempt, ...] = ()) -> ErrorReport:
    """The report of an exception that the task raised."""
    return ErrorReport(
        type_name=type_name(error),
        message=safe_text(error),
        traceback=user_traceback(error),
        pickle=exceptions.portable_pickle(error),
        history=history,
    )


def report_system(
    system: str,
    message: str,
    raised: BaseException | None = None,
    /,
    *,
    history: tuple[PastAttempt, ...] = (),
    **details: str | int | float | None,
) -> ErrorReport:
    """The report of a failure that is not the task's own exception."""
    return ErrorReport(
        type_name=system,
        message=message[:_MAX_TEXT],
        traceback=user_traceback(raised) if raised is not None else "",
        system=system,
        details=details,
        history=history,
    )


def type_name(error: BaseException) -> str:
    """The exception's class, as a traceback would name it."""
    kind = type(error)
    if kind.__module__ in ("builtins", "__main__"):
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def user_traceback(error: BaseException) -> str:
    """The formatted traceback with the frames of the user's code only."""
    try:
        shown = traceback.TracebackException(type(error), error, error.__traceback__, compact=True)
        _drop_own_frames(shown, 50)
        # Python 3.10 knows nothing of notes.
        notes = [] if sys.version_info >= (3, 11) else getattr(error, "__notes__", [])
        return "".join([*shown.format(), *(f"{line}\n" for line in notes)])[-_MAX_TEXT:]
    except BaseException as second:
        return f"{type_name(error)}: (no traceback: formatting it raised {type(second).__name__})\n"


def _drop_own_frames(shown: traceback.TracebackException, depth: int) -> None:
    own = [frame for frame in shown.stack if frame.filename.startswith(_OWN_FILES)]
    for frame in own:
        shown.stack.remove(frame)
    inner = [shown.__cause__, shown.__context__, *(getattr(shown, "exceptions", None) or ())]
    for other in inner:
        if other is not None and depth:
            _drop_own_frames(other, depth - 1)
