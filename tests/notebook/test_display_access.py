"""Whether everybody can read and use the display: contrast, keyboard, names of things."""

from __future__ import annotations

from collections.abc import Callable

from support.jupyterlab import Notebook

OpenNotebook = Callable[..., Notebook]

AA = 4.5
"""What WCAG 2 asks of the contrast of text below 18 pt."""

CELLS = (
    """
import tempfile
folder = tempfile.mkdtemp()
failed = cluster.map(lambda x: fails_at_first(x, folder), range(40), name="failed")
failed.wait()
failed
""",
    """
def sometimes(x):
    time.sleep(0.3 if x % 2 else 30)
    if x == 1:
        raise ValueError("no")
running = cluster.map(sometimes, range(40), name="running", retry=1)
running
""",
    """
running
""",
    """
cancelled = cluster.map(work, range(400), name="cancelled")
cancelled.cancel()
running.cancel()
cancelled.wait()
cancelled
""",
    "finished = cluster.map(work, range(9), name='finished')\nfinished.wait()\nfinished",
    "f = cluster.submit(fails_at_first, 52, folder)\nf.exception()\nf",
    "cluster",
)


def contrasts(notebook: Notebook) -> list[tuple[float, str, str]]:
    """Of every text in the displays: contrast, where it is, what it says; worst first."""
    found: list[tuple[float, str, str]] = notebook.page.evaluate(CONTRASTS)
    return sorted((ratio, where, text) for ratio, where, text in found)


CONTRASTS = """
() => {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const brush = canvas.getContext("2d", { willReadFrequently: true });
  // Any colour that CSS has, as red, green, blue in 0…255 and alpha in 0…1.
  const rgba = (colour) => {
    brush.clearRect(0, 0, 1, 1);
    brush.fillStyle = colour;
    brush.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = brush.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (above, below) => {
    const mix = (at) => above[at] * above[3] + below[at] * (1 - above[3]);
    return [mix(0), mix(1), mix(2), 1];
  };
  const parent = (node) => node.parentElement ?? node.getRootNode().host ?? null;
  const background = (node) => {
    const layers = [];
    for (let at = node; at; at = parent(at)) {
      layers.push(rgba(getComputedStyle(at).backgroundColor));
    }
    return layers.reduceRight((below, layer) => over(layer, below), [255, 255, 255, 1]);
  };
  const opacity = (node) => {
    let product = 1;
    for (let at = node; at; at = parent(at)) product *= Number(getComputedStyle(at).opacity);
    return product;
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((value) => {
      const c = value / 255;
      return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const found = [];
  const look = (root) => {
    for (const node of root.querySelectorAll("*")) {
      if (node.shadowRoot) look(node.shadowRoot);
      const texts = [...node.childNodes].filter((child) => child.nodeType === Node.TEXT_NODE);
      const text = texts.map((child) => child.data.trim()).join("");
      if (!text || !node.checkVisibility() || node.tagName === "STYLE") continue;
      const style = getComputedStyle(node);
      if (style.clipPath !== "none") continue;
      const below = background(node);
      const [r, g, b, a] = rgba(style.color);
      const [one, other] = [light(over([r, g, b, a * opacity(node)], below)), light(below)];
      const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
      found.push([ratio, `${node.tagName.toLowerCase()}.${node.className}`, text.slice(0, 40)]);
    }
  };
  for (const element of document.querySelectorAll("[data-nbsched]")) look(element.parentElement);
  return found;
}
"""


def test_every_text_of_every_state_has_enough_contrast_in_both_themes(
    open_notebook: OpenNotebook,
) -> None:
    notebook = open_notebook(*CELLS)
    notebook.run(1)
    notebook.until(lambda: notebook.live(1).count())
    notebook.live(1).get_by_role("button", name="Traceback of task 7").click()
    notebook.live(1).get_by_role("button", name="Retry task 2", exact=True).click()
    notebook.until(lambda: notebook.live(1).locator("tbody[data-state=done]").count())
    notebook.run(2)
    notebook.until(lambda: notebook.live(2).count())
    notebook.live(2).get_by_role("button", name="Running").click()
    notebook.until(lambda: notebook.live(2).locator("tbody[data-state=running]").count())
    running = {theme: contrasts_in(notebook, theme) for theme in ("Light", "Dark")}
    for index in range(3, len(CELLS) + 1):
        notebook.run(index)
    notebook.until(lambda: notebook.live(4).count())
    notebook.live(4).get_by_role("button", name="Cancelled 400", exact=True).click()
    notebook.until(lambda: notebook.live(4).locator("tbody[data-state=cancelled]").count())
    notebook.until(lambda: "✓ succeeded" in notebook.text(5))
    notebook.until(lambda: notebook.live(6).count())
    notebook.until(lambda: "2 CPUs" in notebook.live(7).inner_text())

    for theme in ("Light", "Dark"):
        all_of_them = running[theme] + contrasts_in(notebook, theme)
        assert len(all_of_them) > 100
        words = {text for _, _, text in all_of_them}
        states = ("✗ failed", "▸ running", "✓ done", "⊘ cancelled", "✓ succeeded")
        assert words.issuperset(states)
        poor = sorted({found for found in all_of_them if found[0] < AA})
        print(f"{theme}: {len(all_of_them)} texts, least contrast {min(all_of_them)[0]:.2f}")
        assert not poor, (theme, poor)


