"""Magics and tables in a real Jupyter kernel."""

from __future__ import annotations

import warnings
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

CELLS = [
    "from nbsched import LocalCluster\ncluster = LocalCluster(cpus=2)\n%load_ext nbsched",
    "import math\nx = 3\ndef grow(n):\n    return n * x",
    ("%%nbsched --in x --out y --name steps\n"
    "import time\ntime.sleep(0.6)\ny = grow(math.floor(2.5))\ny + 1"),
    "(x, y)",
    "%nbsched jobs",
    "cluster.workers()",
    "%%nbsched\nzero = x - 3\n1 / zero",
    "cluster.close()",
]  # fmt: skip


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[nbformat.NotebookNode]:
    """The cells after they were run."""
    folder: Path = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        patch.setenv("JUPYTER_RUNTIME_DIR", str(folder / "runtime"))
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in CELLS])
        client = NotebookClient(notebook, timeout=60, kernel_name="python3", allow_errors=True)
        with warnings.catch_warnings():
            # The kernel's manager warns about its own event loop and sockets, not about ours.
            warnings.simplefilter("ignore")
            client.execute()
    return list(notebook.cells)


def _values(cell: nbformat.NotebookNode, mime: str) -> list[str]:
    return [out.data[mime] for out in cell.outputs if mime in out.get("data", {})]


def test_a_cell_shows_its_progress_and_its_value(cells: list[nbformat.NotebookNode]) -> None:
    progress, value = _values(cells[2], "text/plain")

    assert "'steps'" in progress
    assert "succeeded" in progress
    assert value == "7"
    assert _values(cells[3], "text/plain") == ["(3, 6)"]


def test_tables_are_shown_as_html_with_text_beside(cells: list[nbformat.NotebookNode]) -> None:
    for cell, word in ((cells[4], "steps"), (cells[5], "leads")):
        (html,) = _values(cell, "text/html")
        (text,) = _values(cell, "text/plain")
        assert html.count("<tr>") == 2
        assert word in html
        assert word in text


def test_an_error_shows_the_line_of_the_cell(cells: list[nbformat.NotebookNode]) -> None:
    (error,) = [out for out in cells[6].outputs if out.output_type == "error"]

    assert error.ename == "ZeroDivisionError"
    traceback = "\n".join(error.traceback)
    assert "line 3, in <module>" in traceback
    assert "1 / zero" in traceback
