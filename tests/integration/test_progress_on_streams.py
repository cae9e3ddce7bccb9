"""What a script writes about its progress to a terminal, to a pipe, and when silenced."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

import msgspec
import pytest

from nbsched import LocalCluster

SCRIPT = """
import json, sys, time
from nbsched import Cluster
settings = json.loads(sys.argv[1])
with Cluster(**settings) as cluster:
    options = json.loads(sys.argv[2])
    print(len(cluster.map(time.sleep, [0.04] * 40, name="naps", **options).result()))
"""


def _command(cluster: LocalCluster, **options: object) -> list[str]:
    settings = msgspec.to_builtins(cluster.settings)
    del settings["progress"]  # the environment decides
    return [sys.executable, "-c", SCRIPT, json.dumps(settings), json.dumps(options)]


def _piped(cluster: LocalCluster, mode: str = "auto", **options: object) -> str:
    environ = {**os.environ, "NBSCHED_PROGRESS": mode}
    command = _command(cluster, **options)
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert ended.stdout == "40\n", ended.stderr
    return ended.stderr


def _on_terminal(cluster: LocalCluster, mode: str = "auto") -> str:
    ours, theirs = pty.openpty()
    environ = {**os.environ, "NBSCHED_PROGRESS": mode, "COLUMNS": "100"}
    command = _command(cluster)
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    written = b""
    try:
        while chunk := os.read(ours, 65536):
            written += chunk
    except OSError:  # how the end of a terminal is told
        pass
    finally:
        os.close(ours)
    out, _ = process.communicate(timeout=60)
    assert out == b"40\n", written
    return written.decode()


def test_a_terminal_gets_one_line_that_renews_itself(cluster: LocalCluster) -> None:
    text = _on_terminal(cluster)

    assert text.count("\n") == 1
    states = [line for line in text.split("\r") if "naps" in line]
    assert len(states) >= 2, "it moves"
    assert "40/40 done" in states[-1]
    assert "✓ succeeded" in states[-1]


def test_a_pipe_gets_a_line_for_every_ten_percent_at_most(cluster: LocalCluster) -> None:
    text = _piped(cluster)

    lines = text.splitlines()
    percents = [int(line.split(" %")[0].split()[-1]) for line in lines]
    assert "\r" not in text
    assert 2 <= len(lines) <= 11
    assert percents == sorted(set(percents))
    assert percents[-1] == 100


@pytest.mark.parametrize("option", [{}, {"progress": "text"}])
def test_off_silences_all(cluster: LocalCluster, option: dict[str, object]) -> None:
    assert _piped(cluster, "off", **option) == ""
    assert _on_terminal(cluster, "off") == ""


def test_one_map_may_be_silent(cluster: LocalCluster) -> None:
    assert _piped(cluster, progress="off") == ""


def test_one_map_may_show_a_tqdm_bar(cluster: LocalCluster) -> None:
    pytest.importorskip("tqdm")
    text = _piped(cluster, progress="tqdm")

    assert "naps: 100%|" in text
    assert "40/40" in text
