"""What users install: everything that the code opens at run time is in it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="building a wheel without a network needs hatchling")

ROOT = Path(__file__).parents[2]


def test_a_wheel_has_the_whole_package_and_what_its_display_is_made_of(tmp_path: Path) -> None:
    build = "import sys, hatchling.build; print(hatchling.build.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")

    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("nbsched/")}

    files = (path for path in (ROOT / "nbsched").rglob("*") if path.is_file())
    here = {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
    assert packed == here
    for name in ("display/static/display.js", "display/static/display.css", "py.typed"):
        assert f"nbsched/{name}" in packed
