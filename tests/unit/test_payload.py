"""Envelope, pickling and blocks: nothing unsigned is read, nothing is lost on the way."""

from __future__ import annotations

import fnmatch
import importlib
import io
import pickle
import sys
import threading
from functools import partial
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from nbsched.errors import AuthenticationError, ConfigurationError, NotPicklableError
from nbsched.payload import blocks, envelope, frames, localmodules, pickling
from nbsched.payload.envelope import Envelope, Key, Kind

KEY = Key.generate()


def _sealed(body: bytes = b"body", **fields: object) -> bytes:
    content = Envelope(Kind.INPUT, "ns", job="j", first=3, count=4, term=7, meta=b"meta", **fields)  # type: ignore[arg-type]
    return envelope.seal(KEY, content, body)


def test_what_is_sealed_opens_unchanged() -> None:
    content, body = envelope.open_sealed(KEY, _sealed(), kind=Kind.INPUT, namespace="ns")
    assert (content.job, content.first, content.count, content.term) == ("j", 3, 4, 7)
    assert (content.meta, bytes(body)) == (b"meta", b"body")


@pytest.mark.parametrize("position", [5, 12, 40, 100, -40, -1])
def test_a_changed_byte_anywhere_is_refused(position: int) -> None:
    data = bytearray(_sealed())
    data[position] ^= 1
    with pytest.raises(AuthenticationError):
        envelope.open_sealed(KEY, bytes(data), kind=Kind.INPUT, namespace="ns")


def test_another_key_kind_or_namespace_is_refused() -> None:
    for key, kind, namespace in (
        (Key.generate(), Kind.INPUT, "ns"),
        (KEY, Kind.OUTCOME, "ns"),
        (KEY, Kind.INPUT, "other"),
    ):
        with pytest.raises(AuthenticationError):
            envelope.open_sealed(key, _sealed(), kind=kind, namespace=namespace)


def test_truncated_bytes_are_refused() -> None:
    data = _sealed()
    for length in range(len(data)):
        with pytest.raises(AuthenticationError):
            envelope.open_sealed(KEY, data[:length], kind=Kind.INPUT, namespace="ns")


def test_a_short_key_is_refused_with_the_way_to_make_one() -> None:
    with pytest.raises(ConfigurationError, match="token_urlsafe"):
        Key(b"short")


def test_an_unpicklable_member_of_a_callable_is_named() -> None:
    lock = threading.Lock()
    with pytest.raises(NotPicklableError, match="closure variable 'lock'"):
        pickling.dump_function(lambda: lock)
    with pytest.raises(NotPicklableError, match=r"args.*element 1"):
        pickling.dump_function(partial(print, 1, lock))


def test_the_source_of_code_that_exists_only_here_travels_along() -> None:
    def task(x: int) -> int:
        return x + 1  # a line to find again

    function = pickling.load_function(pickling.dump_function(task).join())
    assert any("a line to find again" in text for text in function.sources.values())
    assert pickling.loads(function.pickle)(1) == 2


def _items(packed: blocks.Packed) -> list[Any]:
    """What a kernel reads from a block."""
    block = blocks.decode(packed.frame.join())
    assert (block.first, block.count) == (packed.first, packed.count)
    if not block.sizes:
        return list(pickle.loads(block.data))
    ends = list(accumulate(block.sizes))
    return [
        frames.load(block.data[end - size : end])
        for size, end in zip(block.sizes, ends, strict=True)
    ]


@pytest.mark.parametrize(
    "items",
    [
        [],
        [1],
        list(range(40_000)),
        ["a", 1, None, 2.5, b"x"],
        [[1], {"a": 2}, (3,)],
        [1, 2, [3], 4, "five"],
        [b"x" * 1000] * 1000,
        [(i, str(i)) for i in range(5000)],
        [(1, 2), 3, (), ("a", [4]), (5,)],
        [(b"x" * 5000, i) for i in range(100)],
    ],
    ids=["none", "one", "many", "scalars", "objects", "mixed", "large", "pairs", "few", "long"],
)
def test_blocks_hold_all_items_in_order(items: list[object]) -> None:
    for source in (items, iter(items)):
        found: list[object] = []
        for packed in blocks.pack(source, 100_000):
            assert packed.first == len(found)
            found += _items(packed)
        assert found == items


def test_a_large_list_becomes_blocks_of_about_the_wanted_size() -> None:
    packed = list(blocks.pack([bytearray(10_000) for _ in range(200)], 100_000))
    assert len(packed) > 10
    assert all(block.frame.nbytes < 130_000 for block in packed)


def test_an_item_shared_by_two_tasks_is_not_shared_on_the_worker() -> None:
    shared: list[int] = []
    (block,) = blocks.pack([shared, shared], 1000)
    first, second = _items(block)
    first.append(1)
    assert second == []


def test_what_lies_in_two_tuples_is_not_shared_on_the_worker() -> None:
    shared: list[int] = []
    (block,) = blocks.pack([(shared,), (shared,)], 1000)
    first, second = _items(block)
    first[0].append(1)
    assert second == ([],)


def test_an_unpicklable_item_is_named_by_its_index() -> None:
    with pytest.raises(NotPicklableError, match="Item 2 "):
        list(blocks.pack([[0], [1], threading.Lock()], 1000))


