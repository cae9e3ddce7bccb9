"""The display in a real JupyterLab, looked at and clicked in a real browser."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

from support.jupyterlab import Notebook, Server

OpenNotebook = Callable[..., Notebook]
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
SUBSHELLS = "@jupyterlab/apputils-extension:kernels-settings"

LONG = "mf = cluster.map(work, range(4000))\n"
"""200 s on two CPUs, so whatever a test waits for comes before its end."""


def html_of(path: Path, cell: int) -> str:
    """The HTML that a saved cell keeps, which must be no widget."""
    notebook = nbformat.read(path, as_version=4)
    data = [output.get("data", {}) for output in notebook.cells[cell].outputs]
    assert not any(WIDGET_VIEW in bundle for bundle in data)
    return "".join(bundle.get("text/html", "") for bundle in data)


def held(gate: Path) -> str:
    """A cell's definition of tasks of which as many end as the number in this file.

    Which ones is decided by the order in which they begin, as no order of a job's tasks is
    promised: one that must wait never stands before one that may end.
    """
    gate.write_text("0")
    return f"""
def held(x):
    import itertools, os
    for begun in itertools.count():
        try:
            os.close(os.open({str(gate)!r} + f".{{begun}}", os.O_CREAT | os.O_EXCL))
            break
        except FileExistsError:
            pass
    while int(open({str(gate)!r}).read() or 0) <= begun:
        time.sleep(0.02)
