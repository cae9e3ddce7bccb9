"""The demo on real servers gives what plain `map` gives, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nbsched import LocalCluster, demo

FEW = demo.modules()[::60]
DEADLINE_S = 60


@pytest.fixture
def few_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "modules", lambda: FEW)


def environment(tmp_path: Path) -> dict[str, str]:
    """Nothing configured, and a home of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NBSCHED_")}
    return kept | {
        "NBSCHED_HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }


def processes_of(folder: Path) -> list[str]:
    """Command lines of processes that were started with this folder as their TMPDIR."""
    mark = f"TMPDIR={folder}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def assert_ends(folder: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while left := processes_of(folder):
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.05)


def test_the_cluster_and_plain_map_agree(
    few_modules: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with LocalCluster() as cluster:
        spread = demo.run(cluster=cluster)
    printed = capsys.readouterr()
    serial = demo.run(serial=True)

    assert spread == serial
    assert printed.out == capsys.readouterr().out
    assert "of 1 worker" in printed.err


def test_without_configuration_it_runs_on_a_private_cluster_and_ends_it(tmp_path: Path) -> None:
    code = (
        "from nbsched import demo\n"
        "few = demo.modules()[::60]\n"
        "demo.modules = lambda: few\n"
        "demo.run(serial=False, as_json=True)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )

    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["modules"] == len(FEW)
    assert_ends(tmp_path)
    assert not (tmp_path / "home").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ctrl_c_ends_the_demo_and_its_cluster(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from nbsched import demo\n"
        "started = sys.argv[1]\n"
        "demo.modules = lambda: ['bisect.py'] * 1000\n"
        "def slow(path):\n"
        "    open(started, 'w').close()\n"
        "    time.sleep(1)\n"
        "demo.analyse = slow\n"
        "demo.run()\n"
    )
    started = tmp_path / "started"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(started)],
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + DEADLINE_S
        while not started.exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
        process.wait()

    assert process.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said
    assert_ends(tmp_path)
