"""The folder and the import path that a kernel gives to the tasks of a job."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import pytest

from nbsched.kernel.jobs import LoadedJob
from nbsched.kernel.workplace import Workplace
from nbsched.payload import pickling


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kernel's folder; folder and import path are put back afterwards."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", sys.path[:])
    return folder


def _job(monkeypatch: pytest.MonkeyPatch, folder: Path, *paths: Path) -> LoadedJob:
    """A job sent by a client in ``folder``."""
    with monkeypatch.context() as client:
        client.setattr(pickling.localmodules, "working_directory", lambda: str(folder))
        client.setattr(pickling.localmodules, "folders", lambda: tuple(map(str, paths)))
        return LoadedJob("j", "one", pickling.dump_function(abs).join())


def test_each_job_finds_its_own_folder_and_path(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    workplace = Workplace()
    workplace.enter(_job(monkeypatch, first, first, tmp_path / "missing"))
    assert os.getcwd() == str(first)
    assert str(first) in sys.path
    assert str(tmp_path / "missing") not in sys.path
    workplace.enter(_job(monkeypatch, second, second))
    assert os.getcwd() == str(second)
    assert str(first) not in sys.path
    workplace.enter(_job(monkeypatch, tmp_path / "missing"))
    assert os.getcwd() == str(home)


def test_only_a_new_job_makes_modules_be_read_again(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reread_module.py").write_text("")
    workplace = Workplace()
    jobs = [_job(monkeypatch, tmp_path, tmp_path) for _ in range(2)]
    for job in jobs:
        workplace.enter(job)
        job.function()
    module = importlib.import_module("reread_module")
    for job in jobs:
        workplace.enter(job)
    assert sys.modules["reread_module"] is module
    workplace.enter(_job(monkeypatch, tmp_path, tmp_path))
    assert "reread_module" not in sys.modules
