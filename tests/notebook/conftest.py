"""A cluster, a JupyterLab whose kernels join it, and a browser: one of each for all tests."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nbsched import LocalCluster
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
def chromium(lab: Server) -> Iterator[Any]:
    with browser() as chromium:
        yield chromium


@pytest.fixture
def open_notebook(
    lab: Server, chromium: Any, request: pytest.FixtureRequest
) -> Iterator[OpenNotebook]:
    """Opens a notebook with these cells; the first one, a connection, has been run."""
    pages = []

    def open_(*cells: str) -> Notebook:
        name = f"{request.node.name[:60]}-{len(pages)}.ipynb"
        lab.write(name, [CONNECT, *cells])
        page = chromium.new_page(viewport={"width": 1100, "height": 900})
        pages.append(page)
        page.add_init_script(COUNT_MESSAGES)
        notebook = Notebook(page, lab.address(name), lab.folder / name)
        try:
            notebook.run(0, wait=False)
            notebook.wait(0, 20)
        except AssertionError:
            # On a busy machine JupyterLab may lose the first cell while it connects.
            lab.shut_kernels_down()
            page.goto("about:blank")
            notebook = Notebook(page, lab.address(name), lab.folder / name)
            notebook.run(0)
        return notebook

    yield open_
    for page in pages:
        page.close()
    lab.shut_kernels_down()


CONNECT = """
import time
from nbsched import Cluster, as_completed
cluster = Cluster()

def work(x, seconds=0.1):
    time.sleep(seconds)
    return x

def fails_at_first(x, folder):
    import os
    time.sleep(0.05)
    path = os.path.join(folder, str(x))
    if x % 5 == 2 and not os.path.exists(path):
        open(path, "w").close()
        raise ValueError(f"no {x}")
    return x
"""

COUNT_MESSAGES = """
window.updates = [];
window.longTasks = [];
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) window.longTasks.push(entry.duration);
}).observe({ type: "longtask", buffered: true });
const Socket = window.WebSocket;
window.WebSocket = class extends Socket {
  constructor(...args) {
    super(...args);
    this.addEventListener("message", (event) => {
      const head = typeof event.data === "string"
        ? event.data : new TextDecoder().decode(event.data.slice(0, 3000));
      const kind = head.match(/"msg_type": ?"(\\w+)"/);
      if (kind && /^comm_|display_data$/.test(kind[1])) {
        window.updates.push([kind[1], performance.now()]);
      }
    });
  }
};
"""
