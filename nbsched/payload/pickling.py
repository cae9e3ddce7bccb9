"""Pickling callables and items so that they arrive: by value what a worker cannot import.

Functions and classes of the notebook (``__main__``) travel by value, as cloudpickle
does; so do those of modules that lie beside the notebook or script, which no
worker could import. The source lines of code that travels by value go along, for
tracebacks.
"""

from __future__ import annotations

import importlib
import io
import linecache
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple, TypeVar

import cloudpickle
import msgspec

from nbsched.errors import NotPicklableError
from nbsched.payload import frames, localmodules, reducers
from nbsched.payload.frames import Frame

PROTOCOL = 5
_T = TypeVar("_T")
SCALAR_TYPES = frozenset({int, float, bool, str, bytes, complex, type(None)})
"""Immutable and without identity: many may share one pickle."""

_PLAIN_MODULES = frozenset(
    {"builtins", "collections", "datetime", "decimal", "fractions", "numpy", "uuid"}
)
"""Every process has these, under these names: pickling by reference is right for them."""


class Function(NamedTuple):
    """A callable on its way to the kernels.

    Attributes:
        pickle: the frame of the callable.
        sources: text of each source file that does not exist elsewhere, by its name.
        retry: pickle of the tenacity policy, if any.
        cwd: the client's working directory; tasks run there if their host has it.
        paths: the client's folders of modules, to import from in the same way.
    """

    pickle: memoryview
    sources: dict[str, str]
    retry: bytes | None
    cwd: str
    paths: tuple[str, ...]


class _FunctionHead(msgspec.Struct, frozen=True, array_like=True):
    sources: dict[str, str]
    retry: bytes | None
    cwd: str
    paths: tuple[str, ...]


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's, with our reducers, noting which code objects travel by value."""

    def __init__(
        self,
        file: io.BytesIO,
        buffer_callback: frames.Callback | None = None,
        *,
        on_trial: bool = False,
        sourced: bool = False,
    ) -> None:
        super().__init__(file, protocol=PROTOCOL, buffer_callback=buffer_callback)
        self.code_files: set[str] = set()
        self._on_trial = on_trial
        self._sourced = sourced

    def reducer_override(self, obj: Any) -> Any:
        ours = reducers.reduce(obj)
        if ours is not None:
            return ours
        if isinstance(obj, CodeType):
            return reducers.code(obj)
        if isinstance(obj, ModuleType):
            return self._reduce_module(obj)
        if self._sourced and isinstance(obj, (FunctionType, type)):
            by_source = self._reduce_by_source(obj)
            if by_source is not None:
                return by_source
        reduced = super().reducer_override(obj)
        if reduced is not NotImplemented and isinstance(obj, FunctionType):
            self.code_files.add(obj.__code__.co_filename)
        return reduced

    def _reduce_module(self, module: ModuleType) -> Any:
        """A local module with its present state, or else by its source."""
        if not reducers.by_value(module):
            return NotImplemented
        if self._on_trial:  # whether this one can be sent is tried on its own
            return importlib.import_module, (module.__name__,)
        try:
            _Pickler(io.BytesIO(), on_trial=True).dump(reducers.content(module))
        except Exception:
            return reducers.by_source(module) or reducers.by_state(module)
        return reducers.by_state(module)

    def _reduce_by_source(self, obj: FunctionType | type) -> Any:
        """What a local module defines and cannot be sent: by the module's source.

        None when it can be sent with what it refers to, or is defined elsewhere.
        """
        by_source = reducers.attribute_by_source(obj)
        if by_source is None:
            return None
        try:
            _Pickler(io.BytesIO(), on_trial=True).dump(obj)
        except Exception:
            return by_source
        return None


class _NotPlainError(Exception):
    """Something here is neither plain data nor of a module that every process has."""


class _PlainPickler(pickle.Pickler):
    """The fast pickler, giving up at the first object that may need to go by value."""

    def reducer_override(self, obj: Any) -> Any:
        named = isinstance(obj, (type, FunctionType, BuiltinFunctionType))
        module = getattr(obj if named else type(obj), "__module__", None)
        if isinstance(module, str) and module.partition(".")[0] in _PLAIN_MODULES:
            return NotImplemented
        raise _NotPlainError


def pack(value: object) -> Frame:
    """Pickle any value so that the other side can read it. Raises what pickling raises.

    Large buffers in it are not copied: see `frames`.
    """
    # Most items and results are plain data, which needs none of cloudpickle's care.
    try:
        return frames.dump(partial(_dump_plain, value))
    except Exception:  # the careful way says what is wrong, if anything is
        with localmodules.by_value():
            return _as_it_can(
                lambda sourced: frames.dump(
                    lambda callback: _dump(value, callback, sourced=sourced)[0]
                )
            )


def dumps(value: object) -> bytes:
    """The same in one piece, buffers and all: for exceptions and other small things."""
    try:
        return _dump_plain(value, None)
    except Exception:
        with localmodules.by_value():
            return _as_it_can(lambda sourced: _dump(value, sourced=sourced)[0])


def _dump_plain(value: object, buffer_callback: frames.Callback | None) -> bytes:
    file = io.BytesIO()
    _PlainPickler(file, protocol=PROTOCOL, buffer_callback=buffer_callback).dump(value)
    return file.getvalue()


