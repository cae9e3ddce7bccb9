"""A cluster, a JupyterLab whose kernels join it: one of each for all tests; and a browser."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nbsched import LocalCluster
from support.displaycost import WATCH_PAGE
from support.jupyterlab import Notebook, Server, browser, chromium_path, environ_of

OpenNotebook = Callable[..., Notebook]


def needed() -> str | None:
    """Why the browser tests cannot run here, if so."""
    if chromium_path() is None:
        return "no Chromium: apt-get install chromium"
    for module in ("jupyterlab", "playwright", "anywidget"):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed: pip install --group dev"
    return None


@pytest.fixture(scope="session")
def lab_cluster() -> Iterator[LocalCluster]:
    reason = needed()
    if reason is not None:
        pytest.skip(reason)
    with LocalCluster(workers=1, cpus=2, cancel_grace_s=1.0) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def lab(lab_cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("lab") / "notebooks"
    server = Server(folder, environ_of(lab_cluster.settings))
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def ipykernel6(lab: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a kernel like the others, but of ipykernel 6, which has no subshells."""
    folder = tmp_path_factory.mktemp("ipykernel6")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder),
         "ipykernel<7", "nest-asyncio"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    if done.returncode != 0:
        pytest.skip(f"ipykernel 6 cannot be installed here: {done.stderr[-300:]}")
    lab.add_kernel("ipykernel6", folder)
    return "ipykernel6"


@pytest.fixture(scope="module")
def chromium(lab: Server) -> Iterator[Any]:
    """Not for the session: while it is there, its event loop runs in this thread, and no
    test elsewhere could run one."""
    with browser() as chromium:
        yield chromium


@pytest.fixture
def open_notebook(
    lab: Server,
    lab_cluster: LocalCluster,
    chromium: Any,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> Iterator[OpenNotebook]:
    """Opens a notebook with these cells; the first one, a connection, has been run."""
    pages = []

    def open_(*cells: str, kernel: str = "python3") -> Notebook:
        name = f"{request.node.name[:60]}-{len(pages)}.ipynb"
        started = tmp_path / f"{len(pages)}.started"
        lab.write(name, [CONNECT.format(started=str(started)), *cells], kernel)
        page = chromium.new_page(viewport={"width": 1100, "height": 900})
        pages.append(page)
        page.add_init_script(WATCH_PAGE)
        try:
            notebook = Notebook(page, lab.address(name), lab.folder / name)
            notebook.run(0, wait=False)
            notebook.until(lambda: "connected" in notebook.text(0), 20)
        except AssertionError:
            if started.exists():  # slow, or something of ours that hangs
                wait_for_connection(notebook, started)
                return notebook
            # On a busy machine JupyterLab may lose the first cell, which its kernel has never
            # seen then, or miss all that the kernel says, if the page connects once more.
            lab.shut_kernels_down()
            page.goto("about:blank")
            notebook = Notebook(page, lab.address(name), lab.folder / name)
            notebook.run(0, wait=False)
            wait_for_connection(notebook, started)
        return notebook

    yield open_
    for page in pages:
        page.close()
    lab.shut_kernels_down()
    for job in lab_cluster.jobs(state=("waiting", "running")):
        lab_cluster.attach(job.id).cancel()  # else the next test would have to share the CPUs


def wait_for_connection(notebook: Notebook, started: Path) -> None:
    try:
        notebook.until(lambda: "connected" in notebook.text(0), 60)
    except AssertionError as error:
        hangs = started.read_text() if started.exists() else "nowhere: the kernel is connected"
        raise AssertionError(f"connecting hangs here:\n{hangs}") from error


CONNECT = """
import faulthandler, os, time
faulthandler.dump_traceback_later(50, file=open({started!r}, "w"))
from nbsched import Cluster, as_completed
cluster = Cluster()
faulthandler.cancel_dump_traceback_later()
os.remove({started!r})
print("connected")

def work(x, seconds=0.1):
    time.sleep(seconds)
    return x

def fails_at_first(x, folder):
    import os
    time.sleep(0.05)
    path = os.path.join(folder, str(x))
    if x % 5 == 2 and not os.path.exists(path):
        open(path, "w").close()
        raise ValueError(f"no {{x}}")
    return x
"""
