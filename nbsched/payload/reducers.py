"""What cloudpickle leaves to its name, or sends as something else.

`functools.lru_cache` and `functools.singledispatch` make objects that pickle by name
only, which no worker knows when they are the notebook's. An open file would arrive as
a copy of its text. The functions without an underscore are called by unpickling.
"""

from __future__ import annotations

import functools
import importlib
import io
import linecache
import sys
from collections.abc import Callable
from operator import attrgetter
from types import CodeType, FunctionType, ModuleType
from typing import Any

import cloudpickle

_Cached = type(functools.lru_cache(abs))
_DISPATCHING = functools.singledispatch(abs).__code__  # type: ignore[attr-defined]
_NO_FILE = "<dynamic-code>"
_OPEN_FILES = (
    io.TextIOWrapper,
    io.BufferedReader,
    io.BufferedWriter,
    io.BufferedRandom,
    io.FileIO,
)


def reduce(obj: Any) -> tuple[Any, ...] | None:
    """How ``obj`` is pickled, or None when that is not decided here."""
    for name in ("stdout", "stderr"):
        if obj is getattr(sys, name):
            return getattr, (sys, name)  # the kernel has its own
    if isinstance(obj, _OPEN_FILES):
        raise TypeError("an open file cannot be sent; pass its path")
    if isinstance(obj, _Cached):
        if not importable(obj):
            wanted = obj.cache_parameters()
            return cached, (obj.__wrapped__, wanted["maxsize"], wanted["typed"])
    elif isinstance(obj, FunctionType) and obj.__code__ is _DISPATCHING and not importable(obj):
        registry = dict(obj.registry)  # type: ignore[attr-defined]
        return dispatching, (registry.pop(object), tuple(registry.items()))
    return None


def code(obj: CodeType) -> tuple[Any, ...]:
    """cloudpickle's way with a code object, and the name of its file kept.

    cloudpickle 3.1.3 puts another name in its place, and tracebacks lose their lines.
    """
    make, args = cloudpickle.Pickler.dispatch_table[CodeType](obj)
    return make, tuple(obj.co_filename if arg == _NO_FILE else arg for arg in args)


def cached(fn: Callable[..., Any], maxsize: int | None, typed: bool) -> Any:
    """A function with an empty cache of its own."""
    return functools.lru_cache(maxsize, typed)(fn)


def dispatching(default: Callable[..., Any], others: tuple[tuple[type, Any], ...]) -> Any:
    """A generic function with its implementations."""
    generic = functools.singledispatch(default)
    for kind, implementation in others:
        generic.register(kind, implementation)
    return generic


def importable(obj: Any) -> bool:
    """Whether a worker finds it by its name; ask while local modules are by value."""
    name = getattr(obj, "__module__", None)
    module = sys.modules.get(name) if isinstance(name, str) else None
    if module is None or name == "__main__" or by_value(module):
        return False
    try:
        return attrgetter(obj.__qualname__)(module) is obj
    except AttributeError:
        return False


def by_value(module: ModuleType) -> bool:
    """Whether what this module contains, and itself, travels by value."""
    names = module.__name__.split(".")
    parents = {".".join(names[:count]) for count in range(1, len(names) + 1)}
    registered = cloudpickle.list_registry_pickle_by_value()
    return bool(parents & registered) or module.__name__ not in sys.modules


def by_state(module: ModuleType) -> tuple[Any, ...]:
    """How a module is sent with what it contains now.

    Its content follows as its state, so that modules may import each other.
    """
    return ModuleType, (module.__name__,), content(module), None, None, fill


def content(module: ModuleType) -> dict[str, Any]:
    return {key: value for key, value in module.__dict__.items() if key != "__builtins__"}


def fill(module: ModuleType, state: dict[str, Any]) -> None:
    """Give a module its content."""
    module.__dict__.update(state)


def by_source(module: ModuleType) -> tuple[Any, ...] | None:
    """How a module is sent of which something cannot be pickled; None without source."""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str):
        return None
    linecache.checkcache(file)  # it may have been edited
    lines = linecache.getlines(file)
    if not lines:
        return None
    return module_of, (module.__name__, str(file), "".join(lines))


def module_of(name: str, file: str, source: str) -> ModuleType:
    """Import a module, or else make it from its source."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # it is there; what it needs is not
    module = ModuleType(name)
    module.__file__ = file
    sys.modules[name] = module
    try:
        exec(compile(source, file, "exec"), module.__dict__)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def attribute_by_source(obj: Any) -> tuple[Any, ...] | None:
    """How a function or class is sent by the source of the local module that defines it;
    None when it is not what the module has under its name."""
    module = sys.modules.get(obj.__module__) if isinstance(obj.__module__, str) else None
    if module is None or module.__name__ == "__main__" or not by_value(module):
        return None
    try:
        own = attrgetter(obj.__qualname__)(module) is obj
    except AttributeError:
        return None
    source = by_source(module) if own else None
    return None if source is None else (attribute_of, (source[1], obj.__qualname__))


def attribute_of(module: tuple[str, str, str], path: str) -> Any:
    """What a module, by name, file and source, has under a name."""
    return attrgetter(path)(module_of(*module))
