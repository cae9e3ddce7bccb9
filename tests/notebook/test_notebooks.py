"""The notebooks of the repository run from top to bottom, and are stored clean."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted(Path(__file__).parents[2].joinpath("notebooks").glob("*.ipynb"))
CELL_TIMEOUT_S = 60
CONNECTING = ("NBSCHED_CONFIG", "NBSCHED_ETCD", "NBSCHED_NATS")
"""Settings of the developer's own that would lead to another cluster."""


@pytest.fixture
def private_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A local cluster of its own for the notebook, ended afterwards."""
    home = tmp_path / "home"
    for name in CONNECTING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NBSCHED_HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    yield home
    down = subprocess.run(
        [sys.executable, "-m", "nbsched.cli", "down"], capture_output=True, text=True, timeout=60
    )
    assert down.returncode == 0, down.stderr


def outputs(notebook: nbformat.NotebookNode) -> dict[str, str]:
    """The plain text that each cell left behind, by the cell's id."""
    found = {}
    for cell in notebook.cells:
        texts = [
            output.get("text") or output.get("data", {}).get("text/plain", "")
            for output in cell.get("outputs", [])
        ]
        found[cell.id] = "".join(texts)
    return found


def execute(path: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_S,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
    )
    with warnings.catch_warnings():
        # The kernel's manager warns about its own event loop and sockets, not about ours.
        warnings.simplefilter("ignore")
        client.execute()
    return notebook


def test_there_are_notebooks() -> None:
    assert [path.name for path in NOTEBOOKS] == ["01-first-map.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_stored_without_output(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)

    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [], f"cell {cell.id} has output: clear it before committing"
            assert cell.execution_count is None, f"cell {cell.id} has an execution count"


def test_the_first_notebook_does_what_it_says(private_home: Path) -> None:
    (path,) = (path for path in NOTEBOOKS if path.name == "01-first-map.ipynb")

    shown = outputs(execute(path))

    first_primes = "[99991, 100999, 101999, 102983, 103997]"
    assert os.path.isdir(private_home)
    assert first_primes in shown["results"]
    assert "110,000" in shown["stream"]
    assert "FileNotFoundError" in shown["exception"]
    assert "[3, 3, 2]" in shown["retry"]
    assert "True" in shown["auto-retry"]
    assert "True" in shown["cancel"]
    assert first_primes in shown["reconnect"]
