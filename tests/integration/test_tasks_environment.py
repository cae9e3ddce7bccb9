"""What tasks find around them: the notebook's folder, its modules, a mark in the environment."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbsched import LocalCluster


@pytest.fixture
def folder(cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The notebook's, which is not the one that the cluster was started in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def helper(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of a module that lies beside the notebook."""
    monkeypatch.syspath_prepend(folder)
    yield folder / "helper_beside.py"
    sys.modules.pop("helper_beside", None)


def test_a_task_opens_a_file_beside_the_notebook(cluster: LocalCluster, folder: Path) -> None:
    (folder / "data.csv").write_text("1,2")
    assert cluster.submit(lambda: open("data.csv").read()).result(60) == "1,2"  # noqa: SIM115


def test_a_task_that_changes_folder_does_not_take_its_neighbours_along(
    cluster: LocalCluster, folder: Path
) -> None:
    def look(_: int) -> str:
        here = os.getcwd()
        os.chdir("/")
        return here

    assert set(cluster.map(look, range(20)).result(60)) == {str(folder)}


def test_a_job_from_a_folder_that_the_host_lacks_runs_where_the_worker_was_started(
    cluster: LocalCluster, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = cluster.submit(os.getcwd).result(60)
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    elsewhere = cluster.submit(os.getcwd).result(60)
    assert here == str(folder)
    assert elsewhere not in ("", here, str(gone))


def test_a_module_imported_inside_a_task_is_read_again_after_an_edit(
    cluster: LocalCluster, helper: Path
) -> None:
    def ask(_: int) -> str:
        import helper_beside  # type: ignore[import-not-found]

        return str(helper_beside.answer())

    helper.write_text("def answer(): return 'old'\n")
    assert set(cluster.map(ask, range(20)).result(60)) == {"old"}
    helper.write_text("def answer(): return 'much newer'\n")
    assert set(cluster.map(ask, range(20)).result(60)) == {"much newer"}


def test_an_error_class_imported_inside_a_task_is_the_notebooks_own(
    cluster: LocalCluster, helper: Path
) -> None:
    def fail() -> None:
        import helper_beside

        raise helper_beside.OwnError("x")

    helper.write_text("class OwnError(Exception): pass\n")
    own = importlib.import_module("helper_beside")
    with pytest.raises(own.OwnError):
        cluster.submit(fail).result(60)
