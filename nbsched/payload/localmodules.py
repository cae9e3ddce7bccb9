"""Modules that lie beside the notebook or script, where no worker can import them.

Their functions and classes travel by value. The list of them is kept from one pickle
to the next: going through all imported modules costs more than pickling most items.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType

import cloudpickle

_registration = threading.RLock()  # what is being pickled may pickle something itself
_INSTALLED = tuple(
    {
        os.path.realpath(path) + os.sep
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
        if (path := sysconfig.get_path(name))
    }
)


class _Known:
    """The names of the local modules, and what they were found with."""

    key: tuple[object, ...] = ()
    names: tuple[str, ...] = ()
    wanted: bool = True


def folders() -> tuple[str, ...]:
    """The working directory, the script's folder and the first of the import path."""
    candidates = {working_directory()}
    if sys.path and sys.path[0]:
        candidates.add(os.path.abspath(sys.path[0]))
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    if isinstance(main, str):
        candidates.add(os.path.dirname(os.path.abspath(main)))
    return tuple(sorted(path for path in candidates if path and path != os.sep))


def working_directory() -> str:
    """Where this process is, or '' when that folder is gone."""
    try:
        return os.getcwd()
    except OSError:
        return ""


@contextmanager
def by_value() -> Iterator[None]:
    """Let cloudpickle send local modules by value, and only meanwhile."""
    with _registration:
        registered = []
        known = cloudpickle.list_registry_pickle_by_value()
        for name in _names():
            module = sys.modules.get(name)
            if module is not None and name not in known:
                cloudpickle.register_pickle_by_value(module)
                registered.append(module)
        try:
            yield
        finally:
            for module in registered:
                cloudpickle.unregister_pickle_by_value(module)


def send_by_reference() -> None:
    """From now on no module of this process travels by value."""
    _Known.wanted = False


def _names() -> tuple[str, ...]:
    if not _Known.wanted:
        return ()
    first = sys.path[0] if sys.path else ""
    key = (len(sys.modules), working_directory(), first)
    if key != _Known.key:
        _Known.names = tuple(module.__name__ for module in scan())
        _Known.key = key
    return _Known.names


def scan() -> list[ModuleType]:
    """Imported modules whose file lies in one of `folders`."""
    return [module for _, module in under(folders())]


def under(
    paths: tuple[str, ...], names: Iterable[str] | None = None
) -> list[tuple[str, ModuleType]]:
    """Imported modules, or those of these names, whose file lies under one of the folders.

    Installed packages are importable on workers and travel by reference, even when
    the environment lies under the working directory.
    """
    roots = tuple(path.rstrip(os.sep) + os.sep for path in paths)
    found = []
    for name in list(sys.modules if names is None else names):
        module = sys.modules.get(name)
        if name == "__main__" or name.partition(".")[0] == "nbsched":
            continue
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or not isinstance(module, ModuleType):
            continue
        installed = file.startswith(_INSTALLED) or "site-packages" in file
        if file.startswith(roots) and not installed and module.__name__ == name:
            found.append((name, module))
    return found
