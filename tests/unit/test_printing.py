"""How much of a flood is printed."""

from __future__ import annotations

from nbsched.client.printing import Bounded
from nbsched.client.transcript import Line


def some(count: int, text: str = "x") -> list[Line]:
    return [Line(i, 0, text) for i in range(count)]


def test_a_few_lines_are_all_printed() -> None:
    assert Bounded().choose(some(3), 0) == some(3)
    assert Bounded().choose([], 0) == []


def test_of_many_lines_the_last_are_printed_and_the_others_counted() -> None:
    chosen = Bounded().choose(some(1000), 500)
    assert chosen[0] == "[… 1,460 lines left out …]"
    assert chosen[1:] == some(1000)[-40:]


def test_long_lines_count_for_more() -> None:
    chosen = Bounded().choose(some(40, "x" * 2000), 0)
    assert len(chosen) == 1 + 6
    assert len(Bounded().choose(some(1, "x" * 20_000), 0)) == 1


def test_a_job_has_an_end_to_its_lines_which_is_said_once() -> None:
    bounded = Bounded(most_lines=50)
    assert len(bounded.choose(some(30), 0)) == 30
    assert len(bounded.choose(some(30), 0)) == 21
    (word,) = bounded.choose(some(1), 0)
    assert "mf.tail()" in str(word)
    assert bounded.choose(some(1), 0) == []
