"""What a cell needs from its notebook, and what it leaves behind."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import cloudpickle
import pytest

from nbsched.cells import Analysis, CellEnd, carrier
from nbsched.errors import NotPicklableError
from nbsched.payload import pickling


def needed(source: str) -> set[str]:
    return Analysis.of(source, "<cell>").needed


def ended(
    source: str,
    namespace: dict[str, Any] | None = None,
    outputs: tuple[str, ...] = (),
) -> CellEnd:
    """Run a cell as a worker does: from its pickle, in a process that knows no names."""
    namespace = {} if namespace is None else namespace
    namespace["__name__"] = "__main__"
    found = Analysis.of(source, "<cell>")
    sent = found.needed & set(namespace)
    function = carrier(source, "<cell>", namespace, sent, outputs, "a cell")
    end = pickle.loads(cloudpickle.dumps(function))(None)
    assert isinstance(end, CellEnd)
    return end


def value(source: str, **namespace: Any) -> Any:
    return shown(ended(source, namespace))


def shown(end: CellEnd) -> Any:
    data = end.value
    return None if data is None else pickling.loads(data)


# ------------------------------------------------------------ what it needs


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("y = x + 1\nz = y", "x"),
        ("x = x + 1", "x"),
        ("x += 1", "x"),
        ("x.a = 1\ny[0] = 2\ndel z", "x y z"),
        ("def f(a, b=x):\n    global g\n    g = a\n    return y", "x y"),
        ("class A(B):\n    n = 1\n    m = n + k\n    def f(self):\n        return j", "B k j"),
        ("class A:\n    a: int = 1\n    b = __qualname__", ""),
        ("[i + n for i in items]", "n items"),
        ("for i in items:\n    print(i)", "items"),
        ("for i in items:\n    pass\nprint(i)", "items i"),
        ("with open(p) as f:\n    t = f.read()\nt", "p"),
        ("if c:\n    a = 1\nelse:\n    a = 2\na", "c"),
        ("if c:\n    a = 1\na", "c a"),
        ("while (n := step()):\n    n", "step"),
        ("try:\n    a = f()\nexcept E as e:\n    print(e)\nfinally:\n    close()", "f E close"),
        ("import os.path as p, sys\np, sys", ""),
        ("lambda a: a + b", "b"),
        ("f'{x} {len(y)}'", "x y"),
        ("match x:\n    case [a, *b] if c:\n        a", "x c"),
        ("match x:\n    case K.n | {'n': 1}:\n        c\n    case {**r}:\n        r", "x c K"),
        ("await fetch(url)", "fetch url"),
        ("async with s() as t:\n    async for r in t:\n        r", "s"),
        ("print(len([1]))", ""),
        ("display(1)", "display"),
    ],
)  # fmt: skip
def test_needed_is_what_is_read_before_it_is_set(source: str, names: str) -> None:
    assert needed(source) == set(names.split())


def test_missing_is_what_neither_the_notebook_nor_the_cell_provides() -> None:
    cell = Analysis.of("if a:\n    b = c\nprint(b, d)", "<cell>")

    assert cell.missing({"a"}) == ["c", "d"]
    assert cell.missing({"a", "c", "d"}) == []
    assert Analysis.of("from math import *\nsqrt(2)", "<cell>").missing(()) == []


# ------------------------------------------------------------ how it runs


def test_a_cell_gives_back_its_outputs_and_the_value_of_its_last_expression() -> None:
    end = ended("y = x * 2\nz = [y]\ny + 1", {"x": 21}, ("y", "z"))

    assert end.outputs == {"y": 42, "z": [42]}
    assert end.value is not None
    assert pickling.loads(end.value) == 43


def test_functions_of_the_notebook_see_what_the_cell_sets() -> None:
    namespace: dict[str, Any] = {"__name__": "__main__", "n": 1, "unused": threading.Lock()}
    exec("def f():\n    return n + g()\ndef g():\n    return 10 * n", namespace)

    assert shown(ended("n = 5\nf()", namespace)) == 55
    assert namespace["n"] == 1


def test_a_semicolon_or_a_statement_at_the_end_shows_nothing() -> None:
    assert value("5") == 5
    assert value("5;") is None
    assert value("5;  # a comment\n") is None
    assert value("x = 5") is None
    assert value("") is None


def test_a_cell_may_await() -> None:
    source = "import asyncio\nawait asyncio.sleep(0)\nasync def f():\n    return 7\nawait f()"

    assert value(source) == 7


def test_a_value_that_cannot_be_pickled_comes_as_its_text() -> None:
    end = ended("import threading\nthreading.Lock()")

    assert end.value is None
    assert end.instead.startswith("<unlocked _thread.lock")


def test_an_output_that_was_not_set_is_named() -> None:
    with pytest.raises(NameError, match="without a value for 'y', which --out names"):
        ended("if x:\n    y = 1", {"x": 0}, ("y",))


def test_a_second_run_finds_the_names_as_they_were() -> None:
    namespace = {"__name__": "__main__", "x": 1}
    function = carrier("x += 1\nx", "<cell>", namespace, {"x"}, (), "cell")
    again = pickle.loads(cloudpickle.dumps(function))

    values = [pickling.loads(again(None).value) for _ in range(2)]

    assert values == [2, 2]


def test_names_of_the_notebook_may_be_any() -> None:
    namespace = {"_": 1, "cell": 2, "run": 3, "text": 4}

    assert value("_ + cell + run + text", **namespace) == 10


def test_what_cannot_be_sent_is_named() -> None:
    namespace = {"__name__": "__main__", "lock": threading.Lock()}
    function = carrier("lock", "<cell>", namespace, {"lock"}, (), "my cell")

    with pytest.raises(NotPicklableError, match=r"The callable my cell .* global 'lock'"):
        pickling.dump_function(function)
