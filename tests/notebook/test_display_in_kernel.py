"""The display in a real kernel: a widget while the job runs, and a clean file afterwards."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from typing import Any

import nbformat
import pytest
from jupyter_client.blocking import BlockingKernelClient
from nbclient import NotebookClient

from support.notebookkernel import published, started_kernel

pytest.importorskip("anywidget", reason="the live display needs anywidget")

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
TIMEOUT_S = 60

JOB = '''
import threading, time
import nbsched.display
from nbsched.client.progress import Progress, shown_while_waiting, view_factory

class Job:
    """Ends tasks by itself, one after another, until it is done or cancelled."""

    progress_mode = None
    tasks = None

    def __init__(self, id, total, task_s):
        self.id, self.total, self.task_s = id, total, task_s
        self.ended, self.cancelled, self.clicked_in = 0, 0, None
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self):
        while self.ended + self.cancelled < self.total:
            time.sleep(self.task_s)
            if not self.cancelled:
                self.ended += 1

    @property
    def progress(self):
        done = self.ended + self.cancelled >= self.total
        state = "cancelled" if self.cancelled else "succeeded" if done else "running"
        return Progress(job=self.id, name="f", total=self.total, uploaded=self.total,
                        ok=self.ended, cancelled=self.cancelled, elapsed_s=1.0, state=state)

    def cancel(self):
        self.clicked_in = threading.current_thread().name
        self.cancelled = self.total - self.ended
        return True

    def retry(self):
        again, self.cancelled = self.cancelled, 0
        threading.Thread(target=self._work, daemon=True).start()
        return again

    def wait(self):
        with shown_while_waiting(self):
            while not self.progress.finished:
                time.sleep(0.01)

    def _ipython_display_(self):
        view_factory().display(self)
'''


BLOCKING = """
from nbsched.client.progress import in_turns
job = Job('a', total=600, task_s=0.1)
with shown_while_waiting(job):
    in_turns(lambda s: time.sleep(min(s or 0.1, 0.1)) or job.progress.finished, None)
"""


class Listener(NotebookClient):
    """Executes a notebook and notes every message, as (seconds, cell, type, content)."""

    def __init__(self, *cells: str) -> None:
        self.seen: list[tuple[float, int, str, dict[str, Any]]] = []
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(source) for source in (JOB, *cells)]
        )
        super().__init__(notebook, timeout=TIMEOUT_S, kernel_name="python3")

    def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
        kind = msg["header"]["msg_type"]
        self.seen.append((time.monotonic(), cell_index, kind, msg["content"]))
        return super().process_message(msg, cell, cell_index)

    def run(self) -> None:
        with warnings.catch_warnings():
            # The kernel's manager warns about its own event loop and sockets, not about ours.
            warnings.simplefilter("ignore")
            self.execute()

    def messages(self, kind: str, cell: int) -> list[tuple[float, dict[str, Any]]]:
        return [(at, c) for at, index, k, c in self.seen if (k, index) == (kind, cell)]

    def outputs(self, cell: int) -> list[set[str]]:
        return [set(output.get("data", {})) for output in self.nb.cells[cell].outputs]


@pytest.fixture(autouse=True)
def undisturbed(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.delenv("NBSCHED_PROGRESS", raising=False)


def test_a_wait_shows_a_widget_and_leaves_html_and_text() -> None:
    look = "from nbsched.display.widget import any_open\n"
    gone = "\ndel job\nwhile any_open():\n    time.sleep(0.01)"
    notebook = Listener(look + "job = Job('a', total=20, task_s=0.08)\njob.wait()" + gone)

    notebook.run()

    (shown,) = notebook.messages("display_data", 1)
    assert set(shown[1]["data"]) == {"text/html", "text/plain"}
    ((_, opened),) = notebook.messages("comm_open", 1)
    # It stays open for pages that come later, as long as there is the job.
    ((_, closed),) = notebook.messages("comm_close", 1)
    assert opened["comm_id"] == closed["comm_id"]
    state = opened["data"]["state"]
    assert state["state"]["cancel"]["label"] == "Cancel"
    # The page finds the HTML whose place the live view takes.
    assert f'data-nbsched="{state["token"]}:0"' in shown[1]["data"]["text/html"]

    assert notebook.outputs(1) == [{"text/html", "text/plain"}]
    final = notebook.nb.cells[1].outputs[0].data
    assert "20/20 done" in final["text/plain"]
    assert 'aria-valuenow="20"' in final["text/html"]


COUNTED = """
from nbsched.display.pace import Pace
told, note = [], Pace.note
def counted(pace):
    told.append(time.monotonic())
    note(pace)
