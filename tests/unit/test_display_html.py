"""A job as HTML: well-formed, harmless, readable without colours or styles."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from nbsched.client.progress import Progress
from nbsched.display import html

VOID = {"br", "img", "hr", "meta", "link", "input"}


class Page(HTMLParser):
    """Collects tags and text, and checks that every tag is closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute stands twice in {tag}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def bar(self) -> dict[str, str | None]:
        (found,) = (attrs for _, attrs in self.tags if attrs.get("role") == "progressbar")
        return found

    @property
    def segments(self) -> list[str]:
        return [attrs["title"] or "" for _, attrs in self.tags if "title" in attrs]


def job(**changes: object) -> Progress:
    fields: dict[str, object] = {
        "job": "20261124-061502-k7m2xq",
        "name": "count_functions",
        "total": 2000,
        "uploaded": 2000,
        "elapsed_s": 58.3,
    }
    return Progress(**{**fields, **changes})  # type: ignore[arg-type]


HALFWAY = job(ok=1237, failed=3, cancelled=2, running=12, retrying=4)
SCENES = {
    "halfway": HALFWAY,
    "nothing yet": job(state="waiting", note="No worker joined 'demo' <yet>."),
    "succeeded": job(ok=2000, state="succeeded"),
    "failed": job(ok=1911, failed=89, state="failed"),
    "empty": job(total=0, uploaded=0, state="succeeded"),
    "uploading": job(total=None, uploaded=0),
    "streaming": job(total=None, uploaded=5000, ok=300),
}


@pytest.mark.parametrize("scene", SCENES)
def test_html_is_well_formed_and_loads_nothing(scene: str) -> None:
    source = html.render(SCENES[scene])
    page = Page(source)

    assert page.bar
    assert {tag for tag, _ in page.tags} <= {"div", "span", "strong"}
    assert not re.search(r"https?:|url\(|@import|\bon\w+=", source)


@pytest.mark.parametrize("field", ["name", "note"])
def test_a_script_in_a_name_or_note_stays_text(field: str) -> None:
    evil = "<script>alert(1)</script>\" onload='x' <b"
    page = Page(html.render(job(**{field: evil})))

    assert "<script>alert(1)</script>" in page.text
    assert all(tag in {"div", "span", "strong"} for tag, _ in page.tags)
    assert all("onload" not in attrs for _, attrs in page.tags)


def test_the_bar_is_read_aloud_with_its_counts() -> None:
    bar = Page(html.render(HALFWAY)).bar

    assert bar["aria-label"] == "count_functions"
    assert (bar["aria-valuemin"], bar["aria-valuenow"], bar["aria-valuemax"]) == (
        "0",
        "1242",
        "2000",
    )
    assert bar["aria-valuetext"] == (
        "1,237 of 2,000 tasks done, 3 failed, 2 cancelled, 12 running, 4 retrying, 742 queued"
    )


def test_a_bar_without_end_has_no_value() -> None:
    bar = Page(html.render(SCENES["streaming"])).bar

    assert "aria-valuenow" not in bar
    assert bar["aria-valuetext"] == "300 of 5,000+ tasks done, 4,700 queued"


def test_segments_are_the_counts_and_never_overlap() -> None:
    source = html.render(HALFWAY)

    assert Page(source).segments == [
        "1,237 done",
        "3 failed",
        "2 cancelled",
        "12 running",
        "4 retrying",
        "742 queued",
    ]
    assert sum(int(n) for n in re.findall(r"flex-grow: (\d+)", source)) == 2000


def test_without_any_style_the_text_says_it_all() -> None:
    text = " ".join(Page(html.render(HALFWAY)).text.split())

    assert text.startswith("count_functions 20261124-061502-k7m2xq running 62 %")
    assert "1,237 of 2,000 done 3 failed 2 cancelled 12 running 4 retrying 742 queued" in text
    assert "✗ failed" in Page(html.render(SCENES["failed"])).text


def test_parts_differ_by_pattern_not_only_by_colour() -> None:
    source = html.render(HALFWAY)

    patterns = re.findall(r"title=\"[\d,]+ (\w+)\".*?background: (.*?)\"", source)
    shapes = {kind: re.sub(r"var\([^)]*\)|rgba\([^)]*\)", "colour", p) for kind, p in patterns}
    striped = {kind for kind, shape in shapes.items() if "gradient" in shape}
    assert striped == {"failed", "cancelled", "running", "retrying"}
    assert shapes["done"] == "colour"


def test_every_colour_survives_a_sanitizer_without_variables() -> None:
    """JupyterLab drops variables and gradients in a notebook that it does not trust."""
    for scene in SCENES.values():
        for declarations in re.findall(r'style="([^"]*)"', html.render(scene)):
            painted = [d.split(":")[0].strip() for d in declarations.split(";")]
            assert painted.count("background") == painted.count("background-color")


def test_it_fits_a_column_of_900_pixels() -> None:
    source = html.render(job(name="long_" * 80))

    assert "max-width: 860px" in source
    assert source.count("flex-wrap: wrap") == 2
    assert "overflow-wrap: anywhere" in source
