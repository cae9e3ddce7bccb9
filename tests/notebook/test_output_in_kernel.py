"""What tasks print appears in the cell that submitted them, or that waits for them."""

from __future__ import annotations

from collections import defaultdict

from support.notebookkernel import published, started_kernel

TIMEOUT_S = 60
SETUP = """
import tempfile, time
from pathlib import Path
from nbsched import LocalCluster
go_on = Path(tempfile.mkdtemp()) / "go on"
cluster = LocalCluster(workers=1, cpus=2, progress="off")
def speak(i, go_on=go_on):
    print("one", i)
    while not go_on.exists():
        time.sleep(0.01)
    print("two", i)
def end_while_waiting(mf):
    wait = mf._tracker.wait
    mf._tracker.wait = lambda *given: go_on.touch() or wait(*given)
def until_printed(mf, lines):
    while mf._tracker.printer.printed < lines:
        time.sleep(0.01)
"""


def printed(cells: list[str]) -> list[str]:
    """Run the cells; what has appeared on stdout under each, whenever that came."""
    with started_kernel() as client:
        ran = [client.execute(cell) for cell in cells]
        texts: dict[str, str] = defaultdict(str)
        for message in published(
            client, TIMEOUT_S, lambda: f"it has not ended; so far: {dict(texts)}"
        ):
            kind, content = message["header"]["msg_type"], message["content"]
            parent = message["parent_header"].get("msg_id", "")
            if kind == "stream" and content["name"] == "stdout":
                texts[parent] += content["text"]
            if (kind, parent) == ("status", ran[-1]) and content["execution_state"] == "idle":
                break
        return [texts[cell] for cell in ran]


def test_streamed_output_appears_in_the_cell_that_submitted_or_waits() -> None:
    texts = printed(
        [
            SETUP,
            "mf = cluster.map(speak, [0, 1], stream_output=True)\nuntil_printed(mf, 2)",
            "end_while_waiting(mf)\nresults = mf.result()",
            "later = cluster.map(speak, [0], stream_output=True)",
            "until_printed(later, 2)",
            "mf.tail(2)",
            "cluster.close()",
        ]
    )
    assert sorted(texts[1].splitlines()) == ["[0] one 0", "[1] one 1"]
    assert sorted(texts[2].splitlines()) == ["[0] two 0", "[1] two 1"]
    # Nobody waits: it stays where it was submitted.
    assert texts[3] == "[0] one 0\n[0] two 0\n"
    assert texts[4] == ""


def test_a_cell_that_awaits_a_job_shows_its_output() -> None:
    texts = printed(
        [
            SETUP,
            "go_on.touch()\nmf = cluster.map(speak, [0], stream_output=True)\nawait mf",
            "cluster.close()",
        ]
    )
    assert texts[1] == "[0] one 0\n[0] two 0\n"
