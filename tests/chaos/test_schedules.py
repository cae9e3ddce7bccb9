"""Twenty seeded schedules of faults on real servers: no task lost, none told twice.

Hundreds of them: ``make chaos N=300``; one again: ``make chaos SEED=7``.
"""

from __future__ import annotations

import pytest

from chaos import schedule
from chaos.conftest import SEEDS
from chaos.faults import FAULTS
from chaos.groundfaults import GROUND_FAULTS
from chaos.grounds import GROUNDS
from chaos.trial import Report


@pytest.mark.parametrize("trial", [str(seed) for seed in SEEDS])
def test_no_schedule_of_faults_breaks_a_promise(
    trial: str, impossible: dict[str, str], reports: dict[str, Report]
) -> None:
    if trial in impossible:
        pytest.skip(impossible[trial])
    report = reports[trial]
    print("\n".join(report.story))
    assert not report.violations, f"SEED={trial}, see {report.folder}"


def test_these_schedules_have_every_kind_of_fault_and_every_ground() -> None:
    schedules = [schedule.make(seed) for seed in SEEDS]
    assert {each.ground for each in schedules} == set(GROUNDS)
    planned = {fault.kind for each in schedules for fault in each.faults}
    assert planned == set(FAULTS | GROUND_FAULTS)
