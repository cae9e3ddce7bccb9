"""What the simulation has found once stays mended."""

from __future__ import annotations

import pytest

from support.sim.found import FOUND
from support.sim.play import play_apart


@pytest.mark.parametrize("name", FOUND)
def test_a_story_that_ended_badly_once_ends_well(name: str) -> None:
    played = play_apart([f"found:{name}"])
    assert played.fine, played.text
