"""Code that lies beside the notebook, and what it drags along or lacks on a worker."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from nbsched import LargeCallableWarning, LocalCluster, errors

NAME = "module_beside_the_notebook"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of a local module."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / f"{NAME}.py"
    sys.modules.pop(NAME, None)


def _imported() -> ModuleType:
    """Import it, again if it was edited."""
    importlib.invalidate_caches()
    sys.modules.pop(NAME, None)
    return importlib.import_module(NAME)


# ------------------------------------------------------------ large data


def test_a_large_global_is_named_once_for_a_job_which_runs(cluster: LocalCluster) -> None:
    table = bytes(11 * 1024**2)

    with pytest.warns(LargeCallableWarning) as caught:
        results = cluster.map(lambda x: len(table) + x, range(3)).result(60)

    assert results == [len(table) + x for x in range(3)]
    (warning,) = caught
    assert "closure variable 'table' (bytes, 11.0 MiB)" in str(warning.message)
    assert warning.filename == __file__


def test_large_items_are_no_matter(cluster: LocalCluster) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cluster.map(len, [bytes(11 * 1024**2)]).result(60) == [11 * 1024**2]


# ------------------------------------------------------------ what a worker lacks


def test_a_package_that_a_worker_lacks_is_named_with_the_worker(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "site-packages"
    installed.mkdir()
    (installed / "only_here.py").write_text("def f(x): return x")
    monkeypatch.setattr(sys, "path", [*sys.path, str(installed)])
    module = importlib.import_module("only_here")

    with pytest.raises(errors.InputNotReadableError, match="only_here") as caught:
        cluster.map(module.f, [1]).result(60)

    assert cluster.workers()[0].host in str(caught.value)
    sys.modules.pop("only_here")


# ------------------------------------------------------------ edits


LOCKED = """
import threading

LOCK = threading.Lock()

def answer(x):
    with LOCK:
        return {answer}

class Adder:
    def __init__(self, x):
        self.x = x

    def add(self, y):
        with LOCK:
            return self.x + y
"""


def test_what_uses_its_modules_lock_travels_however_it_was_imported(
    cluster: LocalCluster, file: Path
) -> None:
    file.write_text(LOCKED.format(answer="x"))
    module = _imported()
    answer, adder = module.answer, module.Adder(3)

    assert cluster.map(answer, [1, 2]).result(60) == [1, 2]
    assert cluster.map(lambda x: answer(x), [1, 2]).result(60) == [1, 2]
    assert cluster.map(adder.add, [1, 2]).result(60) == [4, 5]
    assert cluster.map(lambda a: a.add(1), [adder]).result(60) == [4]
    (back,) = cluster.map(lambda x: module.Adder(x), [5]).result(60)
    assert type(back) is module.Adder
    assert back.add(1) == 6


@pytest.mark.parametrize("source", [LOCKED, "def answer(x): return {answer}\n"])
def test_an_edited_module_is_the_edited_one_on_the_next_call(
    cluster: LocalCluster, file: Path, source: str
) -> None:
    for answer in ("'old'", "'newer'", "'the newest'"):
        file.write_text(source.format(answer=answer))
        module = _imported()
        f = module.answer
        for fn in (module.answer, lambda x: module.answer(x), lambda x: f(x)):  # noqa: B023
            assert set(cluster.map(fn, range(8)).result(60)) == {answer.strip("'")}