def test_packing_consumes_no_more_than_it_needs() -> None:
    taken: list[int] = []

    def source() -> object:
        for i in range(1000):
            taken.append(i)
            yield [i]

    next(blocks.pack(source(), 10**6, lambda: 5))
    assert len(taken) == 5


class Point:
    def __init__(self, x: int) -> None:
        self.x = x


def test_imported_modules_are_looked_through_once_and_not_for_each_item(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scans: list[int] = []
    scan = localmodules.scan

    def counting() -> list[ModuleType]:
        scans.append(1)
        return scan()

    monkeypatch.setattr(localmodules, "scan", counting)
    monkeypatch.setattr(localmodules._Known, "key", ())
    list(blocks.pack([Point(x) for x in range(100)], 10**6))
    assert len(scans) == 1


@pytest.mark.parametrize(
    "item", [(1, "a"), {"a": [1.5, None]}, np.arange(9), {np.float32(1): {2, 3}}], ids=str
)
def test_plain_data_needs_no_look_at_modules_at_all(
    item: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localmodules, "by_value", None)
    (block,) = blocks.pack([item], 1000)
    assert str(_items(block)[0]) == str(item)


def _imported(
    folder: Path, monkeypatch: pytest.MonkeyPatch, source: str, name: str = "beside_notebook"
) -> ModuleType:
    """A module that lies in the working directory."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    (folder / f"{name}.py").write_text(source)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)


def _read_elsewhere(data: bytes, name: str = "beside_notebook") -> Any:
    """Unpickle without the module."""
    hidden = sys.modules.pop(name)
    path, sys.path[:] = sys.path[:], [each for each in sys.path if each != str(Path.cwd())]
    try:
        return pickle.loads(data)
    finally:
        sys.path[:] = path
        sys.modules[name] = hidden


def test_a_module_imported_later_is_found_and_travels_by_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pickling.dumps(Point(1))  # the list of local modules is known now
    source = "class Late: pass\ndef double(x): return 2 * x\n"
    late = _imported(tmp_path, monkeypatch, source)
    obj, double = _read_elsewhere(pickling.dumps([late.Late(), late.double]))
    assert type(obj).__name__ == "Late"
    assert double(4) == 8


# ---------------------------------------------------------------- what needs its own reducer

DECORATED = """
import functools

@functools.lru_cache(maxsize=7, typed=True)
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)

@functools.singledispatch
def name(x):
    return "object"

@name.register
def _(x: int):
    return "int"

class Shape:
    @functools.cache
    def area(self):
        return 4
"""


def test_cached_and_generic_functions_travel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = _imported(tmp_path, monkeypatch, DECORATED)
    sent = pickling.dumps([module.fib, module.name, module.Shape()])
    fib, name, shape = _read_elsewhere(sent)
    assert fib(30) == 832040
    assert fib.cache_parameters() == {"maxsize": 7, "typed": True}
    assert fib.cache_info().hits > 0
    assert (name(1), name("x")) == ("int", "object")
    assert shape.area() == 4


def test_cached_functions_of_installed_modules_travel_by_name() -> None:
    installed = fnmatch._compile_pattern  # type: ignore[attr-defined]
    assert pickle.loads(pickling.dumps(installed)) is installed


def test_an_open_file_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text("x")
    for mode in ("r", "rb", "r+b", "w"):
        with open(path, mode) as file, pytest.raises(NotPicklableError) as caught:
            list(blocks.pack([[1], file], 1000))
        assert "Item 1 " in str(caught.value)
        assert "an open file cannot be sent; pass its path" in str(caught.value)


def test_streams_in_memory_and_the_workers_own_output_can_be_sent() -> None:
    buffer, out = pickle.loads(pickling.dumps([io.BytesIO(b"x"), sys.stdout]))
    assert buffer.read() == b"x"
    assert out is sys.stdout


STATEFUL = """
import threading

LOCK = threading.Lock()
X = 5

def locked():
    with LOCK:
        return X
"""


def test_a_local_module_with_a_lock_travels_by_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = _imported(tmp_path, monkeypatch, STATEFUL)
    data = pickling.load_function(
        pickling.dump_function(lambda: (module.locked(), module.X)).join()
    )
    assert _read_elsewhere(data.pickle)() == (5, 5)


def test_a_local_module_without_one_travels_with_its_present_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = _imported(tmp_path, monkeypatch, "X = 5")
    module.X = 6  # type: ignore[attr-defined]
    data = pickling.load_function(pickling.dump_function(lambda: module.X).join())
    assert _read_elsewhere(data.pickle)() == 6


def test_modules_that_import_each_other_travel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other_beside.py").write_text("import beside_notebook\nY = 3\n")
    module = _imported(tmp_path, monkeypatch, "import other_beside\nX = 5\n")
    data = pickling.load_function(pickling.dump_function(lambda: module.other_beside.Y).join())
    monkeypatch.delitem(sys.modules, "other_beside")
    assert _read_elsewhere(data.pickle)() == 3


def test_the_member_of_a_module_that_cannot_be_pickled_is_named() -> None:
    made = ModuleType("made")
    made.LOCK = threading.Lock()  # type: ignore[attr-defined]
    scope: dict[str, Any] = {"mod": made}
    exec("def task(e): return e is mod.X", scope)
    with pytest.raises(NotPicklableError, match=r"global 'mod'.*member 'LOCK'"):
        pickling.dump_function(scope["task"])
