"""What a display costs a page, and how late it is, in a real JupyterLab and a browser.

    PYTHONPATH=$PWD:$PWD/tests python -m support.displaycost

Measures messages and long tasks during a job of 100,000 tasks, and the time from a
task's end to its pixel: tasks that keep all CPUs of the cluster busy note when they end,
the page notes in every frame what the bar shows. Both read the clock of one machine.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

from nbsched import LocalCluster
from support.jupyterlab import Notebook, Server, browser, environ_of

TASKS = 24
SPINNING = (
    """
import time
def spin(x):
    ends = time.perf_counter() + 0.4
    while time.perf_counter() < ends:
        pass
    return time.time()
""",
    f"mf = cluster.map(spin, range({TASKS}))\nmf.result()\nNone",
    "print(*sorted(mf.result()))",
)

MANY = """
import time
mf = cluster.map(lambda x: time.sleep(0.0001), range(100_000))
display(mf)
mf.wait();
"""

WATCH_PAGE = """
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
      const sent = head.match(/"date": ?"([^"]+)"/);
      if (kind && /^comm_|display_data$/.test(kind[1])) {
        window.updates.push([kind[1], performance.now(), Date.parse(sent[1])]);
      }
    });
  }
};
"""
"""Goes into a page before everything else."""

_WATCH_BAR = """
() => {
  window.seen = [];
  const look = () => {
    for (const host of document.querySelectorAll(".nbsched-live")) {
      const bar = host.shadowRoot?.querySelector("[role=progressbar]");
      const now = Number(bar?.getAttribute("aria-valuenow") ?? -1);
      const last = window.seen.at(-1);
      if (!last || last[0] !== now) window.seen.push([now, Date.now()]);
    }
    requestAnimationFrame(look);
  };
  look();
}
"""


def delays_s(notebook: Notebook, first: int = 1) -> list[float]:
    """Of each task whose end a frame has shown; `SPINNING` are the cells from ``first`` on."""
    notebook.run(first)
    notebook.page.evaluate(_WATCH_BAR)
    notebook.run(first + 1)
    notebook.until(lambda: f"{TASKS} of {TASKS} done" in notebook.text(first + 1))
    notebook.run(first + 2)
    seen: list[tuple[int, float]] = notebook.page.evaluate("window.seen")
    ends = [float(word) for word in notebook.text(first + 2).split()]
    found = []
    for number, end in enumerate(ends, start=1):
        at = min((at / 1000 for done, at in seen if done >= number), default=None)
        if at is not None:
            found.append(at - end)
    return found


def words(delays: list[float]) -> str:
    """What the delays are, in a line."""
    median, most = statistics.median(delays), max(delays)
    return (
        f"from a task's end to its pixel, with all CPUs busy: median {median * 1000:.0f} ms,"
        f" at most {most * 1000:.0f} ms, of {len(delays)} tasks"
    )


class Cost(NamedTuple):
    """Messages that a page was told about displays: when they were sent, and when it had
    them; and the longest time for which it could not react to anything. All in ms."""

    sent: list[float]
    came: list[float]
    longest_task: float

    def __str__(self) -> str:
        return (
            f"{len(self.sent)} messages; in any second at most {most_within(self.sent, 1000)}"
            f" sent and {most_within(self.came, 1000)} received;"
            f" longest task of the page {self.longest_task:.0f} ms"
        )


def cost(notebook: Notebook) -> Cost:
    """Since `forget`."""
    told: list[tuple[str, float, float]] = notebook.page.evaluate("window.updates")
    longest = max(notebook.page.evaluate("window.longTasks"), default=0.0)
    return Cost([sent for _, _, sent in told], [came for _, came, _ in told], longest)


def forget(notebook: Notebook) -> None:
    notebook.page.evaluate("() => { window.updates = []; window.longTasks = []; }")


def most_within(at: list[float], span_ms: float) -> int:
    """The most of these moments that lie within such a time."""
    return max(sum(start <= t < start + span_ms for t in at) for start in at)


def run_many(notebook: Notebook, index: int) -> Cost:
    """What the cell `MANY` costs."""
    forget(notebook)
    notebook.run(index, wait=False)
    notebook.until(lambda: "100,000 of 100,000 done" in notebook.text(index), 180)
    # The state that goes with the last HTML may come a moment later.
    notebook.page.wait_for_timeout(1500)
    return cost(notebook)


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(workers=1, cpus=2) as cluster,
        browser() as chromium,
    ):
        server = Server(Path(folder) / "notebooks", environ_of(cluster.settings))
        try:
            connect = "from nbsched import Cluster\ncluster = Cluster()"
            path = server.write("cost.ipynb", [connect, *SPINNING, MANY])
            page = chromium.new_page(viewport={"width": 1100, "height": 900})
            page.add_init_script(WATCH_PAGE)
            notebook = Notebook(page, server.address(path.name), path)
            notebook.run(0)
            print(words(delays_s(notebook)), flush=True)
            print("100,000 tasks:", run_many(notebook, 4))
        finally:
            server.close()


if __name__ == "__main__":
    main()