def _as_it_can(dump: Callable[[bool], _T]) -> _T:
    """Pickle with the present state of local modules, or else what they define and cannot
    be sent (it uses a lock, say) by their source. Raises what the first way raises."""
    try:
        return dump(False)
    except Exception as error:
        try:
            return dump(True)
        except Exception:
            raise error from error.__cause__


def _dump(
    value: object, buffer_callback: frames.Callback | None = None, *, sourced: bool = False
) -> tuple[bytes, set[str]]:
    file = io.BytesIO()
    pickler = _Pickler(file, buffer_callback, sourced=sourced)
    pickler.dump(value)
    return file.getvalue(), pickler.code_files


def dump_function(fn: Callable[..., Any], retry: object | None = None) -> Frame:
    """Pickle a callable with its sources and its retry policy. Layout: see `frames`.

    Raises:
        NotPicklableError: names the member that cannot be pickled.
    """
    code_files: set[str] = set()

    def dump(sourced: bool) -> Frame:
        def into(callback: frames.Callback) -> bytes:
            data, found = _dump(fn, callback, sourced=sourced)
            code_files.update(found)
            return data

        return frames.dump(into)

    with localmodules.by_value():
        try:
            pickled = _as_it_can(dump)
        except Exception as error:
            raise NotPicklableError(_explain(fn, error, f"The callable {describe(fn)}")) from error
        try:
            policy = None if retry is None else _dump(retry)[0]
        except Exception as error:
            raise NotPicklableError(_explain(retry, error, "The retry policy")) from error
    cwd, paths = localmodules.working_directory(), localmodules.folders()
    head = msgspec.msgpack.encode(_FunctionHead(_sources(code_files), policy, cwd, paths))
    return Frame((*frames.lead(head), *pickled.chunks))


def load_function(data: bytes | memoryview) -> Function:
    """Undo `dump_function`, without unpickling anything yet."""
    head, pickled = frames.split(data)
    read = msgspec.msgpack.decode(head, type=_FunctionHead)
    return Function(pickled, read.sources, read.retry, read.cwd, read.paths)


def describe(fn: object) -> str:
    """A short name of a callable, for people."""
    name = getattr(fn, "__qualname__", None) or getattr(
        getattr(fn, "func", None), "__qualname__", None
    )
    return str(name) if name else type(fn).__qualname__


def explain_item(item: object, index: int, error: Exception) -> str:
    """The message for an item that cannot be pickled."""
    with localmodules.by_value():
        return _explain(item, error, f"Item {index} ({type(item).__qualname__})")


def _explain(value: object, error: Exception, subject: str) -> str:
    member = _guilty_member(value, subject_depth=4)
    if member:
        fact = f"{subject} cannot be sent to a worker: its {member} cannot be pickled"
    else:
        fact = f"{subject} cannot be sent to a worker: it cannot be pickled"
    return (
        f"{fact} ({type(error).__name__}: {error}). Open connections, locks, files and generators"
        " inside the task instead of passing them in."
    )


def _guilty_member(value: object, subject_depth: int) -> str:
    """The path of the innermost member that cannot be pickled, or ''."""
    if subject_depth == 0:
        return ""
    for name, member in list(_members(value)):
        if _picklable(member):
            continue
        inner = _guilty_member(member, subject_depth - 1)
        kind = f"{name} ({type(member).__module__}.{type(member).__qualname__})"
        return f"{kind}, in it its {inner}" if inner else kind
    return ""


def _members(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=False):
            try:
                yield f"closure variable {name!r}", cell.cell_contents
            except ValueError:  # a cell that is not filled yet
                continue
        for name in value.__code__.co_names:
            if name in value.__globals__:
                yield f"global {name!r}", value.__globals__[name]
        for position, default in enumerate(value.__defaults__ or ()):
            yield f"default argument {position}", default
    elif isinstance(value, ModuleType):
        for name, member in value.__dict__.items():
            if name != "__builtins__":
                yield f"member {name!r}", member
    elif isinstance(value, dict):
        for key, member in value.items():
            yield f"entry {key!r}", member
    elif isinstance(value, (list, tuple, set, frozenset)):
        for position, member in enumerate(value):
            yield f"element {position}", member
    else:
        owner = getattr(value, "__self__", None)
        if owner is not None and not isinstance(owner, ModuleType):
            yield "bound object", owner
        for name in ("func", "args", "keywords"):
            if hasattr(value, name):
                yield name, getattr(value, name)
        for name, member in getattr(value, "__dict__", {}).items():
            yield f"attribute {name!r}", member


def _picklable(value: object) -> bool:
    try:
        _as_it_can(lambda sourced: _dump(value, sourced=sourced))
    except Exception:
        return False
    return True


def _sources(code_files: set[str]) -> dict[str, str]:
    """Source texts of code that exists only here: notebook cells, local modules."""
    texts = {}
    for name in code_files:
        lines = linecache.getlines(name)
        if lines:
            texts[name] = "".join(lines)
    return texts


def loads(data: bytes | memoryview) -> Any:
    """Unpickle a frame. Only for bytes whose envelope has been checked."""
    return frames.load(data)
