"""A callable that drags much data along is told by name and size."""

from __future__ import annotations

import functools
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbsched
from nbsched.errors import LargeCallableWarning
from nbsched.payload import largeparts
from nbsched.payload.largeparts import estimate, parts, warn_if_large

MIB = 1024**2
TABLE = np.zeros(2 * MIB, dtype=np.float64)


def found(fn: Callable[..., Any]) -> dict[str, int]:
    return {path: nbytes // MIB for path, _, nbytes in parts(fn)}


def notebook(source: str, **names: object) -> dict[str, Any]:
    """The names of a notebook after a cell was run."""
    namespace: dict[str, Any] = {"__name__": "__main__", **names}
    exec(source, namespace)
    return namespace


def test_globals_closure_variables_and_defaults_are_named() -> None:
    table = TABLE
    text = "x" * 3 * MIB
    fn = notebook(
        "def f(x, blob=blob, *, more=more):\n    return [big[x] for _ in small]",
        big=TABLE,
        small=[1],
        blob=bytes(2 * MIB),
        more=bytearray(4 * MIB),
    )["f"]

    assert found(lambda x: (table, text, x)) == {
        "closure variable 'table'": 16,
        "closure variable 'text'": 3,
    }
    assert found(fn) == {"global 'big'": 16, "default of 'blob'": 2, "default of 'more'": 4}


def test_what_a_helper_drags_along_is_found_through_it() -> None:
    names = notebook(
        "def helper():\n    return big\ndef f(x):\n    return helper()\n"
        "class Model:\n    weights = big\n"
        "def g(x):\n    return Model()",
        big=TABLE,
    )

    assert found(names["f"]) == {"global 'big' of helper": 16}
    assert found(names["g"]) == {"'weights' of Model": 16}


def test_bound_objects_and_partial_arguments_are_named() -> None:
    class Model:
        def __init__(self) -> None:
            self.weights = TABLE

        def predict(self, x: int) -> int:
            return x

    assert found(Model().predict) == {"bound object": 16}
    assert found(functools.partial(max, TABLE, key=TABLE[1:])) == {
        "argument 0": 16,
        "argument 'key'": 15,
    }


def test_what_a_worker_imports_is_not_counted() -> None:
    names = notebook("def f(x):\n    return np.sum(x), linspace(0, 1)", np=np, linspace=np.linspace)

    assert found(names["f"]) == {}


def test_data_of_a_local_module_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "localdata.py").write_text("BLOB = bytes(3 * 1024 ** 2)\ndef f(x): return BLOB[x]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import localdata  # type: ignore[import-not-found]

    try:
        with largeparts.localmodules.by_value():
            assert found(localdata.f) == {"global 'BLOB'": 3}
            fn = notebook("def g(x):\n    return m.f(x)", m=localdata)["g"]
            assert found(fn) == {"global 'BLOB' of f": 3}
    finally:
        del sys.modules["localdata"]


@pytest.mark.parametrize(
    ("value", "mib"),
    [
        (bytes(3 * MIB), 3),
        ("x" * 3 * MIB, 3),
        (memoryview(bytes(3 * MIB)), 3),
        (np.zeros((3, MIB), dtype=np.uint8), 3),
        ([bytes(MIB)] * 7, 7),
        ({n: bytes(1024) for n in range(8 * 1024)}, 8),
        (types.SimpleNamespace(inner=types.SimpleNamespace(data=bytes(5 * MIB))), 5),
    ],
    ids=lambda value: type(value).__name__,
)
def test_sizes_are_about_right(value: object, mib: int) -> None:
    assert mib <= estimate(value) / MIB < mib * 1.2


def test_a_container_that_contains_itself_has_a_size() -> None:
    own: list[object] = []
    own.append(own)

    assert estimate(own) > 0


def test_the_warning_names_the_parts_and_stands_at_the_users_line() -> None:
    fn = notebook("def f(x):\n    return big[x]", big=TABLE)["f"]

    with pytest.warns(LargeCallableWarning) as caught:
        warn_if_large(fn, "f", bytes(16 * MIB))

    (warning,) = caught
    assert str(warning.message).startswith(
        "The callable f takes 16.0 MiB to send: global 'big' (ndarray, 16.0 MiB). Pass"
    )
    assert warning.filename == __file__
    assert nbsched.LargeCallableWarning is LargeCallableWarning


def test_a_callable_of_usual_size_gets_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_large(lambda: TABLE, "f", bytes(9 * MIB))
