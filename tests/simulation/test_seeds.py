"""Many stories of what can go wrong, each played to its end.

`NBSCHED_SIM_SEEDS` plays more or fewer, `NBSCHED_SIM_SEED` one alone, and tells it.
"""

from __future__ import annotations

import os

from support.sim.play import play_apart

SEEDS = int(os.environ.get("NBSCHED_SIM_SEEDS", "10000"))
ONE = os.environ.get("NBSCHED_SIM_SEED")


def test_whatever_goes_wrong_every_task_has_one_outcome_and_every_job_ends() -> None:
    if ONE is not None:
        played = play_apart([ONE, "--tell"])
        print(played.text)
    else:
        played = play_apart([f"0:{SEEDS}"])
    assert played.fine, played.text


def test_a_seed_tells_the_same_story_every_time() -> None:
    first, second = (play_apart(["3", "--tell"]) for _ in range(2))
    assert first.text == second.text
    assert "submitted" in first.text
