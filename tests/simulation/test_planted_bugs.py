"""Each bug that is planted into the product is found within some stories, and in the same
stories nothing is found without it. docs/faults.md has the table."""

from __future__ import annotations

import pytest

from support.sim.bugs import BUGS
from support.sim.play import Played, play_apart

WITHIN = 150
"""Seeds."""


def _planted(bugs: list[str], *arguments: str) -> Played:
    """Stories of each of these bugs, one bug at a time."""
    chosen = [argument for bug in bugs for argument in ("--bug", bug)]
    return play_apart([*arguments, "--no-shrink", *chosen])


@pytest.fixture(scope="module")
def played(request: pytest.FixtureRequest) -> Played:
    """Stories of all bugs of the selected tests: one process starts for all of them."""
    calls = (getattr(item, "callspec", None) for item in request.session.items)
    asked = {call.params["bug"] for call in calls if call is not None and "bug" in call.params}
    return _planted(sorted(asked), f"0:{WITHIN}")


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(bug: str, played: Played) -> None:
    verdicts = [line for line in played.text.splitlines() if line.startswith(f"{bug}: ")]
    assert verdicts == [f"{bug}: {WITHIN} seeds, not all fine"], played.text


def test_the_same_stories_are_fine_without_the_bugs() -> None:
    played = _planted(list(BUGS), "0:15", "--without")
    assert played.fine, played.text