Pace.note = counted
"""


@pytest.mark.parametrize("ends", ["job.wait()", "display(job)\njob.cancel()\njob.wait()"])
def test_a_page_is_told_at_most_five_things_in_any_second(ends: str) -> None:
    job = f"job = Job('a', total=2000, task_s=0.001)\n{ends}\n"
    # What may come after the end comes while the cell still runs.
    after = "time.sleep(1.5)\ndel job\ntime.sleep(1.5)\nprint(*told)"
    notebook = Listener(COUNTED + job + after)

    notebook.run()

    # When they are sent: a busy machine lets them arrive in heaps.
    ((_, printed),) = notebook.messages("stream", 1)
    told = [float(at) for at in printed["text"].split()]
    kinds = ("comm_open", "comm_msg", "comm_close", "display_data", "update_display_data")
    assert len(told) == sum(len(notebook.messages(kind, 1)) for kind in kinds)
    assert len(told) >= 5
    assert max(sum(start <= at < start + 1.0 for at in told) for start in told) <= 5


def test_a_displayed_job_and_a_later_wait_both_end_static() -> None:
    notebook = Listener("job = Job('a', total=100, task_s=0.05)\njob", "job.wait()", "job")

    notebook.run()

    # Shown live in the first cell, waited for in the second, static in the third.
    assert len(notebook.messages("comm_open", 1)) == 1
    assert len(notebook.messages("comm_open", 3)) == 0
    for cell in (1, 2, 3):
        assert notebook.outputs(cell) == [{"text/html", "text/plain"}]
        assert "100/100 done" in notebook.nb.cells[cell].outputs[0].data["text/plain"]


def test_a_cell_that_shows_a_job_and_waits_for_it_has_one_display() -> None:
    source = "job = Job('a', total=10, task_s=0.05)\ndisplay(job)\njob.wait()"
    retried = source.replace("'a'", "'b'") + (
        "\njob.ended, job.cancelled = 4, 6\njob.retry()\njob.wait()"
    )
    notebook = Listener(source, retried)

    notebook.run()

    assert [len(notebook.messages("display_data", cell)) for cell in (1, 2)] == [1, 1]
    for cell in (1, 2):
        assert notebook.outputs(cell) == [{"text/html", "text/plain"}]
        assert "10/10 done" in notebook.nb.cells[cell].outputs[0].data["text/plain"]


def test_a_page_that_does_not_take_over_gets_the_widget_in_its_output() -> None:
    notebook = Listener("job = Job('a', total=30, task_s=0.1)\njob.wait()")

    notebook.run()

    updates = notebook.messages("update_display_data", 1)
    assert [WIDGET_VIEW in content["data"] for _, content in updates] == [True, False]
    assert notebook.outputs(1) == [{"text/html", "text/plain"}]


def test_a_short_wait_leaves_no_trace() -> None:
    notebook = Listener("Job('a', total=3, task_s=0.01).wait()")

    notebook.run()

    assert notebook.outputs(1) == []


def test_text_mode_writes_lines_and_off_writes_nothing() -> None:
    mode = "import os; os.environ['NBSCHED_PROGRESS'] = '{}'\n"
    wait = "Job('{}', total=10, task_s=0.08).wait()"
    notebook = Listener(
        mode.format("text") + wait.format("a"), mode.format("off") + wait.format("b")
    )

    notebook.run()

    written = notebook.nb.cells[1].outputs
    assert {output.get("name") for output in written} == {"stderr"}
    assert "100 %" in "".join(output.text for output in written).splitlines()[-1]
    assert notebook.nb.cells[2].outputs == []


# ------------------------------------------------------------ clicks


@pytest.fixture
def kernel() -> Iterator[BlockingKernelClient]:
    with started_kernel() as client:
        yield client


def test_a_click_on_cancel_arrives_while_the_cell_blocks(kernel: BlockingKernelClient) -> None:
    subshell = new_subshell(kernel)
    if subshell is None:
        pytest.skip("this ipykernel has no subshells: clicks wait for the cell to end")
    kernel.execute(JOB + "job = Job('a', total=600, task_s=0.1)\njob.wait()\nprint(job.clicked_in)")
    panel = None
    printed = ""

    def late() -> str:
        return f"the click did not arrive; printed: {printed!r}"

    # Uncancelled, the job takes a minute.
    for message in published(kernel, 30, late):
        kind, content = message["header"]["msg_type"], message["content"]
        if kind == "comm_open":
            panel = content["comm_id"]
        if kind == "display_data":
            assert panel is not None
            click(kernel, panel, subshell)
        if kind == "stream":
            printed += content["text"]
        if "nbsched-click" in printed:
            break


def new_subshell(kernel: BlockingKernelClient) -> str | None:
    features = kernel.kernel_info(reply=True, timeout=10)["content"].get("supported_features", ())
    if "kernel subshells" not in features:
        return None
    kernel.control_channel.send(kernel.session.msg("create_subshell_request", {}))
    return str(kernel.get_control_msg(timeout=10)["content"]["subshell_id"])


def click(kernel: BlockingKernelClient, panel: str, subshell: str | None) -> None:
    """What the front end sends when Cancel is clicked."""
    data = {"method": "custom", "content": {"do": "cancel"}}
    message = kernel.session.msg("comm_msg", {"comm_id": panel, "data": data})
    if subshell is not None:
        message["header"]["subshell_id"] = subshell
    kernel.shell_channel.send(message)


def test_a_click_on_cancel_arrives_without_a_subshell_too(kernel: BlockingKernelClient) -> None:
    kernel.execute(JOB + BLOCKING + "print('cancelled', job.cancelled > 0)")
    panel, printed = None, ""
    deadline = time.monotonic() + 30

    def late() -> str:
        return f"the click did not arrive; printed: {printed!r}"

    # Uncancelled, the job takes a minute.
    for message in published(kernel, 30, late):
        kind, content = message["header"]["msg_type"], message["content"]
        if kind == "comm_open":
            panel = content["comm_id"]
        if kind == "display_data":
            assert panel is not None
            later = kernel.execute("print('later')", reply=False)
            click(kernel, panel, None)
        if kind == "stream":
            printed += content["text"]
        if "cancelled True" in printed:
            break

    # What came before the click and was not for it has not been lost.
    while "later" not in printed:
        assert time.monotonic() < deadline, "the next cell was lost"
        message = kernel.get_iopub_msg(timeout=10)
        if message["header"]["msg_type"] == "stream":
            assert message["parent_header"]["msg_id"] == later
            printed += message["content"]["text"]
