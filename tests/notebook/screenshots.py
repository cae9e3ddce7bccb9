"""Takes the pictures in ``docs/images``: every state of the displays, light and dark.

    python tests/notebook/screenshots.py [NAME …]

From a real JupyterLab in a real browser, cut to the cell's output. Not a test.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from nbsched import LocalCluster
from support.jupyterlab import Notebook, Server, browser, environ_of

IMAGES = Path(__file__).parents[2] / "docs" / "images"
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
THEME = "@jupyterlab/apputils-extension:themes"

SETUP = """
import os, time, tempfile
from nbsched import Cluster
cluster = Cluster()
folder = tempfile.mkdtemp()

def resize(path):
    time.sleep(0.12)
    if path.endswith(("07.jpg", "19.jpg", "31.jpg")) and not os.path.exists(folder + path):
        raise OSError(f"cannot identify image file '{path}'")
    return path

paths = [f"photo-{i:02}.jpg" for i in range(40)]
many = [f"photo-{i:02}.jpg" for i in range(400)]
"""


def running(notebook: Notebook) -> None:
    notebook.until(lambda: notebook.live(1).count() and notebook.now(1) >= 12)
    notebook.live(1).get_by_role("button", name="Running").click()
    notebook.until(lambda: notebook.live(1).locator('tbody[data-task="111"]').count())


def failed(notebook: Notebook) -> None:
    notebook.until(lambda: notebook.live(1).count() and notebook.state(1) == "failed")
    notebook.live(1).get_by_role("button", name="Traceback of task 7").click()
    notebook.until(lambda: notebook.live(1).locator("pre:visible").count())


def retried(notebook: Notebook) -> None:
    notebook.until(lambda: notebook.live(1).count() and notebook.state(1) == "failed")
    notebook.run(2)
    notebook.live(1).get_by_role("button", name="Retry task 19").click()
    notebook.until(lambda: notebook.live(1).locator('tbody[data-state="done"]').count())


def cancelled(notebook: Notebook) -> None:
    notebook.until(lambda: notebook.live(1).count() and notebook.now(1) > 40)
    notebook.live(1).get_by_role("button", name="Cancel job").click()
    notebook.until(lambda: notebook.state(1) in ("cancelled", "failed"))


def finished(notebook: Notebook) -> None:
    notebook.until(lambda: "✓ succeeded" in notebook.text(1))


def some(notebook: Notebook) -> None:
    notebook.until(lambda: notebook.live(1).locator("tbody").count() > 1)


def saved(notebook: Notebook) -> None:
    notebook.until(lambda: notebook.live(1).count() and notebook.state(1) == "failed")
    notebook.save()
    notebook.page.evaluate("() => window.jupyterapp.serviceManager.sessions.shutdownAll()")
    notebook.page.reload()
    notebook.ready()
    notebook.cell(1).locator("summary").first.click()


def cluster(notebook: Notebook) -> None:
    notebook.until(lambda: "2 of 2 CPUs" in notebook.live(1).inner_text())
    notebook.page.wait_for_timeout(4000)


def future(notebook: Notebook) -> None:
    notebook.until(lambda: notebook.live(1).count() and notebook.state(1) == "failed")


SLOW = (
    "slow = lambda path: time.sleep(6 if path[6:9] in ('110', '111') else 0.02) or resize(path)\n"
)
OK = "ok = lambda path: time.sleep(0.05) or path\n"
SCENES: dict[str, tuple[tuple[str, ...], Callable[[Notebook], None]]] = {
    "running": ((SLOW + "mf = cluster.map(slow, many, name='resize')\nmf",), running),
    "failed": (("mf = cluster.map(resize, paths)\nmf",), failed),
    "retried": (
        (
            "mf = cluster.map(resize, paths)\nmf",
            "for p in paths: open(folder + p, 'w').close()",
        ),
        retried,
    ),
    "cancelled": ((OK + "mf = cluster.map(ok, many, name='thumbnails')\nmf",), cancelled),
    "finished": ((OK + "mf = cluster.map(ok, paths, name='thumbnails')\nmf",), finished),
    "saved": (("mf = cluster.map(resize, paths)\nmf",), saved),
    "reattached": (
        ("cluster.attach(cluster.map(resize, many, name='resize again').id)",),
        some,
    ),
    "cluster": (
        (
            OK + "done = cluster.map(ok, paths, name='thumbnails')\ndone.result()\n"
            "a = cluster.map(resize, many)\nb = cluster.map(ok, many * 4, name='index')\ncluster",
        ),
        cluster,
    ),
    "future": (("f = cluster.submit(resize, 'photo-07.jpg')\nf",), future),
}


def main() -> None:
    names = sys.argv[1:] or list(SCENES)
    IMAGES.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(workers=1, cpus=2) as cluster,
        browser() as chromium,
    ):
        server = Server(Path(folder) / "notebooks", environ_of(cluster.settings))
        try:
            for mode, theme in THEMES.items():
                server.setting(THEME, theme=theme)
                for name in names:
                    take(server, chromium, name, mode)
        finally:
            server.close()


def take(server: Server, chromium: object, name: str, mode: str) -> None:
    cells, arrange = SCENES[name]
    path = server.write(f"{name}-{mode}.ipynb", [SETUP, *cells])
    page = chromium.new_page(  # type: ignore[attr-defined]
        viewport={"width": 1280, "height": 900}, device_scale_factor=1.5
    )
    notebook = Notebook(page, server.address(path.name), path)
    notebook.run(0)
    notebook.run(1)
    arrange(notebook)
    page.mouse.move(640, 880)
    page.wait_for_timeout(300)
    notebook.cell(1).locator(".jp-OutputArea-output").last.screenshot(
        path=str(IMAGES / f"{name}-{mode}.png")
    )
    print(name, mode)
    page.close()
    server.shut_kernels_down()


if __name__ == "__main__":
    main()
