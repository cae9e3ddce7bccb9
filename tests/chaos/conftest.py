"""All trials that the selected tests need, run together: they sleep much of the time."""

from __future__ import annotations

import pytest

from chaos import netns, schedule, smalldisk
from chaos.rehearsals import FULL_DISKS, PARTITIONS, REHEARSALS
from chaos.run import run_many
from chaos.trial import Report

AT_ONCE = 5
SEEDS = range(1, 21)


@pytest.fixture(scope="session")
def impossible() -> dict[str, str]:
    """Trials that cannot be run on this machine, and why."""
    network, disk = netns.missing(), smalldisk.missing()
    reasons = {name: f"no partitions: {network}" for name in PARTITIONS if network}
    reasons |= {name: f"no full disks: {disk}" for name in FULL_DISKS if disk}
    return reasons | {str(seed): why for seed in SEEDS if (why := schedule.make(seed).impossible)}


@pytest.fixture(scope="session")
def reports(request: pytest.FixtureRequest, impossible: dict[str, str]) -> dict[str, Report]:
    """By name: what came of each trial that a selected test asks for as ``trial``."""
    calls = (getattr(item, "callspec", None) for item in request.session.items)
    asked = {call.params["trial"] for call in calls if call is not None and "trial" in call.params}
    # Rehearsals first: they last longest.
    names = sorted(asked - set(impossible), key=lambda name: (name not in REHEARSALS, name))
    return {report.name: report for report in run_many(names, AT_ONCE)}
