"""A job as text: what a line says, and that it fits."""

from __future__ import annotations

import random

import pytest

from nbsched.client.progress import Progress
from nbsched.display import text
from nbsched.display.wording import duration, known, one_line, parts, percent, rate


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


def test_a_line_says_what_there_is_to_know() -> None:
    line = text.line(HALFWAY, 200)

    for words in (
        "count_functions",
        "1,237/2,000 done",
        "3 failed",
        "2 cancelled",
        "12 running",
        "4 retrying",
        "742 queued",
        " 62 %",
        "21/s",
        "58 s",
        "36 s left",
    ):
        assert words in line


def test_a_line_leaves_out_counts_that_are_zero() -> None:
    line = text.line(job(ok=10), 200)

    assert not any(word in line for word in ("failed", "cancelled", "retrying"))


def test_the_end_is_told_in_words_and_a_sign() -> None:
    assert "✓ succeeded" in text.line(job(ok=2000, state="succeeded"))
    assert "✗ failed" in text.line(job(ok=1990, failed=10, state="failed"))
    assert "⊘ cancelled" in text.line(job(ok=5, cancelled=1995, state="cancelled"))


def test_a_note_says_why_the_job_does_not_move() -> None:
    waiting = job(state="waiting", note="No worker joined 'demo' yet.")

    assert "No worker joined 'demo' yet." in text.line(waiting, 120)
    assert "waiting (No worker joined 'demo' yet.)" in text.summary(waiting)


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("name", ["count", "一覧表を数える関数" * 4, "x" * 300])
def test_a_line_is_never_wider_than_the_terminal(name: str, ascii_only: bool) -> None:
    crowded = job(name=name, ok=1000, failed=100, cancelled=1, running=200, note="why " * 30)

    for width in range(1, 160):
        line = text.line(crowded, width, ascii_only=ascii_only)
        assert text.cells(line) <= width
        assert line.isascii() or not ascii_only


def test_a_narrow_line_keeps_name_count_and_state() -> None:
    line = text.line(job(ok=1990, failed=10, state="failed"), 64)

    assert "count_functions" in line
    assert "1,990/2,000 done" in line
    assert "10 failed" in line
    assert "✗ failed" in line


def test_a_bar_is_as_long_as_asked_and_rounds_no_failure_away() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(300):
        total = rng.choice([1, 7, 10**7])
        ok, failed = rng.randint(0, total), 0
        if ok < total:
            failed = 1
        bar = text.bar(job(total=total, uploaded=total, ok=ok, failed=failed), 24)
        assert len(bar) == 24
        assert ("✗" in bar) == bool(failed)
        assert ("█" in bar) == bool(ok)


def test_parts_never_overlap_whatever_the_counts() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(300):
        total = rng.randint(0, 50)
        ok = rng.randint(0, total)
        # Live counts may be a moment older than the outcomes, and claim too much.
        now = job(total=total, ok=ok, running=rng.randint(0, 60), retrying=rng.randint(0, 60))
        assert sum(part.count for part in parts(now)) == known(now)
        assert parts(now)[0].count == ok


def test_percent_says_100_only_at_the_end() -> None:
    assert percent(job(ok=1999)) == 99
    assert percent(job(ok=2000)) == 100
    assert percent(job(total=0, uploaded=0)) == 100
    assert percent(job(total=None, ok=5)) is None


def test_an_unknown_total_is_told_by_a_plus() -> None:
    line = text.line(job(total=None, uploaded=5000, ok=300), 120)

    assert "300/5,000+ done" in line
    assert "%" not in line


def test_names_cannot_move_the_cursor() -> None:
    line = text.line(job(name="a\x1b[2J\r\nb\x00"), 120)

    assert one_line("a\x1b[2J\r\nb\x00") == "a[2J b"
    assert line.startswith("a[2J b")
    assert "\r" not in text.summary(job(name="a\rb"))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (42.9, "42 s"), (65, "1:05"), (10812, "3:00:12"), (183_840, "2 d 03:04")],
)
def test_durations_read_like_a_clock(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_short_durations_have_tenths_at_the_end_only() -> None:
    assert duration(4.26, exact=True) == "4.3 s"
    assert duration(4.26) == "4 s"


@pytest.mark.parametrize(
    ("per_second", "words"),
    [(1240.2, "1,240/s"), (2.5, "2.5/s"), (0.2, "12/min"), (0.001, "3.6/h")],
)
def test_rates_take_the_unit_that_reads_well(per_second: float, words: str) -> None:
    assert rate(per_second) == words


def test_the_repr_names_job_counts_and_state() -> None:
    assert text.summary(job(ok=40, failed=2, total=100, uploaded=100, state="running")) == (
        "<MapFuture 'count_functions' 20261124-061502-k7m2xq:"
        " 40/100 done, 2 failed, 58 queued, 43/min, 58 s, 81 s left, running>"
    ).replace("81 s", "1:21")
