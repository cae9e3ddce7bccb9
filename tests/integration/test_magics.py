"""The magics in a real IPython shell, on a real cluster."""

from __future__ import annotations

import io
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell

from nbsched import Cluster, LocalCluster
from nbsched.client.records import JobInfo
from support.conditions import until


@dataclass
class Ran:
    """A cell that was run: its value, its error, and what it wrote."""

    result: Any
    error: BaseException | None
    text: str


class Notebook:
    """Runs cells, as a user does."""

    def __init__(self, shell: InteractiveShell) -> None:
        self.shell = shell

    def run(self, cell: str) -> Ran:
        text = io.StringIO()
        with redirect_stdout(text), redirect_stderr(text):
            ran = self.shell.run_cell(cell, store_history=True)
        plain = re.sub(r"\x1b\[[0-9;]*m", "", text.getvalue())
        return Ran(ran.result, ran.error_before_exec or ran.error_in_exec, plain)

    def __getitem__(self, name: str) -> Any:
        return self.shell.user_ns[name]

    def __contains__(self, name: str) -> bool:
        return name in self.shell.user_ns


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InteractiveShell]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        InteractiveShell.clear_instance()
        shell = InteractiveShell.instance()
        yield shell
        shell.history_manager.end_session()
        InteractiveShell.clear_instance()


@pytest.fixture
def notebook(shell: InteractiveShell, cluster: LocalCluster) -> Notebook:
    shell.reset(new_session=False)
    shell.push({"cluster": cluster})
    started = Notebook(shell)
    assert started.run("%load_ext nbsched").error is None
    return started


def jobs(cluster: Cluster) -> int:
    return len(cluster.jobs())


# ------------------------------------------------------------ a cell on the cluster


def test_a_cell_gets_inputs_gives_outputs_and_shows_its_last_value(notebook: Notebook) -> None:
    notebook.run("x, y = 20, 1")

    ran = notebook.run(
        "%%nbsched --in x,y --out z, w\nlocal = x + y\nz = local * 2\nw = [z]\nz + 1"
    )

    assert ran.error is None, ran.text
    assert ran.result == 43
    assert (notebook["z"], notebook["w"]) == (42, [42])
    assert "local" not in notebook
    assert "Out[" in ran.text


def test_a_cell_runs_in_a_kernel_of_the_cluster(notebook: Notebook, cluster: LocalCluster) -> None:
    ran = notebook.run("%%nbsched --name where --cpus 2\nimport os\nos.environ['NBSCHED_KERNEL']")

    assert ran.error is None, ran.text
    (job,) = cluster.jobs(name="where")
    assert job.total == 1


def test_what_a_cell_prints_is_shown_also_when_it_fails(notebook: Notebook) -> None:
    assert "hello from afar\n" in notebook.run("%%nbsched\nprint('hello from afar')").text
    failed = notebook.run("%%nbsched\nprint('so far')\n1 / 0")
    assert isinstance(failed.error, ZeroDivisionError)
    assert "so far\n" in failed.text


def test_functions_classes_and_modules_of_the_notebook_come_along(notebook: Notebook) -> None:
    notebook.run(
        "import math, dataclasses\n"
        "@dataclasses.dataclass\nclass Point:\n    x: int\n"
        "scale = 3\n"
        "def grow(p):\n    return Point(math.floor(p.x * scale))"
    )

    ran = notebook.run("%%nbsched --out p\np = grow(Point(2))\nmath.sqrt(p.x * 6)")

    assert ran.error is None, ran.text
    assert ran.result == 6.0
    assert notebook["p"] == notebook["Point"](6)


