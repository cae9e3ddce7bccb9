"""What a Binder host builds and starts: has the notebooks' packages, and starts in any case."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BINDER = ROOT / "binder"
NAMES = {"sklearn": "scikit-learn"}
COMES_ALONG = {"numpy", "threadpoolctl", "tenacity"}
"""With scikit-learn, and with nbsched."""


def imported() -> set[str]:
    """The packages that the notebooks import, but for Python's own."""
    found = set()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in json.loads(path.read_text("utf-8"))["cells"]:
            if cell["cell_type"] != "code":
                continue
            # A cell may wait: as the body of a function that is no error.
            body = "".join("    " + line for line in cell["source"])
            for node in ast.walk(ast.parse(f"async def cell():\n{body}")):
                if isinstance(node, ast.Import):
                    found |= {name.name.split(".")[0] for name in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    found.add(node.module.split(".")[0])
    return {NAMES.get(name, name) for name in found - sys.stdlib_module_names}


def test_the_image_has_every_package_that_a_notebook_imports() -> None:
    lines = (BINDER / "requirements.txt").read_text().splitlines()
    installed = {re.split(r"[><=\[ ]", line)[0] for line in lines if not line.startswith("#")}

    needed = imported()

    assert "nbsched" in needed
    assert needed - {"nbsched"} - COMES_ALONG <= installed


@pytest.mark.parametrize("name", ["postBuild", "start"])
def test_scripts_can_be_run(name: str) -> None:
    assert os.access(BINDER / name, os.X_OK)


@pytest.mark.parametrize("ends", [0, 1])
def test_the_server_starts_whether_the_cluster_did_or_not(tmp_path: Path, ends: int) -> None:
    fake = tmp_path / "nbsched"
    fake.write_text(f'#!/bin/sh\necho "nbsched $@"\nexit {ends}\n')
    fake.chmod(0o755)

    started = subprocess.run(
        [BINDER / "start", "echo", "jupyter", "a b"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )

    assert started.stdout.splitlines() == ["nbsched up", "jupyter a b"]
    assert ("failed" in started.stderr) == bool(ends)