def contrasts_in(notebook: Notebook, theme: str) -> list[tuple[float, str, str]]:
    notebook.theme(f"JupyterLab {theme}")
    # The live displays follow in the next frame.
    dark = "true" if theme == "Dark" else "false"
    notebook.page.wait_for_function(
        "dark => [...document.querySelectorAll('.nbsched-live')].every(host =>"
        " String(host.shadowRoot.querySelector('.nbsched').classList.contains('dark')) === dark)",
        arg=dark,
    )
    return contrasts(notebook)


def focused(notebook: Notebook) -> str:
    """What the button that has the focus is called; empty outside of the live displays."""
    name: str = notebook.page.evaluate(
        "() => { const b = document.activeElement?.shadowRoot?.activeElement;"
        " return b ? b.getAttribute('aria-label') || b.textContent : ''; }"
    )
    return name


def test_every_control_is_reached_by_tab_and_used_by_enter(open_notebook: OpenNotebook) -> None:
    call = "mf = cluster.map(lambda x: fails_at_first(x, folder), range(60))\nmf.wait()\nmf"
    notebook = open_notebook("import tempfile\nfolder = tempfile.mkdtemp()\n" + call)
    notebook.run(1)
    live = notebook.live(1)
    notebook.until(lambda: live.count() and notebook.state(1) == "failed")
    notebook.until(lambda: live.get_by_role("button", name="Retry 12 failed", exact=True).count())
    wanted = [
        "▸", "Retry 12 failed", "Traceback of task 2", "Retry task 2", "Retry task 27",
        "next page",
    ]  # fmt: skip

    live.get_by_role("button", name="Failed 12").focus()
    reached = []
    while name := focused(notebook):
        reached.append(name)
        notebook.page.keyboard.press("Tab")

    buttons = live.locator("button:visible")
    names = [
        buttons.nth(at).get_attribute("aria-label") or buttons.nth(at).inner_text()
        for at in range(buttons.count())
    ]
    assert reached == names
    assert all(any(name.startswith(want) for name in names) for want in wanted[1:])

    press(notebook, "next page")
    notebook.until(lambda: live.locator('tbody[data-task="32"]').count())
    press(notebook, "Failed 12")
    notebook.until(lambda: live.locator("tbody:visible").count() == 0)
    press(notebook, "Failed 12")
    notebook.until(lambda: live.locator("tbody:visible").count())
    press(notebook, "Retry task 2")
    notebook.until(lambda: live.locator('tbody[data-task="2"][data-state=done]').count())
    press(notebook, "Retry 11 failed")
    notebook.until(lambda: "60 of 60 done" in notebook.text(1))


def press(notebook: Notebook, name: str) -> None:
    notebook.live(1).get_by_role("button", name=name, exact=True).focus()
    notebook.page.keyboard.press("Enter")


def test_a_screen_reader_is_told_what_everything_is(open_notebook: OpenNotebook) -> None:
    notebook = open_notebook(
        "import tempfile\nfolder = tempfile.mkdtemp()\n"
        "mf = cluster.map(lambda x: fails_at_first(x, folder), range(5), name='photos')\n"
        "mf.wait()\nmf"
    )
    notebook.run(1)
    notebook.until(lambda: notebook.live(1).locator("tbody").count())

    told = notebook.cell(1).locator(".nbsched-live").aria_snapshot()

    for words in (
        'group "Job photos"',
        'progressbar "photos"',
        'button "Retry 1 failed"',
        'button "Failed 1" [expanded]',
        'table "failed tasks"',
        'columnheader "Error"',
        'columnheader "Action"',
        'rowheader "2"',
        "✗ failed",
        'button "Traceback of task 2: ValueError: no 2"',
        'button "Retry task 2"',
    ):
        assert words in told, told
    bar = notebook.live(1).get_by_role("progressbar")
    assert bar.get_attribute("aria-valuetext") == "4 of 5 tasks done, 1 failed"
    assert notebook.live(1).locator("[aria-live=polite]").text_content().startswith("✗ failed")
