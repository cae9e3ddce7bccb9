"""A real JupyterLab, and a notebook of it in a real browser."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import nbformat

from nbsched.settings import Settings
from support.conditions import DEADLINE_S, until
from support.serverprocess import dying_with_us

T = TypeVar("T")

SETTINGS = {
    # Cells that are scrolled out of sight stay in the page: tests look at all of them.
    "@jupyterlab/notebook-extension:tracker": {
        "windowingMode": "none",
        "autoStartDefaultKernel": True,
    },
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}


_NAMES = (
    "namespace", "etcd_user", "etcd_password", "nats_user", "nats_password", "nats_token",
    "key_file", "shared_folder",
)  # fmt: skip


def environ_of(settings: Settings) -> dict[str, str]:
    """What makes ``Cluster()`` join this cluster."""
    values = {name: getattr(settings, name) for name in _NAMES}
    values |= {"etcd": ",".join(settings.etcd), "nats": ",".join(settings.nats), "local": "true"}
    return {f"NBSCHED_{name.upper()}": str(value) for name, value in values.items() if value}


class Server:
    """One JupyterLab with a folder of its own."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self.folder = folder
        self._token = secrets.token_hex(8)
        self._port = _free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        settings = folder.parent / "settings"
        (folder).mkdir(parents=True)
        for name, values in SETTINGS.items():
            extension, plugin = name.split(":")
            path = settings / extension / f"{plugin}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values))
        self.settings = settings
        home = {
            name: str(folder.parent / name.lower())
            for name in (
                "JUPYTER_CONFIG_DIR",
                "JUPYTER_DATA_DIR",
                "JUPYTER_RUNTIME_DIR",
                "IPYTHONDIR",
            )
        }
        self._kernels = Path(home["JUPYTER_DATA_DIR"]) / "kernels"
        self._log = (folder.parent / "server.log").open("wb")
        command = [
            sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
            f"--ServerApp.port={self._port}", "--ServerApp.ip=127.0.0.1",
            f"--ServerApp.root_dir={folder}", f"--IdentityProvider.token={self._token}",
            f"--LabApp.user_settings_dir={settings}",
            f"--LabApp.workspaces_dir={folder.parent / 'workspaces'}",
            "--LabApp.extension_manager=readonly", "--expose-app-in-browser",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            dying_with_us(command),
            env=os.environ | home | environ,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        until(self._answers, what="JupyterLab")

    def add_kernel(self, name: str, packages: Path) -> None:
        """A kernel like this Python's, with these packages before its own."""
        path = os.pathsep.join([str(packages), *filter(None, [os.environ.get("PYTHONPATH")])])
        spec = {
            "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "display_name": name,
            "language": "python",
            "env": {"PYTHONPATH": path},
        }
        (self._kernels / name).mkdir(parents=True)
        (self._kernels / name / "kernel.json").write_text(json.dumps(spec))

    def setting(self, name: str, **values: Any) -> None:
        """Change a setting of the front end, for pages that are opened from now on."""
        extension, plugin = name.split(":")
        path = self.settings / extension / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        old = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(old | values))

    def address(self, name: str) -> str:
        workspace = name.removesuffix(".ipynb")
        return f"{self.url}/lab/workspaces/{workspace}/tree/{name}?token={self._token}&reset"

    def write(self, name: str, cells: list[str], kernel: str = "python3") -> Path:
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(source) for source in cells],
            metadata={"kernelspec": {"name": kernel, "display_name": kernel, "language": "python"}},
        )
        path = self.folder / name
        nbformat.write(notebook, path)
        return path

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._call("POST", "/api/shutdown")
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def shut_kernels_down(self) -> None:
        for session in json.loads(self._call("GET", "/api/sessions")):
            self._call("DELETE", f"/api/sessions/{session['id']}")

    def _answers(self) -> bool:
        assert self._process.poll() is None, "JupyterLab has ended; see its log"
        with contextlib.suppress(OSError):
            self._call("GET", "/api")
            return True
        return False

    def _call(self, method: str, path: str) -> bytes:
        request = urllib.request.Request(
            self.url + path, method=method, headers={"Authorization": f"token {self._token}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read()


class Notebook:
    """A notebook in a page of the browser."""

    def __init__(self, page: Any, address: str, path: Path) -> None:
        self.page = page
        self.path = path
        self._console: deque[str] = deque(maxlen=20)
        page.on("console", lambda message: self._console.append(message.text))
        page.goto(address)
        self.ready()

    def ready(self) -> None:
        """Wait until its kernel is idle."""
        cells = self.page.locator(".jp-Notebook .jp-CodeCell")
        idle = self.page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]")
        self.until(lambda: cells.count() and idle.count(), what="an idle kernel")

    def cell(self, index: int) -> Any:
        return self.page.locator(".jp-Notebook .jp-CodeCell").nth(index)

    def run(self, index: int, *, wait: bool = True) -> Any:
        """Run a cell; returns it."""
        cell = self.cell(index)
        before = self.prompt(index)

        def started() -> bool:
            # JupyterLab drops what is pressed before its kernel is connected.
            cell.locator(".jp-InputArea-editor").click()
            self.page.keyboard.press("Control+Enter")
            with contextlib.suppress(AssertionError):
                return self.until(lambda: self.prompt(index) != before, 1)
            return False

        self.until(started, what=f"a start of cell {index}")
        if wait:
            self.wait(index)
        return cell

    def wait(self, index: int, timeout_s: float = DEADLINE_S) -> None:
        """Wait until a cell has been executed."""
        self.until(lambda: re.search(r"\[\d+\]", self.prompt(index)), timeout_s, f"cell {index}")

    def prompt(self, index: int) -> str:
        return str(self.cell(index).locator(".jp-InputPrompt").first.text_content())

    def until(self, condition: Callable[[], T], timeout_s: float = DEADLINE_S, what: str = "") -> T:
        """As `support.conditions.until`, while the browser goes on."""
        deadline = time.monotonic() + timeout_s
        while not (value := condition()):
            late = f"{what or condition} did not come true in time"
            assert time.monotonic() < deadline, f"{late}; {self._situation()}"
            self.page.wait_for_timeout(20)
        return value

    def _situation(self) -> str:
        dialogs = self.page.locator(".jp-Dialog").all_inner_texts()
        indicators = self.page.locator(".jp-Notebook-ExecutionIndicator")
        status = indicators.evaluate_all("found => found.map((each) => each.dataset.status)")
        outputs = self.page.locator(".jp-Notebook .jp-OutputArea").all_inner_texts()
        told = "\n".join(["", "console:", *self._console, "outputs:", *outputs])
        return f"kernel: {status}, open dialogs: {dialogs}" + told

    def busy(self, index: int) -> bool:
        return "[*]" in self.prompt(index)

    def text(self, index: int) -> str:
        return str(self.cell(index).locator(".jp-OutputArea").inner_text())

    def live(self, index: int) -> Any:
        """The live display in a cell's output."""
        return self.cell(index).locator(".nbsched-live section.nbsched")

    def button(self, index: int, name: str) -> Any:
        """A button of the live display in a cell's output."""
        return self.live(index).get_by_role("button", name=name, exact=True)

    def now(self, index: int) -> int:
        """What the bar of a cell's live display says."""
        return int(self.live(index).get_by_role("progressbar").get_attribute("aria-valuenow") or 0)

    def state(self, index: int) -> str:
        return str(self.live(index).get_attribute("data-state"))

    def theme(self, name: str) -> None:
        """Change the theme of the page, as the menu does."""
        self.page.evaluate(
            "name => window.jupyterapp.commands.execute('apputils:change-theme', {theme: name})",
            name,
        )
        light = "true" if name.endswith("Light") else "false"
        self.page.wait_for_selector(f"body[data-jp-theme-light={light}]", state="attached")

    def save(self) -> None:
        self.page.keyboard.press("Escape")
        self.page.keyboard.press("Control+s")
        until(lambda: self.page.locator(".jp-mod-dirty").count() == 0, what="saving")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """Debian's Chromium, without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=chromium_path(), args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            yield chromium
        finally:
            chromium.close()


def chromium_path() -> str | None:
    for path in ("/usr/bin/chromium", "/usr/bin/chromium-browser"):
        if os.access(path, os.X_OK):
            return path
    return None


__all__ = ["Notebook", "Server", "browser", "chromium_path", "environ_of"]
