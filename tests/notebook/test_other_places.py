"""Displays where there is no anywidget, in Colab, and in VS Code, as far as their protocols go.

Colab and VS Code cannot be run here. What they ask of a kernel can: Colab, that its custom
widget manager is on and named beside the view; VS Code, that the view is in the output and
that clicks come by the main shell. That second part is tested in `test_display_in_kernel`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from nbsched import Cluster, LocalCluster

from .test_display_in_kernel import WIDGET_VIEW, Listener

SHOWN = "job = Job('a', total=20, task_s=0.05)\njob\njob.wait()"
LONG = "job = Job('a', total=40, task_s=0.1)\njob.wait()"

HIDDEN = "import sys\nsys.modules['{}'] = None"
BROKEN = """
import sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "anywidget":
            raise AttributeError("this ipywidgets is another one than anywidget was made for")
sys.meta_path.insert(0, Broken())
"""

# As google.colab does it: the hook adds what the page needs to messages of the thread that
# switched the manager on, which is not always the one that displays.
COLAB = """
import sys, types
output = types.ModuleType("google.colab.output")
output._widgets = types.SimpleNamespace(_installed_url=None)
output.switched_on = 0

def enable_custom_widget_manager():
    output.switched_on += 1
    output._widgets._installed_url = "https://manager.example/manager.min.js"

output.enable_custom_widget_manager = enable_custom_widget_manager
for name in ("google", "google.colab"):
    sys.modules.setdefault(name, types.ModuleType(name))
sys.modules["google.colab.output"] = output
"""


@pytest.fixture(autouse=True)
def undisturbed(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.delenv("NBSCHED_PROGRESS", raising=False)


# ------------------------------------------------------------ no widgets


@pytest.mark.parametrize(
    "without",
    [HIDDEN.format("anywidget"), HIDDEN.format("ipywidgets"), BROKEN],
    ids=["no anywidget", "no ipywidgets", "broken anywidget"],
)
def test_without_widgets_a_display_is_html_and_text_and_still_ends_right(without: str) -> None:
    notebook = Listener(without, SHOWN)

    notebook.run()

    assert notebook.messages("comm_open", 2) == []
    assert notebook.messages("error", 2) == []
    assert notebook.outputs(2) == [{"text/html", "text/plain"}]
    assert "20/20 done" in notebook.nb.cells[2].outputs[0].data["text/plain"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(workers=1, cpus=1) as cluster:
        yield cluster


def test_job_future_and_cluster_have_text_and_html_for_whoever_asks(cluster: Cluster) -> None:
    job = cluster.map(abs, range(3))
    job.wait()

    for shown in (job, job[0], cluster):
        bundle = shown._repr_mimebundle_()
        assert set(bundle) == {"text/plain", "text/html"}
        assert all(isinstance(text, str) and text for text in bundle.values())


# ------------------------------------------------------------ outputs apart from the page


HELLO = """
from nbsched.display import widget
for panel in list(widget._open.values()):
    panel._received(None, {"do": "hello"}, [])
"""


def test_a_page_that_needs_the_view_in_the_output_gets_it_every_time() -> None:
    """VS Code and Colab start a model, which says hello, only when they have its view."""
    pytest.importorskip("anywidget", reason="the live display needs anywidget")
    first = (
        f"job = Job('a', total=45, task_s=0.1)\nview_factory().display(job)\ntime.sleep(3)\n{HELLO}"
    )
    notebook = Listener(first + "job.wait()", LONG)

    notebook.run()

    for cell in (1, 2):
        updates = notebook.messages("update_display_data", cell)
        assert [WIDGET_VIEW in content["data"] for _, content in updates] == [True, False]


def test_no_view_comes_back_into_the_output_after_the_end() -> None:
    pytest.importorskip("anywidget", reason="the live display needs anywidget")
    notebook = Listener(f"{LONG}\ntime.sleep(1)  # several turns of what keeps displays up to date")

    notebook.run()

    updates = notebook.messages("update_display_data", 1)
    assert [WIDGET_VIEW in content["data"] for _, content in updates] == [True, False]
    assert notebook.outputs(1) == [{"text/html", "text/plain"}]


def test_a_page_that_has_taken_over_once_needs_no_view_in_the_output() -> None:
    pytest.importorskip("anywidget", reason="the live display needs anywidget")
    show = "job = Job('a', total=10, task_s=0.1)\nview_factory().display(job)\n"
    notebook = Listener(show + f"{HELLO}job.wait()", LONG)

    notebook.run()

    for cell in (1, 2):
        updates = notebook.messages("update_display_data", cell)
        assert [WIDGET_VIEW in content["data"] for _, content in updates] == [False]


# ------------------------------------------------------------ Colab


def test_in_colab_the_view_says_which_widget_manager_shows_it() -> None:
    pytest.importorskip("anywidget", reason="the live display needs anywidget")
    notebook = Listener(COLAB, LONG, "output.switched_on")

    notebook.run()

    (with_view, last) = (content for _, content in notebook.messages("update_display_data", 2))
    assert with_view["metadata"][WIDGET_VIEW] == {
        "colab": {"custom_widget_manager": {"url": "https://manager.example/manager.min.js"}}
    }
    assert WIDGET_VIEW in with_view["data"]
    assert WIDGET_VIEW not in last["data"] | last["metadata"]
    assert notebook.nb.cells[3].outputs[0].data["text/plain"] == "1"


def test_elsewhere_nothing_of_colab_is_looked_for() -> None:
    notebook = Listener(SHOWN, "import sys; [name for name in sys.modules if 'colab' in name]")

    notebook.run()

    (shown, *_) = notebook.messages("display_data", 1)
    assert shown[1]["metadata"] == {}
    assert notebook.nb.cells[2].outputs[0].data["text/plain"] == "[]"
