"""The notebooks of the repository run from top to bottom, and are stored clean."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted(Path(__file__).parents[2].joinpath("notebooks").glob("*.ipynb"))
CELL_TIMEOUT_S = 240
"""Generous: time decides nothing here."""
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


def execute(name: str, *, instead: dict[str, str] | None = None) -> nbformat.NotebookNode:
    """Run a notebook from top to bottom, some of its lines replaced by others."""
    (path,) = (path for path in NOTEBOOKS if path.name == name)
    text = path.read_text("utf-8")
    for old, new in (instead or {}).items():
        assert text.count(old) == 1, f"{name} has to have {old!r} once"
        text = text.replace(old, new)
    notebook = nbformat.reads(text, as_version=4)
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
    assert [path.name for path in NOTEBOOKS] == [
        "01-first-map.ipynb",
        "02-progress-cancel-retry.ipynb",
        "03-survive.ipynb",
        "04-hyperparameters.ipynb",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_stored_without_output(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)

    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [], f"cell {cell.id} has output: clear it before committing"
            assert cell.execution_count is None, f"cell {cell.id} has an execution count"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_links_between_notebooks_lead_somewhere(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)

    for cell in notebook.cells:
        for target in re.findall(r"\]\(([^)]+)\)", cell.source if cell.cell_type != "code" else ""):
            assert target.startswith("https://") or (path.parent / target).exists(), target


def test_the_first_notebook_does_what_it_says(private_home: Path) -> None:
    shown = outputs(execute("01-first-map.ipynb"))

    first_primes = "[99999999977, 100999999999, 101999999987]"
    assert os.path.isdir(private_home)
    assert "1 worker" in shown["connect"]
    assert first_primes in shown["results"]
    assert "the first gap above 60 is below 149000000000" in shown["stream"]
    assert "100 of 100 tasks done" in shown["progress"]
    # A display goes on with its job: by now the retry may have turned it green.
    assert re.search("2/3 done, 1 failed|3/3 done", shown["fail"])
    assert "FileNotFoundError" in shown["exception"]
    assert "[3, 3, 2]" in shown["retry"]
    assert "True" in shown["auto-retry"]
    assert "True" in shown["cancel"]
    assert first_primes in shown["reconnect"]
    assert "largest_prime_below  succeeded  100/100" in shown["jobs"]


def test_the_second_notebook_stops_code_and_retries_it(private_home: Path) -> None:
    shown = outputs(execute("02-progress-cancel-retry.ipynb"))

    assert "60/60 done" in shown["progress"]
    assert "([0.0, 0.1, 0.2, 0.3, 0.4], 5.9)" in shown["async"]
    assert "step 7 has converged" in shown["stdout"]
    assert len(re.findall(r"\[\d+\] step \d+ has converged", shown["stdout"])) == 3
    assert "cancelled(): True" in shown["cancel"]
    assert "last line: tidied up; lines since then: 0" in shown["cancel"]
    assert "3/4 done, 1 cancelled" in shown["stubborn"]
    assert re.search("18/20 done, 2 failed|(19|20)/20 done", shown["fail"])
    assert "4 | 'page-04' | ValueError" in shown["failures"]
    assert "printed, before it failed: page-04: '12 4O 7'" in shown["failures"]
    assert "19.66" in shown["retry"]
    assert "1 task runs again" in shown["retry-rest"]
    assert "True" in shown["policy"]
    assert "[1, ValueError(" in shown["exceptions"]


def test_the_third_notebook_survives_the_leader_and_its_own_end(private_home: Path) -> None:
    """Without a restart of the kernel: the later cells are a second client, as they say."""
    shown = outputs(execute("03-survive.ipynb", instead={"seconds = 40": "seconds = 4"}))

    assert "3 workers" in shown["private"]
    (killed,) = re.findall(r"killed (\S+) after \d+ of 100 tasks", shown["kill"])
    assert "True" in shown["result"]
    before, after = re.findall(r"(\S+) led before, (\S+) leads now", shown["after"])[0]
    assert before == killed != after
    (starts,) = re.findall(r"(\d+) starts of 100 tasks", shown["twice"])
    assert int(starts) >= 100
    assert "long one" in shown["find"]
    assert "[0, 1, 4, 9, 16]" in shown["again"]
    assert "SIGABRT" in shown["crash"]


def test_the_fourth_notebook_finds_good_parameters(private_home: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")

    notebook = execute("04-hyperparameters.ipynb")

    shown = outputs(notebook)
    (score,) = re.findall(r"has not seen: (\S+)%", shown["best"])
    assert float(score) > 97
    assert "the same numbers: True" in shown["honest"]
    pictures = [
        cell.id
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert pictures == ["data", "plot", "wrong"]