"""


def test_the_bar_moves_while_the_cell_blocks(open_notebook: OpenNotebook, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    call = "mf = cluster.map(held, range(60))\nmf.result()\nprint('end')"
    notebook = open_notebook(held(gate) + call)

    notebook.run(1, wait=False)
    for through in (15, 30, 45):
        gate.write_text(str(through))
        notebook.until(
            lambda through=through: notebook.live(1).count() and notebook.now(1) == through
        )

    assert notebook.busy(1)
    gate.write_text("60")
    notebook.wait(1)
    notebook.until(lambda: "60 of 60 done" in notebook.text(1))


def test_a_click_on_cancel_stops_the_job_while_the_cell_blocks(open_notebook: OpenNotebook) -> None:
    check_cancel(open_notebook(LONG + "mf.wait()\nprint('ended', mf.cancelled())"))


def test_a_click_on_cancel_stops_the_job_without_subshells(
    open_notebook: OpenNotebook, lab: Server
) -> None:
    lab.setting(SUBSHELLS, commsOverSubshells="disabled")
    try:
        notebook = open_notebook(LONG + "mf.wait()\nprint('ended', mf.cancelled())", "%subshell")
        check_cancel(notebook)
        notebook.run(2)
        assert "subshell list: []" in notebook.text(2)
    finally:
        lab.setting(SUBSHELLS, commsOverSubshells="perCommTarget")


def test_a_click_on_cancel_stops_the_job_with_ipykernel_6(
    open_notebook: OpenNotebook, ipykernel6: str
) -> None:
    look = "import ipykernel; print(ipykernel.version_info[0])"
    notebook = open_notebook(
        LONG + "mf.wait()\nprint('ended', mf.cancelled())", look, kernel=ipykernel6
    )
    check_cancel(notebook)
    notebook.run(2)
    assert "6" in notebook.text(2)


def check_cancel(notebook: Notebook) -> None:
    notebook.run(1, wait=False)
    notebook.until(lambda: notebook.live(1).count() and notebook.now(1))
    assert notebook.busy(1)

    notebook.live(1).get_by_role("button", name="Cancel job").click()

    notebook.wait(1)
    notebook.until(lambda: "ended True" in notebook.text(1))
    notebook.until(lambda: notebook.state(1) == "cancelled")


def test_retry_on_a_failed_row_turns_that_task_green_and_only_that(
    open_notebook: OpenNotebook, tmp_path: Path
) -> None:
    call = f"mf = cluster.map(lambda x: fails_at_first(x, {str(tmp_path)!r}), range(15))\nmf"
    notebook = open_notebook(call, "print(mf[7].result(), [f.index for f in mf.failures()])")
    notebook.run(1)
    rows = notebook.live(1).locator("tbody")
    notebook.until(lambda: rows.count() == 3)

    notebook.live(1).get_by_role("button", name="Retry task 7").click()

    row = notebook.live(1).locator('tbody[data-task="7"]')
    notebook.until(lambda: row.get_attribute("data-state") == "done")
    others = [rows.nth(i).get_attribute("data-state") for i in (0, 2)]
    assert others == ["failed", "failed"]
    assert "✓ done" in row.inner_text()
    notebook.run(2)
    assert "7 [2, 12]" in notebook.text(2)
    # The file says it as well.
    notebook.save()
    assert "13 of 15 done" in re.sub("<[^>]+>", "", html_of(notebook.path, 1))


def test_a_job_that_is_retried_from_another_cell_comes_alive_in_its_own(
    open_notebook: OpenNotebook, tmp_path: Path
) -> None:
    call = (
        f"mf = cluster.map(lambda x: fails_at_first(x, {str(tmp_path)!r}), range(15))\n"
        "mf.wait()\nmf"
    )
    notebook = open_notebook(call, "mf.retry()")
    notebook.run(1)
    notebook.until(lambda: notebook.live(1).count() and notebook.state(1) == "failed")

    notebook.run(2)

    notebook.until(lambda: "15 of 15 done" in notebook.text(1))
    # All is well, so there is nothing to click: the page shows what the file keeps.
    notebook.until(lambda: notebook.live(1).count() == 0)
    assert "✓ succeeded" in notebook.text(1)


def test_a_traceback_opens_on_demand_and_by_keyboard(
    open_notebook: OpenNotebook, tmp_path: Path
) -> None:
    call = f"mf = cluster.map(lambda x: fails_at_first(x, {str(tmp_path)!r}), range(5))\nmf"
    notebook = open_notebook(call)
    notebook.run(1)
    error = notebook.live(1).get_by_role("button", name="Traceback of task 2")
    notebook.until(lambda: error.count() == 1)
    assert notebook.live(1).locator("pre:visible").count() == 0

    error.focus()
    notebook.page.keyboard.press("Enter")

    notebook.until(lambda: notebook.live(1).locator("pre:visible").count() == 1)
    assert "raise ValueError" in notebook.live(1).locator("pre:visible").inner_text()
    assert error.get_attribute("aria-expanded") == "true"


@pytest.mark.parametrize("wait", ["mf.result()", "list(as_completed(mf.futures()))"])
def test_the_interrupt_button_cancels_the_job_and_leaves_the_client_usable(
    open_notebook: OpenNotebook, wait: str
) -> None:
    notebook = open_notebook(LONG + f"mf\n{wait}", "cluster.submit(work, 7).result()")
    notebook.run(1, wait=False)
    notebook.until(lambda: notebook.prompt(1) == "[*]:")
    notebook.page.wait_for_timeout(1000)

    notebook.page.keyboard.press("Escape")
    notebook.page.get_by_role("button", name="Interrupt the kernel").click()

    notebook.wait(1)
    text = notebook.text(1)
    assert "is cancelled" in text
    assert "KeyboardInterrupt" in text
    notebook.run(2)
    assert "7" in notebook.text(2)


def test_a_reload_in_the_middle_of_a_job_goes_on_live(open_notebook: OpenNotebook) -> None:
    notebook = open_notebook(LONG + "mf")
    notebook.run(1)
    notebook.until(lambda: notebook.live(1).count() and notebook.now(1))
    notebook.save()
    assert "As of " in html_of(notebook.path, 1)

    notebook.page.reload()
    notebook.ready()

    notebook.until(lambda: notebook.live(1).count() == 1, what="a live display after the reload")
    before = notebook.now(1)
    notebook.until(lambda: notebook.now(1) > before + 5)
    notebook.live(1).get_by_role("button", name="Cancel job").click()
    notebook.until(lambda: notebook.state(1) == "cancelled")


def test_a_page_that_has_missed_the_end_of_a_job_shows_it_all_the_same(
    open_notebook: OpenNotebook, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    slow = (
        "def slow(x):\n"
        "    import os, time\n"
        "    ends = time.monotonic() + 60\n"
        f"    while not os.path.exists({str(go)!r}) and time.monotonic() < ends:\n"
        "        time.sleep(0.05)\n"
    )
    notebook = open_notebook(slow + "mf = cluster.map(slow, range(3))\nmf")
    notebook.run(1)
    notebook.until(lambda: notebook.live(1).count())
    notebook.save()

    # It has another output now than the one that the kernel would update.
    notebook.page.reload()
    notebook.ready()
    notebook.until(lambda: notebook.live(1).count(), what="a live display after the reload")
    go.touch()
    notebook.until(lambda: notebook.state(1) == "succeeded")

    notebook.page.reload()
    notebook.ready()
    assert "As of " in html_of(notebook.path, 1)
    notebook.until(lambda: notebook.live(1).count(), what="a live display after the end")
    assert "3 of 3 done" in notebook.live(1).inner_text()
    assert "✓ succeeded" in notebook.live(1).inner_text()
    assert "As of " not in notebook.text(1)


def test_two_displays_of_a_job_show_the_same_and_end_static(
    open_notebook: OpenNotebook, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    call = "mf = cluster.map(held, range(40))\nmf"
    notebook = open_notebook(held(gate) + call, "mf", "mf.wait();")
    for index in (1, 2):
        notebook.run(index)
    notebook.until(lambda: all(notebook.live(index).count() for index in (1, 2)))
    gate.write_text("20")
    notebook.until(lambda: all(notebook.now(index) == 20 for index in (1, 2)))
    gate.write_text("40")
    notebook.run(3)

    for index in (1, 2):
        notebook.until(lambda index=index: "✓ succeeded" in notebook.text(index))
        # Nothing can happen any more: the page shows what the file keeps.
        notebook.until(lambda index=index: notebook.live(index).count() == 0)


def test_after_a_kernel_restart_attach_draws_the_live_job(open_notebook: OpenNotebook) -> None:
    cells = (LONG + "mf", "cluster.attach(cluster.jobs()[0].id)")
    notebook = open_notebook(*cells)
    notebook.run(1)
    notebook.until(lambda: notebook.live(1).count() and notebook.now(1))
    notebook.page.keyboard.press("Escape")

    notebook.page.get_by_role("button", name="Restart the kernel", exact=False).first.click()
    notebook.page.locator(".jp-Dialog .jp-mod-accept").click()
    notebook.ready()
    # Without its kernel the old display is what the file keeps, and says how to go on.
    notebook.until(lambda: notebook.live(1).count() == 0, what="the static display")
    assert "cluster.attach(" in notebook.text(1)
    for theme in ("JupyterLab Dark", "JupyterLab Light"):
        notebook.theme(theme)
        assert notebook.live(1).count() == 0
    notebook.run(0)
    notebook.run(2)

    notebook.until(lambda: notebook.live(2).count() and notebook.now(2))
    before = notebook.now(2)
    notebook.until(lambda: notebook.now(2) > before)
    notebook.live(2).get_by_role("button", name="Cancel job").click()
    notebook.until(lambda: notebook.state(2) == "cancelled")


def test_saved_closed_and_reopened_a_notebook_shows_how_its_job_ended(
    open_notebook: OpenNotebook, lab: Server, tmp_path: Path
) -> None:
    call = f"mf = cluster.map(lambda x: fails_at_first(x, {str(tmp_path)!r}), range(30))\nmf"
    notebook = open_notebook(call)
    notebook.run(1)
    notebook.until(lambda: notebook.live(1).count() and notebook.state(1) == "failed")
    # The page is told first; the output that is saved follows within a message or two.
    notebook.until(lambda: _saved_text_has(notebook, "24/30 done"))
    lab.shut_kernels_down()

    notebook.page.goto("about:blank")
    notebook.page.goto(lab.address(notebook.path.name))
    notebook.ready()

    text = notebook.until(lambda: notebook.text(1))
    for words in ("24 of 30 done", "6 failed", "✗ failed", "ValueError: no 2", "took"):
        assert words in text
    assert "model not found" not in text.lower()
    assert notebook.live(1).count() == 0
    exported = export(notebook.path)
    for words in ("6 failed", "ValueError: no 2", "raise ValueError", "took"):
        assert words in exported


def _saved_text_has(notebook: Notebook, words: str) -> bool:
    notebook.save()
    return words in notebook.path.read_text()


def export(path: Path) -> str:
    """The notebook as nbconvert's HTML."""
    command = [sys.executable, "-m", "nbconvert", "--to", "html", "--stdout", "--log-level=ERROR"]
    done = subprocess.run([*command, str(path)], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_future_and_the_cluster_draw_themselves(open_notebook: OpenNotebook) -> None:
    notebook = open_notebook(LONG + "f = cluster.submit(work, 3)\nf", "[f]", "cluster")
    for index in (1, 2, 3):
        notebook.run(index)

    notebook.until(lambda: "✓ done" in notebook.text(1))
    assert "<nbsched.Future" in notebook.text(2)
    notebook.until(lambda: "2 of 2 CPUs" in notebook.live(3).inner_text())
    for words in ("leads", "GiB", "of 4,000"):
        assert words in notebook.live(3).inner_text()
    notebook.live(3).get_by_role("button", name="Cancel job work").first.click()
    notebook.until(lambda: "⊘ cancelled" in notebook.live(3).inner_text())
