"""What is written to a terminal and to a pipe, and what is not."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest

from nbsched.client.progress import Progress
from nbsched.display.terminal import PipeLines, TerminalLine


class Stream(io.StringIO):
    """A stream that renders like a terminal: ``screen`` is what one would see."""

    encoding = "utf-8"

    @property
    def screen(self) -> list[str]:
        lines = []
        for row in self.getvalue().split("\n"):
            shown = ""
            for text in row.split("\r"):
                shown = text + shown[len(text) :]
            lines.append(shown.rstrip())
        return lines


class LatinStream(Stream):
    encoding = "latin-1"


def job(ok: int, total: int | None = 100, **changes: object) -> Progress:
    fields: dict[str, object] = {"job": "j", "name": "f", "uploaded": 100, "elapsed_s": 5.0}
    if ok == total:
        fields["state"] = "succeeded"
    return Progress(total=total, ok=ok, **{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def sixty_columns(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("COLUMNS", "60")
    yield
    assert TerminalLine._owner is None, "a view has kept the terminal's line"


def test_a_terminal_line_is_written_over_itself_and_stays_at_the_end() -> None:
    stream = Stream()
    view = TerminalLine(stream)

    for ok in (5, 50):
        view.draw(job(ok))
    view.end(job(100))

    assert stream.getvalue().count("\n") == 1
    first, rest = stream.screen
    assert "100/100 done" in first
    assert "✓ succeeded" in first
    assert rest == ""


def test_a_shorter_line_leaves_nothing_of_the_longer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    stream = Stream()
    view = TerminalLine(stream)

    view.draw(job(10, note="a reason to wait"))
    assert stream.screen[0].endswith("running · a reason to wait")
    view.draw(job(10))
    assert stream.screen[0].endswith("running")

    view.end(job(100))


def test_a_line_is_wiped_when_the_wait_is_given_up() -> None:
    stream = Stream()
    view = TerminalLine(stream)

    view.draw(job(10))
    view.end(job(11))

    assert stream.screen == [""]


def test_a_line_leaves_the_last_column_free(monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in range(20, 100):
        monkeypatch.setenv("COLUMNS", str(columns))
        stream = Stream()
        TerminalLine(stream).end(job(93, name="n" * 100, failed=7, state="failed"))
        assert len(stream.screen[0]) < columns


def test_two_jobs_do_not_fight_over_the_line() -> None:
    stream = Stream()
    first, second = TerminalLine(stream), TerminalLine(stream)

    first.draw(job(10, name="first"))
    second.draw(job(10, name="second"))
    assert "second" not in stream.getvalue()

    second.end(job(100, name="second"))
    first.draw(job(20, name="first"))
    first.end(job(100, name="first"))
    assert [line.split()[0] for line in stream.screen if line] == ["second", "first"]


def test_a_pipe_gets_a_line_per_ten_percent() -> None:
    stream = Stream()
    view = PipeLines(stream)

    for ok in range(101):
        view.draw(job(ok))
    view.end(job(100))

    lines = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue()
    assert [line.split("%")[0].split()[-1] for line in lines[1:]] == [
        str(percent) for percent in range(10, 101, 10)
    ]
    assert len(lines) == 11


def test_a_pipe_is_told_why_a_job_does_not_move_once() -> None:
    stream = Stream()
    view = PipeLines(stream)

    for _ in range(5):
        view.draw(job(0, note="No worker joined."))

    (line,) = stream.getvalue().splitlines()
    assert "No worker joined." in line


def test_a_pipe_gets_few_lines_while_the_total_is_unknown() -> None:
    stream = Stream()
    view = PipeLines(stream)

    for ok in range(1000):
        view.draw(job(ok, total=None))

    assert len(stream.getvalue().splitlines()) == 10


def test_a_given_up_wait_writes_nothing_to_a_pipe() -> None:
    stream = Stream()
    view = PipeLines(stream)

    view.end(job(50))

    assert stream.getvalue() == ""
    assert not view.finished


def test_a_stream_without_the_characters_gets_ascii() -> None:
    stream = LatinStream()

    PipeLines(stream).draw(job(50, failed=3, name="naïve"))

    assert stream.getvalue().isascii()
    assert "###" in stream.getvalue()
