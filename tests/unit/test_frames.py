"""Pickles with their large buffers beside them: what is copied, and what is not."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nbsched.payload import blocks, frames, pickling
from nbsched.payload.sharedfolder import SharedFolder

LARGE = frames.APART_BYTES // 8  # float64


def _views(frame: frames.Frame) -> list[Any]:
    return [np.frombuffer(c, np.uint8) for c in frame.chunks if isinstance(c, memoryview)]


def test_a_large_array_is_not_copied_before_it_is_written() -> None:
    array = np.arange(LARGE, dtype=float)
    (view,) = _views(pickling.pack({"a": [array]}))
    assert np.shares_memory(view, array)


def test_small_arrays_lie_in_the_pickle() -> None:
    frame = pickling.pack([np.arange(LARGE - 1, dtype=float), "text"])
    assert len(frame.chunks) == 1
    assert pickle.loads(frame.join())[1] == "text"


@pytest.mark.parametrize(
    "value",
    [
        np.arange(LARGE, dtype=float),
        np.asfortranarray(np.arange(2 * LARGE, dtype=float).reshape(2, -1)),
        np.arange(2 * LARGE, dtype=float)[::2],
        [np.ones(LARGE), np.zeros(3), np.full(2 * LARGE, 7, np.int8), np.ones(LARGE)],
        bytearray(2 * frames.APART_BYTES),
    ],
    ids=["array", "fortran", "strided", "several", "bytearray"],
)
def test_what_is_packed_is_loaded_again(value: Any) -> None:
    data = pickling.pack(value).join()
    found = frames.load(data)
    assert len(data) % frames.ALIGNMENT == 0 or not frames.has_buffers(data)
    np.testing.assert_equal(found, value)


def test_an_array_from_bytes_can_be_written_to_and_leaves_them_alone() -> None:
    data = pickling.pack(np.zeros(LARGE)).join()
    first = frames.load(data)
    first += 1
    assert not frames.load(data).any()


def test_a_read_only_array_stays_read_only() -> None:
    array = np.zeros(LARGE)
    array.flags.writeable = False
    assert not frames.load(pickling.pack(array).join()).flags.writeable


def test_an_array_from_a_file_lies_in_the_mapping_and_is_aligned(tmp_path: Path) -> None:
    folder = SharedFolder.open(tmp_path / "shared")
    name = folder.write("job", "x", pickling.pack([np.ones(3 * LARGE), np.ones(LARGE)]).chunks)
    mapped = folder.map(name)
    for array in frames.load(mapped):
        assert np.shares_memory(array, np.frombuffer(mapped, np.uint8))
        assert array.ctypes.data % frames.ALIGNMENT == 0
        assert array.flags.writeable


def test_items_are_what_they_were_when_the_iterator_gave_them() -> None:
    def source() -> Iterator[Any]:
        array = np.zeros(LARGE)
        box: list[int] = []
        for i in range(6):
            array += 1
            box.append(i)
            yield array
            yield box

    found: list[Any] = []
    for packed in blocks.pack(source(), 10**6):
        block = blocks.decode(packed.frame.join())
        at = 0
        for size in block.sizes:
            found.append(frames.load(block.data[at : at + size]))
            at += size
    assert [int(array[0]) for array in found[::2]] == [1, 2, 3, 4, 5, 6]
    assert [len(box) for box in found[1::2]] == [1, 2, 3, 4, 5, 6]


def test_what_an_iterator_raises_comes_behind_what_it_gave() -> None:
    def source() -> Iterator[int]:
        yield from range(100)
        raise LookupError("no more")

    packed = blocks.pack(source(), 10**6)
    assert next(packed).count == 100
    with pytest.raises(LookupError, match="no more"):
        next(packed)
