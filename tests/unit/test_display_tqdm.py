"""Progress as a tqdm bar, and what is said where tqdm is missing."""

from __future__ import annotations

import functools
import io
from contextlib import redirect_stderr
from typing import Any

import pytest

from nbsched.client import options
from nbsched.client.options import Options, require_progress
from nbsched.client.progress import Progress
from nbsched.display import views as views_module
from nbsched.display.tqdm import TqdmBar
from nbsched.display.views import Views
from nbsched.errors import ConfigurationError

tqdm = pytest.importorskip("tqdm")


def job(ok: int, total: int | None = 40, **changes: object) -> Progress:
    fields: dict[str, object] = {"job": "j", "name": "score", "uploaded": 40, "elapsed_s": 5.0}
    return Progress(total=total, ok=ok, **{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def bar(stream: io.StringIO) -> TqdmBar:
    return TqdmBar(functools.partial(tqdm.tqdm, file=stream, ncols=100))


def last(stream: io.StringIO) -> str:
    return stream.getvalue().rstrip().split("\r")[-1]


def test_the_bar_counts_tasks(bar: TqdmBar, stream: io.StringIO) -> None:
    bar.draw(job(10))
    assert "score:  25%" in last(stream)
    assert "10/40" in last(stream)
    bar.end(job(40))
    assert "score: 100%" in last(stream)
    assert "40/40" in last(stream)
    assert "task/s" in last(stream)


def test_failed_and_cancelled_tasks_count_and_are_told(bar: TqdmBar, stream: io.StringIO) -> None:
    bar.end(job(30, failed=8, cancelled=2))
    assert "40/40" in last(stream)
    assert "failed=8, cancelled=2" in last(stream)


def test_tasks_that_are_retried_count_no_more(bar: TqdmBar, stream: io.StringIO) -> None:
    bar.draw(job(30, failed=5))
    bar.draw(job(30))
    assert "30/40" in last(stream)
    assert "failed" not in last(stream)
    bar.end(job(30))


def test_the_total_grows_while_items_are_uploaded(bar: TqdmBar, stream: io.StringIO) -> None:
    bar.draw(job(10, total=None, uploaded=20))
    assert "10/20" in last(stream)
    bar.end(job(40))
    assert "40/40" in last(stream)


class _Job:
    """A job that ends while somebody waits for it."""

    id = "j"
    progress = job(10)

    def __init__(self, mode: Any) -> None:
        self.progress_mode = mode

    def cancel(self) -> bool:
        return False

    def retry(self) -> int:
        return 0


@pytest.mark.parametrize(("mode", "shown"), [("tqdm", "score: 100%|"), ("off", "")])
def test_a_wait_shows_a_bar_if_it_is_wanted(
    mode: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views_module, "DELAY_S", 0.0)
    waited_for, text = _Job(mode), io.StringIO()
    with redirect_stderr(text), Views().blocking(waited_for):
        waited_for.progress = job(40)
    assert (shown in text.getvalue()) if shown else not text.getvalue()


def test_where_tqdm_is_missing_the_error_names_the_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(options, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="pip install tqdm"):
        Options(progress="tqdm")
    with pytest.raises(ConfigurationError, match="pip install tqdm"):
        require_progress("tqdm")
    require_progress("auto")


def test_another_word_for_progress_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"progress='bar'.*one of auto, text, tqdm, off"):
        Options(progress="bar")  # type: ignore[arg-type]
