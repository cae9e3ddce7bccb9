"""What makes a callable large: globals, closure variables and defaults, by name and size.

Sizes are estimates that cost next to nothing: an array knows its own, of a container a
sample is looked at. Only asked when a callable has turned out to be large.
"""

from __future__ import annotations

import dis
import functools
import sys
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from nbsched.errors import LargeCallableWarning
from nbsched.payload import localmodules, reducers

LARGE_BYTES = 10 * 1024**2
"""A callable from this size on is worth a word."""
_NAMED_BYTES = 1024**2
_MOST_NAMED = 4
_SAMPLE = 100
_DEPTH = 4


def warn_if_large(fn: Callable[..., Any], name: str, pickled: object) -> None:
    """Issue a `LargeCallableWarning` at the user's line if ``fn`` takes much room."""
    size = estimate(pickled)
    if size < LARGE_BYTES:
        return
    with localmodules.by_value():
        found = sorted(parts(fn), key=lambda part: -part[2])
    named = [
        f"{path} ({type(value).__qualname__}, {_mib(nbytes)})"
        for path, value, nbytes in found[:_MOST_NAMED]
    ]
    what = f": {', '.join(named)}" if named else ""
    warnings.warn(
        f"The callable {name} takes {_mib(size)} to send{what}. Pass what it works on as items,"
        " or load it inside the function; or leave it as it is: it goes to each host once per"
        " job. To hide this: warnings.simplefilter('ignore', nbsched.LargeCallableWarning)",
        LargeCallableWarning,
        stacklevel=level_of_user(),
    )


def parts(fn: Callable[..., Any]) -> Iterator[tuple[str, object, int]]:
    """Parts of at least 1 MiB that travel with a callable: path, value, bytes."""
    seen: set[int] = set()
    waiting = list(_members(fn))
    while waiting:
        path, value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if _is_code(value):
            if not _by_reference(value):
                waiting += [(f"{inner} of {_called(value)}", v) for inner, v in _members(value)]
        elif (nbytes := estimate(value)) >= _NAMED_BYTES:
            yield path, value, nbytes


def estimate(value: object, depth: int = _DEPTH) -> int:
    """About how many bytes a value takes; a container is judged by a sample of it."""
    if isinstance(value, (bytes, bytearray, str)):
        return len(value)
    if isinstance(value, (type, ModuleType, FunctionType)):
        return 0
    own = getattr(value, "nbytes", None)  # arrays of all kinds, memoryviews
    if isinstance(own, int):
        return own
    own = sys.getsizeof(value, 0)
    if depth == 0:
        return own
    if isinstance(value, dict):
        return own + _sampled([*islice(value.items(), _SAMPLE)], len(value), depth)
    if isinstance(value, (list, tuple, set, frozenset)):
        return own + _sampled([*islice(value, _SAMPLE)], len(value), depth)
    held = getattr(value, "__dict__", None)
    if isinstance(held, dict):
        return own + sum(estimate(each, depth - 1) for each in list(held.values()))
    return own


def _sampled(sample: list[Any], length: int, depth: int) -> int:
    if not sample:
        return 0
    return sum(estimate(each, depth - 1) for each in sample) * length // len(sample)


# ------------------------------------------------------------ what travels along


def _is_code(value: object) -> bool:
    kinds = (FunctionType, MethodType, ModuleType, type, functools.partial)
    return isinstance(value, kinds) or hasattr(value, "__wrapped__")


def _by_reference(value: object) -> bool:
    """Whether a worker imports it, so that nothing of it is sent."""
    if isinstance(value, ModuleType):
        return not reducers.by_value(value)
    return isinstance(value, (FunctionType, type)) and reducers.importable(value)


def _members(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, MethodType):
        yield "bound object", value.__self__
        yield "function", value.__func__
    elif isinstance(value, functools.partial):
        yield "function", value.func
        yield from ((f"argument {at}", each) for at, each in enumerate(value.args))
        yield from ((f"argument {name!r}", each) for name, each in value.keywords.items())
    elif isinstance(value, FunctionType):
        yield from _members_of_function(value)
    elif isinstance(value, (ModuleType, type)):
        yield from ((f"{n!r}", v) for n, v in list(vars(value).items()) if n != "__builtins__")
    else:
        held = getattr(value, "__dict__", {})
        yield from ((f"attribute {name!r}", each) for name, each in list(held.items()))
        if not held:
            yield "it", value


def _members_of_function(fn: FunctionType) -> Iterator[tuple[str, object]]:
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=False):
        try:
            yield f"closure variable {name!r}", cell.cell_contents
        except ValueError:  # a cell that is not filled yet
            continue
    for name in sorted(_globals_of(fn.__code__)):
        if name in fn.__globals__:
            yield f"global {name!r}", fn.__globals__[name]
    names = fn.__code__.co_varnames[: fn.__code__.co_argcount]
    defaults = fn.__defaults__ or ()
    yield from (
        (f"default of {name!r}", each)
        for name, each in zip(names[len(names) - len(defaults) :], defaults, strict=True)
    )
    for name, each in (fn.__kwdefaults__ or {}).items():
        yield f"default of {name!r}", each


def _globals_of(code: CodeType) -> set[str]:
    """Global names that code reads, its inner functions included."""
    steps = dis.get_instructions(code)
    found = {str(step.argval) for step in steps if step.opname == "LOAD_GLOBAL"}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= _globals_of(constant)
    return found


# ------------------------------------------------------------ words


def _called(value: object) -> str:
    return str(getattr(value, "__qualname__", None) or getattr(value, "__name__", "a callable"))


def _mib(nbytes: int) -> str:
    return f"{nbytes / 1024**2:,.1f} MiB"


def level_of_user() -> int:
    """The ``stacklevel`` of `warnings.warn` that leads out of this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__")):
        level, frame = level + 1, frame.f_back
    return level


def _is_ours(module: object) -> bool:
    return isinstance(module, str) and module.partition(".")[0] == "nbsched"