def test_with_declared_inputs_code_comes_along_and_data_do_not(
    notebook: Notebook, cluster: LocalCluster
) -> None:
    notebook.run("x, y = 1, 2\ndef f(a):\n    return a + 1")
    before = jobs(cluster)

    assert notebook.run("%%nbsched --in x\nf(x)").result == 2
    ran = notebook.run("%%nbsched --in x\nf(x) + y")

    assert "The cell uses 'y': add to --in" in ran.text
    assert jobs(cluster) == before + 1


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("%%nbsched\nprint(nowhere, x)", "uses 'nowhere', which neither it nor the notebook"),
        ("%%nbsched --in x,gone\nx", "--in names 'gone', which the notebook does not have"),
        ("%%nbsched --out k\nx", "--out names 'k', which the cell never sets"),
        ("%%nbsched --in 1x\nx", "--in '1x' is no name"),
        ("%%nbsched\n!ls", "magics and !commands do not work"),
        ("%%nbsched\n%time x", "magics and !commands do not work"),
        ("%%nbsched\ndisplay(x)", "no display()"),
        ("%%nbsched --nope\nx", "unrecognized arguments: --nope"),
        ("%%nbsched\nx +", "SyntaxError"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_sent(
    notebook: Notebook, cluster: LocalCluster, cell: str, message: str
) -> None:
    notebook.run("x = 1")
    before = jobs(cluster)

    ran = notebook.run(cell)

    assert message in ran.text
    assert ran.error is not None
    assert jobs(cluster) == before


def test_an_output_that_is_missing_in_the_end_is_named(notebook: Notebook) -> None:
    notebook.run("x = 1\nk = 'kept'")

    ran = notebook.run("%%nbsched --in x --out k\nif x > 1:\n    k = 2")

    assert "without a value for 'k', which --out names" in ran.text
    assert notebook["k"] == "kept"


def test_a_traceback_shows_the_lines_of_the_cell(notebook: Notebook) -> None:
    ran = notebook.run("%%nbsched\nzero = 0\n\nratio = 1 / zero\n")

    assert isinstance(ran.error, ZeroDivisionError)
    assert "line 4, in <module>" in ran.text
    assert "ratio = 1 / zero" in ran.text
    assert "mapfuture.py" not in ran.text, "of interest is where it failed, not who waited"


def test_progress_is_shown_while_a_cell_runs(notebook: Notebook) -> None:
    ran = notebook.run("%%nbsched --name steps\nimport time\ntime.sleep(0.6)\n")

    assert "steps" in ran.text
    assert "1/1 done" in ran.text


def test_a_cell_that_takes_too_long_is_stopped(notebook: Notebook) -> None:
    ran = notebook.run("%%nbsched --timeout 0.2\nimport time\ntime.sleep(60)\n")

    assert type(ran.error).__name__ == "TaskTimeoutError"


def test_an_interrupt_cancels_the_cell(
    notebook: Notebook, cluster: LocalCluster, tmp_path: Path
) -> None:
    started = tmp_path / "started"
    notebook.run(f"started = {str(started)!r}")

    def waits() -> bool:
        """Whether the main thread waits for the job: a task may be quicker than its caller."""
        shown = traceback.extract_stack(sys._current_frames()[threading.main_thread().ident])  # type: ignore[index]
        return any(frame.filename.endswith("client/tracker.py") for frame in shown)

    def interrupts() -> None:
        until(lambda: started.exists() and waits())
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # type: ignore[arg-type]

    thread = threading.Thread(target=interrupts)
    thread.start()
    ran = notebook.run(
        "%%nbsched --name stopped --out done\n"
        "import pathlib, time\npathlib.Path(started).touch()\ntime.sleep(60)\ndone = 1\n"
    )
    thread.join()

    assert isinstance(ran.error, KeyboardInterrupt)
    assert "is cancelled." in ran.text
    assert "done" not in notebook

    def ended() -> bool:
        return cluster.jobs(name="stopped")[0].state == "cancelled"

    until(ended)
    assert notebook.run("%%nbsched\n1 + 1").result == 2


# ------------------------------------------------------------ %nbsched


def test_jobs_and_workers_are_tables(notebook: Notebook, cluster: LocalCluster) -> None:
    mf = cluster.map(lambda x: 1 // x, [0], tags=("odd",), name="fails")
    mf.wait(60)
    until(lambda: cluster.jobs(name="fails", state="failed"))

    found = notebook.run("%nbsched jobs --state failed,cancelled --tag odd -n 1").result
    workers = notebook.run("%nbsched workers").result

    assert [(job.id, type(job)) for job in found] == [(mf.id, JobInfo)]
    assert [worker.cpus for worker in workers] == [2]


def test_status_shows_the_cluster_its_workers_and_unfinished_jobs(
    notebook: Notebook, cluster: LocalCluster
) -> None:
    import time

    mf = cluster.map(time.sleep, [60], name="sleeper")
    try:
        text = notebook.run("%nbsched").text
    finally:
        mf.cancel()

    assert "LocalCluster" in text
    assert cluster.workers()[0].id in text
    assert "sleeper" in text


def test_a_job_is_cancelled_by_its_id_or_its_future(
    notebook: Notebook, cluster: LocalCluster
) -> None:
    import time

    notebook.shell.push({"mf": cluster.map(time.sleep, [60])})

    ran = notebook.run("%nbsched cancel mf")
    assert f"Job {notebook['mf'].id} is being cancelled." in ran.text
    assert notebook["mf"].wait(60)
    ran = notebook.run(f"%nbsched cancel {notebook['mf'].id}")
    assert "has ended already" in ran.text


def test_attach_brings_a_future_back(notebook: Notebook, cluster: LocalCluster) -> None:
    mf = cluster.map(abs, [-1])
    mf.result(60)

    notebook.run(f"again = %nbsched attach {mf.id}")

    assert notebook["again"].result(60) == [1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("%nbsched stop", "invalid choice: 'stop'"),
        ("%nbsched cancel", "Which job?"),
        ("%nbsched jobs x", "takes no 'x'"),
        ("%nbsched jobs --state lost", "UsageError: There is no state 'lost'"),
        ("%nbsched attach 20200101-000000-aaaaaa", "UsageError: There is no job"),
    ],
)
def test_a_wrong_command_gets_one_line(notebook: Notebook, line: str, message: str) -> None:
    ran = notebook.run(line)

    assert message in ran.text
    assert len(ran.text.splitlines()) == 1


def test_help_names_the_options(notebook: Notebook) -> None:
    cell, line = notebook.run("%%nbsched?").text, notebook.run("%nbsched?").text

    assert "%nbsched [--in NAME" in cell
    assert "--out" in cell
    assert "cancel" in line


def test_without_a_variable_the_cluster_opened_last_is_meant(
    notebook: Notebook, cluster: LocalCluster
) -> None:
    notebook.run("cluster = 'something else'")

    assert notebook.run("%nbsched workers").result == cluster.workers()
