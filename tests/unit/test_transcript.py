"""Lines of tasks' output, from news of running tasks and from outcomes."""

from __future__ import annotations

from nbsched.client.transcript import LINE_CHARS, MOST_LINES, Transcript
from nbsched.messages import Outcome, OutcomeState, PrintedText
from nbsched.model import WorkerId

WORKER = WorkerId("w")


def news(end: int, text: str, *, index: int = 0, attempt: int = 1, stream: int = 0) -> PrintedText:
    return PrintedText(index, 0, attempt, stream, end, text.encode())


def outcome(*texts: str, total: int | None = None, attempt: int = 1) -> tuple[Outcome, bytes]:
    """Of task 0, with what it has printed to its streams."""
    parts = [text.encode() for text in texts] + [b""] * (3 - len(texts))
    out, err, native = map(len, parts)
    printed = (out if total is None else total, err, native)
    made = Outcome(0, 1, 0, attempt, OutcomeState.OK, output=(out, err, native), printed=printed)
    return made, b"".join(parts)


def lines(transcript: Transcript) -> list[str]:
    return [str(line) for line in transcript.since(0)]


def test_an_outcome_becomes_lines_of_its_task() -> None:
    transcript = Transcript()
    transcript.ended(WORKER, *outcome("a\nb\nno end", "err\n", "native\n"))
    assert lines(transcript) == ["[0] a", "[0] b", "[0] no end", "[0] err", "[0] native"]
    assert [line.stream for line in transcript.since(0)] == [0, 0, 0, 1, 0]


def test_what_was_told_while_it_ran_is_not_repeated_by_the_outcome() -> None:
    transcript = Transcript()
    transcript.told(WORKER, [news(5, "a\nb\nc")])
    assert lines(transcript) == ["[0] a", "[0] b"]
    assert [str(line) for line in transcript.last(10)] == ["[0] a", "[0] b", "[0] c"]
    assert transcript.running_text(0, 0) == "a\nb\nc"
    transcript.told(WORKER, [news(6, "b\ncc")])  # it overlaps
    transcript.ended(WORKER, *outcome("a\nb\nccc\nd\n"))
    assert lines(transcript) == ["[0] a", "[0] b", "[0] ccc", "[0] d"]
    assert transcript.running_text(0, 0) == ""


def test_news_that_leave_something_out_say_how_much() -> None:
    transcript = Transcript()
    transcript.told(WORKER, [news(3, "ab\n")])
    transcript.told(WORKER, [news(1003, "yz\n")])
    assert lines(transcript) == ["[0] ab", "[0] [… 997 bytes left out …]", "[0] yz"]


def test_a_long_text_goes_on_where_the_news_ended_or_says_what_is_missing() -> None:
    end = "x\n" * 25_000  # more than an outcome keeps of an end
    transcript = Transcript()
    transcript.told(WORKER, [news(2, "a\n")])
    transcript.ended(WORKER, *outcome("a\n[… cut …]\n" + end, total=1_000_000))
    assert lines(transcript)[-1] == "[0] x"
    assert transcript.count == 1 + 1 + 24 * 1024
    near = Transcript()
    near.told(WORKER, [news(999_998, "y\n")])
    near.ended(WORKER, *outcome("a\n[… cut …]\n" + end, total=1_000_000))
    assert lines(near) == ["[0] [… 999,996 bytes left out …]", "[0] y", "[0] x"]


def test_a_new_attempt_begins_anew() -> None:
    transcript = Transcript()
    transcript.told(WORKER, [news(6, "first\n")])
    transcript.told(WORKER, [news(7, "second\n", attempt=2)])
    transcript.told(WorkerId("other"), [news(6, "third\n", attempt=2)])
    assert lines(transcript) == ["[0] first", "[0] second", "[0] third"]


def test_a_bar_that_draws_itself_anew_is_one_line() -> None:
    transcript = Transcript()
    transcript.ended(WORKER, *outcome("\r10 %\r50 %\r100 %\ndone\r\n"))
    assert lines(transcript) == ["[0] 100 %", "[0] done"]


def test_characters_may_be_cut_anywhere() -> None:
    transcript = Transcript()
    data = "ä€\n".encode()
    for end in range(1, len(data) + 1):
        part = PrintedText(0, 0, 1, 0, end, data[end - 1 : end])
        transcript.told(WORKER, [part])
    assert lines(transcript) == ["[0] ä€"]


def test_it_is_bounded_in_every_direction() -> None:
    transcript = Transcript()
    transcript.ended(WORKER, *outcome("x" * 10_000 + "\n" + "\n" * 5000))
    kept = transcript.since(0)
    assert len(kept) == MOST_LINES
    assert transcript.count == 5001
    long = Transcript()
    for i in range(100):
        long.told(WORKER, [news(1000 * (i + 1), "x" * 1000)])
    (line,) = long.last(5)
    assert line.text == "x" * LINE_CHARS
    for index in range(1000):
        long.told(WORKER, [news(1, "y", index=index)])
    assert len(long._runs) == 200
    assert len(long.last(10_000)) <= MOST_LINES + 200


def test_two_runs_of_a_task_have_a_text_each() -> None:
    transcript = Transcript()
    for end in (2, 4, 6):
        transcript.told(WORKER, [news(end, "a\n")])
        transcript.told(WorkerId("other"), [news(end, "b\n")])
    transcript.ended(WORKER, *outcome("a\na\na\n"))
    transcript.ended_silently(0, 1)
    assert lines(transcript) == ["[0] a", "[0] b"] * 3


def test_many_tasks_that_print_at_once_have_every_line_once() -> None:
    transcript = Transcript()
    for end in (2, 4, 6):
        transcript.told(WORKER, [news(end, f"{end}\n", index=i) for i in range(250)])
    assert transcript.count == 750
    assert not any("left out" in line for line in lines(transcript))


def test_an_outcome_that_is_read_twice_is_told_once() -> None:
    transcript = Transcript()
    for _ in range(2):
        transcript.ended(WORKER, *outcome("again\n"))
    assert lines(transcript) == ["[0] again"]


def test_a_task_that_ended_without_a_word_leaves_no_open_line() -> None:
    transcript = Transcript()
    transcript.told(WORKER, [news(4, "open")])
    transcript.ended_silently(0, 10)
    assert lines(transcript) == [str(line) for line in transcript.last(9)] == ["[0] open"]
