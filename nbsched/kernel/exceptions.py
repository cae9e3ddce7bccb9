"""Exceptions on their way to the client, as themselves if at all possible.

An exception's ordinary pickle calls its class with ``args``, which fails where the
constructor takes something else, and fails as a whole where one attribute cannot be
pickled. Such an exception is rebuilt without its constructor, and without what
cannot be pickled. `rebuild` and `chain` are called by unpickling, on the client.
"""

from __future__ import annotations

import sys
from typing import Any

from nbsched.payload import pickling

_MAX_CAUSES = 8
_MAX_TEXT = 100_000


def safe_text(error: BaseException) -> str:
    """``str(error)``, even when that raises."""
    try:
        return str(error)[:_MAX_TEXT]
    except BaseException as second:
        return f"<{type(error).__qualname__} whose __str__ raised {type(second).__qualname__}>"


def portable_pickle(error: BaseException) -> bytes | None:
    """Pickle of the exception with its causes, or None when it does not survive that."""
    portable = _portable(error, _MAX_CAUSES)
    try:
        return None if portable is None else pickling.dumps(portable)
    except BaseException:
        return None


def _portable(error: BaseException, depth: int) -> object | None:
    portable: object
    if _survives(error, error, same_text=True):
        portable = error
    else:
        portable = _Rebuilt(error)
        if not _survives(portable, error, same_text=False):
            return None
    cause = _portable(error.__cause__, depth - 1) if error.__cause__ and depth else None
    return portable if cause is None else _Chained(portable, cause)


def _survives(portable: object, error: BaseException, *, same_text: bool) -> bool:
    try:
        copy = pickling.loads(pickling.dumps(portable))
        if type(copy).__qualname__ != type(error).__qualname__:
            return False
        return not same_text or safe_text(copy) == safe_text(error)
    except BaseException:
        return False


class _Rebuilt:
    """Pickles an exception by its class, arguments and attributes."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __reduce__(self) -> tuple[Any, ...]:
        error = self._error
        state, dropped = {}, []
        for name, value in error.__dict__.items():
            if _can_travel(value):
                state[name] = value
            else:
                dropped.append(name)
        # An OSError's ``args`` lack the file names that its base's constructor takes.
        args = _builtin_base(type(error)).__reduce__(error)[1]
        return rebuild, (type(error), args, state, tuple(dropped))


def _can_travel(value: object) -> bool:
    try:
        pickling.loads(pickling.dumps(value))
    except BaseException:
        return False
    return True


def rebuild(
    kind: type[BaseException],
    args: tuple[Any, ...],
    state: dict[str, Any],
    dropped: tuple[str, ...],
) -> BaseException:
    """Make an exception without calling its own constructor.

    Attributes that could not travel are None, and a note names them.
    """
    error = kind.__new__(kind, *args)
    try:  # for what is kept outside of ``args`` and ``__dict__``, as errno
        _builtin_base(kind).__init__(error, *args)
    except Exception:
        error.args = args
    error.__dict__.update(dict.fromkeys(dropped), **state)
    if dropped:
        note(error, f"Not sent by the worker, since it cannot be pickled: {', '.join(dropped)}")
    return error


def note(error: BaseException, text: str) -> None:
    """Add a line to an exception, which a traceback shows from Python 3.11 on."""
    if sys.version_info >= (3, 11):
        error.add_note(text)
    else:
        error.__dict__.setdefault("__notes__", []).append(text)


def _builtin_base(kind: type[BaseException]) -> Any:
    return next(base for base in kind.__mro__ if base.__module__ == "builtins")


class _Chained:
    """Pickles an exception together with its cause, which its own pickle leaves out."""

    def __init__(self, error: object, cause: object) -> None:
        self._parts = error, cause

    def __reduce__(self) -> tuple[Any, ...]:
        return chain, self._parts


def chain(error: BaseException, cause: BaseException) -> BaseException:
    """Let a cause follow its exception."""
    error.__cause__ = cause
    return error
